"""`memweave eval world planworld`: how well a planner does when a retrieval policy shows it cases, on streams of PlanWorld."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from memweave.errors import InputError, SettingsError
from memweave.metrics import hierarchical_bootstrap
from memweave.models import chat_model, providers
from memweave.recipes.memento.script import ScriptedPlanner
from memweave.recipes.memento.stream import PlannerOf, Report, StreamResult, StreamSettings, play
from memweave.recipes.running import BASE, PLANWORLD_BASE

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from pydantic import SecretStr

SCRIPT: Final = "script"
MAX_TOKENS: Final = 64
"""Of one reply of a small planner: twice what a usual one takes."""
REPLY_SECONDS: Final = 600.0


@dataclass(frozen=True, kw_only=True)
class PlanWorldResult:
    """What an evaluation found."""

    world: str
    agent: str
    policy: str
    settings: StreamSettings
    """Of the first seed; the others differ in nothing else."""
    temperature: float
    score: float
    """Share of solved tasks over all iterations, in [0, 1]."""
    low: float
    high: float
    """95 % bootstrap interval of the score, over seeds and tasks."""
    per_iteration: tuple[float, ...]
    """Mean over seeds."""
    cumulative: tuple[float, ...]
    """Share of tasks that were solved in this iteration or before; only where tasks are repeated."""
    streams: Mapping[str, StreamResult]
    """By seed."""
    seconds: float

    def payload(self) -> dict[str, object]:
        """Return this as one JSON object."""
        return asdict(self)


def evaluate_planworld(
    settings: StreamSettings,
    policy: str = BASE,
    *,
    seeds: int = 1,
    temperature: float = 1.0,
    base: Path = PLANWORLD_BASE,
    api_key: SecretStr | None = None,
    report: Report | None = None,
) -> PlanWorldResult:
    """Play one stream per seed, from `settings.seed` on.

    policy: `base`, `script`, the folder of a policy, or a specification for `chat_model`: who plans.

    Raises `SettingsError` for an unknown name, `InputError` for a folder that is none, `UnavailableError` when a model does not answer.
    """
    if seeds < 1:
        raise InputError(f"{seeds} seeds: give 1 at least")
    began = time.perf_counter()
    streams: dict[str, StreamResult] = {}
    with ExitStack() as opened:
        planner_of = planner(policy, base, temperature, api_key, opened)
        for seed in range(settings.seed, settings.seed + seeds):
            streams[str(seed)] = play(replace(settings, seed=seed), planner_of, report)
    interval = hierarchical_bootstrap([[[float(m) for m in marks] for marks in s.right] for s in streams.values()])
    return PlanWorldResult(
        world="planworld",
        agent=settings.arm,
        policy=policy,
        settings=settings,
        temperature=temperature,
        score=interval.mean,
        low=interval.low,
        high=interval.high,
        per_iteration=_shares([stream.right for stream in streams.values()]),
        cumulative=_shares([stream.cumulative for stream in streams.values()]),
        streams=streams,
        seconds=time.perf_counter() - began,
    )


def _shares(found: list[tuple[str, ...]]) -> tuple[float, ...]:
    return tuple(
        sum(marks.count("1") for marks in same) / sum(len(marks) for marks in same) for same in zip(*found, strict=True)
    )


def planner(name: str, base: Path, temperature: float, api_key: SecretStr | None, opened: ExitStack) -> PlannerOf:
    """Return who plans, by a seed of sampling."""
    if name == SCRIPT:
        return lambda seed: ScriptedPlanner(seed=seed)
    provider, colon, _ = name.partition(":")
    if colon and provider in providers():
        own = provider in ("local", "vllm")

        def hosted(seed: int) -> BaseChatModel:
            return chat_model(
                name, api_key=api_key, temperature=temperature, max_tokens=MAX_TOKENS if own else None, timeout=REPLY_SECONDS,
                seed=seed if own else None,
            )  # fmt: skip

        return hosted
    folder = base if name == BASE else Path(name)
    if not folder.is_dir():
        if name == BASE:
            raise InputError(
                f"the planner {base} does not exist. Make it: memweave pretrain --world planworld --out FOLDER, "
                "and give it with --base FOLDER; or take the planner script"
            )
        raise SettingsError(
            f"no planner is called {name!r}. There are: {BASE}, {SCRIPT}, the folder of a policy, and models: local:FOLDER, "
            "vllm:NAME@URL, openai:NAME"
        )
    from memweave.serving.local_server import LocalServer
    from memweave.tracing.records import Sampling

    server = opened.enter_context(LocalServer(folder))

    def local(seed: int) -> BaseChatModel:
        sampling = Sampling(temperature=temperature, max_tokens=MAX_TOKENS, seed=seed)
        return server.chat_model(BASE, sampling=sampling, timeout=REPLY_SECONDS)

    return local

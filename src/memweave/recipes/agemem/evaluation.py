"""The evaluation on MemHop for any policy and any of the agent's variants: `memweave eval world memhop`.

The score is that of the recipes' final test (`episodes.evaluate`), so the numbers of both can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from memweave.errors import InputError, SettingsError
from memweave.graphs.agemem_reward import PAPER
from memweave.graphs.agemem_state import TOOLS_OF, Variant
from memweave.metrics import hierarchical_bootstrap
from memweave.models import chat_model, providers
from memweave.recipes.agemem import episodes, players
from memweave.recipes.agemem.simulating import THRESHOLD
from memweave.recipes.agemem.training import MAX_TOKENS
from memweave.recipes.recipe import REPLY_SECONDS
from memweave.recipes.running import BASE, MEMHOP_BASE
from memweave.serving.adapters import CONFIG as ADAPTER_FILE
from memweave.tracing import Sampling
from memweave.worlds.memhop import MemHop, MemHopSettings, Split

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from pydantic import SecretStr

Report = Callable[[str, int, int], object]
"""Called with a stage, how many of its episodes are done, and how many there are."""
TRAINED: Final = ("local", "vllm")
"""Providers of policies that were trained on this."""


@dataclass(frozen=True, kw_only=True)
class MemHopResult:
    """What an evaluation found."""

    world: str
    agent: str
    policy: str
    policy_version: str | None
    split: str
    seeds: int
    temperature: float
    threshold: float
    settings: MemHopSettings
    episodes: int
    """In all, over the seeds."""
    score: float
    """Share of exact matches, in [0, 1]."""
    low: float
    high: float
    """95 % bootstrap interval of the score, over seeds and episodes."""
    right: Mapping[str, str]
    """Seed of sampling -> one `1` or `0` per episode."""
    hops: Mapping[str, float]
    """Facts that the answer takes -> score."""
    means: Mapping[str, float]
    """Mean of every part of the reward, and of what is measured beside it."""
    seconds: float

    def payload(self) -> dict[str, object]:
        """Return this as one JSON object."""
        return asdict(self)


def evaluate_memhop(
    agent: Variant = "full",
    policy: str = BASE,
    *,
    number: int | None = None,
    seeds: int = 1,
    split: Split = "test",
    temperature: float = 0.0,
    threshold: float = THRESHOLD,
    world: MemHopSettings | None = None,
    base: Path = MEMHOP_BASE,
    api_key: SecretStr | None = None,
    concurrency: int = 32,
    report: Report | None = None,
) -> MemHopResult:
    """Let a policy play episodes of MemHop.

    agent: `full`, `rag` or `none`.  policy: `base`, a script (`script`, `script-idle`, `script-tidy`, `script-habits`), the folder of
    a trained adapter or policy, or a specification for `chat_model`.  number: episodes, by default all of the split.  seeds: times
    that they are played, each with its own sampling.  threshold: cosine from which FILTER removes.  base: policy that plays `base`,
    that adapters belong to, and whose tokenizer counts the context.

    Raises `SettingsError` for an unknown name, `InputError` for a folder or a number that cannot be, `UnavailableError` when a model
    does not answer.
    """
    began = time.perf_counter()
    if agent not in TOOLS_OF:
        raise SettingsError(f"there is no agent {agent!r}. There are: {', '.join(TOOLS_OF)}")
    if seeds < 1 or not 0 <= temperature < float("inf") or not -1 <= threshold <= 1:
        raise InputError(
            f"{seeds} seeds, temperature {temperature}, threshold {threshold}: give 1 or more, 0 or more, and -1 to 1"
        )
    if not base.is_dir():
        raise InputError(
            f"the base policy {base} does not exist. Make it: memweave pretrain --world memhop --out FOLDER"
        )
    settings = world or MemHopSettings()
    tasks = MemHop(settings).tasks(split, number)
    if not tasks:
        raise InputError("no episode is to be played; ask for one at least")
    found: dict[str, episodes.Outcome] = {}
    version: str | None = None
    for seed in range(seeds):
        with ExitStack() as opened:
            model = _model(policy, base, temperature, seed, api_key, opened)
            given = getattr(model, "policy_version", None)
            version = given if isinstance(given, str) else None
            found[str(seed)] = episodes.evaluate(
                model,
                base,
                tasks,
                PAPER,
                variant=agent,
                threshold=threshold,
                concurrency=concurrency,
                progress=_progress(report, f"{policy} plays, seed {seed}"),
            )
    interval = hierarchical_bootstrap([[float(mark) for mark in each.right] for each in found.values()])
    marks = list(zip(tasks, *(each.right for each in found.values()), strict=True))
    return MemHopResult(
        world="memhop",
        agent=agent,
        policy=policy,
        policy_version=version,
        split=split,
        seeds=seeds,
        temperature=temperature,
        threshold=threshold,
        settings=settings,
        episodes=seeds * len(tasks),
        score=interval.mean,
        low=interval.low,
        high=interval.high,
        right={seed: each.right for seed, each in found.items()},
        hops={str(n): _share([m for task, *each in marks if task.hops == n for m in each]) for n in (1, 2, 3)},
        means=_means([each.means for each in found.values()]),
        seconds=time.perf_counter() - began,
    )


def _share(marks: Sequence[str]) -> float:
    return sum(mark == "1" for mark in marks) / len(marks) if marks else 0.0


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(each[name] for each in found) / len(found) for name in found[0]}


def _progress(report: Report | None, stage: str) -> Callable[[int, int, int], object] | None:
    return None if report is None else lambda done, failed, total: report(stage, done, total)


def _model(
    name: str, base: Path, temperature: float, seed: int, api_key: SecretStr | None, opened: ExitStack
) -> BaseChatModel:
    """Return the chat model of a policy by name."""
    if name in players.SCRIPTS:
        return players.script(name, seed)
    provider, colon, _ = name.partition(":")
    if colon and provider in providers():
        trained = provider in TRAINED
        return chat_model(
            name, api_key=api_key, temperature=temperature, max_tokens=MAX_TOKENS if trained else None, timeout=REPLY_SECONDS,
            seed=seed if trained else None,
        )  # fmt: skip
    from memweave.serving.local_server import LocalServer

    sampling = Sampling(temperature=temperature, max_tokens=MAX_TOKENS, seed=seed)
    folder = Path(name)
    if name == BASE:
        return opened.enter_context(LocalServer(base)).chat_model(BASE, sampling=sampling, timeout=REPLY_SECONDS)
    if (folder / ADAPTER_FILE).is_file():
        server = opened.enter_context(LocalServer(base))
        server.publish(folder, run="eval", role="agent")
        return server.chat_model("agent", sampling=sampling, timeout=REPLY_SECONDS)
    if (folder / "config.json").is_file():
        return opened.enter_context(LocalServer(folder)).chat_model(BASE, sampling=sampling, timeout=REPLY_SECONDS)
    if folder.is_dir():
        raise InputError(
            f"{folder} holds neither an adapter nor a policy. Give the folder that a run left, e.g. runs/RUN/policy"
        )
    raise SettingsError(
        f"no policy is called {name!r}. There are: {BASE}, {', '.join(players.SCRIPTS)}, the folder of a trained policy, and models: "
        "local:FOLDER, vllm:NAME@URL, openai:NAME"
    )


def control(distractors: int | None, p_stale: float | None, *, related: bool) -> MemHopSettings:
    """Return the settings of the world with what is not `None`."""
    own = MemHopSettings()
    return replace(
        own,
        distractors=own.distractors if distractors is None else distractors,
        p_stale=own.p_stale if p_stale is None else p_stale,
        mode="related" if related else own.mode,
    )

"""What a recipe is made of, what it can be told, and what it returns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from memweave.errors import SettingsError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.runnables import Runnable
    from pydantic import SecretStr

    from memweave.trainers.credit import Credit
    from memweave.trainers.rollouts import Reward, Task

ModelOf = Callable[[str], "BaseChatModel"]
"""Gives the chat model of a role."""


TRACES: Final = "traces.db"
"""File within a run's folder: its episodes."""
RUN_FILE: Final = "run.json"
"""File within a run's folder: what it was started with."""
LEAST: Final = {
    "steps": 1, "seed": 0, "tasks_per_step": 1, "group_size": 2, "concurrency": 1, "eval_tasks": 1, "save_every": 1,
}  # fmt: skip
"""Smallest values of settings that count something."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What every recipe can be told. A setting that is `None` on the command line keeps the recipe's value."""

    steps: int = 60
    """Optimiser steps; each samples anew."""
    seed: int = 0
    """Of sampling, of the adapter's first weights and of the order of tasks."""
    tasks_per_step: int = 8
    group_size: int = 8
    """Episodes per task, compared with each other."""
    learning_rate: float = 1e-2
    temperature: float = 1.0
    lora_rank: int | None = 8
    """`None` trains all weights, which only the in-process server can serve."""
    loss_type: str = "dapo"
    beta: float = 0.0
    """Weight of the KL penalty against the base policy."""
    concurrency: int = 64
    """Most episodes at a time."""
    eval_tasks: int = 8
    """Tasks of the evaluation before and after, `group_size` episodes each, at the temperature of training."""
    save_every: int = 20
    """Steps between checkpoints."""

    def changed(self, **given: object) -> TrainSettings:
        """Return these settings with what is given and not `None`. Raises `SettingsError` for an impossible value."""
        new = dataclasses.replace(self, **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]  # the keys are this class's own
        for field, least in LEAST.items():
            if getattr(new, field) < least:
                raise SettingsError(f"{field} = {getattr(new, field)} is too small: it must be at least {least}")
        for field in ("learning_rate", "temperature"):
            if not 0 < getattr(new, field) < math.inf:
                raise SettingsError(f"{field} = {getattr(new, field)} must be a number above 0")
        return new


@dataclass(frozen=True)
class Place:
    """Where a run happens."""

    out: Path
    """Folder of checkpoints, traces, curves and the trained policy."""
    base: Path
    """Folder of the base policy; `ensure_base` makes the tiny one."""
    server_url: str | None = None
    """A vLLM server that serves `base`; without it the policy answers in this process."""
    api_key: SecretStr | None = None
    """Key of that server."""
    adapters: Path | None = None
    """Folder for adapters that the vLLM server can read; default: `out/adapters`."""
    resume: bool = False
    quiet: bool = False
    """Show no progress line."""
    say: Callable[[str], object] = lambda line: None
    """Gets a line now and then: what is being done, and what came of it."""


@dataclass(frozen=True)
class Recipe:
    """A world, a graph and settings that fit together."""

    name: str
    summary: str
    """One line, for `memweave train --list`."""
    graph: Callable[[ModelOf], Runnable[Any, Any]]
    tasks: Callable[[str, int, int], Sequence[Task]]
    """(split, number, seed) -> tasks; the same arguments give the same tasks."""
    reward: Reward
    arms: Mapping[str, Callable[[int], Credit]]
    """Arm -> credit rule made with the seed; the first is the default."""
    settings: TrainSettings
    max_tokens: Mapping[str, int]
    """Role -> most tokens of one reply."""

    def credit(self, arm: str, seed: int) -> Credit:
        """Return the credit rule of `arm`. Raises `SettingsError` when the recipe has no such arm."""
        if arm not in self.arms:
            raise SettingsError(f"recipe {self.name} has no arm {arm!r}. There are: {', '.join(self.arms)}")
        return self.arms[arm](seed)


@dataclass(frozen=True)
class RecipeResult:
    """What a run found: one JSON object of the experiment queue."""

    recipe: str
    arm: str
    seed: int
    steps: int
    server: str
    """`local` or `vllm`."""
    start: float
    """Mean reward of the evaluation before the first step."""
    end: float
    """Mean reward of the evaluation after the last step, last weights."""
    rewards: Sequence[float | None]
    """Mean reward of the episodes of each step; `None` where no episode had one."""
    parts: Mapping[str, Sequence[float]]
    """The same for each named part of the score."""
    seconds: float
    """Training only: without evaluations and without starting a server."""
    episodes: int
    generated_tokens: int
    excluded: int
    """Episodes without a score."""
    logprob_difference: float | None
    """Largest difference (nat) between sampled and recomputed log-probabilities."""
    policy_version: str
    settings: TrainSettings
    policy: Path
    """Folder of the trained policy."""

    def payload(self) -> dict[str, object]:
        """Return this as one JSON object."""
        return {**dataclasses.asdict(self), "policy": str(self.policy)}

"""What a recipe is made of, what it can be told, and what it returns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from memweave.errors import SettingsError

if TYPE_CHECKING:
    from contextlib import ExitStack

    from langchain_core.language_models import BaseChatModel
    from langchain_core.runnables import Runnable
    from pydantic import JsonValue, SecretStr

    from memweave.memory_stores import MemoryBank
    from memweave.trainers.credit import Credit
    from memweave.trainers.rollouts import Reward, Task

ModelOf = Callable[[str], "BaseChatModel"]
"""Gives the chat model of a role."""
Examples = Callable[[], Sequence[Sequence[Mapping[str, str]]]]
"""Gives conversations to imitate."""


TRACES: Final = "traces.db"
"""File within a run's folder: its episodes."""
POLICY: Final = "policy"
"""Folder within a run's folder: the trained policy."""
REPLY_SECONDS: Final = 600.0
"""For one reply, waiting for its turn included."""
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
    test_size: int | None = None
    """Tasks (of Memory-R1: dialogues) of the final evaluation; `None`: all of the recipe's test split, 0: none."""
    save_every: int = 20
    """Steps between checkpoints."""

    def changed(self, **given: object) -> TrainSettings:
        """Return these settings with what is given and not `None`. Raises `SettingsError` for an impossible value."""
        new = dataclasses.replace(self, **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]  # the keys are this class's own
        for name, least in LEAST.items():
            if getattr(new, name) < least:
                raise SettingsError(f"{name} = {getattr(new, name)} is too small: it must be at least {least}")
        for name in ("learning_rate", "temperature"):
            if not 0 < getattr(new, name) < math.inf:
                raise SettingsError(f"{name} = {getattr(new, name)} must be a number above 0")
        return new


@dataclass(frozen=True)
class Place:
    """Where a run happens."""

    out: Path
    """Folder of checkpoints, traces, curves and the trained policy."""
    base: Path
    """Folder of the base policy; `ensure_base` makes the tiny one."""
    partner: Path | None = None
    """Folder of the policy that plays the role that is not trained; by default the base policy."""
    data: Path | None = None
    """What the run starts from beside the base policy, for recipes that take such a thing: a graph of strategies."""
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
class Stage:
    """What one run is played on."""

    graph: Runnable[Any, Any]
    train: Sequence[Task]
    held_out: Sequence[Task]
    """Of the evaluation before and after, at the temperature of training."""
    reward: Reward
    bank: MemoryBank | None = None
    """What episodes work on branches of."""
    actors: tuple[str, ...] | None = None
    """The roles that are trained; `None`: all."""
    examples: Examples | None = None
    """Conversations for an arm that is trained on demonstrations."""
    test: Callable[[], Mapping[str, JsonValue]] | None = None
    """The final evaluation, of what is served when it is called; part of the result."""


@dataclass(frozen=True)
class Staging:
    """What a recipe makes a stage from."""

    arm: str
    settings: TrainSettings
    place: Place
    model_of: ModelOf
    """The chat model of a role at the temperature of training; that of a frozen role is greedy and never trained."""
    model_at: Callable[[str, float], BaseChatModel]
    """The same at a temperature of one's own."""
    base_at: Callable[[str, float], BaseChatModel]
    """The base policy in a role, at a temperature, whatever is published."""
    open: ExitStack
    """Whatever is entered here is closed at the end of the run."""


@dataclass(frozen=True)
class Arm:
    """One of the runs that a recipe's claim compares."""

    credit: Callable[[int], Credit] | None = None
    """Made with the seed; `None` for PPO, whose advantages come from a value head, and for demonstrations."""
    trainer: Literal["grpo", "ppo", "sft"] = "grpo"
    preset: Callable[[], Mapping[str, Any]] | None = None
    """Gives the settings of the loss that a paper fixes (`memweave.trainers.grpo_config`); `beta` and `loss_type` of the run win."""


@dataclass(frozen=True)
class Recipe:
    """A world, a graph and settings that fit together."""

    name: str
    summary: str
    """One line, for `memweave train --list`."""
    stage: Callable[[Staging], Stage]
    arms: Mapping[str, Arm]
    """The first is the default."""
    settings: TrainSettings
    max_tokens: Mapping[str, int]
    """Role -> most tokens of one reply."""
    base: Literal["tiny", "dialog", "memhop", "fsmqa"] = "tiny"
    """Which base policy it starts from by default: one with random weights, or the one that knows a world."""
    trains: str | None = None
    """The one role that is trained, when another one plays too and is frozen."""
    takes_data: bool = False
    """Whether `Place.data` means something to it."""
    check: Callable[[str, Place], None] | None = None
    """Raises for an arm and a place that cannot be, before anything is made."""

    @property
    def partner_role(self) -> str:
        """Return the role that is not trained."""
        return next(role for role in self.max_tokens if role != self.trains)

    def arm(self, name: str) -> Arm:
        """Return the arm called `name`. Raises `SettingsError` when the recipe has none of that name."""
        if name not in self.arms:
            raise SettingsError(f"recipe {self.name} has no arm {name!r}. There are: {', '.join(self.arms)}")
        return self.arms[name]


def plain_stage(
    graph: Callable[[ModelOf], Runnable[Any, Any]], tasks: Callable[[str, int, int], Sequence[Task]], reward: Reward
) -> Callable[[Staging], Stage]:
    """Return the stage of a recipe without memory. tasks: (split, number, seed) -> tasks, always the same."""

    def stage(given: Staging) -> Stage:
        settings = given.settings
        return Stage(
            graph=graph(given.model_of),
            train=tasks("train", settings.tasks_per_step, settings.seed),
            held_out=tasks("test", settings.eval_tasks, settings.seed),
            reward=reward,
        )

    return stage


@dataclass(frozen=True)
class RecipeResult:
    """What a run found: one JSON object of the experiment queue."""

    recipe: str
    arm: str
    seed: int
    steps: int
    server: str
    """`local` or `vllm`."""
    start: float | None
    """Mean reward of the evaluation before the first step; `None` for an arm that imitates."""
    end: float | None
    """Mean reward of the evaluation after the last step, last weights."""
    rewards: Sequence[float | None]
    """Mean reward of the episodes of each step; `None` where no episode had one."""
    parts: Mapping[str, Sequence[float]]
    """The same for each named part of the score."""
    zero_std: Sequence[float]
    """Share of the groups of each step whose episodes all earned the same: they teach nothing."""
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
    test: Mapping[str, JsonValue] = field(default_factory=dict)
    """What the recipe's final evaluation found."""
    frozen: Mapping[str, str] = field(default_factory=dict)
    """Role -> hash of the weights that played it, the same before and after."""

    def payload(self) -> dict[str, object]:
        """Return this as one JSON object."""
        return {**dataclasses.asdict(self), "policy": str(self.policy)}

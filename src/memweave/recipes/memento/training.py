"""The recipe `memento-q`: a retrieval policy that is learned on the way, on a stream of PlanWorld; and the arms it is compared with."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import JsonValue

from memweave.recipes.memento.arms import ARMS
from memweave.recipes.memento.evaluation import planner
from memweave.recipes.memento.stream import HEAD, KERNEL, StreamResult, StreamSettings, play
from memweave.recipes.own import OwnRecipe, OwnRun
from memweave.recipes.running import BASE, PLANWORLD_BASE


@dataclass(frozen=True)
class MementoQResult:
    """What came of a stream."""

    settings: StreamSettings
    stream: StreamResult
    per_iteration: tuple[float, ...]
    """Share of solved tasks."""
    head: str | None
    """File of the Q-function; `None` for an arm without one."""
    kernel: str | None
    """File of the learned kernel; `None` for an arm without one."""

    def payload(self) -> dict[str, JsonValue]:
        """Return it as one JSON object."""
        made: dict[str, Any] = asdict(self)
        return made

    def lines(self) -> list[str]:
        """Return it for a person to read."""
        shares = "  ".join(f"{100 * share:.1f}" for share in self.per_iteration)
        fitting = "  ".join(f"{100 * share:.1f}" for share in self.stream.shown)
        return [
            f"solved, % of each iteration:          {shares}",
            f"shown cases that fit and were solved: {fitting}",
            f"{self.stream.cases} cases kept",
            *([f"Q-function: {self.head}"] if self.head else []),
            *([f"kernel: {self.kernel}"] if self.kernel else []),
        ]


def run(asked: OwnRun) -> MementoQResult:
    """Play the stream of an arm, and keep the Q-function or the kernel that was learned on the way."""
    own = StreamSettings(arm=asked.arm, seed=asked.seed)
    settings = replace(own, iterations=asked.steps or own.iterations, tasks=asked.tasks or own.tasks)
    temperature = 1.0 if asked.temperature is None else asked.temperature
    with ExitStack() as opened:
        planner_of = planner(BASE if asked.base is None else str(asked.base), PLANWORLD_BASE, temperature, None, opened)
        result = play(settings, planner_of, _said(asked), learned=asked.out)
    return MementoQResult(
        settings=settings,
        stream=result,
        per_iteration=tuple(marks.count("1") / len(marks) for marks in result.right),
        head=_there(asked.out / HEAD),
        kernel=_there(asked.out / KERNEL),
    )


def _there(file: Path) -> str | None:
    return str(file) if file.exists() else None


def _said(asked: OwnRun) -> Any:
    def report(iteration: str, done: int, of: int) -> None:
        if done == of:
            asked.say(f"{iteration}: {of} tasks")

    return report


MEMENTO_Q: Final = OwnRecipe(
    name="memento-q",
    summary="Memento on PlanWorld: which cases to show a frozen planner, learned while it works (minutes on a CPU)",
    arms=("neural-q", *(arm for arm in ARMS if arm != "neural-q")),
    takes={
        "steps": "iterations, 5",
        "tasks": "of each iteration, 300",
        "temperature": "of the planner, 1",
        "base": "the planner, a policy's folder or script",
        "seed": "of families, tasks and sampling",
        "out": "where the Q-function, or the kernel, goes",
    },
    needs=(),
    run=run,
)

"""How the base policy of DialogWorld is made: clean lessons, the gate, then lessons of a teacher with habits.

    memweave pretrain --out FOLDER

1. *Clean lessons.* A tiny policy with random weights learns to look things up: quote first, then decide; banks grow from two memories
   to the sizes of the world.
2. *The gate.* On fresh banks of the world's size, greedy, it must answer at least 90 % of lookups. A policy that cannot look things up
   can learn nothing from the reward of an answer.
3. *Habits.* The same policy learns from a teacher that prefers the wrong reply three times out of four for some kinds of input
   (`teaching`): greedy it is wrong there, sampling finds the right reply now and then. That is the base policy of the recipes.

Every text, bank and order comes from the seed; weights differ in float noise between machines. The run goes on where it was cut off.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from memweave.errors import SettingsError
from memweave.recipes import pretraining
from memweave.recipes.memory_r1.lessons import lesson, pack, token_ids
from memweave.recipes.memory_r1.measuring import measure
from memweave.recipes.memory_r1.teaching import FORMS, Distill
from memweave.recipes.pretraining import CourseSettings, Packed, Report
from memweave.serving.policy_folder import PolicyFolder

MARKERS: Final = tuple(f" [{number}]" for number in range(64))
"""Numbers of memories, one token each: then copying a quoted line copies its number, with no circuit of its own."""
FEW: Final = 0.1
"""Share of lessons about at most two memories."""
ROLES: Final = ("answerer", "manager")


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(CourseSettings):
    """How the base policy is made; half of the lessons are the manager's."""

    distill: Distill = "select_then_answer"
    """How the answerer writes. The other forms are controls of memory distillation, not bases for the recipes."""
    asked: int = 8
    """Things that are asked of one bank."""
    grow: int = 800
    """Steps over which banks grow from two memories to full size."""
    manager_size: int = 8
    answerer_size: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distill not in FORMS:
            raise SettingsError(f"distill = {self.distill!r}: an answerer writes in one of {', '.join(FORMS)}")
        for name in ("asked", "grow", "manager_size", "answerer_size"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} = {getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class DialogCourse:
    """What the base policy of DialogWorld learns."""

    settings: PretrainSettings
    whole: Sequence[str] = MARKERS

    def texts(self) -> Iterator[str]:
        """Return what the tokenizer is trained on."""
        return texts(self.settings.seed)

    def batch(self, step: int, folder: PolicyFolder, device: str) -> Packed:
        """Return the lessons of a step."""
        settings = self.settings
        rng = random.Random(f"lessons:{settings.seed}:{step}")
        habits = rng if step >= settings.clean_steps else None
        grown = min(1.0, step / settings.grow)
        made = []
        for number in range(settings.lessons):
            role = ROLES[number % 2]
            top = settings.manager_size if role == "manager" else settings.answerer_size
            size = _size(role, rng, max(2, round(2 + (top - 2) * grown)))
            made.append(token_ids(folder, lesson(role, size, settings.asked, rng, habits, settings.distill)))
        return pack(made, device)

    def measure(self, policy: Path) -> dict[str, Any]:
        """Return the gate."""
        return asdict(measure(policy, self.settings.seed))


def pretrain(
    out: Path,
    settings: PretrainSettings | None = None,
    *,
    resume: bool = False,
    report: Report | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Make the base policy of DialogWorld in folder `out`; arguments and errors as in `memweave.recipes.pretraining.pretrain`."""
    course = DialogCourse(settings or PretrainSettings())
    return pretraining.pretrain(out, course, resume=resume, report=report, device=device)


def texts(seed: int, count: int = 4_000) -> Iterator[str]:
    """Yield what the tokenizer is trained on: prompts and replies of both roles, in all forms, so that they share it."""
    rng = random.Random(f"texts:{seed}")
    for number in range(count):
        for role, size in (("manager", 8), ("answerer", 12)):
            for item in lesson(role, rng.randint(1, size), 2, rng, None, FORMS[number % len(FORMS)]):
                yield item.messages[-1].text
                yield item.reply


def _size(role: str, rng: random.Random, most: int) -> int:
    """Return the memories of a lesson: mostly many, but every dialogue begins with none.

    An answerer may see any number up to the largest budget, and small ones as often as large ones (log-uniform).
    """
    if rng.random() < FEW:
        return rng.randint(0, 2)
    return rng.randint(max(1, most // 2), most) if role == "manager" else round(2 * (most / 2) ** rng.random())

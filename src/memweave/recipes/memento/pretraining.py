"""The frozen planner of PlanWorld: `memweave pretrain --world planworld --out FOLDER`.

It is meta-trained: every lesson is about another family, so there is nothing to know by heart but plain words, and how to go by
cases. The families of a stream (`val`, `test`, `ood`) are others. It has no habits: nothing trains it afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from memweave.recipes import pretraining
from memweave.recipes.lesson_rows import Reply, padded, token_row
from memweave.recipes.memento.lessons import many, row, solved_plans
from memweave.recipes.memento.measuring import measure
from memweave.recipes.memento.teaching import plan_json, situation, situations
from memweave.recipes.pretraining import IGNORED, CourseSettings, Packed, Report
from memweave.serving.policy_folder import PolicyFolder
from memweave.worlds.planworld import CITIES, LEXICON, NAMES, PLAIN, SKELETONS, TEAMS

MOST_CASES: Final = 8
"""In a lesson."""
GROWING: Final = 800
"""Steps over which lessons grow from one case to `MOST_CASES`."""
NO_CASES: Final = 0.12
"""Share of steps whose lessons have no case."""
FINISHED: Final = 0.25
"""Share of lessons that go on to the answer; to repeat the last result is easy."""
ASKED: Final = 8
"""Tasks of the other lessons, beside the same cases: one look-up a row is too little to learn from."""


def _whole() -> tuple[str, ...]:
    """Return the texts that are one token each."""
    words = {word for pool in PLAIN for word in pool} | set(LEXICON)
    phrases = {step.split("{")[0].rstrip() for skeleton in SKELETONS for step in skeleton}
    scaffold = plan_json(("|", "|", "|", "|")).split("|")
    return (
        *scaffold,
        '"}]}',
        "<think>about",
        "</think>",
        "FINAL ANSWER:",
        *(f" [{n}]" for n in range(33)),
        *sorted(f" {word}" for word in words),
        *sorted(phrases, key=lambda phrase: (-len(phrase), phrase)),
        *(f" {name}" for name in (*NAMES, *CITIES, *TEAMS)),
    )


@dataclass(frozen=True, kw_only=True)
class PlanWorldPretrainSettings(CourseSettings):
    """How the planner of PlanWorld is made; `lessons` are rows."""

    clean_steps: int = 3000
    habit_steps: int = 0
    lessons: int = 16
    vocab_size: int = 512
    context: int = 2048


@dataclass(frozen=True)
class PlanWorldCourse:
    """What the planner of PlanWorld learns."""

    settings: PlanWorldPretrainSettings
    whole: Sequence[str] = _whole()

    def texts(self) -> list[str]:
        """Return what the tokenizer is trained on."""
        rng = random.Random(f"planworld-texts:{self.settings.seed}")
        found: list[str] = []
        for _ in range(2_000):
            given = situation(rng, rng.randint(0, MOST_CASES))
            found += [text for _, text in row(given)[-1].said] + [each.reply for each in row(given)]
        return found

    def batch(self, step: int, folder: PolicyFolder, device: str) -> Packed:
        """Return the rows of a step."""
        settings = self.settings
        rng = random.Random(f"planworld-lessons:{settings.seed}:{step}")
        most = 1 + round((MOST_CASES - 1) * min(1.0, step / GROWING))
        number = 0 if rng.random() < NO_CASES else rng.randint(1, most)  # the same in all rows: little is padded
        made = [
            token_row(folder, self._replies(rng, number), IGNORED, also=solved_plans) for _ in range(settings.lessons)
        ]
        return padded(made, settings.context, device)

    def _replies(self, rng: random.Random, number: int) -> list[Reply]:
        """Return what a row teaches: a task and its answer, or task after task beside the same cases."""
        return row(situation(rng, number)) if rng.random() < FINISHED else many(situations(rng, number, ASKED))

    def measure(self, policy: Path) -> dict[str, Any]:
        """Return the gate."""
        return measure(policy, self.settings.seed)


def pretrain(
    out: Path,
    settings: PlanWorldPretrainSettings | None = None,
    *,
    resume: bool = False,
    report: Report | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Make the planner of PlanWorld in folder `out`; arguments and errors as in `memweave.recipes.pretraining.pretrain`."""
    course = PlanWorldCourse(settings or PlanWorldPretrainSettings())
    return pretraining.pretrain(out, course, resume=resume, report=report, device=device)

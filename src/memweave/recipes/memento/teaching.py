"""What a planner of PlanWorld says: a plan by what a case shows, by heart, or by guess; and the final answer.

A reply first repeats the last word of the task and the number of the case that ends with it (`<think>about zama [2]</think>`), then gives
the plan. Word and number are copied, each from behind what was copied before it: that is what a small model learns (docs/log.md).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from memweave.worlds.planworld import (
    LEXICON,
    SKELETONS,
    Family,
    PlanTask,
    PlanWorld,
    PlanWorldSettings,
    plan_of,
    read_text,
)

ALIGNMENTS: Final = (1.0, 0.85, 0.7, 0.7, 0.55, 0.4, 0.1)
"""Shares of words that belong to the rule, in lessons: every kind of text, mostly such as can be told apart."""
JARGON: Final = 0.7
"""Share of lessons that are surely about jargon: plain words are soon known."""
FITTING: Final = (0.1, 0.25, 0.4)
"""Shares of a lesson's cases that are about the rule of its task."""
KNOWABLE: Final = 0.7
"""Share of further tasks beside the same cases that are of a solved case's rule."""


@dataclass(frozen=True)
class Shown:
    """A case as a lesson shows it."""

    task: PlanTask
    plan: tuple[str, ...]
    reward: float


@dataclass(frozen=True)
class Situation:
    """A task and the cases beside it."""

    task: PlanTask
    cases: tuple[Shown, ...]
    """As they are shown, positive ones first."""


def plan_json(steps: Sequence[str]) -> str:
    """Return a plan as the planner writes it."""
    return json.dumps({"plan": [{"id": i, "description": step} for i, step in enumerate(steps, 1)]})


def plan_reply(situation: Situation) -> str:
    """Return the teacher's plan, after the word that says what is wanted and the number of the first case that ends with it.

    The number is 0 where no case does, and for plain words, which are known.
    """
    word = wanted(situation.task.text)
    saying = (n for n, case in enumerate(situation.cases, 1) if wanted(case.task.text) == word)
    number = 0 if situation.task.plain else next(saying, 0)
    return f"<think>about {word} [{number}]</think>{plan_json(situation.task.plan)}"


def wanted(text: str) -> str:
    """Return the last word of a task, which says what is wanted."""
    return text.rpartition(" ")[2]


def final_reply(answer: str) -> str:
    """Return the teacher's last word."""
    return f"FINAL ANSWER: {answer}"


def situation(rng: random.Random, number: int, alignment: float | None = None) -> Situation:
    """Return a random situation with `number` cases, in a family that nobody has seen."""
    return _situation(rng, number, alignment)[0]


def situations(rng: random.Random, number: int, asked: int) -> list[Situation]:
    """Return `asked` situations with the same `number` cases."""
    first, family, world = _situation(rng, number)
    return [first, *(asked_again(rng, first.cases, family, world) for _ in range(asked - 1))]


def _situation(rng: random.Random, number: int, alignment: float | None = None) -> tuple[Situation, Family, PlanWorld]:
    world = PlanWorld(
        PlanWorldSettings(families=1, alignment=rng.choice(ALIGNMENTS) if alignment is None else alignment)
    )
    words = list(LEXICON)
    rng.shuffle(words)
    family = world.family(rng, "lesson", words)
    jargon = [place for place, rule in enumerate(family.rules) if not rule.plain]
    rule = rng.choice(jargon) if rng.random() < JARGON else rng.randrange(len(family.rules))
    task = world.draw(rng, "task", family, rule)
    fitting = rng.choice(FITTING)
    cases = [shown(rng, world, family, task, fitting) for _ in range(number)]
    return arranged(task, cases), family, world


def asked_again(rng: random.Random, cases: Sequence[Shown], family: Family, world: PlanWorld) -> Situation:
    """Return a situation with another task of the family beside the same cases; mostly one that a case shows how to do."""
    solved = [case.task.rule for case in cases if case.reward == 1.0]
    rule = rng.choice(solved) if solved and rng.random() < KNOWABLE else None
    return arranged(world.draw(rng, "task", family, rule), cases)


def shown(rng: random.Random, world: PlanWorld, family: Family, task: PlanTask, fitting: float) -> Shown:
    """Return a case of the task's family: with probability `fitting` of the same rule; of the same topic half of the time."""
    rule = task.rule if rng.random() < fitting else None
    topic = task.topic if rng.random() < 0.5 else None
    case = world.draw(rng, "case", family, rule, topic)
    plan = case.plan
    if rng.random() < 0.4:  # somebody guessed
        plan = plan_of(rng.randrange(len(SKELETONS)), *(read_text(case.text) or ("", 0)))
    failed = any(rng.random() < world.settings.p_fail for _ in plan)
    return Shown(case, plan, float(plan == case.plan and not failed))


def arranged(task: PlanTask, cases: Sequence[Shown]) -> Situation:
    """Return the situation with its cases in the order in which they are shown."""
    return Situation(task, (*(c for c in cases if c.reward == 1.0), *(c for c in cases if c.reward != 1.0)))

"""What the planner of PlanWorld can do: the gate, and its plans with and without cases."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any, Final

from memweave.recipes.lesson_rows import replies
from memweave.recipes.memento.lessons import row, said
from memweave.recipes.memento.teaching import Situation, arranged, shown
from memweave.worlds.planworld import LEXICON, PlanWorld, PlanWorldSettings

LONGEST: Final = 60
"""Most tokens of a reply."""
CASES: Final = 4


def measure(policy: Path, seed: int, *, number: int = 200) -> dict[str, Any]:
    """Return what a planner does rightly, greedy, in families that nobody has seen: `lookups`, by kind, and `asked`.

    lookups: right plans for jargon tasks where exactly one of four cases shows the plan, at alignment 0.7.  plain: plans for tasks in plain
    words, without cases.  guess: plans for jargon tasks without cases.  answer: final answers.
    """
    rng = random.Random(f"planworld-gate:{seed}")
    kinds: list[tuple[str, Situation]] = []
    for _ in range(number):
        kinds += [("lookups", _lookup(rng)), ("plain", _bare(rng, plain=True)), ("guess", _bare(rng, plain=False))]
    rows = [row(given) for _, given in kinds]
    right: dict[str, list[bool]] = {}
    for (kind, given), said_ in zip(kinds, replies(policy, [said(given) for _, given in kinds], LONGEST), strict=True):
        right.setdefault(kind, []).append(tuple(re.findall(r'"description": "([^"]*)"', said_)) == given.task.plan)
    ends = [each[1] for each in rows[:number]]
    for end, said_ in zip(ends, replies(policy, [list(end.said) for end in ends], LONGEST), strict=True):
        right.setdefault("answer", []).append(said_ == end.reply)
    share = {kind: sum(found) / len(found) for kind, found in sorted(right.items())}
    return {"lookups": share["lookups"], "by_kind": share, "asked": number}


def _lookup(rng: random.Random) -> Situation:
    """Return a jargon task with four cases of other rules or outcomes, but for one that shows the plan."""
    while True:
        world = PlanWorld(PlanWorldSettings(families=1, alignment=0.7))
        words = list(LEXICON)
        rng.shuffle(words)
        family = world.family(rng, "gate", words)
        task = world.draw(rng, "task", family)
        if task.plain:
            continue
        cases = [shown(rng, world, family, task, 0.0) for _ in range(4 * CASES)]
        others = [case for case in cases if case.task.rule != task.rule][: CASES - 1]
        while True:
            fit = shown(rng, world, family, task, 1.0)
            if fit.reward == 1.0:
                break
        mixed = [*others, fit]
        rng.shuffle(mixed)
        return arranged(task, mixed)


def _bare(rng: random.Random, *, plain: bool) -> Situation:
    while True:
        world = PlanWorld(PlanWorldSettings(families=1))
        words = list(LEXICON)
        rng.shuffle(words)
        task = world.draw(rng, "task", world.family(rng, "gate", words))
        if task.plain == plain:
            return arranged(task, ())

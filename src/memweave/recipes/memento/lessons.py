"""Lessons for the planner of PlanWorld: the very messages that the graph shows it, and the teacher's replies."""

from __future__ import annotations

import random
from collections.abc import Sequence

from memweave.recipes.lesson_rows import Reply, Said
from memweave.recipes.memento.teaching import Shown, Situation, final_reply, plan_reply
from memweave.worlds.planworld import run_step


def case_block(cases: Sequence[Shown]) -> str:
    lines = ["<cases>"]
    positive = sum(case.reward == 1.0 for case in cases)
    for i, case in enumerate(cases):
        if i == 0 and positive:
            lines.append(f"Positive examples (reward = 1), {positive} of {len(cases)}:")
        if i == positive:
            lines.append(f"Negative examples (reward = 0), {len(cases) - positive} of {len(cases)}:")
        lines.append(f"Task: {case.task.text}")
        lines.append(f"Plan [{i + 1}]: " + " ".join(f"{n}. {s}" for n, s in enumerate(case.plan, 1)))
    return "\n".join([*lines, "</cases>"])


def said(given: Situation) -> list[Said]:
    return [("user", given.task.text), *([("user", case_block(given.cases))] if given.cases else [])]


def row(rng: random.Random, given: Situation) -> list[Reply]:
    """Return the two replies of the planner: its plan, and its answer when the results are there."""
    first = Reply(tuple(said(given)), plan_reply(given))
    results: list[str] = []
    for step in given.task.plan:
        results.append(run_step(step, results[-1] if results else None))
    told = tuple(("user", f"Task {i} result: {result}") for i, result in enumerate(results, 1))
    second = Reply((*first.said, ("assistant", first.reply), *told), final_reply(results[-1]))
    return [first, second]

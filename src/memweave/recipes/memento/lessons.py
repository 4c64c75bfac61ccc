"""Lessons for the planner of PlanWorld: the very messages that the graph shows it, and the teacher's replies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from uuid import UUID

from memweave.agents.planner import ShownCase, cases_text
from memweave.recipes.lesson_rows import Reply, Said
from memweave.recipes.memento.teaching import Shown, Situation, final_reply, plan_json, plan_reply
from memweave.worlds.planworld import run_step


def said(given: Situation) -> list[Said]:
    """Return what the planner sees first: the task, and the cases if there are any."""
    return [("user", given.task.text), *([("user", cases_text(_shown(given.cases)))] if given.cases else [])]


def _shown(cases: Sequence[Shown]) -> list[ShownCase]:
    return [
        ShownCase(
            id=UUID(int=place),
            task=case.task.text,
            plan=plan_json(case.plan),
            reward=case.reward,
            positive=case.reward == 1.0,
            score=0.0,
        )
        for place, case in enumerate(cases)
    ]


def row(given: Situation, *, whole: bool = True) -> list[Reply]:
    """Return the replies of the planner: its plan, and with `whole` its answer when the results are there."""
    first = Reply(tuple(said(given)), plan_reply(given))
    if not whole:
        return [first]
    results: list[str] = []
    for step in given.task.plan:
        results.append(run_step(step, results[-1] if results else None))
    told = tuple(("user", f"Task {i} result: {result}") for i, result in enumerate(results, 1))
    second = Reply((*first.said, ("assistant", first.reply), *told), final_reply(results[-1]))
    return [first, second]


def many(given: Sequence[Situation]) -> list[Reply]:
    """Return the replies of the planner to task after task beside the same cases, which the first message shows."""
    replies = [Reply(tuple(said(given[0])), plan_reply(given[0]))]
    for each in given[1:]:
        before = replies[-1]
        told = (*before.said, ("assistant", before.reply), ("user", each.task.text))
        replies.append(Reply(told, plan_reply(each)))
    return replies


def solved_plans(text: str) -> list[tuple[int, int]]:
    """Return where the plans of solved cases stand in what the planner is told.

    They are learned as well: a case's plan is known from an earlier case of the same rule, or from plain words. With them plain words are
    learned in half the steps (docs/log.md).
    """
    solved = text.partition("Negative examples")[0] if "Positive examples" in text else ""
    return [match.span(1) for match in re.finditer(r"^Plan: (.*)", solved, re.MULTILINE)]

"""A verdict that comes later: the user's thumb, for a run that is over (specification, section 3; what nobody verified is not a case)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from memweave.agents.planner import ROLE, ShownCase, parse_plan_reply
from memweave.errors import ConflictError, InputError, ModelReplyError, RewardError
from memweave.graphs.memento_cases import write_case, written_before
from memweave.graphs.memento_state import About, QueryRecord, Verdict
from memweave.memory_stores import CaseBank
from memweave.memory_stores.case_retrieval import CaseLearner
from memweave.records import Case, Scope
from memweave.tracing.records import Generation, Trace

FinishedRun = QueryRecord | Trace | Mapping[str, Any]
"""A run that is over: its record, what the agent returned, or its trace."""

_CASES = "<cases>"


def record_feedback(
    cases: CaseBank,
    run: FinishedRun,
    reward: float,
    *,
    scope: Scope,
    about: About | None = None,
    learner: CaseLearner | None = None,
    credit: Mapping[UUID, float] | None = None,
) -> Case | None:
    """Write the case of a finished run with the reward that the user gave it, and what that says of the cases it was shown.

    run: what the agent returned, its `record` (`agent.get_state(thread).values["record"]`), or the run's trace.
    reward: in [0, 1].  about: task, family and iteration, which a trace does not know.  credit: what cases that it was shown did
    themselves, where somebody ran it again without them (`ReplayRow.credit`).

    Returns `None` when the run made no plan, or the bank does not keep the case. Raises `RewardError` for what is no reward,
    `ConflictError` when the run's case is written already, `InputError` for what is no run of Memento.
    """
    record = _verified(run, reward, about)
    there = record.case_id or (case.id if (case := written_before(cases, record, scope)) else None)
    if there is not None:
        raise ConflictError(f"the case of run {record.run_id} is written already, as {there}")
    return write_case(cases, record, scope, learner, credit)


async def arecord_feedback(
    cases: CaseBank,
    run: FinishedRun,
    reward: float,
    *,
    scope: Scope,
    about: About | None = None,
    learner: CaseLearner | None = None,
    credit: Mapping[UUID, float] | None = None,
) -> Case | None:
    """Do what `record_feedback` does, without blocking."""
    return await asyncio.to_thread(
        record_feedback, cases, run, reward, scope=scope, about=about, learner=learner, credit=credit
    )


def _verified(run: FinishedRun, reward: float, about: About | None) -> QueryRecord:
    if not math.isfinite(reward) or not 0 <= reward <= 1:
        raise RewardError(f"a reward of {reward} is none: give a number from 0 to 1")
    record = record_of_trace(run) if isinstance(run, Trace) else run if isinstance(run, QueryRecord) else _returned(run)
    given = record.about if about is None else about
    return record.model_copy(update={"verdict": Verdict(reward=float(reward), by="feedback"), "about": given})


def _returned(output: Mapping[str, Any]) -> QueryRecord:
    record = output.get("record")
    if not isinstance(record, QueryRecord):
        raise InputError("This is no finished run: it has no record. Pass what the agent returned at its end")
    return record


def record_of_trace(trace: Trace) -> QueryRecord:
    """Return what a trace tells of a run: task, plans, and ids of the cases that were shown; nothing of subtasks.

    Raises `InputError` when no planner replied in it.
    """
    planned = [generation for generation in trace.generations if generation.role == ROLE and generation.error is None]
    query = _query(planned[0]) if planned else None
    if query is None:
        raise InputError(f"Trace {trace.id} holds no run of Memento: no planner was asked in it")
    plans, answer = [], None
    for generation in planned:
        try:
            turn = parse_plan_reply(generation.reply, max_subtasks=1_000_000)
        except ModelReplyError:
            continue
        plans += [turn.plan.text] if turn.plan else []
        answer = turn.answer or answer
    shown = dict.fromkeys(ref.id for generation in planned for ref in generation.memories_read)
    return QueryRecord(
        run_id=str(trace.id),
        query=query,
        about=About(task_id=trace.group, iteration=trace.iteration),
        status="answered" if answer is not None else "exhausted",
        answer=answer,
        plan=plans[-1] if plans else None,
        plans=tuple(plans),
        planner_calls=(),
        subtasks=(),
        cases=tuple(_case(each) for each in shown),
        verdict=Verdict(reward=None),
        case_id=_written(trace),
    )


def _query(first: Generation) -> str | None:
    """Return the task: the last thing that the user says before anything was planned."""
    said = [m.text for m in first.messages if m.role == "user" and not m.text.startswith(_CASES)]
    return said[-1] if said else None


def _case(case_id: UUID) -> ShownCase:
    """Return a case of which only the id is known."""
    return ShownCase(id=case_id, task="", plan="", reward=None, positive=False, score=0.0)


def _written(trace: Trace) -> UUID | None:
    return next((e.memory.id for e in trace.memory_events if e.actor == "memento" and e.memory is not None), None)

"""What a run teaches once its worth is known: at its end, or when the user says so (specification, sections 2.4 and 2.5).

Experience (the query, its path, a strategy) needs one run. Weights need a gap, and a gap needs two rollouts of one query, with a strategy
and without: a single verdict says nothing of what the answer would have been without the advice.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from memweave.agents.path_mapper import MapperLike, as_mapper
from memweave.agents.run_log import RunLog, read_trace
from memweave.agents.strategist import StrategistLike, as_strategist
from memweave.errors import ConflictError, InputError, RewardError, UnavailableError, UsageError
from memweave.graph_records import RolloutOutcome, Strategy
from memweave.graphs.agemem_state import ROLE
from memweave.graphs.graph_memory_guidance import check_machine
from memweave.graphs.graph_memory_induction import (
    Draft,
    Induction,
    Material,
    Taught,
    Walked,
    enter,
    log_of_record,
    source_of_runs,
    taught,
    write_draft,
)
from memweave.graphs.graph_memory_pairing import Pairing, WeightRow
from memweave.graphs.graph_memory_play import Failure, QueryTask, name_of
from memweave.graphs.graph_memory_state import RolloutRecord
from memweave.memory_stores.strategy_graph import StrategyGraph
from memweave.records import Record, Scope
from memweave.tracing.records import ChatMessage, Trace

FinishedRun = RolloutRecord | Trace | Mapping[str, Any]
"""A run that is over: its record, what the agent returned, or its trace."""


class Learned(Record):
    """What a run has taught."""

    query_id: str
    """Of the query in the graph."""
    outcome: RolloutOutcome | None = None
    """Its path and its worth; `None` when it fits no path."""
    taught: Taught | None = None
    updates: tuple[WeightRow, ...] = ()
    """Of the weights, by paired rollouts."""
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Lesson:
    """A run whose worth is known."""

    task: QueryTask
    log: RunLog
    run: str
    trace_id: str | None = None
    fresh: bool = False
    """Whether the query must not be in the graph yet, not even by this very run."""


@dataclass(frozen=True)
class Learning:
    """Learns from one run at a time.

    pairing: measures gaps, for tasks whose answers it can tell the worth of; `None`: weights are left alone.
    """

    induction: Induction
    pairing: Pairing | None = None

    def learn(self, memory: StrategyGraph, lesson: Lesson, *, scope: Scope) -> Learned:
        """Put a run into the graph, make of it what can be made, and measure a gap where that is allowed.

        What goes wrong is in `failures`: the answer stands whatever becomes of the lesson. Raises `ConflictError` for a lesson that
        has to be new and is not.
        """
        name = name_of(lesson.task)
        if (known := self._known(memory, lesson, scope)) is not None:
            return known
        walked = self.induction.walked(lesson.log, lesson.trace_id, name)
        if isinstance(walked, Failure):
            found = Learned(query_id=name, failures=(walked,))
        else:
            material, existing = self._prepared(memory, lesson, walked, scope)
            draft = None if material.case == "none" else self.induction.draft(material, existing, lesson.run)
            found = _told(memory, lesson, walked, material, draft, scope)
        if self.pairing is None or _away(found):
            return found
        try:
            rows, failures = self.pairing.try_out(memory, lesson.task, scope=scope, run=lesson.run)
        except (UnavailableError, UsageError) as error:
            rows, failures = [], (_unpaired(name, error),)
        return _updated(found, rows, failures)

    async def alearn(self, memory: StrategyGraph, lesson: Lesson, *, scope: Scope) -> Learned:
        """Do what `learn` does, without blocking."""
        name = name_of(lesson.task)
        if (known := await asyncio.to_thread(self._known, memory, lesson, scope)) is not None:
            return known
        walked = await self.induction.awalked(lesson.log, lesson.trace_id, name)
        if isinstance(walked, Failure):
            found = Learned(query_id=name, failures=(walked,))
        else:
            material, existing = await asyncio.to_thread(self._prepared, memory, lesson, walked, scope)
            draft = None if material.case == "none" else await self.induction.adraft(material, existing, lesson.run)
            found = await asyncio.to_thread(_told, memory, lesson, walked, material, draft, scope)
        if self.pairing is None or _away(found):
            return found
        try:
            rows, failures = await self.pairing.atry_out(memory, lesson.task, scope=scope, run=lesson.run)
        except (UnavailableError, UsageError) as error:
            rows, failures = [], (_unpaired(name, error),)
        return _updated(found, rows, failures)

    @staticmethod
    def _known(memory: StrategyGraph, lesson: Lesson, scope: Scope) -> Learned | None:
        """Return that nothing is learned of a query that another run has put into the graph; `None` when something may be."""
        name = name_of(lesson.task)
        known = memory.query(name, scope=scope)
        if known is None or (known.run_id == lesson.run and known.text == lesson.task.text and not lesson.fresh):
            return None  # in the graph by this very run: it broke off, and is gone on with
        if lesson.fresh:
            raise ConflictError(f"the query {name!r} is in the graph already: a run is learned from once")
        text = "" if known.text == lesson.task.text else ", with another text"
        reason = f"the query {name!r} is in the graph already{text}, and only its first run is kept"
        return Learned(query_id=name, failures=(Failure(kind="duplicate", reason=reason, query_id=name),))

    def _prepared(
        self, memory: StrategyGraph, lesson: Lesson, walked: Walked, scope: Scope
    ) -> tuple[Material, list[Strategy]]:
        source = source_of_runs(lesson.task, [lesson.log])
        material = self.induction.material(memory, lesson.task, [walked.outcome], source, scope=scope, run=lesson.run)
        return material, [] if material.case == "none" else memory.strategies(scope=scope)


def _told(
    memory: StrategyGraph, lesson: Lesson, walked: Walked, material: Material, draft: Draft | None, scope: Scope
) -> Learned:
    """Return what was learned, with the query and the draft written."""
    found = Learned(query_id=material.name)
    if draft is None:
        enter(memory, material, scope=scope, fresh=lesson.fresh)
        row = taught(material, "none", "a right answer alone teaches nothing; the path is kept")
        return found.model_copy(update={"outcome": walked.outcome, "taught": row})
    row = write_draft(memory, material, draft, scope=scope, fresh=lesson.fresh)
    found = found.model_copy(update={"taught": row, "failures": (draft.failure,) if draft.failure else ()})
    return found if _away(found) else found.model_copy(update={"outcome": walked.outcome})


def _away(found: Learned) -> bool:
    """Return whether nothing was kept of a run since a server was away: what it teaches can be learned later."""
    return any(each.kind == "unavailable" for each in found.failures)


def _unpaired(name: str, error: Exception) -> Failure:
    return Failure(
        kind="unavailable" if isinstance(error, UnavailableError) else "error", reason=str(error), query_id=name
    )


def _updated(found: Learned, rows: Sequence[WeightRow], failures: tuple[Failure, ...]) -> Learned:
    return found.model_copy(update={"updates": tuple(rows), "failures": (*found.failures, *failures)})


# the user's word


def record_feedback(
    memory: StrategyGraph,
    run: FinishedRun,
    reward: float,
    *,
    scope: Scope,
    mapper: MapperLike = "rule",
    strategist: StrategistLike = "rule",
    positive: bool = False,
    borrow: bool = True,
    pairing: Pairing | None = None,
) -> Learned:
    """Put a finished run into the graph with the reward that the user gave it, and make of it what can be made.

    run: what the agent returned, its `record` (`agent.get_state(thread).values["record"]`), or the run's trace.  reward: in [0, 1]; 1 is a
    success, everything below is none.  mapper, strategist, positive, borrow: as in `create_graph_memory_agent`.
    pairing: also measure the gap of a strategy on this query (`paired_rollouts`) and move the weights; its rollout graph has to know by
    itself what an answer is worth, as the user's word is about this one answer.

    A run that fits no path is data: `Learned.failures` says why. Raises `RewardError` for what is no reward, `ConflictError` when the run
    is in the graph already, `InputError` for what is no finished run.
    """
    learning, lesson = _lesson(memory, run, reward, mapper, strategist, positive, borrow, pairing)
    return learning.learn(memory, lesson, scope=scope)


async def arecord_feedback(
    memory: StrategyGraph,
    run: FinishedRun,
    reward: float,
    *,
    scope: Scope,
    mapper: MapperLike = "rule",
    strategist: StrategistLike = "rule",
    positive: bool = False,
    borrow: bool = True,
    pairing: Pairing | None = None,
) -> Learned:
    """Do what `record_feedback` does, without blocking."""
    learning, lesson = _lesson(memory, run, reward, mapper, strategist, positive, borrow, pairing)
    return await learning.alearn(memory, lesson, scope=scope)


def _lesson(
    memory: StrategyGraph,
    run: FinishedRun,
    reward: float,
    mapper: MapperLike,
    strategist: StrategistLike,
    positive: bool,
    borrow: bool,
    pairing: Pairing | None,
) -> tuple[Learning, Lesson]:
    if isinstance(reward, Real):  # booleans and NumPy's numbers too
        reward = float(reward)
    if not isinstance(reward, float) or not math.isfinite(reward) or not 0 <= reward <= 1:
        raise RewardError(f"a reward of {reward!r:.40} is none: give a number from 0 to 1")
    paths = as_mapper(mapper)
    check_machine(memory, paths.machine)
    induction = Induction(
        paths, as_strategist(strategist, paths.machine), positive=positive, borrow=borrow, same_text=True
    )
    lesson = lesson_of_trace(run, reward) if isinstance(run, Trace) else lesson_of(_record_in(run), reward)
    return Learning(induction, pairing), replace(lesson, fresh=True)


def lesson_of(record: RolloutRecord, reward: float) -> Lesson:
    """Return what a record teaches with a reward. A run without an id of its query is a query of its own."""
    log = log_of_record(record, reward)
    task = QueryTask(
        text=record.query,
        query_id=record.about.task_id or f"run:{record.run_id}",
        ground_truth=record.about.ground_truth,
        family=record.about.family,
        history=_before(record),
    )
    return Lesson(task, log, record.run_id)


def _before(record: RolloutRecord) -> tuple[ChatMessage, ...]:
    """Return what user and agent had said when the question was asked."""
    asked = max(
        (at for at, said in enumerate(record.dialogue) if (said.role, said.text) == ("user", record.query)), default=0
    )
    return tuple(
        said
        for said in record.dialogue[:asked]
        if said.role in ("user", "assistant") and not said.text.startswith("<advice>")
    )


def lesson_of_trace(trace: Trace, reward: float) -> Lesson:
    """Return what a trace teaches with a reward. Raises `InputError` when no agent replied in it."""
    log = read_trace(trace, reward=reward, role=ROLE)
    task = QueryTask(text=log.question, query_id=trace.group or f"run:{trace.id}")
    return Lesson(task, log, str(trace.id), str(trace.id))


def _record_in(run: RolloutRecord | Mapping[str, Any]) -> RolloutRecord:
    record = run.get("record") if isinstance(run, Mapping) else run
    if not isinstance(record, RolloutRecord):
        raise InputError("This is no finished run: it has no record. Pass what the agent returned at its end")
    return record

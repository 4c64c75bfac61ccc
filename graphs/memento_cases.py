"""Case memory of Memento: read before a plan is made, written once when the task is over (specification, sections 2.6 and 3.2).

`write_case` is the only writer of a run, and a task's read comes before its write. What nobody verified is not written.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.runnables import RunnableConfig
from langgraph.runtime import get_runtime
from numpy.typing import NDArray

from memweave.agents.planner import ROLE, Said, ShownCase, cases_text
from memweave.errors import UnknownMemoryError
from memweave.graphs.memento_state import MementoState, QueryRecord
from memweave.graphs.session import DefaultScope, current_scope, listened_to
from memweave.memory_stores import CaseBank, RetrievedCase
from memweave.memory_stores.case_retrieval import CaseLearner, RetrievalPolicy, WatchesBank
from memweave.records import Case, NewCase, OpKind, OpStatus, ReplayRow, Scope
from memweave.tracing.attribution import MEMORY_OP_EVENT

CaseSource = CaseBank | Callable[[], CaseBank]
"""A case bank, or how to open it when it is first needed."""


class LazyCases:
    """A case bank that is opened on first use, once, and never on the event loop."""

    def __init__(self, source: CaseSource) -> None:
        self._source = source
        self._lock = threading.Lock()

    def get(self) -> CaseBank:
        """Return the bank."""
        with self._lock:
            if not isinstance(self._source, CaseBank):
                self._source = self._source()
            return self._source

    async def aget(self) -> CaseBank:
        """Return the bank; opening it happens in a thread."""
        return self._source if isinstance(self._source, CaseBank) else await asyncio.to_thread(self.get)


@dataclass(frozen=True)
class CaseMemory:
    """The nodes that read and write cases."""

    bank: LazyCases
    policy: RetrievalPolicy
    k: int
    scope: DefaultScope
    learner: CaseLearner | None
    seed: int | None

    # read

    def read(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Find the cases that the planner is shown."""
        found = self.bank.get().retrieve(
            self._asked(state),
            scope=current_scope(self.scope),
            k=self.k,
            policy=self.policy,
            task_id=state["about"].task_id,
            iteration=state["about"].iteration,
            rng=self._rng(state),
        )
        return self._shown(state, found)

    async def aread(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Do what `read` does."""
        bank = await self.bank.aget()
        found = await bank.aretrieve(
            self._asked(state),
            scope=current_scope(self.scope),
            k=self.k,
            policy=self.policy,
            task_id=state["about"].task_id,
            iteration=state["about"].iteration,
            rng=self._rng(state),
        )
        return self._shown(state, found)

    @staticmethod
    def _asked(state: MementoState) -> str:
        """Return what cases are searched with: the task, in later cycles with the latest results."""
        latest = [row.result for row in state["subtasks"] if row.cycle == state["cycle"]]
        return "\n".join([state["query"], *latest])

    def _rng(self, state: MementoState) -> np.random.Generator:
        """Return a generator of this task's own, so that tasks at the same time draw the same as one after the other."""
        if self.seed is None:
            return np.random.default_rng()
        about = state["about"]
        name = f"{self.seed}\0{about.iteration}\0{about.task_id or state['query']}\0{state['cycle']}"
        return np.random.default_rng(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "big"))

    @staticmethod
    def _shown(state: MementoState, found: Sequence[RetrievedCase]) -> MementoState:
        shown = [_as_shown(each) for each in found]
        known = {case.id for case in state["seen"]}
        get_runtime().stream_writer(
            {"type": "cases", "cases": [{"id": str(c.id), "score": c.score, "reward": c.reward} for c in shown]}
        )
        history = [said for said in state["history"] if said.kind != "cases"]
        if shown:  # the latest block only
            history.append(Said(kind="cases", text=cases_text(shown)))
        return {"cases": shown, "seen": [*state["seen"], *(c for c in shown if c.id not in known)], "history": history}

    # write

    def write(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Write the case of a finished task and what it says of the cases that were shown, and let the learner see it."""
        record, scope, bank = _record(state), current_scope(self.scope), self.bank.get()
        case = write_case(bank, record, scope, self.learner)
        if case is not None and listened_to():
            dispatch_custom_event(MEMORY_OP_EVENT, _event(case))
        return _written(record, case)

    async def awrite(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Do what `write` does."""
        record, scope, bank = _record(state), current_scope(self.scope), await self.bank.aget()
        case = await awrite_case(bank, record, scope, self.learner)
        if case is not None and listened_to():
            await adispatch_custom_event(MEMORY_OP_EVENT, _event(case))
        return _written(record, case)


def write_case(
    bank: CaseBank,
    record: QueryRecord,
    scope: Scope,
    learner: CaseLearner | None,
    credit: Mapping[UUID, float] | None = None,
) -> Case | None:
    """Write what a finished task teaches: replay rows, its case, and to the learner; `None` when the case is not kept.

    A run that broke off after its case was written, and is gone on with, finds it.  credit: see `ReplayRow.credit`, by case.
    """
    if (there := written_before(bank, record, scope)) is not None:
        return there
    shown = []
    for each in record.cases if record.reward is not None else ():
        with suppress(UnknownMemoryError):  # it was removed since it was shown
            shown.append(bank.get(each.id, scope=scope))
    rows, new = replay_rows(record, shown, credit), new_case(record)
    bank.add_replay(rows, scope=scope)  # first: with the case, the task is done
    case = bank.write(new, scope=scope) if new else None
    if case is not None and isinstance(learner, WatchesBank):
        learner.grew(case.id)
    if rows and learner is not None:
        vectors = bank.vectors([each.id for each in shown], scope=scope)
        learner.observe(rows, bank.embed([record.query])[0], vectors, _rewards(shown))
    return case


async def awrite_case(bank: CaseBank, record: QueryRecord, scope: Scope, learner: CaseLearner | None) -> Case | None:
    """Do what `write_case` does, without blocking."""
    return await asyncio.to_thread(write_case, bank, record, scope, learner)


def written_before(bank: CaseBank, record: QueryRecord, scope: Scope) -> Case | None:
    """Return the case that a run has written of this task already; `None` when there is none, or it was removed."""
    for op in bank.log(scope=scope, run_id=record.run_id):
        if op.kind is OpKind.ADD and op.status is OpStatus.APPLIED and op.memory_id is not None:
            with suppress(UnknownMemoryError):
                case = bank.get(op.memory_id, scope=scope)
                if case.task == record.query:
                    return case
    return None


def new_case(record: QueryRecord) -> NewCase | None:
    """Return the case of a finished task (Definition 3.1); `None` when there never was a plan."""
    if record.plan is None:
        return None
    return NewCase(
        task=record.query,
        plan=record.plan,
        plans=record.plans,
        reward=record.reward,
        task_id=record.about.task_id,
        family=record.about.family,
        iteration=record.about.iteration,
        run_id=record.run_id,
        metadata={"status": record.status, "answer": record.answer},
    )


def replay_rows(
    record: QueryRecord, shown: Sequence[Case], credit: Mapping[UUID, float] | None = None
) -> list[ReplayRow]:
    """Return one row for each case that was shown, if the answer was verified: all get the reward of the task (A5, A11)."""
    if record.reward is None:
        return []
    drawn = {case.id: case.probability for case in record.cases}
    return [
        ReplayRow(
            query=record.query,
            task_id=record.about.task_id,
            case_id=case.id,
            reward=record.reward,
            iteration=record.about.iteration,
            run_id=record.run_id,
            probability=drawn[case.id],
            credit=(credit or {}).get(case.id),
        )
        for case in shown
    ]


def _rewards(shown: Sequence[Case]) -> NDArray[np.float64]:
    return np.array([np.nan if case.reward is None else case.reward for case in shown])


def _as_shown(found: RetrievedCase) -> ShownCase:
    case = found.case
    return ShownCase(
        id=case.id,
        task=case.task,
        plan=case.plan,
        reward=case.reward,
        positive=case.positive,
        score=found.score,
        probability=found.probability,
    )


def _record(state: MementoState) -> QueryRecord:
    record = state["record"]
    assert record is not None
    return record


def _written(record: QueryRecord, case: Case | None) -> MementoState:
    if case is None:
        return {"case_id": None}
    get_runtime().stream_writer({"type": "case", "id": str(case.id), "reward": case.reward})
    return {"case_id": str(case.id), "record": record.model_copy(update={"case_id": case.id})}


def _event(case: Case) -> dict[str, object]:
    """Return what a tracer is told, in the form of a memory operation: the planner wrote this case."""
    return {
        "type": "memory_op",
        "id": str(case.id),
        "kind": "ADD",
        "status": "applied",
        "text": case.task,
        "reason": f"reward {case.reward}",
        "actor": "memento",
        "memory_id": str(case.id),
        "version": 1,
        "role": ROLE,
    }

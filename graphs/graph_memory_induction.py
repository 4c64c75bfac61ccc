"""How rollouts become paths, and paths strategies (arXiv 2511.07800, algorithm 1; specification 2.4): shared by the machine that builds the
graph and by the agent that learns from its users.

    right and wrong paths of a query     contrast one of each                                        -> one strategy
    wrong paths only                     what worked for similar queries is linked to them           -> no new strategy
    right paths only                     nothing, or (flag) what made the difference                 -> one strategy
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

import numpy as np

from memweave.agents.leaks import Source
from memweave.agents.path_mapper import Mapped, PathMapper, UnmappedRun
from memweave.agents.run_log import Call, Round, RunLog, read_run
from memweave.agents.strategist import Induced, InductionRequest, NoStrategy, Strategist, source_of
from memweave.errors import InputError, UnavailableError
from memweave.graph_records import (
    NewQuery,
    NewStrategy,
    QueryNode,
    RolloutOutcome,
    Strategy,
    StrategyChange,
    StrategyKind,
    path_id,
)
from memweave.graphs.graph_memory_play import Failure, Played, QueryTask
from memweave.graphs.graph_memory_state import RolloutRecord
from memweave.memory_stores.strategy_graph import StrategyGraph
from memweave.records import Name, Record, Scope

Case = Literal["contrast", "speculate", "distill", "none"]
"""What the outcomes of a query allow (algorithm 1)."""
Choose = Literal["random", "shortest"]
"""Which success and which failure are contrasted (B4)."""
Decision = Literal["create", "update", "skip", "link", "none"]
"""create, update: as the graph found (FindMatching).  skip: the strategist has nothing to say.  link: to strategies that exist.
none: the outcomes allow nothing."""

OTHERS: Final = 8
"""Similar queries that are looked at."""
REPEATED: Final = 64
"""Queries among which those with the very same text are looked for: a popular one is asked often."""
MARK: Final = 256
"""Characters of the name under which a strategy is logged."""


class Walked(Record):
    """A run that has a path."""

    outcome: RolloutOutcome
    log: RunLog


class Material(Record):
    """What the outcomes of a query can be made into a strategy from."""

    case: Case
    task: QueryTask
    name: Name
    """Of the query in the graph."""
    query: NewQuery
    outcomes: tuple[RolloutOutcome, ...]
    """What the query is added to the graph with."""
    n_success: int
    n_failure: int
    source: Source
    """What a strategy may not repeat."""
    success: RolloutOutcome | None = None
    failure: RolloutOutcome | None = None
    """Those that are contrasted; the success may be a similar query's."""
    paths: tuple[UUID, ...] = ()
    """That a strategy is linked to."""
    reused: tuple[UUID, ...] = ()
    """Strategies that success paths of similar queries lead to."""


class Draft(Record):
    """What is to be written of a query."""

    reason: str
    new: NewStrategy | None = None
    target: UUID | None = None
    linked: tuple[UUID, ...] = ()
    """Strategies that its paths are linked to."""
    failure: Failure | None = None
    """Why a strategy that could have been is none."""


class Taught(Record):
    """What a query has taught."""

    query: str
    query_id: str
    """Of the query in the graph."""
    case: Case
    n_success: int
    n_failure: int
    decision: Decision
    reason: str
    changes: tuple[StrategyChange, ...] = ()

    def event(self) -> dict[str, object]:
        """Return it for a custom stream."""
        strategies = [{"id": str(each.strategy.id), "summary": each.strategy.summary} for each in self.changes]
        return {
            "type": "strategies",
            "query_id": self.query_id,
            "case": self.case,
            "decision": self.decision,
            "strategies": strategies,
        }


@dataclass(frozen=True)
class Induction:
    """How experience becomes strategies."""

    mapper: PathMapper
    strategist: Strategist
    positive: bool = False
    """Whether queries that were only answered rightly teach something (B5)."""
    borrow: bool = False
    """Whether a failure is contrasted with a similar query's success when no strategy of one can be re-used (B6)."""
    same_text: bool = False
    """Whether outcomes of other queries with the very same text count too."""
    choose: Choose = "random"
    seed: int = 0

    # rollout -> path

    def walked(self, log: RunLog, trace_id: str | None, query_id: str | None) -> Walked | Failure:
        """Return the path of a run, or why it has none."""
        try:
            return _walked(self.mapper.map(log), log, trace_id, query_id)
        except UnavailableError as error:
            return Failure(kind="unavailable", reason=str(error), query_id=query_id, trace_id=trace_id)

    async def awalked(self, log: RunLog, trace_id: str | None, query_id: str | None) -> Walked | Failure:
        """Do what `walked` does."""
        try:
            return _walked(await self.mapper.amap(log), log, trace_id, query_id)
        except UnavailableError as error:
            return Failure(kind="unavailable", reason=str(error), query_id=query_id, trace_id=trace_id)

    # paths -> what can be made of them

    def material(
        self,
        memory: StrategyGraph,
        task: QueryTask,
        outcomes: Sequence[RolloutOutcome],
        source: Source,
        *,
        scope: Scope,
        run: str,
    ) -> Material:
        """Return what the outcomes of a query allow. Nothing is written: what needs a server comes first, so an outage costs no lesson.

        Outcomes of a query that is there already stay as they are.
        """
        new = NewQuery(text=task.text, query_id=task.query_id, split=task.split, run_id=run)
        there = memory.query(new.name, scope=scope)
        own = there.outcomes if there else tuple(outcomes)
        known = [*own, *(self._others(memory, new, scope) if self.same_text else ())]
        right = [outcome for outcome in known if outcome.success]
        wrong = [outcome for outcome in known if not outcome.success]
        found = Material(
            case="none", task=task, name=new.name, query=new, outcomes=own, n_success=len(right), n_failure=len(wrong),
            source=source,
        )  # fmt: skip
        rng, machine = self._rng(new.name), memory.settings.machine
        if right and wrong:
            success, failure = self._one(right, rng), self._one(wrong, rng)
            both = (path_id(machine, success.states), path_id(machine, failure.states))
            return found.model_copy(
                update={"case": "contrast", "success": success, "failure": failure, "paths": tuple(dict.fromkeys(both))}
            )
        if wrong:
            return self._speculative(memory, found, new, wrong, rng, scope)
        if right and self.positive:
            success = self._one(right, rng)
            return found.model_copy(
                update={"case": "distill", "success": success, "paths": (path_id(machine, success.states),)}
            )
        return found

    def _speculative(
        self,
        memory: StrategyGraph,
        found: Material,
        node: NewQuery,
        wrong: Sequence[RolloutOutcome],
        rng: np.random.Generator,
        scope: Scope,
    ) -> Material:
        """Return what failures alone allow: strategies of similar queries, or a success of one (B6)."""
        machine = memory.settings.machine
        failing = tuple(dict.fromkeys(path_id(machine, outcome.states) for outcome in wrong))
        reused = tuple(each.id for each in memory.speculate(node.text, scope=scope, exclude=node.name))
        update: dict[str, Any] = {"case": "speculate", "paths": failing, "reused": reused}
        lent = self._lent(memory, node, scope) if self.borrow and not reused else None
        if lent is not None:
            other, success = lent
            failure = self._one(wrong, rng)
            update |= {
                "success": success,
                "failure": failure,
                "paths": (path_id(machine, success.states), path_id(machine, failure.states)),
                "source": found.source.model_copy(update={"found": (*found.source.found, other.text)}),
            }
        return found.model_copy(update=update)

    def _rng(self, name: str) -> np.random.Generator:
        digest = hashlib.blake2b(f"{self.seed}\0{name}".encode(), digest_size=16).digest()
        return np.random.default_rng(int.from_bytes(digest, "big"))

    def _one(self, outcomes: Sequence[RolloutOutcome], rng: np.random.Generator) -> RolloutOutcome:
        if self.choose == "shortest":
            return min(outcomes, key=lambda outcome: len(outcome.states))
        return outcomes[int(rng.integers(len(outcomes)))]

    @staticmethod
    def _lent(memory: StrategyGraph, node: NewQuery, scope: Scope) -> tuple[QueryNode, RolloutOutcome] | None:
        """Return a success of the most similar query that has one."""
        near = memory.neighbours(node.text, scope=scope, k=OTHERS, exclude=node.name)
        return next(
            ((other, one) for other, cosine in near if cosine > 0 for one in other.outcomes if one.success), None
        )

    @staticmethod
    def _others(memory: StrategyGraph, node: NewQuery, scope: Scope) -> list[RolloutOutcome]:
        """Return the outcomes of other queries with the same text."""
        near = memory.neighbours(node.text, scope=scope, k=REPEATED, exclude=node.name)
        return [one for other, _ in near if other.text == node.text for one in other.outcomes]

    # the strategist

    def draft(self, material: Material, existing: Sequence[Strategy], run: str) -> Draft:
        """Return what is to be written; a strategist that is away, or leaks the question, is a reason for nothing."""
        request = _request(material, existing)
        if request is None:
            return _linking(material)
        try:
            return _drafted(material, self.strategist.induce(request), run)
        except UnavailableError as error:
            return _failed(material, Failure(kind="unavailable", reason=str(error), query_id=material.name))

    async def adraft(self, material: Material, existing: Sequence[Strategy], run: str) -> Draft:
        """Do what `draft` does."""
        request = _request(material, existing)
        if request is None:
            return _linking(material)
        try:
            return _drafted(material, await self.strategist.ainduce(request), run)
        except UnavailableError as error:
            return _failed(material, Failure(kind="unavailable", reason=str(error), query_id=material.name))


# into the graph


def enter(memory: StrategyGraph, material: Material, *, scope: Scope, fresh: bool = False) -> None:
    """Add a query, its paths and the edges to the graph; one that is there already stays as it is.

    fresh: raise `ConflictError` for one that is there already.
    """
    memory.add(material.query, material.outcomes, scope=scope, fresh=fresh)


def write_draft(
    memory: StrategyGraph, material: Material, draft: Draft, *, scope: Scope, fresh: bool = False
) -> Taught:
    """Write the query and what was drafted; a run that broke off after it was written, and is gone on with, does not write it again.

    Where the strategist was away nothing is written, so that the query can be learned from when it is back.  fresh: as for `enter`.
    """
    if draft.failure is not None and draft.failure.kind == "unavailable":
        return taught(material, "skip", f"nothing is kept of it, so that it can be learned from later: {draft.reason}")
    enter(memory, material, scope=scope, fresh=fresh)
    if draft.new is not None:
        if _stands(memory, draft.new, scope):
            return taught(material, "update", f"written before: {draft.reason}")
        change = memory.write(draft.new, material.paths, scope=scope, reason=draft.reason, target=draft.target)
        return taught(material, "create" if change.action == "created" else "update", draft.reason, change)
    if draft.linked:
        changes = memory.link(material.paths, draft.linked, scope=scope)
        if not changes:
            return taught(material, "skip", "its paths lead to what worked for similar queries already")
        return taught(material, "link", draft.reason, *changes)
    return taught(material, "skip", draft.reason)


def _stands(memory: StrategyGraph, new: NewStrategy, scope: Scope) -> bool:
    """Return whether it was written before, and what was written is there still: a lesson that was undone may be learned again."""
    written = memory.log(scope=scope, run_id=new.run_id, limit=1)
    return bool(written) and written[0].memory_id in {each.id for each in memory.strategies(scope=scope)}


def taught(material: Material, decision: Decision, reason: str, *changes: StrategyChange) -> Taught:
    """Return what a query has taught."""
    return Taught(
        query=material.task.text,
        query_id=material.name,
        case=material.case,
        n_success=material.n_success,
        n_failure=material.n_failure,
        decision=decision,
        reason=reason,
        changes=changes,
    )


# what is read and asked


def log_of(played: Played) -> RunLog:
    """Return what a rollout's record tells of it. Raises `InputError` for one that never ended."""
    record = played.record
    if record is None:
        raise InputError("this rollout has no record: it did not end")
    return log_of_record(record, record.reward)


def log_of_record(record: RolloutRecord, reward: float | None) -> RunLog:
    """Return the run that a record tells of, with a reward of its answer."""
    # The dialogue keeps messages as text, where a native call with words beside it cannot be seen.
    carried_out = [(Call(name=row.tool, arguments=row.arguments), row.result) for row in record.calls]
    log = read_run(record.dialogue, reward=reward, question=record.query, carried_out=carried_out)
    if record.answer is None or log.answer == record.answer:
        return log
    # An answer that looks like a call or names a tag: the record knows that it is one.
    *before, last = log.rounds or (Round(),)
    said = [last] if last.results else []
    return log.model_copy(
        update={"rounds": (*before, *said, Round(think="" if said else last.think, answer=record.answer))}
    )


def source_of_runs(task: QueryTask, logs: Sequence[RunLog]) -> Source:
    """Return what a strategy that is made of these runs of a query may not repeat."""
    return (
        source_of(*logs, answers=task.ground_truth) if logs else Source(question=task.text, answers=task.ground_truth)
    )


def _walked(mapped: Mapped, log: RunLog, trace_id: str | None, query_id: str | None) -> Walked | Failure:
    if isinstance(mapped, UnmappedRun):
        return Failure(kind="no_path", reason=f"{mapped.kind}: {mapped.text}", query_id=query_id, trace_id=trace_id)
    assert log.reward is not None  # without one, no mapper finds a path
    return Walked(outcome=RolloutOutcome(states=mapped.states, reward=log.reward, trace_id=trace_id), log=log)


_KINDS: Final = {
    "contrast": StrategyKind.CONTRAST,
    "speculate": StrategyKind.SPECULATIVE,
    "distill": StrategyKind.POSITIVE,
}


def _request(material: Material, existing: Sequence[Strategy]) -> InductionRequest | None:
    """Return what the strategist is asked; `None` when it is not."""
    if material.success is None:
        return None
    return InductionRequest(
        kind=_KINDS[material.case],
        successes=(material.success.states,),
        failures=(material.failure.states,) if material.failure else (),
        existing=tuple(existing),
        source=material.source,
    )


def _linking(material: Material) -> Draft:
    if material.reused:
        return Draft(reason="worked for similar queries", linked=material.reused)
    return Draft(reason="no similar query has a success that leads to a strategy")


def _drafted(material: Material, found: Induced, run: str) -> Draft:
    if isinstance(found, NoStrategy):
        if found.kind in ("no_difference", "skipped"):
            return Draft(reason=f"{found.kind}: {found.text}")
        kind: Literal["leak", "no_strategy"] = "leak" if found.kind == "leak" else "no_strategy"
        return _failed(material, Failure(kind=kind, reason=f"{found.kind}: {found.text}", query_id=material.name))
    marked = f"{run}/{material.name}"
    if len(marked) > MARK:  # cut, it could be another query's
        marked = f"{run[:128]}/{hashlib.blake2b(marked.encode(), digest_size=16).hexdigest()}"
    return Draft(reason=found.reason, new=found.new.model_copy(update={"run_id": marked}), target=found.target)


def _failed(material: Material, failure: Failure) -> Draft:
    return Draft(reason=failure.reason, failure=failure)

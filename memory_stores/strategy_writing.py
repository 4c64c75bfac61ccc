"""How a graph of strategies is built: queries with their paths, strategies, and the links between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import numpy as np

from memweave.errors import ConflictError, InputError, UnknownMemoryError
from memweave.graph_records import (
    EdgeKind,
    NewQuery,
    NewStrategy,
    QueryNode,
    RolloutOutcome,
    Strategy,
    StrategyAction,
    StrategyChange,
    path_id,
    query_node_id,
)
from memweave.memory_stores import strategy_edges
from memweave.memory_stores.ledger import LedgerTransaction
from memweave.memory_stores.store import Vector
from memweave.memory_stores.strategy_reading import StrategyReader
from memweave.memory_stores.strategy_rows import (
    contradicted,
    query_metadata,
    query_of,
    strategy_metadata,
    strategy_of,
    supported,
)
from memweave.records import MemoryOp, OpKind, ProposedOp, Scope, Trust, storable

ACTOR: Final = "graph-memory"
_ROUNDING: Final = 1e-6
"""By which the cosine of a text and itself may fall short of 1."""
LINK_REASON: Final = "speculative: it worked for similar queries"


class StrategyWriter(StrategyReader):
    """The part of a `StrategyGraph` that adds to it and takes from it."""

    def add(
        self, query: NewQuery, outcomes: Sequence[RolloutOutcome], *, scope: Scope, fresh: bool = False
    ) -> QueryNode:
        """Add a query, its paths and the edges between them, in one transaction. A query that is there already is returned as it is.

        outcomes: of its rollouts; none makes a node that leads nowhere.  fresh: refuse one that is there already: of several that add it
        at once, one does.  Raises `ConflictError` for a known id with another text, or, if `fresh`, at all.
        """
        return self.add_all([(query, outcomes)], scope=scope, fresh=fresh)[0]

    def add_all(
        self, given: Sequence[tuple[NewQuery, Sequence[RolloutOutcome]]], *, scope: Scope, fresh: bool = False
    ) -> list[QueryNode]:
        """Add many queries with the outcomes of their rollouts in one transaction, all or none; else as `add`."""
        known = {
            each.id for each in self._queries.found([query_node_id(query.name) for query, _ in given], scope=scope)
        }
        vectors = self._queries.embedded([query.text for query, _ in given if query_node_id(query.name) not in known])
        with self._queries.writing(scope) as tx:
            return [self._add(tx, query, outcomes, scope, vectors, fresh) for query, outcomes in given]

    def _add(
        self,
        tx: LedgerTransaction,
        query: NewQuery,
        outcomes: Sequence[RolloutOutcome],
        scope: Scope,
        vectors: dict[str, Vector],
        fresh: bool,
    ) -> QueryNode:
        node = query_node_id(query.name)
        there = self._queries.current(tx, node, scope)
        if there is not None:
            if fresh:
                raise ConflictError(
                    f"the query {query.name!r} of {scope} is in the graph already; nothing was changed."
                )
            if there.text != query.text:
                raise ConflictError(
                    f"query {query.name!r} of {scope} was already added with another text. Give the changed query a new id; "
                    "nothing was changed."
                )
            return query_of(there)
        op = ProposedOp(
            kind=OpKind.ADD,
            memory_id=node,
            text=query.text,
            reason=f"{len(outcomes)} rollouts, {sum(each.success for each in outcomes)} of them right",
            actor=ACTOR,
            run_id=query.run_id,
            metadata=query_metadata(query, tuple(outcomes)),
        )
        done = self._queries.do(tx, op, scope, vectors)
        taken = {path_id(self.settings.machine, each.states): each.states for each in outcomes}
        strategy_edges.add_paths(tx.connection, self._partition(scope), self.settings.machine, taken.items())
        self._link(tx, EdgeKind.QUERY_PATH, [(node, path) for path in taken], scope, done.id)
        assert done.after is not None  # an ADD that did not fail
        return query_of(done.after)

    def write(
        self,
        new: NewStrategy,
        paths: Sequence[UUID],
        *,
        scope: Scope,
        reason: str,
        actor: str = ACTOR,
        target: UUID | None = None,
    ) -> StrategyChange:
        """Write a strategy and link every path that it was made of: an update of the one that it matches, or a new one (algorithm 1).

        target: the strategy to update, when the caller knows; its summary and principles are then replaced. Found by similarity, they stay.

        Raises `InputError` without paths, `UnknownMemoryError` for a path or target that does not exist.
        """
        vectors = self._strategies.embedded([new.summary])
        with self._strategies.writing(scope) as tx:
            self._need_paths(tx, paths, scope)
            known, similarity = self._matching(tx, new, target, vectors, scope)
            if known is None:
                metadata = strategy_metadata(new)
                op = ProposedOp(
                    kind=OpKind.ADD,
                    text=new.summary,
                    reason=_reason(reason),
                    actor=actor,
                    run_id=new.run_id,
                    metadata=metadata,
                    trust=Trust.AGENT,
                )
            else:
                risen = supported(known, new, rewritten=target is not None)
                op = _rewrite(risen, reason, actor, new.run_id)
            done = self._strategies.do(tx, op, scope, vectors)
            assert done.after is not None  # an ADD or UPDATE that did not fail
            pairs = [(path, done.after.id) for path in paths]
            edges = self._link(tx, EdgeKind.PATH_STRATEGY, pairs, scope, done.id)
        return StrategyChange(
            action=StrategyAction.UPDATED if known else StrategyAction.CREATED,
            strategy=strategy_of(done.after),
            op_id=done.id,
            edges=edges,
            similarity=similarity,
        )

    def _matching(
        self, tx: LedgerTransaction, new: NewStrategy, target: UUID | None, vectors: dict[str, Vector], scope: Scope
    ) -> tuple[Strategy | None, float | None]:
        """Return the strategy that a new one is (FindMatching), and the cosine; looks while nobody else writes."""
        if target is not None:
            return self._need(tx, target, scope), None
        ids, rows = self._strategies.all_vectors(scope)
        if not ids:
            return None, None
        cosines = rows @ vectors[new.summary]
        best = int(np.argmax(cosines))
        if cosines[best] < self.settings.match_threshold - _ROUNDING:
            return None, None
        known = self._need(tx, ids[best], scope)
        vectors[known.summary] = rows[best]  # not embedded again: its text stays
        return known, float(cosines[best])

    def contradict(
        self, strategy_id: UUID, *, scope: Scope, reason: str, actor: str = ACTOR, run_id: str | None = None
    ) -> StrategyChange:
        """Take 10 from a strategy's score; with the lowest score and three contradictions, it goes. Raises `UnknownMemoryError`."""
        vectors = self._text_vector(strategy_id, scope)
        with self._strategies.writing(scope) as tx:
            known = self._need(tx, strategy_id, scope)
            left = contradicted(known)
            if left is None:
                why = f"contradicted too often: {reason}"
                op = ProposedOp(
                    kind=OpKind.DELETE, memory_id=strategy_id, reason=_reason(why), actor=actor, run_id=run_id
                )
            else:
                op = _rewrite(left, reason, actor, run_id)
            done = self._strategies.do(tx, op, scope, vectors)
        action = StrategyAction.CONTRADICTED if left else StrategyAction.DROPPED
        after = strategy_of(done.after) if done.after else known
        return StrategyChange(action=action, strategy=after, op_id=done.id)

    def link(
        self,
        paths: Sequence[UUID],
        strategies: Sequence[UUID],
        *,
        scope: Scope,
        reason: str = LINK_REASON,
        actor: str = ACTOR,
        run_id: str | None = None,
    ) -> list[StrategyChange]:
        """Link paths to strategies that exist, all or nothing; a strategy that all of them lead to already is left alone.

        Raises `InputError` without paths, `UnknownMemoryError` for a path or strategy that does not exist.
        """
        vectors = {text: vector for each in strategies for text, vector in self._text_vector(each, scope).items()}
        made = []
        with self._strategies.writing(scope) as tx:
            self._need_paths(tx, paths, scope)
            partition = self._partition(scope)
            for strategy_id in dict.fromkeys(strategies):
                known = self._need(tx, strategy_id, scope)
                pairs = [(path, strategy_id) for path in paths]
                fresh = strategy_edges.missing_edges(tx.connection, partition, EdgeKind.PATH_STRATEGY, pairs)
                if fresh:
                    done = self._strategies.do(tx, _rewrite(known, reason, actor, run_id), scope, vectors)
                    edges = self._link(tx, EdgeKind.PATH_STRATEGY, fresh, scope, done.id)
                    assert done.after is not None  # an UPDATE that did not fail
                    linked = strategy_of(done.after)
                    made.append(
                        StrategyChange(action=StrategyAction.LINKED, strategy=linked, op_id=done.id, edges=edges)
                    )
        return made

    def remove(self, strategy_id: UUID, *, scope: Scope, reason: str, actor: str = "user") -> StrategyChange:
        """Take a strategy out; `undo` brings it back with its edges and their weights. Raises `UnknownMemoryError`."""
        op = ProposedOp(kind=OpKind.DELETE, memory_id=strategy_id, reason=_reason(reason), actor=actor)
        with self._strategies.writing(scope) as tx:
            known = self._need(tx, strategy_id, scope)
            done = self._strategies.do(tx, op, scope, {})
        return StrategyChange(action=StrategyAction.REMOVED, strategy=known, op_id=done.id)

    def undo(self, op_id: UUID, *, scope: Scope, actor: str = "user") -> MemoryOp:
        """Take back one operation on a query or a strategy, and the edges that came with it; as `MemoryBank.undo`."""
        try:
            return self._strategies.undo(op_id, scope=scope, actor=actor)
        except UnknownMemoryError:
            return self._queries.undo(op_id, scope=scope, actor=actor)

    def _link(
        self, tx: LedgerTransaction, kind: EdgeKind, pairs: Sequence[tuple[UUID, UUID]], scope: Scope, op_id: UUID
    ) -> int:
        return strategy_edges.add_edges(
            tx.connection, self._partition(scope), kind, pairs, initial=self.settings.initial_weight, op_id=op_id
        )

    def _need_paths(self, tx: LedgerTransaction, paths: Sequence[UUID], scope: Scope) -> None:
        if not paths:
            raise InputError("a strategy needs the paths that it was made of; none is given. Nothing was changed.")
        known = strategy_edges.known_paths(tx.connection, self._partition(scope), paths)
        if missing := [path for path in paths if path not in known]:
            raise UnknownMemoryError(f"there is no path {missing[0]} of {scope}. Add a query that took it first.")

    def _need(self, tx: LedgerTransaction, strategy_id: UUID, scope: Scope) -> Strategy:
        found = self._strategies.current(tx, strategy_id, scope)
        if found is None:
            raise UnknownMemoryError(
                f"there is no strategy {strategy_id} of {scope}. `memweave strategies list` shows them."
            )
        return strategy_of(found)

    def _text_vector(self, strategy_id: UUID, scope: Scope) -> dict[str, Vector]:
        """Return the summary of a strategy and its vector, so that it is not embedded again."""
        known = self.strategy(strategy_id, scope=scope)
        return {known.summary: self._strategies.vectors([strategy_id], scope=scope)[0]}


def _rewrite(strategy: Strategy, reason: str, actor: str, run_id: str | None) -> ProposedOp:
    """Return the operation that gives a strategy its new content."""
    return ProposedOp(
        kind=OpKind.UPDATE,
        memory_id=strategy.id,
        text=strategy.summary,
        reason=_reason(reason),
        actor=actor,
        run_id=run_id,
        metadata=strategy_metadata(strategy, strategy.evidence, strategy.contradictions),
        expected_version=strategy.version,
    )


def _reason(reason: str) -> str:
    if not reason.strip():
        raise InputError("a change of a strategy needs a reason; none is given. Nothing was changed.")
    return storable(reason)[:2_000]  # it may quote whatever a model said

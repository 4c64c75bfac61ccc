"""`StrategyGraph`: queries, canonical paths and strategies of many scopes, on the same ledger and index as memories.

Queries and strategies are memories of the collections `queries` and `strategies`: embedded once, explained in the log, and undone like any
other. Paths and edges with their trainable weights are kept beside them (sections 3.1 and 4 of the paper; see `memweave.graph_records`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self
from uuid import UUID

import numpy as np
from pydantic import Field, model_validator

from memweave.errors import ConflictError, InputError, UnknownMemoryError
from memweave.graph_records import (
    Edge,
    EdgeKind,
    EdgeStep,
    GraphProblem,
    NewQuery,
    NewStrategy,
    PathNode,
    QueryNode,
    RolloutOutcome,
    Strategy,
    StrategyAction,
    StrategyChange,
    WeightUpdate,
    WeightVersion,
    path_id,
    query_node_id,
)
from memweave.memory_stores import strategy_weights
from memweave.memory_stores.bank import MemoryBank
from memweave.memory_stores.ledger import LedgerTransaction
from memweave.memory_stores.opening import open_bank
from memweave.memory_stores.store import Vector, check_limit
from memweave.memory_stores.strategy_activation import (
    Activation,
    Numbers,
    activated,
    probabilities,
    relevance,
    uniform,
)
from memweave.memory_stores.strategy_check import problems
from memweave.memory_stores.strategy_lines import export_graph, import_graph
from memweave.memory_stores.strategy_rows import (
    contradicted,
    query_metadata,
    query_of,
    strategy_metadata,
    strategy_of,
    supported,
)
from memweave.memory_stores.strategy_store import QUERIES, STRATEGIES, GraphStore
from memweave.memory_stores.strategy_table import (
    Table,
    edge_rows,
    read_table,
    state_of,
    with_present_weights,
)
from memweave.records import MemoryHit, MemoryOp, Name, OpKind, ProposedOp, Record, Scope, Trust, storable

ACTOR: Final = "graph-memory"
LINK_REASON: Final = "speculative: it worked for similar queries"
Rank = Literal["weights", "uniform", "similarity", "random", "confidence"]
RANKS: Final[tuple[Rank, ...]] = ("weights", "uniform", "similarity", "random", "confidence")
_TABLES: Final = 4
"""Scopes whose graph is held in memory."""
_SPARE: Final = 8
"""Neighbours asked for beyond those wanted, so that equally similar ones are taken in the order in which they were added."""


class StrategySettings(Record):
    """How a graph is built and read."""

    machine: Name = "cognitive"
    """The finite-state machine whose paths are added, its version included."""
    match_threshold: float = Field(default=0.85, ge=-1, le=1)
    """A new strategy is an old one when the cosine of their summaries is at least this (FindMatching)."""
    neighbours: int = Field(default=8, ge=1, le=1_000)
    """k of N_k(q)."""
    initial_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    min_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_weight: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    degree_normalised: bool = False
    """Divide by the number of paths, so that strategies with many are not favoured."""
    snapshot_every: int = Field(default=50, ge=1)
    """Weight updates between versions that can be gone back to."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min_weight <= self.initial_weight <= self.max_weight:
            raise ValueError("initial_weight must lie between min_weight and max_weight")
        return self


@dataclass(frozen=True, slots=True)
class ScoredStrategy:
    """A strategy that was chosen for a query."""

    strategy: Strategy
    score: float
    """What it was ranked by; comparable within one call."""
    relevance: float | None
    """rho(m | q) at the weights used; `None` when the query does not activate it."""
    probability: float | None
    """p(m | q); `None` likewise."""


class StrategyGraph:
    """Strategies of many scopes, on disk. Open one with `open_strategies`, or make one of a memory bank that is open.

    Safe to use from any thread and from async code. Each method has an async twin with the prefix `a`.
    """

    def __init__(self, bank: MemoryBank, settings: StrategySettings | None = None) -> None:
        self.settings = settings or StrategySettings()
        self._bank = bank
        self._queries = GraphStore(bank, QUERIES)
        self._strategies = GraphStore(bank, STRATEGIES)
        self._lock = threading.Lock()
        self._tables: OrderedDict[Scope, Table] = OrderedDict()
        self._counts: dict[Scope, tuple[str, dict[UUID, tuple[int, int]]]] = {}
        self._vectors: dict[Scope, tuple[str, list[UUID], np.ndarray[Any, np.dtype[np.float32]]]] = {}

    @property
    def encoder(self) -> str:
        """Return the name of the embedding model; weights belong to its similarities."""
        return self._queries.embedder.model_id

    # building

    def add(self, query: NewQuery, outcomes: Sequence[RolloutOutcome], *, scope: Scope) -> QueryNode:
        """Add a query, its paths and the edges between them, in one transaction. A query that is there already is returned as it is.

        outcomes: of its rollouts; none makes a node that leads nowhere.  Raises `ConflictError` for a known id with another text.
        """
        known = self.query(query.name, scope=scope)
        vectors = {} if known else self._queries.embedded([query.text])
        taken = {path_id(self.settings.machine, each.states): each.states for each in outcomes}
        op = ProposedOp(
            kind=OpKind.ADD,
            memory_id=query_node_id(query.name),
            text=query.text,
            reason=f"{len(outcomes)} rollouts, {sum(each.success for each in outcomes)} of them right",
            actor=ACTOR,
            run_id=query.run_id,
            metadata=query_metadata(query, tuple(outcomes)),
        )
        with self._queries.writing(scope) as tx:
            there = self._queries.current(tx, query_node_id(query.name), scope)
            if there is not None:
                if there.text != query.text:
                    raise ConflictError(
                        f"query {query.name!r} of {scope} was already added with another text. Give the changed query a new id; "
                        "nothing was changed."
                    )
                return query_of(there)
            done = self._queries.do(tx, op, scope, vectors)
            partition = self._partition(scope)
            strategy_weights.add_paths(tx.connection, partition, self.settings.machine, taken.items())
            self._link(tx, EdgeKind.QUERY_PATH, [(query_node_id(query.name), path) for path in taken], scope, done.id)
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
        if cosines[best] < self.settings.match_threshold:
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
                fresh = strategy_weights.missing_edges(tx.connection, partition, EdgeKind.PATH_STRATEGY, pairs)
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

    def log(self, *, scope: Scope, limit: int | None = None, run_id: str | None = None) -> list[MemoryOp]:
        """Return operations on queries and strategies, oldest first; with `limit`, the last ones."""
        both = [
            op
            for store in (self._queries, self._strategies)
            for op in store.log(scope=scope, limit=limit, run_id=run_id, newest=True)
        ]
        both.sort(key=lambda op: op.seq)
        return both if limit is None else both[len(both) - min(limit, len(both)) :]

    def _link(
        self, tx: LedgerTransaction, kind: EdgeKind, pairs: Sequence[tuple[UUID, UUID]], scope: Scope, op_id: UUID
    ) -> int:
        return strategy_weights.add_edges(
            tx.connection, self._partition(scope), kind, pairs, initial=self.settings.initial_weight, op_id=op_id
        )

    def _need_paths(self, tx: LedgerTransaction, paths: Sequence[UUID], scope: Scope) -> None:
        if not paths:
            raise InputError("a strategy needs the paths that it was made of; none is given. Nothing was changed.")
        known = strategy_weights.known_paths(tx.connection, self._partition(scope), paths)
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

    def _partition(self, scope: Scope) -> str:
        return scope.partition(STRATEGIES)

    # reading

    def query(self, name: str, *, scope: Scope) -> QueryNode | None:
        """Return a query by its id, or by `NewQuery.name`; `None` when it is not there."""
        found = self._queries.found([query_node_id(name)], scope=scope)
        return query_of(found[0]) if found else None

    def queries(self, *, scope: Scope) -> list[QueryNode]:
        """Return the queries, in the order in which they were added."""
        found = [query_of(memory) for memory in self._queries.memories(scope=scope)]
        return sorted(found, key=lambda query: (query.recorded_at, query.id.hex))

    def paths(self, *, scope: Scope) -> list[PathNode]:
        """Return the paths that queries lead to, in the order in which they were added."""
        table, counts = self._table(scope), self._outcome_counts(scope)
        return [_path(table, place, counts) for place, row in enumerate(table.paths) if row.id in counts]

    def strategies(self, *, scope: Scope) -> list[Strategy]:
        """Return the strategies, in the order in which they were first written."""
        return list(self._table(scope).strategies)

    def strategy(self, strategy_id: UUID, *, scope: Scope) -> Strategy:
        """Return a strategy. Raises `UnknownMemoryError`."""
        found = self._strategies.found([strategy_id], scope=scope)
        if not found:
            raise UnknownMemoryError(
                f"there is no strategy {strategy_id} of {scope}. `memweave strategies list` shows them."
            )
        return strategy_of(found[0])

    def edges(self, *, scope: Scope, kind: EdgeKind | None = None) -> list[Edge]:
        """Return the edges with their weights, in the order in which they were added."""
        table = self._table(scope)
        with self._strategies.ledger.database.read() as connection:
            return edge_rows(connection, self._partition(scope), table, kind)

    def strategies_of(self, path_id: UUID, *, scope: Scope) -> list[Strategy]:
        """Return M(t): the strategies that a path leads to; none for a path that does not exist."""
        return _strategies_of(self._table(scope), [path_id])

    def success_paths(self, name: str, *, scope: Scope) -> list[PathNode]:
        """Return the paths by which a query was answered rightly; empty for a query that is not there."""
        query = self.query(name, scope=scope)
        if query is None:
            return []
        table, counts = self._table(scope), self._outcome_counts(scope)
        right = dict.fromkeys(self._success_ids(table, query))
        return [_path(table, table.path_place[each], counts) for each in right if each in counts]

    def _success_ids(self, table: Table, query: QueryNode) -> list[UUID]:
        """Return the ids of paths, whichever machine they were mapped by, that a query leads to and was answered rightly by."""
        right = {each.states for each in query.outcomes if each.success}
        place = table.query_place.get(query.id)
        if place is None:
            return []
        edges, _ = table.query_path.edges.of(np.array([place]))
        rows = [table.paths[each] for each in table.query_path.edges.target[edges].tolist()]
        return [row.id for row in rows if row.states in right]

    def _outcome_counts(self, scope: Scope) -> dict[UUID, tuple[int, int]]:
        """Return by path how many rollouts took it and were right, and how many were wrong."""
        table = self._table(scope)
        known = self._counts.get(scope)
        if known is not None and known[0] == table.state.nodes:
            return known[1]
        counts: dict[UUID, tuple[int, int]] = {}
        for query in self.queries(scope=scope):
            place = table.query_place.get(query.id)
            if place is None:
                continue  # added meanwhile
            edges, _ = table.query_path.edges.of(np.array([place]))
            rows = {
                table.paths[each].states: table.paths[each].id for each in table.query_path.edges.target[edges].tolist()
            }
            for outcome in query.outcomes:
                if outcome.states in rows:
                    right, wrong = counts.get(rows[outcome.states], (0, 0))
                    counts[rows[outcome.states]] = (right + outcome.success, wrong + (not outcome.success))
        self._counts = {scope: (table.state.nodes, counts)}
        return counts

    def neighbours(
        self, text: str, *, scope: Scope, k: int | None = None, exclude: str | None = None
    ) -> list[tuple[QueryNode, float]]:
        """Return the `k` most similar queries and their cosines, most similar first.

        k: default is that of the settings.  exclude: id (or name) of the query itself.

        Raises `InputError` for a blank text or a `k` below 0.
        """
        hits = self._near(text, scope, self.settings.neighbours if k is None else k, exclude, self._table(scope))
        return [(query_of(hit.memory), hit.score) for hit in hits]

    def _near(self, text: str, scope: Scope, k: int, exclude: str | None, table: Table) -> list[MemoryHit]:
        vector = self._vector(text, k)
        if k == 0 or not table.queries:
            return []
        own = query_node_id(exclude) if exclude is not None else None
        hits = self._queries.nearest(vector, scope=scope, limit=k + _SPARE)
        shown = [hit for hit in hits if hit.memory.id != own and hit.memory.id in table.query_place]
        return sorted(shown, key=lambda hit: (-hit.score, table.query_place[hit.memory.id]))[:k]

    def _vector(self, text: str, k: int) -> Vector:
        if not text.strip() or text != storable(text) or k < 0:
            raise InputError(f"strategies for the query {text[:60]!r}, k = {k}: give a query in words, and 0 or more")
        return self._queries.query_vector(text)

    def speculate(self, text: str, *, scope: Scope, k: int | None = None, exclude: str | None = None) -> list[Strategy]:
        """Return M_spec: what success paths of the most similar queries lead to (section 4.1), nearest query first."""
        table = self._table(scope)
        hits = self._near(text, scope, self.settings.neighbours if k is None else k, exclude, table)
        paths = [path for hit in hits for path in self._success_ids(table, query_of(hit.memory))]
        return _strategies_of(table, paths)

    def activate(self, text: str, *, scope: Scope, exclude: str | None = None) -> Activation:
        """Return what a query activates: neighbours, paths, strategies, relevance and probability, with closed-form gradients.

        exclude: id (or name) of the query itself, so that it is not its own neighbour (the leakage rule).
        """
        table = self._table(scope)
        hits = self._near(text, scope, self.settings.neighbours, exclude, table)
        similarities = np.maximum(np.array([hit.score for hit in hits], dtype=np.float64), 0.0)
        places = np.array([table.query_place[hit.memory.id] for hit in hits], dtype=np.int64)
        paths, strategies, to_paths, to_strategies = activated(
            table.query_path.edges, table.path_strategy.edges, places, degree_normalised=self.settings.degree_normalised
        )
        rho = relevance(to_paths, to_strategies, similarities, len(paths), len(strategies))
        return Activation(
            query=text,
            query_id=exclude,
            version=table.state.weights,
            neighbours=tuple(hit.memory.id for hit in hits),
            similarities=similarities,
            paths=tuple(table.paths[place].id for place in paths.tolist()),
            strategies=tuple(table.strategies[place] for place in strategies.tolist()),
            relevance=rho,
            probability=probabilities(rho, self.settings.temperature),
            query_path=to_paths,
            path_strategy=to_strategies,
            temperature=self.settings.temperature,
        )

    def top(
        self,
        text: str,
        *,
        scope: Scope,
        k: int = 3,
        exclude: str | None = None,
        rank: Rank = "weights",
        rng: np.random.Generator | None = None,
    ) -> list[ScoredStrategy]:
        """Return up to `k` strategies for a query, best first; equal ones in the order in which they were first written.

        rank: `weights` by rho (section 4.3); `uniform` by rho with every weight 1; `confidence` by score among the activated ones;
        `similarity` by the cosine of summary and query, without the graph; `random` from all of the scope, by `rng`.

        Raises `InputError` for a blank text, a `k` below 0, an unknown rank, or `random` without `rng`.
        """
        if rank not in RANKS:
            raise InputError(f"there is no rank {rank!r}. There are: {', '.join(RANKS)}")
        vector = self._vector(text, k)
        if rank == "random":
            if rng is None:
                raise InputError("strategies at random need a generator: give rng")
            every = self._table(scope).strategies
            drawn = rng.permutation(len(every))[:k].tolist()
            return [ScoredStrategy(every[place], 0.0, None, None) for place in drawn]
        if rank == "similarity":
            return self._by_similarity(vector, scope, k)
        found = self.activate(text, scope=scope, exclude=exclude)
        rho, probability = found.relevance, found.probability
        if rank == "uniform":
            first, second = uniform(found.query_path), uniform(found.path_strategy)
            rho = relevance(first, second, found.similarities, len(found.paths), len(found.strategies))
            probability = probabilities(rho, self.settings.temperature)
        scores = np.array([each.score for each in found.strategies], dtype=np.float64) if rank == "confidence" else rho
        return [
            ScoredStrategy(found.strategies[place], float(scores[place]), float(rho[place]), float(probability[place]))
            for place in _best(scores, k)
        ]

    def _by_similarity(self, vector: Vector, scope: Scope, k: int) -> list[ScoredStrategy]:
        table = self._table(scope)
        known = self._vectors.get(scope)
        if known is None or known[0] != table.state.nodes:
            ids, rows = self._strategies.all_vectors(scope)
            known = (table.state.nodes, ids, rows)
            self._vectors = {scope: known}
        cosines = dict(zip(known[1], (known[2] @ vector).tolist(), strict=True))
        there = [each for each in table.strategies if each.id in cosines]
        scores = np.array([cosines[each.id] for each in there], dtype=np.float64)
        return [ScoredStrategy(there[place], float(scores[place]), None, None) for place in _best(scores, k)]

    def _table(self, scope: Scope) -> Table:
        """Return a scope's graph, read anew when its nodes changed; when only weights did, those."""
        ledger = self._strategies.ledger
        both = scope.partition(QUERIES), self._partition(scope)
        state = state_of(ledger, both)
        known = self._tables.get(scope)
        if known is not None and known.state == state:
            return known
        made = None
        if known is not None and known.state.nodes == state.nodes:
            made = with_present_weights(ledger, both[1], known)
        return self._remember(scope, made or read_table(ledger, scope, both, state))

    def _remember(self, scope: Scope, table: Table) -> Table:
        with self._lock:
            self._tables[scope] = table
            self._tables.move_to_end(scope)
            while len(self._tables) > _TABLES:
                self._tables.popitem(last=False)
        return table

    # weights

    def apply(self, step: EdgeStep, *, scope: Scope) -> WeightUpdate:
        """Take a step: durable, one version later, weights kept in their bounds. A gap of 0 is noted and changes nothing.

        Raises `ConflictError` when an edge of the step is not there any more.
        """
        bounds = self.settings.min_weight, self.settings.max_weight
        with self._strategies.writing_weights(scope) as tx:
            # Nobody else writes now: what the table says is what the ledger has.
            table, weights = self._table(scope).stepped(step, bounds)
            partition, every = self._partition(scope), self.settings.snapshot_every
            update = strategy_weights.take(tx, partition, step, weights, snapshot_every=every)
        self._remember(scope, table)
        return update

    def updates(self, *, scope: Scope, limit: int | None = None) -> list[WeightUpdate]:
        """Return the steps that were taken, oldest first; with `limit`, the last ones."""
        check_limit(limit)
        with self._strategies.ledger.database.read() as connection:
            return strategy_weights.steps(connection, self._partition(scope), limit)

    def version(self, *, scope: Scope) -> int:
        """Return the present version of the weights; 0 before the first step."""
        return state_of(self._strategies.ledger, (scope.partition(QUERIES), self._partition(scope))).weights

    def snapshot(self, *, scope: Scope) -> WeightVersion:
        """Keep the present weights as a version that can be gone back to."""
        with self._strategies.writing(scope) as tx:
            strategy_weights.save(tx, self._partition(scope), kept=True)
        return self._present(scope)

    def versions(self, *, scope: Scope) -> list[WeightVersion]:
        """Return the versions that can be gone back to, and the present one, oldest first."""
        with self._strategies.ledger.database.read() as connection:
            return strategy_weights.versions(connection, self._partition(scope))

    def rollback(self, version: int, *, scope: Scope) -> WeightVersion:
        """Go back to the weights of a version and return the new version; the present weights are kept as a version too.

        Edges made since then get their initial weight.  Raises `InputError` for a version that was not kept.
        """
        with self._strategies.writing(scope) as tx:
            strategy_weights.restore(tx, self._partition(scope), version)
        return self._present(scope)

    def _present(self, scope: Scope) -> WeightVersion:
        return next(each for each in self.versions(scope=scope) if each.current)

    def check(self, *, scope: Scope) -> list[GraphProblem]:
        """Return everything in a stored graph that must not be; empty for a sound one."""
        with self._strategies.ledger.database.read() as connection:
            return problems(connection, scope.partition(QUERIES), self._partition(scope), scope)

    # moving

    def export(self, *, scope: Scope) -> Iterator[str]:
        """Yield the graph as JSON lines: queries and strategies with their history, paths, edges, steps and versions of the weights."""
        return export_graph(self._queries, self._strategies, scope)

    def import_(self, lines: Iterable[str], *, scope: Scope) -> int:
        """Add an export to a scope without a graph, all or nothing; return how many queries and strategies, 0 when it is there already.

        Raises `InputError` naming what cannot be read, `ConflictError` for a scope that holds another graph, `EmbeddingMismatchError` for a
        graph that was built with another encoder.
        """
        return import_graph(self._queries, self._strategies, lines, scope)

    # async twins

    async def aadd(self, query: NewQuery, outcomes: Sequence[RolloutOutcome], *, scope: Scope) -> QueryNode:
        """Async twin of `add`."""
        return await self._strategies._in_thread(self.add, query, outcomes, scope=scope)

    async def awrite(
        self,
        new: NewStrategy,
        paths: Sequence[UUID],
        *,
        scope: Scope,
        reason: str,
        actor: str = ACTOR,
        target: UUID | None = None,
    ) -> StrategyChange:
        """Async twin of `write`."""
        return await self._strategies._in_thread(
            self.write, new, paths, scope=scope, reason=reason, actor=actor, target=target
        )

    async def acontradict(
        self, strategy_id: UUID, *, scope: Scope, reason: str, actor: str = ACTOR, run_id: str | None = None
    ) -> StrategyChange:
        """Async twin of `contradict`."""
        return await self._strategies._in_thread(
            self.contradict, strategy_id, scope=scope, reason=reason, actor=actor, run_id=run_id
        )

    async def alink(
        self,
        paths: Sequence[UUID],
        strategies: Sequence[UUID],
        *,
        scope: Scope,
        reason: str = LINK_REASON,
        actor: str = ACTOR,
        run_id: str | None = None,
    ) -> list[StrategyChange]:
        """Async twin of `link`."""
        return await self._strategies._in_thread(
            self.link, paths, strategies, scope=scope, reason=reason, actor=actor, run_id=run_id
        )

    async def aremove(self, strategy_id: UUID, *, scope: Scope, reason: str, actor: str = "user") -> StrategyChange:
        """Async twin of `remove`."""
        return await self._strategies._in_thread(self.remove, strategy_id, scope=scope, reason=reason, actor=actor)

    async def aundo(self, op_id: UUID, *, scope: Scope, actor: str = "user") -> MemoryOp:
        """Async twin of `undo`."""
        return await self._strategies._in_thread(self.undo, op_id, scope=scope, actor=actor)

    async def alog(self, *, scope: Scope, limit: int | None = None, run_id: str | None = None) -> list[MemoryOp]:
        """Async twin of `log`."""
        return await self._strategies._in_thread(self.log, scope=scope, limit=limit, run_id=run_id)

    async def aquery(self, name: str, *, scope: Scope) -> QueryNode | None:
        """Async twin of `query`."""
        return await self._strategies._in_thread(self.query, name, scope=scope)

    async def aqueries(self, *, scope: Scope) -> list[QueryNode]:
        """Async twin of `queries`."""
        return await self._strategies._in_thread(self.queries, scope=scope)

    async def apaths(self, *, scope: Scope) -> list[PathNode]:
        """Async twin of `paths`."""
        return await self._strategies._in_thread(self.paths, scope=scope)

    async def astrategies(self, *, scope: Scope) -> list[Strategy]:
        """Async twin of `strategies`."""
        return await self._strategies._in_thread(self.strategies, scope=scope)

    async def astrategy(self, strategy_id: UUID, *, scope: Scope) -> Strategy:
        """Async twin of `strategy`."""
        return await self._strategies._in_thread(self.strategy, strategy_id, scope=scope)

    async def aedges(self, *, scope: Scope, kind: EdgeKind | None = None) -> list[Edge]:
        """Async twin of `edges`."""
        return await self._strategies._in_thread(self.edges, scope=scope, kind=kind)

    async def astrategies_of(self, path_id: UUID, *, scope: Scope) -> list[Strategy]:
        """Async twin of `strategies_of`."""
        return await self._strategies._in_thread(self.strategies_of, path_id, scope=scope)

    async def asuccess_paths(self, name: str, *, scope: Scope) -> list[PathNode]:
        """Async twin of `success_paths`."""
        return await self._strategies._in_thread(self.success_paths, name, scope=scope)

    async def aneighbours(
        self, text: str, *, scope: Scope, k: int | None = None, exclude: str | None = None
    ) -> list[tuple[QueryNode, float]]:
        """Async twin of `neighbours`."""
        return await self._strategies._in_thread(self.neighbours, text, scope=scope, k=k, exclude=exclude)

    async def aspeculate(
        self, text: str, *, scope: Scope, k: int | None = None, exclude: str | None = None
    ) -> list[Strategy]:
        """Async twin of `speculate`."""
        return await self._strategies._in_thread(self.speculate, text, scope=scope, k=k, exclude=exclude)

    async def aactivate(self, text: str, *, scope: Scope, exclude: str | None = None) -> Activation:
        """Async twin of `activate`."""
        return await self._strategies._in_thread(self.activate, text, scope=scope, exclude=exclude)

    async def atop(
        self,
        text: str,
        *,
        scope: Scope,
        k: int = 3,
        exclude: str | None = None,
        rank: Rank = "weights",
        rng: np.random.Generator | None = None,
    ) -> list[ScoredStrategy]:
        """Async twin of `top`."""
        return await self._strategies._in_thread(self.top, text, scope=scope, k=k, exclude=exclude, rank=rank, rng=rng)

    async def aapply(self, step: EdgeStep, *, scope: Scope) -> WeightUpdate:
        """Async twin of `apply`."""
        return await self._strategies._in_thread(self.apply, step, scope=scope)

    async def aupdates(self, *, scope: Scope, limit: int | None = None) -> list[WeightUpdate]:
        """Async twin of `updates`."""
        return await self._strategies._in_thread(self.updates, scope=scope, limit=limit)

    async def aversion(self, *, scope: Scope) -> int:
        """Async twin of `version`."""
        return await self._strategies._in_thread(self.version, scope=scope)

    async def asnapshot(self, *, scope: Scope) -> WeightVersion:
        """Async twin of `snapshot`."""
        return await self._strategies._in_thread(self.snapshot, scope=scope)

    async def aversions(self, *, scope: Scope) -> list[WeightVersion]:
        """Async twin of `versions`."""
        return await self._strategies._in_thread(self.versions, scope=scope)

    async def arollback(self, version: int, *, scope: Scope) -> WeightVersion:
        """Async twin of `rollback`."""
        return await self._strategies._in_thread(self.rollback, version, scope=scope)

    async def acheck(self, *, scope: Scope) -> list[GraphProblem]:
        """Async twin of `check`."""
        return await self._strategies._in_thread(self.check, scope=scope)

    async def aexport(self, *, scope: Scope) -> list[str]:
        """Async twin of `export`; returns all lines."""
        return await self._strategies._in_thread(lambda: list(self.export(scope=scope)))

    async def aimport(self, lines: Sequence[str], *, scope: Scope) -> int:
        """Async twin of `import_`."""
        return await self._strategies._in_thread(self.import_, lines, scope=scope)

    # its end

    def optimize(self) -> bool:
        """Build the search graphs of an embedded index, as `MemoryBank.optimize`: worth it beyond tens of thousands of queries."""
        return self._bank.optimize()

    def close(self) -> None:
        """Release the memory bank below; the data folder is closed with its last bank in this process."""
        self._bank.close()

    async def aclose(self) -> None:
        """Async twin of `close`."""
        await self._bank.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def open_strategies(home: Path | str, *, settings: StrategySettings | None = None, **given: Any) -> StrategyGraph:
    """Open the graph in the folder `home`, beside its memories; the other arguments and errors are those of `open_bank`."""
    return StrategyGraph(open_bank(home, **given), settings)


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
    return storable(reason)[:2_000]  # it may quote whatever a model said


def _best(scores: Numbers, k: int) -> list[int]:
    return [int(place) for place in np.argsort(-scores, kind="stable")[:k]]


def _path(table: Table, place: int, counts: dict[UUID, tuple[int, int]]) -> PathNode:
    row = table.paths[place]
    right, wrong = counts[row.id]
    return PathNode.model_construct(id=row.id, machine=row.machine, states=row.states, n_success=right, n_failure=wrong)


def _strategies_of(table: Table, paths: Sequence[UUID]) -> list[Strategy]:
    places = np.array([table.path_place[each] for each in paths if each in table.path_place], dtype=np.int64)
    edges, _ = table.path_strategy.edges.of(places)
    found = dict.fromkeys(table.path_strategy.edges.target[edges].tolist())
    return [table.strategies[place] for place in found]

"""What is in a graph of strategies, and what a query finds in it (sections 2.5 and 4.3)."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import numpy as np

from memweave.errors import InputError, UnknownMemoryError
from memweave.graph_records import Edge, EdgeKind, PathNode, QueryNode, Strategy, query_node_id, text_name
from memweave.memory_stores.bank import MemoryBank
from memweave.memory_stores.store import Vector
from memweave.memory_stores.strategy_activation import Activation, Numbers, activated, probabilities, relevance, uniform
from memweave.memory_stores.strategy_cache import Tables
from memweave.memory_stores.strategy_rows import query_of, strategy_of
from memweave.memory_stores.strategy_settings import RANKS, Rank, ScoredStrategy, StrategySettings
from memweave.memory_stores.strategy_store import QUERIES, STRATEGIES, GraphStore
from memweave.memory_stores.strategy_table import Table
from memweave.memory_stores.strategy_weights import present
from memweave.records import MemoryHit, MemoryOp, Scope, storable

_SPARE: Final = 8
"""Neighbours asked for beyond those wanted, so that equally similar ones are taken in the order in which they were added."""


def _own(exclude: str | None) -> frozenset[UUID]:
    """Return the nodes that are meant by the id or the name of a query, or by its text, for one without an id."""
    if exclude is None:
        return frozenset()
    if not exclude or exclude != storable(exclude):
        raise InputError(f"exclude = {exclude[:60]!r} is no id of a query; leave it out to exclude none")
    return frozenset((query_node_id(exclude), query_node_id(text_name(exclude))))


class StrategyReader:
    """The part of a `StrategyGraph` that changes nothing."""

    def __init__(self, bank: MemoryBank, settings: StrategySettings | None = None) -> None:
        self.settings = settings or StrategySettings()
        self._bank = bank
        self._queries = GraphStore(bank, QUERIES)
        self._strategies = GraphStore(bank, STRATEGIES)
        self._tables = Tables(self._strategies)
        self._counts: dict[Scope, tuple[int, dict[UUID, tuple[int, int]]]] = {}
        self._vectors: dict[Scope, tuple[int, list[UUID], np.ndarray[Any, np.dtype[np.float32]]]] = {}

    @property
    def encoder(self) -> str:
        """Return the name of the embedding model; weights belong to its similarities."""
        return self._queries.embedder.model_id

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
        table, counts = self._tables.of(scope), self._outcome_counts(scope)
        return [_path(table, place, counts) for place, row in enumerate(table.paths) if row.id in counts]

    def strategies(self, *, scope: Scope) -> list[Strategy]:
        """Return the strategies, in the order in which they were first written."""
        return self._tables.of(scope).current()

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
        table = self._tables.of(scope)
        with self._strategies.ledger.database.read() as connection:
            return table.edges(kind, present(connection, self._partition(scope)))

    def strategies_of(self, path_id: UUID, *, scope: Scope) -> list[Strategy]:
        """Return M(t): the strategies that a path leads to; none for a path that does not exist."""
        return self._tables.of(scope).led_to([path_id])

    def success_paths(self, name: str, *, scope: Scope) -> list[PathNode]:
        """Return the paths by which a query was answered rightly; empty for a query that is not there."""
        query = self.query(name, scope=scope)
        if query is None:
            return []
        table, counts = self._tables.of(scope), self._outcome_counts(scope)
        right = dict.fromkeys(self._success_ids(table, query))
        return [_path(table, table.path_place[each], counts) for each in right if each in counts]

    def _success_ids(self, table: Table, query: QueryNode) -> list[UUID]:
        """Return the ids of paths, whichever machine they were mapped by, that a query leads to and was answered rightly by."""
        right = {each.states for each in query.outcomes if each.success}
        return [row.id for row in table.taken_by(query.id) if row.states in right]

    def _outcome_counts(self, scope: Scope) -> dict[UUID, tuple[int, int]]:
        """Return by path how many rollouts took it and were right, and how many were wrong."""
        table = self._tables.of(scope)
        known = self._counts.get(scope)
        if known is not None and known[0] == table.state.queries:
            return known[1]
        counts: dict[UUID, tuple[int, int]] = {}
        for query in self.queries(scope=scope):
            rows = {row.states: row.id for row in table.taken_by(query.id)}  # none for one that was added meanwhile
            for outcome in query.outcomes:
                if outcome.states in rows:
                    right, wrong = counts.get(rows[outcome.states], (0, 0))
                    counts[rows[outcome.states]] = (right + outcome.success, wrong + (not outcome.success))
        self._counts = {scope: (table.state.queries, counts)}
        return counts

    def neighbours(
        self, text: str, *, scope: Scope, k: int | None = None, exclude: str | None = None
    ) -> list[tuple[QueryNode, float]]:
        """Return the `k` most similar queries and their cosines, most similar first.

        k: default is that of the settings.  exclude: id (or name) of the query itself.

        Raises `InputError` for a blank text or a `k` below 0.
        """
        hits = self._near(text, scope, self.settings.neighbours if k is None else k, exclude, self._tables.of(scope))
        return [(query_of(hit.memory), hit.score) for hit in hits]

    def _near(self, text: str, scope: Scope, k: int, exclude: str | None, table: Table) -> list[MemoryHit]:
        vector = self._vector(text, k)
        if k == 0 or not table.queries.ids:
            return []
        own = _own(exclude)
        k = min(k, len(table.queries.ids))
        limit = k + _SPARE
        while True:
            hits = self._queries.nearest(vector, scope=scope, limit=limit)
            shown = [
                hit for hit in hits if hit.memory.id not in own and table.queries.place_of(hit.memory.id) is not None
            ]
            shown.sort(key=lambda hit: (-hit.score, hit.memory.recorded_at, hit.memory.id))
            if len(hits) < limit or (len(shown) >= k and hits[-1].score < shown[k - 1].score):
                return shown[:k]
            limit *= 4  # as similar as the last one wanted, so which of them come first is not known yet

    def _vector(self, text: str, k: int) -> Vector:
        if not text.strip() or text != storable(text) or k < 0:
            raise InputError(f"strategies for the query {text[:60]!r}, k = {k}: give a query in words, and 0 or more")
        return self._queries.query_vector(text)

    def speculate(self, text: str, *, scope: Scope, k: int | None = None, exclude: str | None = None) -> list[Strategy]:
        """Return M_spec: what success paths of the most similar queries lead to (section 4.1), nearest query first."""
        table = self._tables.of(scope)
        hits = self._near(text, scope, self.settings.neighbours if k is None else k, exclude, table)
        paths = [path for hit in hits for path in self._success_ids(table, query_of(hit.memory))]
        return table.led_to(paths)

    def activate(self, text: str, *, scope: Scope, exclude: str | None = None) -> Activation:
        """Return what a query activates: neighbours, paths, strategies, relevance and probability, with closed-form gradients.

        exclude: id (or name) of the query itself, so that it is not its own neighbour (the leakage rule).
        """
        table = self._tables.of(scope)
        hits = self._near(text, scope, self.settings.neighbours, exclude, table)
        similarities = np.maximum(np.array([hit.score for hit in hits], dtype=np.float64), 0.0)
        places = np.array([table.queries.place[hit.memory.id] for hit in hits], dtype=np.int64)
        paths, strategies, to_paths, to_strategies = activated(
            table.query_path.edges, table.path_strategy.edges, places, degree_normalised=self.settings.degree_normalised
        )
        rho = relevance(to_paths, to_strategies, similarities, len(paths), len(strategies))
        return Activation(
            query=text,
            query_id=exclude,
            version=table.state.weights,
            neighbours=tuple(table.queries.ids[place] for place in places.tolist()),
            similarities=similarities,
            paths=tuple(table.paths[place].id for place in paths.tolist()),
            strategies=tuple(table.resolved[place] for place in strategies.tolist()),
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
            every = self._tables.of(scope).current()
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
        table = self._tables.of(scope)
        known = self._vectors.get(scope)
        if known is None or known[0] != table.state.strategies:
            ids, rows = self._strategies.all_vectors(scope)
            known = (table.state.strategies, ids, rows)
            self._vectors = {scope: known}
        cosines = dict(zip(known[1], (known[2] @ vector).tolist(), strict=True))
        there = [each for each in table.current() if each.id in cosines]
        scores = np.array([cosines[each.id] for each in there], dtype=np.float64)
        return [ScoredStrategy(there[place], float(scores[place]), None, None) for place in _best(scores, k)]

    def log(self, *, scope: Scope, limit: int | None = None, run_id: str | None = None) -> list[MemoryOp]:
        """Return operations on queries and strategies, oldest first; with `limit`, the last ones."""
        both = [
            op
            for store in (self._queries, self._strategies)
            for op in store.log(scope=scope, limit=limit, run_id=run_id, newest=True)
        ]
        both.sort(key=lambda op: op.seq)
        return both if limit is None else both[len(both) - min(limit, len(both)) :]

    def _partition(self, scope: Scope) -> str:
        return scope.partition(STRATEGIES)


def _best(scores: Numbers, k: int) -> list[int]:
    return [int(place) for place in np.argsort(-scores, kind="stable")[:k]]


def _path(table: Table, place: int, counts: dict[UUID, tuple[int, int]]) -> PathNode:
    row = table.paths[place]
    right, wrong = counts[row.id]
    return PathNode.model_construct(id=row.id, machine=row.machine, states=row.states, n_success=right, n_failure=wrong)

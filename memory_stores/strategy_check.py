"""The invariants of a stored graph of strategies, checked: `memweave strategies check`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from memweave.graph_records import EdgeKind, GraphProblem, QueryNode, Strategy, path_id, query_node_id
from memweave.memory_stores.rows import memory_of
from memweave.memory_stores.schema import graph_edges, graph_paths, graph_snapshots, graph_steps, versions
from memweave.memory_stores.strategy_rows import query_of, strategy_of
from memweave.memory_stores.strategy_weights import ROLLBACK, STEP, saved
from memweave.records import Memory, Scope

T = TypeVar("T", QueryNode, Strategy)

_COLUMNS: Final = [column for column in versions.c if column.name != "vector"]


def problems(connection: Connection, queries: str, strategies: str, scope: Scope) -> list[GraphProblem]:
    """Return everything that must not be, as a transaction sees it. queries, strategies: the partitions of the two collections."""
    return list(_Check(connection, queries, strategies, scope).all())


class _Check:
    """What is there, read once."""

    def __init__(self, connection: Connection, queries: str, strategies: str, scope: Scope) -> None:
        self._connection = connection
        self._queries = self._memories(queries, scope)
        self._strategies = self._memories(strategies, scope)
        self._ever = {"query": self._ids(queries), "strategy": self._ids(strategies)}
        e, p = graph_edges, graph_paths
        self._edges = connection.execute(sa.select(e).where(e.c.partition == strategies).order_by(e.c.position)).all()
        self._paths = connection.execute(sa.select(p).where(p.c.partition == strategies).order_by(p.c.position)).all()
        self._partition = strategies

    def all(self) -> Iterator[GraphProblem]:
        """Yield the problems."""
        yield from self._of_paths()
        yield from self._of_edges()
        yield from self._of_queries()
        yield from self._of_strategies()
        yield from self._of_weights()

    def _memories(self, partition: str, scope: Scope) -> dict[UUID, Memory]:
        v = versions.c
        query = sa.select(*_COLUMNS).where(v.partition == partition, v.closed_seq.is_(None))
        found = [memory_of(row, scope) for row in self._connection.execute(query).mappings()]
        return {memory.id: memory for memory in found}

    def _ids(self, partition: str) -> set[str]:
        query = sa.select(versions.c.memory_id).where(versions.c.partition == partition).distinct()
        return set(self._connection.execute(query).scalars())

    def _of_paths(self) -> Iterator[GraphProblem]:
        reached = {edge.target for edge in self._edges if edge.kind == EdgeKind.QUERY_PATH.value}
        for row in self._paths:
            where = f"path {row.path_id}"
            if path_id(row.machine, json.loads(row.states)).hex != row.path_id:
                yield GraphProblem(where=where, what="its id is not that of its states")
            if row.path_id not in reached:
                yield GraphProblem(where=where, what="no query leads to it")

    def _of_edges(self) -> Iterator[GraphProblem]:
        paths = {row.path_id for row in self._paths}
        for edge in self._edges:
            where = f"edge {edge.source} -> {edge.target}"
            if edge.kind == EdgeKind.QUERY_PATH.value:
                ends = (("query", edge.source, self._ever["query"]), ("path", edge.target, paths))
            elif edge.kind == EdgeKind.PATH_STRATEGY.value:
                ends = (("path", edge.source, paths), ("strategy", edge.target, self._ever["strategy"]))
            else:
                yield GraphProblem(where=where, what=f"there is no kind of edge {edge.kind!r}")
                continue
            for name, end, there in ends:
                if end not in there:
                    yield GraphProblem(where=where, what=f"an orphan: its {name} never existed")
            if not math.isfinite(edge.weight) or edge.weight < 0:
                yield GraphProblem(where=where, what=f"its weight is {edge.weight}")
            if edge.updates < 0 or (not edge.updates and (edge.weight != edge.initial or edge.gap_sum)):
                yield GraphProblem(where=where, what="its weight changed without an update")

    def _of_queries(self) -> Iterator[GraphProblem]:
        states = {row.path_id: tuple(json.loads(row.states)) for row in self._paths}
        by_query: dict[str, set[tuple[str, ...]]] = {}
        for edge in self._edges:
            if edge.kind == EdgeKind.QUERY_PATH.value and edge.active and edge.target in states:
                by_query.setdefault(edge.source, set()).add(states[edge.target])
        for memory in self._queries.values():
            where = f"query {memory.id.hex}"
            query = _read(memory, query_of)
            if query is None:
                yield GraphProblem(where=where, what="it cannot be read")
                continue
            if query.id != query_node_id(query.name):
                yield GraphProblem(where=where, what="its id is not that of its name")
            took = {outcome.states for outcome in query.outcomes}
            there = by_query.get(memory.id.hex, set())
            if took - there:
                yield GraphProblem(where=where, what="no edge to a path that a rollout of it took")
            if there - took:
                yield GraphProblem(where=where, what="an edge to a path that no rollout of it took")

    def _of_strategies(self) -> Iterator[GraphProblem]:
        led = {e.target for e in self._edges if e.kind == EdgeKind.PATH_STRATEGY.value and e.active}
        for memory in self._strategies.values():
            where = f"strategy {memory.id.hex}"
            strategy = _read(memory, strategy_of)
            if strategy is None:
                yield GraphProblem(where=where, what="it cannot be read")
            elif memory.id.hex not in led:
                yield GraphProblem(where=where, what="no path leads to it")

    def _of_weights(self) -> Iterator[GraphProblem]:
        s, k = graph_steps, graph_snapshots
        steps = self._connection.execute(
            sa.select(s).where(s.c.partition == self._partition).order_by(s.c.position)
        ).all()
        version = touches = 0
        kept: dict[int, int] = {0: 0}
        for step in steps:
            where = f"version {step.version}"
            row: Mapping[str, object] = json.loads(step.row)
            edges = row.get("edges", 0)
            if step.kind == STEP and isinstance(edges, int):
                version, touches = version + bool(edges), touches + edges
            elif step.kind == ROLLBACK and row.get("to") in kept:
                to = row["to"]
                assert isinstance(to, int)  # it is a key of `kept`
                version, touches = version + 1, kept[to]
            else:
                yield GraphProblem(where=where, what=f"the log cannot be read: {step.kind} {step.row[:60]}")
            if (step.version, step.touches) != (version, touches):
                yield GraphProblem(where=where, what="it does not follow from the one before it")
                version, touches = step.version, step.touches
            kept[version] = touches
        present = sum(edge.updates for edge in self._edges)
        if present != touches:
            what = f"the edges have had {present} updates, the log says {touches}"
            yield GraphProblem(where=f"version {version}", what=what)
        there = {edge.position for edge in self._edges}
        for shot in self._connection.execute(sa.select(k).where(k.c.partition == self._partition)):
            where = f"version {shot.version}"
            rows = saved(shot.weights)
            told = shot.edges, shot.touches
            if kept.get(shot.version) != shot.touches or (len(rows), int(rows["updates"].sum())) != told:
                yield GraphProblem(where=where, what="its snapshot does not belong to it")
            if not set(rows["position"].tolist()) <= there:
                yield GraphProblem(where=where, what="its snapshot has weights of edges that do not exist")


def _read(memory: Memory, read: Callable[[Memory], T]) -> T | None:
    """Return a valid record, or `None`."""
    try:
        record = read(memory)
        return type(record).model_validate(record.model_dump())
    except (KeyError, TypeError, ValueError):
        return None

"""The invariants of a stored graph of strategies, checked: `memweave strategies check`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Final
from uuid import UUID

import numpy as np
import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.engine import Connection

from memweave.graph_records import EdgeKind, GraphProblem, QueryNode, Strategy, path_id, query_node_id
from memweave.memory_stores.rows import moment
from memweave.memory_stores.schema import graph_edges, graph_paths, graph_snapshots, graph_steps, versions
from memweave.memory_stores.strategy_rows import QUERY, STRATEGY
from memweave.memory_stores.strategy_weights import ROLLBACK, STEP, moves, places_of, present, saved
from memweave.records import Scope

_e, _p, _v = graph_edges.c, graph_paths.c, versions.c
_LARGE: Final = 1e300
"""Beyond it a weight is infinite, or no number."""


def problems(connection: Connection, queries: str, strategies: str, scope: Scope) -> list[GraphProblem]:
    """Return everything that must not be, as a transaction sees it. queries, strategies: the partitions of the two collections."""
    return list(_Check(connection, queries, strategies, scope).all())


class _Check:
    """What is there; the database says which of many rows are wrong, where it can."""

    def __init__(self, connection: Connection, queries: str, strategies: str, scope: Scope) -> None:
        self._connection = connection
        self._queries = queries
        self._partition = strategies
        self._scope = scope
        self._here = _e.partition == strategies
        p = graph_paths.c
        rows = connection.execute(sa.select(p.path_id, p.machine, p.states).where(p.partition == strategies))
        self._paths = {path: (machine, tuple(json.loads(states))) for path, machine, states in rows}

    def all(self) -> Iterator[GraphProblem]:
        """Yield the problems."""
        yield from self._of_paths()
        yield from self._of_ends()
        yield from self._of_edges()
        yield from self._of_queries()
        yield from self._of_strategies()
        yield from self._of_weights()
        yield from self._of_moves()
        yield from self._of_snapshots()

    def _of_paths(self) -> Iterator[GraphProblem]:
        reached = self._names(_e.target, EdgeKind.QUERY_PATH)
        for name, (machine, states) in self._paths.items():
            if path_id(machine, states).hex != name:
                yield GraphProblem(where=f"path {name}", what="its id is not that of its states")
            if name not in reached:
                yield GraphProblem(where=f"path {name}", what="no query leads to it")

    def _names(self, end: sa.ColumnElement[str], kind: EdgeKind, *conditions: sa.ColumnElement[bool]) -> set[str]:
        query = sa.select(end).where(self._here, _e.kind == kind.value, *conditions).distinct()
        return set(self._connection.execute(query).scalars().all())

    def _of_ends(self) -> Iterator[GraphProblem]:
        """Yield edges of which an end never existed."""
        for kind, end, name in (
            (EdgeKind.QUERY_PATH, _e.source, "query"),
            (EdgeKind.QUERY_PATH, _e.target, "path"),
            (EdgeKind.PATH_STRATEGY, _e.source, "path"),
            (EdgeKind.PATH_STRATEGY, _e.target, "strategy"),
        ):
            there = set(self._paths) if name == "path" else self._ever(name)
            for missing in self._names(end, kind) - there:
                rows = sa.select(_e.source, _e.target).where(self._here, _e.kind == kind.value, end == missing)
                for source, target in self._connection.execute(rows):
                    yield GraphProblem(where=f"edge {source} -> {target}", what=f"an orphan: its {name} never existed")

    def _ever(self, name: str) -> set[str]:
        partition = self._queries if name == "query" else self._partition
        return set(self._connection.execute(sa.select(_v.memory_id).where(_v.partition == partition)).scalars().all())

    def _of_edges(self) -> Iterator[GraphProblem]:
        kinds = [kind.value for kind in EdgeKind]
        wrong = sa.or_(
            _e.kind.not_in(kinds),
            _e.weight < 0,
            _e.weight > _LARGE,
            _e.updates < 0,
            sa.and_(_e.updates == 0, sa.or_(_e.weight != _e.initial, _e.gap_sum != 0)),
        )
        for edge in self._connection.execute(sa.select(graph_edges).where(self._here, wrong).order_by(_e.position)):
            where = f"edge {edge.source} -> {edge.target}"
            if edge.kind not in kinds:
                yield GraphProblem(where=where, what=f"there is no kind of edge {edge.kind!r}")
            if not 0 <= edge.weight <= _LARGE:
                yield GraphProblem(where=where, what=f"its weight is {edge.weight}")
            if edge.updates < 0 or (not edge.updates and (edge.weight != edge.initial or edge.gap_sum)):
                yield GraphProblem(where=where, what="its weight changed without an update")

    def _of_queries(self) -> Iterator[GraphProblem]:
        led: dict[str, set[str]] = {}
        edges = sa.select(_e.source, _e.target).where(self._here, _e.kind == EdgeKind.QUERY_PATH.value, _e.active == 1)
        for source, target in self._connection.execute(edges).all():
            led.setdefault(source, set()).add(target)
        for name, text, recorded_at, metadata in self._current(self._queries):
            where = f"query {name}"
            query = _read(QueryNode, self._scope, name, recorded_at, _said(metadata, QUERY) | {"text": text})
            if query is None:
                yield GraphProblem(where=where, what="it cannot be read")
                continue
            if query.id != query_node_id(query.name):
                yield GraphProblem(where=where, what="its id is not that of its name")
            took = {outcome.states for outcome in query.outcomes}
            there = {self._paths[path][1] for path in led.get(name, ()) if path in self._paths}
            if took - there:
                yield GraphProblem(where=where, what="no edge to a path that a rollout of it took")
            if there - took:
                yield GraphProblem(where=where, what="an edge to a path that no rollout of it took")

    def _current(self, partition: str) -> Iterator[tuple[str, str, int, str]]:
        query = sa.select(_v.memory_id, _v.text, _v.recorded_at, _v.metadata)
        for row in self._connection.execute(query.where(_v.partition == partition, _v.closed_seq.is_(None))).all():
            yield row.memory_id, row.text, row.recorded_at, row.metadata

    def _of_strategies(self) -> Iterator[GraphProblem]:
        led = self._names(_e.target, EdgeKind.PATH_STRATEGY, _e.active == 1)
        for name, text, recorded_at, metadata in self._current(self._partition):
            where = f"strategy {name}"
            said = _said(metadata, STRATEGY) | {"summary": text, "version": 1}
            if _read(Strategy, self._scope, name, recorded_at, said) is None:
                yield GraphProblem(where=where, what="it cannot be read")
            elif name not in led:
                yield GraphProblem(where=where, what="no path leads to it")

    @cached_property
    def _log(self) -> tuple[dict[int, int], dict[int, int], list[GraphProblem]]:
        """What the log says: by version the updates of all edges, and the edges of the step that made it; and what is wrong with it."""
        s = graph_steps.c
        version = touches = 0
        kept, edges_of, wrong = {0: 0}, {}, []
        query = sa.select(s.version, s.touches, s.kind, s.row).where(s.partition == self._partition)
        for step in self._connection.execute(query.order_by(s.position)).all():
            where = f"version {step.version}"
            row: Mapping[str, object] = json.loads(step.row)
            edges = row.get("edges", 0)
            to = row.get("to")
            if step.kind == STEP and isinstance(edges, int):
                version, touches = version + bool(edges), touches + edges
                if edges:
                    edges_of[version] = edges
            elif step.kind == ROLLBACK and isinstance(to, int) and to in kept:
                version, touches = version + 1, kept[to]
            else:
                wrong.append(GraphProblem(where=where, what=f"the log cannot be read: {step.kind} {step.row[:60]}"))
            if (step.version, step.touches) != (version, touches):
                wrong.append(GraphProblem(where=where, what="it does not follow from the one before it"))
                version, touches = step.version, step.touches
            kept[version] = touches
        return kept, edges_of, wrong

    def _of_weights(self) -> Iterator[GraphProblem]:
        kept, _, wrong = self._log
        yield from wrong
        version = list(kept)[-1]
        updates = int(present(self._connection, self._partition)["updates"].sum())
        if updates != kept[version]:
            what = f"the edges have had {updates} updates, the log says {kept[version]}"
            yield GraphProblem(where=f"version {version}", what=what)

    def _of_moves(self) -> Iterator[GraphProblem]:
        _, edges_of, _ = self._log
        for move in moves(self._connection, self._partition):
            where = f"version {move.version}"
            if edges_of.get(move.version) != len(np.unique(move.position)):
                yield GraphProblem(where=where, what="what its step moved is not what the log says")
            if not places_of(move.position, self._positions)[1].all():
                yield GraphProblem(where=where, what="its step moved edges that do not exist")
            if not ((move.weight >= 0) & (move.weight <= _LARGE)).all():
                yield GraphProblem(where=where, what="its step moved weights out of their range")

    @cached_property
    def _positions(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        query = sa.select(_e.position).where(self._here).order_by(_e.position)
        return np.array(list(self._connection.execute(query).scalars().all()), dtype=np.int64)

    def _of_snapshots(self) -> Iterator[GraphProblem]:
        k, (kept, _, _) = graph_snapshots.c, self._log
        for shot in self._connection.execute(sa.select(graph_snapshots).where(k.partition == self._partition)):
            where = f"version {shot.version}"
            rows = saved(shot.weights)
            if kept.get(shot.version) != shot.touches or (len(rows), int(rows["updates"].sum())) != (
                shot.edges,
                shot.touches,
            ):
                yield GraphProblem(where=where, what="its snapshot does not belong to it")
            if not places_of(rows["position"], self._positions)[1].all():
                yield GraphProblem(where=where, what="its snapshot has weights of edges that do not exist")


def _said(metadata: str, kind: str) -> dict[str, Any]:
    """Return what a memory's metadata say of a node; nothing when they do not."""
    said = json.loads(metadata)
    inner = said.get(kind) if isinstance(said, dict) else None
    return inner if isinstance(inner, dict) else {}


def _read(
    record: type[QueryNode] | type[Strategy], scope: Scope, name: str, recorded_at: int, said: Mapping[str, Any]
) -> Any:
    """Return a valid record, or `None`."""
    try:
        return record.model_validate({**said, "id": UUID(hex=name), "scope": scope, "recorded_at": moment(recorded_at)})
    except (ValidationError, ValueError):
        return None

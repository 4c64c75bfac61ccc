"""The graph of one scope in memory, as arrays, and how it is read and kept up to date."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from uuid import UUID

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from memweave.errors import ConflictError
from memweave.graph_records import Edge, EdgeKind, EdgeStep, Strategy
from memweave.memory_stores.ledger import Ledger
from memweave.memory_stores.rows import memory_of
from memweave.memory_stores.schema import graph_edges, graph_paths, versions
from memweave.memory_stores.strategy_activation import Numbers, Places, Sparse, sparse
from memweave.memory_stores.strategy_rows import strategy_of
from memweave.memory_stores.strategy_weights import head
from memweave.records import Scope

_e, _p, _v = graph_edges.c, graph_paths.c, versions.c


@dataclass(frozen=True, slots=True)
class State:
    """Which state of a scope's graph it is."""

    nodes: str
    """Last operations on queries and on strategies."""
    weights: int
    """Version of the weights."""


@dataclass(frozen=True, slots=True)
class PathRow:
    """A path without its counts."""

    id: UUID
    machine: str
    states: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """Edges of one kind between current nodes."""

    edges: Sparse
    position: Places
    """(edges,): in the ledger's table."""
    place: Mapping[tuple[UUID, UUID], int]
    """By source and target, where an edge is in `edges`."""

    def with_weights(self, weights: Numbers) -> Layer:
        """Return the same edges with other weights."""
        return replace(self, edges=replace(self.edges, weight=weights))


@dataclass(frozen=True, slots=True)
class Table:
    """A scope's graph at one moment; never written to."""

    state: State
    queries: tuple[UUID, ...]
    """In the order in which they were added."""
    query_place: Mapping[UUID, int]
    paths: tuple[PathRow, ...]
    path_place: Mapping[UUID, int]
    strategies: tuple[Strategy, ...]
    """In the order in which they were first written."""
    query_path: Layer
    path_strategy: Layer

    def layer(self, kind: EdgeKind) -> Layer:
        """Return the edges of a kind."""
        return self.query_path if kind is EdgeKind.QUERY_PATH else self.path_strategy

    def stepped(self, step: EdgeStep, bounds: tuple[float, float]) -> tuple[Table, list[tuple[int, float]]]:
        """Return the graph after a step, and position and weight of the edges that it touched.

        Raises `ConflictError` when an edge of the step is not in the graph.
        """
        weights = {kind: self.layer(kind).edges.weight.copy() for kind in EdgeKind}
        touched = []
        for delta in step.deltas:
            layer = self.layer(delta.kind)
            place = layer.place.get((delta.source, delta.target))
            if place is None:
                raise ConflictError(
                    f"the edge {delta.source} -> {delta.target} of this step is not in the graph (any more). "
                    "Activate again and make a new step; nothing was changed."
                )
            weight = min(max(float(weights[delta.kind][place]) + delta.delta, bounds[0]), bounds[1])
            weights[delta.kind][place] = weight
            touched.append((int(layer.position[place]), weight))
        return self.with_weights(weights, self.state.weights + bool(touched)), touched

    def with_weights(self, weights: Mapping[EdgeKind, Numbers], version: int) -> Table:
        """Return the same graph with other weights, (edges,) of each kind."""
        return replace(
            self,
            state=State(self.state.nodes, version),
            query_path=self.query_path.with_weights(weights[EdgeKind.QUERY_PATH]),
            path_strategy=self.path_strategy.with_weights(weights[EdgeKind.PATH_STRATEGY]),
        )


def state_of(ledger: Ledger, scope_partitions: tuple[str, str]) -> State:
    """Return the present state of a graph, by one quick look. scope_partitions: of queries and of strategies; 32 hex digits each."""
    queries, strategies = scope_partitions
    last = "COALESCE((SELECT MAX(seq) FROM memweave_ops WHERE partition = '{}'), 0)"
    version = f"COALESCE((SELECT version FROM memweave_graph_steps WHERE partition = '{strategies}' ORDER BY position DESC LIMIT 1), 0)"
    asked = f"SELECT {last.format(queries)} || '/' || {last.format(strategies)} || '/' || {version}"
    nodes, _, weights = str(ledger.database.peek(asked)).rpartition("/")
    return State(nodes, int(weights))


def read_table(ledger: Ledger, scope: Scope, scope_partitions: tuple[str, str], state: State) -> Table:
    """Read a scope's graph, from one moment.

    state: the one that was looked at before; the table may be newer than it says, and is then read again at the next look.
    """
    partition = scope_partitions[1]
    with ledger.database.read() as connection:
        at = head(connection, partition).version
        queries = _query_ids(connection, scope_partitions[0])
        strategies = _strategies(connection, scope, partition)
        rows = connection.execute(
            sa.select(_p.path_id, _p.machine, _p.states).where(_p.partition == partition).order_by(_p.position)
        )
        paths = tuple(PathRow(UUID(hex=path), machine, tuple(json.loads(states))) for path, machine, states in rows)
        query_place = {each: place for place, each in enumerate(queries)}
        path_place = {each.id: place for place, each in enumerate(paths)}
        strategy_place = {each.id: place for place, each in enumerate(strategies)}
        return Table(
            State(state.nodes, at),
            queries,
            query_place,
            paths,
            path_place,
            strategies,
            _layer(connection, partition, EdgeKind.QUERY_PATH, query_place, path_place),
            _layer(connection, partition, EdgeKind.PATH_STRATEGY, path_place, strategy_place),
        )


def with_present_weights(ledger: Ledger, partition: str, table: Table) -> Table | None:
    """Return a table with the weights that the ledger has now, its nodes and edges being the same; `None` when they are not."""
    with ledger.database.read() as connection:
        at = head(connection, partition).version
        query = sa.select(_e.position, _e.weight).where(_e.partition == partition)
        present = {row.position: row.weight for row in connection.execute(query)}
    positions = {kind: table.layer(kind).position.tolist() for kind in EdgeKind}
    if any(each not in present for every in positions.values() for each in every):
        return None  # purged meanwhile
    weights = {kind: np.array([present[each] for each in every], dtype=np.float64) for kind, every in positions.items()}
    return table.with_weights(weights, at)


def edge_rows(connection: Connection, partition: str, table: Table, kind: EdgeKind | None) -> list[Edge]:
    """Return the edges of a table, in the order in which they were made."""
    found = []
    query = sa.select(_e.kind, _e.source, _e.target, _e.weight, _e.updates, _e.gap_sum).where(_e.partition == partition)
    for row in connection.execute(query.order_by(_e.position)):
        of, source, target = EdgeKind(row.kind), UUID(hex=row.source), UUID(hex=row.target)
        if kind in (None, of) and (source, target) in table.layer(of).place:
            found.append(
                Edge.model_construct(
                    kind=of, source=source, target=target, weight=row.weight, updates=row.updates, gap_sum=row.gap_sum
                )
            )
    return found


def _query_ids(connection: Connection, partition: str) -> tuple[UUID, ...]:
    current = sa.select(_v.memory_id, _v.recorded_at).where(_v.partition == partition, _v.closed_seq.is_(None))
    rows = connection.execute(current).all()
    return tuple(UUID(hex=row.memory_id) for row in sorted(rows, key=lambda row: (row.recorded_at, row.memory_id)))


def _strategies(connection: Connection, scope: Scope, partition: str) -> tuple[Strategy, ...]:
    columns = [column for column in versions.c if column.name != "vector"]
    current = sa.select(*columns).where(_v.partition == partition, _v.closed_seq.is_(None)).order_by(_v.memory_id)
    return tuple(strategy_of(memory_of(row, scope)) for row in connection.execute(current).mappings())


def _layer(
    connection: Connection, partition: str, kind: EdgeKind, sources: Mapping[UUID, int], targets: Mapping[UUID, int]
) -> Layer:
    query = (
        sa.select(_e.position, _e.source, _e.target, _e.weight)
        .where(_e.partition == partition, _e.kind == kind.value, _e.active == 1)
        .order_by(_e.position)
    )
    names, positions, edges = [], [], []
    for position, source, target, weight in connection.execute(query):
        name = UUID(hex=source), UUID(hex=target)
        if name[0] in sources and name[1] in targets:  # both ends are current
            names.append(name)
            positions.append(position)
            edges.append((sources[name[0]], targets[name[1]], weight))
    found, order = sparse(len(sources), edges)
    return Layer(
        found,
        np.array(positions, dtype=np.int64)[order],
        {names[old]: new for new, old in enumerate(order.tolist())},
    )

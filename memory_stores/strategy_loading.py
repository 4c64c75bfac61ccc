"""How a scope's graph gets into memory: read as a whole, and kept up to date by what changed since.

A change of nodes is found in the log: the operations say which queries and strategies changed, and an edge says which operation made it. A
change of weights is found in the steps' own rows. What cannot be followed that way is read as a whole again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from memweave.graph_records import EdgeKind
from memweave.memory_stores.ledger import Ledger
from memweave.memory_stores.rows import memory_of
from memweave.memory_stores.schema import graph_edges, graph_paths, ops, versions
from memweave.memory_stores.strategy_activation import sparse
from memweave.memory_stores.strategy_rows import strategy_of
from memweave.memory_stores.strategy_table import Layer, Nodes, PathRow, State, Table
from memweave.memory_stores.strategy_weights import Move, moves, places_of, present
from memweave.records import Scope

_FOLLOWED: Final = 500
"""Operations since; with more, reading everything takes no longer."""
_CHUNK: Final = 500
_e, _o, _p, _v = graph_edges.c, ops.c, graph_paths.c, versions.c
_PURGE: Final = "PURGE"
_EDGES: Final = sa.select(_e.position, _e.kind, _e.source, _e.target, _e.weight, _e.active)
_STRATEGIES: Final = sa.select(*(column for column in versions.c if column.name != "vector"))

Partitions = tuple[str, str]
"""Of a scope's queries and of its strategies; 32 hex digits each."""
_NEW: Final = np.dtype([("position", "<i8"), ("source", "<i8"), ("target", "<i8"), ("weight", "<f8"), ("active", "?")])
_EdgeRow = tuple[int, str, str, str, float, int]


def state_of(ledger: Ledger, partitions: Partitions) -> State:
    """Return the present state of a graph, by one quick look."""
    return _told(ledger.database.peek(_look(partitions)))


def _look(partitions: Partitions) -> str:
    queries, strategies = partitions
    last = "COALESCE((SELECT MAX(seq) FROM memweave_ops WHERE partition = '{}'), 0)"
    version = f"COALESCE((SELECT version FROM memweave_graph_steps WHERE partition = '{strategies}' ORDER BY position DESC LIMIT 1), 0)"
    return f"SELECT {last.format(queries)} || '/' || {last.format(strategies)} || '/' || {version}"


def _told(found: object) -> State:
    return State(*(int(part) for part in str(found).split("/")))


def read_table(ledger: Ledger, scope: Scope, partitions: Partitions) -> Table:
    """Read a scope's graph, from one moment."""
    queries, partition = partitions
    with ledger.database.read() as connection:
        state = _told(connection.exec_driver_sql(_look(partitions)).scalar())
        current = sa.select(_v.memory_id).where(_v.partition == queries, _v.closed_seq.is_(None))
        query_nodes = _nodes(UUID(hex=name) for name in connection.execute(current).scalars().all())
        written = _STRATEGIES.where(_v.partition == partition, _v.closed_seq.is_(None)).order_by(_v.memory_id)
        strategies = [strategy_of(memory_of(row, scope)) for row in connection.execute(written).mappings()]
        paths = _paths(connection, partition, after=0)
        table = Table(
            state, query_nodes, paths, {row.id: place for place, row in enumerate(paths)},
            _nodes(each.id for each in strategies), tuple(strategies), _no_edges(), _no_edges(),
        )  # fmt: skip
        rows = connection.execute(_EDGES.where(_e.partition == partition).order_by(_e.position)).all()
        read = _with_edges(table, rows)
        assert read is not None  # it knew none, so it misses none
        return _moved(read, moves(connection, partition))


def caught_up(ledger: Ledger, scope: Scope, partitions: Partitions, known: Table) -> Table | None:
    """Return a scope's graph as it is now, of the one that was known; `None` when it must be read as a whole."""
    with ledger.database.read() as connection:
        state = _told(connection.exec_driver_sql(_look(partitions)).scalar())
        table: Table | None = known
        if state.nodes != known.state.nodes:
            changes = _changes(connection, partitions, known.state)
            table = _with_changes(connection, scope, partitions, known, changes) if changes else None
        if table is None:
            return None
        return _with_weights(connection, partitions[1], replace(table, state=state), since=known.state.weights)


@dataclass(frozen=True, slots=True)
class _Changes:
    """What operations since a state concern, as hex digits."""

    queries: frozenset[str]
    strategies: frozenset[str]
    op_ids: tuple[str, ...]
    """Of these operations, and of those that they took back."""


def _changes(connection: Connection, partitions: Partitions, since: State) -> _Changes | None:
    later = [sa.and_(_o.partition == each, _o.seq > seq) for each, seq in zip(partitions, since.nodes, strict=True)]
    query = sa.select(_o.partition, _o.op_id, _o.kind, _o.memory_id, _o.undoes).where(sa.or_(*later))
    rows = connection.execute(query.limit(_FOLLOWED + 1)).all()
    if len(rows) > _FOLLOWED or any(row.kind == _PURGE for row in rows):
        return None
    found = {row.op_id for row in rows}
    undone = {row.undoes for row in rows if row.undoes} - found
    while undone:  # an undo of an undo brings back what the first operation made
        found |= undone
        chain = sa.select(_o.undoes).where(_o.partition.in_(partitions), _o.op_id.in_(undone), _o.undoes.is_not(None))
        undone = set(connection.execute(chain).scalars()) - found
    of = {each: frozenset(row.memory_id for row in rows if row.partition == each) - {None} for each in partitions}
    return _Changes(of[partitions[0]], of[partitions[1]], tuple(found))


def _with_changes(
    connection: Connection, scope: Scope, partitions: Partitions, known: Table, changes: _Changes
) -> Table | None:
    """Return a table after changes of nodes and their edges; `None` when something comes back that it does not know."""
    queries, partition = partitions
    current = sa.select(_v.memory_id).where(_v.closed_seq.is_(None))
    there = {
        UUID(hex=name): None
        for chunk in _chunks(changes.queries)
        for name in connection.execute(current.where(_v.partition == queries, _v.memory_id.in_(chunk))).scalars()
    }
    written = {
        strategy.id: strategy
        for chunk in _chunks(changes.strategies)
        for row in connection.execute(
            _STRATEGIES.where(_v.partition == partition, _v.memory_id.in_(chunk), _v.closed_seq.is_(None))
        ).mappings()
        if (strategy := strategy_of(memory_of(row, scope)))
    }
    query_nodes, new_queries = _changed(known.queries, changes.queries, there)
    strategy_nodes, new_strategies = _changed(known.strategies, changes.strategies, sorted(written))
    if new_strategies and known.strategies.ids and new_strategies[0] < known.strategies.ids[-1]:
        return None  # places are in the order of ids
    for since, new, of in (
        (known.state.queries, new_queries, queries),
        (known.state.strategies, new_strategies, partition),
    ):
        if _older(connection, of, new, since):
            return None  # it was there before this table was read, and its edges were not
    resolved = [written.get(each.id, each) for each in known.resolved]
    paths = (*known.paths, *_paths(connection, partition, after=known.paths[-1].position if known.paths else 0))
    table = replace(
        known,
        queries=query_nodes,
        paths=paths,
        path_place={row.id: place for place, row in enumerate(paths)},
        strategies=strategy_nodes,
        resolved=(*resolved, *(written[each] for each in new_strategies)),
    )
    rows: list[_EdgeRow] = []
    for chunk in _chunks(changes.op_ids):
        rows += connection.execute(_EDGES.where(_e.partition == partition, _e.op_id.in_(chunk))).all()
    return _with_edges(table, sorted(rows))


def _changed(nodes: Nodes, touched: Iterable[str], there: Iterable[UUID]) -> tuple[Nodes, list[UUID]]:
    """Return nodes after some were touched of which those that are there are current, and the new ones among these."""
    present_ids = dict.fromkeys(there)
    current = nodes.current.copy()
    for name in touched:
        node = UUID(hex=name)
        if node in nodes.place:
            current[nodes.place[node]] = node in present_ids
    new = [node for node in present_ids if node not in nodes.place]
    if not new:
        return replace(nodes, current=current), new
    place = {**nodes.place, **{node: len(nodes.ids) + number for number, node in enumerate(new)}}
    return Nodes((*nodes.ids, *new), place, np.concatenate([current, np.ones(len(new), dtype=bool)])), new


def _older(connection: Connection, partition: str, nodes: Sequence[UUID], since: int) -> bool:
    """Return whether any of the nodes had a version by then."""
    return any(
        connection.execute(
            sa.select(_v.memory_id)
            .where(_v.partition == partition, _v.memory_id.in_(chunk), _v.opened_seq <= since)
            .limit(1)
        ).first()
        for chunk in _chunks([node.hex for node in nodes])
    )


def _with_edges(table: Table, rows: Sequence[_EdgeRow]) -> Table | None:
    """Return a table with edges that are new or changed, by position; `None` for one that it should have known.

    An edge is left out when it has an end that the table never had.
    """
    layers = {}
    for kind in EdgeKind:
        name = kind.value
        layer = _grown(table, kind, [row for row in rows if row[1] == name])
        if layer is None:
            return None
        layers[kind] = layer
    return table.with_layers(layers, table.state)


def _grown(table: Table, kind: EdgeKind, rows: Sequence[_EdgeRow]) -> Layer | None:
    layer = table.layer(kind)
    first_place, last_place = table.ends(kind)
    sources, targets = _by_name(first_place, (row[2] for row in rows)), _by_name(last_place, (row[3] for row in rows))
    active, place = layer.active.copy(), dict(layer.place)
    last = int(layer.position[-1]) if len(layer.position) else 0
    new: list[tuple[int, int, int, float, bool]] = []
    for position, _, name, other, initial, is_active in rows:
        first, second = sources.get(name), targets.get(other)
        if first is None or second is None:
            continue
        key = layer.key(first, second)
        if key in place:
            active[place[key]] = bool(is_active)
        elif position <= last:
            return None
        else:
            place[key] = len(layer.position) + len(new)
            new.append((position, first, second, initial, bool(is_active)))
    added = np.array(new, dtype=_NEW)
    source = np.concatenate([layer.source, added["source"]])
    target = np.concatenate([layer.edges.target, added["target"]])
    weight = np.concatenate([layer.edges.weight, added["weight"]])
    active = np.concatenate([active, added["active"]])
    where = np.concatenate([layer.position, added["position"]])
    counts = table.counts(kind, source, target, active)
    count = len(table.queries.ids) if kind is EdgeKind.QUERY_PATH else len(table.paths)
    return Layer(sparse(count, source, target, weight, counts), source, active, where, place)


def _by_name(place: Mapping[UUID, int], names: Iterable[str]) -> dict[str, int | None]:
    return {name: place.get(UUID(hex=name)) for name in set(names)}


def _with_weights(connection: Connection, partition: str, table: Table, *, since: int) -> Table | None:
    """Return a table with the weights that there are now; `None` when an edge of it is not there any more.

    since: the version of the weights that its edges have, but for new ones.
    """
    if table.state.weights == since:
        return table
    later = moves(connection, partition, after=since)
    if [move.version for move in later] == list(range(since + 1, table.state.weights + 1)):
        return _moved(table, later)
    rows, layers = present(connection, partition), {}  # gone back, or settled meanwhile
    for kind in EdgeKind:
        layer = table.layer(kind)
        place, there = places_of(layer.position, rows["position"])
        if not there.all():
            return None
        layers[kind] = layer.with_weights(rows["weight"][place])
    return table.with_layers(layers, table.state)


def _moved(table: Table, given: Sequence[Move]) -> Table:
    """Return a table after steps."""
    layers = {}
    for kind in EdgeKind:
        layer = table.layer(kind)
        weight = layer.edges.weight.copy()
        for move in given:
            place, there = places_of(move.position, layer.position)
            weight[place] = move.weight[there]
        layers[kind] = layer.with_weights(weight)
    return table.with_layers(layers, table.state)


def _paths(connection: Connection, partition: str, *, after: int) -> tuple[PathRow, ...]:
    query = sa.select(_p.position, _p.path_id, _p.machine, _p.states).where(
        _p.partition == partition, _p.position > after
    )
    rows = connection.execute(query.order_by(_p.position)).all()
    return tuple(PathRow(at, UUID(hex=path), machine, tuple(json.loads(states))) for at, path, machine, states in rows)


def _nodes(ids: Iterable[UUID]) -> Nodes:
    known = tuple(ids)
    return Nodes(known, {node: place for place, node in enumerate(known)}, np.ones(len(known), dtype=bool))


def _no_edges() -> Layer:
    none = np.zeros(0, dtype=np.int64)
    flags = np.zeros(0, dtype=bool)
    return Layer(sparse(0, none, none, np.zeros(0)), none, flags, none, {})


def _chunks(names: Iterable[str]) -> list[list[str]]:
    every = list(names)
    return [every[start : start + _CHUNK] for start in range(0, len(every), _CHUNK)]

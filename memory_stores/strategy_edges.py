"""Paths and edges of a graph of strategies in the ledger's database: made, found, taken away and brought back.

Everything here works in a transaction that somebody else opened and goes by the partition of a scope's strategies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from memweave.graph_records import EdgeKind, States
from memweave.memory_stores.probes import reached
from memweave.memory_stores.schema import graph_edges, graph_paths

_CHUNK: Final = 200
_e, _p = graph_edges.c, graph_paths.c

Ends = tuple[UUID, UUID]
"""Source and target of an edge."""


def add_paths(
    connection: Connection, partition: str, machine: str, paths: Iterable[tuple[UUID, Sequence[str]]]
) -> None:
    """Insert the paths that are new."""
    given = dict(paths)
    known = known_paths(connection, partition, list(given))
    rows = [
        {
            "partition": partition,
            "path_id": path.hex,
            "machine": machine,
            "states": json.dumps(states, ensure_ascii=False),
        }
        for path, states in given.items()
        if path not in known
    ]
    if rows:
        connection.execute(sa.insert(graph_paths), rows)


def known_paths(connection: Connection, partition: str, paths: Sequence[UUID]) -> set[UUID]:
    """Return those of the paths that exist."""
    found = set()
    for start in range(0, len(paths), _CHUNK):
        names = [path.hex for path in paths[start : start + _CHUNK]]
        query = sa.select(_p.path_id).where(_p.partition == partition, _p.path_id.in_(names))
        found |= {UUID(hex=name) for name in connection.execute(query).scalars().all()}
    return found


def add_edges(
    connection: Connection, partition: str, kind: EdgeKind, edges: Sequence[Ends], *, initial: float, op_id: UUID
) -> int:
    """Make edges, and return how many there were not. One that an undo had taken away comes back with the weight it had."""
    known = _active(connection, partition, kind, edges)
    wanted = list(dict.fromkeys(edges))
    rows = [
        {
            "partition": partition, "kind": kind.value, "source": source.hex, "target": target.hex, "initial": initial,
            "weight": initial, "updates": 0, "gap_sum": 0.0, "active": 1, "op_id": op_id.hex,
        }
        for source, target in wanted
        if (source, target) not in known
    ]  # fmt: skip
    if rows:
        connection.execute(sa.insert(graph_edges), rows)
    undone = [ends for ends in wanted if known.get(ends) is False]
    for source, target in undone:
        here = sa.and_(
            _e.partition == partition, _e.kind == kind.value, _e.source == source.hex, _e.target == target.hex
        )
        connection.execute(sa.update(graph_edges).where(here).values(active=1, op_id=op_id.hex))
    reached("graph:edges")
    return len(rows) + len(undone)


def missing_edges(connection: Connection, partition: str, kind: EdgeKind, edges: Sequence[Ends]) -> list[Ends]:
    """Return those of the edges that are not there, or are undone."""
    known = _active(connection, partition, kind, edges)
    return [ends for ends in dict.fromkeys(edges) if not known.get(ends)]


def _active(connection: Connection, partition: str, kind: EdgeKind, edges: Sequence[Ends]) -> dict[Ends, bool]:
    """Return those of the edges that exist, and whether they are active."""
    found = {}
    for start in range(0, len(edges), _CHUNK):
        sources, targets = ({end.hex for end in ends} for ends in zip(*edges[start : start + _CHUNK], strict=True))
        query = sa.select(_e.source, _e.target, _e.active).where(
            _e.partition == partition, _e.kind == kind.value, _e.source.in_(sources), _e.target.in_(targets)
        )
        for source, target, active in connection.execute(query):
            found[UUID(hex=source), UUID(hex=target)] = bool(active)
    return found


def toggle_edges(connection: Connection, partition: str, op_id: UUID) -> None:
    """Take away the edges that an operation made, or bring them back."""
    here = sa.and_(_e.partition == partition, _e.op_id == op_id.hex)
    connection.execute(sa.update(graph_edges).where(here).values(active=1 - _e.active))


def set_taken(connection: Connection, partition: str, query: UUID, taken: Sequence[States]) -> None:
    """Let a query lead to the paths that it took, and to no other."""
    here = sa.and_(_e.partition == partition, _e.kind == EdgeKind.QUERY_PATH.value, _e.source == query.hex)
    known = {json.dumps(states, ensure_ascii=False) for states in taken}  # as `add_paths` writes them
    rows = connection.execute(
        sa.select(_e.position, _p.states).where(here, _p.partition == partition, _p.path_id == _e.target)
    ).all()
    for position, states in rows:
        update = sa.update(graph_edges).where(_e.position == position)
        connection.execute(update.values(active=int(states in known)))

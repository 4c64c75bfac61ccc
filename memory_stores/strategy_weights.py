"""Edges of a graph of strategies and their weights, in the ledger's database: links, steps, snapshots, and going back.

Everything here works in a transaction that somebody else opened and goes by the partition of a scope's strategies.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import numpy as np
import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from memweave.errors import InputError
from memweave.graph_records import EdgeKind, EdgeStep, WeightUpdate, WeightVersion
from memweave.memory_stores.ledger import LedgerTransaction
from memweave.memory_stores.probes import reached
from memweave.memory_stores.rows import micros, moment
from memweave.memory_stores.schema import graph_edges, graph_paths, graph_snapshots, graph_steps

STEP: Final = "step"
ROLLBACK: Final = "rollback"
SNAPSHOTS_KEPT: Final = 100
"""Automatic snapshots of a scope; the oldest go. Those that somebody asked for stay."""
SAVED: Final = np.dtype([("position", "<i8"), ("weight", "<f8"), ("updates", "<i8"), ("gap_sum", "<f8")])
_CHUNK: Final = 500

_e, _p, _s, _k = graph_edges.c, graph_paths.c, graph_steps.c, graph_snapshots.c
_HEAD: Final = (
    sa.select(_s.version, _s.touches, _s.recorded_at)
    .where(_s.partition == bindparam("in_partition"))
    .order_by(_s.position.desc())
    .limit(1)
)
_SET_WEIGHT: Final = (
    "UPDATE memweave_graph_edges SET weight = {0}, updates = updates + 1, gap_sum = gap_sum + {0} WHERE position = {0}"
)
"""For the driver itself, whose sign for a parameter is filled in: a step has a hundred rows, for which the toolkit takes longer than the
database."""
_RESTORE: Final = (
    sa.update(graph_edges)
    .where(_e.position == bindparam("at_position"))
    .values(weight=bindparam("to_weight"), updates=bindparam("to_updates"), gap_sum=bindparam("to_gap"))
)
_INSERT_STEP: Final = sa.insert(graph_steps)


@dataclass(frozen=True, slots=True)
class Head:
    """Where the weights of a scope are."""

    version: int
    touches: int
    """Sum of `updates` over all edges."""


def add_paths(
    connection: Connection, partition: str, machine: str, paths: Iterable[tuple[UUID, Sequence[str]]]
) -> None:
    """Insert the paths that are new."""
    given = {path.hex: states for path, states in paths}
    known = set(
        connection.execute(
            sa.select(_p.path_id).where(_p.partition == partition, _p.path_id.in_(list(given)))
        ).scalars()
    )
    rows = [
        {"partition": partition, "path_id": path, "machine": machine, "states": json.dumps(states, ensure_ascii=False)}
        for path, states in given.items()
        if path not in known
    ]
    if rows:
        connection.execute(sa.insert(graph_paths), rows)


def known_paths(connection: Connection, partition: str, paths: Sequence[UUID]) -> set[UUID]:
    """Return those of the paths that exist."""
    query = sa.select(_p.path_id).where(_p.partition == partition, _p.path_id.in_([path.hex for path in paths]))
    return {UUID(hex=found) for found in connection.execute(query).scalars()}


def add_edges(
    connection: Connection,
    partition: str,
    kind: EdgeKind,
    edges: Sequence[tuple[UUID, UUID]],
    *,
    initial: float,
    op_id: UUID,
) -> int:
    """Make edges, and return how many there were not. One that an undo had taken away comes back with the weight it had."""
    added = 0
    for source, target in dict.fromkeys(edges):
        here = sa.and_(
            _e.partition == partition, _e.kind == kind.value, _e.source == source.hex, _e.target == target.hex
        )
        active = connection.execute(sa.select(_e.active).where(here)).scalar()
        if active is None:
            row = {
                "partition": partition, "kind": kind.value, "source": source.hex, "target": target.hex, "initial": initial,
                "weight": initial, "updates": 0, "gap_sum": 0.0, "active": 1, "op_id": op_id.hex,
            }  # fmt: skip
            connection.execute(sa.insert(graph_edges), row)
        elif not active:
            connection.execute(sa.update(graph_edges).where(here).values(active=1, op_id=op_id.hex))
        added += not active
    reached("graph:edges")
    return added


def missing_edges(
    connection: Connection, partition: str, kind: EdgeKind, edges: Sequence[tuple[UUID, UUID]]
) -> list[tuple[UUID, UUID]]:
    """Return those of the edges that are not there, or are undone."""
    out = []
    for source, target in dict.fromkeys(edges):
        here = sa.and_(
            _e.partition == partition, _e.kind == kind.value, _e.source == source.hex, _e.target == target.hex
        )
        if not connection.execute(sa.select(_e.active).where(here)).scalar():
            out.append((source, target))
    return out


def toggle_edges(connection: Connection, partition: str, op_id: UUID) -> None:
    """Take away the edges that an operation made, or bring them back."""
    here = sa.and_(_e.partition == partition, _e.op_id == op_id.hex)
    connection.execute(sa.update(graph_edges).where(here).values(active=1 - _e.active))


def head(connection: Connection, partition: str) -> Head:
    """Return the present version of the weights."""
    row = connection.execute(_HEAD, {"in_partition": partition}).first()
    return Head(row.version, row.touches) if row else Head(0, 0)


def take(
    tx: LedgerTransaction, partition: str, step: EdgeStep, weights: Sequence[tuple[int, float]], *, snapshot_every: int
) -> WeightUpdate:
    """Write the weights after a step, and the step into the log; return the entry.

    weights: position and new weight of each edge that it touches.
    """
    connection, now = tx.connection, tx.tick()
    before = head(connection, partition)
    if weights:
        sign = "?" if connection.dialect.paramstyle == "qmark" else "%s"
        rows = [(weight, step.gap, position) for position, weight in weights]
        connection.exec_driver_sql(_SET_WEIGHT.format(sign), rows)
        reached("graph:weights")
    after = Head(before.version + bool(weights), before.touches + len(weights))
    update = WeightUpdate(
        **step.model_dump(exclude={"deltas"}), gap=step.gap, edges=len(weights), version=after.version, recorded_at=now
    )
    row = {
        "partition": partition, "version": after.version, "kind": STEP, "touches": after.touches,
        "recorded_at": micros(now), "row": update.model_dump_json(exclude_none=True),
    }  # fmt: skip
    connection.execute(_INSERT_STEP, row)
    reached("graph:logged")
    if weights and after.version % snapshot_every == 0:
        save(tx, partition, kept=False)
    return update


def save(tx: LedgerTransaction, partition: str, *, kept: bool) -> None:
    """Keep the present weights, unless they are kept already. kept: never let them go by age."""
    connection = tx.connection
    at = head(connection, partition)
    if not at.version:
        return  # every edge at its initial weight, which the edges know
    here = sa.and_(_k.partition == partition, _k.version == at.version)
    there = connection.execute(sa.select(_k.kept).where(here)).scalar()
    if there is None:
        query = sa.select(_e.position, _e.weight, _e.updates, _e.gap_sum).where(
            _e.partition == partition, _e.updates > 0
        )
        rows = np.array([tuple(row) for row in connection.execute(query)], dtype=SAVED)
        row = {
            "partition": partition, "version": at.version, "recorded_at": micros(tx.now), "kept": int(kept),
            "edges": len(rows), "touches": at.touches, "weights": zlib.compress(rows.tobytes(), 1),
        }  # fmt: skip
        connection.execute(sa.insert(graph_snapshots), row)
        reached("graph:saved")
    elif kept and not there:
        connection.execute(sa.update(graph_snapshots).where(here).values(kept=1))
    _let_go(connection, partition)


def _let_go(connection: Connection, partition: str) -> None:
    automatic = sa.select(_k.version).where(_k.partition == partition, _k.kept == 0).order_by(_k.version.desc())
    old = list(connection.execute(automatic.offset(SNAPSHOTS_KEPT).limit(_CHUNK)).scalars())
    if old:
        connection.execute(sa.delete(graph_snapshots).where(_k.partition == partition, _k.version.in_(old)))


def saved(blob: bytes) -> np.ndarray[Any, np.dtype[np.void]]:
    """Return the rows of a snapshot."""
    return np.frombuffer(zlib.decompress(blob), dtype=SAVED)


def restore(tx: LedgerTransaction, partition: str, version: int) -> None:
    """Go back to the weights of a version, which makes a new one. Raises `InputError` for a version that was not kept."""
    connection = tx.connection
    at = head(connection, partition)
    if version == at.version:
        save(tx, partition, kept=True)
        return
    here = sa.and_(_k.partition == partition, _k.version == version)
    row = connection.execute(sa.select(_k.weights, _k.touches).where(here)).first()
    if version and row is None:
        raise InputError(
            f"version {version} of the weights was not kept. `memweave strategies versions` lists those that were."
        )
    save(tx, partition, kept=True)
    trained = sa.and_(_e.partition == partition, _e.updates > 0)
    connection.execute(sa.update(graph_edges).where(trained).values(weight=_e.initial, updates=0, gap_sum=0.0))
    reached("graph:cleared")
    if row is not None:
        changes = [
            {"at_position": position, "to_weight": weight, "to_updates": updates, "to_gap": gap}
            for position, weight, updates, gap in saved(row.weights).tolist()
        ]
        if changes:
            connection.execute(_RESTORE, changes)
    now = tx.tick()
    entry = {
        "partition": partition, "version": at.version + 1, "kind": ROLLBACK, "touches": row.touches if row else 0,
        "recorded_at": micros(now), "row": json.dumps({"to": version}),
    }  # fmt: skip
    connection.execute(_INSERT_STEP, entry)
    reached("graph:logged")
    save(tx, partition, kept=True)


def versions(connection: Connection, partition: str) -> list[WeightVersion]:
    """Return version 0, those that were kept and the present one, oldest first."""
    present = connection.execute(_HEAD, {"in_partition": partition}).first()
    at = present.version if present else 0
    query = sa.select(_k.version, _k.recorded_at, _k.edges).where(_k.partition == partition).order_by(_k.version)
    found = [WeightVersion(version=0, recorded_at=None, edges=0, current=at == 0)]
    for row in connection.execute(query):
        found.append(
            WeightVersion(
                version=row.version,
                recorded_at=moment(row.recorded_at),
                edges=row.edges,
                current=row.version == at,
            )
        )
    if present and at != found[-1].version:
        trained = sa.select(sa.func.count()).where(_e.partition == partition, _e.updates > 0)
        edges = connection.execute(trained).scalar() or 0
        found.append(WeightVersion(version=at, recorded_at=moment(present.recorded_at), edges=edges, current=True))
    return found


def steps(connection: Connection, partition: str, limit: int | None) -> list[WeightUpdate]:
    """Return the last `limit` steps that were taken, or all, oldest first."""
    query = sa.select(_s.row).where(_s.partition == partition, _s.kind == STEP)
    rows = connection.execute(query.order_by(_s.position.desc()).limit(limit)).scalars()
    return [WeightUpdate.model_validate_json(row) for row in rows][::-1]

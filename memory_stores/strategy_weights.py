"""Weights of a graph of strategies in the ledger's database: steps, what they moved, snapshots, and going back.

A step appends what it moved; the edges themselves are written now and then (`settle`). What counts is the edges with the moves on top.
Everything here works in a transaction that somebody else opened and goes by the partition of a scope's strategies.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from memweave.errors import InputError
from memweave.graph_records import EdgeStep, WeightUpdate, WeightVersion
from memweave.memory_stores.ledger import LedgerTransaction
from memweave.memory_stores.probes import reached
from memweave.memory_stores.rows import micros, moment
from memweave.memory_stores.schema import graph_edges, graph_moves, graph_snapshots, graph_steps
from memweave.memory_stores.strategy_activation import Numbers, Places

STEP: Final = "step"
ROLLBACK: Final = "rollback"
SNAPSHOTS_KEPT: Final = 100
"""Automatic snapshots of a scope; the oldest go. Those that somebody asked for stay."""
SAVED: Final = np.dtype([("position", "<i8"), ("weight", "<f8"), ("updates", "<i8"), ("gap_sum", "<f8")])
MOVED: Final = np.dtype([("position", "<i8"), ("weight", "<f8")])
SETTLED_EVERY: Final = 64
"""Versions after which the edges are written, so that few moves are on top of them."""
_CHUNK: Final = 500

Saved = np.ndarray[Any, np.dtype[np.void]]
"""Rows of `SAVED`."""

_e, _s, _k, _m = graph_edges.c, graph_steps.c, graph_snapshots.c, graph_moves.c
_HEAD: Final = (
    sa.select(_s.version, _s.touches, _s.recorded_at)
    .where(_s.partition == bindparam("in_partition"))
    .order_by(_s.position.desc())
    .limit(1)
)
_WEIGHTS: Final = sa.select(_e.position, _e.weight, _e.updates, _e.gap_sum)
_MOVES: Final = (
    sa.select(_m.version, _m.gap, _m.weights)
    .where(_m.partition == bindparam("in_partition"), _m.version > bindparam("after"))
    .order_by(_m.version)
)
_SET_WEIGHT: Final = "UPDATE memweave_graph_edges SET weight = {0}, updates = {0}, gap_sum = {0} WHERE position = {0}"
"""For the driver itself, whose sign for a parameter is filled in: for thousands of rows, the toolkit takes longer than the database."""
_INSERT_STEP: Final = sa.insert(graph_steps)
_INSERT_MOVE: Final = sa.insert(graph_moves)


@dataclass(frozen=True, slots=True)
class Head:
    """Where the weights of a scope are."""

    version: int
    touches: int
    """Sum of `updates` over all edges."""


def head(connection: Connection, partition: str) -> Head:
    """Return the present version of the weights."""
    row = connection.execute(_HEAD, {"in_partition": partition}).first()
    return Head(row.version, row.touches) if row else Head(0, 0)


@dataclass(frozen=True, slots=True)
class Move:
    """What one step did to weights."""

    version: int
    gap: float
    position: Places
    """(edges,): no edge twice."""
    weight: Numbers
    """(edges,): afterwards."""


def moves(connection: Connection, partition: str, after: int = 0) -> list[Move]:
    """Return the steps after a version that the edges do not have yet, oldest first."""
    found = []
    for version, gap, blob in connection.execute(_MOVES, {"in_partition": partition, "after": after}):
        rows = np.frombuffer(blob, dtype=MOVED)
        found.append(Move(version, gap, rows["position"], rows["weight"]))
    return found


def present(connection: Connection, partition: str) -> Saved:
    """Return the weights of all edges as they are now, by position."""
    rows = _rows(connection, _WEIGHTS.where(_e.partition == partition).order_by(_e.position))
    return moved(rows, moves(connection, partition))


def moved(rows: Saved, given: Sequence[Move]) -> Saved:
    """Return weights of edges, by position, after moves; those of other edges are left out."""
    for move in given:
        place, there = places_of(move.position, rows["position"])
        rows["weight"][place] = move.weight[there]
        rows["updates"][place] += 1
        rows["gap_sum"][place] += move.gap
    return rows


def places_of(positions: Places, among: Places) -> tuple[Places, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Return where positions are among rising ones, those that are not there left out; and for each, whether it is there."""
    if not len(among):
        return np.zeros(0, dtype=np.int64), np.zeros(len(positions), dtype=bool)
    place = np.minimum(np.searchsorted(among, positions), len(among) - 1)
    there = among[place] == positions
    return place[there], there


def _rows(connection: Connection, query: sa.Select[tuple[int, float, int, float]]) -> Saved:
    return np.array([tuple(row) for row in connection.execute(query).all()], dtype=SAVED)


def settle(connection: Connection, partition: str) -> None:
    """Write the moves into the edges."""
    pending = moves(connection, partition)
    if not pending:
        return
    touched = np.unique(np.concatenate([move.position for move in pending])).tolist()
    chunks = [touched[start : start + _CHUNK] for start in range(0, len(touched), _CHUNK)]
    before = [
        _rows(connection, _WEIGHTS.where(_e.position.in_(each), _e.partition == partition).order_by(_e.position))
        for each in chunks
    ]
    rows = moved(np.concatenate(before), pending)
    changes = [(weight, updates, gap, position) for position, weight, updates, gap in rows.tolist()]
    _write_weights(connection, changes)
    reached("graph:settled")
    connection.execute(sa.delete(graph_moves).where(_m.partition == partition))


def _write_weights(connection: Connection, changes: list[tuple[float, int, float, int]]) -> None:
    """Write weight, updates and sum of gaps of edges, by position."""
    sign = "?" if connection.dialect.paramstyle == "qmark" else "%s"
    if changes:
        connection.exec_driver_sql(_SET_WEIGHT.format(sign), changes)


def take(
    tx: LedgerTransaction, partition: str, step: EdgeStep, position: Places, weight: Numbers, *, snapshot_every: int
) -> WeightUpdate:
    """Write what a step moved, and the step into the log; return the entry.

    position, weight: (edges,) of each edge that it touches; the weights afterwards.
    """
    connection, now, count = tx.connection, tx.tick(), len(position)
    before = head(connection, partition)
    after = Head(before.version + bool(count), before.touches + count)
    if count:
        rows = np.empty(count, dtype=MOVED)
        rows["position"], rows["weight"] = position, weight
        move = {"partition": partition, "version": after.version, "gap": step.gap, "weights": rows.tobytes()}
        connection.execute(_INSERT_MOVE, move)
        reached("graph:weights")
    update = WeightUpdate(
        **step.model_dump(exclude={"deltas"}), gap=step.gap, edges=count, version=after.version, recorded_at=now
    )
    row = {
        "partition": partition, "version": after.version, "kind": STEP, "touches": after.touches,
        "recorded_at": micros(now), "row": update.model_dump_json(exclude_none=True),
    }  # fmt: skip
    connection.execute(_INSERT_STEP, row)
    reached("graph:logged")
    if count and after.version % snapshot_every == 0:
        save(tx, partition, kept=False)
    elif count and after.version % SETTLED_EVERY == 0:
        settle(connection, partition)
    return update


def save(tx: LedgerTransaction, partition: str, *, kept: bool) -> None:
    """Keep the present weights, unless they are kept already. kept: never let them go by age."""
    connection = tx.connection
    at = head(connection, partition)
    if not at.version:
        return  # every edge at its initial weight, which the edges know
    settle(connection, partition)
    here = sa.and_(_k.partition == partition, _k.version == at.version)
    there = connection.execute(sa.select(_k.kept).where(here)).scalar()
    if there is None:
        rows = _rows(connection, _WEIGHTS.where(_e.partition == partition, _e.updates > 0))
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


def saved(blob: bytes) -> Saved:
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
    known = 0 <= version <= at.version  # a number that the database cannot hold is none of them
    row = connection.execute(sa.select(_k.weights, _k.touches).where(here)).first() if known else None
    if version and row is None:
        raise InputError(
            f"version {version} of the weights was not kept. `memweave strategies versions` lists those that were."
        )
    save(tx, partition, kept=True)
    trained = sa.and_(_e.partition == partition, _e.updates > 0)
    connection.execute(sa.update(graph_edges).where(trained).values(weight=_e.initial, updates=0, gap_sum=0.0))
    reached("graph:cleared")
    if row is not None:
        rows = saved(row.weights).tolist()
        _write_weights(connection, [(weight, updates, gap, position) for position, weight, updates, gap in rows])
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
    last = connection.execute(_HEAD, {"in_partition": partition}).first()
    at = last.version if last else 0
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
    if last and at != found[-1].version:
        edges = int(np.count_nonzero(present(connection, partition)["updates"]))
        found.append(WeightVersion(version=at, recorded_at=moment(last.recorded_at), edges=edges, current=True))
    return found


def steps(
    connection: Connection,
    partition: str,
    limit: int | None,
    since: datetime | None = None,
    query_id: str | None = None,
) -> list[WeightUpdate]:
    """Return the last `limit` steps that were taken, or all, oldest first. since: none from before.  query_id: only its own."""
    query = sa.select(_s.row).where(_s.partition == partition, _s.kind == STEP)
    if since is not None:
        query = query.where(_s.recorded_at >= micros(since))
    if query_id is not None:  # in the text of a row other things could look like it, so it is looked at again below
        query = query.where(_s.row.contains(json.dumps(query_id, ensure_ascii=False), autoescape=True))
    rows = connection.execute(query.order_by(_s.position.desc()).limit(limit)).scalars()
    found = [WeightUpdate.model_validate_json(row) for row in rows][::-1]
    return found if query_id is None else [each for each in found if each.query_id == query_id]

"""The ledger: the truth. An append-only log of operations and the versions they open and close, in one database.

Writers go one at a time, so `seq` grows in commit order. Everything here is scoped by partition; the ledger does not know what an
index, an embedding model or an agent is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, NamedTuple
from uuid import UUID

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import URL, Connection

from memweave.errors import ConflictError, FormatError, UnknownMemoryError
from memweave.memory_stores import schema, statements
from memweave.memory_stores.database import Database
from memweave.memory_stores.probes import reached
from memweave.memory_stores.rows import (
    Version,
    memory_of,
    micros,
    moment,
    op_of,
    op_row,
    turn_of,
    turn_row,
    version_of,
    version_row,
)
from memweave.records import (
    RECORD_FORMAT,
    Memory,
    MemoryOp,
    OpKind,
    OpStatus,
    PurgeReceipt,
    Scope,
    StoredTurn,
    Turn,
    TurnStatus,
    new_id,
    utc_now,
)

_CHUNK: Final = 500
_PURGE: Final = "PURGE"

_ops, _versions, _turns, _scopes, _meta = schema.ops, schema.versions, schema.turns, schema.scopes, schema.meta
_replay = schema.replay
_OWNED: Final = (_versions, _ops, _turns, *schema.LATER, _scopes)
_VERSION_COLUMNS: Final = tuple(c for c in _versions.c if c.name != "vector")
_OWNER_COLUMNS: Final = (_scopes.c.tenant, _scopes.c.user)
_VERSIONS_AND_OWNERS: Final = sa.select(_versions, *_OWNER_COLUMNS).join(
    _scopes, _scopes.c.partition == _versions.c.partition
)


class Effect(StrEnum):
    """What an operation means for an index."""

    NONE = "none"
    STORE = "store"
    REMOVE = "remove"
    DROP = "drop"
    """The whole partition was purged."""


@dataclass(frozen=True, slots=True)
class Change:
    """One operation, as an index sees it."""

    seq: int
    partition: str
    effect: Effect
    memory_id: UUID
    """All zeros when no memory is concerned."""
    opened: Version | None
    """What to store; `None` for other effects."""


class History(NamedTuple):
    """Everything there is about a partition."""

    turns: list[StoredTurn]
    ops: list[MemoryOp]
    versions: list[tuple[Version, int, int | None]]
    """Every version ever, with the `seq` of the operations that opened and closed it."""


class Ledger:
    """One ledger database. Raises: FormatError when a newer version of memweave wrote it."""

    def __init__(self, url: str | URL) -> None:
        self.database = Database(url)
        try:
            with self.database.write() as connection:
                self._prepare(connection)
            self.id = self.meta("ledger") or ""
        except BaseException:
            self.database.close()
            raise

    def _prepare(self, connection: Connection) -> None:
        """Create the tables of a new ledger; refuse, and leave alone, one of another format."""
        found = None
        if sa.inspect(connection).has_table(_meta.name):
            found = connection.execute(sa.select(_meta.c.value).where(_meta.c.key == "format")).scalar()
        if found is None:
            schema.metadata.create_all(connection)
            rows = [{"key": "format", "value": str(RECORD_FORMAT)}, {"key": "ledger", "value": new_id().hex}]
            connection.execute(sa.insert(_meta), rows)
        elif found != str(RECORD_FORMAT):
            raise FormatError(
                f"{self.database.where} has format {found}, this memweave reads format {RECORD_FORMAT}. "
                "Use the memweave version that wrote it, or export there and import here."
            )
        else:  # perhaps made before there were cases, or graphs of strategies
            there = set(sa.inspect(connection).get_table_names())
            schema.metadata.create_all(connection, [table for table in schema.LATER if table.name not in there])

    def meta(self, key: str) -> str | None:
        """Return a fact about this ledger, or `None` when it was never set."""
        with self.database.read() as connection:
            value: str | None = connection.execute(statements.META, {"name": key}).scalar()
        return value

    def head(self) -> int:
        """Return the last `seq`, 0 for an empty ledger."""
        return int(self.database.peek(statements.HEAD) or 0)

    @contextmanager
    def write(self) -> Iterator[LedgerTransaction]:
        """Yield the one write transaction; commits when the block ends without an error, otherwise changes nothing."""
        with self.database.write() as connection:
            yield LedgerTransaction(connection)
            reached("apply:commit")
        reached("apply:committed")

    def current(self, partition: str, ids: Sequence[UUID], scope: Scope) -> dict[UUID, Memory]:
        """Return the current versions of memories, by id; those that do not exist are left out."""
        out: dict[UUID, Memory] = {}
        with self.database.read() as connection:
            for start in range(0, len(ids), _CHUNK):
                names = [i.hex for i in ids[start : start + _CHUNK]]
                # Not "and closed_seq is null": SQLite would then read every current memory of the partition instead of these.
                query = sa.select(*_VERSION_COLUMNS).where(
                    _versions.c.partition == partition, _versions.c.memory_id.in_(names)
                )
                for row in connection.execute(query).mappings():
                    if row["closed_seq"] is None:
                        memory = memory_of(row, scope)
                        out[memory.id] = memory
        return out

    def memories(
        self, partition: str, scope: Scope, *, at: datetime | None = None, limit: int | None = None
    ) -> list[tuple[Memory, str | None]]:
        """Return the memories that are current, or were at `at` (ledger time), and the runs that wrote them, oldest first."""
        query = _alive(sa.select(*_VERSION_COLUMNS), at=at).where(_versions.c.partition == partition)
        # Ids are UUIDv7: their order is the order in which the memories were first written.
        query = query.order_by(_versions.c.memory_id).limit(limit)
        with self.database.read() as connection:
            return [(memory_of(row, scope), row["run_id"]) for row in connection.execute(query).mappings()]

    def snapshot(
        self, partition: str, scope: Scope, *, at: datetime | None = None, seq: int | None = None
    ) -> list[Version]:
        """Return the versions with vectors that were alive at a time or at a sequence number (default: now)."""
        query = _alive(sa.select(_versions), at=at, seq=seq).where(_versions.c.partition == partition)
        with self.database.read() as connection:
            return [_version_at(row, scope, seq) for row in connection.execute(query).mappings()]

    def whole(self, partition: str, scope: Scope) -> History:
        """Return everything there is about a partition, from one moment, oldest first."""
        turns = sa.select(_turns).where(_turns.c.partition == partition).order_by(_turns.c.position)
        ops = sa.select(_ops).where(_ops.c.partition == partition, _ops.c.kind != _PURGE).order_by(_ops.c.seq)
        versions = sa.select(_versions).where(_versions.c.partition == partition).order_by(_versions.c.opened_seq)
        with self.database.read() as connection:
            return History(
                [turn_of(row, scope) for row in connection.execute(turns).mappings()],
                _with_sides(connection, partition, scope, connection.execute(ops).mappings().all()),
                [
                    (version_of(row, scope), row["opened_seq"], row["closed_seq"])
                    for row in connection.execute(versions).mappings()
                ],
            )

    def count(self, seq: int) -> int:
        """Return how many versions were alive at `seq`, over all partitions."""
        with self.database.read() as connection:
            found = connection.execute(_alive(sa.select(sa.func.count()).select_from(_versions), seq=seq)).scalar()
        return found or 0

    def everything(self, seq: int, *, batch: int = 2_000) -> Iterator[list[tuple[str, Version]]]:
        """Yield all versions alive at `seq`, of all partitions, in batches of (partition, version)."""
        last = ("", "", 0)
        key = sa.tuple_(_versions.c.partition, _versions.c.memory_id, _versions.c.version)
        order = (_versions.c.partition, _versions.c.memory_id, _versions.c.version)
        while True:
            query = _alive(_VERSIONS_AND_OWNERS, seq=seq).where(key > sa.tuple_(*map(sa.literal, last)))
            with self.database.read() as connection:
                rows = connection.execute(query.order_by(*order).limit(batch)).mappings().all()
            if not rows:
                return
            yield [(row["partition"], _version_at(row, _owner(row), seq)) for row in rows]
            last = (rows[-1]["partition"], rows[-1]["memory_id"], rows[-1]["version"])

    def changes(self, after: int, *, limit: int = 1_000) -> list[Change]:
        """Return what happened after `seq`, in order, for an index to follow."""
        asked = {"after": after, "most": limit}
        with self.database.read() as connection:
            return [_change(row) for row in connection.execute(statements.CHANGES, asked).mappings()]

    def log(
        self,
        partition: str,
        scope: Scope,
        *,
        after: int = 0,
        limit: int | None = None,
        run_id: str | None = None,
        memory_id: UUID | None = None,
        status: OpStatus | None = None,
        newest: bool = False,
    ) -> list[MemoryOp]:
        """Return operations in order; with `newest`, the last `limit` of them."""
        query = sa.select(_ops).where(_ops.c.partition == partition, _ops.c.seq > after, _ops.c.kind != _PURGE)
        if run_id is not None:
            query = query.where(_ops.c.run_id == run_id)
        if memory_id is not None:
            query = query.where(_ops.c.memory_id == memory_id.hex)
        if status is not None:
            query = query.where(_ops.c.status == status.value)
        query = query.order_by(_ops.c.seq.desc() if newest else _ops.c.seq).limit(limit)
        with self.database.read() as connection:
            rows = connection.execute(query).mappings().all()
            found = _with_sides(connection, partition, scope, rows)
        return found[::-1] if newest else found

    def turns(
        self,
        partition: str,
        scope: Scope,
        *,
        dialogue: str | None = None,
        status: TurnStatus | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[StoredTurn]:
        """Return turns, oldest first; with `before`, the last `limit` turns before that position."""
        given = {
            "in_dialogue": dialogue,
            "with_status": status and status.value,
            "before_position": before,
            "most": limit,
        }
        asked = {name: value for name, value in given.items() if value is not None}
        with self.database.read() as connection:
            rows = connection.execute(statements.turns_with(*asked), {"in_partition": partition, **asked}).mappings()
            found = [turn_of(row, scope) for row in rows]
        return found[::-1] if before is not None else found

    def speakers(self, partition: str) -> list[str]:
        """Return who owns current memories, most memories first."""
        query = (
            sa.select(_versions.c.speaker)
            .where(
                _versions.c.partition == partition, _versions.c.closed_seq.is_(None), _versions.c.speaker.is_not(None)
            )
            .group_by(_versions.c.speaker)
            .order_by(sa.func.count().desc(), _versions.c.speaker)
        )
        with self.database.read() as connection:
            return list(connection.execute(query).scalars())

    def vectors(self, partition: str, ids: Sequence[UUID]) -> dict[UUID, NDArray[np.float32]]:
        """Return the vectors of current memories, by id; those that do not exist are left out."""
        found: dict[UUID, NDArray[np.float32]] = {}
        v = _versions.c
        with self.database.read() as connection:
            for start in range(0, len(ids), _CHUNK):
                names = [i.hex for i in ids[start : start + _CHUNK]]
                query = sa.select(v.memory_id, v.vector, v.closed_seq).where(
                    v.partition == partition, v.memory_id.in_(names)
                )
                for memory_id, vector, closed in connection.execute(query):
                    if closed is None:
                        found[UUID(hex=memory_id)] = np.frombuffer(vector, dtype="<f4")
        return found

    def replay(self, partition: str, limit: int | None = None) -> list[str]:
        """Return the last `limit` rows of experience, or all, oldest first."""
        query = sa.select(_replay.c.row).where(_replay.c.partition == partition)
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(_replay.c.position.desc()).limit(limit)).scalars()
            return list(rows)[::-1]

    def close(self) -> None:
        """Release all connections."""
        self.database.close()


class LedgerTransaction:
    """The open write transaction of a ledger."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        last = connection.exec_driver_sql(statements.LAST_TIME).scalar()
        now = utc_now()
        previous = moment(last)
        # Ledger time never stands still or goes back, so that a time names one state.
        self.now = max(now, previous + timedelta(microseconds=1)) if previous else now

    def meta(self, key: str) -> str | None:
        """Return a fact about this ledger, or `None` when it was never set."""
        value: str | None = self.connection.execute(statements.META, {"name": key}).scalar()
        return value

    def set_meta(self, key: str, value: str) -> None:
        """Record a fact about this ledger."""
        self.connection.execute(sa.delete(_meta).where(_meta.c.key == key))
        self.connection.execute(sa.insert(_meta), {"key": key, "value": value})

    def ensure_owner(self, partition: str, scope: Scope, collection: str) -> None:
        """Record whose partition it is."""
        if self.connection.execute(statements.OWNER, {"owned": partition}).first() is None:
            row = {"partition": partition, "collection": collection, "tenant": scope.tenant, "user": scope.user}
            self.connection.execute(sa.insert(_scopes), row)

    def tick(self) -> datetime:
        """Return the time of the next operation; each one has its own."""
        now = self.now
        self.now = now + timedelta(microseconds=1)
        return now

    def current(self, partition: str, memory_id: UUID, scope: Scope) -> Version | None:
        """Return the current version of a memory."""
        asked = {"in_partition": partition, "of_memory": memory_id.hex}
        row = self.connection.execute(statements.CURRENT, asked).mappings().first()
        return version_of(row, scope) if row else None

    def last_version(self, partition: str, memory_id: UUID) -> int:
        """Return the number of the last version ever of a memory, 0 if it never existed."""
        asked = {"in_partition": partition, "of_memory": memory_id.hex}
        return self.connection.execute(statements.LAST_VERSION, asked).scalar() or 0

    def version(self, partition: str, memory: Memory) -> Version:
        """Return a version with its vector."""
        asked = {"in_partition": partition, "of_memory": memory.id.hex, "at_version": memory.version}
        return version_of(self.connection.execute(statements.VERSION, asked).mappings().one(), memory.scope)

    def op(self, partition: str, op_id: UUID, scope: Scope) -> MemoryOp:
        """Return an operation. Raises: UnknownMemoryError."""
        query = sa.select(_ops).where(_ops.c.partition == partition, _ops.c.op_id == op_id.hex, _ops.c.kind != _PURGE)
        rows = self.connection.execute(query).mappings().all()
        if not rows:
            raise UnknownMemoryError(f"no operation {op_id} for {scope}. `memweave memory log` lists them.")
        return _with_sides(self.connection, partition, scope, rows)[0]

    def changes(self, partition: str, memory_id: UUID) -> list[tuple[UUID, UUID | None]]:
        """Return the operations that changed a memory and what each takes back, oldest first."""
        query = sa.select(_ops.c.op_id, _ops.c.undoes).where(
            _ops.c.partition == partition,
            _ops.c.memory_id == memory_id.hex,
            sa.or_(_ops.c.before_version.is_not(None), _ops.c.after_version.is_not(None)),
        )
        rows = self.connection.execute(query.order_by(_ops.c.seq)).all()
        return [(UUID(hex=row.op_id), UUID(hex=row.undoes) if row.undoes else None) for row in rows]

    def record(self, partition: str, op: MemoryOp, opened: Version | None) -> MemoryOp:
        """Append an operation, close what it replaces, open what it writes; return it with its `seq`."""
        result = self.connection.execute(statements.INSERT_OP, op_row(partition, op))
        key = result.inserted_primary_key
        assert key is not None  # a single-row insert always has one
        seq = int(key[0])
        reached("apply:op")
        changes_state = op.status is OpStatus.APPLIED and (opened is not None or op.after is None)
        if op.before is not None and changes_state:
            self._close(partition, op.before, seq, op.recorded_at)
        if opened is not None:
            self.connection.execute(statements.INSERT_VERSION, version_row(partition, opened, seq))
            reached("apply:opened")
        return op.model_copy(update={"seq": seq})

    def _close(self, partition: str, memory: Memory, seq: int, at: datetime) -> None:
        which = {"in_partition": partition, "of_memory": memory.id.hex, "at_version": memory.version}
        self.connection.execute(statements.CLOSE_VERSION, {**which, "by_seq": seq, "by_time": micros(at)})
        reached("apply:closed")

    def accept(self, partition: str, turns: Sequence[Turn], scope: Scope) -> list[StoredTurn]:
        """Insert the turns that are new and return all, in order. Raises: ConflictError for a known id with another text."""
        stored = self._stored_turns(partition, turns, scope)
        fresh: dict[tuple[str, str], Turn] = {}
        for turn in turns:
            key = (turn.dialogue, turn.source_id)
            known = stored.get(key) or fresh.get(key)
            if known is None:
                fresh[key] = turn
            elif (known.text, known.speaker) != (turn.text, turn.speaker):
                raise ConflictError(
                    f"turn {turn.source_id!r} of dialogue {turn.dialogue!r} was already given with another text or "
                    "speaker. Give the changed message a new id; nothing was changed."
                )
        if fresh:
            self.connection.execute(sa.insert(_turns), [turn_row(partition, turn) for turn in fresh.values()])
            stored |= self._stored_turns(partition, list(fresh.values()), scope)
        return [stored[turn.dialogue, turn.source_id] for turn in turns]

    def _stored_turns(self, partition: str, turns: Sequence[Turn], scope: Scope) -> dict[tuple[str, str], StoredTurn]:
        out: dict[tuple[str, str], StoredTurn] = {}
        for start in range(0, len(turns), _CHUNK):
            chunk = turns[start : start + _CHUNK]
            query = sa.select(_turns).where(
                _turns.c.partition == partition,
                _turns.c.dialogue.in_({t.dialogue for t in chunk}),
                _turns.c.source_id.in_({t.source_id for t in chunk}),
            )
            for row in self.connection.execute(query).mappings():
                out[row["dialogue"], row["source_id"]] = turn_of(row, scope)
        return out

    def add_replay(self, partition: str, rows: Sequence[str]) -> None:
        """Append rows of experience."""
        self.connection.execute(sa.insert(_replay), [{"partition": partition, "row": row} for row in rows])

    def finish_turn(self, partition: str, turn: StoredTurn) -> None:
        """Mark a turn done. Raises: ConflictError when it already was, for example by another process."""
        changed = self.connection.execute(statements.FINISH_TURN, _which_turn(partition, turn))
        if changed.rowcount != 1:
            raise ConflictError(
                f"turn {turn.source_id!r} is already done or does not belong to {turn.scope}; nothing was changed."
            )
        reached("apply:turn")

    def fail_turn(self, partition: str, turn: StoredTurn, error: str) -> None:
        """Leave a turn pending and count the failed attempt; one that is done stays as it is."""
        self.connection.execute(statements.FAIL_TURN, {**_which_turn(partition, turn), "because": error})

    def purge(self, scope: Scope) -> PurgeReceipt:
        """Erase everything of a scope; one content-free tombstone per partition remains."""
        owned = sa.select(_scopes.c.partition).where(_scopes.c.tenant == scope.tenant, _scopes.c.user == scope.user)
        partitions = list(self.connection.execute(owned).scalars())
        old_tombstones = sa.select(sa.func.count()).where(_ops.c.partition.in_(partitions), _ops.c.kind == _PURGE)
        counts = {"tombstones": self.connection.execute(old_tombstones).scalar() or 0}
        for table in _OWNED:
            counts[table.name] = self.connection.execute(
                sa.delete(table).where(table.c.partition.in_(partitions))
            ).rowcount
        for partition in partitions:
            self.connection.execute(sa.insert(_ops), _tombstone(partition, self.tick()))
        operations = counts[_ops.name] - counts["tombstones"]
        return PurgeReceipt(memories=counts[_versions.name], operations=operations, turns=counts[_turns.name])


def _which_turn(partition: str, turn: StoredTurn) -> dict[str, str | int]:
    """Return what finds a turn, as the parameters of a statement."""
    return {
        "in_partition": partition,
        "at_position": turn.position,
        "in_dialogue": turn.dialogue,
        "of_source": turn.source_id,
    }


def _version_at(row: sa.RowMapping, scope: Scope, seq: int | None) -> Version:
    """Return a version as it was at a sequence number: not yet closed by what came later."""
    if seq is not None and row["closed_seq"] is not None:
        return version_of({**row, "closed_at": None}, scope)
    return version_of(row, scope)


def _owner(row: sa.RowMapping) -> Scope:
    return Scope.model_construct(tenant=row["tenant"], user=row["user"])


def _change(row: sa.RowMapping) -> Change:
    seq, partition = row["op_seq"], row["op_partition"]
    memory_id = UUID(hex=row["op_memory_id"]) if row["op_memory_id"] else UUID(int=0)
    if row["op_kind"] == _PURGE:
        return Change(seq, partition, Effect.DROP, memory_id, None)
    if row["op_status"] == OpStatus.APPLIED.value and row["op_kind"] == OpKind.DELETE.value:
        return Change(seq, partition, Effect.REMOVE, memory_id, None)
    if row["memory_id"] is None:  # nothing was written, or it was purged since: a DROP follows
        return Change(seq, partition, Effect.NONE, memory_id, None)
    return Change(seq, partition, Effect.STORE, memory_id, version_of(row, _owner(row)))


def _tombstone(partition: str, at: datetime) -> dict[str, Any]:  # a row to insert
    return {
        "op_id": new_id().hex,
        "partition": partition,
        "kind": _PURGE,
        "status": OpStatus.APPLIED.value,
        "reason": "purged",
        "actor": "purge",
        "source_ids": "[]",
        "recorded_at": micros(at),
    }


def _alive(query: sa.Select[Any], *, at: datetime | None = None, seq: int | None = None) -> sa.Select[Any]:
    """Restrict a query to versions that are current, or were at a time or at a sequence number."""
    v = _versions.c
    if at is not None:
        return query.where(v.recorded_at <= micros(at), sa.or_(v.closed_at.is_(None), v.closed_at > micros(at)))
    if seq is not None:
        return query.where(v.opened_seq <= seq, sa.or_(v.closed_seq.is_(None), v.closed_seq > seq))
    return query.where(v.closed_seq.is_(None))


def _with_sides(connection: Connection, partition: str, scope: Scope, rows: Sequence[sa.RowMapping]) -> list[MemoryOp]:
    """Return operations with the memories before and after them."""
    ids = sorted({row["memory_id"] for row in rows if row["memory_id"]})
    sides: dict[tuple[str, int], Memory] = {}
    for start in range(0, len(ids), _CHUNK):
        query = sa.select(*_VERSION_COLUMNS).where(
            _versions.c.partition == partition, _versions.c.memory_id.in_(ids[start : start + _CHUNK])
        )
        for row in connection.execute(query).mappings():
            sides[row["memory_id"], row["version"]] = memory_of(row, scope)
    return [op_of(row, scope, sides) for row in rows]

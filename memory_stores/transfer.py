"""Export and import of one scope as JSON lines, with full history; vectors are made anew on import.

    {"memweave": "export", "format": 1, "turns": 3, "versions": 5, ...}     header, with the number of lines of each kind
    {"turn": {...}}                                                          turns in order of arrival
    {"version": {...}}                                                       every version of every memory
    {"op": {...}}                                                            the log, in order

Ids, times, reasons and actors are kept, so `history`, `as_of` and `undo` work on the imported scope as on the original.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memweave.errors import ConflictError, FormatError, InputError
from memweave.memory_stores import schema
from memweave.memory_stores.ledger import Ledger, LedgerTransaction
from memweave.memory_stores.rows import Version, op_row, turn_row, version_row
from memweave.memory_stores.store import Vector
from memweave.memory_stores.text import embedded_text
from memweave.records import (
    RECORD_FORMAT,
    ImportReceipt,
    Memory,
    MemoryOp,
    OpStatus,
    Scope,
    Turn,
    TurnStatus,
    utc_now,
)


class _Header(BaseModel):
    """What the file is. The counts tell a file that lost its end."""

    memweave: str
    format: int
    collection: str
    exported_at: str
    turns: int
    versions: int
    ops: int


class _TurnLine(BaseModel):
    """A turn and how far it got."""

    model_config = ConfigDict(extra="forbid")
    turn: Turn
    status: TurnStatus
    attempts: int
    error: str | None


class _VersionLine(BaseModel):
    """A version, the run that wrote it, and the positions of the operations that opened and closed it."""

    model_config = ConfigDict(extra="forbid")
    version: Memory
    run_id: str | None
    opened_by: UUID
    closed_by: UUID | None


class _OpLine(BaseModel):
    """An operation; `before` and `after` are version numbers of `op.memory_id`."""

    model_config = ConfigDict(extra="forbid")
    op: MemoryOp
    before: Annotated[int, Field(ge=1)] | None
    after: Annotated[int, Field(ge=1)] | None


def export_lines(ledger: Ledger, partition: str, scope: Scope, *, collection: str) -> Iterator[str]:
    """Yield the lines of an export, from one consistent state."""
    turns, ops, versions = ledger.whole(partition, scope)
    yield _Header(
        memweave="export",
        format=RECORD_FORMAT,
        collection=collection,
        exported_at=utc_now().isoformat(),
        turns=len(turns),
        versions=len(versions),
        ops=len(ops),
    ).model_dump_json()
    for turn in turns:
        data = Turn.model_validate(turn.model_dump(include=set(Turn.model_fields)))
        yield _TurnLine(turn=data, status=turn.status, attempts=turn.attempts, error=turn.error).model_dump_json()
    by_seq = {op.seq: op.id for op in ops}
    for version, opened, closed in versions:
        line = _VersionLine(
            version=version.memory, run_id=version.run_id, opened_by=by_seq[opened], closed_by=by_seq.get(closed or 0)
        )
        yield line.model_dump_json()
    for op in ops:
        bare = op.model_copy(update={"before": None, "after": None})
        line_op = _OpLine(
            op=bare, before=op.before.version if op.before else None, after=op.after.version if op.after else None
        )
        yield line_op.model_dump_json()


class _Parsed:
    """The content of an export."""

    def __init__(self) -> None:
        self.turns: list[_TurnLine] = []
        self.versions: list[_VersionLine] = []
        self.ops: list[_OpLine] = []


def import_lines(
    write: AbstractContextManager[LedgerTransaction],
    partition: str,
    scope: Scope,
    lines: Iterable[str],
    *,
    embed: Callable[[Sequence[str]], Mapping[str, Vector]],
    collection: str,
) -> ImportReceipt:
    """Write an export into an empty scope, in one transaction; see `MemoryBank.import_`."""
    content = _parse(lines, collection)
    texts = [embedded_text(line.version.text, line.version.speaker) for line in content.versions]
    vectors = embed(texts)
    with write as tx:
        if _already_there(tx, partition, scope, content):
            return ImportReceipt(memories=0, operations=0, turns=0)
        for turn in content.turns:
            state = {"status": turn.status.value, "attempts": turn.attempts, "error": turn.error}
            tx.connection.execute(sa.insert(schema.turns), turn_row(partition, turn.turn) | state)
        seqs = {line.op.id: _insert_op(tx, partition, line) for line in content.ops}
        for line, text in zip(content.versions, texts, strict=True):
            row = version_row(partition, Version(line.version, vectors[text], line.run_id), seqs[line.opened_by])
            row["closed_seq"] = seqs[line.closed_by] if line.closed_by else None
            tx.connection.execute(sa.insert(schema.versions), row)
    return ImportReceipt(memories=len(content.versions), operations=len(content.ops), turns=len(content.turns))


def _insert_op(tx: LedgerTransaction, partition: str, line: _OpLine) -> int:
    row = op_row(partition, line.op) | {"before_version": line.before, "after_version": line.after}
    key = tx.connection.execute(sa.insert(schema.ops), row).inserted_primary_key
    assert key is not None  # a single-row insert always has one
    return int(key[0])


def _already_there(tx: LedgerTransaction, partition: str, scope: Scope, content: _Parsed) -> bool:
    """Return whether the scope holds this export. Raises: ConflictError when it holds something else."""
    o, t = schema.ops.c, schema.turns.c
    ops = set(tx.connection.execute(sa.select(o.op_id).where(o.partition == partition, o.kind != "PURGE")).scalars())
    given = sa.select(t.dialogue, t.source_id).where(t.partition == partition)
    turns = {tuple(row) for row in tx.connection.execute(given)}
    if not ops and not turns:
        return False
    if {line.op.id.hex for line in content.ops} <= ops and {_turn_key(line) for line in content.turns} <= turns:
        return True
    raise ConflictError(
        f"{scope} already holds other memories, and histories cannot be merged. Import into a new user, or purge this one first."
    )


def _parse(lines: Iterable[str], collection: str) -> _Parsed:
    content = _Parsed()
    header: _Header | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            if header is None:
                header = _checked_header(data, collection)
            elif "turn" in data:
                content.turns.append(_TurnLine.model_validate(data))
            elif "version" in data:
                content.versions.append(_VersionLine.model_validate(data))
            else:
                content.ops.append(_OpLine.model_validate(data))
        except (json.JSONDecodeError, ValidationError, TypeError, RecursionError) as error:
            detail = str(error).splitlines()[0]
            raise InputError(f"line {number} of the export cannot be read ({detail}); nothing was imported.") from error
    if header is None:
        raise InputError("the export is empty: not even a header. Nothing was imported.")
    announced = header.turns, header.versions, header.ops
    there = len(content.turns), len(content.versions), len(content.ops)
    if announced != there:
        raise InputError(
            f"the export is incomplete: its header announces {announced} turns, versions and operations, the file has {there} "
            "(truncated?). Nothing was imported."
        )
    _check_story(content)
    return content


def _checked_header(data: object, collection: str) -> _Header:
    if not isinstance(data, dict) or data.get("memweave") != "export":
        raise InputError("this is not a memweave export: the first line is no header. Nothing was imported.")
    if data.get("format") != RECORD_FORMAT:  # before the rest: another format may have another header
        raise FormatError(
            f"the export has format {data.get('format')}, this memweave reads format {RECORD_FORMAT}. "
            "Import it with the version that wrote it."
        )
    header = _Header.model_validate(data)
    if header.collection != collection:
        raise InputError(f"the export holds {header.collection!r}, not {collection!r}. Nothing was imported.")
    return header


def _turn_key(line: _TurnLine) -> tuple[str, str]:
    return line.turn.dialogue, line.turn.source_id


def _check_story(content: _Parsed) -> None:
    """Check that the operations, in order, open and close exactly the versions that are there. Raises: InputError."""
    if len({_turn_key(line) for line in content.turns}) < len(content.turns):
        raise _broken("a turn is there twice")
    if len({line.op.id for line in content.ops}) < len(content.ops):
        raise _broken("an operation is there twice")
    versions = {(line.version.id, line.version.version): line for line in content.versions}
    if len(versions) < len(content.versions):
        raise _broken("a version is there twice")
    opened: dict[tuple[UUID, int], _OpLine] = {}
    closed: dict[tuple[UUID, int], _OpLine] = {}
    current: dict[UUID, int] = {}
    last = datetime.min.replace(tzinfo=UTC)
    for line in content.ops:
        op, last = line.op, _later(line.op, last)
        if line.before is None and line.after is None:
            continue
        if op.memory_id is None or op.status is OpStatus.FAILED or current.get(op.memory_id) != line.before:
            raise _broken(f"operation {op.id} does not follow from those before it")
        if line.before is not None:
            closed[op.memory_id, line.before] = line
            del current[op.memory_id]
        if line.after is not None:
            opened[op.memory_id, line.after] = line
            current[op.memory_id] = line.after
    if opened.keys() != versions.keys():
        raise _broken("its operations speak of other versions than there are")
    for key, version in versions.items():
        first, end = opened[key].op, closed[key].op if key in closed else None
        told = first.id, first.recorded_at, end.id if end else None, end.recorded_at if end else None
        memory = version.version
        if told != (version.opened_by, memory.recorded_at, version.closed_by, memory.closed_at):
            raise _broken(f"memory {memory.id} version {memory.version} contradicts the operations that wrote it")


def _later(op: MemoryOp, last: datetime) -> datetime:
    if op.recorded_at <= last:
        raise _broken(f"operation {op.id} was recorded no later than the one before it")
    return op.recorded_at


def _broken(what: str) -> InputError:
    return InputError(f"the export contradicts itself: {what} (changed by hand?). Nothing was imported.")

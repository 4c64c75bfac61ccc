"""Export and import of one scope as JSON lines, with full history; vectors are made anew on import.

    {"memweave": "export", "format": 1, "collection": "memories", ...}      header
    {"turn": {...}}                                                          turns in order of arrival
    {"version": {...}}                                                       every version of every memory
    {"op": {...}}                                                            the log, in order

Ids, times, reasons and actors are kept, so `history`, `as_of` and `undo` work on the imported scope as on the original.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    Scope,
    Turn,
    TurnStatus,
    utc_now,
)


class _Header(BaseModel):
    memweave: str
    format: int
    collection: str
    exported_at: str


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


def export_lines(ledger: Ledger, partition: str, scope: Scope) -> Iterator[str]:
    """Yield the lines of an export, from one consistent state."""
    header = _Header(memweave="export", format=RECORD_FORMAT, collection="memories", exported_at=utc_now().isoformat())
    yield header.model_dump_json()
    turns, ops, versions = ledger.whole(partition, scope)
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
    ledger: Ledger,
    partition: str,
    scope: Scope,
    lines: Iterable[str],
    *,
    embed: Callable[[Sequence[str]], Mapping[str, Vector]],
    collection: str,
) -> ImportReceipt:
    """Write an export into an empty scope, in one transaction; see `MemoryBank.import_`."""
    content = _parse(lines)
    texts = [embedded_text(line.version.text, line.version.speaker) for line in content.versions]
    vectors = embed(texts)
    with ledger.write() as tx:
        if _already_there(tx, partition, scope, content):
            return ImportReceipt(memories=0, operations=0, turns=0)
        tx.ensure_owner(partition, scope, collection)
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
    query = sa.select(schema.ops.c.op_id).where(schema.ops.c.partition == partition, schema.ops.c.kind != "PURGE")
    known = set(tx.connection.execute(query).scalars())
    turns = sa.select(sa.func.count()).select_from(schema.turns).where(schema.turns.c.partition == partition)
    if not known and not tx.connection.execute(turns).scalar():
        return False
    given = {line.op.id.hex for line in content.ops}
    if given and given <= known:
        return True
    raise ConflictError(
        f"{scope} already holds other memories, and histories cannot be merged. Import into a new user, or purge this one first."
    )


def _parse(lines: Iterable[str]) -> _Parsed:
    content = _Parsed()
    number = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            if number == 1:
                _check_header(data)
            elif "turn" in data:
                content.turns.append(_TurnLine.model_validate(data))
            elif "version" in data:
                content.versions.append(_VersionLine.model_validate(data))
            else:
                content.ops.append(_OpLine.model_validate(data))
        except (json.JSONDecodeError, ValidationError, TypeError) as error:
            detail = str(error).splitlines()[0]
            raise InputError(f"line {number} of the export cannot be read ({detail}); nothing was imported.") from error
    if number == 0:
        raise InputError("the export is empty: not even a header. Nothing was imported.")
    _check_links(content)
    return content


def _check_header(data: object) -> None:
    header = _Header.model_validate(data)
    if header.memweave != "export":
        raise InputError("line 1 is not the header of a memweave export; nothing was imported.")
    if header.format != RECORD_FORMAT:
        raise FormatError(
            f"the export has format {header.format}, this memweave reads format {RECORD_FORMAT}. Import it with the version that wrote it."
        )


def _check_links(content: _Parsed) -> None:
    ops = {line.op.id for line in content.ops}
    for line in content.versions:
        if line.opened_by not in ops or (line.closed_by is not None and line.closed_by not in ops):
            raise InputError(
                f"the export is incomplete: memory {line.version.id} version {line.version.version} refers to an "
                "operation that is missing (a truncated file?). Nothing was imported."
            )

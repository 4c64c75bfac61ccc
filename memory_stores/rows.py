"""Rows of the ledger to records and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import RowMapping

from memweave.memory_stores.engine import FAR_FUTURE, FAR_PAST, IndexPoint
from memweave.memory_stores.text import Bm25Encoder
from memweave.records import Memory, MemoryOp, OpKind, OpStatus, Scope, StoredTurn, Trust, Turn, TurnStatus, as_utc

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

Row = Mapping[str, Any] | RowMapping  # values are what the database driver returns


@dataclass(frozen=True, slots=True)
class Version:
    """A memory as the ledger holds it: the record, its vector and the run that wrote it."""

    memory: Memory
    vector: NDArray[np.float32]
    run_id: str | None


def speakers_of(versions: Iterable[Version]) -> frozenset[str]:
    """Return the participants that own versions."""
    return frozenset(v.memory.speaker for v in versions if v.memory.speaker is not None)


def micros(value: datetime | None) -> int | None:
    """Return microseconds since 1970; a naive time is read as UTC."""
    return (as_utc(value) - _EPOCH) // _MICROSECOND if value is not None else None


def moment(value: int | None) -> datetime | None:
    """Return the UTC time of microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=value) if value is not None else None


def memory_of(row: Row, scope: Scope) -> Memory:
    """Return the memory in a row of `versions`; trusts the ledger and validates nothing."""
    return Memory.model_construct(
        id=UUID(hex=row["memory_id"]),
        version=row["version"],
        scope=scope,
        text=row["text"],
        speaker=row["speaker"],
        dialogue=row["dialogue"],
        context=row["context"],
        source_ids=tuple(json.loads(row["source_ids"])),
        observed_at=moment(row["observed_at"]),
        observed_naive=bool(row["observed_naive"]),
        valid_from=moment(row["valid_from"]),
        valid_to=moment(row["valid_to"]),
        trust=Trust(row["trust"]),
        metadata=json.loads(row["metadata"]),
        recorded_at=moment(row["recorded_at"]),
        closed_at=moment(row["closed_at"]),
    )


def version_of(row: Row, scope: Scope) -> Version:
    """Return the version in a row of `versions`, its vector included."""
    return Version(memory_of(row, scope), np.frombuffer(row["vector"], dtype="<f4"), row["run_id"])


def version_row(partition: str, version: Version, opened_seq: int) -> dict[str, Any]:  # a row to insert
    """Return the row of a version that opens at `opened_seq`."""
    m = version.memory
    return {
        "partition": partition,
        "memory_id": m.id.hex,
        "version": m.version,
        "opened_seq": opened_seq,
        "closed_seq": None,
        "recorded_at": micros(m.recorded_at),
        "closed_at": micros(m.closed_at),
        "text": m.text,
        "speaker": m.speaker,
        "dialogue": m.dialogue,
        "context": m.context,
        "source_ids": json.dumps(m.source_ids),
        "observed_at": micros(m.observed_at),
        "observed_naive": int(m.observed_naive),
        "valid_from": micros(m.valid_from),
        "valid_to": micros(m.valid_to),
        "trust": m.trust.value,
        "metadata": json.dumps(m.metadata),
        "run_id": version.run_id,
        "vector": np.ascontiguousarray(version.vector, dtype="<f4").tobytes(),
    }


def op_row(partition: str, op: MemoryOp) -> dict[str, Any]:  # a row to insert
    """Return the row of an operation, without its `seq`."""
    return {
        "op_id": op.id.hex,
        "partition": partition,
        "kind": op.kind.value,
        "status": op.status.value,
        "memory_id": op.memory_id.hex if op.memory_id else None,
        "before_version": op.before.version if op.before else None,
        "after_version": op.after.version if op.after else None,
        "reason": op.reason,
        "actor": op.actor,
        "policy_version": op.policy_version,
        "source_ids": json.dumps(op.source_ids),
        "run_id": op.run_id,
        "error": op.error,
        "undoes": op.undoes.hex if op.undoes else None,
        "recorded_at": micros(op.recorded_at),
    }


def op_of(row: Row, scope: Scope, versions: Mapping[tuple[str, int], Memory]) -> MemoryOp:
    """Return the operation in a row; `versions` holds both of its sides by (memory id, version)."""
    memory_id = row["memory_id"]
    return MemoryOp.model_construct(
        id=UUID(hex=row["op_id"]),
        seq=row["seq"],
        kind=OpKind(row["kind"]),
        status=OpStatus(row["status"]),
        scope=scope,
        memory_id=UUID(hex=memory_id) if memory_id else None,
        reason=row["reason"],
        actor=row["actor"],
        policy_version=row["policy_version"],
        source_ids=tuple(json.loads(row["source_ids"])),
        run_id=row["run_id"],
        error=row["error"],
        undoes=UUID(hex=row["undoes"]) if row["undoes"] else None,
        before=versions.get((memory_id, row["before_version"])) if row["before_version"] else None,
        after=versions.get((memory_id, row["after_version"])) if row["after_version"] else None,
        recorded_at=moment(row["recorded_at"]),
    )


def turn_row(partition: str, turn: Turn) -> dict[str, Any]:  # a row to insert
    """Return the row of a turn that has just been accepted."""
    return {
        "partition": partition,
        "dialogue": turn.dialogue,
        "source_id": turn.source_id,
        "speaker": turn.speaker,
        "text": turn.text,
        "observed_at": micros(turn.observed_at),
        "observed_naive": int(turn.observed_naive),
        "previous": turn.previous,
        "trust": turn.trust.value,
        "status": TurnStatus.PENDING.value,
        "attempts": 0,
        "error": None,
    }


def turn_of(row: Row, scope: Scope) -> StoredTurn:
    """Return the turn in a row."""
    return StoredTurn.model_construct(
        source_id=row["source_id"],
        dialogue=row["dialogue"],
        speaker=row["speaker"],
        text=row["text"],
        observed_at=moment(row["observed_at"]),
        observed_naive=bool(row["observed_naive"]),
        previous=row["previous"],
        trust=Trust(row["trust"]),
        scope=scope,
        position=row["position"],
        status=TurnStatus(row["status"]),
        attempts=row["attempts"],
        error=row["error"],
    )


def fields_of(memory: Memory, run_id: str | None) -> dict[str, str | float]:
    """Return the indexed fields of a memory; those it does not have are left out."""
    fields: dict[str, str | float] = {
        "trust": memory.trust.value,
        "valid_from": memory.valid_from.timestamp() if memory.valid_from else FAR_PAST,
        "valid_to": memory.valid_to.timestamp() if memory.valid_to else FAR_FUTURE,
    }
    optional = {"speaker": memory.speaker, "dialogue": memory.dialogue, "run": run_id}
    fields.update({name: value for name, value in optional.items() if value is not None})
    if memory.observed_at is not None:
        fields["observed"] = memory.observed_at.timestamp()
    return fields


def point_of(partition: str, version: Version, encoder: Bm25Encoder) -> IndexPoint:
    """Return the index point of a version."""
    m = version.memory
    sparse = encoder.document(m.text, speaker=m.speaker, context=m.context, observed_at=m.observed_at)
    return IndexPoint(partition, m.id, m.version, version.vector, sparse, fields_of(m, version.run_id))

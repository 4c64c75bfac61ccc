"""What an operation does to a memory: one pure function, used by the ledger and by branches alike."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from memweave.errors import ConflictError, UnknownMemoryError
from memweave.records import Memory, OpKind, ProposedOp, Scope, Trust, new_id


class Sides(NamedTuple):
    """A memory before and after an operation; `None` where there is none."""

    before: Memory | None
    after: Memory | None


class Lineage(NamedTuple):
    """What the operations on one memory amount to."""

    state: UUID | None
    """The operation that first led to the memory's present state; `None` for the state before the first of them."""
    states: dict[UUID, UUID | None]
    """By operation, the state it led to."""
    undone: frozenset[UUID]
    """Operations that are taken back, and not restored since."""


def lineage(changes: Sequence[tuple[UUID, UUID | None]]) -> Lineage:
    """Return what the operations that changed one memory amount to.

    changes: (operation, the operation it takes back), oldest first. Taking one back leads to the state before it, under a new version
    number: so two versions are the same state when their operations say so, not when their numbers or texts agree.
    """
    state: UUID | None = None
    before: dict[UUID, UUID | None] = {}
    states: dict[UUID, UUID | None] = {}
    for op, undoes in changes:
        before[op] = state
        states[op] = state = before.get(undoes, op) if undoes else op
    undone: set[UUID] = set()
    for op, undoes in reversed(changes):
        if undoes is not None and op not in undone:
            undone.add(undoes)
    return Lineage(state, states, frozenset(undone))


def transition(op: ProposedOp, current: Memory | None, last_version: int, *, scope: Scope, now: datetime) -> Sides:
    """Return both sides of an operation (Memory-R1, section 2.2; per-id semantics of its ambiguity B3).

    current: the memory's current version, if any.  last_version: number of its last version ever, 0 if none.
    Raises: UnknownMemoryError for a target that does not exist; ConflictError for an id that is taken or a version that moved on.
    """
    if op.kind is OpKind.ADD:
        if current is not None:
            raise ConflictError(
                f"cannot ADD memory {current.id}: the id is taken in {scope}. Leave memory_id out, or UPDATE it."
            )
        return Sides(None, _added(op, last_version + 1, scope=scope, now=now))
    if op.memory_id is not None and current is None:
        raise UnknownMemoryError(f"cannot {op.kind} memory {op.memory_id}: no such memory for {scope}.")
    if current is None or op.kind is OpKind.NOOP:
        return Sides(None, None)
    if op.expected_version is not None and op.expected_version != current.version:
        raise ConflictError(
            f"memory {current.id} is at version {current.version}, not {op.expected_version}: it changed since it was read. "
            "Read it again and decide anew; nothing was changed."
        )
    return Sides(current, _updated(op, current, last_version + 1, now=now) if op.kind is OpKind.UPDATE else None)


def _added(op: ProposedOp, version: int, *, scope: Scope, now: datetime) -> Memory:
    assert op.text is not None  # ProposedOp guarantees it for ADD
    return Memory.model_construct(
        id=op.memory_id or new_id(),
        version=version,
        scope=scope,
        text=op.text,
        speaker=op.speaker,
        dialogue=op.dialogue,
        context=op.context,
        source_ids=op.source_ids,
        observed_at=op.observed_at,
        observed_naive=bool(op.observed_naive),
        valid_from=op.valid_from,
        valid_to=op.valid_to,
        trust=op.trust or Trust.USER,
        metadata=op.metadata or {},
        recorded_at=now,
        closed_at=None,
    )


def _updated(op: ProposedOp, current: Memory, version: int, *, now: datetime) -> Memory:
    given = {
        name: value
        for name in (
            "text", "speaker", "dialogue", "context", "observed_at", "observed_naive", "valid_from", "valid_to", "trust", "metadata",
        )
        if (value := getattr(op, name)) is not None
    }  # fmt: skip
    sources = tuple(dict.fromkeys((*current.source_ids, *op.source_ids)))
    fixed = {"version": version, "source_ids": sources, "recorded_at": now, "closed_at": None}
    return current.model_copy(update={**given, **fixed})

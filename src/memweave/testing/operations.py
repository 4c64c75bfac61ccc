"""Operations in one line each, for tests.

bank.apply([add("Anna drinks tea", speaker="Anna"), update(memory_id, "Anna drinks coffee")], scope=scope)
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from memweave.records import OpKind, ProposedOp


def add(text: str, **fields: Any) -> ProposedOp:
    """Return an ADD; `fields` are those of `ProposedOp`, with a reason and an actor filled in."""
    return _op(OpKind.ADD, text=text, **fields)


def update(memory_id: UUID, text: str, **fields: Any) -> ProposedOp:
    """Return an UPDATE."""
    return _op(OpKind.UPDATE, memory_id=memory_id, text=text, **fields)


def delete(memory_id: UUID, **fields: Any) -> ProposedOp:
    """Return a DELETE."""
    return _op(OpKind.DELETE, memory_id=memory_id, **fields)


def noop(memory_id: UUID | None = None, **fields: Any) -> ProposedOp:
    """Return a NOOP."""
    return _op(OpKind.NOOP, memory_id=memory_id, **fields)


def _op(kind: OpKind, **fields: Any) -> ProposedOp:  # fields of the record, which checks them
    return ProposedOp(kind=kind, **{"reason": f"{kind.lower()} for a test", "actor": "test", **fields})

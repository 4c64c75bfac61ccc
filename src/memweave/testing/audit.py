"""Does a memory bank agree with itself? For tests, after a crash, and whenever someone doubts it.

    problems = audit(bank, scope=scope)      # [] when log, state and index tell one story

Reads the log, the current memories and the index of one scope; changes nothing. Not for a bank that is being written to meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

import numpy as np

from memweave.memory_stores import MemoryBank
from memweave.memory_stores.engine import IndexQuery
from memweave.memory_stores.exact import ExactEngine, ExactIndex
from memweave.memory_stores.rows import point_of
from memweave.records import Memory, MemoryOp, OpKind, OpStatus, Scope


def replay(ops: Iterable[MemoryOp]) -> tuple[dict[UUID, Memory], list[str]]:
    """Apply a log to nothing, in order; return the state it leaves, and each operation that does not fit the one before it."""
    state: dict[UUID, Memory] = {}
    problems: list[str] = []
    last = 0
    for op in ops:
        if op.seq <= last:
            problems.append(f"operation {op.seq} is logged after {last}")
        last = op.seq
        if op.status is OpStatus.FAILED or op.kind is OpKind.NOOP:
            if op.before or op.after:
                problems.append(f"operation {op.seq} ({op.kind}, {op.status}) changed something")
            continue
        problems += _misfits(op, state)
        if op.memory_id is None:
            continue
        if op.after is None:
            state.pop(op.memory_id, None)
        else:
            state[op.memory_id] = op.after
    return state, problems


def _misfits(op: MemoryOp, state: dict[UUID, Memory]) -> list[str]:
    """Return what is wrong with an operation that follows `state`."""
    if op.memory_id is None:
        return [f"operation {op.seq} ({op.kind}) names no memory"]
    known = state.get(op.memory_id)
    sides = {OpKind.ADD: (False, True), OpKind.UPDATE: (True, True), OpKind.DELETE: (True, False)}[op.kind]
    out: list[str] = []
    if (op.before is not None, op.after is not None) != sides:
        out.append(f"operation {op.seq} ({op.kind}) lacks a side, or has one too many")
    if (known.version if known else None) != (op.before.version if op.before else None):
        out.append(f"operation {op.seq} ({op.kind}) replaces a version that was not current")
    if op.after is not None and known is not None and op.after.version <= known.version:
        out.append(f"operation {op.seq} ({op.kind}) does not count its version up")
    return out


def audit(bank: MemoryBank, *, scope: Scope) -> list[str]:
    """Return what is inconsistent in a scope, one line each: the log against the state, the state against the index."""
    replayed, problems = replay(bank.log(scope=scope))
    state = {m.id: m for m in bank.memories(scope=scope)}
    if _content(replayed) != _content(state):
        problems.append(f"the log leads to {len(replayed)} memories, the ledger holds {len(state)} (or others)")
    counted = bank.count(scope=scope)
    indexed = _indexed(bank, scope, limit=max(counted, len(state)) + 1)
    if counted != len(state):
        problems.append(f"the index counts {counted} memories, the ledger holds {len(state)}")
    if indexed != {m.id: m.version for m in state.values()}:
        problems.append("the index holds other memories or versions than the ledger")
    return problems


def oracle(bank: MemoryBank, *, scope: Scope) -> ExactEngine:
    """Return the current state of a scope, read from the ledger, as an exact engine."""
    partition = scope.partition()
    versions = bank._core.ledger.snapshot(partition, scope)
    return ExactEngine(ExactIndex([point_of(partition, version, bank._encoder) for version in versions]))


def _content(state: dict[UUID, Memory]) -> dict[UUID, tuple[int, str, str | None]]:
    return {m.id: (m.version, m.text, m.speaker) for m in state.values()}


def _indexed(bank: MemoryBank, scope: Scope, *, limit: int) -> dict[UUID, int]:
    """Return id and version of every point of the scope in the index."""
    anything = np.zeros(bank.embedder.dimension, dtype=np.float32)
    anything[0] = 1.0
    query = IndexQuery(scope.partition(), anything, None, limit)
    return {hit.key: hit.version for hit in bank._core.projector.search(query)}

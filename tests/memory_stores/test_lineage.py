"""Undo: which operations are taken back, and which state that leads to. What a store does with it is in the conformance kit."""

from __future__ import annotations

from uuid import UUID

from memweave.memory_stores.transitions import lineage


def test_lineage_of_a_long_quarrel() -> None:
    ids = [UUID(int=i) for i in range(3_000)]
    changes: list[tuple[UUID, UUID | None]] = [(ids[0], None)]
    changes += [(ids[i], ids[i - 1]) for i in range(1, 3_000)]  # each takes the one before it back
    line = lineage(changes)
    assert line.state is None  # 2,999 undos: an odd number leaves the first one undone
    assert ids[0] in line.undone
    assert lineage(changes[:-1]).state == ids[0]
    assert lineage([]).state is None

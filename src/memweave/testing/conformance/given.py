"""What the kit of memory stores is given, and how its tests look at a store."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from memweave.memory_stores import MemoryStore
from memweave.records import (
    MemoryOp,
    Scope,
    StoredTurn,
    Turn,
)

DAY = timedelta(days=1)
MAY = datetime(2024, 5, 8, 10, tzinfo=UTC)


def texts(store: MemoryStore, scope: Scope) -> list[str]:
    """Return the texts of the current memories."""
    return [memory.text for memory in store.memories(scope=scope)]


def found(store: MemoryStore, scope: Scope, **search: Any) -> list[str]:
    """Return the texts that a search over everything finds, sorted; `search` are arguments of `MemoryStore.search`."""
    hits = store.search("tea coffee milk", scope=scope, limit=100, **search)
    return sorted(hit.memory.text for hit in hits)


def added(ops: list[MemoryOp]) -> list[uuid.UUID]:
    """Return the ids of the memories that operations are about."""
    return [op.memory_id for op in ops if op.memory_id is not None]


def said(source_id: str, text: str = "Hi", *, dialogue: str = "d1", speaker: str = "Anna") -> Turn:
    """Return a turn."""
    return Turn(source_id=source_id, text=text, dialogue=dialogue, speaker=speaker)


def sources(turns: list[StoredTurn]) -> list[str]:
    """Return the ids that the caller gave to turns."""
    return [turn.source_id for turn in turns]


class Given:
    """What a subclass supplies."""

    @pytest.fixture
    def store(self, scope: Scope) -> MemoryStore:
        """Return a store that serves `scope`, which is empty."""
        raise AssertionError("a subclass supplies the fixture `store`")

    @pytest.fixture
    def scope(self) -> Scope:
        """Return a scope that nothing was written to yet, so that a store can be shared by several tests."""
        return Scope(tenant="conformance", user=uuid.uuid4().hex)

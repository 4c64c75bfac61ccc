"""What every `MemoryStore` does; see the package."""

from __future__ import annotations

import anyio
import pytest

from memweave.errors import InputError, UnknownMemoryError
from memweave.memory_stores import MemoryStore
from memweave.records import (
    IndexFilter,
    Scope,
    TurnStatus,
    new_id,
)
from memweave.testing.conformance.given import Given, added, said
from memweave.testing.conformance.reading import Reading
from memweave.testing.conformance.turns import Turns
from memweave.testing.conformance.undoing import Undoing
from memweave.testing.conformance.writing import Writing
from memweave.testing.operations import add


class Async(Given):
    """Async twins."""

    def test_async_twins_do_the_same(self, store: MemoryStore, scope: Scope) -> None:
        """One story, told with every twin and checked with the sync methods."""

        async def story() -> None:
            (turn, other) = await store.aaccept([said("1"), said("2")], scope=scope)
            first, second = await store.aapply(
                [add("tea", speaker="Anna", run_id="r1"), add("coffee")], scope=scope, turn=turn
            )
            (memory_id, _) = added([first, second])
            failed = await store.areject("prose", scope=scope, actor="model", turn=other)
            assert await store.aget(memory_id, scope=scope) == store.get(memory_id, scope=scope) == first.after
            assert await store.amemories(scope=scope) == store.memories(scope=scope)
            assert await store.alog(scope=scope, newest=True, limit=1) == [failed]
            assert await store.aturns(scope=scope, status=TurnStatus.PENDING) == store.turns(
                scope=scope, status=TurnStatus.PENDING
            )
            assert await store.aspeakers(scope=scope) == ["Anna"]
            assert await store.ahistory(memory_id, scope=scope) == store.history(memory_id, scope=scope)
            assert await store.aas_of(first.recorded_at, scope=scope) == [first.after]
            for where in (None, IndexFilter(speakers=("Anna",))):
                assert await store.asearch("tea", scope=scope, where=where) == store.search(
                    "tea", scope=scope, where=where
                )
            past = await store.asearch("tea", scope=scope, as_of=first.recorded_at)
            assert [hit.memory.text for hit in past] == ["tea"]
            with pytest.raises(InputError):
                await store.asearch(" ", scope=scope)
            with pytest.raises(UnknownMemoryError):
                await store.aget(new_id(), scope=scope)
            undone = await store.aundo(second.id, scope=scope, actor="test")
            assert [op.undoes for op in await store.aundo_run("r1", scope=scope, actor="test")] == [first.id]
            assert undone.undoes == second.id
            assert await store.amemories(scope=scope) == []

        anyio.run(story)


class StoreConformance(Writing, Reading, Undoing, Turns, Async):
    """Subclass it as `Test...` and supply the fixture `store`, a `MemoryStore` that serves the fixture `scope`.

    The scope is a new one for each test, so one bank can serve them all.
    """

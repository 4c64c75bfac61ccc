"""An index that fails: what was acknowledged is in the ledger, readers are told, and it catches up when it is back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient

from memweave.errors import UnavailableError
from memweave.memory_stores import MemoryBank
from memweave.memory_stores.engine import IndexHit, IndexPoint, IndexQuery, Marker, VectorEngine
from memweave.memory_stores.exact import ExactEngine
from memweave.memory_stores.server import ServerEngine
from memweave.records import Scope
from memweave.testing.audit import audit
from memweave.testing.banks import bank_over
from memweave.testing.operations import add, delete, update


class Flaky:
    """An engine that stops answering after so many calls, in between any two of them; `calls_left=None` is sound."""

    def __init__(self, engine: VectorEngine) -> None:
        self.engine = engine
        self.calls_left: int | None = None

    def _call(self) -> VectorEngine:
        if self.calls_left is not None:
            if self.calls_left == 0:
                raise UnavailableError("Qdrant server at http://there does not answer. Start it.")
            self.calls_left -= 1
        return self.engine

    def upsert(self, points: Sequence[IndexPoint]) -> None:
        self._call().upsert(points)

    def delete(self, points: Sequence[tuple[str, UUID]]) -> None:
        self._call().delete(points)

    def drop_partition(self, partition: str) -> None:
        self._call().drop_partition(partition)

    def search(self, query: IndexQuery) -> list[IndexHit]:
        return self._call().search(query)

    def count(self, partition: str | None = None) -> int:
        return self._call().count(partition)

    def marker(self) -> Marker | None:
        return self._call().marker()

    def set_marker(self, marker: Marker) -> None:
        self._call().set_marker(marker)

    def clear(self) -> None:
        self._call().clear()

    def close(self) -> None:
        self.engine.close()


class FlakyAsync(Flaky):
    """The same for an engine that can search without a thread."""

    async def asearch(self, query: IndexQuery) -> list[IndexHit]:
        return self._call().search(query)


def engines() -> dict[str, Callable[[], VectorEngine]]:
    return {
        "exact": lambda: ExactEngine(),
        "qdrant-in-memory": lambda: ServerEngine(QdrantClient(":memory:"), "memweave_" + uuid4().hex, 64),
    }


@pytest.fixture(params=sorted(engines()))
def engine(request: pytest.FixtureRequest) -> Flaky:
    return FlakyAsync(engines()[request.param]())


@pytest.fixture
def bank(tmp_path: Path, engine: Flaky) -> Iterator[MemoryBank]:
    with bank_over(tmp_path, engine, shared=True) as opened:
        yield opened


def test_writes_are_acknowledged_while_the_index_is_down(
    bank: MemoryBank, engine: Flaky, scope: Scope, caplog: pytest.LogCaptureFixture
) -> None:
    (first,) = bank.apply([add("Anna drinks tea")], scope=scope)
    assert first.memory_id is not None
    assert bank.count(scope=scope) == 1
    engine.calls_left = 0
    bank.apply([update(first.memory_id, "Anna drinks coffee"), add("Anna has a cat")], scope=scope)
    bank.undo(bank.log(scope=scope)[-1].id, scope=scope, actor="test")
    assert [m.text for m in bank.memories(scope=scope)] == ["Anna drinks coffee"]
    assert "committed to the ledger, but the index is behind: Qdrant server at http://there" in caplog.text
    for read in (lambda: bank.search("coffee", scope=scope), lambda: bank.count(scope=scope)):
        with pytest.raises(UnavailableError, match="http://there"):
            read()
    # What needs no index goes on.
    assert bank.branch(scope=scope).search("coffee", scope=scope)[0].memory.text == "Anna drinks coffee"
    assert bank.search("tea", scope=scope, as_of=first.recorded_at)[0].memory.text == "Anna drinks tea"

    engine.calls_left = None
    assert [h.memory.text for h in bank.search("coffee", scope=scope)] == ["Anna drinks coffee"]
    assert audit(bank, scope=scope) == []


@pytest.mark.anyio
async def test_an_async_search_is_told_too(bank: MemoryBank, engine: Flaky, scope: Scope) -> None:
    await bank.aapply([add("Anna drinks tea")], scope=scope)
    assert len(await bank.asearch("tea", scope=scope)) == 1
    engine.calls_left = 0
    with pytest.raises(UnavailableError, match="http://there"):
        await bank.asearch("tea", scope=scope)
    engine.calls_left = None
    assert len(await bank.asearch("tea", scope=scope)) == 1


def test_a_rebuild_that_breaks_off_is_not_taken_for_whole(bank: MemoryBank, engine: Flaky, scope: Scope) -> None:
    bank.apply([add(f"Anna drinks tea {i}") for i in range(5)], scope=scope)
    assert bank.count(scope=scope) == 5
    for calls in range(3):  # clear, upsert, set_marker
        engine.calls_left = calls
        with pytest.raises(UnavailableError):
            bank.rebuild()
        with pytest.raises(UnavailableError):
            bank.search("tea", scope=scope)
        engine.calls_left = None
        assert len(bank.search("tea", scope=scope)) == 5
        assert audit(bank, scope=scope) == []


def test_an_index_that_was_emptied_elsewhere_is_filled_again(bank: MemoryBank, engine: Flaky, scope: Scope) -> None:
    bank.apply([add("Anna drinks tea")], scope=scope)
    assert bank.count(scope=scope) == 1
    engine.engine.clear()  # somebody deleted the collection
    bank.apply([add("Anna has a cat")], scope=scope)
    assert len(bank.search("tea", scope=scope)) == 2


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), shared=st.booleans())
def test_an_index_that_fails_anywhere_catches_up(
    tmp_path_factory: pytest.TempPathFactory, seed: int, shared: bool
) -> None:
    rng, engine = random.Random(seed), Flaky(ExactEngine())
    scopes = [Scope(user="anna"), Scope(user="bob")]
    with bank_over(tmp_path_factory.mktemp("flaky"), engine, shared=shared) as bank:
        for step in range(12):
            engine.calls_left = rng.choice([None, None, *range(6)])
            scope = rng.choice(scopes)
            mine = [m.id for m in bank.memories(scope=scope)]
            batch = [add(f"tea number {step}", speaker=rng.choice(["Anna", "Bob"]))]
            if mine:
                batch.append(rng.choice([update(rng.choice(mine), f"coffee number {step}"), delete(rng.choice(mine))]))
            try:
                if rng.random() < 0.15:
                    bank.purge(scope=scope)
                elif rng.random() < 0.1:
                    bank.rebuild()
                else:
                    bank.apply(batch, scope=scope)
                found = {h.memory.id for h in bank.search("tea coffee", scope=scope, limit=100)}
                assert found == {m.id for m in bank.memories(scope=scope)}  # whole, or an error: never a part
            except UnavailableError:
                continue
        engine.calls_left = None
        for scope in scopes:
            assert audit(bank, scope=scope) == []

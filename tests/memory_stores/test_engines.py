"""The three vector engines pass the same kit; the ones on Qdrant are also compared with the exact one on random worlds."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memweave.errors import DataFolderError, UnavailableError
from memweave.memory_stores.edge import EdgeEngine
from memweave.memory_stores.engine import Marker, VectorEngine
from memweave.memory_stores.exact import ExactEngine, ExactIndex
from memweave.memory_stores.server import ServerEngine
from memweave.testing.conformance import EngineConformance
from memweave.testing.conformance.engines import ONE, RandomWorld, assert_agree, dense, key, keys, point, unit, words

QDRANT_URL = os.environ.get("QDRANT_URL")
SERVER = "qdrant-server" if QDRANT_URL else "qdrant-in-memory"


def server_engine(collection: str, dimension: int) -> ServerEngine:
    """An engine on the server at QDRANT_URL, otherwise on qdrant-client's in-memory engine."""
    from qdrant_client import QdrantClient

    if QDRANT_URL:
        return ServerEngine.connect(QDRANT_URL, collection, dimension)
    return ServerEngine(QdrantClient(":memory:"), collection, dimension)


class TestEdge(EngineConformance):
    persistent = True

    def make_engine(self, folder: Path) -> VectorEngine:
        return EdgeEngine(folder, self.dimension)


class TestTemporaryEdge(EngineConformance):
    """As a second process has it: no write-ahead log."""

    def make_engine(self, folder: Path) -> VectorEngine:
        return EdgeEngine(folder, self.dimension, wal=False)


class TestExact(EngineConformance):
    def make_engine(self, folder: Path) -> VectorEngine:
        return ExactEngine()


class TestExactOverIndex(EngineConformance):
    """As a branch has it: an overlay over a shared index, here of one point that is deleted."""

    def make_engine(self, folder: Path) -> VectorEngine:
        engine = ExactEngine(ExactIndex([point(10_000)]))
        engine.delete([(ONE, key(10_000))])
        return engine


class TestServer(EngineConformance):
    persistent = thread_safe = QDRANT_URL is not None

    def make_engine(self, folder: Path) -> VectorEngine:
        return server_engine("memweave_test_" + uuid.uuid5(uuid.NAMESPACE_URL, str(folder)).hex, self.dimension)

    @pytest.fixture(params=[SERVER])
    def engine(self, tmp_path: Path) -> Iterator[VectorEngine]:
        made = self.make_engine(tmp_path / "engine")
        yield made
        made.clear()
        made.close()


# Random worlds, deeper than the kit: each example is a seed, so a failure is one number


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeEngine]:
    made = EdgeEngine(tmp_path_factory.mktemp("edge") / "index", 6)
    yield made
    made.close()


@pytest.fixture(scope="module")
def server() -> Iterator[ServerEngine]:
    made = server_engine("memweave_test_" + uuid.uuid4().hex, 6)
    yield made
    made.clear()
    made.close()


@pytest.mark.parametrize("name", ["edge", SERVER])
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 15))
def test_random_worlds_agree(request: pytest.FixtureRequest, name: str, seed: int, changes: int) -> None:
    engine: VectorEngine = request.getfixturevalue("edge" if name == "edge" else "server")
    world, exact = RandomWorld(seed, dimension=6), ExactEngine()
    for partition in world.partitions:
        engine.drop_partition(partition)
    for _ in range(changes):
        world.change([engine, exact])
    base = ExactIndex(list(exact._written.values()))  # the same state, arranged for scanning
    for query in (world.query() for _ in range(8)):
        assert_agree(engine, exact, query)
        assert_agree(ExactEngine(base), exact, query, tolerance=1e-6)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32))
def test_a_fork_and_its_origin_go_their_own_ways(seed: int) -> None:
    world, plain = RandomWorld(seed), ExactEngine()
    for _ in range(4):
        world.change([plain])
    origin = ExactEngine(ExactIndex(list(plain._written.values())))
    fork, before = origin.fork(), plain.fork()
    for _ in range(4):
        world.change([fork, plain])
    for query in (world.query() for _ in range(4)):
        assert_agree(fork, plain, query, tolerance=1e-6)
        assert_agree(origin, before, query, tolerance=1e-6)
    assert (fork.count(), origin.count()) == (plain.count(), before.count())


def test_ties_are_broken_by_key_in_the_exact_engine() -> None:
    order = [5, 3, 9, 1]
    written = ExactEngine()
    written.upsert([point(i, words={7: 1.0}) for i in order])
    for engine in (written, ExactEngine(ExactIndex([point(i, words={7: 1.0}) for i in order]))):
        assert keys(engine.search(dense(1, 0, 0, 0, limit=3))) == keys(engine.search(words(7, limit=3))) == [1, 3, 5]


# What only one of them does


def test_edge_erases_what_it_clears(tmp_path: Path) -> None:
    engine = EdgeEngine(tmp_path / "index", 4)
    engine.upsert([point(1, speaker="qxsecret")])

    def holds_it() -> bool:
        return any(b"qxsecret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())

    assert holds_it()
    engine.clear()
    assert not holds_it()
    engine.close()


def test_an_edge_folder_that_is_taken_says_so(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("not a folder")
    with pytest.raises(DataFolderError, match=r"opening index .*memweave memory rebuild"):
        EdgeEngine(tmp_path / "index", 4)


def test_edge_searches_the_same_after_optimizing(tmp_path: Path) -> None:
    engine, exact, world = EdgeEngine(tmp_path / "index", 6), ExactEngine(), RandomWorld(3, dimension=6)
    for _ in range(20):
        world.change([engine, exact])
    engine.optimize()
    for query in (world.query() for _ in range(20)):
        assert_agree(engine, exact, query)
    engine.close()


def test_a_server_collection_of_another_dimension_is_refused() -> None:
    from qdrant_client import QdrantClient

    client = QdrantClient(QDRANT_URL or ":memory:")
    name = "memweave_test_" + uuid.uuid4().hex
    ServerEngine(client, name, 4).set_marker(Marker("ledger", 1, "key"))
    with pytest.raises(DataFolderError, match=r"has dimension 4, expected 6.*rebuilt from the ledger"):
        ServerEngine(client, name, 6, url="http://here")
    assert ServerEngine(client, name, 4).marker() == Marker("ledger", 1, "key")
    client.delete_collection(name)


def test_a_server_that_does_not_answer_is_named(closed_port: Callable[[], int]) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(UnavailableError, match=rf"Qdrant server at {url} does not answer .*qdrant_url"):
        ServerEngine.connect(url, "memweave_test", 4, timeout=1)


def test_a_collection_that_vanishes_is_an_error_of_the_server() -> None:
    engine = server_engine("memweave_test_" + uuid.uuid4().hex, 4)
    engine._client.delete_collection(engine._collection)
    with pytest.raises(UnavailableError, match="refused the request") if QDRANT_URL else pytest.raises(ValueError):  # noqa: PT011 -- the in-memory client has its own errors
        engine.search(dense(1, 0, 0, 0))
    assert unit(1, 0).shape == (2,)

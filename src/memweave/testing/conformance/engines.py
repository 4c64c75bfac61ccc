"""What every `VectorEngine` does; see the package."""

from __future__ import annotations

import math
import random
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import anyio
import numpy as np
import pytest

from memweave.memory_stores.engine import (
    FAR_FUTURE,
    FAR_PAST,
    KEYWORD_FIELDS,
    NUMBER_FIELDS,
    AsyncSearch,
    Condition,
    IndexHit,
    IndexPoint,
    IndexQuery,
    Marker,
    Match,
    Range,
    Sparse,
    VectorEngine,
)
from memweave.memory_stores.exact import ExactEngine

ONE, TWO = "1" * 32, "2" * 32
"""Two partitions."""


def key(number: int) -> uuid.UUID:
    """Return the id of a record."""
    return uuid.UUID(int=number)


def unit(*numbers: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return a vector of length 1 in the direction of `numbers`."""
    vector = np.asarray(numbers, dtype=np.float32)
    return vector / np.float32(np.linalg.norm(vector))


def point(
    number: int,
    dense: Sequence[float] = (1.0, 0.0, 0.0, 0.0),
    words: dict[int, float] | None = None,
    *,
    partition: str = ONE,
    version: int = 1,
    **fields: str | float,
) -> IndexPoint:
    """Return a point: `words` are token weights, `fields` indexed fields."""
    weights = words or {}
    always: dict[str, str | float] = {"trust": "user", "valid_from": FAR_PAST, "valid_to": FAR_FUTURE}
    sparse = Sparse(list(weights), list(weights.values()))
    return IndexPoint(partition, key(number), version, unit(*dense), sparse, {**always, **fields})


def dense(*numbers: float, partition: str = ONE, limit: int = 10, conditions: Sequence[Condition] = ()) -> IndexQuery:
    """Return a query by vector alone."""
    return IndexQuery(partition, unit(*numbers), None, limit, tuple(conditions))


def words(*tokens: int, partition: str = ONE, limit: int = 10, conditions: Sequence[Condition] = ()) -> IndexQuery:
    """Return a query by words alone."""
    return IndexQuery(partition, None, Sparse(list(tokens), [1.0] * len(tokens)), limit, tuple(conditions))


def keys(hits: Sequence[IndexHit]) -> list[int]:
    """Return the numbers of the records found, in order."""
    return [hit.key.int for hit in hits]


def idf(total: int, containing: int) -> float:
    """Return the weight of a token that `containing` of `total` points have."""
    return math.log(1 + (total - containing + 0.5) / (containing + 0.5))


def assert_agree(engine: VectorEngine, exact: ExactEngine, query: IndexQuery, *, tolerance: float = 1e-4) -> None:
    """Check a search against the exact one: the same scores in order, and the same records up to ties."""
    truth = {hit.key: hit for hit in exact.search(replace(query, limit=1_000_000))}
    expected = [hit.score for hit in exact.search(query)]
    found = engine.search(query)
    assert len({hit.key for hit in found}) == len(found), "a record was found twice"
    assert [hit.score for hit in found] == pytest.approx(expected, abs=tolerance)
    for hit in found:
        assert hit.key in truth, f"{hit.key} should not be found"
        right = truth[hit.key]
        assert hit.score == pytest.approx(right.score, abs=tolerance)
        assert (hit.version, hit.speaker) == (right.version, right.speaker)


class RandomWorld:
    """Random points and queries that an engine and the exact engine both get, from one seed."""

    def __init__(self, seed: int, *, dimension: int = 4) -> None:
        self.rng = random.Random(seed)
        self.dimension = dimension
        self.partitions = (ONE, TWO, "3" * 32)
        self.versions = 0

    def point(self) -> IndexPoint:
        """Return a point in one of few places, so that points get replaced."""
        rng = self.rng
        self.versions += 1
        fields: dict[str, str | float] = {"trust": rng.choice(["user", "agent", "web"])}
        for name, values in (("speaker", ["Anna", "Bob", "Zoë 🫖"]), ("dialogue", ["d1", "d2"]), ("run", ["r1", "r2"])):
            if rng.random() < 0.7:
                fields[name] = rng.choice(values)
        if rng.random() < 0.7:
            fields["observed"] = float(rng.randrange(5))
        fields["valid_from"] = rng.choice([FAR_PAST, 1.0, 2.0])
        fields["valid_to"] = rng.choice([FAR_FUTURE, 2.0, 3.0])
        tokens = rng.sample(range(8), rng.randrange(4))
        # Random weights: two equal scores would rank differently in two engines.
        sparse = Sparse(tokens, [rng.uniform(0.5, 2.0) for _ in tokens])
        place = rng.choice(self.partitions), key(rng.randrange(1, 60))
        return IndexPoint(*place, self.versions, self.vector(), sparse, fields)

    def vector(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """Return a random direction."""
        return unit(*(self.rng.gauss(0, 1) for _ in range(self.dimension)))

    def conditions(self) -> tuple[Condition, ...]:
        """Return no condition, one or several, on any field."""
        rng, out = self.rng, list[Condition]()
        for field, values in (
            ("speaker", ["Anna", "Bob", "Zoë 🫖", "Eve"]),
            ("dialogue", ["d1", "d2"]),
            ("run", ["r1"]),
        ):
            if rng.random() < 0.15:
                out.append(Match(field, tuple(rng.sample(values, rng.randrange(1, len(values) + 1)))))
        if rng.random() < 0.15:
            out.append(Match("trust", tuple(rng.sample(["user", "agent", "web"], 2))))
        if rng.random() < 0.15:
            out.append(Range("observed", gte=rng.choice([None, 1.0]), lt=rng.choice([3.0, 4.0])))
        if rng.random() < 0.15:
            at = float(rng.randrange(1, 4))
            out += [Range("valid_from", lte=at), Range("valid_to", gt=at)]
        return tuple(out)

    def query(self) -> IndexQuery:
        """Return a query by vector, by words or by both."""
        rng = self.rng
        kind = rng.choice(["dense", "words", "both", "both"])
        tokens = rng.sample(range(9), rng.randrange(1, 5))
        return IndexQuery(
            rng.choice(self.partitions),
            self.vector() if kind != "words" else None,
            Sparse(tokens, [1.0] * len(tokens)) if kind != "dense" else None,
            limit=rng.choice([1, 3, 10, 50]),
            conditions=self.conditions(),
            rrf_k=rng.choice([1, 5, 60]),
            weights=(rng.uniform(0.2, 3.0), rng.uniform(0.2, 3.0)),
            prefetch=rng.choice([5, 20, 100]),
        )

    def change(self, engines: Sequence[VectorEngine]) -> None:
        """Do one random change to all engines alike."""
        rng = self.rng
        roll = rng.random()
        if roll < 0.7:
            points = {p.id: p for p in (self.point() for _ in range(rng.randrange(1, 12)))}
            for engine in engines:
                engine.upsert(list(points.values()))
        elif roll < 0.95:
            gone = [(rng.choice(self.partitions), key(rng.randrange(1, 70))) for _ in range(rng.randrange(1, 6))]
            for engine in engines:
                engine.delete(gone)
        else:
            partition = rng.choice(self.partitions)
            for engine in engines:
                engine.drop_partition(partition)


class EngineConformance(ABC):
    """Subclass it as `Test...` and say how an engine is made."""

    persistent: ClassVar[bool] = False
    """An engine made again on the same folder has what the one before wrote."""
    thread_safe: ClassVar[bool] = True
    """Any thread may call at any time. A memory bank needs it; qdrant-client's in-memory engine lacks it."""
    dimension: ClassVar[int] = 4

    @abstractmethod
    def make_engine(self, folder: Path) -> VectorEngine:
        """Return an engine for vectors of `dimension` numbers, new unless one was made on that folder before."""

    @pytest.fixture
    def engine(self, tmp_path: Path) -> Iterator[VectorEngine]:
        """Return a new engine."""
        made = self.make_engine(tmp_path / "engine")
        yield made
        made.close()

    # Points

    def test_a_new_engine_is_empty(self, engine: VectorEngine) -> None:
        """Nothing is there and nothing is found."""
        assert isinstance(engine, VectorEngine)
        assert (engine.count(), engine.count(ONE), engine.marker()) == (0, 0, None)
        assert engine.search(dense(1, 0, 0, 0)) == engine.search(words(1)) == []

    def test_a_hit_says_what_was_found(self, engine: VectorEngine) -> None:
        """Key, version, score and speaker come back."""
        engine.upsert([point(7, (0, 1, 0, 0), version=3, speaker="Zoë 🫖"), point(8, (1, 0, 0, 0))])
        first, second = engine.search(dense(0, 1, 0, 0))
        assert (first.key, first.version, first.speaker) == (key(7), 3, "Zoë 🫖")
        assert first.score == pytest.approx(1.0, abs=1e-4)
        assert (second.key, second.version, second.speaker) == (key(8), 1, None)

    def test_upserting_again_replaces_everything(self, engine: VectorEngine) -> None:
        """The old vector, words and fields are gone."""
        engine.upsert([point(1, (1, 0, 0, 0), {5: 1.0}, speaker="Anna", observed=1.0)])
        engine.upsert([point(1, (0, 1, 0, 0), {6: 1.0}, version=2, speaker="Bob")])
        assert engine.count(ONE) == engine.count() == 1
        (hit,) = engine.search(dense(0, 1, 0, 0))
        assert (hit.version, hit.speaker) == (2, "Bob")
        assert hit.score == pytest.approx(1.0, abs=1e-4)
        assert engine.search(words(5)) == []
        assert keys(engine.search(words(6))) == [1]
        for old in (Match("speaker", ("Anna",)), Range("observed", gte=0.0)):
            assert engine.search(dense(1, 0, 0, 0, conditions=[old])) == []

    def test_deleting_removes_the_point_and_ignores_absent_ones(self, engine: VectorEngine) -> None:
        """A delete names partition and key."""
        engine.upsert([point(1), point(2), point(1, partition=TWO)])
        engine.delete([(ONE, key(1)), (ONE, key(9)), (TWO, key(2))])
        engine.delete([])
        assert keys(engine.search(dense(1, 0, 0, 0))) == [2]
        assert keys(engine.search(dense(1, 0, 0, 0, partition=TWO))) == [1]
        assert (engine.count(ONE), engine.count(TWO), engine.count()) == (1, 1, 2)

    def test_many_points_at_once(self, engine: VectorEngine) -> None:
        """A batch may be longer than whatever the driver sends at once."""
        special = {600: (1, 3, 0, 0), 1_300: (0, 1, 0, 0)}
        engine.upsert([point(i, special.get(i, (1, 0, 0, 0))) for i in range(1, 1_301)])
        assert engine.count(ONE) == 1_300
        assert keys(engine.search(dense(0, 1, 0, 0, limit=2))) == [1_300, 600]
        engine.delete([(ONE, key(i)) for i in range(2, 1_301)])
        assert keys(engine.search(dense(0, 1, 0, 0))) == [1]

    # Partitions

    def test_partitions_are_apart(self, engine: VectorEngine) -> None:
        """The same key in two partitions is two points, and no search sees both."""
        engine.upsert([point(1, (1, 0, 0, 0), {5: 1.0}), point(1, (0, 1, 0, 0), {5: 1.0}, partition=TWO, version=2)])
        both = IndexQuery(ONE, unit(0, 1, 0, 0), Sparse([5], [1.0]), 10)
        for query in (dense(0, 1, 0, 0), words(5), both):
            assert [(hit.key, hit.version) for hit in engine.search(query)] == [(key(1), 1)]
        assert engine.search(dense(1, 0, 0, 0, partition="9" * 32)) == []

    def test_dropping_a_partition_leaves_the_others(self, engine: VectorEngine) -> None:
        """What was dropped can be written again."""
        engine.upsert([point(i, partition=p) for i in (1, 2) for p in (ONE, TWO)])
        engine.drop_partition(ONE)
        engine.drop_partition("9" * 32)
        assert (engine.count(ONE), engine.count(TWO)) == (0, 2)
        assert engine.search(dense(1, 0, 0, 0)) == []
        engine.upsert([point(3)])
        assert keys(engine.search(dense(1, 0, 0, 0))) == [3]

    # Rankings

    def test_dense_is_cosine(self, engine: VectorEngine) -> None:
        """Scores are cosines, negative ones included, best first."""
        engine.upsert([point(1, (1, 0, 0, 0)), point(2, (1, 1, 0, 0)), point(3, (-1, 0, 0, 0)), point(4, (0, 1, 0, 0))])
        hits = engine.search(dense(1, 0, 0, 0))
        assert keys(hits) == [1, 2, 4, 3]
        assert [hit.score for hit in hits] == pytest.approx([1.0, math.sqrt(0.5), 0.0, -1.0], abs=1e-4)
        assert keys(engine.search(dense(1, 0, 0, 0, limit=2))) == [1, 2]

    def test_words_are_weighed_by_their_rarity_in_the_partition(self, engine: VectorEngine) -> None:
        """The score is the sum of weight x ln(1 + (N - n + 0.5) / (n + 0.5)); other partitions do not count."""
        engine.upsert([point(1, words={5: 1.2, 6: 0.7}), point(2, words={5: 0.9}), point(3, words={7: 2.0}), point(4)])
        alone = engine.search(words(5, 6))
        assert keys(alone) == [1, 2]  # and none without a word of the query
        assert [hit.score for hit in alone] == pytest.approx(
            [1.2 * idf(4, 2) + 0.7 * idf(4, 1), 0.9 * idf(4, 2)], abs=1e-4
        )
        engine.upsert([point(i, words={6: 1.0}, partition=TWO) for i in range(50)])
        assert [hit.score for hit in engine.search(words(5, 6))] == pytest.approx([h.score for h in alone], abs=1e-4)

    def test_conditions_do_not_change_rarity(self, engine: VectorEngine) -> None:
        """A filter picks from a ranking; it does not make another one."""
        engine.upsert([point(1, words={5: 1.0}, speaker="Anna"), point(2, words={5: 1.0}), point(3)])
        (hit,) = engine.search(words(5, conditions=[Match("speaker", ("Anna",))]))
        assert hit.score == pytest.approx(idf(3, 2), abs=1e-4)

    def test_both_rankings_are_fused_by_weighted_rank(self, engine: VectorEngine) -> None:
        """A point gets 1 / (k - 1 + (rank + 1) / weight) from each ranking that holds it."""
        engine.upsert(
            [point(1, (1, 0, 0, 0)), point(2, (3, 1, 0, 0), {5: 2.0}), point(3, (2, 1, 0, 0), {5: 3.0}), point(4, (0, 1, 0, 0), {5: 1.0})]
        )  # fmt: skip
        query = IndexQuery(ONE, unit(1, 0, 0, 0), Sparse([5], [1.0]), 10, rrf_k=2, weights=(3.0, 1.5))
        expected = {
            1: 1 / (1 + 1 / 3),
            2: 1 / (1 + 2 / 3) + 1 / (1 + 2 / 1.5),
            3: 1 / (1 + 3 / 3) + 1 / (1 + 1 / 1.5),
            4: 1 / (1 + 4 / 3) + 1 / (1 + 3 / 1.5),
        }
        hits = engine.search(query)
        assert keys(hits) == sorted(expected, key=lambda i: -expected[i])
        assert [hit.score for hit in hits] == pytest.approx([expected[i] for i in keys(hits)], abs=1e-4)

    def test_each_ranking_is_as_deep_as_the_prefetch(self, engine: VectorEngine) -> None:
        """What is in neither prefetch is not found."""
        engine.upsert([point(i, (1, i / 10, 0, 0), {5: 1.0 + i}) for i in range(1, 9)])
        query = IndexQuery(ONE, unit(1, 0, 0, 0), Sparse([5], [1.0]), 10, prefetch=2)
        assert sorted(keys(engine.search(query))) == [1, 2, 7, 8]

    # Conditions

    @pytest.mark.parametrize("field", KEYWORD_FIELDS)
    def test_a_keyword_is_one_of_the_values(self, engine: VectorEngine, field: str) -> None:
        """Values match whole and in their case; a missing field matches nothing."""
        engine.upsert([_with(point(i), field, value) for i, value in ((1, "a b"), (2, "A b"), (3, "a"), (4, None))])
        for values, expected in ((("a b",), [1]), (("a", "A b"), [2, 3]), (("b",), []), (("", "None"), [])):
            found = engine.search(dense(1, 0, 0, 0, conditions=[Match(field, values)]))
            assert sorted(keys(found)) == expected, values

    @pytest.mark.parametrize("field", NUMBER_FIELDS)
    def test_a_number_lies_in_the_range(self, engine: VectorEngine, field: str) -> None:
        """Bounds are inclusive or not as said, to the microsecond; a missing field matches nothing."""
        now, tick = 1_700_000_000.000001, 1e-6
        engine.upsert([_with(point(i), field, now + (i - 2) * tick) for i in (1, 2, 3)])
        engine.upsert([_with(point(4), field, None)])
        for bounds, expected in (
            (Range(field, gte=now), [2, 3]),
            (Range(field, gt=now), [3]),
            (Range(field, lte=now), [1, 2]),
            (Range(field, lt=now), [1]),
            (Range(field, gte=now, lt=now + tick), [2]),
            (Range(field, gt=now + tick), []),
            (Range(field, gte=-1e17, lt=1e17), [1, 2, 3]),
        ):
            assert sorted(keys(engine.search(dense(1, 0, 0, 0, conditions=[bounds])))) == expected, bounds

    def test_all_conditions_hold(self, engine: VectorEngine) -> None:
        """Conditions are joined by AND."""
        engine.upsert(
            [point(1, speaker="Anna", run="r1"), point(2, speaker="Anna", run="r2"), point(3, speaker="Bob", run="r1")]
        )
        both = [Match("speaker", ("Anna",)), Match("run", ("r1",))]
        assert keys(engine.search(dense(1, 0, 0, 0, conditions=both))) == [1]

    def test_conditions_apply_before_either_ranking_is_cut(self, engine: VectorEngine) -> None:
        """A match that ranks last among all still comes first among the matches."""
        crowd = [point(i, (1, 0, 0, 0), {5: 9.0}, speaker="Bob") for i in range(10, 40)]
        engine.upsert(
            [*crowd, point(1, (0, 1, 0, 0), {5: 0.1}, speaker="Anna"), point(2, (0, 0, 1, 0), speaker="Anna")]
        )
        anna = (Match("speaker", ("Anna",)),)
        query = IndexQuery(ONE, unit(1, 0.2, 0.1, 0), Sparse([5], [1.0]), 5, anna, rrf_k=2, prefetch=5)
        hits = engine.search(query)
        assert keys(hits) == [1, 2]
        assert [hit.score for hit in hits] == pytest.approx([1 / 2 + 1 / 2, 1 / 3], abs=1e-4)
        for alone in (replace(query, sparse=None), replace(query, dense=None)):
            assert keys(engine.search(alone))[0] == 1

    # The marker

    def test_the_marker_is_kept_apart_from_the_points(self, engine: VectorEngine) -> None:
        """It is neither counted nor found."""
        engine.upsert([point(1)])
        for marker in (Marker("ledger", 7, "k=1;model"), Marker("other", 2**53 - 1, "")):
            engine.set_marker(marker)
            assert engine.marker() == marker
        assert (engine.count(), engine.count(ONE)) == (1, 1)
        assert keys(engine.search(dense(1, 0, 0, 0))) == [1]
        engine.drop_partition(ONE)
        assert engine.marker() is not None
        assert engine.count() == 0

    def test_clearing_removes_points_and_marker(self, engine: VectorEngine) -> None:
        """A cleared engine is as good as new."""
        for _ in range(2):
            engine.upsert([point(1), point(2, partition=TWO)])
            engine.set_marker(Marker("ledger", 7, "key"))
            engine.clear()
            assert (engine.count(), engine.marker(), engine.search(dense(1, 0, 0, 0))) == (0, None, [])
        engine.upsert([point(3, words={5: 1.0}, speaker="Anna")])
        assert keys(engine.search(words(5, conditions=[Match("speaker", ("Anna",))]))) == [3]

    # The whole

    @pytest.mark.parametrize("seed", range(4))
    def test_random_changes_and_searches_agree_with_the_exact_engine(self, engine: VectorEngine, seed: int) -> None:
        """After upserts, deletes and drops, every search is the exact one."""
        world, exact = RandomWorld(seed, dimension=self.dimension), ExactEngine()
        for _ in range(25):
            world.change([engine, exact])
            assert engine.count() == exact.count()
            for partition in world.partitions:
                assert engine.count(partition) == exact.count(partition)
            for _ in range(3):
                assert_agree(engine, exact, world.query())

    def test_any_thread_may_call(self, engine: VectorEngine) -> None:
        """Writers and readers at once: nothing fails, everything is there."""
        if not self.thread_safe:
            pytest.skip("this engine serves one thread at a time")

        def work(worker: int) -> None:
            for i in range(10):
                engine.upsert([point(100 * worker + i, (1, worker, i, 0), {5: 1.0})])
                assert engine.search(IndexQuery(ONE, unit(1, worker, i, 0), Sparse([5], [1.0]), 5))

        engine.upsert([point(1, words={5: 1.0})])
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(work, worker) for worker in range(1, 5)]:
                done.result()
        assert engine.count(ONE) == 41

    def test_an_async_search_finds_the_same(self, engine: VectorEngine) -> None:
        """For engines that can search without a thread."""
        if not isinstance(engine, AsyncSearch):
            pytest.skip("this engine has no async search")
        world = RandomWorld(0, dimension=self.dimension)
        for _ in range(5):
            world.change([engine])
        queries = [world.query() for _ in range(10)]

        async def search() -> list[list[IndexHit]]:
            assert isinstance(engine, AsyncSearch)
            return [await engine.asearch(query) for query in queries]

        assert anyio.run(search) == [engine.search(query) for query in queries]

    def test_an_engine_made_again_has_what_was_written(self, tmp_path: Path) -> None:
        """For engines that keep something."""
        if not self.persistent:
            pytest.skip("this engine keeps nothing")
        marker = Marker("ledger", 7, "key")
        for number in (1, 2, 3):
            engine = self.make_engine(tmp_path / "engine")
            engine.upsert([point(number, words={5: float(number)}, speaker="Anna")])
            engine.set_marker(marker._replace(seq=number))
            engine.close()
        engine = self.make_engine(tmp_path / "engine")
        assert engine.marker() == marker._replace(seq=3)
        assert keys(engine.search(words(5, conditions=[Match("speaker", ("Anna",))]))) == [3, 2, 1]
        engine.close()


def _with(made: IndexPoint, field: str, value: str | float | None) -> IndexPoint:
    fields = {name: other for name, other in made.fields.items() if name != field}
    return replace(made, fields=fields if value is None else {**fields, field: value})

"""What a search finds and in which order, by hand: what is embedded, how ranks fuse, whom a question is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from memweave.memory_stores import MemoryBank, SearchConfig, open_bank
from memweave.memory_stores.engine import Match, Range, conditions, rrf_share
from memweave.memory_stores.text import Bm25Encoder, embedded_text
from memweave.records import IndexFilter, Memory, MemoryHit, Scope, Trust
from memweave.testing.embedders import TableEmbedder
from memweave.testing.operations import add, delete, update

AXES = {"tea": [1, 0, 0, 0], "green": [0.6, 0.8, 0, 0], "piano": [0, 1, 0, 0], "rabbit": [0, 0, 1, 0]}
MAY = datetime(2024, 5, 8, tzinfo=UTC)

OpenBank = Callable[..., MemoryBank]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[OpenBank]:
    """Open banks over vectors that can be worked out by hand: `opened(rrf_k=2)`."""
    with ExitStack() as stack:

        def open_it(**config: Any) -> MemoryBank:
            model = TableEmbedder(AXES)
            home = tmp_path / str(len(list(tmp_path.iterdir())))
            return stack.enter_context(open_bank(home, embedding=model, search=SearchConfig(**config)))

        yield open_it


def scores(hits: list[MemoryHit]) -> dict[str, float]:
    return {hit.memory.text: hit.score for hit in hits}


# What is embedded and indexed


def test_the_speaker_is_part_of_what_is_embedded() -> None:
    assert embedded_text("I drink tea", "Anna") == 'Anna said, "I drink tea"'
    assert embedded_text("Anna drinks tea", None) == "Anna drinks tea"
    assert embedded_text("Anna drinks tea", "") == "Anna drinks tea"


def test_what_is_embedded_when_it_is_written_and_asked(opened: OpenBank, scope: Scope) -> None:
    bank = opened()
    model = bank.embedder
    assert isinstance(model, TableEmbedder)
    (op,) = bank.apply([add("tea", speaker="Anna", context="piano")], scope=scope)
    assert op.memory_id is not None
    bank.apply([update(op.memory_id, "green tea")], scope=scope)  # keeps its speaker
    bank.search("Does Anna like rabbits?", scope=scope)
    assert model.texts == ['Anna said, "tea"', 'Anna said, "green tea"', "Does like rabbits?"]


def test_names_in_the_query_can_be_kept(opened: OpenBank, scope: Scope) -> None:
    bank = opened(names_in_query=True)
    assert isinstance(bank.embedder, TableEmbedder)
    bank.apply([add("tea", speaker="Anna")], scope=scope)
    bank.search("Does Anna like rabbits?", scope=scope)
    assert bank.embedder.texts[-1] == "Does Anna like rabbits?"


def test_the_words_of_a_memory_are_speaker_text_context_and_date() -> None:
    def words(config: SearchConfig, text: str) -> int:
        document = Bm25Encoder(config).document("tea", speaker="Anna", context="piano", observed_at=MAY)
        return len(set(document.indices) & set(Bm25Encoder(config).query(text).indices))

    plain = SearchConfig()
    assert words(plain, "tea Anna piano May 2024 8") == 6
    assert words(SearchConfig(context_in_bm25=False), "tea Anna piano") == 2
    assert words(SearchConfig(date_in_bm25=False), "May 2024 8") == 0
    assert words(plain, "rabbit") == 0


def test_word_weights_are_those_of_bm25() -> None:
    # Robertson's weight: f * (k + 1) / (f + k * (1 - b + b * length / average)).
    config = SearchConfig(bm25_k=1.5, bm25_b=0.5, bm25_avg_len=4)
    document = Bm25Encoder(config).document("tea tea piano", speaker=None, context=None, observed_at=None)
    (tea,) = Bm25Encoder(config).query("tea").indices
    weights = dict(zip(document.indices, document.values, strict=True))
    assert weights.pop(tea) == pytest.approx(2 * 2.5 / (2 + 1.5 * (0.5 + 0.5 * 3 / 4)), abs=1e-5)
    assert list(weights.values()) == pytest.approx([1 * 2.5 / (1 + 1.5 * (0.5 + 0.5 * 3 / 4))], abs=1e-5)
    assert Bm25Encoder(config).query("tea tea piano").values == [1.0, 1.0]


# Fusion


def test_a_share_of_the_fused_score() -> None:
    assert rrf_share(0, 60, 1.0) == pytest.approx(1 / 60)
    assert rrf_share(9, 60, 1.0) == pytest.approx(1 / 69)
    assert rrf_share(0, 5, 1.5) == pytest.approx(1 / (4 + 1 / 1.5))
    assert rrf_share(3, 5, 0.5) == pytest.approx(1 / (4 + 8))
    assert rrf_share(0, 5, 1.5) > rrf_share(0, 5, 1.0) > rrf_share(1, 5, 1.0)


@pytest.mark.parametrize("where", ["bank", "branch", "past"])
def test_fused_scores_by_hand(opened: OpenBank, scope: Scope, where: str) -> None:
    bank = opened(rrf_k=2, dense_weight=3.0, bm25_weight=1.5, speaker_boost=1)
    bank.apply([add("green"), add("piano and tea"), add("rabbit")], scope=scope)
    store = bank.branch(scope=scope) if where == "branch" else bank
    as_of = bank.log(scope=scope)[-1].recorded_at if where == "past" else None
    hits = store.search("tea", scope=scope, as_of=as_of)
    # Cosine to "tea": piano and tea (1, 1) 0.71, green 0.6, rabbit 0. Words: only "piano and tea" has one.
    expected = {
        "piano and tea": 1 / (1 + 1 / 3) + 1 / (1 + 1 / 1.5),
        "green": 1 / (1 + 2 / 3),
        "rabbit": 1 / (1 + 3 / 3),
    }
    assert scores(hits) == pytest.approx(expected, abs=1e-4)
    assert [hit.memory.text for hit in hits] == list(expected)


def test_either_ranking_can_be_switched_off_but_not_both(opened: OpenBank, scope: Scope) -> None:
    batch = [add("green"), add("tea and piano and rabbit"), add("rabbit")]
    words, vectors = opened(dense_weight=0), opened(bm25_weight=0)
    for bank in (words, vectors):
        bank.apply(batch, scope=scope)
    assert list(scores(words.search("tea", scope=scope))) == ["tea and piano and rabbit"]
    assert scores(vectors.search("tea", scope=scope)) == pytest.approx(
        {"green": 0.6, "tea and piano and rabbit": 3**-0.5, "rabbit": 0.0}, abs=1e-4
    )
    assert isinstance(words.embedder, TableEmbedder)
    assert "tea" not in words.embedder.texts  # a query that needs no vector is not embedded
    with pytest.raises(ValidationError, match="cannot both be 0"):
        SearchConfig(dense_weight=0, bm25_weight=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bm25_b": 1.1},
        {"bm25_avg_len": 0},
        {"rrf_k": 0},
        {"dense_weight": -1},
        {"prefetch": 0},
        {"speaker_boost": 0.5},
        {"k": 1},
    ],
)
def test_wrong_configurations_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SearchConfig.model_validate(wrong)


# Whom a question is about


@pytest.mark.parametrize("where", ["bank", "branch", "past"])
def test_memories_of_the_one_who_is_named_count_more(opened: OpenBank, scope: Scope, where: str) -> None:
    bank = opened(rrf_k=2, dense_weight=1, bm25_weight=1, speaker_boost=1.7)
    # The longer one, so that its words weigh less.
    bank.apply([add("tea", speaker="Anna"), add("green, a lovely colour", speaker="Bob")], scope=scope)
    store = bank.branch(scope=scope) if where == "branch" else bank
    as_of = bank.log(scope=scope)[-1].recorded_at if where == "past" else None

    def ask(query: str, **more: Any) -> dict[str, float]:
        return scores(store.search(query, scope=scope, as_of=as_of, **more))

    plain = {"tea": 1 / 2 + 1 / 2, "green, a lovely colour": 1 / 3}
    assert ask("tea?") == pytest.approx(plain, abs=1e-4)
    assert ask("Bob's tea?") == pytest.approx(
        {"tea": 1 / 2 + 1 / 2, "green, a lovely colour": (1 / 3 + 1 / 3) * 1.7}, abs=1e-4
    )
    # Two names prefer nobody; neither does a question that says whose memories it wants.
    both = ask("Did Anna and Bob drink tea?")
    assert both == pytest.approx({"tea": 1 / 2 + 1 / 2, "green, a lovely colour": 1 / 3 + 1 / 3}, abs=1e-4)
    assert ask("Bob's tea?", where=IndexFilter(speakers=("Bob",))) == pytest.approx(
        {"green, a lovely colour": 1 / 2 + 1 / 2}, abs=1e-4
    )


def test_a_preferred_memory_comes_from_beyond_the_limit(opened: OpenBank, scope: Scope) -> None:
    batch = [add("tea", speaker="Anna"), add("green tea", speaker="Anna"), add("green", speaker="Bob")]
    found = {}
    for boost in (1, 2):
        bank = opened(speaker_boost=boost)
        bank.apply(batch, scope=scope)
        found[boost] = list(scores(bank.search("What tea does Bob drink?", scope=scope, limit=1)))
    assert found == {1: ["tea"], 2: ["green"]}


def test_preferring_does_not_push_down(opened: OpenBank, scope: Scope) -> None:
    bank = opened(bm25_weight=0, speaker_boost=2)
    model = bank.embedder
    assert isinstance(model, TableEmbedder)
    model._vectors["hates"] = -model._vectors["tea"]
    bank.apply([add("hates", speaker="Bob"), add("rabbit", speaker="Anna")], scope=scope)
    hits = scores(bank.search("Bob: tea?", scope=scope))
    assert hits["hates"] == pytest.approx(-0.5, abs=1e-4)


def test_who_is_there_is_learned_and_kept_up_to_date(opened: OpenBank, scope: Scope) -> None:
    bank = opened(speaker_boost=3)
    bank.apply([add("tea", speaker="Anna")], scope=scope)
    before = scores(bank.search("What tea does Cleo drink?", scope=scope))
    bank.apply([add("green tea", speaker="Cleo")], scope=scope)
    after = scores(bank.search("What tea does Cleo drink?", scope=scope))
    assert after["green tea"] > 1.5 * before["tea"]


# Filters and the past


def test_conditions_of_a_filter() -> None:
    everything = IndexFilter(
        speakers=("Anna", "Bob"), dialogues=("d1",), runs=("r1",), trust=(Trust.WEB,), observed_from=MAY, valid_at=MAY
    )  # fmt: skip
    at = MAY.timestamp()
    assert conditions(everything) == (
        Match("speaker", ("Anna", "Bob")),
        Match("dialogue", ("d1",)),
        Match("run", ("r1",)),
        Match("trust", ("web",)),
        Range("observed", gte=at, lt=None),
        Range("valid_from", lte=at),
        Range("valid_to", gt=at),
    )
    assert conditions(None) == conditions(IndexFilter()) == ()


def test_a_search_of_the_past_is_the_search_of_then(opened: OpenBank, scope: Scope) -> None:
    bank = opened()
    told: list[tuple[datetime, list[tuple[Memory, float]]]] = []

    def remember() -> None:
        hits = bank.search("tea", scope=scope)
        told.append((bank.log(scope=scope)[-1].recorded_at, [(h.memory, h.score) for h in hits]))

    (op, *_) = bank.apply([add("tea", speaker="Anna"), add("green piano"), add("rabbit, piano and tea")], scope=scope)
    assert op.memory_id is not None
    remember()
    bank.apply([update(op.memory_id, "rabbit"), add("green tea, four words at least", speaker="Bob")], scope=scope)
    remember()
    bank.apply([delete(op.memory_id)], scope=scope)
    remember()
    for time, hits in told:
        past = [
            (h.memory.model_copy(update={"closed_at": None}), h.score)
            for h in bank.search("tea", scope=scope, as_of=time)
        ]
        assert [m for m, _ in past] == [m for m, _ in hits]
        assert [s for _, s in past] == pytest.approx([s for _, s in hits], abs=1e-4)
    assert bank.search("tea", scope=scope, as_of=MAY - timedelta(days=9_000)) == []


def test_a_small_cache_finds_the_same(opened: OpenBank, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memweave.memory_stores.projector._CACHED", 3)
    bank = opened()
    bank.apply([add(f"tea {i}") for i in range(8)], scope=scope)
    for _ in range(2):
        assert len(bank.search("tea", scope=scope)) == 8
        assert len(bank._core.projector._cache) <= 3
        bank.rebuild()

"""Lists, searches and the past; see the package."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from memweave.errors import InputError
from memweave.memory_stores import MemoryStore
from memweave.records import (
    IndexFilter,
    Scope,
    Trust,
)
from memweave.testing.conformance.given import DAY, MAY, Given, added, found, texts
from memweave.testing.operations import add, delete, update


class Reading(Given):
    """Searches, lists and the past."""

    def test_memories_come_oldest_first_also_within_a_batch(self, store: MemoryStore, scope: Scope) -> None:
        """An update does not change the place."""
        names = [f"tea {i}" for i in range(12)]
        ids = added(store.apply([add(name) for name in names[:8]], scope=scope))
        store.apply([add(name) for name in names[8:]], scope=scope)
        store.apply([update(ids[3], "tea 3")], scope=scope)
        assert texts(store, scope) == names
        assert [m.text for m in store.memories(scope=scope, limit=2)] == names[:2]
        assert store.memories(scope=scope, limit=0) == []

    def test_speakers_by_number_of_memories(self, store: MemoryStore, scope: Scope) -> None:
        """Only those with current memories, most first."""
        ids = added(
            store.apply([add("tea", speaker=who) for who in ("Bob", "Anna", "Cleo", "Anna", None)], scope=scope)
        )
        assert store.speakers(scope=scope) == ["Anna", "Bob", "Cleo"]
        store.apply([delete(ids[0]), update(ids[1], "tea", speaker="Cleo")], scope=scope)
        assert store.speakers(scope=scope) == ["Cleo", "Anna"]

    def test_a_search_finds_the_best_first(self, store: MemoryStore, scope: Scope) -> None:
        """By words, at most `limit`, with falling scores."""
        store.apply(
            [add(f"Anna {what}") for what in ("plays the piano", "drinks green tea", "drinks coffee", "has a rabbit")],
            scope=scope,
        )
        hits = store.search("green tea", scope=scope)
        assert hits[0].memory.text == "Anna drinks green tea"
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)
        assert [h.memory for h in store.search("green tea", scope=scope, limit=2)] == [h.memory for h in hits[:2]]

    def test_a_search_looks_at_context_and_date_too(self, store: MemoryStore, scope: Scope) -> None:
        """Words that stand around a memory lead to it."""
        store.apply(
            [add("Yes, twice", context="Have you run a marathon?"), add("No", observed_at=MAY), add("Maybe")],
            scope=scope,
        )
        assert store.search("marathon", scope=scope)[0].memory.text == "Yes, twice"
        assert store.search("8 May 2024", scope=scope)[0].memory.text == "No"

    @pytest.mark.parametrize("limit", [0, -1, 1_001])
    def test_a_limit_out_of_range_is_refused(self, store: MemoryStore, scope: Scope, limit: int) -> None:
        """1 to 1,000."""
        with pytest.raises(InputError, match=rf"limit {limit} is outside 1\.\.1000"):
            store.search("tea", scope=scope, limit=limit)

    @pytest.mark.parametrize("query", ["", " \n\t", "\u2003"])
    def test_a_blank_query_is_refused(self, store: MemoryStore, scope: Scope, query: str) -> None:
        """It would find anything."""
        with pytest.raises(InputError, match="blank"):
            store.search(query, scope=scope)

    @pytest.mark.parametrize("query", ["a\0b", "\ud800", "tea \udfff"])
    def test_a_query_that_is_no_text_is_refused(self, store: MemoryStore, scope: Scope, query: str) -> None:
        """Also with nothing to search in."""
        with pytest.raises(InputError, match="no text"):
            store.search(query, scope=scope)

    @pytest.mark.parametrize("query", ["🫖", "\x07\x1b[31m", "a" * 10_000, "' OR 1=1 --", "???", "Zoë", "日本"])
    def test_any_other_query_is_answered(self, store: MemoryStore, scope: Scope, query: str) -> None:
        """Emoji, control characters, nothing but punctuation."""
        store.apply([add("Zoë drinks tea 🫖", speaker="Zoë")], scope=scope)
        assert len(store.search(query, scope=scope)) == 1

    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            ({}, "abcd"),
            ({"speakers": ("Anna",)}, "ab"),
            ({"speakers": ("Anna", "Bob")}, "abc"),
            ({"speakers": ("anna",)}, ""),
            ({"dialogues": ("d2",)}, "b"),
            ({"runs": ("r1",)}, "ac"),
            ({"trust": (Trust.WEB,)}, "c"),
            ({"trust": (Trust.USER, Trust.WEB)}, "abcd"),
            ({"observed_from": MAY}, "bc"),
            ({"observed_to": MAY}, "a"),
            ({"observed_from": MAY - DAY, "observed_to": MAY + DAY}, "ab"),
            ({"valid_at": MAY}, "bcd"),
            ({"valid_at": MAY - DAY}, "abd"),
            ({"valid_at": MAY + DAY}, "cd"),
            ({"speakers": ("Anna",), "runs": ("r1",), "valid_at": MAY - DAY}, "a"),
            ({"speakers": ("Bob",), "dialogues": ("d2",)}, ""),
        ],
    )
    def test_conditions(self, store: MemoryStore, scope: Scope, where: dict[str, Any], expected: str) -> None:
        """Lists and searches, of now and of the past, apply the same conditions."""
        (first, *_) = store.apply(
            [
                add("a tea", speaker="Anna", dialogue="d1", run_id="r1", observed_at=MAY - DAY, valid_to=MAY),
                add("b tea", speaker="Anna", dialogue="d2", observed_at=MAY, valid_to=MAY + DAY),
                add("c tea", speaker="Bob", run_id="r1", trust=Trust.WEB, observed_at=MAY + DAY, valid_from=MAY),
                add("d tea"),
            ],
            scope=scope,
        )
        only = IndexFilter(**where)
        last = store.log(scope=scope)[-1].recorded_at
        assert first.seq < store.log(scope=scope)[-1].seq
        for as_of in (None, last, last.replace(tzinfo=None)):
            assert "".join(m.text[0] for m in store.memories(scope=scope, where=only, as_of=as_of)) == expected
            assert "".join(t[0] for t in found(store, scope, where=only, as_of=as_of)) == expected
        assert "".join(m.text[0] for m in store.memories(scope=scope, where=only, limit=1)) == expected[:1]

    def test_every_moment_can_be_read_again(self, store: MemoryStore, scope: Scope) -> None:
        """`as_of` at each operation's time is the state that it left."""
        history: list[tuple[datetime, list[str]]] = []
        ids = added(store.apply([add("tea"), add("coffee")], scope=scope))
        for op in (
            update(ids[0], "green tea"),
            delete(ids[1]),
            add("milk"),
            update(ids[0], "black tea"),
            delete(ids[0]),
        ):
            (done,) = store.apply([op], scope=scope)
            history.append((done.recorded_at, texts(store, scope)))
        undone = store.undo(store.log(scope=scope)[-1].id, scope=scope, actor="test")
        history.append((undone.recorded_at, texts(store, scope)))
        for time, expected in history:
            assert [m.text for m in store.as_of(time, scope=scope)] == expected
            assert found(store, scope, as_of=time) == sorted(expected)
            just_before = [m.text for m in store.as_of(time - timedelta(microseconds=1), scope=scope)]
            assert just_before != expected

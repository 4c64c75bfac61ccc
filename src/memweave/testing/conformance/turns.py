"""The life of a turn; see the package."""

from __future__ import annotations

import pytest

from memweave.errors import ConflictError
from memweave.memory_stores import MemoryStore
from memweave.records import (
    OpStatus,
    Scope,
    Turn,
    TurnStatus,
)
from memweave.testing.conformance.given import Given, found, said, sources, texts
from memweave.testing.operations import add


class Turns(Given):
    """The life of a turn."""

    def test_turns_are_accepted_in_order_and_pending(self, store: MemoryStore, scope: Scope) -> None:
        """Positions grow with arrival."""
        stored = store.accept([said("b"), said("a"), said("c", dialogue="d2")], scope=scope)
        assert sources(stored) == ["b", "a", "c"]
        assert {(t.status, t.attempts, t.error, t.scope) for t in stored} == {(TurnStatus.PENDING, 0, None, scope)}
        assert stored[0].position < stored[1].position < stored[2].position
        assert store.turns(scope=scope) == stored
        assert store.accept([], scope=scope) == []

    def test_accepting_again_changes_nothing_and_says_where_each_turn_is(
        self, store: MemoryStore, scope: Scope
    ) -> None:
        """Turns that were stored can be given as they came back, too."""
        first, second = store.accept([said("1"), said("2")], scope=scope)
        store.apply([add("tea")], scope=scope, turn=first)
        store.reject("prose", scope=scope, actor="model", turn=second)
        again = store.accept([said("3"), second, said("1"), said("3")], scope=scope)
        assert sources(again) == ["3", "2", "1", "3"]
        assert [(t.status, t.attempts) for t in again[1:3]] == [(TurnStatus.PENDING, 1), (TurnStatus.DONE, 0)]
        assert again[0] == again[3]
        assert sources(store.turns(scope=scope)) == ["1", "2", "3"]

    @pytest.mark.parametrize("other", [said("1", "Something else"), said("1", speaker="Bob")], ids=["text", "speaker"])
    def test_a_known_id_with_another_content_is_refused(self, store: MemoryStore, scope: Scope, other: Turn) -> None:
        """And nothing of the call is stored."""
        store.accept([said("1")], scope=scope)
        with pytest.raises(ConflictError, match=r"'1'.*another text or speaker"):
            store.accept([said("2"), other], scope=scope)
        with pytest.raises(ConflictError, match="'3'"):
            store.accept([said("3"), said("3", "Two texts in one call")], scope=scope)
        assert sources(store.turns(scope=scope)) == ["1"]

    def test_the_same_id_in_another_dialogue_is_another_turn(self, store: MemoryStore, scope: Scope) -> None:
        """Ids are the caller's, within a dialogue."""
        store.accept([said("1"), said("1", "Other words", dialogue="d2")], scope=scope)
        assert [t.text for t in store.turns(scope=scope, dialogue="d2")] == ["Other words"]

    def test_a_rejected_turn_stays_pending_and_counts_the_attempt(self, store: MemoryStore, scope: Scope) -> None:
        """The log keeps what was said, as far as it is text."""
        (turn,) = store.accept([said("1")], scope=scope)
        failed = store.reject(
            "no JSON: \ud800\0", scope=scope, actor="model", turn=turn, run_id="r1", policy_version="v1"
        )
        store.reject("still no JSON", scope=scope, actor="model", turn=turn)
        (now,) = store.turns(scope=scope, status=TurnStatus.PENDING)
        assert (now.attempts, now.error) == (2, "still no JSON")
        assert failed.error == "no JSON: \ufffd\ufffd"
        assert (failed.status, failed.source_ids, failed.before, failed.after) == (OpStatus.FAILED, ("1",), None, None)
        assert (failed.actor, failed.run_id, failed.policy_version) == ("model", "r1", "v1")
        assert store.log(scope=scope, status=OpStatus.FAILED)[0] == failed
        assert store.memories(scope=scope) == []

    def test_a_turn_is_done_with_its_operations_and_only_once(self, store: MemoryStore, scope: Scope) -> None:
        """The second time is refused, operations included."""
        (turn,) = store.accept([said("1")], scope=scope)
        store.reject("prose", scope=scope, actor="model", turn=turn)
        store.apply([add("tea")], scope=scope, turn=turn)
        (done,) = store.turns(scope=scope)
        assert (done.status, done.attempts, done.error) == (TurnStatus.DONE, 1, None)
        with pytest.raises(ConflictError, match="'1' is already done"):
            store.apply([add("coffee")], scope=scope, turn=turn)
        assert texts(store, scope) == found(store, scope) == ["tea"]
        assert store.turns(scope=scope) == [done]

    def test_a_turn_without_operations_can_be_done_too(self, store: MemoryStore, scope: Scope) -> None:
        """Nothing worth remembering was said."""
        (turn,) = store.accept([said("1")], scope=scope)
        assert store.apply([], scope=scope, turn=turn) == []
        assert store.turns(scope=scope, status=TurnStatus.PENDING) == []

    def test_a_turn_that_is_done_stays_done_when_a_late_attempt_fails(self, store: MemoryStore, scope: Scope) -> None:
        """Two workers took it; the slower one failed."""
        (turn,) = store.accept([said("1")], scope=scope)
        store.apply([], scope=scope, turn=turn)
        store.reject("too late", scope=scope, actor="model", turn=turn)
        (done,) = store.turns(scope=scope)
        assert (done.status, done.attempts, done.error) == (TurnStatus.DONE, 0, None)

    def test_turns_can_be_picked(self, store: MemoryStore, scope: Scope) -> None:
        """By dialogue, status, place and number."""
        stored = store.accept([said(str(i), dialogue=f"d{i % 2}") for i in range(6)], scope=scope)
        store.apply([], scope=scope, turn=stored[2])
        there = stored[4].position
        assert sources(store.turns(scope=scope, dialogue="d0")) == ["0", "2", "4"]
        assert sources(store.turns(scope=scope, dialogue="d0", status=TurnStatus.PENDING)) == ["0", "4"]
        assert sources(store.turns(scope=scope, limit=2)) == ["0", "1"]
        assert sources(store.turns(scope=scope, before=there)) == ["0", "1", "2", "3"]
        assert sources(store.turns(scope=scope, before=there, limit=2)) == ["2", "3"]
        assert sources(store.turns(scope=scope, before=there, dialogue="d1", limit=1)) == ["3"]
        assert store.turns(scope=scope, before=stored[0].position) == store.turns(scope=scope, limit=0) == []

"""Turns: accepted once, pending until their operations are applied, done once."""

from __future__ import annotations

import pytest

from memweave.errors import ConflictError, UnknownMemoryError
from memweave.memory_stores import MemoryBank, MemoryStore
from memweave.records import OpStatus, Scope, StoredTurn, Turn, TurnStatus, new_id
from memweave.testing.conformance import add, update


@pytest.fixture(params=["bank", "branch"])
def store(request: pytest.FixtureRequest, bank: MemoryBank, scope: Scope) -> MemoryStore:
    return bank if request.param == "bank" else bank.branch(scope=scope)


def said(source_id: str, text: str = "Hi", *, dialogue: str = "d1", speaker: str = "Anna") -> Turn:
    return Turn(source_id=source_id, text=text, dialogue=dialogue, speaker=speaker)


def ids(turns: list[StoredTurn]) -> list[str]:
    return [turn.source_id for turn in turns]


def test_turns_are_accepted_in_order_and_pending(store: MemoryStore, scope: Scope) -> None:
    stored = store.accept([said("b"), said("a"), said("c", dialogue="d2")], scope=scope)
    assert ids(stored) == ["b", "a", "c"]
    assert {(t.status, t.attempts, t.error, t.scope) for t in stored} == {(TurnStatus.PENDING, 0, None, scope)}
    assert stored[0].position < stored[1].position < stored[2].position
    assert store.turns(scope=scope) == stored
    assert store.accept([], scope=scope) == []


def test_accepting_again_changes_nothing_and_says_where_each_turn_is(store: MemoryStore, scope: Scope) -> None:
    first, second = store.accept([said("1"), said("2")], scope=scope)
    store.apply([add("tea")], scope=scope, turn=first)
    store.reject("prose", scope=scope, actor="model", turn=second)
    again = store.accept([said("3"), said("2"), said("1"), said("3")], scope=scope)
    assert ids(again) == ["3", "2", "1", "3"]
    assert [(t.status, t.attempts) for t in again[1:3]] == [(TurnStatus.PENDING, 1), (TurnStatus.DONE, 0)]
    assert again[0] == again[3]
    assert ids(store.turns(scope=scope)) == ["1", "2", "3"]


def test_stored_turns_can_be_given_again(store: MemoryStore, bank: MemoryBank, scope: Scope) -> None:
    stored = bank.accept([said("1")], scope=scope)
    assert ids(store.accept(stored, scope=scope)) == ["1"]
    assert ids(store.turns(scope=scope)) == ["1"]


@pytest.mark.parametrize("other", [said("1", "Something else"), said("1", speaker="Bob")])
def test_a_known_id_with_another_content_is_refused(store: MemoryStore, scope: Scope, other: Turn) -> None:
    store.accept([said("1")], scope=scope)
    with pytest.raises(ConflictError, match="'1'.*another text or speaker"):
        store.accept([said("2"), other], scope=scope)
    with pytest.raises(ConflictError, match="'3'"):
        store.accept([said("3"), said("3", "Two texts in one call")], scope=scope)
    assert ids(store.turns(scope=scope)) == ["1"]


def test_the_same_id_in_another_dialogue_is_another_turn(store: MemoryStore, scope: Scope) -> None:
    store.accept([said("1"), said("1", "Other words", dialogue="d2")], scope=scope)
    assert [t.text for t in store.turns(scope=scope, dialogue="d2")] == ["Other words"]


def test_a_rejected_turn_stays_pending_and_counts_the_attempt(store: MemoryStore, scope: Scope) -> None:
    (turn,) = store.accept([said("1")], scope=scope)
    failed = store.reject("no JSON: \ud800\0", scope=scope, actor="model", turn=turn, run_id="r1", policy_version="v1")
    store.reject("still no JSON", scope=scope, actor="model", turn=turn)
    (now,) = store.turns(scope=scope, status=TurnStatus.PENDING)
    assert (now.attempts, now.error) == (2, "still no JSON")
    assert failed.error == "no JSON: \ufffd\ufffd"
    assert (failed.status, failed.source_ids, failed.before, failed.after) == (OpStatus.FAILED, ("1",), None, None)
    assert (failed.actor, failed.run_id, failed.policy_version) == ("model", "r1", "v1")
    assert store.log(scope=scope, status=OpStatus.FAILED)[0] == failed
    assert store.memories(scope=scope) == []


def test_a_turn_is_done_with_its_operations_and_only_once(store: MemoryStore, scope: Scope) -> None:
    (turn,) = store.accept([said("1")], scope=scope)
    store.reject("prose", scope=scope, actor="model", turn=turn)
    store.apply([add("tea")], scope=scope, turn=turn)
    (done,) = store.turns(scope=scope)
    assert (done.status, done.attempts, done.error) == (TurnStatus.DONE, 1, None)
    with pytest.raises(ConflictError, match="'1' is already done"):
        store.apply([add("coffee")], scope=scope, turn=turn)
    assert [m.text for m in store.memories(scope=scope)] == ["tea"]
    assert store.turns(scope=scope) == [done]


def test_a_turn_without_operations_can_be_done_too(store: MemoryStore, scope: Scope) -> None:
    (turn,) = store.accept([said("1")], scope=scope)
    assert store.apply([], scope=scope, turn=turn) == []
    assert store.turns(scope=scope, status=TurnStatus.PENDING) == []


def test_a_turn_that_somebody_else_has_done_stays_done_when_a_late_attempt_fails(
    store: MemoryStore, scope: Scope
) -> None:
    (turn,) = store.accept([said("1")], scope=scope)
    store.apply([], scope=scope, turn=turn)
    store.reject("too late", scope=scope, actor="model", turn=turn)
    (done,) = store.turns(scope=scope)
    assert (done.status, done.attempts, done.error) == (TurnStatus.DONE, 0, None)


def test_operations_that_fail_leave_the_turn_pending(store: MemoryStore, scope: Scope) -> None:
    (turn,) = store.accept([said("1")], scope=scope)
    with pytest.raises(UnknownMemoryError):
        store.apply([add("tea"), update(new_id(), "nothing there")], scope=scope, turn=turn)
    assert store.turns(scope=scope) == [turn]
    assert store.memories(scope=scope) == store.log(scope=scope) == []


def test_turns_can_be_picked(store: MemoryStore, scope: Scope) -> None:
    stored = store.accept([said(str(i), dialogue=f"d{i % 2}") for i in range(6)], scope=scope)
    store.apply([], scope=scope, turn=stored[2])
    assert ids(store.turns(scope=scope, dialogue="d0")) == ["0", "2", "4"]
    assert ids(store.turns(scope=scope, dialogue="d0", status=TurnStatus.PENDING)) == ["0", "4"]
    assert ids(store.turns(scope=scope, limit=2)) == ["0", "1"]
    assert ids(store.turns(scope=scope, before=stored[4].position)) == ["0", "1", "2", "3"]
    assert ids(store.turns(scope=scope, before=stored[4].position, limit=2)) == ["2", "3"]
    assert ids(store.turns(scope=scope, before=stored[4].position, dialogue="d1", limit=1)) == ["3"]
    assert store.turns(scope=scope, before=stored[0].position) == store.turns(scope=scope, limit=0) == []


def test_a_turn_of_a_branch_is_none_of_the_bank(bank: MemoryBank, scope: Scope) -> None:
    (first,) = bank.accept([said("1")], scope=scope)
    (other,) = bank.branch(scope=scope).accept([said("2")], scope=scope)
    assert first.position == other.position  # each counts for itself
    with pytest.raises(ConflictError, match="'2'"):
        bank.apply([], scope=scope, turn=other)
    bank.reject("prose", scope=scope, actor="model", turn=other)
    assert bank.turns(scope=scope) == [first]

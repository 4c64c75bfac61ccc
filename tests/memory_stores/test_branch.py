"""Branches: they start from a moment of the bank, and neither sees the other's writes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from memweave.errors import ConflictError, InputError, ScopeError, UnknownMemoryError
from memweave.memory_stores import Branch, MemoryBank
from memweave.records import IndexFilter, Memory, Scope, Turn, new_id
from memweave.testing.audit import audit, replay
from memweave.testing.operations import add, delete, update


@pytest.fixture
def tea(bank: MemoryBank, scope: Scope) -> Memory:
    """A memory that is there before branching."""
    (op,) = bank.apply([add("Anna drinks tea", speaker="Anna")], scope=scope)
    assert op.after is not None
    return op.after


def turn(source_id: str) -> Turn:
    return Turn(source_id=source_id, speaker="Anna", text="Hi")


def texts(store: MemoryBank | Branch, scope: Scope, word: str = "drinks") -> tuple[list[str], list[str]]:
    """What is there, and what a search finds."""
    hits = store.search(word, scope=scope, limit=100)
    return sorted(m.text for m in store.memories(scope=scope)), sorted(h.memory.text for h in hits)


def test_a_branch_starts_as_the_bank_is(bank: MemoryBank, tea: Memory, scope: Scope) -> None:
    branch = bank.branch(scope=scope)
    assert branch.memories(scope=scope) == [tea]
    assert branch.get(tea.id, scope=scope) == tea
    assert branch.search("tea", scope=scope)[0].memory == tea
    assert branch.search("tea", scope=scope)[0].score == pytest.approx(bank.search("tea", scope=scope)[0].score)
    assert branch.speakers(scope=scope) == ["Anna"]


def test_writes_stay_on_their_side(bank: MemoryBank, tea: Memory, scope: Scope) -> None:
    one, two = bank.branch(scope=scope), bank.branch(scope=scope)
    one.apply([update(tea.id, "Anna drinks coffee"), add("Bob drinks milk")], scope=scope)
    two.apply([delete(tea.id)], scope=scope)
    bank.apply([add("Cleo drinks water")], scope=scope)
    assert texts(one, scope) == (["Anna drinks coffee", "Bob drinks milk"],) * 2
    assert texts(two, scope) == ([], [])
    assert texts(bank, scope) == (["Anna drinks tea", "Cleo drinks water"],) * 2
    assert texts(bank.branch(scope=scope), scope) == texts(bank, scope)
    assert len(bank.log(scope=scope)) == 2
    assert audit(bank, scope=scope) == []


def test_a_branch_logs_what_was_done_in_it(bank: MemoryBank, tea: Memory, scope: Scope) -> None:
    branch = bank.branch(scope=scope)
    assert branch.history(tea.id, scope=scope) == branch.log(scope=scope) == []
    done = branch.apply([update(tea.id, "Anna drinks coffee", run_id="r"), add("Bob drinks milk")], scope=scope)
    assert branch.log(scope=scope) == done
    assert branch.history(tea.id, scope=scope) == branch.log(scope=scope, run_id="r") == done[:1]
    assert branch.log(scope=scope, newest=True, limit=1) == branch.log(scope=scope, after=done[0].seq) == done[1:]
    with pytest.raises(UnknownMemoryError):
        branch.history(new_id(), scope=scope)
    with pytest.raises(UnknownMemoryError):
        branch.undo(bank.log(scope=scope)[0].id, scope=scope, actor="test")  # the bank's, not the branch's


def test_a_branch_remembers_its_own_past_only(bank: MemoryBank, tea: Memory, scope: Scope) -> None:
    bank.apply([update(tea.id, "Anna drinks coffee")], scope=scope)
    branch = bank.branch(scope=scope)
    added, changed = branch.apply([add("Bob drinks milk"), update(tea.id, "Anna drinks water")], scope=scope)
    assert [m.text for m in branch.as_of(branch.branched_at, scope=scope)] == ["Anna drinks coffee"]
    assert [m.text for m in branch.as_of(added.recorded_at, scope=scope)] == ["Anna drinks coffee", "Bob drinks milk"]
    now = changed.recorded_at.replace(tzinfo=None)  # read as UTC
    assert [m.text for m in branch.as_of(now, scope=scope)] == ["Anna drinks water", "Bob drinks milk"]
    assert branch.get(tea.id, scope=scope, as_of=added.recorded_at).text == "Anna drinks coffee"
    assert branch.search("drinks coffee", scope=scope, as_of=added.recorded_at)[0].memory.text == "Anna drinks coffee"
    with pytest.raises(InputError, match="knows its past since"):
        branch.as_of(tea.recorded_at, scope=scope)


def test_a_branch_made_while_the_clock_is_behind_still_knows_its_base(
    bank: MemoryBank, tea: Memory, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = datetime(2020, 1, 1, tzinfo=UTC)
    monkeypatch.setattr("memweave.memory_stores.branch.utc_now", lambda: early)
    branch = bank.branch(scope=scope)
    (first,) = branch.apply([add("Bob drinks milk")], scope=scope)
    (second,) = branch.apply([delete(tea.id)], scope=scope)
    assert branch.branched_at < first.recorded_at < second.recorded_at < early + timedelta(seconds=1)
    assert [m.text for m in branch.as_of(early, scope=scope)] == ["Anna drinks tea"]
    assert {m.text for m in branch.as_of(first.recorded_at, scope=scope)} == {"Anna drinks tea", "Bob drinks milk"}


def test_a_branch_filters_as_the_bank_does(bank: MemoryBank, tea: Memory, scope: Scope) -> None:
    branch = bank.branch(scope=scope)
    branch.apply([add("Bob drinks milk", speaker="Bob", run_id="r")], scope=scope)
    only = IndexFilter(speakers=("Bob",), runs=("r",))
    assert [m.text for m in branch.memories(scope=scope, where=only)] == ["Bob drinks milk"]
    assert [h.memory.text for h in branch.search("drinks", scope=scope, where=only)] == ["Bob drinks milk"]
    assert [m.text for m in branch.memories(scope=scope, limit=1)] == ["Anna drinks tea"]


def test_a_branch_serves_its_scope_only(bank: MemoryBank, scope: Scope) -> None:
    branch = bank.branch(scope=scope)
    with pytest.raises(ScopeError, match="holds default/anna, not default/bob"):
        branch.memories(scope=Scope(user="bob"))


def test_the_log_of_a_branch_replays_from_its_base(bank: MemoryBank, scope: Scope) -> None:
    branch = bank.branch(scope=scope)  # of nothing
    (added,) = branch.apply([add("Anna drinks tea")], scope=scope)
    assert added.memory_id is not None
    changed, gone = branch.apply([update(added.memory_id, "Anna drinks milk"), delete(added.memory_id)], scope=scope)
    branch.undo(gone.id, scope=scope, actor="test")
    branch.undo(changed.id, scope=scope, actor="test")
    state, problems = replay(branch.log(scope=scope))
    assert problems == []
    assert list(state.values()) == branch.memories(scope=scope)
    assert texts(branch, scope) == (["Anna drinks tea"],) * 2


def test_turns_of_the_bank_can_be_given_to_a_branch(bank: MemoryBank, scope: Scope) -> None:
    (stored,) = bank.accept([turn("1")], scope=scope)
    branch = bank.branch(scope=scope)
    (given,) = branch.accept([stored], scope=scope)
    branch.apply([add("Anna drinks tea")], scope=scope, turn=given)
    assert bank.turns(scope=scope) == [stored]


def test_a_turn_of_a_branch_is_none_of_the_bank(bank: MemoryBank, scope: Scope) -> None:
    (first,) = bank.accept([turn("1")], scope=scope)
    (other,) = bank.branch(scope=scope).accept([turn("2")], scope=scope)
    assert first.position == other.position  # each counts for itself
    with pytest.raises(ConflictError, match="'2'"):
        bank.apply([], scope=scope, turn=other)
    bank.reject("prose", scope=scope, actor="model", turn=other)
    assert bank.turns(scope=scope) == [first]

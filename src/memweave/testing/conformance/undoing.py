"""Undo and undo_run; see the package."""

from __future__ import annotations

from typing import Any

import pytest

from memweave.errors import ConflictError
from memweave.memory_stores import MemoryStore
from memweave.records import (
    IndexFilter,
    OpKind,
    Scope,
)
from memweave.testing.conformance.given import DAY, MAY, Given, added, found, texts
from memweave.testing.operations import add, delete, noop, update


class Undoing(Given):
    """Undo and undo_run."""

    def test_undo_of_add_removes_it(self, store: MemoryStore, scope: Scope) -> None:
        """By a DELETE that says what it takes back, who did it, and why."""
        (op,) = store.apply([add("She drinks tea")], scope=scope)
        undone = store.undo(op.id, scope=scope, actor="user:anna", reason="wrong person")
        assert (undone.kind, undone.undoes, undone.actor, undone.reason) == (
            OpKind.DELETE,
            op.id,
            "user:anna",
            "wrong person",
        )
        assert undone.before is not None
        assert (undone.before.text, undone.after) == ("She drinks tea", None)
        assert texts(store, scope) == found(store, scope) == []

    def test_undo_of_update_brings_the_old_version_back_under_a_new_number(
        self, store: MemoryStore, scope: Scope
    ) -> None:
        """With all its fields."""
        (memory_id,) = added(
            store.apply([add("She drinks tea", speaker="Anna", metadata={"n": 1}, observed_at=MAY)], scope=scope)
        )
        old = store.get(memory_id, scope=scope)
        (changed,) = store.apply(
            [update(memory_id, "Coffee", metadata={"n": 2}, speaker="Bob", observed_at=MAY + DAY)], scope=scope
        )
        undone = store.undo(changed.id, scope=scope, actor="test")
        memory = store.get(memory_id, scope=scope)
        assert undone.after == memory
        assert memory == old.model_copy(update={"version": 3, "recorded_at": undone.recorded_at})
        assert found(store, scope, where=IndexFilter(speakers=("Anna",))) == ["She drinks tea"]
        assert undone.reason.startswith("undo of UPDATE")

    def test_undo_of_delete_brings_the_memory_back_under_its_id(self, store: MemoryStore, scope: Scope) -> None:
        """As an ADD."""
        (memory_id,) = added(store.apply([add("She drinks tea")], scope=scope))
        (deleted,) = store.apply([delete(memory_id)], scope=scope)
        undone = store.undo(deleted.id, scope=scope, actor="test")
        assert (undone.kind, undone.memory_id) == (OpKind.ADD, memory_id)
        assert store.get(memory_id, scope=scope).version == 2
        assert found(store, scope) == ["She drinks tea"]

    def test_undo_of_an_undo_restores(self, store: MemoryStore, scope: Scope) -> None:
        """What was restored stands again: it can be undone again, and everything with it."""
        (op,) = store.apply([add("She drinks tea")], scope=scope)
        (memory_id,) = added([op])
        (changed,) = store.apply([update(memory_id, "She drinks coffee")], scope=scope)
        undone = store.undo(changed.id, scope=scope, actor="test")
        store.undo(undone.id, scope=scope, actor="test")
        assert texts(store, scope) == found(store, scope) == ["She drinks coffee"]
        store.undo(changed.id, scope=scope, actor="test")
        store.undo(op.id, scope=scope, actor="test")
        assert texts(store, scope) == found(store, scope) == []
        kinds = [o.kind.value for o in store.history(memory_id, scope=scope)]
        assert kinds == ["ADD", "UPDATE", "UPDATE", "UPDATE", "UPDATE", "DELETE"]

    def test_an_operation_is_undone_once(self, store: MemoryStore, scope: Scope) -> None:
        """The second time is refused."""
        (op,) = store.apply([add("She drinks tea")], scope=scope)
        store.undo(op.id, scope=scope, actor="test")
        with pytest.raises(ConflictError, match="already undone"):
            store.undo(op.id, scope=scope, actor="test")

    def test_undo_is_refused_when_the_memory_changed_since(self, store: MemoryStore, scope: Scope) -> None:
        """And nothing happens."""
        (memory_id,) = added(store.apply([add("She drinks tea")], scope=scope))
        store.apply([update(memory_id, "She drinks coffee")], scope=scope)
        before = store.log(scope=scope)
        with pytest.raises(ConflictError, match="changed after operation"):
            store.undo(before[0].id, scope=scope, actor="test")
        assert store.log(scope=scope) == before
        assert texts(store, scope) == ["She drinks coffee"]

    def test_undo_is_refused_although_the_memory_says_the_same_again(self, store: MemoryStore, scope: Scope) -> None:
        """There and back is two changes, not none."""
        (memory_id,) = added(store.apply([add("She drinks tea")], scope=scope))
        (first,) = store.apply([update(memory_id, "She drinks milk")], scope=scope)
        store.apply([update(memory_id, "She drinks coffee"), update(memory_id, "She drinks milk")], scope=scope)
        with pytest.raises(ConflictError, match="changed after operation"):
            store.undo(first.id, scope=scope, actor="test")

    def test_undo_of_a_delete_is_refused_when_another_delete_followed(self, store: MemoryStore, scope: Scope) -> None:
        """Gone is not the same as gone since then."""
        (memory_id,) = added(store.apply([add("She drinks tea")], scope=scope))
        (first,) = store.apply([delete(memory_id)], scope=scope)
        store.apply([add("She drinks coffee", memory_id=memory_id), delete(memory_id)], scope=scope)
        with pytest.raises(ConflictError, match="changed after operation"):
            store.undo(first.id, scope=scope, actor="test")
        assert texts(store, scope) == []

    def test_what_changed_nothing_cannot_be_undone(self, store: MemoryStore, scope: Scope) -> None:
        """A NOOP, a failed operation."""
        (nothing,) = store.apply([noop()], scope=scope)
        failed = store.reject("prose instead of JSON", scope=scope, actor="test")
        for op in (nothing, failed):
            with pytest.raises(ConflictError, match="nothing to undo"):
                store.undo(op.id, scope=scope, actor="test")

    def test_undo_run_takes_back_everything_of_the_run_last_first(self, store: MemoryStore, scope: Scope) -> None:
        """Also several changes of one memory, and only once."""
        kept, changed = added(store.apply([add("keeps tea"), add("changes tea")], scope=scope))
        mine: dict[str, Any] = {"run_id": "r1"}
        run = store.apply(
            [add("new coffee", **mine), update(changed, "changed once", **mine), noop(**mine)], scope=scope
        )
        store.apply([add("milk of another run", run_id="r2")], scope=scope)
        run += store.apply([update(changed, "changed twice", **mine), delete(kept, **mine)], scope=scope)
        undone = store.undo_run("r1", scope=scope, actor="user:anna")
        assert [op.undoes for op in undone] == [run[4].id, run[3].id, run[1].id, run[0].id]
        assert sorted(texts(store, scope)) == found(store, scope) == ["changes tea", "keeps tea", "milk of another run"]
        with pytest.raises(ConflictError, match="already undone"):
            store.undo_run("r1", scope=scope, actor="user:anna")

    def test_undo_run_leaves_out_what_is_already_undone(self, store: MemoryStore, scope: Scope) -> None:
        """One by one and all at once lead to the same."""
        first, second = store.apply([add("tea", run_id="r1"), add("coffee", run_id="r1")], scope=scope)
        store.undo(second.id, scope=scope, actor="test")
        assert [op.undoes for op in store.undo_run("r1", scope=scope, actor="test")] == [first.id]

    def test_undo_run_is_all_or_nothing(self, store: MemoryStore, scope: Scope) -> None:
        """It begins with the last operation, cannot go on, and leaves everything."""
        first, _ = store.apply([add("tea", run_id="r1"), add("coffee", run_id="r1")], scope=scope)
        store.apply([update(added([first])[0], "tea, later")], scope=scope)
        before = store.log(scope=scope)
        with pytest.raises(ConflictError, match="changed after operation"):
            store.undo_run("r1", scope=scope, actor="test")
        assert store.log(scope=scope) == before
        assert found(store, scope) == ["coffee", "tea, later"]

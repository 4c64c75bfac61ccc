"""Undo: what it takes back, what it refuses, and what stays in the log."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from memweave.errors import ConflictError, UnknownMemoryError
from memweave.memory_stores import MemoryBank, MemoryStore
from memweave.memory_stores.transitions import lineage
from memweave.records import MemoryOp, OpKind, Scope
from memweave.testing.conformance import add, delete, noop, update


@pytest.fixture(params=["bank", "branch"])
def store(request: pytest.FixtureRequest, bank: MemoryBank, scope: Scope) -> MemoryStore:
    return bank if request.param == "bank" else bank.branch(scope=scope)


def one(ops: list[MemoryOp]) -> MemoryOp:
    assert len(ops) == 1
    return ops[0]


def texts(store: MemoryStore, scope: Scope) -> list[str]:
    return [m.text for m in store.memories(scope=scope)]


def found(store: MemoryStore, scope: Scope) -> list[str]:
    """What a search over everything returns, sorted."""
    return sorted(hit.memory.text for hit in store.search("tea coffee", scope=scope, limit=100))


def test_undo_of_add_removes_it(store: MemoryStore, scope: Scope) -> None:
    added = one(store.apply([add("She drinks tea")], scope=scope))
    undone = store.undo(added.id, scope=scope, actor="user:anna", reason="wrong person")
    assert (undone.kind, undone.undoes, undone.actor, undone.reason) == (
        OpKind.DELETE,
        added.id,
        "user:anna",
        "wrong person",
    )
    assert undone.before is not None
    assert (undone.before.text, undone.after) == ("She drinks tea", None)
    assert texts(store, scope) == found(store, scope) == []


def test_undo_of_update_brings_the_old_version_back_under_a_new_number(store: MemoryStore, scope: Scope) -> None:
    added = one(store.apply([add("She drinks tea", speaker="Anna", metadata={"n": 1})], scope=scope))
    assert added.memory_id is not None
    changed = one(store.apply([update(added.memory_id, "She drinks coffee", metadata={"n": 2})], scope=scope))
    undone = store.undo(changed.id, scope=scope, actor="test")
    memory = store.get(added.memory_id, scope=scope)
    assert (undone.kind, memory.version, memory.text, memory.metadata, memory.speaker) == (
        OpKind.UPDATE,
        3,
        "She drinks tea",
        {"n": 1},
        "Anna",
    )
    assert undone.after == memory
    assert memory.recorded_at == undone.recorded_at
    assert found(store, scope) == ["She drinks tea"]


def test_undo_of_delete_brings_the_memory_back_under_its_id(store: MemoryStore, scope: Scope) -> None:
    added = one(store.apply([add("She drinks tea")], scope=scope))
    assert added.memory_id is not None
    deleted = one(store.apply([delete(added.memory_id)], scope=scope))
    undone = store.undo(deleted.id, scope=scope, actor="test")
    assert (undone.kind, undone.memory_id) == (OpKind.ADD, added.memory_id)
    assert store.get(added.memory_id, scope=scope).version == 2
    assert found(store, scope) == ["She drinks tea"]


def test_undo_of_an_undo_restores(store: MemoryStore, scope: Scope) -> None:
    added = one(store.apply([add("She drinks tea")], scope=scope))
    assert added.memory_id is not None
    changed = one(store.apply([update(added.memory_id, "She drinks coffee")], scope=scope))
    undone = store.undo(changed.id, scope=scope, actor="test")
    store.undo(undone.id, scope=scope, actor="test")
    assert texts(store, scope) == found(store, scope) == ["She drinks coffee"]
    # Restored, the operation stands again: it can be undone again, and everything with it.
    store.undo(changed.id, scope=scope, actor="test")
    store.undo(added.id, scope=scope, actor="test")
    assert texts(store, scope) == found(store, scope) == []
    assert [op.kind.value for op in store.history(added.memory_id, scope=scope)] == [
        "ADD", "UPDATE", "UPDATE", "UPDATE", "UPDATE", "DELETE",
    ]  # fmt: skip


def test_an_operation_is_undone_once(store: MemoryStore, scope: Scope) -> None:
    added = one(store.apply([add("She drinks tea")], scope=scope))
    store.undo(added.id, scope=scope, actor="test")
    with pytest.raises(ConflictError, match="already undone"):
        store.undo(added.id, scope=scope, actor="test")


def test_undo_is_refused_when_the_memory_changed_since(store: MemoryStore, scope: Scope) -> None:
    added = one(store.apply([add("She drinks tea")], scope=scope))
    assert added.memory_id is not None
    store.apply([update(added.memory_id, "She drinks coffee")], scope=scope)
    before = store.log(scope=scope)
    with pytest.raises(ConflictError, match="changed after operation"):
        store.undo(added.id, scope=scope, actor="test")
    assert store.log(scope=scope) == before
    assert texts(store, scope) == ["She drinks coffee"]


def test_undo_of_a_delete_is_refused_when_another_delete_followed(store: MemoryStore, scope: Scope) -> None:
    added = one(store.apply([add("She drinks tea")], scope=scope))
    assert added.memory_id is not None
    first = one(store.apply([delete(added.memory_id)], scope=scope))
    store.apply([add("She drinks coffee", memory_id=added.memory_id)], scope=scope)
    store.apply([delete(added.memory_id)], scope=scope)
    with pytest.raises(ConflictError, match="changed after operation"):
        store.undo(first.id, scope=scope, actor="test")
    assert texts(store, scope) == []


def test_what_changed_nothing_cannot_be_undone(store: MemoryStore, scope: Scope) -> None:
    nothing = one(store.apply([noop()], scope=scope))
    failed = store.reject("prose instead of JSON", scope=scope, actor="test")
    for op in (nothing, failed):
        with pytest.raises(ConflictError, match="nothing to undo"):
            store.undo(op.id, scope=scope, actor="test")


def test_undo_of_an_unknown_operation(store: MemoryStore, scope: Scope) -> None:
    with pytest.raises(UnknownMemoryError, match="no operation"):
        store.undo(uuid4(), scope=scope, actor="test")
    with pytest.raises(UnknownMemoryError, match="no run 'r9'"):
        store.undo_run("r9", scope=scope, actor="test")


def test_undo_run_takes_back_everything_of_the_run_last_first(store: MemoryStore, scope: Scope) -> None:
    kept, changed = store.apply([add("keeps tea"), add("changes tea")], scope=scope)
    assert kept.memory_id is not None
    assert changed.memory_id is not None
    run = store.apply(
        [
            add("new coffee", run_id="r1"),
            update(changed.memory_id, "changed once", run_id="r1"),
            noop(run_id="r1"),
            update(changed.memory_id, "changed twice", run_id="r1"),
            delete(kept.memory_id, run_id="r1"),
        ],
        scope=scope,
    )
    undone = store.undo_run("r1", scope=scope, actor="user:anna")
    assert [op.undoes for op in undone] == [run[4].id, run[3].id, run[1].id, run[0].id]
    assert sorted(texts(store, scope)) == ["changes tea", "keeps tea"]
    assert found(store, scope) == ["changes tea", "keeps tea"]
    with pytest.raises(ConflictError, match="already undone"):
        store.undo_run("r1", scope=scope, actor="user:anna")


def test_undo_run_leaves_out_what_is_already_undone(store: MemoryStore, scope: Scope) -> None:
    first, second = store.apply([add("tea", run_id="r1"), add("coffee", run_id="r1")], scope=scope)
    store.undo(second.id, scope=scope, actor="test")
    assert [op.undoes for op in store.undo_run("r1", scope=scope, actor="test")] == [first.id]


def test_undo_run_is_all_or_nothing(store: MemoryStore, scope: Scope) -> None:
    first, second = store.apply([add("tea", run_id="r1"), add("coffee", run_id="r1")], scope=scope)
    assert first.memory_id is not None
    store.apply([update(first.memory_id, "tea, later")], scope=scope)
    before = store.log(scope=scope)
    with pytest.raises(ConflictError, match="changed after operation"):
        store.undo_run("r1", scope=scope, actor="test")  # takes back `second` first, and then cannot go on
    assert store.log(scope=scope) == before
    assert found(store, scope) == ["coffee", "tea, later"]


def test_lineage_of_a_long_quarrel() -> None:
    ids = [UUID(int=i) for i in range(3_000)]
    changes: list[tuple[UUID, UUID | None]] = [(ids[0], None)]
    changes += [(ids[i], ids[i - 1]) for i in range(1, 3_000)]  # each takes the one before it back
    line = lineage(changes)
    assert line.state is None  # 2,999 undos: an odd number leaves the first one undone
    assert ids[0] in line.undone
    assert lineage(changes[:-1]).state == ids[0]
    assert lineage([]).state is None

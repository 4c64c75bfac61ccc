"""Operations, batches and the log; see the package."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from memweave.errors import ConflictError, UnknownMemoryError
from memweave.memory_stores import MemoryStore
from memweave.records import (
    OpKind,
    OpStatus,
    Scope,
    Trust,
    new_id,
)
from memweave.testing.conformance.given import DAY, MAY, Given, added, found, said, texts
from memweave.testing.operations import add, delete, noop, update


class Writing(Given):
    """Operations and the log."""

    def test_an_add_is_a_memory_and_a_line_in_the_log(self, store: MemoryStore, scope: Scope) -> None:
        """All that was given comes back, from every way to read."""
        given: dict[str, Any] = {
            "speaker": "Anna", "dialogue": "d1", "context": "What do you drink?", "source_ids": ("1", "2"), "observed_at": MAY,
            "valid_from": MAY, "valid_to": MAY + DAY, "trust": Trust.WEB, "metadata": {"n": [1, None, {"deep": "🫖"}]},
        }  # fmt: skip
        log = {"reason": "she said so", "actor": "model", "policy_version": "v7", "run_id": "r1"}
        (op,) = store.apply([add("Anna drinks tea", **given, **log)], scope=scope)
        assert op.after is not None
        assert op.memory_id is not None
        memory = op.after
        assert memory.model_dump(include=set(given)) == given
        assert (memory.id, memory.version, memory.text, memory.scope) == (op.memory_id, 1, "Anna drinks tea", scope)
        assert (memory.observed_naive, memory.closed_at, memory.recorded_at) == (False, None, op.recorded_at)
        assert op.model_dump(include=set(log)) == log
        assert (op.kind, op.status, op.before, op.error, op.undoes) == (OpKind.ADD, OpStatus.APPLIED, None, None, None)
        assert (op.source_ids, op.scope) == (("1", "2"), scope)
        assert store.get(op.memory_id, scope=scope) == memory
        assert store.memories(scope=scope) == [memory]
        assert store.log(scope=scope) == store.history(op.memory_id, scope=scope) == [op]
        assert [hit.memory for hit in store.search("tea", scope=scope)] == [memory]

    def test_an_update_closes_one_version_and_opens_the_next(self, store: MemoryStore, scope: Scope) -> None:
        """What is not given stays as it was; sources are joined."""
        first = add(
            "Anna drinks tea", speaker="Anna", source_ids=("1",), observed_at=MAY, metadata={"n": 1}, dialogue="d1"
        )
        (memory_id,) = added(store.apply([first], scope=scope))
        change = update(
            memory_id, "Anna drinks coffee", source_ids=("2", "1"), observed_at=MAY + DAY, trust=Trust.AGENT
        )
        (op,) = store.apply([change], scope=scope)
        now = store.get(memory_id, scope=scope)
        assert op.before is not None
        assert op.after == now
        assert (now.version, now.text, now.speaker, now.dialogue) == (2, "Anna drinks coffee", "Anna", "d1")
        assert (now.source_ids, now.observed_at, now.trust, now.metadata) == (
            ("1", "2"),
            MAY + DAY,
            Trust.AGENT,
            {"n": 1},
        )
        assert (op.before.version, op.before.text, op.before.metadata) == (1, "Anna drinks tea", {"n": 1})
        assert texts(store, scope) == found(store, scope) == ["Anna drinks coffee"]
        earlier = store.get(memory_id, scope=scope, as_of=op.recorded_at - timedelta(microseconds=1))
        assert (earlier.version, earlier.closed_at) == (1, op.recorded_at)

    def test_a_delete_removes_it_and_the_id_can_be_used_again(self, store: MemoryStore, scope: Scope) -> None:
        """History goes on under the same id, with the next version number."""
        (memory_id,) = added(store.apply([add("Anna drinks tea")], scope=scope))
        (op,) = store.apply([delete(memory_id)], scope=scope)
        assert op.before is not None
        assert (op.before.text, op.after) == ("Anna drinks tea", None)
        assert texts(store, scope) == found(store, scope) == []
        with pytest.raises(UnknownMemoryError):
            store.get(memory_id, scope=scope)
        (again,) = store.apply([add("Anna drinks milk", memory_id=memory_id)], scope=scope)
        assert again.after is not None
        assert again.after.version == 2
        assert [o.kind.value for o in store.history(memory_id, scope=scope)] == ["ADD", "DELETE", "ADD"]

    def test_a_noop_is_logged_and_changes_nothing(self, store: MemoryStore, scope: Scope) -> None:
        """With the memory that already says it, or without."""
        (memory_id,) = added(store.apply([add("Anna drinks tea")], scope=scope))
        before = store.memories(scope=scope)
        ops = store.apply([noop(), noop(memory_id, source_ids=("9",))], scope=scope)
        assert [(op.memory_id, op.before, op.after) for op in ops] == [(None, None, None), (memory_id, None, None)]
        assert store.memories(scope=scope) == before
        assert store.log(scope=scope)[1:] == ops

    def test_a_batch_may_build_on_itself(self, store: MemoryStore, scope: Scope) -> None:
        """Operations take effect in order, each at a time of its own."""
        mine = new_id()
        batch = [
            add("one tea", memory_id=mine),
            update(mine, "two teas"),
            delete(mine),
            add("three teas", memory_id=mine),
        ]
        ops = store.apply(batch, scope=scope)
        assert texts(store, scope) == found(store, scope) == ["three teas"]
        times = [op.recorded_at for op in ops]
        assert times == sorted(set(times))
        seqs = [op.seq for op in ops]
        assert seqs == sorted(set(seqs))
        assert [[m.text for m in store.as_of(t, scope=scope)] for t in times] == [
            ["one tea"],
            ["two teas"],
            [],
            ["three teas"],
        ]

    @pytest.mark.parametrize(
        ("last", "error", "says"),
        [
            (lambda i: update(uuid.UUID(int=7), "x"), UnknownMemoryError, r"cannot UPDATE memory .*no such memory"),
            (lambda i: delete(uuid.UUID(int=7)), UnknownMemoryError, r"cannot DELETE memory .*no such memory"),
            (lambda i: noop(uuid.UUID(int=7)), UnknownMemoryError, r"cannot NOOP memory .*no such memory"),
            (lambda i: add("x", memory_id=i), ConflictError, r"the id is taken"),
            (lambda i: update(i, "x", expected_version=2), ConflictError, r"is at version 1, not 2"),
            (lambda i: delete(i, expected_version=2), ConflictError, r"is at version 1, not 2"),
        ],
        ids=["update", "delete", "noop", "taken", "update moved on", "delete moved on"],
    )
    def test_a_batch_applies_whole_or_not_at_all(
        self, store: MemoryStore, scope: Scope, last: Callable[[uuid.UUID], Any], error: type[Exception], says: str
    ) -> None:
        """One bad operation at the end: state, log, search and turn are as before."""
        (turn,) = store.accept([said("1")], scope=scope)
        kept, gone = added(store.apply([add("tea"), add("coffee")], scope=scope))
        before = store.memories(scope=scope), store.log(scope=scope), found(store, scope)
        batch = [
            add("milk"),
            update(kept, "green tea"),
            delete(gone),
            noop(),
            last(kept if error is ConflictError else gone),
        ]
        if error is ConflictError:
            batch.pop(1)
        with pytest.raises(error, match=says):
            store.apply(batch, scope=scope, turn=turn)
        assert (store.memories(scope=scope), store.log(scope=scope), found(store, scope)) == before
        assert store.turns(scope=scope) == [turn]

    def test_compare_and_set(self, store: MemoryStore, scope: Scope) -> None:
        """The right version number is accepted."""
        (memory_id,) = added(store.apply([add("tea")], scope=scope))
        store.apply(
            [update(memory_id, "coffee", expected_version=1), delete(memory_id, expected_version=2)], scope=scope
        )
        assert texts(store, scope) == []

    def test_the_log_can_be_picked_from(self, store: MemoryStore, scope: Scope) -> None:
        """By run, memory, status, place and end."""
        first, second = store.apply([add("tea", run_id="r1"), add("coffee", run_id="r2")], scope=scope)
        failed = store.reject("prose", scope=scope, actor="model", run_id="r1")
        third, *_ = store.apply([update(added([first])[0], "green tea", run_id="r2")], scope=scope)
        assert [o.id for o in store.log(scope=scope)] == [first.id, second.id, failed.id, third.id]
        assert [o.id for o in store.log(scope=scope, run_id="r1")] == [first.id, failed.id]
        assert [o.id for o in store.log(scope=scope, memory_id=first.memory_id)] == [first.id, third.id]
        assert store.log(scope=scope, status=OpStatus.FAILED) == [failed]
        assert [o.id for o in store.log(scope=scope, after=second.seq)] == [failed.id, third.id]
        assert [o.id for o in store.log(scope=scope, limit=2)] == [first.id, second.id]
        assert [o.id for o in store.log(scope=scope, limit=2, newest=True)] == [failed.id, third.id]
        assert [o.id for o in store.log(scope=scope, limit=1, newest=True, run_id="r2")] == [third.id]
        assert store.log(scope=scope, limit=0) == []

    def test_what_was_never_there_is_unknown(self, store: MemoryStore, scope: Scope) -> None:
        """By id, in the history, as a target of undo."""
        store.apply([add("tea")], scope=scope)
        for call in (store.get, store.history):
            with pytest.raises(UnknownMemoryError, match="no memory"):
                call(new_id(), scope=scope)
        with pytest.raises(UnknownMemoryError, match="no operation"):
            store.undo(new_id(), scope=scope, actor="test")
        with pytest.raises(UnknownMemoryError, match="no run 'r9'"):
            store.undo_run("r9", scope=scope, actor="test")

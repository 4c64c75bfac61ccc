"""A memory bank under random use does what a few dictionaries do, and its log, its past and its index tell the same story."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memweave.errors import ConflictError, UnknownMemoryError
from memweave.memory_stores import MemoryBank, MemoryStore, open_bank
from memweave.records import IndexFilter, MemoryOp, OpKind, OpStatus, ProposedOp, Scope, Turn, TurnStatus
from memweave.testing.audit import audit, replay
from memweave.testing.operations import add, delete, noop, update

WORDS = ("tea", "coffee", "garden", "piano", "rabbit", "Lisbon")
SPEAKERS = (None, "Anna", "Bob")
RUNS = (None, "r1", "r2")


class Content:
    """What a memory says, at one point of its life. Compared by identity: saying the same again is another point."""

    def __init__(self, text: str, speaker: str | None) -> None:
        self.text, self.speaker = text, speaker


@dataclass
class Done:
    """An operation that changed a memory: where it came from and where it led."""

    memory_id: UUID
    run_id: str | None
    before: Content | None
    after: Content | None
    undoes: UUID | None = None
    undone: bool = False


@dataclass
class Model:
    """What a scope should hold."""

    place: dict[UUID, Content | None] = field(default_factory=dict)
    """By memory, where it is now; `None` where it is deleted."""
    done: dict[UUID, Done] = field(default_factory=dict)
    logged: list[UUID] = field(default_factory=list)
    moments: list[tuple[datetime, dict[UUID, str]]] = field(default_factory=list)
    turns: dict[str, TurnStatus] = field(default_factory=dict)

    def texts(self) -> dict[UUID, str]:
        return {memory_id: content.text for memory_id, content in self.place.items() if content is not None}

    def alive(self) -> list[UUID]:
        return sorted(self.texts())

    def note(self, op: MemoryOp, after: Content | None, *, undoes: UUID | None = None) -> None:
        assert op.memory_id is not None
        self.done[op.id] = Done(op.memory_id, op.run_id, self.place.get(op.memory_id), after, undoes)
        self.place[op.memory_id] = after
        self.log(op)

    def log(self, op: MemoryOp) -> None:
        self.logged.append(op.id)
        self.moments.append((op.recorded_at, self.texts()))

    def applied(self, proposed: Sequence[ProposedOp], ops: Sequence[MemoryOp]) -> None:
        for wanted, op in zip(proposed, ops, strict=True):
            if op.kind is OpKind.NOOP:
                self.log(op)
            elif op.kind is OpKind.DELETE:
                self.note(op, None)
            else:
                assert op.memory_id is not None
                old = self.place.get(op.memory_id) if op.kind is OpKind.UPDATE else None
                assert wanted.text is not None
                self.note(op, Content(wanted.text, wanted.speaker or (old.speaker if old else None)))

    def can_undo(self, op_id: UUID) -> bool:
        done = self.done.get(op_id)
        return done is not None and not done.undone and self.place[done.memory_id] is done.after

    def undid(self, op_id: UUID, undo: MemoryOp) -> None:
        done = self.done[op_id]
        done.undone = True
        if done.undoes is not None:
            self.done[done.undoes].undone = False
        self.note(undo, done.before, undoes=op_id)

    def plan_of_undo_run(self, run_id: str) -> list[UUID] | None:
        """Return what undoing a run takes back, in order; `None` when it has to be refused."""
        trial = copy.copy(self)
        trial.place, trial.done = dict(self.place), {i: copy.copy(d) for i, d in self.done.items()}
        plan = [
            i
            for i in reversed(self.logged)
            if i in self.done and self.done[i].run_id == run_id and not self.done[i].undone
        ]
        for op_id in plan:
            if not trial.can_undo(op_id):
                return None
            trial.done[op_id].undone = True
            trial.place[trial.done[op_id].memory_id] = trial.done[op_id].before
        return plan or None


def batches() -> st.SearchStrategy[list[tuple[str, int, str, str | None, str | None]]]:
    """(kind, which memory, text, speaker, run) per operation; a number picks a memory when it is carried out."""
    kinds = st.sampled_from(["add", "add", "again", "update", "update", "delete", "noop"])
    text = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
    one = st.tuples(kinds, st.integers(0, 7), text, st.sampled_from(SPEAKERS), st.sampled_from(RUNS))
    return st.lists(one, min_size=1, max_size=4)


def proposals(drawn: Sequence[tuple[str, int, str, str | None, str | None]], model: Model) -> list[ProposedOp]:
    """Turn drawn operations into ones that fit the model, each memory at most once."""
    free, gone = model.alive(), [i for i, content in sorted(model.place.items()) if content is None]
    out: list[ProposedOp] = []
    for kind, number, text, speaker, run_id in drawn:
        if kind == "again" and gone:
            out.append(add(text, speaker=speaker, run_id=run_id, memory_id=gone.pop(number % len(gone))))
        elif kind in ("update", "delete") and free:
            memory_id = free.pop(number % len(free))
            one = (
                update(memory_id, text, speaker=speaker, run_id=run_id)
                if kind == "update"
                else delete(memory_id, run_id=run_id)
            )
            out.append(one)
        elif kind == "noop":
            out.append(noop(free[number % len(free)] if free else None, run_id=run_id))
        else:
            out.append(add(text, speaker=speaker, run_id=run_id))
    return out


def check(store: MemoryStore, scope: Scope, model: Model) -> None:
    """The state, the speakers and searches are what the model says."""
    current = {m.id: m for m in store.memories(scope=scope)}
    assert {i: m.text for i, m in current.items()} == model.texts()
    assert {i: m.speaker for i, m in current.items()} == {i: c.speaker for i, c in model.place.items() if c is not None}
    assert set(store.speakers(scope=scope)) == {m.speaker for m in current.values()} - {None}
    for query, where in (("tea piano", None), ("What does Anna say?", IndexFilter(speakers=("Anna",)))):
        hits = store.search(query, scope=scope, limit=100, where=where)
        allowed = {i: m for i, m in current.items() if where is None or m.speaker == "Anna"}
        assert {hit.memory.id: hit.memory for hit in hits} == allowed  # all of the scope, nothing of another


def in_memory_folder() -> str | None:
    """A folder that needs no disk, where there is a large one: hundreds of commits wait for the disk otherwise."""
    folder = Path("/dev/shm")
    return str(folder) if folder.is_dir() and shutil.disk_usage(folder).free > 2 << 30 else None


SCOPES = st.integers(0, 5)
BATCHES = batches()


class Bank(RuleBasedStateMachine):
    """One bank, several users, everything that can be done to them."""

    def __init__(self) -> None:
        super().__init__()
        self.home = tempfile.mkdtemp(prefix="memweave-test-", dir=in_memory_folder())
        self.bank: MemoryBank = open_bank(self.home, embedding="hashing:32")
        self.models = {Scope(user="anna"): Model(), Scope(user="bob"): Model(), Scope(tenant="t", user="anna"): Model()}
        self.touched: set[Scope] = set()

    def teardown(self) -> None:
        self.check_everything()
        self.bank.close()
        shutil.rmtree(self.home)

    def pick(self, number: int) -> tuple[Scope, Model]:
        scope = list(self.models)[number % len(self.models)]
        self.touched.add(scope)
        return scope, self.models[scope]

    @rule(number=SCOPES, drawn=BATCHES)
    def apply(self, number: int, drawn: list[tuple[str, int, str, str | None, str | None]]) -> None:
        scope, model = self.pick(number)
        proposed = proposals(drawn, model)
        model.applied(proposed, self.bank.apply(proposed, scope=scope))

    @rule(number=SCOPES, drawn=BATCHES, at=st.integers(0, 3), wrong=st.sampled_from(["unknown", "version", "taken"]))
    def apply_with_one_bad_operation(
        self, number: int, drawn: list[tuple[str, int, str, str | None, str | None]], at: int, wrong: str
    ) -> None:
        scope, model = self.pick(number)
        batch = proposals(drawn, model)
        named = {op.memory_id for op in batch}
        free = [i for i in model.alive() if i not in named]
        bad = delete(uuid4()) if wrong == "unknown" or not free else add("x", memory_id=free[0])
        if wrong == "version" and free:
            bad = update(free[0], "x", expected_version=99)
        batch.insert(at % (len(batch) + 1), bad)
        before = self.bank.log(scope=scope)
        with pytest.raises((UnknownMemoryError, ConflictError)):
            self.bank.apply(batch, scope=scope)
        assert self.bank.log(scope=scope) == before

    @rule(number=SCOPES, which=st.integers(0, 30))
    def undo(self, number: int, which: int) -> None:
        scope, model = self.pick(number)
        if not model.logged:
            return
        op_id = model.logged[-1 - which % len(model.logged)]
        if model.can_undo(op_id):
            model.undid(op_id, self.bank.undo(op_id, scope=scope, actor="test"))
        else:
            with pytest.raises(ConflictError):
                self.bank.undo(op_id, scope=scope, actor="test")

    @rule(number=SCOPES, run_id=st.sampled_from(["r1", "r2"]))
    def undo_run(self, number: int, run_id: str) -> None:
        scope, model = self.pick(number)
        plan = model.plan_of_undo_run(run_id)
        if plan is None:
            with pytest.raises((ConflictError, UnknownMemoryError)):
                self.bank.undo_run(run_id, scope=scope, actor="test")
            return
        undone = self.bank.undo_run(run_id, scope=scope, actor="test")
        assert [op.undoes for op in undone] == plan
        for op_id, op in zip(plan, undone, strict=True):
            model.undid(op_id, op)

    @rule(number=SCOPES, drawn=BATCHES, works=st.booleans())
    def process_a_turn(
        self, number: int, drawn: list[tuple[str, int, str, str | None, str | None]], works: bool
    ) -> None:
        scope, model = self.pick(number)
        source_id = str(len(model.turns))
        (turn,) = self.bank.accept([Turn(source_id=source_id, speaker="Anna", text="Hi")], scope=scope)
        if works:
            proposed = proposals(drawn, model)
            model.applied(proposed, self.bank.apply(proposed, scope=scope, turn=turn))
        else:
            model.log(self.bank.reject("prose", scope=scope, actor="test", turn=turn))
        model.turns[source_id] = TurnStatus.DONE if works else TurnStatus.PENDING

    @rule(number=SCOPES, first=BATCHES, second=BATCHES, which=st.integers(0, 5))
    def try_in_a_branch(
        self,
        number: int,
        first: list[tuple[str, int, str, str | None, str | None]],
        second: list[tuple[str, int, str, str | None, str | None]],
        which: int,
    ) -> None:
        scope, model = self.pick(number)
        branch, other = self.bank.branch(scope=scope), self.bank.branch(scope=scope)
        trial = Model(place=dict(model.place))
        for drawn in (first, second):
            proposed = proposals(drawn, trial)
            trial.applied(proposed, branch.apply(proposed, scope=scope))
        with pytest.raises(UnknownMemoryError):
            branch.apply([add("tea"), update(uuid4(), "x")], scope=scope)
        op_id = trial.logged[-1 - which % len(trial.logged)]
        if trial.can_undo(op_id):
            trial.undid(op_id, branch.undo(op_id, scope=scope, actor="test"))
        check(branch, scope, trial)
        check(other, scope, model)
        assert [op.id for op in branch.log(scope=scope)] == trial.logged
        for time, texts in trial.moments:
            assert {m.id: m.text for m in branch.as_of(time, scope=scope)} == texts

    @rule(number=SCOPES)
    def purge(self, number: int) -> None:
        scope, model = self.pick(number)
        receipt = self.bank.purge(scope=scope)
        assert (receipt.operations, receipt.turns) == (len(model.logged), len(model.turns))
        self.models[scope] = Model()

    @precondition(lambda self: len(self.models) < 5)
    @rule(number=SCOPES)
    def move_a_copy_to_a_new_user(self, number: int) -> None:
        scope, model = self.pick(number)
        there = Scope(tenant="copies", user=str(len(self.models)))
        receipt = self.bank.import_(self.bank.export(scope=scope), scope=there)
        assert (receipt.operations, receipt.turns) == (len(model.logged), len(model.turns))
        self.models[there] = copy.deepcopy(model)
        self.touched.add(there)

    @rule(number=SCOPES)
    def import_over_it(self, number: int) -> None:
        scope, model = self.pick(number)
        receipt = self.bank.import_(self.bank.export(scope=scope), scope=scope)
        assert (receipt.memories, receipt.operations, receipt.turns) == (0, 0, 0)
        assert len(self.bank.log(scope=scope)) == len(model.logged)

    @rule()
    def reopen(self) -> None:
        self.bank.close()
        self.bank = open_bank(self.home)
        self.touched = set(self.models)

    @rule()
    def rebuild(self) -> None:
        self.bank.rebuild()
        self.touched = set(self.models)

    @invariant()
    def what_was_touched_is_right(self) -> None:
        for scope in self.touched:
            model = self.models[scope]
            check(self.bank, scope, model)
            assert audit(self.bank, scope=scope) == []
            assert [op.id for op in self.bank.log(scope=scope)] == model.logged
            if model.moments:
                time, texts = model.moments[-1]
                assert {m.id: m.text for m in self.bank.as_of(time, scope=scope)} == texts
        self.touched = set()

    def check_everything(self) -> None:
        for scope, model in self.models.items():
            check(self.bank, scope, model)
            ops = self.bank.log(scope=scope)
            state, problems = replay(ops)
            assert problems == []
            assert {i: m.text for i, m in state.items()} == model.texts()
            for time, texts in model.moments:
                assert {m.id: m.text for m in self.bank.as_of(time, scope=scope)} == texts
            for memory_id in model.place:
                history = self.bank.history(memory_id, scope=scope)
                assert [op.id for op in history if op.before or op.after] == [
                    i for i in model.logged if i in model.done and model.done[i].memory_id == memory_id
                ]
            assert {t.source_id: t.status for t in self.bank.turns(scope=scope)} == model.turns
            failed = self.bank.log(scope=scope, status=OpStatus.FAILED)
            assert all(op.before is None and op.after is None for op in failed)


Bank.TestCase.settings = settings(max_examples=15, stateful_step_count=25)
TestBank = Bank.TestCase

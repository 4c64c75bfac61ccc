"""Export and import: the whole history makes the trip, and a file that is not whole or not ours changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from memweave.errors import ConflictError, FormatError, InputError
from memweave.memory_stores import MemoryBank, open_bank
from memweave.records import ImportReceipt, OpStatus, Scope, Trust, Turn, TurnStatus
from memweave.testing.audit import audit
from memweave.testing.operations import add, delete, noop, update

HERE = Scope(user="anna")
THERE = Scope(tenant="elsewhere", user="anna2")


def live_through(bank: MemoryBank, scope: Scope) -> None:
    """Let everything happen once."""
    said = {"source_id": "1", "speaker": "Anna", "text": "I drink tea 🫖", "observed_at": "2024-05-08T10:00:00"}
    turns = bank.accept(
        [
            Turn.model_validate(said | {"previous": "Hi"}),
            Turn(source_id="2", speaker="Anna", text="?", trust=Trust.WEB),
        ],
        scope=scope,
    )
    first, second = bank.apply(
        [
            add("Anna drinks tea 🫖", speaker="Anna", metadata={"n": [1, None, {"deep": True}]}, observed_at=turns[0].observed_at),
            add("Anna has a cat", run_id="r1", context="in passing", dialogue="d", source_ids=("1",), trust=Trust.AGENT),
        ],
        scope=scope,
        turn=turns[0],
    )  # fmt: skip
    assert first.memory_id is not None
    assert second.memory_id is not None
    bank.reject("prose", scope=scope, actor="model", turn=turns[1])
    changed = bank.apply([update(first.memory_id, "Anna drinks coffee"), delete(second.memory_id), noop()], scope=scope)
    bank.undo(changed[1].id, scope=scope, actor="user:anna")


def story(bank: MemoryBank, scope: Scope) -> object:
    """Everything that a round trip keeps: all but whose it is and where it lies in the ledger."""
    ops = bank.log(scope=scope)
    sides = {"before": {"scope"}, "after": {"scope"}}
    return (
        [[m.model_dump(exclude={"scope"}) for m in bank.as_of(op.recorded_at, scope=scope)] for op in ops],
        [m.model_dump(exclude={"scope"}) for m in bank.memories(scope=scope)],
        [op.model_dump(exclude={"scope": True, "seq": True, **sides}) for op in ops],
        [t.model_dump(exclude={"scope", "position"}) for t in bank.turns(scope=scope)],
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryBank]:
    """A bank in which everything happened once. Only read."""
    with open_bank(tmp_path_factory.mktemp("original"), embedding="hashing:64") as opened:
        live_through(opened, HERE)
        yield opened


@pytest.fixture(scope="module")
def lines(original: MemoryBank) -> list[str]:
    return list(original.export(scope=HERE))


@pytest.fixture
def other(tmp_path: Path) -> Iterator[MemoryBank]:
    with open_bank(tmp_path / "other", embedding="hashing:64") as opened:
        yield opened


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryBank]:
    """A bank that has to stay empty."""
    with open_bank(tmp_path_factory.mktemp("untouched"), embedding="hashing:64") as opened:
        yield opened


def nothing_happened(bank: MemoryBank) -> bool:
    return not (bank.memories(scope=THERE) or bank.log(scope=THERE) or bank.turns(scope=THERE))


def test_a_round_trip_keeps_the_whole_history(original: MemoryBank, other: MemoryBank, lines: list[str]) -> None:
    assert other.import_(lines, scope=THERE) == ImportReceipt(memories=4, operations=7, turns=2)
    assert story(other, THERE) == story(original, HERE)
    assert audit(other, scope=THERE) == []
    assert [h.memory.text for h in other.search("coffee", scope=THERE, limit=1)] == ["Anna drinks coffee"]


def test_imported_operations_can_be_undone_and_turns_retried(other: MemoryBank, lines: list[str]) -> None:
    other.import_(lines, scope=THERE)
    by_kind = {op.kind.value: op for op in other.log(scope=THERE) if op.undoes is None}
    other.undo(by_kind["UPDATE"].id, scope=THERE, actor="test")
    assert sorted(m.text for m in other.memories(scope=THERE)) == ["Anna drinks tea 🫖", "Anna has a cat"]
    (pending,) = other.turns(scope=THERE, status=TurnStatus.PENDING)
    assert (pending.source_id, pending.attempts, pending.error) == ("2", 1, "prose")
    other.apply([add("Anna asked something")], scope=THERE, turn=pending)
    assert audit(other, scope=THERE) == []
    assert [op.status for op in other.log(scope=THERE, status=OpStatus.FAILED)] == [OpStatus.FAILED]


def test_importing_twice_is_the_same_as_once(other: MemoryBank, lines: list[str]) -> None:
    other.import_(lines, scope=THERE)
    before = list(other.export(scope=THERE))[1:]
    assert other.import_(lines, scope=THERE) == ImportReceipt(memories=0, operations=0, turns=0)
    assert list(other.export(scope=THERE))[1:] == before


def test_turns_alone_can_be_imported_twice(bank: MemoryBank, other: MemoryBank, scope: Scope) -> None:
    bank.accept([Turn(source_id="1", speaker="Anna", text="Hi")], scope=scope)
    lines = list(bank.export(scope=scope))
    assert other.import_(lines, scope=THERE) == ImportReceipt(memories=0, operations=0, turns=1)
    assert other.import_(lines, scope=THERE) == ImportReceipt(memories=0, operations=0, turns=0)


def test_a_scope_with_other_content_is_refused(other: MemoryBank, lines: list[str]) -> None:
    other.apply([add("something else")], scope=THERE)
    with pytest.raises(ConflictError, match="histories cannot be merged"):
        other.import_(lines, scope=THERE)
    assert [m.text for m in other.memories(scope=THERE)] == ["something else"]


def test_an_empty_scope_makes_an_export_that_can_be_imported(bank: MemoryBank, other: MemoryBank, scope: Scope) -> None:
    assert other.import_(bank.export(scope=scope), scope=THERE) == ImportReceipt(memories=0, operations=0, turns=0)


def test_whatever_is_missing_at_the_end_is_noticed(untouched: MemoryBank, lines: list[str]) -> None:
    for kept in range(len(lines)):
        with pytest.raises(InputError, match=r"truncated|not even a header"):
            untouched.import_(lines[:kept], scope=THERE)
    whole = "\n".join(lines)
    for cut in range(len(whole) - 2, 0, -137):
        with pytest.raises(InputError):
            untouched.import_(whole[:cut].split("\n"), scope=THERE)
    assert nothing_happened(untouched)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ([], "not even a header"),
        (["", "  "], "not even a header"),
        (["{"], "line 1"),
        (["[" * 100_000], "line 1"),
        (["[]"], "not a memweave export"),
        (['"export"'], "not a memweave export"),
        (['{"role": "user", "content": "hello"}'], "not a memweave export"),
        (["user,text", "anna,hello"], "line 1"),
    ],
)
def test_other_files_are_refused(untouched: MemoryBank, wrong: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        untouched.import_(wrong, scope=THERE)
    assert nothing_happened(untouched)


def test_another_format_is_refused_by_its_number(untouched: MemoryBank, lines: list[str]) -> None:
    with pytest.raises(FormatError, match="format 2"):
        untouched.import_(['{"memweave": "export", "format": 2, "what": "ever"}', *lines[1:]], scope=THERE)
    with pytest.raises(InputError, match="'cases'"):
        untouched.import_([lines[0].replace('"memories"', '"cases"'), *lines[1:]], scope=THERE)
    assert nothing_happened(untouched)


@pytest.mark.parametrize(
    "wrong", ["{", "null", "7", "[]", "{}", '{"op": 3}', '{"version": {}}', '{"turn": {"text": ""}}']
)
def test_a_wrong_line_is_named(untouched: MemoryBank, lines: list[str], wrong: str) -> None:
    with pytest.raises(InputError, match=r"line 4 of the export"):
        untouched.import_([*lines[:3], wrong, *lines[4:]], scope=THERE)
    assert nothing_happened(untouched)


def _of(lines: list[str], kind: str) -> list[int]:
    return [i for i, line in enumerate(lines) if kind in json.loads(line)]


def _doubled(kind: str) -> Callable[[list[str]], list[str]]:
    def twice(lines: list[str]) -> list[str]:
        chosen = _of(lines, kind)
        return [lines[chosen[0]] if i == chosen[1] else line for i, line in enumerate(lines)]

    return twice


def _swapped(lines: list[str]) -> list[str]:
    chosen = _of(lines, "op")
    first, second = chosen[0], chosen[-1]
    return [lines[{first: second, second: first}.get(i, i)] for i in range(len(lines))]


def _set(kind: str, which: int, field: str, value: object) -> Callable[[list[str]], list[str]]:
    def change(lines: list[str]) -> list[str]:
        chosen = _of(lines, kind)[which]
        data = json.loads(lines[chosen])
        (data if field in data else data[kind])[field] = value
        return [*lines[:chosen], json.dumps(data), *lines[chosen + 1 :]]

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_doubled("turn"), "a turn is there twice"),
        (_doubled("op"), "an operation is there twice"),
        (_doubled("version"), "a version is there twice"),
        (_swapped, "does not follow|no later"),
        (_set("op", 0, "after", None), "does not follow|other versions"),
        (_set("op", 0, "before", 7), "does not follow"),
        (_set("op", 0, "status", "failed"), "does not follow"),
        (_set("op", -1, "recorded_at", "2020-01-01T00:00:00Z"), "no later"),
        (_set("version", 0, "opened_by", str(UUID(int=5))), "contradicts the operations"),
        (_set("version", 0, "closed_at", None), "contradicts the operations"),
        (_set("version", -1, "closed_by", str(UUID(int=5))), "contradicts the operations"),
        (_set("version", 0, "recorded_at", "2020-01-01T00:00:00Z"), "contradicts the operations"),
        (_set("version", 0, "id", str(UUID(int=5))), "other versions"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    untouched: MemoryBank, lines: list[str], damage: Callable[[list[str]], list[str]], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        untouched.import_(damage(lines), scope=THERE)
    assert nothing_happened(untouched)


def test_after_a_purge_the_export_can_come_back(other: MemoryBank) -> None:
    live_through(other, THERE)
    before, lines = story(other, THERE), list(other.export(scope=THERE))
    other.purge(scope=THERE)
    other.import_(lines, scope=THERE)
    assert story(other, THERE) == before
    assert audit(other, scope=THERE) == []

"""`memweave memory ...`: what it shows, takes back, moves and erases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from memweave.memory_stores import open_bank
from memweave.records import MemoryOp, OpKind, ProposedOp, Scope

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

ANNA = Scope(user="anna")


@pytest.fixture
def ops(cli: Cli, tmp_path: Path) -> list[MemoryOp]:
    """Return four operations on a bank in the working folder: two ADDs, an UPDATE of the first, another user's ADD."""
    with open_bank(tmp_path / ".memweave", embedding="hashing") as bank:
        made = [
            ProposedOp(kind=OpKind.ADD, text=text, reason="new", actor="rule", source_ids=(source,), speaker="Anna", run_id="r1")
            for text, source in (("I live in Porto", "m1"), ("My cat is called Miso", "m2"))
        ]  # fmt: skip
        first, second = bank.apply(made, scope=ANNA)
        change = ProposedOp(
            kind=OpKind.UPDATE, memory_id=first.memory_id, text="I live in Lisbon", reason="moved", actor="rule", run_id="r2"
        )  # fmt: skip
        update = bank.apply([change], scope=ANNA)[0]
        foreign = ProposedOp(kind=OpKind.ADD, text="I live in Oslo", reason="new", actor="rule")
        other = bank.apply([foreign], scope=Scope(user="ben"))[0]
    return [first, second, update, other]


def test_list_shows_this_users_memories_only(cli: Cli, ops: list[MemoryOp]) -> None:
    result = cli("memory", "list", "--user", "anna")
    assert result.code == 0
    assert "I live in Lisbon" in result.out
    assert "Oslo" not in result.out
    assert "Porto" not in result.out
    listed = cli("memory", "list", "--user", "anna", "--json").json
    assert [memory["text"] for memory in listed["memories"]] == ["I live in Lisbon", "My cat is called Miso"]
    assert listed["total"] == 2


def test_list_says_how_many_it_left_out(cli: Cli, ops: list[MemoryOp]) -> None:
    result = cli("memory", "list", "--user", "anna", "--limit", "1")
    assert "1 of 2 memories; --limit 2 shows all" in result.err


def test_log_shows_operation_reason_actor_source_and_both_sides(cli: Cli, ops: list[MemoryOp]) -> None:
    out = " ".join(cli("memory", "log", "--user", "anna").out.split())
    for part in ("~ UPDATE", "I live in Porto -> I live in Lisbon", "moved", "rule", "+ ADD", "m2", ops[2].id.hex[-8:]):
        assert part in out
    logged = cli("memory", "log", "--user", "anna", "--run", "r2", "--json").json["operations"]
    assert [op["id"] for op in logged] == [str(ops[2].id)]


def test_log_of_one_memory(cli: Cli, ops: list[MemoryOp]) -> None:
    memory = ops[0].memory_id
    assert memory is not None
    logged = cli("memory", "log", "--user", "anna", "--memory", memory.hex[-8:], "--json").json["operations"]
    assert [op["kind"] for op in logged] == ["ADD", "UPDATE"]


@pytest.mark.parametrize("part", [slice(None), slice(-8, None), slice(None, 31)])
def test_undo_takes_an_operation_back_by_any_end_of_its_id(cli: Cli, ops: list[MemoryOp], part: slice) -> None:
    done = cli("memory", "undo", ops[2].id.hex[part], "--user", "anna", "--json").json["operations"]
    assert done[0]["undoes"] == str(ops[2].id)
    assert done[0]["actor"] == "user:anna"
    assert "I live in Porto" in cli("memory", "list", "--user", "anna").out


def test_undo_of_a_run(cli: Cli, ops: list[MemoryOp]) -> None:
    assert cli("memory", "undo", "--run", "r2", "--user", "anna").code == 0
    assert "I live in Porto" in cli("memory", "list", "--user", "anna").out


def test_as_of_shows_the_past(cli: Cli, ops: list[MemoryOp]) -> None:
    then = ops[1].recorded_at.isoformat()
    assert "I live in Porto" in cli("memory", "as-of", then, "--user", "anna").out
    assert cli("memory", "as-of", "2020-01-01", "--user", "anna", "--json").json == {"memories": [], "total": 0}


def test_export_and_import_carry_everything_to_another_user(cli: Cli, ops: list[MemoryOp], tmp_path: Path) -> None:
    assert cli("memory", "export", "anna.jsonl", "--user", "anna").code == 0
    lines = (tmp_path / "anna.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
    # The first line says when it was exported.
    assert cli("memory", "export", "--user", "anna").out.splitlines()[1:] == lines[1:]
    assert cli("memory", "export", "--user", "anna", "--json").json["lines"][1:] == lines[1:]
    receipt = cli("memory", "import", "anna.jsonl", "--user", "carl", "--home", "elsewhere", "--json").json
    assert receipt["operations"] == 3
    assert "I live in Lisbon" in cli("memory", "list", "--user", "carl", "--home", "elsewhere").out


def test_export_overwrites_nothing(cli: Cli, ops: list[MemoryOp], tmp_path: Path) -> None:
    (tmp_path / "anna.jsonl").write_text("precious")
    result = cli("memory", "export", "anna.jsonl", "--user", "anna")
    assert result.code == 2
    assert "exists already" in result.error
    assert (tmp_path / "anna.jsonl").read_text() == "precious"


def test_import_of_half_a_file_changes_nothing(cli: Cli, ops: list[MemoryOp], tmp_path: Path) -> None:
    cli("memory", "export", "anna.jsonl", "--user", "anna")
    whole = (tmp_path / "anna.jsonl").read_text()
    (tmp_path / "half.jsonl").write_text(whole[: len(whole) // 2])
    result = cli("memory", "import", "half.jsonl", "--user", "carl")
    assert result.code == 2
    assert "line" in result.error
    assert cli("memory", "list", "--user", "carl", "--json").json["total"] == 0


def test_purge_needs_a_confirmation_and_then_erases(cli: Cli, ops: list[MemoryOp]) -> None:
    refused = cli("memory", "purge", "--user", "anna")
    assert refused.code == 2
    assert "--yes" in refused.error
    assert cli("memory", "list", "--user", "anna", "--json").json["total"] == 2
    assert cli("memory", "purge", "--user", "anna", "--yes", "--json").json["operations"] == 3
    assert cli("memory", "list", "--user", "anna", "--json").json["total"] == 0
    assert cli("memory", "log", "--user", "anna", "--json").json["operations"] == []
    assert cli("memory", "list", "--user", "ben", "--json").json["total"] == 1


def test_rebuild_with_another_embedding(cli: Cli, ops: list[MemoryOp], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMWEAVE_EMBEDDING")
    done = cli("memory", "rebuild", "--embedding", "hashing:64", "--json").json
    assert done["dimension"] == 64
    with open_bank(".memweave") as bank:
        assert bank.search("Lisbon", scope=ANNA, limit=1)[0].memory.text == "I live in Lisbon"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("memory", "undo", "0badcafe", "--user", "anna"), "there is no operation '0badcafe'"),
        (("memory", "undo", "xyz!", "--user", "anna"), "is not an id"),
        (("memory", "undo", "--user", "anna"), "--run RUN"),
        (("memory", "undo", "--run", "r9", "--user", "anna"), "no run 'r9'"),
        (("memory", "log", "--memory", "0badcafe", "--user", "anna"), "there is no memory '0badcafe'"),
        (("memory", "as-of", "yesterday", "--user", "anna"), "'yesterday' is not a time"),
        (("memory", "list"), "no user is given"),
        (("memory", "list", "--user", "an\tna"), "control characters"),
        (("memory", "list", "--user", "anna", "--limit", "0"), "--limit"),
        (("memory", "import", "nowhere.jsonl", "--user", "anna"), "nowhere.jsonl"),
        (("memory", "forget", "--user", "anna"), "forget"),
    ],
)
def test_misuse_is_one_line_that_names_the_remedy(
    cli: Cli, ops: list[MemoryOp], arguments: tuple[str, ...], says: str
) -> None:
    result = cli(*arguments)
    assert result.code == 2
    assert says in result.error
    assert result.out == ""


def test_another_users_operation_cannot_be_undone(cli: Cli, ops: list[MemoryOp]) -> None:
    assert cli("memory", "undo", ops[3].id.hex, "--user", "anna").code == 2
    assert cli("memory", "list", "--user", "ben", "--json").json["total"] == 1


def test_an_ambiguous_id_lists_what_it_fits(cli: Cli, ops: list[MemoryOp]) -> None:
    shared = ops[0].id.hex[:6]  # the first digits are the time
    result = cli("memory", "undo", shared, "--user", "anna")
    assert result.code == 2
    assert str(ops[0].id) in result.error


def test_reading_makes_no_data_folder(cli: Cli, tmp_path: Path) -> None:
    result = cli("memory", "list", "--user", "anna", "--home", "nowhere")
    assert result.code == 2
    assert "memweave remember" in result.error
    assert not (tmp_path / "nowhere").exists()

"""Purge: nothing of the user stays in any file, everybody else is untouched."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from memweave import sqlite_files
from memweave.errors import UnavailableError, UnknownMemoryError
from memweave.memory_stores import MemoryBank, open_bank
from memweave.records import PurgeReceipt, Scope, Turn
from memweave.testing.audit import audit
from memweave.testing.operations import add, delete, update

BOB = Scope(user="bob")
SECRET = Scope(user="qxsecret-user")
WORD = "qxsecret"


def leftovers(home: Path, word: str = WORD) -> dict[str, int]:
    """How often a word is in the raw bytes of each file of a folder, write-ahead logs included."""
    found = {
        p.relative_to(home).as_posix(): p.read_bytes().count(word.encode()) for p in home.rglob("*") if p.is_file()
    }
    return {name: times for name, times in found.items() if times}


def live_through(bank: MemoryBank, scope: Scope, word: str) -> None:
    """Write `word` into every field that a user's data can be in."""
    said = Turn(
        source_id=f"{word}-1",
        speaker=f"{word}-speaker",
        dialogue=f"{word}-dialogue",
        text=f"{word} text",
        previous=f"{word} p",
    )
    again = said.model_copy(update={"source_id": f"{word}-2"})
    turn, failing = bank.accept([said, again], scope=scope)
    fields = {
        "speaker": f"{word}-speaker", "dialogue": f"{word}-dialogue", "context": f"{word} context", "run_id": f"{word}-run",
        "source_ids": (f"{word}-1",), "metadata": {f"{word}-key": [f"{word}-value"]}, "reason": f"{word} reason",
        "actor": f"{word}-actor", "policy_version": f"{word}-policy",
    }  # fmt: skip
    kept, gone = bank.apply(
        [add(f"{word} drinks tea", **fields), add(f"{word} drinks milk", **fields)], scope=scope, turn=turn
    )
    assert kept.memory_id is not None
    assert gone.memory_id is not None
    changed = bank.apply(
        [update(kept.memory_id, f"{word} drinks coffee", **fields), delete(gone.memory_id)], scope=scope
    )
    bank.undo(changed[1].id, scope=scope, actor=f"{word}-undoer", reason=f"{word} undone")
    bank.reject(f"{word} error", scope=scope, actor=f"{word}-model", turn=failing, reason=f"{word} rejected")
    bank.search(f"{word} tea", scope=scope)


def test_no_file_holds_a_word_of_a_purged_user(tmp_path: Path) -> None:
    with open_bank(tmp_path, embedding="hashing:64") as bank:
        live_through(bank, BOB, "plain")
        live_through(bank, SECRET, WORD)
        vectors = [v.vector.tobytes() for v in bank._core.ledger.snapshot(SECRET.partition(), SECRET)]
        before = (
            bank.memories(scope=BOB),
            bank.log(scope=BOB),
            bank.turns(scope=BOB),
            list(bank.export(scope=BOB))[1:],
        )
        assert {name.split("/")[0] for name in leftovers(tmp_path)} >= {
            "ledger.sqlite-wal",
            "index",
        }  # the search below can find it

        assert bank.purge(scope=SECRET) == PurgeReceipt(memories=4, operations=6, turns=2)

        assert leftovers(tmp_path) == {}
        for path in (p for p in tmp_path.rglob("*") if p.is_file()):
            assert not [v for v in vectors if v in path.read_bytes()], path
        assert before == (
            bank.memories(scope=BOB),
            bank.log(scope=BOB),
            bank.turns(scope=BOB),
            list(bank.export(scope=BOB))[1:],
        )
        assert [hit.memory.text for hit in bank.search("coffee", scope=BOB, limit=1)] == ["plain drinks coffee"]
        assert audit(bank, scope=BOB) == []
    assert leftovers(tmp_path) == {}
    assert leftovers(tmp_path, "plain")  # the others' data is still in the same files


def test_nothing_stays_between_the_rows_of_a_page(tmp_path: Path) -> None:
    # Balancing a B-tree moves rows between pages and leaves copies in the gaps; random keys and sizes make it happen.
    rng = random.Random(2)
    with open_bank(tmp_path, embedding="hashing:64") as bank:
        for _ in range(120):
            for user, word in ((BOB, "plain"), (SECRET, WORD)):
                turns = [
                    Turn(
                        source_id=f"{rng.random()}{word}",
                        speaker=f"{word}sp",
                        dialogue=f"{rng.randrange(5)}{word}",
                        text=word * rng.randrange(1, 60),
                    )
                    for _ in range(rng.randrange(1, 40))
                ]
                bank.accept(turns, scope=user)
        kept = bank.turns(scope=BOB)
        bank.purge(scope=SECRET)
        assert leftovers(tmp_path) == {}
        assert bank.turns(scope=BOB) == kept


def test_a_purged_user_is_as_if_new(bank: MemoryBank, scope: Scope) -> None:
    (added,) = bank.apply([add("Anna drinks tea")], scope=scope)
    assert added.memory_id is not None
    bank.purge(scope=scope)
    assert bank.memories(scope=scope) == bank.log(scope=scope) == bank.search("tea", scope=scope) == []
    assert bank.as_of(added.recorded_at, scope=scope) == bank.turns(scope=scope) == bank.speakers(scope=scope) == []
    with pytest.raises(UnknownMemoryError):
        bank.undo(added.id, scope=scope, actor="test")
    (again,) = bank.apply([add("Anna drinks coffee", memory_id=added.memory_id)], scope=scope)
    assert again.after is not None
    assert again.after.version == 1
    assert again.seq > added.seq
    assert audit(bank, scope=scope) == []


def test_the_receipt_counts_rows_of_the_user_only(bank: MemoryBank, scope: Scope) -> None:
    assert bank.purge(scope=scope) == PurgeReceipt(memories=0, operations=0, turns=0)
    for _ in range(2):  # the second time, the tombstone of the first is there
        bank.apply([add("tea"), add("coffee")], scope=scope)
        bank.apply([add("milk")], scope=BOB)
        assert bank.purge(scope=scope) == PurgeReceipt(memories=2, operations=2, turns=0)
    assert bank.purge(scope=scope) == PurgeReceipt(memories=0, operations=0, turns=0)
    assert len(bank.memories(scope=BOB)) == 2


def test_the_same_user_of_another_tenant_stays(bank: MemoryBank) -> None:
    here, there = Scope(tenant="one", user="anna"), Scope(tenant="two", user="anna")
    bank.apply([add("tea")], scope=here)
    bank.apply([add("coffee")], scope=there)
    bank.purge(scope=here)
    assert [m.text for m in bank.memories(scope=there)] == ["coffee"]
    assert [h.memory.text for h in bank.search("coffee", scope=there)] == ["coffee"]


def test_a_reader_in_another_process_is_named_when_it_keeps_the_log_from_being_emptied(
    tmp_path: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_files, "BUSY_SECONDS", 0.05)
    with open_bank(tmp_path, embedding="hashing:64") as bank:
        bank.apply([add(f"{WORD} tea")], scope=scope)
        reader = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
        reader.execute("BEGIN").execute("SELECT count(*) FROM memweave_ops").fetchall()
        with pytest.raises(UnavailableError, match="another process is reading"):
            bank.purge(scope=scope)
        assert bank.memories(scope=scope) == []
        reader.close()
        bank.purge(scope=scope)
        assert leftovers(tmp_path) == {}


def test_an_index_that_cannot_be_reached_does_not_keep_the_ledger_from_being_erased(
    tmp_path: Path, scope: Scope, closed_port: Callable[[], int]
) -> None:
    with open_bank(tmp_path, embedding="hashing:64", qdrant_url=f"http://127.0.0.1:{closed_port()}", timeout=1) as bank:
        bank.apply([add(f"{WORD} tea")], scope=scope)
        with pytest.raises(UnavailableError, match="Qdrant server at http"):
            bank.purge(scope=scope)
        assert leftovers(tmp_path) == {}
        assert bank.memories(scope=scope) == []

"""Opening a data folder: what it was made with, who has it open, and what happens when something in it is wrong."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from memweave.embeddings import HashingEmbedder
from memweave.errors import (
    ConflictError,
    DataFolderError,
    EmbeddingMismatchError,
    FormatError,
    InputError,
    SettingsError,
    UnavailableError,
    UsageError,
)
from memweave.memory_stores import MemoryBank, SearchConfig, open_bank, reembed
from memweave.memory_stores.engine import Marker
from memweave.records import Scope
from memweave.testing.audit import audit
from memweave.testing.embedders import FaultyEmbedder
from memweave.testing.operations import add, update


@pytest.fixture
def home(tmp_path: Path, scope: Scope) -> Path:
    """A data folder with three memories, closed."""
    with open_bank(tmp_path / "home", embedding="hashing:64") as bank:
        ops = bank.apply(
            [add(f"Anna drinks {what}", speaker="Anna") for what in ("tea", "coffee", "milk")], scope=scope
        )
        bank.apply([update(ops[0].memory_id or ops[0].id, "Anna drinks green tea")], scope=scope)
        assert bank.count(scope=scope) == 3
    return tmp_path / "home"


def fills(bank: MemoryBank) -> int:
    """How often the index was written anew since it was opened."""
    return bank._core.projector._fills // 2


def open_and_read(home: Path, scope: Scope) -> None:
    """Read every table."""
    with open_bank(home) as bank:
        list(bank.export(scope=scope))


def set_meta(home: Path, key: str, value: str) -> None:
    with sqlite3.connect(home / "ledger.sqlite") as connection:
        connection.execute("UPDATE memweave_meta SET value = ? WHERE key = ?", (value, key))
    connection.close()


def green(bank: MemoryBank, scope: Scope) -> bool:
    """Whether a search finds what is there, and the index agrees with the ledger."""
    return (
        bank.search("green tea", scope=scope)[0].memory.text == "Anna drinks green tea"
        and audit(bank, scope=scope) == []
    )


# The folder


@pytest.mark.parametrize("name", ["plain", "with space", "what?a=1", "hash#tag", "50%20", "Ünï🫖", "semi;colon"])
def test_any_folder_name_will_do(tmp_path: Path, scope: Scope, name: str) -> None:
    with open_bank(tmp_path / name, embedding="hashing:64") as bank:
        bank.apply([add("Anna drinks tea")], scope=scope)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "ledger.sqlite").exists()
    with open_bank(str(tmp_path / name)) as bank:
        assert len(bank.memories(scope=scope)) == 1


def test_a_folder_is_created_with_its_parents_and_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_bank("~/deep/er", embedding="hashing:64"):
        assert (tmp_path / "deep/er/ledger.sqlite").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataFolderError, match=r"cannot create data folder .*MEMWEAVE_HOME"):
            open_bank(home, embedding="hashing:64")
    assert (tmp_path / "file").read_text() == "hello"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "ledger.sqlite").mkdir(parents=True)  # what even root cannot open as a file
    with pytest.raises(DataFolderError, match=r"ledger\.sqlite.*Check that the folder exists and is writable"):
        open_bank(home, embedding="hashing:64")
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(DataFolderError, match="writable"):
            open_bank(tmp_path / "locked", embedding="hashing:64")


def test_an_index_lock_that_cannot_be_written(home: Path, scope: Scope) -> None:
    (home / "index.lock").unlink()
    (home / "index.lock").mkdir()
    with open_bank(home) as bank:
        assert len(bank.memories(scope=scope)) == 3  # the ledger is fine
        with pytest.raises(DataFolderError, match="make the folder writable"):
            bank.search("tea", scope=scope)


@pytest.mark.parametrize("url", ["mysql://host/db", "not a url", "sqlite", "http://host"])
def test_other_databases_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match=r"ledger_url|sqlite:// and postgresql://"):
        open_bank(tmp_path, embedding="hashing:64", ledger_url=url)


# One process, several banks


def test_banks_on_one_folder_share_everything(home: Path, scope: Scope) -> None:
    with open_bank(home) as one, open_bank(home / ".." / "home", embedding="hashing:64") as two:
        (op,) = one.apply([add("Anna drinks water")], scope=scope)
        assert two.search("water", scope=scope, limit=1)[0].memory == op.after
        assert one._core is two._core
        one.close()
        one.close()  # closing twice is closing once
        assert two.search("water", scope=scope, limit=1)[0].memory == op.after
        with pytest.raises(UsageError, match="closed"):
            one.search("water", scope=scope)
    with open_bank(home) as bank:
        assert green(bank, scope)


def test_the_second_bank_cannot_choose_another_embedding(home: Path) -> None:
    with (
        open_bank(home),
        pytest.raises(EmbeddingMismatchError, match=r"already open .*'hashing:64', not 'hashing:256'"),
    ):
        open_bank(home, embedding="hashing")


# The embedding


def test_a_folder_keeps_its_embedding(home: Path) -> None:
    with open_bank(home) as bank:
        assert (bank.embedder.model_id, bank.embedder.dimension) == ("hashing:64", 64)


def test_another_embedding_is_refused_with_the_command_that_converts(home: Path, scope: Scope) -> None:
    with pytest.raises(
        EmbeddingMismatchError,
        match=r"'hashing:64' \(64 dimensions\), not 'hashing:32'.*rebuild --embedding hashing:32",
    ):
        open_bank(home, embedding="hashing:32")
    with pytest.raises(EmbeddingMismatchError, match="faulty:64"):
        open_bank(home, embedding=FaultyEmbedder(dimension=64))
    with open_bank(home) as bank:
        assert green(bank, scope)


def test_the_same_model_with_another_length_is_refused(home: Path) -> None:
    class Longer(HashingEmbedder):
        def __init__(self) -> None:
            super().__init__(32)
            self.model_id = "hashing:64"

    with pytest.raises(EmbeddingMismatchError, match=r"\(32\)"):
        open_bank(home, embedding=Longer())


def test_reembed_changes_every_version(home: Path, scope: Scope) -> None:
    with open_bank(home) as bank:
        before = (bank.memories(scope=scope), bank.log(scope=scope))
    assert reembed(home, "hashing:128") == 4
    with open_bank(home) as bank:
        assert bank.embedder.model_id == "hashing:128"
        assert (bank.memories(scope=scope), bank.log(scope=scope)) == before
        assert green(bank, scope)
        assert fills(bank) == 1
        undone = bank.undo(before[1][-1].id, scope=scope, actor="test")  # an old version: embedded anew as well
        assert bank.search("tea", scope=scope, limit=1)[0].memory == undone.after
        versions = bank._core.ledger.snapshot(scope.partition(), scope)
        assert {v.vector.shape for v in versions} == {(128,)}
    with open_bank(home) as bank:
        assert green(bank, scope) is False  # undone, so it is plain tea again
        assert fills(bank) == 0


def test_reembed_that_fails_changes_nothing(home: Path, scope: Scope) -> None:
    with pytest.raises(InputError, match="NaN"):
        reembed(home, FaultyEmbedder("nan"))
    with open_bank(home, embedding="hashing:64") as bank:
        assert green(bank, scope)


def test_reembed_is_refused_while_this_process_has_the_folder_open(home: Path, scope: Scope) -> None:
    with open_bank(home) as bank, pytest.raises(ConflictError, match="open in this process"):
        reembed(home, "hashing:128")
    with open_bank(home) as bank:
        assert green(bank, scope)


def test_a_bank_that_was_open_while_another_process_reembedded_cannot_write_the_old_vectors(
    home: Path, scope: Scope
) -> None:
    with open_bank(home) as bank:
        set_meta(home, "embedding", "hashing:128")  # as another process would
        for write in (
            lambda: bank.apply([add("Anna drinks water")], scope=scope),
            lambda: bank.undo(bank.log(scope=scope)[-1].id, scope=scope, actor="test"),
            lambda: bank.import_(bank.export(scope=scope), scope=Scope(user="bob")),
        ):
            with pytest.raises(EmbeddingMismatchError, match="converted from 'hashing:64'"):
                write()
        assert len(bank.log(scope=scope)) == 4


# The format


@pytest.mark.parametrize("version", ["2", "0", "next"])
def test_another_format_is_refused_and_left_alone(home: Path, version: str) -> None:
    with sqlite3.connect(home / "ledger.sqlite") as connection:
        connection.execute("DROP TABLE memweave_turns")  # the other format may do without it
    connection.close()
    set_meta(home, "format", version)
    before = (home / "ledger.sqlite").read_bytes()
    with pytest.raises(FormatError, match=f"has format {version}, this memweave reads format 1"):
        open_bank(home)
    assert (home / "ledger.sqlite").read_bytes() == before


# Damage


def test_a_ledger_that_is_none_is_named(home: Path) -> None:
    (home / "ledger.sqlite").write_bytes(b"this is not a database, but long enough to look like one" * 100)
    with pytest.raises(DataFolderError, match=r"ledger\.sqlite is damaged .*backup or an export"):
        open_bank(home)


def test_a_ledger_that_lost_its_end_is_named(home: Path, scope: Scope) -> None:
    data = (home / "ledger.sqlite").read_bytes()
    (home / "ledger.sqlite").write_bytes(data[: len(data) // 8192 * 4096])
    with pytest.raises(DataFolderError, match="is damaged"):
        open_and_read(home, scope)


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: shutil.rmtree(index),
        lambda index: (index / "edge_config.json").write_text("{"),
        lambda index: (index / "edge_config.json").unlink(),
        lambda index: [p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]) for p in index.rglob("*.mappings")],
        lambda index: [p.write_bytes(b"\0" * 16) for p in index.rglob("*.dat")],
        lambda index: shutil.rmtree(index / "segments"),
        lambda index: (shutil.rmtree(index), index.write_text("a file")),
    ],
    ids=["gone", "half a config", "no config", "half the points", "zeros", "no segments", "a file"],
)
def test_a_damaged_index_is_written_anew(home: Path, scope: Scope, damage: Callable[[Path], object]) -> None:
    damage(home / "index")
    with open_bank(home) as bank:
        assert green(bank, scope)
    with open_bank(home) as bank:
        assert green(bank, scope)
        assert fills(bank) == 0


def test_an_index_of_another_ledger_is_written_anew(home: Path, tmp_path: Path, scope: Scope) -> None:
    with open_bank(tmp_path / "other", embedding="hashing:64") as bank:
        # As many memories and fewer operations, so that nothing else gives it away.
        bank.apply([add(f"another bank's tea {i}") for i in range(3)], scope=scope)
        bank.search("tea", scope=scope)
    shutil.rmtree(home / "index")
    shutil.copytree(tmp_path / "other" / "index", home / "index")
    with open_bank(home) as bank:
        assert green(bank, scope)
        assert fills(bank) == 1


def test_an_index_ahead_of_its_ledger_is_written_anew(home: Path, tmp_path: Path, scope: Scope) -> None:
    shutil.copy(home / "ledger.sqlite", tmp_path / "backup")
    with open_bank(home) as bank:
        bank.apply([update(m.id, "Anna drinks nothing") for m in bank.memories(scope=scope)], scope=scope)
        assert bank.search("tea", scope=scope)[0].memory.text == "Anna drinks nothing"
    shutil.copy(tmp_path / "backup", home / "ledger.sqlite")
    with open_bank(home) as bank:
        assert green(bank, scope)
        assert fills(bank) == 1


def test_a_changed_write_configuration_writes_the_index_anew_and_a_changed_search_does_not(
    home: Path, scope: Scope
) -> None:
    with open_bank(home) as bank:
        assert green(bank, scope)
        assert fills(bank) == 0
    with open_bank(home, search=SearchConfig(rrf_k=60, dense_weight=0.1, speaker_boost=1, prefetch=7)) as bank:
        assert green(bank, scope)
        assert fills(bank) == 0
    for changed in (SearchConfig(bm25_k=0.9), SearchConfig(bm25_k=0.9, date_in_bm25=False), SearchConfig()):
        with open_bank(home, search=changed) as bank:
            assert green(bank, scope)
            assert fills(bank) == 1


def test_rebuild_writes_the_index_anew(home: Path, scope: Scope) -> None:
    with open_bank(home) as bank:
        assert green(bank, scope)
        bank._core.projector.engine.drop_partition(scope.partition())
        assert bank.search("tea", scope=scope) == []
        bank.rebuild()
        assert green(bank, scope)


def test_the_marker_is_the_last_operation(home: Path, scope: Scope) -> None:
    with open_bank(home) as bank:
        (op,) = bank.apply([add("Anna drinks water")], scope=scope)
        assert bank.count(scope=scope) == 4
        marker = bank._core.projector.engine.marker()
        assert isinstance(marker, Marker)
        assert (marker.ledger, marker.seq) == (bank._core.ledger.id, op.seq)
        assert "hashing:64" in marker.write_key


# Qdrant server


def test_an_unreachable_qdrant_is_named_and_loses_nothing(
    home: Path, scope: Scope, closed_port: Callable[[], int]
) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    with open_bank(home, qdrant_url=url, timeout=1) as bank:
        bank.apply([add("Anna drinks water")], scope=scope)  # acknowledged: it is in the ledger
        assert len(bank.memories(scope=scope)) == 4
        for call in (lambda: bank.search("water", scope=scope), lambda: bank.count(scope=scope)):
            with pytest.raises(
                UnavailableError, match=rf"Qdrant server at {url} does not answer .*qdrant_url.*ledger is unharmed"
            ):
                call()
    with open_bank(home) as bank:
        assert bank.search("water", scope=scope, limit=1)[0].memory.text == "Anna drinks water"

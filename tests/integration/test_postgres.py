"""The ledger on a real PostgreSQL: the same behaviour, several processes and machines, and a server that dies."""

from __future__ import annotations

import importlib.util
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from memweave.errors import SettingsError, UnavailableError
from memweave.memory_stores import MemoryBank, open_bank
from memweave.records import OpKind, Scope, Turn, TurnStatus
from memweave.testing.audit import audit
from memweave.testing.conformance import StoreConformance
from memweave.testing.operations import add, delete, update

if TYPE_CHECKING:
    from conftest import Postgres

pytestmark = pytest.mark.integration

ANNA, BOB = Scope(user="anna"), Scope(user="bob")
UNIT = Path(__file__).resolve().parents[1] / "memory_stores"


def _module(name: str) -> ModuleType:
    """Import a module of the unit tests, for the processes that it starts."""
    spec = importlib.util.spec_from_file_location(f"unit_{name}", UNIT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


crash, processes = _module("test_crash"), _module("test_processes")


@pytest.fixture
def url(postgres: Postgres) -> str:
    """Return the URL of an empty database."""
    return postgres.database()


@pytest.fixture
def bank(tmp_path: Path, url: str) -> Iterator[MemoryBank]:
    """Return an empty bank whose ledger is in PostgreSQL."""
    with open_bank(tmp_path / "bank", embedding="hashing:64", ledger_url=url) as opened:
        yield opened


class TestBankOnPostgres(StoreConformance):
    """Everything that a memory store has to do; the tests below add what only a server can get wrong."""

    @pytest.fixture
    def store(self, bank: MemoryBank) -> MemoryBank:
        return bank

    @pytest.fixture
    def scope(self) -> Scope:
        return ANNA


def texts(bank: MemoryBank, **asked: Any) -> list[str]:
    return [memory.text for memory in bank.memories(scope=ANNA, **asked)]


def test_a_life_on_postgres(bank: MemoryBank) -> None:
    turn, failing = bank.accept(
        [Turn(source_id=name, speaker="Anna", text=f"turn {name}") for name in "ab"], scope=ANNA
    )
    one, two = bank.apply([add("likes tea", speaker="Anna"), add("has a dog")], scope=ANNA, turn=turn)
    assert one.memory_id is not None
    assert two.memory_id is not None
    changed, deleted = bank.apply([update(one.memory_id, "likes coffee"), delete(two.memory_id)], scope=ANNA)
    bank.reject("not JSON", scope=ANNA, actor="model", turn=failing)
    assert [hit.memory.text for hit in bank.search("coffee", scope=ANNA)] == ["likes coffee"]
    assert texts(bank, as_of=one.recorded_at) == ["likes tea"]
    assert texts(bank, as_of=two.recorded_at) == ["likes tea", "has a dog"]
    bank.undo(deleted.id, scope=ANNA, actor="anna")
    bank.undo(changed.id, scope=ANNA, actor="anna")
    assert texts(bank) == ["likes tea", "has a dog"]
    assert [op.kind for op in bank.history(one.memory_id, scope=ANNA)] == [OpKind.ADD, OpKind.UPDATE, OpKind.UPDATE]
    assert [(t.status, t.attempts) for t in bank.turns(scope=ANNA)] == [(TurnStatus.DONE, 0), (TurnStatus.PENDING, 1)]
    assert bank.memories(scope=BOB) == []
    assert audit(bank, scope=ANNA) == []


def test_it_is_there_after_reopening_and_in_an_export(tmp_path: Path, url: str) -> None:
    with open_bank(tmp_path / "one", embedding="hashing:64", ledger_url=url) as bank:
        bank.apply([add("likes tea", speaker="Anna")], scope=ANNA)
        lines = list(bank.export(scope=ANNA))
    with open_bank(tmp_path / "elsewhere", ledger_url=url) as bank:  # another machine: its index comes from the ledger
        assert [hit.memory.text for hit in bank.search("tea", scope=ANNA)] == ["likes tea"]
        bank.import_(lines, scope=BOB)
        assert audit(bank, scope=BOB) == []
        assert [op.id for op in bank.log(scope=BOB)] == [op.id for op in bank.log(scope=ANNA)]


@pytest.mark.parametrize(
    "text",
    ["🌱👩‍👩‍👧 and 𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "tab\tand\nnewline", "quote ' \" \\ % :x $1", "x" * 1_000_000],
    ids=["emoji", "control", "quotes", "1 MB"],
)
def test_texts_come_back_as_they_were(bank: MemoryBank, text: str) -> None:
    bank.accept([Turn(source_id="1", speaker="Anna", text=text)], scope=ANNA)
    bank.apply([add(text, metadata={"note": text})], scope=ANNA)
    assert bank.turns(scope=ANNA)[0].text == text
    (memory,) = bank.memories(scope=ANNA)
    assert (memory.text, memory.metadata) == (text, {"note": text})


def test_nul_in_metadata(bank: MemoryBank) -> None:
    """PostgreSQL stores no NUL in text; inside JSON it is escaped, so it comes through."""
    bank.apply([add("tea", metadata={"note": "a\0b"})], scope=ANNA)
    assert bank.memories(scope=ANNA)[0].metadata == {"note": "a\0b"}


def test_two_processes_on_one_folder_write_at_once(tmp_path: Path, url: str) -> None:
    homes = [tmp_path / "bank", tmp_path / "bank"]
    run_two(homes, url)


def test_two_machines_on_one_ledger_write_at_once(tmp_path: Path, url: str) -> None:
    run_two([tmp_path / "one", tmp_path / "two"], url)


def run_two(homes: list[Path], url: str) -> None:
    running = [processes.Process(home, url) for home in homes]
    for number, process in enumerate(running):
        process.send("burst", count=60, name=f"process{number}")
    ids = {memory for process in running for memory in process.reply()["ids"]}
    assert len(ids) == 120
    assert [process("facts")["count"] for process in running] == [120, 120]
    written = running[0]("add", text="written by the first")
    assert running[1]("read", id=written["id"], text="written")["found"] == "written by the first"
    running[1]("undo", op=written["op"])
    assert set(running[0]("read", id=written["id"], text="written").values()) == {None}
    for process in running:
        process.close()
    with open_bank(homes[0], ledger_url=url) as bank:
        assert audit(bank, scope=ANNA) == []


def test_a_killed_writer_leaves_whole_batches(tmp_path: Path, url: str) -> None:
    children = crash.make_children(tmp_path / "bank", url)
    points = crash.probes_of_a_run(children)
    for point in sorted(name for name in set(points) if name.startswith("apply")):
        at = [number for number, name in enumerate(points, start=1) if name == point]
        crash.kill_at(children, at[len(at) // 2])
    crash.kill_at_random(children, times=6)
    children.close()


def test_a_server_killed_mid_write_loses_nothing_acknowledged(postgres: Postgres, bank: MemoryBank) -> None:
    bank.search("warm up", scope=ANNA)
    acknowledged: set[Any] = set()
    failures: list[Exception] = []
    enough = threading.Event()

    def write(name: int) -> None:
        for number in range(10_000):
            try:
                done = bank.apply([add(f"{name} {number} {part}") for part in range(2)], scope=ANNA)
            except Exception as error:
                failures.append(error)
                return
            acknowledged.update(op.id for op in done)
            if len(acknowledged) > 100:
                enough.set()

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    assert enough.wait(60)
    postgres.stop(how=signal.SIGQUIT)
    for thread in threads:
        thread.join(60)
    assert [type(error) for error in failures] == [UnavailableError] * 4
    for call in (
        lambda: bank.memories(scope=ANNA),
        lambda: bank.search("tea", scope=ANNA),
        lambda: bank.apply([add("no")], scope=ANNA),
    ):
        with pytest.raises(UnavailableError, match="does not answer"):
            call()
    postgres.start()
    found = bank.log(scope=ANNA)
    assert acknowledged <= {op.id for op in found}
    assert len(found) % 2 == 0  # no half batch
    bank.apply([add("works again", speaker="Anna")], scope=ANNA)
    assert bank.search("works again", scope=ANNA)[0].memory.text == "works again"
    assert audit(bank, scope=ANNA) == []


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"ledger postgresql.*does not answer.*ledger_url"):
        open_bank(tmp_path, embedding="hashing", ledger_url=f"postgresql://anna:secretword@/x?host={tmp_path}")


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        open_bank(tmp_path, embedding="hashing", ledger_url=f"postgresql://anna:secretword@/x?host={tmp_path}")
    assert "secretword" not in str(caught.value)
    with pytest.raises(SettingsError) as wrong:
        open_bank(tmp_path, embedding="hashing", ledger_url="mysql://anna:secretword@host/x")
    assert "secretword" not in str(wrong.value)


def test_a_purge_leaves_nothing_in_the_tables(postgres: Postgres, bank: MemoryBank) -> None:
    """Nor in the files of tables and indexes. The server's write-ahead log and its backups are the server's own."""
    word = "qxsecret"
    kept = add("stays", speaker="Kept")
    secret = add(
        f"{word} text", speaker=f"{word}-speaker", metadata={word: word}, run_id=f"{word}-run", reason=f"{word} reason"
    )
    bank.accept(
        [Turn(source_id=f"{word}-1", dialogue=f"{word}-d", speaker=f"{word}-s", text=f"{word} said " * 1000)],
        scope=ANNA,
    )
    bank.apply([secret] * 50, scope=ANNA)
    bank.apply([kept], scope=BOB)
    bank.apply([secret] * 50, scope=ANNA)
    receipt = bank.purge(scope=ANNA)
    assert (receipt.memories, receipt.operations, receipt.turns) == (100, 100, 1)
    postgres.stop()  # writes every page to its file
    files = [path for path in (postgres.data / "base").rglob("*") if path.is_file()]
    found = [path.name for path in files if word.encode() in path.read_bytes()]
    postgres.start()
    assert found == []
    assert [memory.text for memory in bank.memories(scope=BOB)] == ["stays"]
    assert audit(bank, scope=BOB) == []


def test_a_purge_that_must_wait_says_what_to_do(
    postgres: Postgres, bank: MemoryBank, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    monkeypatch.setattr("memweave.sqlite_files.BUSY_SECONDS", 0.2)
    bank.apply([add("likes tea")], scope=ANNA)
    with psycopg.connect(url) as other:
        other.execute("SELECT * FROM memweave_ops")
        with pytest.raises(UnavailableError, match="another session.*Repeat the purge"):
            bank.purge(scope=ANNA)
        assert bank.memories(scope=ANNA) == []
    bank.purge(scope=ANNA)

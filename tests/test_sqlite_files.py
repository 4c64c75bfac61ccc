"""Files of SQLite that several processes open at once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from memweave import sqlite_files

OPENER = """
import sys
from memweave.memory_stores.database import Database
from memweave.tracing import TraceStore

def ledger(path):
    database = Database(f"sqlite:///{path}")
    with database.read():
        pass
    database.close()

def traces(path):
    TraceStore(path).close()

print("ready", flush=True)
sys.stdin.readline()
for number in range(60):
    locals()[sys.argv[2]](f"{sys.argv[1]}/{number}.db")
"""


@pytest.mark.parametrize("kind", ["ledger", "traces"])
def test_processes_make_a_new_file_at_once(tmp_path: Path, kind: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, str(tmp_path), kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[1] for process in processes] == [""] * 4


def held(file: Path) -> sqlite3.Connection:
    """Return a connection that nobody else can use the file beside."""
    holder = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    holder.execute("CREATE TABLE t (a)")
    holder.execute("BEGIN EXCLUSIVE")
    return holder


def test_a_file_that_is_held_is_waited_for(tmp_path: Path) -> None:
    holder = held(tmp_path / "held.db")
    other = sqlite3.connect(tmp_path / "held.db", timeout=0)
    release = threading.Timer(0.05, holder.execute, ["ROLLBACK"])
    release.start()
    sqlite_files.prepare(other)
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    release.join()
    for connection in (other, holder):
        connection.close()


def test_a_file_that_is_held_for_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_files, "BUSY_SECONDS", 0.1)
    holder = held(tmp_path / "held.db")
    other = sqlite3.connect(tmp_path / "held.db", timeout=0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite_files.prepare(other)
    for connection in (other, holder):
        connection.close()

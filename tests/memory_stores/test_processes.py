"""Several processes on one data folder: each reads what any of them last wrote, whoever owns the index and whoever dies."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memweave.memory_stores import open_bank
from memweave.records import Scope
from memweave.testing.audit import audit

ANNA = Scope(user="anna")
PEER = Path(__file__).with_name("peer.py")


class Process:
    """A `peer.py` process on a data folder. arguments: HOME [LEDGER_URL]."""

    def __init__(self, *arguments: object, start: bool = True) -> None:
        command = [sys.executable, str(PEER), *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if start:
            self.reply()

    def send(self, do: str, **fields: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
        self._process.stdin.flush()

    def reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        reply = json.loads(self._process.stdout.readline())
        assert "error" not in reply, reply
        return dict(reply)

    def __call__(self, do: str, **fields: Any) -> dict[str, Any]:
        """Ask for something and return the answer."""
        self.send(do, **fields)
        return self.reply()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def close(self) -> None:
        """End the process the proper way, if it still lives."""
        if self._process.poll() is None:
            self("close")
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        assert self._process.wait(10) in (0, -signal.SIGKILL)


Start = Callable[[], Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a process on one common folder."""
    started: list[Process] = []

    def one() -> Process:
        started.append(Process(tmp_path / "bank"))
        return started[-1]

    yield one
    for process in started:
        process.close()


def check(home: Path, count: int) -> None:
    with open_bank(home) as bank:
        assert audit(bank, scope=ANNA) == []
        assert bank.count(scope=ANNA) == count


def test_a_thousand_interleaved_operations_without_a_stale_read(start: Start, tmp_path: Path) -> None:
    """Two processes take turns at random; after every write the other reads what was written, in three ways."""
    processes = [start(), start()]
    assert [process("facts")["owner"] for process in processes] == [True, False]
    rng = random.Random(3)
    alive: dict[str, str] = {}
    stale = 0
    for number in range(500):  # a write and a read each
        writer, reader = rng.sample(processes, 2)
        kind = rng.choices(["add", "update", "delete"], [4, 4, 2])[0] if alive else "add"
        text = f"fact number{number} tea"
        if kind == "add":
            memory = writer("add", text=text)["id"]
        else:
            memory = rng.choice(list(alive))
            writer(kind, id=memory, **({"text": text} if kind == "update" else {}))
        expected = None if kind == "delete" else text
        stale += set(reader("read", id=memory, text=text).values()) != {expected}
        alive.pop(memory, None)
        if expected is not None:
            alive[memory] = expected
    assert stale == 0
    for process in processes:
        process.close()
    check(tmp_path / "bank", len(alive))


def test_two_processes_write_at_once(start: Start, tmp_path: Path) -> None:
    processes = [start(), start()]
    for number, process in enumerate(processes):
        process.send("burst", count=60, name=f"process{number}")
    ids = {memory for process in processes for memory in process.reply()["ids"]}
    assert len(ids) == 120
    assert [process("facts")["count"] for process in processes] == [120, 120]
    for process in processes:
        process.close()
    check(tmp_path / "bank", 120)


def test_the_owner_dies_and_the_others_work_on(start: Start, tmp_path: Path) -> None:
    owner, follower = start(), start()
    owner("facts")  # whoever opens the index first owns it
    first = owner("add", text="written by the owner")["id"]
    assert follower("read", id=first, text="written")["found"] == "written by the owner"
    owner.kill()
    second = follower("add", text="written after its death")["id"]
    assert follower("read", id=second, text="written")["found"] == "written after its death"
    heir = start()
    assert heir("facts") | {"index": ""} == {"owner": True, "index": "", "count": 2}
    assert follower("facts")["owner"] is False
    third = heir("add", text="written by the heir")["id"]
    assert follower("read", id=third, text="written")["found"] == "written by the heir"
    follower.close()
    heir.close()
    check(tmp_path / "bank", 3)


def test_an_owner_killed_while_it_writes_leaves_no_harm(start: Start, tmp_path: Path) -> None:
    owner, follower = start(), start()
    owner("facts")
    owner.send("burst", count=10_000, name="owner")
    assert len(follower("burst", count=20, name="follower")["ids"]) == 20
    owner.kill()
    count = follower("facts")["count"]
    assert count > 20
    follower.close()
    check(tmp_path / "bank", count)


def test_three_processes_see_each_others_undo_and_purge_at_once(start: Start) -> None:
    one, two, three = start(), start(), start()
    added = one("add", text="likes tea")
    changed = two("update", id=added["id"], text="likes coffee")
    assert three("read", id=added["id"], text="likes")["found"] == "likes coffee"
    undone = three("undo", op=changed["op"])
    for process in (one, two, three):
        assert set(process("read", id=added["id"], text="likes").values()) == {"likes tea"}
    two("undo", op=undone["op"])
    for process in (one, two, three):
        assert set(process("read", id=added["id"], text="likes").values()) == {"likes coffee"}
    two("purge")
    for process in (one, two, three):
        assert set(process("read", id=added["id"], text="likes").values()) == {None}
        assert process("facts")["count"] == 0


def test_a_new_folder_is_opened_by_several_processes_at_once(tmp_path: Path) -> None:
    processes = [Process(tmp_path / "new", start=False) for _ in range(4)]
    for process in processes:
        process.reply()
    assert sum(process("facts")["owner"] for process in processes) == 1
    ids = {process("add", text="one fact")["id"] for process in processes}
    assert [process("facts")["count"] for process in processes] == [4] * 4
    assert len(ids) == 4
    for process in processes:
        process.close()


def test_temporary_indexes_go_with_their_process(start: Start) -> None:
    owner, closed, killed = start(), start(), start()
    paths = [Path(process("facts")["index"]) for process in (owner, closed, killed)]
    assert all(path.exists() for path in paths)
    closed.close()
    assert not paths[1].parent.exists()
    killed.kill()
    start()("facts")  # whoever opens next tidies up after the killed one
    assert not paths[2].parent.exists()


def test_a_purge_leaves_nothing_of_a_killed_process_either(start: Start) -> None:
    owner, killed = start(), start()
    owner("add", text="a secret")
    paths = [Path(process("facts")["index"]) for process in (owner, killed)]
    killed.kill()
    owner("purge")
    assert owner("facts")["count"] == 0
    assert [path.exists() for path in paths] == [True, False]

"""kill -9 between durable writes, and anywhere: what was acknowledged is found, whole, and log, state and index agree."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memweave.memory_stores import MemoryBank, open_bank
from memweave.records import OpKind, ProposedOp, Scope, TurnStatus
from memweave.testing.audit import audit
from tests.memory_stores.crash_children import Children

ANNA, BOB = Scope(user="anna"), Scope(user="bob")
SIZES = {0: 3, 1: 2, 2: 3, 4: 3}
"""Operations of each step of the child's work that has a run of its own."""
POINTS = {
    "apply:op", "apply:closed", "apply:opened", "apply:turn", "apply:commit", "apply:committed",
    "project:upserted", "project:deleted", "project:marked", "fill:cleared", "fill:upserted",
}  # fmt: skip


def make_children(home: Path, ledger_url: str | None = None) -> Children:
    """Return processes on a folder. ledger_url: see `open_bank`."""
    return Children("crash_child.py", home, ledger_url=ledger_url)


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    """Return processes on an empty folder."""
    started = make_children(tmp_path / "bank")
    yield started
    started.close()


def check(children: Children) -> None:
    """Open what the killed process left, and compare it with what the process had been told."""
    with open_bank(children.home, ledger_url=children.given.get("ledger_url")) as bank:
        assert audit(bank, scope=ANNA) == []
        check_acknowledged(bank, children.said)
        check_whole(bank)
        check_turns(bank, children.said)
        purged = bank.log(scope=BOB) == []
        (probe,) = bank.apply([ProposedOp(kind=OpKind.ADD, text="it works on", reason="r", actor="t")], scope=ANNA)
        assert bank.search("it works on", scope=ANNA)[0].memory.id == probe.memory_id
        bank.apply([ProposedOp(kind=OpKind.DELETE, memory_id=probe.memory_id, reason="r", actor="t")], scope=ANNA)
    if purged:
        assert [path for path in children.home.rglob("*") if path.is_file() and b"Bobsecret" in path.read_bytes()] == []


def check_acknowledged(bank: MemoryBank, said: list[dict[str, Any]]) -> None:
    found = {op.id.hex for op in bank.log(scope=ANNA)}
    assert {op for line in said for op in line.get("applied", ())} <= found
    assert {line["op"] for line in said if "rejected" in line} <= found


def check_whole(bank: MemoryBank) -> None:
    """No step of the work is there in part."""
    log = bank.log(scope=ANNA)
    runs = Counter(op.run_id for op in log if op.run_id)
    for run, count in runs.items():
        if not run.endswith("-rejected"):
            assert count == SIZES[int(run.rpartition(".")[2])], run
    by_id = {op.id: op for op in log}
    undone = Counter(by_id[op.undoes].run_id for op in log if op.undoes)
    for run, count in undone.items():
        changed = sum(op.run_id == run and (op.before or op.after) is not None for op in log)
        assert count == (1 if str(run).endswith(".2") else changed), run


def check_turns(bank: MemoryBank, said: list[dict[str, Any]]) -> None:
    """A turn is done exactly when the operations made of it are there."""
    turns = {turn.source_id: turn for turn in bank.turns(scope=ANNA)}
    assert {line["accepted"] for line in said if "accepted" in line} <= set(turns)
    runs = {op.run_id for op in bank.log(scope=ANNA)}
    assert {name for name, turn in turns.items() if turn.status is TurnStatus.DONE} == runs & set(turns)
    for name, turn in turns.items():
        assert turn.attempts == (f"{name}-rejected" in runs)


def probes_of_a_run(children: Children) -> list[str]:
    """Return the names of all points that one undisturbed run reaches, on a folder that was used before."""
    for case in ("first", "second"):
        children.start(case=case, record=True)
        assert children.wait() == 0
    return list(children.said[-2]["probes"])


def kill_at(children: Children, number: int) -> None:
    """Kill a process at a probe and check what it leaves; the folder is kept, so the next one starts from a crash."""
    children.start(case=f"kill{number}", kill_at=number)
    assert children.wait() == -signal.SIGKILL
    check(children)


def test_killed_at_each_kind_of_point(children: Children) -> None:
    points = probes_of_a_run(children)
    assert set(points) == POINTS
    check(children)
    for point in sorted(POINTS):
        at = [number for number, name in enumerate(points, start=1) if name == point]
        for number in at if point == "project:marked" else at[len(at) // 2 :][:1]:
            kill_at(children, number)


@pytest.mark.integration
def test_killed_at_every_point(children: Children) -> None:
    points = probes_of_a_run(children)
    for number in range(1, len(points) + 1):
        kill_at(children, number)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
def test_killed_while_the_folder_is_new(children: Children, number: int) -> None:
    kill_at(children, number)


def test_killed_twenty_times_at_random(children: Children) -> None:
    """From outside, on one folder again and again: so some are killed while they recover."""
    kill_at_random(children, times=20)


def kill_at_random(children: Children, *, times: int) -> None:
    """Kill a process after some acknowledged calls and a moment, check what it leaves, and start the next one there."""
    rng = random.Random(9)
    for number in range(times):
        pid = children.start(case=f"random{number}", endless=True)
        for _ in range(rng.randrange(12)):
            children.read()
        time.sleep(rng.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
        assert children.wait() == -signal.SIGKILL
        check(children)


@pytest.mark.parametrize("damage", ["truncate", "remove", "empty"])
def test_a_damaged_index_is_written_anew(tmp_path: Path, damage: str) -> None:
    """The ledger has everything: an index that lost files or parts of them (Edge panics on some) costs time, not memories."""
    with open_bank(tmp_path, embedding="hashing:64") as bank:
        bank.apply(
            [ProposedOp(kind=OpKind.ADD, text=f"fact {n}", reason="r", actor="t") for n in range(30)], scope=ANNA
        )
        bank.search("fact", scope=ANNA)
    spoil: dict[str, Callable[[Path], object]] = {
        "truncate": lambda path: os.truncate(path, path.stat().st_size // 2),
        "remove": Path.unlink,
        "empty": lambda path: os.truncate(path, 0),
    }
    rng = random.Random(4)
    for _ in range(8):
        files = sorted(path for path in (tmp_path / "index").rglob("*") if path.is_file())
        for path in rng.sample(files, rng.choice([1, 2, len(files) // 2])):
            spoil[damage](path)
        with open_bank(tmp_path) as bank:
            assert audit(bank, scope=ANNA) == []

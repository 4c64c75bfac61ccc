"""kill -9 while weights are trained and a graph is built: the weights are a state that existed, and the check finds nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memweave.memory_stores import open_strategies
from memweave.records import Scope

ANNA, BOB = Scope(user="anna"), Scope(user="bob")
POINTS = (
    "graph:weights", "graph:logged", "graph:settled", "graph:saved", "graph:cleared", "graph:edges", "apply:op", "apply:opened",
    "apply:commit", "apply:committed",
)  # fmt: skip


class Children:
    """Starts processes that work on one folder, and keeps what they were told is done."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.said: list[dict[str, Any]] = []
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("strategy_crash_child.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def start(self, kill_at: str | None, times: int = 1) -> int:
        """Start a process; returns its id when it is ready to work."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({"home": str(self.home), "kill_at": kill_at, "times": times}) + "\n")
        self._server.stdin.flush()
        pid = int(self.read()["pid"])
        while "ready" not in self.read():
            pass
        return pid

    def read(self) -> dict[str, Any]:
        """Return the next thing a process says."""
        assert self._server.stdout is not None
        line = json.loads(self._server.stdout.readline())
        assert "error" not in line, line
        self.said.append(line)
        return dict(line)

    def wait(self) -> int:
        """Wait for the process to end; returns its exit status, negative for a signal."""
        while "exit" not in (line := self.read()):
            pass
        return int(line["exit"])

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)
        assert self._server.stdout is not None
        self._server.stdout.close()


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    """Return processes on an empty folder."""
    started = Children(tmp_path / "graph")
    yield started
    started.close()


def weight_at(version: int) -> float:
    """Return what every weight is at a version, by what the child does."""
    weight = 1.0
    for number in range(version):
        weight = 1.0 if number % 7 == 6 else weight + 0.01 * (number % 3 + 1)
    return weight


def check(children: Children) -> None:
    """Open what the killed process left, and compare it with what it had been told."""
    told = [line["version"] for line in children.said if "version" in line]
    with open_strategies(children.home) as graph:
        assert graph.check(scope=ANNA) == graph.check(scope=BOB) == []
        version = graph.version(scope=ANNA)
        assert max(told, default=0) <= version <= max(told, default=0) + 1
        assert {edge.weight for edge in graph.edges(scope=ANNA)} == {weight_at(version)}
        steps = [each.version for each in graph.updates(scope=ANNA)]
        assert steps == [number for number in range(1, version + 1) if number % 7]
        there = {each.query_id for each in graph.queries(scope=BOB)} | {
            each.query_id for each in graph.queries(scope=ANNA)
        }
        assert {line["added"] for line in children.said if "added" in line} <= there
        log = {op.id.hex for scope in (ANNA, BOB) for op in graph.log(scope=scope)}
        assert {line["written"] for line in children.said if "written" in line} <= log
        found = graph.activate("question 1", scope=ANNA)
        assert found.probability.sum() == pytest.approx(1)


def test_killed_at_each_kind_of_point(children: Children) -> None:
    for point in POINTS:
        children.start(point, times=2)
        assert children.wait() == -signal.SIGKILL
        check(children)


def test_killed_at_random_again_and_again(children: Children) -> None:
    rng = random.Random(7)
    for _ in range(8):
        pid = children.start(None)
        for _ in range(rng.randrange(1, 25)):
            children.read()
        os.kill(pid, signal.SIGKILL)
        assert children.wait() == -signal.SIGKILL
        check(children)

"""kill -9 while weights are trained and a graph is built: the weights are a state that existed, and the check finds nothing."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from memweave.memory_stores import open_strategies
from memweave.records import Scope
from tests.memory_stores.crash_children import Children

ANNA, BOB = Scope(user="anna"), Scope(user="bob")
POINTS = (
    "graph:weights", "graph:logged", "graph:settled", "graph:saved", "graph:cleared", "graph:edges", "apply:op", "apply:opened",
    "apply:commit", "apply:committed",
)  # fmt: skip


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    """Return processes on an empty folder."""
    started = Children("strategy_crash_child.py", tmp_path / "graph")
    yield started
    started.close()


def start(children: Children, kill_at: str | None, times: int = 1) -> int:
    """Start a process; returns its id when it is ready to work."""
    pid = children.start(kill_at=kill_at, times=times)
    while "ready" not in children.read():
        pass
    return pid


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
        start(children, point, times=2)
        assert children.wait() == -signal.SIGKILL
        check(children)


def test_killed_at_random_again_and_again(children: Children) -> None:
    rng = random.Random(7)
    for _ in range(8):
        pid = start(children, None)
        for _ in range(rng.randrange(1, 25)):
            children.read()
        os.kill(pid, signal.SIGKILL)
        assert children.wait() == -signal.SIGKILL
        check(children)

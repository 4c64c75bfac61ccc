"""Processes that train and build a graph until they are killed; `test_strategy_crash.py` starts this file.

Reads one case per line from standard input, forks a process for it, and reports on standard output, one JSON object per line: `pid`,
one line per acknowledged call, `exit`.

    {"home": FOLDER, "kill_at": "graph:weights", "times": 3}     work, and die by SIGKILL when that point is reached for the third time
    {"home": FOLDER, "kill_at": null}                            work until someone kills it
"""

from __future__ import annotations

import json
import os
import signal
import sys

from memweave.graph_records import EdgeStep, NewQuery, NewStrategy, RolloutOutcome, StrategyKind
from memweave.memory_stores import StrategyGraph, StrategySettings, open_strategies, probes
from memweave.records import Scope

ANNA, BOB = Scope(user="anna"), Scope(user="bob")


def emit(**line: object) -> None:
    """Write one line in one piece, unbuffered: whoever reads it may rely on it."""
    os.write(1, (json.dumps(line) + "\n").encode())


def build(graph: StrategyGraph, scope: Scope, number: int) -> None:
    """Add a query with two paths, and a strategy that both lead to."""
    outcomes = [RolloutOutcome(states=("Start", f"S{number % 5 + i}", "End"), reward=float(i)) for i in range(2)]
    node = graph.add(NewQuery(text=f"question {number}", query_id=f"q{number}"), outcomes, scope=scope)
    emit(added=node.query_id)
    paths = [path.id for path in graph.paths(scope=scope) if path.states in {each.states for each in outcomes}]
    new = NewStrategy(summary=f"advice {number % 9} {number % 9}", kind=StrategyKind.CONTRAST, score=60)
    change = graph.write(new, paths, scope=scope, reason="made up")
    emit(written=change.op_id.hex)


def train(graph: StrategyGraph) -> None:
    """Change every weight by the same amount, or go back to the first ones: what the version says, the weights must say."""
    version = graph.version(scope=ANNA)
    if version % 7 == 6:
        done = graph.rollback(0, scope=ANNA).version
    else:
        edges = graph.edges(scope=ANNA)
        deltas = [
            {"kind": e.kind, "source": e.source, "target": e.target, "delta": 0.01 * (version % 3 + 1)} for e in edges
        ]
        step = {
            "query": "q", "strategy_id": edges[-1].target, "probability": 0.5, "reward_with": 1.0, "reward_without": 0.0,
            "gradient_norm": 1.0, "deltas": deltas,
        }  # fmt: skip
        done = graph.apply(EdgeStep.model_validate(step), scope=ANNA).version
    emit(version=done)


def work(home: str, kill_at: str | None, times: int) -> None:
    """Be the process of one case."""
    left = times

    def listener(point: str) -> None:
        nonlocal left
        left -= point == kill_at
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = StrategySettings(snapshot_every=2)
    with open_strategies(home, embedding="hashing:64", settings=settings) as graph:
        if not graph.queries(scope=ANNA):
            for number in range(4):
                build(graph, ANNA, number)
        emit(ready=True)
        probes.listen(listener if kill_at else None)
        number = len(graph.queries(scope=BOB))
        while True:
            train(graph)
            build(graph, BOB, number)
            number += 1


def main() -> None:
    """Fork one process per line of input."""
    for line in sys.stdin:
        case = json.loads(line)
        pid = os.fork()
        if pid == 0:
            emit(pid=os.getpid())
            try:
                work(case["home"], case["kill_at"], case.get("times", 1))
            except BaseException as error:
                emit(error=repr(error))
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        emit(exit=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()

"""Top-3 strategies among 10,000 queries, 2,000 paths and 500 strategies of one user, and one durable update of the weights.

Vectors are made up and looked up, so the embedding is excluded; each query is one that the graph has not seen. `optimize()` is not called:
the nearest queries are found by comparing with all. Beside each update, a bare SQLite commit of one row is timed on the same disk, and
beside each time the CPU time of this process is given, which says more when other work keeps the cores busy.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import Row, percentile, report, timed

from memweave.embeddings import Vectors
from memweave.graph_records import EdgeKind, NewQuery, NewStrategy, RolloutOutcome, StrategyKind, path_id
from memweave.memory_stores import StrategyGraph, StrategySettings, open_strategies
from memweave.records import Scope
from memweave.trainers.edge_weights import Reinforce

DIMENSION = 256
SCOPE, BUILT = Scope(user="bench"), Scope(user="built")
ROLLOUTS = 4
"""Per query, on 1 to 4 paths."""
BATCH = 500
"""Queries in one transaction."""
LINKS = 2
"""Strategies of a path."""


class MadeUp:
    """An embedder whose vectors come from the text's number: clusters of similar questions; strategies are far from each other."""

    model_id = "made-up"
    dimension = DIMENSION

    def __init__(self) -> None:
        self._centres = np.random.default_rng(0).normal(size=(500, DIMENSION)).astype(np.float32)

    def embed(self, texts: list[str]) -> Vectors:
        """Return (n, d); a text is `query NUMBER` or `strategy NUMBER`."""
        rows = []
        for text in texts:
            kind, number = text.split()
            noise = np.random.default_rng(int(number) + 1).normal(size=DIMENSION).astype(np.float32)
            rows.append(noise if kind == "strategy" else self._centres[int(number) % 500] + noise)
        return np.stack(rows)


def states(path: int) -> tuple[str, ...]:
    """Return a path of eight states."""
    return ("Start", *(f"State{path // 5**i % 5}" for i in range(6)), f"Kind{path % 2}", "End")


def fill(graph: StrategyGraph, queries: int, paths: int, strategies: int) -> None:
    """Write a graph at random."""
    rng = np.random.default_rng(2)
    given = []
    for number in range(queries):
        taken = {number % paths, *rng.integers(paths, size=ROLLOUTS - 1).tolist()}
        outcomes = [RolloutOutcome(states=states(path), reward=float(rng.integers(2))) for path in taken]
        given.append((NewQuery(text=f"query {number}", query_id=f"q{number}"), outcomes))
    for start in range(0, queries, BATCH):
        graph.add_all(given[start : start + BATCH], scope=SCOPE)
    machine = graph.settings.machine
    leading: list[list[int]] = [[] for _ in range(strategies)]
    for path in range(paths):
        for strategy in {path % strategies, *rng.integers(strategies, size=LINKS - 1).tolist()}:
            leading[strategy].append(path)
    for number, those in enumerate(leading):
        new = NewStrategy(summary=f"strategy {number}", kind=StrategyKind.CONTRAST, score=60)
        graph.write(new, [path_id(machine, states(path)) for path in those], scope=SCOPE, reason="made up")


@dataclass(frozen=True)
class Times:
    """How long calls took, in milliseconds."""

    wall: list[float]
    cpu: list[float]

    def add(self, call: Callable[[], object]) -> None:
        """Time a call."""
        before = time.process_time()
        self.wall.extend(timed([call]))
        self.cpu.append((time.process_time() - before) * 1_000)


def asking(graph: StrategyGraph, first: int, count: int) -> Times:
    """Return how long top-3 took for new queries."""
    texts = [f"query {number}" for number in range(first, first + count + 3)]
    graph._queries.embedder.embed(texts)
    for text in texts:
        graph._queries.query_vector(text)  # the last few hundred are remembered
    for text in texts[count:]:
        graph.top(text, scope=SCOPE)  # opens files, reads the graph
    times = Times([], [])
    for text in texts[:count]:
        times.add(lambda text=text: graph.top(text, scope=SCOPE))
    return times


def bare_commits(folder: Path) -> Callable[[], None]:
    """Return what commits one row of 1.5 kB to a SQLite file as the ledger does: synced to disk."""
    raw = sqlite3.connect(folder / "bare.sqlite", isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        raw.execute(f"PRAGMA {pragma}")
    raw.execute("CREATE TABLE row (value BLOB)")

    def commit() -> None:
        raw.execute("BEGIN IMMEDIATE")
        raw.execute("INSERT INTO row VALUES (?)", (bytes(1_500),))
        raw.execute("COMMIT")

    return commit


def learning(
    graph: StrategyGraph, first: int, count: int, bare: Callable[[], None]
) -> tuple[Times, list[float], float]:
    """Return how long activation, step and durable write took for each query, a bare commit after each, and the edges of a step."""
    rng, learner = np.random.default_rng(3), Reinforce()
    texts = [f"query {number}" for number in range(first, first + count)]
    for text in texts:
        graph._queries.query_vector(text)
    touched, commits = [], []

    def one(text: str) -> None:
        active = graph.activate(text, scope=SCOPE)
        step = learner.step(active, active.draw(rng), *((1.0, 0.0) if rng.random() < 0.5 else (0.0, 1.0)))
        touched.append(graph.apply(step, scope=SCOPE).edges)

    times = Times([], [])
    for text in texts:
        times.add(lambda text=text: one(text))
        commits += timed([bare])
    return times, commits, float(np.mean(touched))


def building(graph: StrategyGraph, count: int) -> list[float]:
    """Return how long adding a query and writing a strategy took, in a graph that grows."""

    def one(number: int) -> None:
        outcomes = [RolloutOutcome(states=states(number % 300 + i), reward=float(i)) for i in range(2)]
        node = graph.add(NewQuery(text=f"query {number}"), outcomes, scope=BUILT)
        graph.neighbours(node.text, scope=BUILT, exclude=node.name)
        paths = [path_id(graph.settings.machine, each.states) for each in outcomes]
        new = NewStrategy(summary=f"strategy {number % 30}", kind=StrategyKind.CONTRAST, score=60)
        graph.write(new, paths, scope=BUILT, reason="made up")

    return timed([lambda number=number: one(number) for number in range(count)])


def another_writer(graph: StrategyGraph) -> float:
    """Return how long the first search takes after a strategy changed."""
    times = []
    for strategy in graph.strategies(scope=SCOPE)[:5]:
        graph.contradict(strategy.id, scope=SCOPE, reason="made up")
        times += timed([lambda: graph.top("query 0", scope=SCOPE)])
    return percentile(times, 50)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--paths", type=int, default=2_000)
    parser.add_argument("--strategies", type=int, default=500)
    parser.add_argument("--asked", type=int, default=300)
    args = parser.parse_args()
    settings = StrategySettings(snapshot_every=50)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_strategies(Path(folder), settings=settings, embedding=MadeUp()) as graph,
    ):
        began = time.perf_counter()
        fill(graph, args.queries, args.paths, args.strategies)
        rows = [
            Row(
                "filling",
                time.perf_counter() - began,
                "s",
                detail=f"{BATCH} queries in a transaction, a strategy in one",
            )
        ]
        edges = {kind: len(graph.edges(scope=SCOPE, kind=kind)) for kind in EdgeKind}
        asked = asking(graph, args.queries, args.asked)
        rows.append(_row("top 3, p50", asked, 5.0, " + ".join(f"{count:,} {kind}" for kind, count in edges.items())))
        taught, bare, touched = learning(graph, args.queries + 1_000, args.asked, bare_commits(Path(folder)))
        detail = f"{touched:.0f} edges, activation and gradient included, a snapshot every {settings.snapshot_every}"
        rows.append(_row("one weight update, durable, p50", taught, 5.0, detail))
        rows.append(Row("a bare SQLite commit beside each, p50", percentile(bare, 50), "ms"))
        began = time.perf_counter()
        found = graph.check(scope=SCOPE)
        rows.append(Row("check", time.perf_counter() - began, "s", detail=f"{len(found)} problems"))
        rows.append(Row("top 3 after a strategy changed", another_writer(graph), "ms", detail="index and table follow"))
        built = building(graph, 300)
        rows.append(
            Row("building: a query and a strategy, p50", percentile(built, 50), "ms", detail="of the first 300")
        )
    title = f"{args.queries:,} queries, {args.paths:,} paths, {args.strategies} strategies, {DIMENSION} dimensions, embedding excluded"
    report("strategies", title, rows)


def _row(what: str, times: Times, bar: float, detail: str) -> Row:
    p50 = percentile(times.wall, 50)
    more = f"p95 {percentile(times.wall, 95):.2f} ms, fastest {min(times.wall):.2f} ms, CPU p50 {percentile(times.cpu, 50):.2f} ms"
    return Row(what, p50, "ms", f"<= {bar:g}", p50 <= bar, f"{more}, {detail}")


if __name__ == "__main__":
    main()

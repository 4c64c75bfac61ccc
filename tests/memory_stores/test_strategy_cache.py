"""A strategy graph in memory follows what changes, without being read anew; and steps are durable before the edges have them."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from memweave.errors import ConflictError
from memweave.graph_records import EdgeStep, NewQuery, NewStrategy, RolloutOutcome, StrategyKind, path_id
from memweave.memory_stores import StrategyGraph, StrategySettings, open_strategies, strategy_cache
from memweave.memory_stores.strategy_loading import read_table
from memweave.memory_stores.strategy_weights import SETTLED_EVERY, Move, moved, places_of
from memweave.records import Scope

ANNA = Scope(user="anna")
SEARCH, GUESS = ("Start", "Search", "End"), ("Start", "End")
SETTINGS = StrategySettings(snapshot_every=1_000, match_threshold=0.99)


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[StrategyGraph]:
    with open_strategies(tmp_path, embedding="hashing:64", settings=SETTINGS) as opened:
        build(opened)
        yield opened


@pytest.fixture
def other(tmp_path: Path, graph: StrategyGraph) -> Iterator[StrategyGraph]:
    """The same graph with a table of its own, as another process has one."""
    with open_strategies(tmp_path, settings=SETTINGS) as opened:
        yield opened


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Scope]:
    """Whenever a scope is read as a whole, it is listed here."""
    found: list[Scope] = []

    def read(*given: object) -> object:
        found.append(given[1])  # type: ignore[arg-type]
        return read_table(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(strategy_cache, "read_table", read)
    return found


def build(graph: StrategyGraph) -> list[UUID]:
    """Add a query and two strategies; return their ids."""
    outcomes = [RolloutOutcome(states=SEARCH, reward=1.0), RolloutOutcome(states=GUESS, reward=0.0)]
    graph.add(NewQuery(text="who wrote the red book?", query_id="q1"), outcomes, scope=ANNA)
    return [advise(graph, summary) for summary in ("amber road", "birch tree")]


def advise(graph: StrategyGraph, summary: str) -> UUID:
    new = NewStrategy(summary=summary, kind=StrategyKind.CONTRAST, score=60)
    paths = [path_id("cognitive", states) for states in (SEARCH, GUESS)]
    return graph.write(new, paths, scope=ANNA, reason="r").strategy.id


def step(graph: StrategyGraph, delta: float = 0.25) -> EdgeStep:
    edges = graph.edges(scope=ANNA)
    return EdgeStep.model_validate(
        {
            "query": "q", "strategy_id": edges[-1].target, "probability": 0.5, "reward_with": 1.0, "reward_without": 0.0,
            "gradient_norm": 1.0,
            "deltas": [{"kind": e.kind, "source": e.source, "target": e.target, "delta": delta} for e in edges],
        }
    )  # fmt: skip


def seen(graph: StrategyGraph) -> object:
    """Return what a graph shows."""
    active = graph.activate("who wrote the blue book?", scope=ANNA)
    weights = active.query_path.weight.tolist(), active.path_strategy.weight.tolist()
    arcs = active.paths, active.strategies, active.path_strategy.source.tolist(), active.path_strategy.target.tolist()
    nodes = graph.strategies(scope=ANNA), graph.paths(scope=ANNA)
    return *nodes, graph.edges(scope=ANNA), active.version, active.neighbours, *weights, *arcs


def check_all(graph: StrategyGraph, home: Path) -> None:
    """Compare what a graph shows with what one shows that reads the folder anew."""
    with open_strategies(home, settings=SETTINGS) as fresh:
        assert seen(graph) == seen(fresh)


# a table that follows


DEEDS: dict[str, Callable[[StrategyGraph], object]] = {
    "a query": lambda g: g.add(NewQuery(text="who sang?"), [RolloutOutcome(states=("Start", "Sing", "End"), reward=1.0)], scope=ANNA),
    "a strategy": lambda g: advise(g, "cedar chest"),
    "support": lambda g: advise(g, "amber road"),
    "doubt": lambda g: g.contradict(g.strategies(scope=ANNA)[0].id, scope=ANNA, reason="no"),
    "removal": lambda g: g.remove(g.strategies(scope=ANNA)[0].id, scope=ANNA, reason="no"),
    "undone strategy": lambda g: g.undo(g.log(scope=ANNA)[-1].id, scope=ANNA),
    "undone query": lambda g: g.undo(g.log(scope=ANNA)[0].id, scope=ANNA),
    "undone removal": lambda g: g.undo(
        g.remove(g.strategies(scope=ANNA)[0].id, scope=ANNA, reason="no").op_id, scope=ANNA
    ),
    "undone undo": lambda g: g.undo(g.undo(g.log(scope=ANNA)[-1].id, scope=ANNA).id, scope=ANNA),
    "a step": lambda g: g.apply(step(g), scope=ANNA),
    "a step and a strategy": lambda g: (g.apply(step(g), scope=ANNA), advise(g, "cedar chest"), g.apply(step(g), scope=ANNA)),
    "going back": lambda g: g.rollback(0, scope=ANNA),
    "going back and on": lambda g: (g.rollback(0, scope=ANNA), g.apply(step(g, 0.5), scope=ANNA)),
    "a snapshot": lambda g: (g.apply(step(g), scope=ANNA), g.snapshot(scope=ANNA)),
}  # fmt: skip


@pytest.mark.parametrize("deed", DEEDS)
def test_what_changes_is_followed_here_and_elsewhere(
    tmp_path: Path, graph: StrategyGraph, other: StrategyGraph, reads: list[Scope], deed: str
) -> None:
    graph.apply(step(graph), scope=ANNA)
    seen(graph)
    seen(other)
    reads.clear()
    DEEDS[deed](graph)
    here, there = seen(graph), seen(other)
    assert here == there
    assert reads == []
    check_all(graph, tmp_path)
    assert graph.check(scope=ANNA) == []


def test_edges_that_an_undo_takes_away_and_brings_back_are_followed(
    tmp_path: Path, graph: StrategyGraph, other: StrategyGraph, reads: list[Scope]
) -> None:
    sing = ("Start", "Sing", "End")
    graph.add(NewQuery(text="who sang?"), [RolloutOutcome(states=sing, reward=1.0)], scope=ANNA)
    support = NewStrategy(summary="amber road", kind=StrategyKind.CONTRAST, score=60)
    last = graph.write(support, [path_id("cognitive", sing)], scope=ANNA, reason="r")
    assert last.edges == 1
    assert seen(graph) == seen(other)
    reads.clear()
    op_id = last.op_id
    for edges in (7, 8, 7):
        op_id = graph.undo(op_id, scope=ANNA).id
        assert seen(graph) == seen(other)
        assert len(other.edges(scope=ANNA)) == edges
    assert reads == []
    check_all(other, tmp_path)


def test_any_order_of_changes_is_followed(tmp_path: Path, graph: StrategyGraph, other: StrategyGraph) -> None:
    rng = random.Random(5)
    for _ in range(60):
        doer = rng.choice([graph, other])
        deed = DEEDS[rng.choice(list(DEEDS))]
        try:
            deed(doer)
        except (ConflictError, IndexError):  # undone already, or nothing there to change
            continue
        if rng.random() < 0.3:
            assert seen(graph) == seen(other)
    check_all(graph, tmp_path)
    check_all(other, tmp_path)
    assert graph.check(scope=ANNA) == []


@pytest.mark.parametrize("what", ["strategy", "query"])
def test_what_comes_back_that_was_gone_when_the_graph_was_read_is_read_with_its_edges(
    tmp_path: Path, graph: StrategyGraph, other: StrategyGraph, what: str
) -> None:
    before = seen(graph)
    if what == "strategy":
        gone = graph.remove(graph.strategies(scope=ANNA)[-1].id, scope=ANNA, reason="no").op_id
    else:
        gone = graph.undo(graph.log(scope=ANNA)[0].id, scope=ANNA).id
    assert seen(other) != before  # it never knew it
    graph.undo(gone, scope=ANNA)
    assert seen(graph) == seen(other)
    assert len(other.edges(scope=ANNA)) == 6
    check_all(other, tmp_path)


def test_after_a_purge_nothing_is_left(graph: StrategyGraph, other: StrategyGraph) -> None:
    graph.apply(step(graph), scope=ANNA)
    seen(other)
    graph._bank.purge(scope=ANNA)
    assert other.strategies(scope=ANNA) == other.edges(scope=ANNA) == []
    assert not other.activate("who wrote it?", scope=ANNA)
    build(graph)
    assert seen(graph) == seen(other)
    assert graph.version(scope=ANNA) == 0


# many queries at once


def test_many_queries_are_added_as_each_would_be(tmp_path: Path, graph: StrategyGraph) -> None:
    given = [
        (NewQuery(text=f"question {number}", query_id=f"n{number}"), [RolloutOutcome(states=GUESS, reward=number % 2)])
        for number in range(4)
    ]
    nodes = graph.add_all(given, scope=ANNA)
    assert [graph.query(query.name, scope=ANNA) for query, _ in given] == nodes
    assert graph.add_all([given[1], given[1]], scope=ANNA) == [nodes[1]] * 2
    assert graph.add_all([], scope=ANNA) == []
    assert graph.paths(scope=ANNA)[1].n_success == 2
    with pytest.raises(ConflictError, match="'n1'"):
        graph.add_all([(NewQuery(text="new"), []), (NewQuery(text="other", query_id="n1"), [])], scope=ANNA)
    assert len(graph.queries(scope=ANNA)) == 5
    check_all(graph, tmp_path)


# steps before the edges have them


def rows(home: Path, query: str) -> list[tuple[float | int, ...]]:
    with sqlite3.connect(home / "ledger.sqlite") as raw:
        found = raw.execute(query).fetchall()
    raw.close()
    return found


def test_a_step_is_one_row_until_the_edges_are_written(tmp_path: Path, graph: StrategyGraph) -> None:
    weights = "SELECT weight, updates FROM memweave_graph_edges"
    pending = "SELECT version FROM memweave_graph_moves"
    for number in range(1, SETTLED_EVERY):
        graph.apply(step(graph, 0.25 if number % 2 else -0.25), scope=ANNA)
    assert set(rows(tmp_path, weights)) == {(1.0, 0)}
    assert len(rows(tmp_path, pending)) == SETTLED_EVERY - 1
    assert {(edge.weight, edge.updates) for edge in graph.edges(scope=ANNA)} == {(1.25, SETTLED_EVERY - 1)}
    assert graph.versions(scope=ANNA)[-1].edges == 6
    check_all(graph, tmp_path)
    before = graph.edges(scope=ANNA)
    copy = Scope(user="boris")
    graph.import_(graph.export(scope=ANNA), scope=copy)
    assert [(e.weight, e.updates, e.gap_sum) for e in graph.edges(scope=copy)] == [
        (e.weight, e.updates, e.gap_sum) for e in before
    ]
    graph.apply(step(graph, -0.25), scope=ANNA)
    assert rows(tmp_path, f"{weights} LIMIT 6") == [(1.0, SETTLED_EVERY)] * 6
    assert rows(tmp_path, pending) == []
    check_all(graph, tmp_path)
    assert graph.check(scope=ANNA) == graph.check(scope=copy) == []


def test_a_folder_of_before_steps_were_rows_goes_on(tmp_path: Path, graph: StrategyGraph) -> None:
    graph.apply(step(graph), scope=ANNA)
    graph.snapshot(scope=ANNA)
    graph.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as raw:
        raw.execute("DROP TABLE memweave_graph_moves")
    raw.close()
    with open_strategies(tmp_path, settings=SETTINGS) as again:
        assert {edge.weight for edge in again.edges(scope=ANNA)} == {1.25}
        assert again.apply(step(again), scope=ANNA).version == 2
        assert {edge.weight for edge in again.edges(scope=ANNA)} == {1.5}
        assert again.check(scope=ANNA) == []


SPOILED = {
    "DELETE FROM memweave_graph_moves": "the edges have had 0 updates, the log says 6",
    "UPDATE memweave_graph_moves SET version = 2": "what its step moved is not what the log says",
    "DELETE FROM memweave_graph_steps": "what its step moved is not what the log says",
    "DELETE FROM memweave_graph_edges WHERE position = 1": "its step moved edges that do not exist",
    "UPDATE memweave_graph_moves SET weights = zeroblob(96)": "its step moved edges that do not exist",
}


@pytest.mark.parametrize("statement", SPOILED)
def test_a_check_sees_steps_that_the_edges_do_not_have_yet(tmp_path: Path, statement: str) -> None:
    with open_strategies(tmp_path, embedding="hashing:64", settings=SETTINGS) as graph:
        build(graph)
        graph.apply(step(graph), scope=ANNA)
        assert graph.check(scope=ANNA) == []
    with sqlite3.connect(tmp_path / "ledger.sqlite") as raw:
        assert raw.execute(statement).rowcount > 0
    raw.close()
    with open_strategies(tmp_path) as graph:
        found = [str(each) for each in graph.check(scope=ANNA)]
        assert any(SPOILED[statement] in each for each in found), found


def test_moves_are_added_in_their_order_and_by_position() -> None:
    kind = [("position", "<i8"), ("weight", "<f8"), ("updates", "<i8"), ("gap_sum", "<f8")]
    before = np.array([(3, 1.0, 0, 0.0), (5, 1.0, 2, 0.5), (9, 1.0, 0, 0.0)], dtype=kind)
    given = [
        Move(1, 0.5, np.array([5, 3]), np.array([2.0, 3.0])),
        Move(2, -1.0, np.array([5, 7]), np.array([4.0, 9.0])),
    ]
    assert moved(before, given).tolist() == [(3, 3.0, 1, 0.5), (5, 4.0, 4, 0.0), (9, 1.0, 0, 0.0)]
    place, there = places_of(np.array([9, 1, 12]), np.array([3, 9]))
    assert (place.tolist(), there.tolist()) == ([1], [True, False, False])
    assert places_of(np.array([1]), np.zeros(0, dtype=np.int64))[1].tolist() == [False]

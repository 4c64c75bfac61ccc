"""Weights of a strategy graph: steps, versions, going back, checks, and moving with everything that belongs to them."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from memweave.errors import ConflictError, EmbeddingMismatchError, FormatError, InputError
from memweave.graph_records import (
    EdgeKind,
    EdgeStep,
    NewQuery,
    NewStrategy,
    RolloutOutcome,
    StrategyKind,
    path_id,
)
from memweave.memory_stores import StrategyGraph, StrategySettings, open_strategies
from memweave.records import Scope, new_id

SEARCH, GUESS = ("Start", "Search", "End"), ("Start", "End")
QUESTION = "who wrote the blue book?"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def graph(home: Path) -> Iterator[StrategyGraph]:
    with open_strategies(home, embedding="hashing", settings=StrategySettings(snapshot_every=3)) as opened:
        yield opened


@pytest.fixture
def scope(graph: StrategyGraph) -> Scope:
    """A scope with one query, two paths and two strategies; five edges."""
    scope = Scope(tenant=str(new_id()), user="anna")
    build(graph, scope)
    return scope


def build(graph: StrategyGraph, scope: Scope) -> None:
    right, wrong = RolloutOutcome(states=SEARCH, reward=1.0), RolloutOutcome(states=GUESS, reward=0.0)
    graph.add(NewQuery(text="who wrote the red book?", query_id="q1"), [right, wrong], scope=scope)
    paths = [path_id("cognitive", states) for states in (SEARCH, GUESS)]
    for summary, those in (("search before you answer", paths), ("answer at once", paths[1:])):
        graph.write(NewStrategy(summary=summary, kind=StrategyKind.CONTRAST, score=60), those, scope=scope, reason="r")


def step(graph: StrategyGraph, scope: Scope, delta: float = 0.1, **given: object) -> EdgeStep:
    """Return a step that adds `delta` to every weight."""
    edges = graph.edges(scope=scope)
    tried = next(edge.target for edge in edges if edge.kind is EdgeKind.PATH_STRATEGY)
    return EdgeStep.model_validate(
        {
            "query": QUESTION, "query_id": "w1", "strategy_id": tried, "probability": 0.5, "reward_with": 1.0,
            "reward_without": 0.0, "gradient_norm": 1.5,
            "deltas": [{"kind": e.kind, "source": e.source, "target": e.target, "delta": delta} for e in edges],
            **given,
        }
    )  # fmt: skip


def weights(graph: StrategyGraph, scope: Scope) -> list[float]:
    return [edge.weight for edge in graph.edges(scope=scope)]


# steps


def test_a_step_moves_weights_and_is_kept_with_all_that_led_to_it(graph: StrategyGraph, scope: Scope) -> None:
    update = graph.apply(
        step(graph, scope, run_id="r", trace_with="a", trace_without="b", reward_without=0.25), scope=scope
    )
    assert (update.version, update.edges, update.gap, update.query_id) == (1, 5, 0.75, "w1")
    assert (update.run_id, update.trace_with, update.trace_without, update.gradient_norm) == ("r", "a", "b", 1.5)
    assert graph.updates(scope=scope) == [update]
    assert weights(graph, scope) == [1.1] * 5
    assert {(e.updates, e.gap_sum) for e in graph.edges(scope=scope)} == {(1, 0.75)}
    graph.apply(step(graph, scope, -0.5, reward_with=0.0, reward_without=1.0), scope=scope)
    assert weights(graph, scope) == pytest.approx([0.6] * 5)
    assert {(e.updates, e.gap_sum) for e in graph.edges(scope=scope)} == {(2, -0.25)}
    assert [each.version for each in graph.updates(scope=scope, limit=1)] == [2]
    assert graph.check(scope=scope) == []


def test_what_is_read_after_a_step_is_what_the_ledger_has(home: Path, graph: StrategyGraph, scope: Scope) -> None:
    for number in range(4):
        before = graph.activate(QUESTION, scope=scope)
        graph.apply(step(graph, scope, 0.1 * number + 0.1), scope=scope)
        after = graph.activate(QUESTION, scope=scope)
        assert after.version == before.version + 1
        with open_strategies(home) as another:  # with a table of its own
            fresh = another.activate(QUESTION, scope=scope)
        assert fresh.relevance.tolist() == after.relevance.tolist() != before.relevance.tolist()


def test_a_graph_that_is_open_twice_sees_the_steps_of_the_other(home: Path, graph: StrategyGraph, scope: Scope) -> None:
    with open_strategies(home, settings=StrategySettings(snapshot_every=3)) as another:
        assert another.activate(QUESTION, scope=scope).version == 0
        graph.apply(step(graph, scope), scope=scope)
        assert another.activate(QUESTION, scope=scope).query_path.weight.tolist() == [1.1, 1.1]
        another.apply(step(graph, scope), scope=scope)
        assert graph.activate(QUESTION, scope=scope).query_path.weight == pytest.approx([1.2, 1.2])
        assert graph.version(scope=scope) == another.version(scope=scope) == 2
    assert graph.check(scope=scope) == []


@pytest.mark.parametrize(("delta", "bound"), [(100.0, 5.0), (-100.0, 0.0)])
def test_weights_stay_in_their_bounds(graph: StrategyGraph, scope: Scope, delta: float, bound: float) -> None:
    graph.apply(step(graph, scope, delta), scope=scope)
    assert weights(graph, scope) == [bound] * 5
    active = graph.activate(QUESTION, scope=scope)
    assert active.probability.sum() == pytest.approx(1)
    assert graph.check(scope=scope) == []


def test_no_gap_is_noted_and_changes_nothing(graph: StrategyGraph, scope: Scope) -> None:
    graph.apply(step(graph, scope), scope=scope)
    before = graph.edges(scope=scope)
    update = graph.apply(step(graph, scope, deltas=(), reward_without=1.0), scope=scope)
    assert (update.version, update.edges, update.gap) == (1, 0, 0.0)
    assert graph.edges(scope=scope) == before
    assert len(graph.updates(scope=scope)) == 2
    assert graph.check(scope=scope) == []


def test_a_step_over_an_edge_that_is_not_there_changes_nothing(graph: StrategyGraph, scope: Scope) -> None:
    given = step(graph, scope)
    strange = {"kind": EdgeKind.PATH_STRATEGY, "source": new_id(), "target": new_id(), "delta": 0.1}
    with pytest.raises(ConflictError, match="Activate again"):
        graph.apply(EdgeStep.model_validate({**given.model_dump(), "deltas": [*given.deltas, strange]}), scope=scope)
    graph.remove(graph.strategies(scope=scope)[0].id, scope=scope, reason="gone")
    with pytest.raises(ConflictError, match="Activate again"):
        graph.apply(given, scope=scope)
    assert weights(graph, scope) == [1.0] * 3
    assert graph.updates(scope=scope) == graph.check(scope=scope) == []


@pytest.mark.parametrize(
    "given",
    [
        {"reward_with": 1.5},
        {"reward_without": -1.0},
        {"reward_with": math.nan},
        {"probability": 0.0},
        {"reward_with": 0.0},  # no gap, but deltas
        {"deltas": [{"kind": "query_path", "source": "0" * 32, "target": "0" * 32, "delta": math.inf}]},
        {"deltas": [{"kind": "query_path", "source": "0" * 32, "target": "0" * 32, "delta": 1.0}] * 2},
    ],
)
def test_a_step_out_of_range_is_refused(graph: StrategyGraph, scope: Scope, given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        step(graph, scope, **given)


# versions


def test_every_third_version_is_kept_and_can_be_gone_back_to(graph: StrategyGraph, scope: Scope) -> None:
    states = [graph.edges(scope=scope)]
    for number in range(7):
        graph.apply(step(graph, scope, 0.1 * (-1) ** number), scope=scope)
        states.append(graph.edges(scope=scope))
    found = graph.versions(scope=scope)
    assert [(each.version, each.current) for each in found] == [(0, False), (3, False), (6, False), (7, True)]
    assert [each.edges for each in found] == [0, 5, 5, 5]
    back = graph.rollback(3, scope=scope)
    assert (back.version, back.current) == (8, True)
    assert graph.edges(scope=scope) == states[3]
    assert graph.activate(QUESTION, scope=scope).version == 8
    assert graph.rollback(7, scope=scope).version == 9  # what was left is kept
    assert graph.edges(scope=scope) == states[7]
    assert graph.rollback(0, scope=scope).version == 10
    assert graph.edges(scope=scope) == states[0]
    assert graph.rollback(10, scope=scope).version == 10
    graph.apply(step(graph, scope), scope=scope)
    assert graph.version(scope=scope) == 11
    assert graph.check(scope=scope) == []


@pytest.mark.parametrize("version", [1, 4, -1, 99])
def test_a_version_that_was_not_kept_is_refused(graph: StrategyGraph, scope: Scope, version: int) -> None:
    for _ in range(3):
        graph.apply(step(graph, scope), scope=scope)
    with pytest.raises(InputError, match=f"version {version} of the weights was not kept"):
        graph.rollback(version, scope=scope)
    assert graph.version(scope=scope) == 3


def test_edges_made_since_get_their_first_weight_when_one_goes_back(graph: StrategyGraph, scope: Scope) -> None:
    graph.apply(step(graph, scope), scope=scope)
    kept = graph.snapshot(scope=scope)
    graph.add(NewQuery(text="who sang?"), [RolloutOutcome(states=SEARCH, reward=1.0)], scope=scope)
    graph.apply(step(graph, scope), scope=scope)
    graph.rollback(kept.version, scope=scope)
    assert weights(graph, scope) == [1.1] * 5 + [1.0]
    assert graph.check(scope=scope) == []


def test_automatic_versions_go_by_age_and_those_asked_for_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memweave.memory_stores.strategy_weights.SNAPSHOTS_KEPT", 2)
    scope = Scope(user="anna")
    with open_strategies(tmp_path, embedding="hashing", settings=StrategySettings(snapshot_every=1)) as graph:
        build(graph, scope)
        for number in range(6):
            graph.apply(step(graph, scope), scope=scope)
            if number == 1:
                assert graph.snapshot(scope=scope).version == 2
        assert [each.version for each in graph.versions(scope=scope)] == [0, 2, 5, 6]
        assert graph.check(scope=scope) == []


# checks


SPOILED = {
    "UPDATE memweave_graph_edges SET weight = -1.0 WHERE position = 1": "its weight is -1.0",
    "UPDATE memweave_graph_edges SET updates = 7 WHERE position = 1": "the log says 10",
    "UPDATE memweave_graph_edges SET updates = 0 WHERE position = 1": "its weight changed without an update",
    "UPDATE memweave_graph_edges SET source = 'ff' WHERE position = 1": "an orphan: its query never existed",
    "UPDATE memweave_graph_edges SET target = 'ff' WHERE position = 1": "an orphan: its path never existed",
    "UPDATE memweave_graph_edges SET target = 'ff' WHERE position = 3": "an orphan: its strategy never existed",
    "UPDATE memweave_graph_edges SET kind = 'other' WHERE position = 3": "there is no kind of edge 'other'",
    "DELETE FROM memweave_graph_edges WHERE position = 1": "no edge to a path that a rollout of it took",
    "DELETE FROM memweave_graph_edges WHERE position = 5": "no path leads to it",
    "DELETE FROM memweave_graph_paths WHERE position = 1": "an orphan: its path never existed",
    "UPDATE memweave_graph_paths SET states = '[\"Start\"]' WHERE position = 1": "its id is not that of its states",
    "DELETE FROM memweave_graph_steps WHERE version = 1": "it does not follow from the one before it",
    "DELETE FROM memweave_graph_steps WHERE version = 2": "the log says 5",
    "UPDATE memweave_graph_steps SET kind = 'what'": "the log cannot be read",
    "UPDATE memweave_graph_snapshots SET edges = 1": "its snapshot does not belong to it",
    "UPDATE memweave_graph_snapshots SET version = 9": "its snapshot does not belong to it",
    "UPDATE memweave_versions SET metadata = '{}' WHERE text LIKE 'who%'": "it cannot be read",
    "UPDATE memweave_versions SET metadata = replace(metadata, '\"score\": 60', '\"score\": 99')": "it cannot be read",
}


@pytest.mark.parametrize("statement", SPOILED)
def test_a_check_names_what_must_not_be(tmp_path: Path, statement: str) -> None:
    scope = Scope(user="anna")
    with open_strategies(tmp_path, embedding="hashing:64", settings=StrategySettings(snapshot_every=2)) as graph:
        build(graph, scope)
        for _ in range(2):
            graph.apply(step(graph, scope), scope=scope)
        assert graph.check(scope=scope) == []
    with sqlite3.connect(tmp_path / "ledger.sqlite") as raw:
        assert raw.execute(statement).rowcount > 0
    raw.close()
    with open_strategies(tmp_path) as graph:
        found = [str(each) for each in graph.check(scope=scope)]
        assert any(SPOILED[statement] in each for each in found), found
        assert graph.check(scope=Scope(user="boris")) == []


# moving


@pytest.fixture
def trained(graph: StrategyGraph, scope: Scope) -> Scope:
    """A scope with weights of several versions, a strategy that was removed and one that was updated."""
    for number in range(4):
        graph.apply(step(graph, scope, 0.1 * number + 0.1), scope=scope)
    graph.rollback(3, scope=scope)
    gone = NewStrategy(summary="count the pages", kind=StrategyKind.POSITIVE, score=50)
    change = graph.write(gone, [path_id("cognitive", SEARCH)], scope=scope, reason="r")
    graph.apply(step(graph, scope), scope=scope)
    graph.remove(change.strategy.id, scope=scope, reason="wrong")
    graph.contradict(graph.strategies(scope=scope)[0].id, scope=scope, reason="it failed")
    return scope


def everything(graph: StrategyGraph, scope: Scope) -> list[object]:
    """Return all that a scope shows, without whose it is."""
    nodes = [*graph.queries(scope=scope), *graph.strategies(scope=scope)]
    log = [op.model_dump(exclude={"scope", "seq", "before", "after"}) for op in graph.log(scope=scope)]
    rest = graph.paths(scope=scope), graph.edges(scope=scope), graph.updates(scope=scope), graph.versions(scope=scope)
    return [[each.model_dump(exclude={"scope"}) for each in nodes], log, *rest]


def test_an_export_comes_back_whole(graph: StrategyGraph, trained: Scope) -> None:
    lines = list(graph.export(scope=trained))
    other = Scope(tenant=trained.tenant, user="boris")
    assert graph.import_([*lines, ""], scope=other) == 3
    assert everything(graph, other) == everything(graph, trained)
    assert graph.import_(lines, scope=other) == graph.import_(lines, scope=trained) == 0
    assert graph.check(scope=other) == []
    removed = next(op for op in graph.log(scope=other) if op.kind == "DELETE")
    for each in (trained, other):  # the history came along, and so did what can be gone back to
        graph.undo(removed.id, scope=each)
        graph.rollback(3, scope=each)
    assert weights(graph, other) == weights(graph, trained)
    assert len(graph.edges(scope=other)) == 6
    assert graph.check(scope=other) == []


def test_an_import_is_all_or_nothing(graph: StrategyGraph, trained: Scope) -> None:
    lines = list(graph.export(scope=trained))
    other = Scope(tenant=trained.tenant, user="boris")
    edge = next(number for number, line in enumerate(lines) if line.startswith('{"edge"'))

    def changed(number: int, **given: object) -> list[str]:
        ((kind, inner),) = json.loads(lines[number]).items()
        return [*lines[:number], json.dumps({kind: {**inner, **given}}), *lines[number + 1 :]]

    bad = {
        "not even a header": [],
        "no header": lines[1:],
        "incomplete": lines[:-1],
        f"line {edge + 1} of the export cannot be read": changed(edge, weight="heavy"),
        "an orphan": changed(edge, source=str(new_id())),
        "the log says": changed(edge, updates=99),
        "line 3 of the export cannot be read": [*lines[:2], "{", *lines[3:]],
        "cannot be read": [lines[0], '{"what": {}}', *lines[1:]],
        "format None": [lines[0], '{"query": {"memweave": "export"}}', *lines[2:]],
    }
    for why, given in bad.items():
        with pytest.raises((InputError, FormatError)) as error:
            graph.import_(given, scope=other)
        assert why in str(error.value)
        assert graph.queries(scope=other) == graph.strategies(scope=other) == graph.log(scope=other) == []
        assert graph.check(scope=other) == []


def test_a_graph_of_another_format_or_encoder_is_refused(tmp_path: Path, graph: StrategyGraph, trained: Scope) -> None:
    lines = list(graph.export(scope=trained))
    header = json.loads(lines[0])
    with pytest.raises(FormatError, match="format 99"):
        graph.import_([json.dumps({**header, "format": 99}), *lines[1:]], scope=Scope(user="new"))
    with (
        open_strategies(tmp_path, embedding="hashing:64") as other,
        pytest.raises(EmbeddingMismatchError, match="memweave memory rebuild --embedding hashing:256"),
    ):
        other.import_(lines, scope=trained)


def test_another_graph_is_not_overwritten(graph: StrategyGraph, trained: Scope) -> None:
    lines = list(graph.export(scope=trained))
    other = Scope(tenant=trained.tenant, user="boris")
    build(graph, other)
    before = everything(graph, other)
    with pytest.raises(ConflictError, match="already holds"):
        graph.import_(lines, scope=other)
    assert everything(graph, other) == before

"""A graph of strategies: ties, names, numbers and exports that are not what they seem."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from memweave.errors import ConflictError, InputError
from memweave.graph_records import (
    NewQuery,
    NewStrategy,
    RolloutOutcome,
    StrategyKind,
)
from memweave.memory_stores import StrategyGraph, StrategySettings, open_strategies
from memweave.records import Scope, new_id
from tests.memory_stores.strategy_play import LONG, SEARCH, a_step, of, two_worlds


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graph")


@pytest.fixture(scope="module")
def graph(home: Path) -> Iterator[StrategyGraph]:
    with open_strategies(home, embedding="hashing") as opened:
        yield opened


@pytest.fixture
def scope() -> Scope:
    return Scope(tenant=str(new_id()), user="anna")


def test_of_equally_similar_queries_the_oldest_are_neighbours(graph: StrategyGraph, scope: Scope) -> None:
    for number in range(40):
        new = NewQuery(text="who wrote the red book?", query_id=f"q{number}")
        graph.add(new, [RolloutOutcome(states=SEARCH, reward=1.0)], scope=scope)
    near = graph.neighbours("who wrote the red book?", scope=scope, k=3)
    assert [query.query_id for query, _ in near] == ["q0", "q1", "q2"]


def test_a_query_without_an_id_is_excluded_by_its_text(graph: StrategyGraph, scope: Scope) -> None:
    text = "who wrote the red book?"
    graph.add(NewQuery(text=text), [RolloutOutcome(states=SEARCH, reward=1.0)], scope=scope)
    assert graph.neighbours(text, scope=scope, exclude=text) == []
    assert graph.neighbours(text, scope=scope, exclude=NewQuery(text=text).name) == []
    assert len(graph.neighbours(text, scope=scope)) == 1
    for wrong in ("", "\ud800"):
        with pytest.raises(InputError, match="is no id of a query"):
            graph.neighbours(text, scope=scope, exclude=wrong)
    with pytest.raises(InputError, match="is no id of a query"):
        graph.query("\ud800", scope=scope)


def test_a_query_that_has_to_be_new_is_refused_the_second_time(graph: StrategyGraph, scope: Scope) -> None:
    new = NewQuery(text="who wrote the red book?", query_id="q")
    graph.add(new, [], scope=scope, fresh=True)
    with pytest.raises(ConflictError, match="is in the graph already"):
        graph.add(new, [], scope=scope, fresh=True)
    assert graph.add(new, [], scope=scope).query_id == "q"


def test_numbers_that_no_database_holds_are_refused_by_name(graph: StrategyGraph, scope: Scope) -> None:
    two_worlds(graph, scope)
    with pytest.raises(InputError, match="was not kept"):
        graph.rollback(10**20, scope=scope)
    with pytest.raises(InputError, match="too large"):
        graph.updates(scope=scope, limit=2**70)
    assert len(graph.neighbours("book", scope=scope, k=2**70)) == len(graph.queries(scope=scope))


def test_an_export_with_other_weights_is_not_there_already(graph: StrategyGraph, scope: Scope) -> None:
    two_worlds(graph, scope)
    other = Scope(tenant=scope.tenant, user="boris")
    before = list(graph.export(scope=scope))
    assert graph.import_(before, scope=other) > 0
    assert graph.import_(before, scope=other) == 0
    graph.apply(a_step(graph, scope, delta=1.0), scope=scope)
    with pytest.raises(ConflictError, match="with other weights"):
        graph.import_(list(graph.export(scope=scope)), scope=other)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("edge", "weight", float("nan")),
        ("edge", "updates", 2**70),
        ("step", "row", "[]"),
        ("step", "row", "no JSON"),
        ("step", "version", 2**70),
        ("snapshot", "weights", [[0, -1.0, 1, 0.0]]),
    ],
)
def test_an_export_that_was_changed_is_refused_and_nothing_imported(
    graph: StrategyGraph, scope: Scope, kind: str, field: str, value: object
) -> None:
    two_worlds(graph, scope)
    graph.apply(a_step(graph, scope, delta=1.0), scope=scope)
    graph.snapshot(scope=scope)
    lines = [json.loads(line) for line in graph.export(scope=scope)]
    changed = next(line for line in lines if kind in line and "memweave" not in line)
    changed[kind][field] = value
    other = Scope(tenant=scope.tenant, user="boris")
    with pytest.raises(InputError, match=r"othing was imported"):
        graph.import_([json.dumps(line) for line in lines], scope=other)
    assert graph.strategies(scope=other) == []


def test_a_query_that_was_added_twice_leads_where_its_present_version_went(graph: StrategyGraph, scope: Scope) -> None:
    new = NewQuery(text="who wrote the red book?", query_id="q")
    taken = []
    for took in ([SEARCH], [SEARCH, LONG]):
        graph.add(new, [RolloutOutcome(states=states, reward=1.0) for states in took], scope=scope)
        added = graph.log(scope=scope)[-1]
        taken.append(graph.undo(added.id, scope=scope))
        assert graph.edges(scope=scope) == []
    graph.undo(taken[0].id, scope=scope)
    assert [path.id for path in graph.success_paths("q", scope=scope)] == [of(SEARCH)]
    assert [edge.target for edge in graph.edges(scope=scope)] == [of(SEARCH)]
    assert graph.check(scope=scope) == []


def test_at_a_threshold_of_1_a_summary_is_still_the_same_as_itself(tmp_path: Path) -> None:
    anna = Scope(user="anna")
    with open_strategies(tmp_path, embedding="hashing", settings=StrategySettings(match_threshold=1.0)) as graph:
        graph.add(NewQuery(text="who?"), [RolloutOutcome(states=SEARCH, reward=1.0)], scope=anna)
        for _ in range(2):
            for number in range(30):
                summary = f"consider searching {number} times before answering question {number * 7}"
                new = NewStrategy(summary=summary, kind=StrategyKind.CONTRAST, score=60)
                graph.write(new, [of(SEARCH)], scope=anna, reason="r")
        assert len(graph.strategies(scope=anna)) == 30


def test_a_change_without_a_reason_is_refused_by_name(graph: StrategyGraph, scope: Scope) -> None:
    first, _ = two_worlds(graph, scope)
    with pytest.raises(InputError, match="needs a reason"):
        graph.contradict(first, scope=scope, reason=" ")

"""A strategy graph against a model of it in plain Python: whatever is done in whatever order, both say the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memweave.graph_records import (
    EdgeKind,
    NewQuery,
    NewStrategy,
    RolloutOutcome,
    StrategyAction,
    StrategyKind,
    path_id,
)
from memweave.memory_stores import StrategyGraph, StrategySettings, open_strategies
from memweave.records import Scope, new_id
from memweave.trainers.edge_weights import Reinforce

PATHS = [("Start", name, "End") for name in ("A", "B", "C")]
SUMMARIES = ("amber road", "birch tree", "cedar chest")
QUERIES = ("who wrote the red book", "who wrote the blue song", "where is the red house")
ASKED = "who wrote the red song"

Edge = tuple[EdgeKind, UUID, UUID]


@dataclass
class Model:
    """What a graph should hold."""

    queries: dict[int, UUID] = field(default_factory=dict)
    strategies: dict[int, tuple[UUID, int, int, int]] = field(default_factory=dict)
    """By summary: id, score, evidence, contradictions."""
    active: set[Edge] = field(default_factory=set)
    weights: dict[Edge, float] = field(default_factory=dict)
    version: int = 0
    kept: dict[int, dict[Edge, float]] = field(default_factory=lambda: {0: {}})

    def connect(self, kind: EdgeKind, source: UUID, target: UUID) -> None:
        self.active.add((kind, source, target))
        self.weights.setdefault((kind, source, target), 1.0)

    def live(self) -> dict[Edge, float]:
        """Return the weights of the edges that count."""
        ends = {*self.queries.values(), *(each[0] for each in self.strategies.values()), *map(id_of, PATHS)}
        return {edge: w for edge, w in self.weights.items() if edge in self.active and {edge[1], edge[2]} <= ends}

    def relevance(self, similar: dict[UUID, float]) -> dict[UUID, float]:
        """Return rho by walking every path, section 2.5 word for word."""
        found: dict[UUID, float] = {}
        live = self.live()
        for (kind, query, path), first in live.items():
            for (other, source, strategy), second in live.items():
                if (
                    kind is EdgeKind.QUERY_PATH
                    and other is EdgeKind.PATH_STRATEGY
                    and source == path
                    and query in similar
                ):
                    found[strategy] = found.get(strategy, 0.0) + max(0.0, similar[query]) * first * second
        return found


def id_of(states: tuple[str, ...]) -> UUID:
    return path_id("cognitive", states)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StrategyGraph]:
    where = tmp_path_factory.mktemp("model")
    with open_strategies(where, embedding="hashing", settings=StrategySettings(neighbours=2)) as opened:
        yield opened


small = st.integers(0, 2)
DEEDS = st.one_of(
    st.tuples(st.just("add"), small, st.lists(small, min_size=1, max_size=3)),
    st.tuples(st.just("write"), small, st.lists(small, min_size=1, max_size=2)),
    st.tuples(st.just("link"), small, st.lists(small, min_size=1, max_size=2)),
    st.tuples(
        st.sampled_from(["contradict", "remove", "remove and undo", "write and undo"]),
        small,
        st.lists(small, min_size=1),
    ),
    st.tuples(st.sampled_from(["gain", "loss", "nothing"]), small, st.just([0])),
    st.tuples(st.sampled_from(["keep", "back", "back to 0"]), small, st.just([0])),
)


def do(graph: StrategyGraph, model: Model, scope: Scope, deed: str, number: int, paths: list[int]) -> None:
    """Do something to both."""
    known_paths = {edge[2] for edge in model.active if edge[0] is EdgeKind.QUERY_PATH}
    taken = [each for each in dict.fromkeys(id_of(PATHS[i]) for i in paths) if each in known_paths]
    strategy = model.strategies.get(number)
    match deed:
        case "add":
            outcomes = [RolloutOutcome(states=PATHS[i], reward=1.0) for i in paths]
            node = graph.add(NewQuery(text=QUERIES[number], query_id=str(number)), outcomes, scope=scope)
            if number not in model.queries:
                model.queries[number] = node.id
                for i in paths:
                    model.connect(EdgeKind.QUERY_PATH, node.id, id_of(PATHS[i]))
        case "write" | "write and undo" if taken:
            new = NewStrategy(summary=SUMMARIES[number], kind=StrategyKind.CONTRAST, score=60)
            before = set(model.active)
            change = graph.write(new, taken, scope=scope, reason="r")
            assert change.action is (StrategyAction.UPDATED if strategy else StrategyAction.CREATED)
            for path in taken:
                model.connect(EdgeKind.PATH_STRATEGY, path, change.strategy.id)
            assert change.edges == len(model.active - before)
            if deed == "write and undo":
                graph.undo(change.op_id, scope=scope)
                model.active = before
            elif strategy is None:
                model.strategies[number] = (change.strategy.id, 60, 1, 0)
            else:
                model.strategies[number] = (strategy[0], min(85, strategy[1] + 5), strategy[2] + 1, strategy[3])
        case "link" if taken and strategy:
            changes = graph.link(taken, [strategy[0]], scope=scope)
            before = set(model.active)
            for path in taken:
                model.connect(EdgeKind.PATH_STRATEGY, path, strategy[0])
            assert sum(each.edges for each in changes) == len(model.active - before)
        case "contradict" if strategy:
            change = graph.contradict(strategy[0], scope=scope, reason="r")
            score, times = max(30, strategy[1] - 10), strategy[3] + 1
            model.strategies[number] = (strategy[0], score, strategy[2], times)
            if score == 30 and times >= 3:
                del model.strategies[number]
            assert (change.action is StrategyAction.DROPPED) is (number not in model.strategies)
        case "remove" if strategy:
            graph.remove(strategy[0], scope=scope, reason="r")
            del model.strategies[number]
        case "remove and undo" if strategy:
            graph.undo(graph.remove(strategy[0], scope=scope, reason="r").op_id, scope=scope)
        case "gain" | "loss" | "nothing":
            learn(graph, model, scope, number, {"gain": 1.0, "loss": -1.0, "nothing": 0.0}[deed])
        case "keep":
            assert graph.snapshot(scope=scope).version == model.version
            model.kept[model.version] = dict(model.weights)
        case "back" | "back to 0":
            version = 0 if deed == "back to 0" else sorted(model.kept)[number % len(model.kept)]
            back(graph, model, scope, version)
        case _:
            pass  # what it needs is not there


def learn(graph: StrategyGraph, model: Model, scope: Scope, number: int, gap: float) -> None:
    active = graph.activate(ASKED, scope=scope)
    if not active:
        return
    before = model.live()
    chosen = number % len(active.strategies)
    rho = {each.id: r for each, r in zip(active.strategies, active.relevance.tolist(), strict=True)}
    step = Reinforce(0.5).step(active, chosen, max(gap, 0.0), max(-gap, 0.0))
    update = graph.apply(step, scope=scope)
    assert {(d.kind, d.source, d.target) for d in step.deltas} <= set(before)  # weights only where edges are
    for delta in step.deltas:
        edge = (delta.kind, delta.source, delta.target)
        model.weights[edge] = min(max(model.weights[edge] + delta.delta, 0.0), 5.0)
    model.version += bool(step.deltas)
    assert (update.version, update.edges) == (model.version, len(step.deltas))
    total = sum(math.exp(each) for each in rho.values())
    assert update.probability == pytest.approx(math.exp(rho[step.strategy_id]) / total)


def back(graph: StrategyGraph, model: Model, scope: Scope, version: int) -> None:
    graph.rollback(version, scope=scope)
    model.kept[model.version] = dict(model.weights)
    if version != model.version:
        model.weights = {edge: model.kept[version].get(edge, 1.0) for edge in model.weights}
        model.version += 1
        model.kept[model.version] = dict(model.weights)


def compare(graph: StrategyGraph, model: Model, scope: Scope) -> None:
    assert {(e.kind, e.source, e.target): e.weight for e in graph.edges(scope=scope)} == model.live()
    assert {q.id for q in graph.queries(scope=scope)} == set(model.queries.values())
    found = {(s.id, s.score, s.evidence, s.contradictions) for s in graph.strategies(scope=scope)}
    assert found == set(model.strategies.values())
    assert graph.version(scope=scope) == model.version
    similar = {node.id: cosine for node, cosine in graph.neighbours(ASKED, scope=scope)}
    assert len(similar) == min(2, len(model.queries))
    active = graph.activate(ASKED, scope=scope)
    said = {each.id: rho for each, rho in zip(active.strategies, active.relevance.tolist(), strict=True)}
    assert said == pytest.approx(model.relevance(similar))
    if active:
        assert active.probability.sum() == pytest.approx(1)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(DEEDS, min_size=3, max_size=14))
def test_the_graph_does_what_the_model_does(graph: StrategyGraph, deeds: list[tuple[str, int, list[int]]]) -> None:
    scope, model = Scope(tenant=str(new_id()), user="anna"), Model()
    for deed in [("add", 0, [0, 1]), ("write", 0, [0, 1]), *deeds]:
        do(graph, model, scope, *deed)
        compare(graph, model, scope)
    assert graph.check(scope=scope) == []
    other = Scope(tenant=scope.tenant, user="boris")
    graph.import_(graph.export(scope=scope), scope=other)
    edges = {(e.kind, e.source, e.target): e.weight for e in graph.edges(scope=other)}
    assert edges == model.live()
    assert graph.version(scope=other) == model.version
    assert graph.check(scope=other) == []

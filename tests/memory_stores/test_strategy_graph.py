"""A graph of strategies: how it is built, what a query finds in it, and what never happens."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from pydantic import ValidationError

from memweave.errors import ConflictError, EmbeddingMismatchError, InputError, UnknownMemoryError, UsageError
from memweave.graph_records import (
    EdgeKind,
    EdgeStep,
    NewQuery,
    NewStrategy,
    Principle,
    RolloutOutcome,
    StrategyAction,
)
from memweave.memory_stores import StrategyGraph, StrategySettings, open_bank, open_strategies, reembed
from memweave.memory_stores.strategy_graph import RANKS, Rank
from memweave.records import Scope, new_id
from tests.memory_stores.strategy_play import GUESS, LONG, SEARCH, a_step, advice, asked, of, took, two_worlds, written


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


# building


def test_a_query_comes_back_with_its_outcomes_and_paths_count_them(graph: StrategyGraph, scope: Scope) -> None:
    query = NewQuery(text="who wrote it?", query_id="q1", split="build", run_id="r1")
    outcomes = [took(SEARCH, trace="t1"), took(GUESS, 0.0), took(SEARCH), took(SEARCH, 0.5)]
    node = graph.add(query, outcomes, scope=scope)
    assert NewQuery.model_validate(node.model_dump(include=set(NewQuery.model_fields))) == query
    assert node.outcomes == tuple(outcomes)
    assert graph.query("q1", scope=scope) == node
    assert graph.queries(scope=scope) == [node]
    paths = graph.paths(scope=scope)
    assert [(each.states, each.n_success, each.n_failure) for each in paths] == [(SEARCH, 2, 1), (GUESS, 0, 1)]
    assert graph.success_paths("q1", scope=scope) == paths[:1]
    assert [(e.kind, e.source, e.target, e.weight) for e in graph.edges(scope=scope)] == [
        (EdgeKind.QUERY_PATH, node.id, each.id, 1.0) for each in paths
    ]
    assert graph.check(scope=scope) == []


def test_equal_paths_of_different_queries_are_one_node(graph: StrategyGraph, scope: Scope) -> None:
    asked(graph, scope)
    asked(graph, scope, "who sang the blue song?")
    assert [(each.n_success, each.n_failure) for each in graph.paths(scope=scope)] == [(2, 0), (0, 2)]
    assert len(graph.edges(scope=scope)) == 4


def test_equal_sequences_of_different_machines_are_different_paths(
    home: Path, graph: StrategyGraph, scope: Scope
) -> None:
    asked(graph, scope)
    with open_strategies(home, settings=StrategySettings(machine="coarse")) as other:
        other.add(NewQuery(text="who sang?"), [took(SEARCH)], scope=scope)
    assert [(each.machine, each.states) for each in graph.paths(scope=scope)] == [
        ("cognitive", SEARCH),
        ("cognitive", GUESS),
        ("coarse", SEARCH),
    ]
    assert [p.machine for p in graph.success_paths(NewQuery(text="who sang?").name, scope=scope)] == ["coarse"]


def test_a_query_that_is_there_already_is_left_as_it_is(graph: StrategyGraph, scope: Scope) -> None:
    first = asked(graph, scope, query_id="q1")
    again = graph.add(NewQuery(text=first.text, query_id="q1"), [took(LONG)], scope=scope)
    assert again == first
    with pytest.raises(ConflictError, match="'q1' .*with another text"):
        graph.add(NewQuery(text="another", query_id="q1"), [], scope=scope)
    assert len(graph.edges(scope=scope)) == 2


def test_names_decide_which_query_it_is(graph: StrategyGraph, scope: Scope) -> None:
    nodes = [asked(graph, scope, query_id="q1"), asked(graph, scope, query_id="q2"), asked(graph, scope)]
    assert len({node.id for node in nodes}) == 3
    assert asked(graph, scope) == nodes[2]  # without an id, the text is the name
    found = graph.neighbours(nodes[0].text, scope=scope, exclude="q1")
    assert [node.query_id for node, _ in found] == ["q2", None]
    found = graph.neighbours(nodes[0].text, scope=scope, exclude=nodes[2].name)
    assert [node.query_id for node, _ in found] == ["q1", "q2"]
    assert [round(cosine, 4) for _, cosine in found] == [1.0, 1.0]


def test_a_query_that_led_nowhere_activates_nothing(graph: StrategyGraph, scope: Scope) -> None:
    graph.add(NewQuery(text="who wrote the book?"), [], scope=scope)
    assert not graph.activate("who wrote the book?", scope=scope)
    assert graph.check(scope=scope) == []


@pytest.mark.parametrize(
    "given",
    [{"states": ()}, {"reward": 1.5}, {"reward": -0.1}, {"reward": float("nan")}, {"states": ("",)}],
)
def test_an_outcome_out_of_range_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RolloutOutcome.model_validate({"states": SEARCH, "reward": 1.0, **given})


@pytest.mark.parametrize("score", [29, 86])
def test_a_score_out_of_range_is_refused(score: int) -> None:
    with pytest.raises(ValidationError):
        advice(score=score)


@pytest.mark.parametrize(
    ("score", "confidence"), [(30, "low"), (49, "low"), (50, "medium"), (69, "medium"), (70, "high")]
)
def test_scores_fall_into_bands(score: int, confidence: str) -> None:
    assert advice(score=score).confidence == Principle(text="p", score=score).confidence == confidence


# strategies


def test_a_strategy_comes_back_linked_to_the_paths_it_was_made_of(graph: StrategyGraph, scope: Scope) -> None:
    asked(graph, scope)
    new = advice(
        principles=(Principle(text="look first", score=70),), uncertainty="few examples", run_id="r", metadata={"a": 1}
    )
    change = written(graph, scope, new)
    assert (change.action, change.edges, change.similarity) == (StrategyAction.CREATED, 2, None)
    kept = change.strategy
    assert NewStrategy.model_validate(kept.model_dump(include=set(NewStrategy.model_fields))) == new
    assert (kept.version, kept.evidence, kept.contradictions) == (1, 1, 0)
    assert graph.strategies(scope=scope) == [kept] == graph.strategies_of(of(GUESS), scope=scope)
    assert graph.strategy(kept.id, scope=scope) == kept
    assert graph.check(scope=scope) == []


def test_one_that_says_the_same_supports_the_one_that_is_there(graph: StrategyGraph, scope: Scope) -> None:
    asked(graph, scope)
    principles = Principle(text="look first", score=82), Principle(text="trust no memory", score=50)
    first = written(graph, scope, advice(principles=principles))
    graph.add(NewQuery(text="who sang?"), [took(LONG)], scope=scope)
    again = graph.write(advice(principles=principles[:1]), [of(LONG), of(SEARCH)], scope=scope, reason="again")
    assert (again.action, again.strategy.id, again.edges) == (StrategyAction.UPDATED, first.strategy.id, 1)
    assert again.similarity == pytest.approx(1, abs=1e-4)
    assert (again.strategy.score, again.strategy.evidence, again.strategy.version) == (65, 2, 2)
    assert [each.score for each in again.strategy.principles] == [85, 50]
    for _ in range(6):
        last = graph.write(advice(), [of(LONG)], scope=scope, reason="again")
    assert (last.strategy.score, last.strategy.evidence) == (85, 8)
    assert written(graph, scope, advice("count the steps of the plan")).action is StrategyAction.CREATED


def test_the_threshold_decides_what_says_the_same(home: Path, scope: Scope) -> None:
    with open_strategies(home, settings=StrategySettings(match_threshold=1.0)) as strict:
        asked(strict, scope)
        written(strict, scope)
        change = written(strict, scope, advice("consider searching before you answer it"))
        assert change.action is StrategyAction.CREATED
    with open_strategies(home, settings=StrategySettings(match_threshold=0.2)) as loose:
        change = written(loose, scope, advice("consider searching before answering"))
        assert change.action is StrategyAction.UPDATED
        assert change.similarity is not None
        assert change.similarity < 0.85


def test_an_update_by_name_rewrites(graph: StrategyGraph, scope: Scope) -> None:
    asked(graph, scope)
    first = written(graph, scope, advice(uncertainty="few examples"))
    new = advice("plan the steps, then search", principles=(Principle(text="plan", score=55),))
    change = written(graph, scope, new, target=first.strategy.id)
    assert (change.action, change.edges) == (StrategyAction.UPDATED, 0)
    kept = change.strategy
    assert (kept.id, kept.summary, kept.principles, kept.uncertainty) == (
        first.strategy.id,
        new.summary,
        new.principles,
        None,
    )
    assert (kept.score, kept.evidence) == (65, 2)
    found = graph.top(new.summary, scope=scope, rank="similarity")
    assert found[0].score == pytest.approx(1, abs=1e-4)  # embedded anew


def test_three_contradictions_at_the_lowest_score_end_a_strategy(graph: StrategyGraph, scope: Scope) -> None:
    asked(graph, scope)
    first = written(graph, scope, advice(score=45)).strategy
    scores = [graph.contradict(first.id, scope=scope, reason="no").strategy.score for _ in range(2)]
    assert scores == [35, 30]
    change = graph.contradict(first.id, scope=scope, reason="no")
    assert (change.action, change.strategy.contradictions) == (StrategyAction.DROPPED, 2)
    assert graph.strategies(scope=scope) == []
    assert graph.edges(scope=scope, kind=EdgeKind.PATH_STRATEGY) == []
    graph.undo(change.op_id, scope=scope)
    assert [each.score for each in graph.strategies(scope=scope)] == [30]
    assert len(graph.edges(scope=scope, kind=EdgeKind.PATH_STRATEGY)) == 2
    assert graph.check(scope=scope) == []


def test_a_high_score_survives_three_contradictions(graph: StrategyGraph, scope: Scope) -> None:
    asked(graph, scope)
    first = written(graph, scope, advice(score=85)).strategy
    changes = [graph.contradict(first.id, scope=scope, reason="no") for _ in range(5)]
    assert [each.strategy.score for each in changes] == [75, 65, 55, 45, 35]
    assert graph.contradict(first.id, scope=scope, reason="no").action is StrategyAction.DROPPED


def test_links_are_made_once_and_can_be_undone(graph: StrategyGraph, scope: Scope) -> None:
    asked(graph, scope)
    graph.add(NewQuery(text="who sang?"), [took(LONG, 0.0)], scope=scope)
    first, second = written(graph, scope).strategy, written(graph, scope, advice("count the steps")).strategy
    changes = graph.link([of(LONG), of(GUESS)], [first.id, second.id], scope=scope)
    assert [(each.action, each.edges) for each in changes] == [(StrategyAction.LINKED, 1)] * 2
    assert graph.link([of(LONG)], [first.id], scope=scope) == []
    assert len(graph.strategies_of(of(LONG), scope=scope)) == 2
    graph.undo(changes[0].op_id, scope=scope)
    assert [each.id for each in graph.strategies_of(of(LONG), scope=scope)] == [second.id]
    assert len(graph.link([of(LONG)], [first.id], scope=scope)) == 1
    assert len(graph.strategies_of(of(LONG), scope=scope)) == 2
    assert graph.check(scope=scope) == []


def test_undo_takes_the_edges_of_an_operation_and_undoing_that_brings_them_back(
    graph: StrategyGraph, scope: Scope
) -> None:
    asked(graph, scope)
    graph.add(NewQuery(text="who sang?"), [took(LONG)], scope=scope)
    made = written(graph, scope)
    update = graph.write(advice(), [of(LONG)], scope=scope, reason="again")
    assert update.edges == 1
    undone = graph.undo(update.op_id, scope=scope)
    assert graph.strategies_of(of(LONG), scope=scope) == []
    assert graph.strategies(scope=scope)[0].score == 60
    redone = graph.undo(undone.id, scope=scope)
    assert len(graph.strategies_of(of(LONG), scope=scope)) == 1
    graph.undo(redone.id, scope=scope)
    assert graph.strategies_of(of(LONG), scope=scope) == []
    with pytest.raises(ConflictError):
        graph.undo(update.op_id, scope=scope)
    graph.undo(made.op_id, scope=scope)
    assert graph.edges(scope=scope, kind=EdgeKind.PATH_STRATEGY) == []
    assert graph.check(scope=scope) == []


def test_a_query_can_be_taken_back_and_asked_again(graph: StrategyGraph, scope: Scope) -> None:
    node = asked(graph, scope, query_id="q1")
    graph.undo(graph.log(scope=scope)[0].id, scope=scope)
    assert graph.queries(scope=scope) == graph.paths(scope=scope) == graph.edges(scope=scope) == []
    assert graph.query("q1", scope=scope) is None
    again = graph.add(NewQuery(text=node.text, query_id="q1"), [took(SEARCH), took(LONG)], scope=scope)
    assert again.id == node.id
    assert [path.states for path in graph.paths(scope=scope)] == [SEARCH, LONG]
    assert graph.check(scope=scope) == []


def test_a_strategy_that_was_removed_comes_back_with_its_weights(graph: StrategyGraph, scope: Scope) -> None:
    asked(graph, scope)
    change = written(graph, scope)
    active = graph.activate("who wrote the blue book?", scope=scope)
    graph.apply(a_step(graph, scope, delta=0.25), scope=scope)
    gone = graph.remove(change.strategy.id, scope=scope, reason="a mistake")
    assert gone.action is StrategyAction.REMOVED
    assert not graph.activate("who wrote the blue book?", scope=scope)
    assert graph.check(scope=scope) == []
    graph.undo(gone.op_id, scope=scope)
    assert [e.weight for e in graph.edges(scope=scope, kind=EdgeKind.PATH_STRATEGY)] == [1.25, 1.25]
    assert graph.activate("who wrote the blue book?", scope=scope).strategies == tuple(graph.strategies(scope=scope))
    assert active.relevance[0] < graph.activate("who wrote the blue book?", scope=scope).relevance[0]


def test_what_does_not_exist_is_named_and_nothing_is_written(graph: StrategyGraph, scope: Scope) -> None:
    asked(graph, scope)
    for call in (
        lambda: graph.write(advice(), [of(LONG)], scope=scope, reason="r"),
        lambda: written(graph, scope, target=new_id()),
        lambda: graph.contradict(new_id(), scope=scope, reason="r"),
        lambda: graph.link([of(SEARCH)], [new_id()], scope=scope),
        lambda: graph.remove(new_id(), scope=scope, reason="r"),
        lambda: graph.undo(new_id(), scope=scope),
        lambda: graph.strategy(new_id(), scope=scope),
    ):
        with pytest.raises(UnknownMemoryError):
            call()
    with pytest.raises(InputError, match="needs the paths"):
        graph.write(advice(), [], scope=scope, reason="r")
    assert graph.strategies(scope=scope) == []
    assert len(graph.log(scope=scope)) == 1


def test_the_log_tells_queries_and_strategies_in_order(graph: StrategyGraph, scope: Scope) -> None:
    asked(graph, scope, run_id="r1")
    written(graph, scope)
    asked(graph, scope, "who sang?", run_id="r1")
    assert [op.reason for op in graph.log(scope=scope)] == [
        "2 rollouts, 1 of them right", "contrast", "2 rollouts, 1 of them right",
    ]  # fmt: skip
    assert [op.reason for op in graph.log(scope=scope, limit=2)] == ["contrast", "2 rollouts, 1 of them right"]
    assert len(graph.log(scope=scope, run_id="r1")) == 2
    assert graph.log(scope=scope, limit=0) == []


# reading


def test_relevance_follows_the_edges_from_similar_queries(graph: StrategyGraph, scope: Scope) -> None:
    first, second = two_worlds(graph, scope)
    active = graph.activate("who wrote the green book?", scope=scope)
    cosines = [score for _, score in graph.neighbours("who wrote the green book?", scope=scope)]
    assert active.similarities == pytest.approx([max(0.0, c) for c in cosines])
    assert {s.id: r for s, r in zip(active.strategies, active.relevance, strict=True)} == pytest.approx(
        {first: 2 * max(0.0, cosines[0]), second: max(0.0, cosines[1])}
    )
    assert active.probability.sum() == pytest.approx(1)
    assert graph.top("who wrote the green book?", scope=scope, k=1)[0].strategy.id == first


def test_only_activated_strategies_compete(home: Path, graph: StrategyGraph, scope: Scope) -> None:
    first, _ = two_worlds(graph, scope)
    with open_strategies(home, settings=StrategySettings(neighbours=1)) as narrow:
        active = narrow.activate("who wrote the green book?", scope=scope)
        assert [each.id for each in active.strategies] == [first]
        assert active.probability == pytest.approx([1.0])


def test_a_query_is_not_its_own_neighbour(graph: StrategyGraph, scope: Scope) -> None:
    _, second = two_worlds(graph, scope)
    text = "who wrote the red book?"
    assert graph.neighbours(text, scope=scope)[0][0].query_id == "book"
    assert [node.query_id for node, _ in graph.neighbours(text, scope=scope, exclude="book")] == ["song"]
    active = graph.activate(text, scope=scope, exclude="book")
    assert [each.id for each in active.strategies] == [second]
    assert {each.strategy.id for each in graph.top(text, scope=scope, exclude="book")} == {second}
    assert [each.id for each in graph.speculate(text, scope=scope, exclude="book")] == [second]


def test_speculation_takes_what_success_paths_of_similar_queries_lead_to(graph: StrategyGraph, scope: Scope) -> None:
    first, second = two_worlds(graph, scope)
    only_failure = graph.write(advice("guess less"), [of(GUESS)], scope=scope, reason="contrast").strategy.id
    found = graph.speculate("who wrote the green book?", scope=scope)
    assert [each.id for each in found] == [first, second]
    assert only_failure not in {each.id for each in found}
    assert [each.id for each in graph.speculate("who wrote the green book?", scope=scope, k=1)] == [first]


def test_ranks(graph: StrategyGraph, scope: Scope) -> None:
    first, second = two_worlds(graph, scope)
    text = "who wrote the green book?"
    for _ in range(4):
        graph.apply(steered(graph, scope, towards=second), scope=scope)
    ranked = {rank: graph.top(text, scope=scope, rank=rank, rng=np.random.default_rng(0)) for rank in RANKS}
    ids = {rank: [each.strategy.id for each in found] for rank, found in ranked.items()}
    assert ids["weights"] == [second, first]
    assert ids["uniform"] == [first, second]
    assert ids["confidence"] == [second, first]
    assert sorted(ids["random"]) == sorted([first, second])
    assert ranked["uniform"][0].relevance == pytest.approx(2 * graph.neighbours(text, scope=scope)[0][1])
    assert sum(each.probability or 0 for each in ranked["weights"]) == pytest.approx(1)
    assert [each.score for each in ranked["confidence"]] == [70, 60]
    named = graph.top("count the steps", scope=scope, rank="similarity")
    assert (named[0].strategy.id, named[0].relevance) == (second, None)
    assert len(graph.top(text, scope=scope, k=1)) == 1
    assert graph.top(text, scope=scope, k=0) == []


def steered(graph: StrategyGraph, scope: Scope, *, towards: UUID) -> EdgeStep:
    """Return a step that moves the weights of edges to one strategy up by 1 and those of the others down."""
    edges = graph.edges(scope=scope, kind=EdgeKind.PATH_STRATEGY)
    return EdgeStep.model_validate(
        {
            "query": "q", "strategy_id": towards, "probability": 0.5, "reward_with": 1.0, "reward_without": 0.0, "gradient_norm": 1.0,
            "deltas": [
                {"kind": e.kind, "source": e.source, "target": e.target, "delta": 1.0 if e.target == towards else -1.0} for e in edges
            ],
        }
    )  # fmt: skip


def test_drawing_at_random_is_by_the_given_generator(graph: StrategyGraph, scope: Scope) -> None:
    asked(graph, scope)
    names = ("amber", "birch", "cedar", "daisy", "elder", "fern")
    for name in names:
        written(graph, scope, advice(f"{name} {name} {name}"))
    drawn = [
        [each.strategy.summary for each in graph.top("who?", scope=scope, rank="random", rng=np.random.default_rng(n))]
        for n in (0, 0, 1, 2)
    ]
    assert drawn[0] == drawn[1]
    assert len({tuple(each) for each in drawn}) > 1
    assert all(len(set(each)) == 3 for each in drawn)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"text": " "}, "give a query in words"),
        ({"text": "a\0b"}, "give a query in words"),
        ({"k": -1}, "and 0 or more"),
        ({"rank": "best"}, "there is no rank 'best'"),
        ({"rank": "random"}, "give rng"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    graph: StrategyGraph, scope: Scope, given: dict[str, str | int], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        graph.top(**{"text": "q", **given}, scope=scope)  # type: ignore[arg-type]


@pytest.mark.parametrize("rank", RANKS)
def test_an_empty_graph_is_no_problem(graph: StrategyGraph, scope: Scope, rank: Rank) -> None:
    assert graph.top("who?", scope=scope, rank=rank, rng=np.random.default_rng(0)) == []
    assert graph.neighbours("who?", scope=scope) == graph.speculate("who?", scope=scope) == []
    assert graph.strategies_of(of(SEARCH), scope=scope) == graph.success_paths("q", scope=scope) == []
    assert not graph.activate("who?", scope=scope)
    assert graph.check(scope=scope) == []


def test_equally_similar_queries_come_in_the_order_in_which_they_were_added(graph: StrategyGraph, scope: Scope) -> None:
    for number in range(12):
        graph.add(NewQuery(text="who wrote it?", query_id=f"q{number}"), [took(SEARCH)], scope=scope)
    names = [node.query_id for node, _ in graph.neighbours("who wrote it?", scope=scope, k=5)]
    assert names == [f"q{number}" for number in range(5)]


def test_a_graph_built_twice_is_the_same(tmp_path: Path) -> None:
    def build(name: str) -> object:
        scope, rng = Scope(user="anna"), np.random.default_rng(5)
        with open_strategies(tmp_path / name, embedding="hashing") as graph:
            for number in range(20):
                states = [("Start", *(str(rng.integers(3)) for _ in range(2)), "End") for _ in range(3)]
                node = graph.add(
                    NewQuery(text=f"question {number} about {number % 4}"),
                    [took(each, float(rng.integers(2))) for each in states],
                    scope=scope,
                )
                graph.write(advice(f"advice {number % 7}"), [of(states[0])], scope=scope, reason="made up")
                active = graph.activate(node.text, scope=scope, exclude=node.name)
                if active:
                    steps = steered(graph, scope, towards=active.strategies[active.draw(rng)].id)
                    graph.apply(steps, scope=scope)
            named = {each.id: each.summary for each in graph.strategies(scope=scope)}
            edges = [(e.kind, e.source, named.get(e.target, e.target), e.weight) for e in graph.edges(scope=scope)]
            strategies = [(each.summary, each.score, each.evidence) for each in graph.strategies(scope=scope)]
            found = [(each.strategy.summary, each.score) for each in graph.top("question 3", scope=scope)]
            return edges, strategies, graph.paths(scope=scope), found

    assert build("one") == build("two")


# whose it is


def test_scopes_see_nothing_of_each_other(graph: StrategyGraph, scope: Scope) -> None:
    other = Scope(tenant=scope.tenant, user="boris")
    first, _ = two_worlds(graph, scope)
    assert graph.queries(scope=other) == graph.paths(scope=other) == graph.strategies(scope=other) == []
    assert graph.edges(scope=other) == graph.log(scope=other) == graph.updates(scope=other) == []
    assert graph.top("who wrote the red book?", scope=other) == []
    assert graph.query("book", scope=other) is None
    asked(graph, other)
    for call in (
        lambda: graph.strategy(first, scope=other),
        lambda: graph.link([of(SEARCH)], [first], scope=other),
        lambda: graph.write(advice(), [of(LONG)], scope=other, reason="r"),
        lambda: graph.remove(first, scope=other, reason="r"),
    ):
        with pytest.raises(UnknownMemoryError):
            call()
    with pytest.raises(ConflictError, match="there is no strategy"):
        graph.apply(a_step(graph, scope, delta=1.0), scope=other)
    nothing = a_step(graph, scope, delta=1.0).model_copy(update={"deltas": (), "reward_without": 1.0})
    with pytest.raises(ConflictError, match="there is no strategy"):
        graph.apply(nothing, scope=other)
    assert graph.updates(scope=other) == []
    assert {e.weight for e in graph.edges(scope=scope)} == {1.0}


def test_queries_and_strategies_are_no_memories(home: Path, graph: StrategyGraph, scope: Scope) -> None:
    two_worlds(graph, scope)
    with open_bank(home) as memories:
        assert memories.memories(scope=scope) == []
        assert memories.search("who wrote the red book?", scope=scope) == []


def test_a_purge_leaves_nothing(tmp_path: Path) -> None:
    anna, boris = Scope(user="anna"), Scope(user="boris")
    with open_strategies(tmp_path, embedding="hashing", settings=StrategySettings(snapshot_every=1)) as graph:
        for each in (anna, boris):
            graph.add(NewQuery(text=f"xylophone of {each.user}"), [took((f"S{each.user}secret",))], scope=each)
            graph.write(advice(f"{each.user}secret"), [of((f"S{each.user}secret",))], scope=each, reason="r")
            graph.apply(a_step(graph, each, delta=0.5), scope=each)
            assert graph.versions(scope=each)[-1].version == 1
        with open_bank(tmp_path) as bank:
            bank.purge(scope=anna)
        assert graph.queries(scope=anna) == graph.strategies(scope=anna) == graph.edges(scope=anna) == []
        assert graph.updates(scope=anna) == []
        assert [each.version for each in graph.versions(scope=anna)] == [0]
        assert len(graph.edges(scope=boris)) == 2
        asked(graph, anna)
        assert graph.check(scope=anna) == graph.check(scope=boris) == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if b"annasecret" in path.read_bytes()] == []
    with sqlite3.connect(tmp_path / "ledger.sqlite") as raw:
        rows = raw.execute(
            "SELECT COUNT(*) FROM memweave_graph_edges WHERE partition = ?", (anna.partition("strategies"),)
        )
        assert rows.fetchone() == (2,)  # those asked for since
    raw.close()


def test_threads_may_build_and_read_at_once(graph: StrategyGraph, scope: Scope) -> None:
    def work(number: int) -> None:
        asked(graph, scope, f"question {number}")
        written(graph, scope)
        graph.top(f"question {number}", scope=scope, exclude=NewQuery(text=f"question {number}").name)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(12)))
    assert len(graph.queries(scope=scope)) == 12
    (strategy,) = graph.strategies(scope=scope)  # found each time, by whoever came later
    assert strategy.evidence == 12
    assert graph.check(scope=scope) == []


# opening


def test_a_folder_of_before_there_were_graphs_opens(tmp_path: Path) -> None:
    scope = Scope(user="anna")
    with open_bank(tmp_path, embedding="hashing"):
        pass
    with sqlite3.connect(tmp_path / "ledger.sqlite") as raw:
        for name in ("paths", "edges", "steps", "snapshots", "moves"):
            raw.execute(f"DROP TABLE memweave_graph_{name}")
    raw.close()
    with open_strategies(tmp_path) as graph:
        two_worlds(graph, scope)
        assert graph.check(scope=scope) == []
        with open_bank(tmp_path) as bank:
            bank.purge(scope=scope)


def test_a_graph_survives_closing_and_belongs_to_its_encoder(tmp_path: Path) -> None:
    scope = Scope(user="anna")
    with open_strategies(tmp_path, embedding="hashing") as graph:
        two_worlds(graph, scope)
        graph.apply(a_step(graph, scope, delta=0.5), scope=scope)
        before = (
            graph.queries(scope=scope),
            graph.paths(scope=scope),
            graph.strategies(scope=scope),
            graph.edges(scope=scope),
        )
    with pytest.raises(EmbeddingMismatchError, match="memweave memory rebuild --embedding hashing:64"):
        open_strategies(tmp_path, embedding="hashing:64")
    with open_strategies(tmp_path) as graph:
        assert graph.encoder == "hashing:256"
        assert (
            graph.queries(scope=scope), graph.paths(scope=scope), graph.strategies(scope=scope), graph.edges(scope=scope)
        ) == before  # fmt: skip
    assert reembed(tmp_path, "hashing:64") == 4
    with open_strategies(tmp_path) as graph:
        assert graph.edges(scope=scope) == before[3]
        assert graph.top("who wrote the red book?", scope=scope, k=1)[0].strategy == before[2][0]


def test_a_closed_graph_says_so(tmp_path: Path, scope: Scope) -> None:
    graph = open_strategies(tmp_path, embedding="hashing")
    graph.close()
    with pytest.raises(UsageError, match="is closed"):
        graph.top("who?", scope=scope)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="initial_weight must lie between"):
        StrategySettings(initial_weight=9.0)


def test_async_twins_do_the_same(graph: StrategyGraph, scope: Scope) -> None:
    async def story() -> None:
        node = await graph.aadd(NewQuery(text="who wrote it?", query_id="q"), [took(SEARCH)], scope=scope)
        assert await graph.aquery("q", scope=scope) == node
        assert await graph.aqueries(scope=scope) == [node]
        change = await graph.awrite(advice(), [of(SEARCH)], scope=scope, reason="r")
        assert await graph.astrategies(scope=scope) == [change.strategy]
        assert await graph.astrategy(change.strategy.id, scope=scope) == change.strategy
        assert await graph.astrategies_of(of(SEARCH), scope=scope) == await graph.aspeculate("who?", scope=scope)
        assert await graph.apaths(scope=scope) == await graph.asuccess_paths("q", scope=scope)
        assert [each for each, _ in await graph.aneighbours("who wrote it?", scope=scope)] == [node]
        assert await graph.aactivate("who?", scope=scope)
        assert (await graph.atop("who?", scope=scope))[0].strategy == change.strategy
        update = await graph.aapply(a_step(graph, scope, delta=0.5), scope=scope)
        assert await graph.aupdates(scope=scope) == [update]
        assert await graph.aversion(scope=scope) == (await graph.asnapshot(scope=scope)).version == 1
        assert (await graph.arollback(0, scope=scope)).version == 2
        assert [each.version for each in await graph.aversions(scope=scope)] == [0, 1, 2]
        await graph.acontradict(change.strategy.id, scope=scope, reason="no")
        assert await graph.alink([of(SEARCH)], [change.strategy.id], scope=scope) == []
        gone = await graph.aremove(change.strategy.id, scope=scope, reason="no")
        await graph.aundo(gone.op_id, scope=scope)
        assert len(await graph.aedges(scope=scope)) == 2
        assert len(await graph.alog(scope=scope)) == 5
        assert await graph.acheck(scope=scope) == []
        lines = await graph.aexport(scope=scope)
        assert await graph.aimport(lines, scope=scope) == 0

    asyncio.run(story())

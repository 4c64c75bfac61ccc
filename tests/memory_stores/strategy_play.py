"""What tests of the strategy graph share: paths, queries with an outcome on each, and a graph of two worlds."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from memweave.graph_records import (
    EdgeKind,
    EdgeStep,
    NewQuery,
    NewStrategy,
    QueryNode,
    RolloutOutcome,
    StrategyChange,
    StrategyKind,
    path_id,
)
from memweave.memory_stores import StrategyGraph, StrategySettings
from memweave.records import Scope

SEARCH, GUESS, LONG = ("Start", "Search", "Right", "End"), ("Start", "Wrong", "End"), ("Start", "Plan", "Search", "End")


def took(states: Sequence[str], reward: float = 1.0, trace: str | None = None) -> RolloutOutcome:
    return RolloutOutcome(states=tuple(states), reward=reward, trace_id=trace)


def of(states: Sequence[str]) -> UUID:
    return path_id(StrategySettings().machine, states)


def advice(summary: str = "consider searching before you answer", score: int = 60, **given: object) -> NewStrategy:
    return NewStrategy.model_validate({"summary": summary, "kind": StrategyKind.CONTRAST, "score": score, **given})


def asked(graph: StrategyGraph, scope: Scope, text: str = "who wrote the red book?", **given: str) -> QueryNode:
    """Add a query that one rollout answered by searching, and one failed by guessing."""
    return graph.add(NewQuery(text=text, **given), [took(SEARCH), took(GUESS, 0.0)], scope=scope)  # type: ignore[arg-type]


def written(graph: StrategyGraph, scope: Scope, new: NewStrategy | None = None, **given: object) -> StrategyChange:
    return graph.write(new or advice(), [of(SEARCH), of(GUESS)], scope=scope, reason="contrast", **given)  # type: ignore[arg-type]


def a_step(graph: StrategyGraph, scope: Scope, *, delta: float) -> EdgeStep:
    """Return a step that adds `delta` to every edge to a strategy."""
    edges = graph.edges(scope=scope, kind=EdgeKind.PATH_STRATEGY)
    return EdgeStep.model_validate(
        {
            "query": "q", "strategy_id": edges[0].target, "probability": 0.5, "reward_with": 1.0, "reward_without": 0.0,
            "gradient_norm": 1.0,
            "deltas": [{"kind": e.kind, "source": e.source, "target": e.target, "delta": delta} for e in edges],
        }
    )  # fmt: skip


def two_worlds(graph: StrategyGraph, scope: Scope) -> tuple[UUID, UUID]:
    """Build a graph where questions about books lead to one strategy and those about songs to another; return both."""
    graph.add(NewQuery(text="who wrote the red book?", query_id="book"), [took(SEARCH), took(GUESS, 0.0)], scope=scope)
    graph.add(NewQuery(text="which band sang that song?", query_id="song"), [took(LONG)], scope=scope)
    first = graph.write(advice(), [of(SEARCH), of(GUESS)], scope=scope, reason="contrast").strategy
    second = graph.write(advice("count the steps", 70), [of(LONG)], scope=scope, reason="positive").strategy
    return first.id, second.id

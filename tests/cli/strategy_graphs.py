"""Graphs of strategies for the tests of `memweave strategies show`: random ones of any size, with trained weights and traces."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from uuid import UUID

from memweave.graph_records import EdgeKind, EdgeStep, NewQuery, NewStrategy, Principle, RolloutOutcome, StrategyKind
from memweave.memory_stores import StrategyGraph
from memweave.records import Scope, new_id
from memweave.tracing import Generation, Trace
from memweave.tracing.records import ChatMessage, Score

_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_WAYS = (
    "SequentialDependentPlanning",
    "ParallelIndependentPlanning",
    "SingleStepPlanning",
    "InternalKnowledgeConflict",
)
_STEPS = ("ToolExecution", "ToolFailure", "InformationAnalysis", "KnowledgeConflicting", "AssumptionBasedReasoning")
_TOPICS = ("novel", "river", "composer", "bridge", "treaty", "mountain", "vaccine", "painter", "satellite", "harbour")
_DEEDS = (
    "consider looking every step of the question up",
    "check what the tool returned against the question",
    "plan the steps in order when one needs the result of another",
    "search again in other words when nothing was found",
    "doubt what you remember about dates",
)


def trace(text: str, answer: str, reward: float) -> Trace:
    """Return a run of one call."""
    call = Generation(
        index=0, node="policy", messages=(ChatMessage(role="user", text=text),), reply=answer, started_at=_BEGIN
    )
    return Trace(
        id=new_id(), graph="graph-memory", generations=(call,), score=Score(value=reward), started_at=_BEGIN,
        ended_at=_BEGIN + timedelta(seconds=2),
    )  # fmt: skip


def build(
    graph: StrategyGraph, scope: Scope, *, queries: int, paths: int, strategies: int, steps: int = 60, seed: int = 0
) -> list[Trace]:
    """Fill a scope with as many nodes; each query has three rollouts, each with a trace. Return the traces."""
    rng = random.Random(seed)
    ways: list[tuple[str, ...]] = []
    while len(ways) < paths:
        steps_taken = rng.choices(_STEPS, k=rng.randint(1, 6))
        end = (
            ("SufficientInformation", "CorrectAnswer") if len(ways) % 2 else ("InsufficientInformation", "WrongAnswer")
        )
        way = ("Start", "CorrectGoalEstablished", rng.choice(_WAYS), *steps_taken, "DecisionMaking", *end, "End")
        if way not in ways:
            ways.append(way)
    traces: list[Trace] = []
    for number in range(queries):
        text = (
            f"Which {rng.choice(_TOPICS)} number {number} is older than the {rng.choice(_TOPICS)} of the same country?"
        )
        home = number * paths // queries
        outcomes = []
        for way in {home, (home + rng.randint(1, 3)) % paths, rng.randrange(paths)}:
            reward = float(ways[way][-2] == "CorrectAnswer")
            traces.append(trace(text, f"run {len(traces)} of {number}", reward))
            outcomes.append(RolloutOutcome(states=ways[way], reward=reward, trace_id=str(traces[-1].id)))
        graph.add(NewQuery(text=text, query_id=f"q{number}"), outcomes, scope=scope)
    nodes = [path.id for path in graph.paths(scope=scope)]
    made = [_strategy(graph, scope, nodes, number, strategies, rng) for number in range(strategies)]
    _train(graph, scope, made, traces, steps, rng)
    return traces


def _strategy(
    graph: StrategyGraph, scope: Scope, paths: list[UUID], number: int, total: int, rng: random.Random
) -> UUID:
    kind = tuple(StrategyKind)[number % 3]
    topic = _TOPICS[number % len(_TOPICS)]
    deed = _DEEDS[number // 3 % len(_DEEDS)]
    new = NewStrategy(
        summary=f"When a question about a {topic} goes {number % 7 + 2} steps far ({number}), {deed} before you answer.",
        principles=(Principle(text=f"{deed}, number {number}", score=70), Principle(text="answer briefly", score=45)),
        kind=kind,
        score=rng.choice((35, 50, 60, 75, 85)),
        uncertainty="It was seen on few questions.",
    )
    home = number * len(paths) // total
    linked = {paths[(home + step) % len(paths)] for step in range(3)} | {rng.choice(paths)}
    return graph.write(new, sorted(linked), scope=scope, reason=f"contrast of two rollouts, {number}").strategy.id


def _train(
    graph: StrategyGraph, scope: Scope, made: list[UUID], traces: list[Trace], steps: int, rng: random.Random
) -> None:
    """Move weights up and down, with the records that a training leaves."""
    from memweave.graph_records import EdgeDelta

    into: dict[UUID, list[UUID]] = {}
    for edge in graph.edges(scope=scope, kind=EdgeKind.PATH_STRATEGY):
        into.setdefault(edge.target, []).append(edge.source)
    for number in range(steps):
        chosen = made[number % len(made)]
        gap = 1.0 if rng.random() < 0.6 else -1.0
        deltas = tuple(
            EdgeDelta(kind=EdgeKind.PATH_STRATEGY, source=path, target=chosen, delta=gap * rng.uniform(0.2, 0.9))
            for path in into[chosen]
        )
        step = EdgeStep(
            query=f"training question {number}", query_id=f"t{number}", strategy_id=chosen, probability=0.25,
            reward_with=max(gap, 0.0), reward_without=max(-gap, 0.0), gradient_norm=0.5, deltas=deltas,
            trace_with=str(traces[2 * number % len(traces)].id), trace_without=str(traces[(2 * number + 1) % len(traces)].id),
        )  # fmt: skip
        graph.apply(step, scope=scope)

"""REINFORCE on a strategy graph: closed-form gradients against numbers by hand, torch and finite differences, and what a step does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memweave.errors import RewardError, SettingsError
from memweave.graph_records import EdgeKind, NewQuery, NewStrategy, RolloutOutcome, Strategy, StrategyKind
from memweave.memory_stores import StrategySettings, open_strategies
from memweave.memory_stores.strategy_activation import Activation, Sparse, activated, probabilities, relevance, sparse
from memweave.records import Scope
from memweave.trainers.edge_weights import Reinforce

Edges = Sequence[tuple[int, int, float]]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANNA = Scope(user="anna")

# Two neighbours, two paths, two strategies; masses 0.8 and 0.8 * 2 + 0.5 = 2.1; rho 2.25 and 2.1.
SIMILAR = (0.8, 0.5)
QUERY_PATH: Edges = ((0, 0, 1.0), (0, 1, 2.0), (1, 1, 1.0))
PATH_STRATEGY: Edges = ((0, 0, 1.5), (1, 0, 0.5), (1, 1, 1.0))


def strategy(number: int) -> Strategy:
    return Strategy(
        summary=f"strategy {number}", kind=StrategyKind.CONTRAST, score=60, id=UUID(int=number), scope=ANNA, recorded_at=NOW,
        version=1, evidence=1, contradictions=0,
    )  # fmt: skip


def by_source(sources: int, edges: Edges) -> Sparse:
    source, target = (np.array([edge[end] for edge in edges], dtype=np.int64) for end in (0, 1))
    return sparse(sources, source, target, np.array([edge[2] for edge in edges], dtype=np.float64))


def activation(
    similar: Sequence[float],
    query_path: Edges,
    path_strategy: Edges,
    *,
    temperature: float = 1.0,
    normalised: bool = False,
) -> Activation:
    """Return what a query activates whose neighbours are all queries of a graph."""
    paths = 1 + max((edge[1] for edge in query_path), default=-1)
    first = by_source(len(similar), query_path)
    second = by_source(max(paths, 1 + max((edge[0] for edge in path_strategy), default=-1)), path_strategy)
    reached, active, to_paths, to_strategies = activated(
        first, second, np.arange(len(similar)), degree_normalised=normalised
    )
    similarities = np.array(similar, dtype=np.float64)
    rho = relevance(to_paths, to_strategies, similarities, len(reached), len(active))
    return Activation(
        query="q", query_id=None, version=0, neighbours=tuple(UUID(int=100 + i) for i in range(len(similar))),
        similarities=similarities, paths=tuple(UUID(int=200 + int(j)) for j in reached),
        strategies=tuple(strategy(int(m)) for m in active), relevance=rho, probability=probabilities(rho, temperature),
        query_path=to_paths, path_strategy=to_strategies, temperature=temperature,
    )  # fmt: skip


@st.composite
def graphs(draw: st.DrawFn) -> Activation:
    """Return the activation of a random graph with at least one strategy."""
    neighbours, paths, strategies = (draw(st.integers(1, 4)) for _ in range(3))
    weights = st.floats(0, 5)

    def edges(sources: int, targets: int) -> list[tuple[int, int, float]]:
        pairs = [
            (0, 0),
            *((i, j) for i in range(sources) for j in range(targets) if (i, j) != (0, 0) and draw(st.booleans())),
        ]
        return [(i, j, draw(weights)) for i, j in pairs]

    similar = draw(st.lists(st.floats(0, 1), min_size=neighbours, max_size=neighbours))
    return activation(
        similar, edges(neighbours, paths), edges(paths, strategies),
        temperature=draw(st.sampled_from([0.5, 1.0, 2.0])), normalised=draw(st.booleans()),
    )  # fmt: skip


def log_p(active: Activation, chosen: int, query_path: torch.Tensor, path_strategy: torch.Tensor) -> torch.Tensor:
    """Return log p(m_chosen | q) by the definition, over every walk q_i -> t_j -> m."""
    similar = torch.tensor(active.similarities)
    rho = [torch.zeros((), dtype=torch.float64) for _ in active.strategies]
    to_paths, to_strategies = active.query_path, active.path_strategy
    for a, (i, j) in enumerate(zip(to_paths.source, to_paths.target, strict=True)):
        for b, (jj, m) in enumerate(zip(to_strategies.source, to_strategies.target, strict=True)):
            if j == jj:
                walk = similar[i] * query_path[a] * path_strategy[b]
                rho[m] = rho[m] + walk * to_paths.factor[a] * to_strategies.factor[b]
    return torch.log_softmax(torch.stack(rho) / active.temperature, 0)[chosen]


def test_relevance_probability_and_gradients_by_hand() -> None:
    active = activation(SIMILAR, QUERY_PATH, PATH_STRATEGY)
    assert active.relevance == pytest.approx([2.25, 2.1])
    other = 1 / (1 + math.exp(0.15))
    assert active.probability == pytest.approx([1 - other, other])
    gradient = active.gradient(0)
    assert gradient.query_path == pytest.approx([0.8 * 1.5 * other, 0.8 * -0.5 * other, 0.5 * -0.5 * other])
    assert gradient.path_strategy == pytest.approx([0.8 * other, 2.1 * other, -2.1 * other])
    assert gradient.query_path == pytest.approx([0.555084, -0.185028, -0.115643], abs=1e-5)
    assert gradient.norm == pytest.approx(
        math.sqrt(sum(x * x for x in (*gradient.query_path, *gradient.path_strategy)))
    )


def test_degree_normalisation_takes_means_where_sums_were() -> None:
    active = activation(SIMILAR, QUERY_PATH, PATH_STRATEGY, normalised=True)
    # masses: 0.8 * 1 / 2, and 0.8 * 2 / 2 + 0.5; the first strategy has two activated paths
    assert active.relevance == pytest.approx([(0.4 * 1.5 + 1.3 * 0.5) / 2, 1.3])


@given(graphs(), st.integers(0, 3))
def test_closed_form_is_what_autograd_says(active: Activation, number: int) -> None:
    chosen = number % len(active.strategies)
    first = torch.tensor(active.query_path.weight, requires_grad=True)
    second = torch.tensor(active.path_strategy.weight, requires_grad=True)
    said = log_p(active, chosen, first, second)
    said.backward()
    assert first.grad is not None
    assert second.grad is not None
    gradient = active.gradient(chosen)
    assert math.exp(float(said.detach())) == pytest.approx(active.probability[chosen])
    assert gradient.query_path == pytest.approx(first.grad.numpy(), abs=1e-9)
    assert gradient.path_strategy == pytest.approx(second.grad.numpy(), abs=1e-9)
    assert active.probability.sum() == pytest.approx(1)


@given(graphs())
def test_closed_form_is_what_finite_differences_say(active: Activation) -> None:
    gradient, step = active.gradient(0), 1e-5
    weights = np.concatenate([active.query_path.weight, active.path_strategy.weight])
    cut = len(active.query_path.weight)

    def at(values: np.ndarray) -> float:
        return float(log_p(active, 0, torch.tensor(values[:cut]), torch.tensor(values[cut:])))

    for place, expected in enumerate([*gradient.query_path, *gradient.path_strategy]):
        nudge = np.zeros_like(weights)
        nudge[place] = step
        assert (at(weights + nudge) - at(weights - nudge)) / (2 * step) == pytest.approx(expected, abs=1e-6)


def stepped(edges: Edges, kind: EdgeKind, deltas: Mapping[tuple[EdgeKind, UUID, UUID], float]) -> Edges:
    """Return edges of the example after a step; its strategies are numbered from 0, paths from 200, queries from 100."""
    source, target = (100, 200) if kind is EdgeKind.QUERY_PATH else (200, 0)
    return [(i, j, w + deltas.get((kind, UUID(int=source + i), UUID(int=target + j)), 0.0)) for i, j, w in edges]


@pytest.mark.parametrize(("gap", "higher"), [(1.0, True), (-1.0, False)])
@pytest.mark.parametrize("chosen", [0, 1])
def test_a_gain_makes_a_strategy_more_probable_and_a_loss_less(gap: float, higher: bool, chosen: int) -> None:
    before = activation(SIMILAR, QUERY_PATH, PATH_STRATEGY)
    step = Reinforce(0.05).step(
        before, chosen, max(gap, 0.0), max(-gap, 0.0), run_id="r", trace_with="a", trace_without="b"
    )
    deltas = {(each.kind, each.source, each.target): each.delta for each in step.deltas}
    after = activation(
        SIMILAR,
        stepped(QUERY_PATH, EdgeKind.QUERY_PATH, deltas),
        stepped(PATH_STRATEGY, EdgeKind.PATH_STRATEGY, deltas),
    )
    assert bool(after.probability[chosen] > before.probability[chosen]) is higher
    assert (step.gap, step.run_id, step.trace_with, step.trace_without) == (gap, "r", "a", "b")
    assert step.probability == pytest.approx(before.probability[chosen])
    assert step.strategy_id == before.strategies[chosen].id


def test_a_step_is_alpha_times_gap_times_gradient() -> None:
    active = activation(SIMILAR, QUERY_PATH, PATH_STRATEGY)
    gradient = active.gradient(1)
    step = Reinforce(0.1).step(active, 1, 0.25, 0.75)
    assert [each.delta for each in step.deltas] == pytest.approx(
        [0.1 * -0.5 * x for x in (*gradient.query_path, *gradient.path_strategy)]
    )
    assert step.gradient_norm == pytest.approx(gradient.norm)


@given(graphs(), st.lists(st.floats(0, 1), min_size=4, max_size=4), st.floats(0, 1))
def test_expected_steps_of_all_strategies_add_up_to_the_gradient_of_the_expected_gap(
    active: Activation, rewards: list[float], without: float
) -> None:
    first = torch.tensor(active.query_path.weight, requires_grad=True)
    second = torch.tensor(active.path_strategy.weight, requires_grad=True)
    gaps = [reward - without for reward in rewards[: len(active.strategies)]]
    expected = sum(torch.exp(log_p(active, place, first, second)) * gap for place, gap in enumerate(gaps))
    assert isinstance(expected, torch.Tensor)
    expected.backward()
    assert first.grad is not None
    assert second.grad is not None
    total = dict.fromkeys(active.edges(), 0.0)
    for place in range(len(active.strategies)):
        for each in Reinforce(0.5, expected=True).step(active, place, rewards[place], without).deltas:
            total[each.kind, each.source, each.target] += each.delta
    want = 0.5 * np.concatenate([first.grad.numpy(), second.grad.numpy()])
    assert list(total.values()) == pytest.approx(want, abs=1e-9)


@given(graphs(), st.floats(0, 1))
def test_no_gap_is_no_change(active: Activation, reward: float) -> None:
    step = Reinforce().step(active, 0, reward, reward)
    assert (step.deltas, step.gap) == ((), 0.0)


@pytest.mark.parametrize(
    "rewards", [(1.5, 0.0), (0.0, -0.1), (math.nan, 0.0), (0.0, math.inf), (None, 0.0), ("1", 0.0)]
)
def test_a_reward_out_of_its_range_is_refused(rewards: tuple[Any, float]) -> None:
    with pytest.raises(RewardError, match="a reward is a number from 0 to 1"):
        Reinforce().step(activation(SIMILAR, QUERY_PATH, PATH_STRATEGY), 0, *rewards)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_learning_rate_is_above_0(rate: float) -> None:
    with pytest.raises(SettingsError, match="learning_rate"):
        Reinforce(rate)


def test_what_is_not_activated_cannot_be_tried() -> None:
    active = activation(SIMILAR, QUERY_PATH, PATH_STRATEGY)
    with pytest.raises(IndexError, match="no strategy 2"):
        Reinforce().step(active, 2, 1.0, 0.0)
    nothing = activation((0.5,), ((0, 0, 1.0),), ())
    assert not nothing
    assert nothing.best(3) == []
    with pytest.raises(ValueError, match="nothing to draw"):
        nothing.draw(np.random.default_rng(0))
    with pytest.raises(ValueError, match="is not activated"):
        active.place(UUID(int=9))


@pytest.mark.parametrize("normalised", [False, True])
def test_the_better_of_two_strategies_wins(tmp_path: Path, normalised: bool) -> None:
    """A bandit on a graph on disk: one strategy helps in 9 of 10 rollouts, the other in 3; without any it is 5."""
    helps, without, rng, learner = (0.3, 0.9), 0.5, np.random.default_rng(0), Reinforce(0.2)
    settings = StrategySettings(degree_normalised=normalised)
    with open_strategies(tmp_path, embedding="hashing:64", settings=settings) as graph:
        outcomes = [RolloutOutcome(states=("Start", name, "End"), reward=1.0) for name in ("A", "B")]
        graph.add(NewQuery(text="who wrote this?"), outcomes, scope=ANNA)
        for path, summary in zip(graph.paths(scope=ANNA), ("guess at once", "search for it first"), strict=True):
            new = NewStrategy(summary=summary, kind=StrategyKind.POSITIVE, score=50)
            graph.write(new, [path.id], scope=ANNA, reason="made up")
        first = graph.activate("who wrote that?", scope=ANNA)
        assert first.probability == pytest.approx([0.5, 0.5])
        for _ in range(150):
            active = graph.activate("who wrote that?", scope=ANNA)
            chosen = active.draw(rng)
            rewards = float(rng.random() < helps[chosen]), float(rng.random() < without)
            graph.apply(learner.step(active, chosen, *rewards), scope=ANNA)
        last = graph.activate("who wrote that?", scope=ANNA)
        assert last.probability[1] > 0.9
        assert graph.top("who wrote that?", scope=ANNA, k=1)[0].strategy.summary == "search for it first"
        assert graph.check(scope=ANNA) == []

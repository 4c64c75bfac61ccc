"""Do weights find what is useful? Strategies' relevance for a question against what they are worth by many rollouts (specification, D2).

What a strategy is worth for a kind of question is the mean gap of rollouts with and without it, on held-out questions of that kind. Nothing
is trained on it, and only the measurement knows the kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from uuid import UUID

import numpy as np
from langchain_core.language_models import BaseChatModel

from memweave.graphs.graph_memory_guidance import Advisor
from memweave.memory_stores.strategy_graph import ScoredStrategy, StrategyGraph
from memweave.recipes.graph_memory.arms import NONE, Advice, advise, measured
from memweave.recipes.graph_memory.keeping import SCOPE
from memweave.worlds.fsmqa import KINDS, FSMQATask, Kind

Worth = Mapping[UUID, Mapping[Kind, float]]
"""Mean gap by strategy and kind."""


@dataclass(frozen=True)
class UtilityResult:
    """How the ranks of strategies agree with their worth."""

    rollouts: int
    """Of each strategy for each kind, and without any."""
    worth: dict[str, dict[str, float]]
    """Mean gap by summary and kind."""
    before: tuple[float, ...]
    """Spearman's rank correlation for each question, every weight 1."""
    after: tuple[float, ...]
    """The same with the weights as they are."""

    def payload(self) -> dict[str, object]:
        """Return it as JSON."""
        return asdict(self)


def utility(
    model: BaseChatModel,
    graph: StrategyGraph,
    tasks: Sequence[FSMQATask],
    *,
    rollouts: int,
    seed: int,
    progress: Callable[[int, int], object] | None = None,
) -> UtilityResult:
    """Return the agreement of rank and worth over questions. rollouts: of each strategy for each kind."""
    worth = monte_carlo(model, graph, tasks, rollouts=rollouts, seed=seed, progress=progress)
    before, after = [], []
    for task in tasks:
        ranks = {
            rank: graph.top(task.text, scope=SCOPE, k=len(worth), exclude=task.id, rank=rank)
            for rank in ("uniform", "weights")
        }
        own = [worth[each.strategy.id][task.kind] for each in ranks["uniform"]]
        if len(set(own)) < 2:
            continue  # one strategy, or all worth the same: there is no order to be found
        before.append(spearman([each.score for each in ranks["uniform"]], own))
        own = [worth[each.strategy.id][task.kind] for each in ranks["weights"]]
        after.append(spearman([each.score for each in ranks["weights"]], own))
    names = {each.id: each.summary for each in graph.strategies(scope=SCOPE)}
    return UtilityResult(
        rollouts=rollouts,
        worth={names[key]: {kind.value: round(gap, 4) for kind, gap in each.items()} for key, each in worth.items()},
        before=tuple(round(each, 4) for each in before),
        after=tuple(round(each, 4) for each in after),
    )


def monte_carlo(
    model: BaseChatModel,
    graph: StrategyGraph,
    tasks: Sequence[FSMQATask],
    *,
    rollouts: int,
    seed: int,
    progress: Callable[[int, int], object] | None = None,
) -> Worth:
    """Return what each strategy of a graph is worth for each kind of question: `rollouts` with it minus as many without."""
    strategies = graph.strategies(scope=SCOPE)
    plain = _shares(model, tasks, advise(NONE, graph, tasks, k=0, seed=seed), rollouts, seed)
    found: dict[UUID, dict[Kind, float]] = {}
    for number, strategy in enumerate(strategies, 1):
        guidance, _ = Advisor(profile="none").advise([ScoredStrategy(strategy, 0.0, None, None)])
        shares = _shares(model, tasks, {task.id: guidance for task in tasks}, rollouts, seed)
        found[strategy.id] = {kind: shares[kind] - plain[kind] for kind in plain}
        if progress is not None:
            progress(number, len(strategies))
    return found


def _shares(
    model: BaseChatModel, tasks: Sequence[FSMQATask], advice: Advice, rollouts: int, seed: int
) -> dict[Kind, float]:
    """Return the share of right rollouts by kind, over at least `rollouts` of each kind that is there, over the questions in turn."""
    own = {kind: [task for task in tasks if task.kind is kind] for kind in KINDS}
    found: dict[Kind, list[float]] = {kind: [] for kind in KINDS if own[kind]}
    turn = 0
    while any(len(marks) < rollouts for marks in found.values()):
        part = [task for kind, marks in found.items() for task in own[kind][: max(0, rollouts - len(marks))]]
        given = {task.id: advice[task.id] for task in part}
        outcome = measured(model, part, given, seed=1_000_003 * (seed + 1) + turn)
        for task, mark in zip(part, outcome.right, strict=True):
            found[task.kind].append(float(mark))
        turn += 1
    return {kind: fmean(marks) for kind, marks in found.items()}


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Spearman's rank correlation, in [-1, 1]; equal values share the mean of their ranks; 0 when one side has no order."""
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / length if length else 0.0


def _ranks(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    given = np.asarray(values, dtype=np.float64)
    return np.array([(given < each).sum() + ((given == each).sum() - 1) / 2 for each in given], dtype=np.float64)

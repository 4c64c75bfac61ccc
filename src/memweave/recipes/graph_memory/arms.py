"""The arms of FSM-QA: what a policy is advised before each question, and what came of it (specification, section 7, D1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Final

import numpy as np
from langchain_core.language_models import BaseChatModel

from memweave.errors import OperationError, SettingsError
from memweave.graphs.graph_memory_guidance import Advisor
from memweave.graphs.graph_memory_play import Job, Player
from memweave.graphs.graph_memory_state import Guidance
from memweave.memory_stores.strategy_graph import Rank, StrategyGraph
from memweave.recipes.graph_memory.keeping import SCOPE
from memweave.recipes.graph_memory.rollouts import Episodes, query_task
from memweave.worlds.fsmqa import FSMQATask

Advice = Mapping[str, Guidance | None]
"""By the id of a question."""
NONE: Final = "none"
RAW: Final = "raw"
RANKED: Final[Mapping[str, Rank]] = {
    "trained": "weights",
    "uniform": "uniform",
    "random": "random",
    "similarity": "similarity",
    "confidence": "confidence",
}
ARMS: Final = (NONE, "uniform", "trained", "random", "similarity", "confidence", RAW)
"""none: no advice.  trained, uniform: the top-k strategies by rho, weights as they are or all 1.  random: any strategies of the graph.
similarity: by cosine of question and summary, no graph.  confidence: activated ones by their score.  raw: right runs of the most similar
questions instead of strategies."""
SHOWN: Final = 1
"""Strategies in a prompt: training draws one, so that one is what weights learn to find (docs/log.md). The paper shows 3."""
AT_ONCE: Final = 32
"""Rollouts at the same time."""


@dataclass(frozen=True)
class Measured:
    """What a policy did on some questions."""

    right: str
    """One `1` or `0` for each question, in their order."""
    calls: float = 0.0
    """Mean of searches."""
    unreadable: float = 0.0
    """Share of rollouts that ended without an answer, those included that outgrew the policy's context: they count as wrong."""

    @property
    def score(self) -> float:
        """Return the share of exact matches."""
        return fmean(map(float, self.right)) if self.right else 0.0

    def payload(self) -> dict[str, object]:
        """Return it as JSON."""
        return asdict(self)


def advise(
    arm: str,
    graph: StrategyGraph,
    tasks: Sequence[FSMQATask],
    *,
    k: int,
    seed: int,
    trajectories: Mapping[str, str] | None = None,
) -> dict[str, Guidance | None]:
    """Return what each question is advised. k: strategies, or trajectories.  seed: of what is drawn at random.

    Raises `SettingsError` for an arm that there is not.
    """
    if arm not in ARMS:
        raise SettingsError(f"there is no arm {arm!r}. There are: {', '.join(ARMS)}")
    if arm == NONE or k == 0:
        return {task.id: None for task in tasks}
    if arm == RAW:
        return {task.id: _raw(graph, task, k, trajectories or {}) for task in tasks}
    rng = np.random.default_rng([seed, 7])
    advisor = Advisor(profile="none")
    found = {}
    for task in tasks:
        top = graph.top(task.text, scope=SCOPE, k=k, exclude=task.id, rank=RANKED[arm], rng=rng)
        found[task.id] = advisor.advise(top)[0]
    return found


def _raw(graph: StrategyGraph, task: FSMQATask, k: int, trajectories: Mapping[str, str]) -> Guidance | None:
    near = graph.neighbours(task.text, scope=SCOPE, k=4 * k, exclude=task.id)
    shown = [trajectories[query.name] for query, _ in near if query.name in trajectories][:k]
    lines = "\n".join(f"- {text.replace('</advice', '&lt;/advice')}" for text in shown)
    return Guidance(text=f"<advice>\n{lines}\n</advice>") if shown else None


def measured(
    model: BaseChatModel,
    tasks: Sequence[FSMQATask],
    advice: Advice,
    *,
    seed: int,
    run: str = "eval",
    progress: Callable[[int, int], object] | None = None,
) -> Measured:
    """Return what a policy does on questions, each once. seed: of what searches find; with equal seeds arms have the same luck.

    Raises `OperationError` when a rollout did not run to its end: what is left out would change the score.
    """
    player = Player(Episodes.of(model, tasks, seed), run, AT_ONCE)
    right, calls, silent = "", 0, 0
    for start in range(0, len(tasks), 2 * AT_ONCE):
        part = tasks[start : start + 2 * AT_ONCE]
        jobs = [Job(query_task(task), "eval", 0, seed, advice[task.id], pair=0) for task in part]
        for played in player.play(jobs):
            refused = played.record is not None and played.record.status == "model_error"
            if played.record is None or (played.reward is None and not refused):
                raise OperationError(
                    f"a rollout of the evaluation failed ({played.failure and played.failure.reason}). Run it again"
                )
            right += str(int(played.reward or 0))
            calls += len(played.record.calls)
            silent += played.record.answer is None
        if progress is not None:
            progress(len(right), len(tasks))
    number = max(1, len(tasks))
    return Measured(right, round(calls / number, 4), round(silent / number, 4))

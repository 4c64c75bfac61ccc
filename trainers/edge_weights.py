"""REINFORCE on the weights of a strategy graph: what a strategy gained or cost moves the edges that led to it (section 4.2, algorithm 2).

    L = -E_{m ~ p}[ Delta R log p(m | q) ],     w <- w + alpha Delta R grad log p(m | q),     Delta R = R_with - R_without

The gap is its own baseline. Gradients are in closed form (`Activation.gradient`), so no torch is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import numpy as np

from memweave.errors import RewardError, SettingsError
from memweave.graph_records import EdgeStep
from memweave.memory_stores.strategy_activation import Activation


@dataclass(frozen=True)
class Reinforce:
    """Makes steps from rollouts with and without a strategy. The graph that takes a step keeps the weights in their bounds."""

    learning_rate: float = 0.05
    """alpha; the paper names none."""
    expected: bool = False
    """Weigh each step by p(m | q). For all strategies of a query they add up to the gradient of the expected gap, sum_m p(m | q) Delta R_m,
    which one that is drawn estimates."""

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise SettingsError(f"learning_rate = {self.learning_rate}: give a number above 0")

    def step(
        self,
        activation: Activation,
        chosen: int,
        reward_with: float,
        reward_without: float,
        *,
        run_id: str | None = None,
        trace_with: str | None = None,
        trace_without: str | None = None,
    ) -> EdgeStep:
        """Return the step for one query; a gap of 0 changes nothing.

        chosen: the place of the strategy that was tried (`Activation.draw`, `Activation.place`).  reward_with, reward_without: of the
        rollout with that strategy in the prompt, and of the one without any, or means of several; in [0, 1].

        Raises `RewardError` for a reward that is none, `IndexError` for a place that does not exist.
        """
        for name, reward in (("reward_with", reward_with), ("reward_without", reward_without)):
            if not isinstance(reward, Real) or not 0 <= reward <= 1:
                raise RewardError(f"{name} = {reward} for {activation.query[:60]!r}: a reward is a number from 0 to 1")
        if not 0 <= chosen < len(activation.strategies):
            raise IndexError(f"there is no strategy {chosen} among {len(activation.strategies)} activated ones")
        gradient = activation.gradient(chosen)
        gap = reward_with - reward_without
        deltas: list[dict[str, object]] = []  # records are made of all of them at once, which is faster
        if gap:
            share = float(activation.probability[chosen]) if self.expected else 1.0
            changes = self.learning_rate * share * gap * np.concatenate([gradient.query_path, gradient.path_strategy])
            deltas = [
                {"kind": kind, "source": source, "target": target, "delta": delta}
                for (kind, source, target), delta in zip(activation.edges(), changes.tolist(), strict=True)
                if delta
            ]
        return EdgeStep(
            query=activation.query,
            query_id=activation.query_id,
            strategy_id=activation.strategies[chosen].id,
            probability=max(float(activation.probability[chosen]), 1e-300),
            reward_with=reward_with,
            reward_without=reward_without,
            gradient_norm=gradient.norm,
            deltas=deltas,  # type: ignore[arg-type]
            run_id=run_id,
            trace_with=trace_with,
            trace_without=trace_without,
        )

"""A reward gap: one query with a strategy and without, from a common seed, and the step of the weights that it makes (section 4.2).

This module does not know where queries come from, or when training ends.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from memweave.agents.advice import BUDGET
from memweave.agents.rendering import Profile
from memweave.errors import SettingsError
from memweave.graph_records import EdgeStep, WeightUpdate
from memweave.graphs.graph_memory_guidance import Advisor
from memweave.graphs.graph_memory_play import (
    PARALLEL,
    ROLLOUT_TIMEOUT,
    Failure,
    Job,
    Played,
    Player,
    QueryTask,
    RolloutSource,
    TraceKeeper,
    name_of,
)
from memweave.graphs.graph_memory_state import Guidance
from memweave.memory_stores.strategy_activation import Activation
from memweave.memory_stores.strategy_graph import ScoredStrategy, StrategyGraph
from memweave.records import Record, Scope

RECENT: Final = 64
"""Latest steps among which one is looked for that was taken already; a batch has at most as many."""


class Learner(Protocol):
    """Makes a step of the weights of a reward gap; `memweave.trainers.edge_weights.Reinforce` is one."""

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
        """Return the step for one query."""


# records


class Trial(Record):
    """A strategy that is tried out on a query."""

    task: QueryTask
    guidance: Guidance
    """With the one strategy, its relevance and its probability."""
    activated: int
    """Strategies that the query activates."""


class Pair(Record):
    """What both sides of a trial were worth."""

    trial: Trial
    reward_with: float
    """Mean of the rollouts of that side."""
    reward_without: float
    trace_with: str | None = None
    """Of the first rollout of that side."""
    trace_without: str | None = None

    @property
    def gap(self) -> float:
        """Return Delta R."""
        return self.reward_with - self.reward_without


class WeightRow(Record):
    """One step that was taken, with what led to it (section 3)."""

    update: WeightUpdate
    epoch: int
    relevance: float | None
    activated: int

    def event(self) -> dict[str, object]:
        """Return it for a custom stream."""
        update = self.update
        return {
            "type": "weights",
            "query_id": update.query_id,
            "strategy": str(update.strategy_id),
            "probability": update.probability,
            "gap": update.gap,
            "version": update.version,
        }


Tried = tuple[WeightRow | None, tuple[Failure, ...]]
"""The step of one query, if one was taken, and what went wrong."""


@dataclass(frozen=True)
class Pairing:
    """How a gap is measured, and what is done with it."""

    player: Player
    learner: Learner
    advisor: Advisor
    samples: int
    seed: int

    def rng(self, *about: object) -> np.random.Generator:
        """Return a generator of its own for each purpose, so that a run that is gone on with draws the same."""
        name = "\0".join(map(str, (self.seed, *about)))
        return np.random.default_rng(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "big"))

    def draw(self, task: QueryTask, activation: Activation, epoch: int | str) -> Trial | Failure | None:
        """Return a strategy drawn from p(m | q), to be tried out; `None` when nothing is activated."""
        if not activation:
            return None
        place = activation.draw(self.rng("draw", epoch, name_of(task)))
        guidance, left_out = self.advisor.advise([scored(activation, place)])
        if guidance is None:
            return Failure(kind="too_long", reason="; ".join(left_out), query_id=task.query_id)
        return Trial(task=task, guidance=guidance, activated=len(activation.strategies))

    def jobs(self, trials: Sequence[Trial], iteration: int) -> list[Job]:
        """Return both sides of each trial, side by side; a pair draws the same random numbers (B12)."""
        found = []
        for trial in trials:
            for pair in range(self.samples):
                found.append(Job(trial.task, "with", 2 * pair, iteration, trial.guidance, pair))
                found.append(Job(trial.task, "without", 2 * pair + 1, iteration, None, pair))
        return found

    def pairs(self, trials: Sequence[Trial], played: Sequence[Played]) -> tuple[list[Pair], list[Failure]]:
        """Return what both sides of each trial were worth; a trial of which a rollout failed says nothing."""
        pairs: list[Pair] = []
        failures: list[Failure] = []
        each = 2 * self.samples
        for number, trial in enumerate(trials):
            own = played[number * each : (number + 1) * each]
            failed = [one.failure for one in own if one.failure is not None]
            failures += failed
            if not failed:
                pairs.append(_pair(trial, own[::2], own[1::2]))
        return pairs, failures

    def step(self, memory: StrategyGraph, pair: Pair, *, scope: Scope, epoch: int = 0) -> WeightRow | None:
        """Take a step and return it; `None` when the strategy has gone since it was drawn.

        A run that broke off after the step was taken, and is gone on with, finds it there.
        """
        (shown,), task = pair.trial.guidance.strategies, pair.trial.task
        update = _taken(memory, pair, scope)
        if update is None:
            activation = memory.activate(task.text, scope=scope, exclude=name_of(task))
            try:
                chosen = activation.place(shown.id)
            except ValueError:
                return None
            step = self.learner.step(
                activation,
                chosen,
                pair.reward_with,
                pair.reward_without,
                run_id=self.player.run,
                trace_with=pair.trace_with,
                trace_without=pair.trace_without,
            )
            update = memory.apply(step, scope=scope)
        return WeightRow(update=update, epoch=epoch, relevance=shown.relevance, activated=pair.trial.activated)

    # one query alone

    def try_out(self, memory: StrategyGraph, task: QueryTask, *, scope: Scope, run: str) -> Tried:
        """Draw a strategy for a query, measure its gap and take the step. run: of the draw.  Raises as `Player.play`."""
        trial = self.draw(task, memory.activate(task.text, scope=scope, exclude=name_of(task)), run)
        if not isinstance(trial, Trial):
            return None, (trial,) if trial else ()
        pairs, failures = self.pairs([trial], self.player.play(self.jobs([trial], 0)))
        return (self.step(memory, pairs[0], scope=scope) if pairs else None), tuple(failures)

    async def atry_out(self, memory: StrategyGraph, task: QueryTask, *, scope: Scope, run: str) -> Tried:
        """Do what `try_out` does."""
        trial = self.draw(task, await memory.aactivate(task.text, scope=scope, exclude=name_of(task)), run)
        if not isinstance(trial, Trial):
            return None, (trial,) if trial else ()
        pairs, failures = self.pairs([trial], await self.player.aplay(self.jobs([trial], 0)))
        row = await asyncio.to_thread(self.step, memory, pairs[0], scope=scope) if pairs else None
        return row, tuple(failures)


def scored(activation: Activation, place: int) -> ScoredStrategy:
    """Return an activated strategy with what it was drawn by."""
    relevance = float(activation.relevance[place])
    return ScoredStrategy(activation.strategies[place], relevance, relevance, float(activation.probability[place]))


def _pair(trial: Trial, with_: Sequence[Played], without: Sequence[Played]) -> Pair:
    return Pair(
        trial=trial,
        reward_with=_mean(with_),
        reward_without=_mean(without),
        trace_with=_trace_id(with_[0]),
        trace_without=_trace_id(without[0]),
    )


def _mean(side: Sequence[Played]) -> float:
    rewards = [each.reward for each in side if each.reward is not None]
    return sum(rewards) / len(rewards)


def _trace_id(played: Played) -> str | None:
    return str(played.trace.id) if played.trace else None


def _taken(memory: StrategyGraph, pair: Pair, scope: Scope) -> WeightUpdate | None:
    """Return the step that was taken of a pair before the run broke off, if it was."""
    if pair.trace_with is None:
        return None
    latest = memory.updates(scope=scope, limit=RECENT)
    return next((each for each in reversed(latest) if each.trace_with == pair.trace_with), None)


def paired_rollouts(
    rollout: RolloutSource,
    learner: Learner,
    *,
    samples: int = 1,
    seed: int = 0,
    advice_chars: int = BUDGET,
    profile: Profile = "full",
    run: str = "weights",
    parallel: int = PARALLEL,
    rollout_timeout: float = ROLLOUT_TIMEOUT,
    traces: TraceKeeper | None = None,
) -> Pairing:
    """Return how reward gaps are measured and learned from.

    rollout: of `create_rollout_graph`, or which one a job is done with; it has to know what an answer is worth.  learner: makes a step of
    a gap; `memweave.trainers.edge_weights.Reinforce`.  samples: pairs per query, whose mean is the gap; 1 is the paper's.  seed: of
    draws.  advice_chars: of the advice in a prompt.  profile: `none` for policies that were trained on advice in its tags alone.
    run: name of the run in traces and updates.  parallel: rollouts at the same time.  rollout_timeout: seconds for one.  traces: where
    traces are kept.

    Raises `SettingsError` for a number below 1.
    """
    if samples < 1:
        raise SettingsError(f"samples = {samples}: give 1 at least")
    player = Player(rollout, run, parallel, rollout_timeout, traces)
    return Pairing(player, learner, Advisor(advice_chars, profile), samples, seed)

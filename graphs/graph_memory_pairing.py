"""A reward gap: one query with a strategy and without, from a common seed, and the step of the weights that it makes (section 4.2).

This module does not know where queries come from, or when training ends.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Final, Protocol
from uuid import UUID

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

SLACK: Final = timedelta(seconds=1)
"""By which the id of a trace may be ahead of the clock that its step is dated with."""


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


Tried = tuple[list[WeightRow], tuple[Failure, ...]]
"""The steps that were taken for one query, and what went wrong."""


@dataclass(frozen=True)
class Pairing:
    """How a gap is measured, and what is done with it."""

    player: Player
    learner: Learner
    advisor: Advisor
    samples: int
    seed: int
    every: bool = False
    """Try all strategies that a query activates against the same rollouts without, instead of one that is drawn."""
    tried: frozenset[tuple[str, UUID]] = frozenset()
    """Query and strategy of what is not tried again."""

    def rng(self, *about: object) -> np.random.Generator:
        """Return a generator of its own for each purpose, so that a run that is gone on with draws the same."""
        name = "\0".join(map(str, (self.seed, *about)))
        return np.random.default_rng(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "big"))

    def trials(self, task: QueryTask, activation: Activation, epoch: int | str) -> list[Trial | Failure]:
        """Return what is tried out on a query: a strategy drawn from p(m | q), or all of them; nothing when none is activated."""
        if not activation:
            return []
        name, count = name_of(task), len(activation.strategies)
        if self.every:
            places = [at for at in range(count) if (name, activation.strategies[at].id) not in self.tried]
        else:
            places = [activation.draw(self.rng("draw", epoch, name))]
        return [self._trial(task, activation, place) for place in places]

    def _trial(self, task: QueryTask, activation: Activation, place: int) -> Trial | Failure:
        guidance, left_out = self.advisor.advise([scored(activation, place)])
        if guidance is None:
            return Failure(kind="too_long", reason="; ".join(left_out), query_id=task.query_id)
        return Trial(task=task, guidance=guidance, activated=len(activation.strategies))

    def jobs(self, trials: Sequence[Trial], iteration: int) -> list[Job]:
        """Return both sides of each trial, side by side; trials of one query have the side without in common.

        All sides of a query draw the same random numbers (B12).
        """
        found = []
        for own in _by_query(trials):
            for number, trial in enumerate(own):
                for pair in range(self.samples):
                    replica = 2 * (number * self.samples + pair)
                    found.append(Job(trial.task, "with", replica, iteration, trial.guidance, pair))
                    if not number:
                        found.append(Job(trial.task, "without", replica + 1, iteration, None, pair))
        return found

    def pairs(self, trials: Sequence[Trial], played: Sequence[Played]) -> tuple[list[Pair], list[Failure]]:
        """Return what both sides of each trial were worth; a trial of which a rollout failed says nothing."""
        pairs: list[Pair] = []
        left = list(played)
        for own in _by_query(trials):
            first, left = left[: 2 * self.samples], left[2 * self.samples :]
            sides, without = [first[::2]], first[1::2]
            for _ in own[1:]:
                sides.append(left[: self.samples])
                left = left[self.samples :]
            for trial, with_ in zip(own, sides, strict=True):
                if all(one.failure is None for one in (*with_, *without)):
                    pairs.append(_pair(trial, with_, without))
        return pairs, [one.failure for one in played if one.failure is not None]

    def taken(self, memory: StrategyGraph, pairs: Sequence[Pair], *, scope: Scope) -> dict[str, WeightUpdate]:
        """Return the steps of a batch that were taken before the run broke off, by the trace of the side with."""
        traces = {pair.trace_with for pair in pairs if pair.trace_with is not None}
        if not traces:
            return {}
        latest = memory.updates(scope=scope, since=min(map(_began, traces)) - SLACK)
        return {each.trace_with: each for each in latest if each.trace_with in traces and each.trace_with}

    def steps(self, memory: StrategyGraph, pairs: Sequence[Pair], *, scope: Scope, epoch: int = 0) -> list[WeightRow]:
        """Take a step for each pair, in their order; none when its strategy has gone since it was drawn.

        A run that broke off after a step was taken, and is gone on with, finds it there.
        """
        taken = self.taken(memory, pairs, scope=scope)
        rows = [self._step(memory, pair, taken.get(pair.trace_with or ""), scope, epoch) for pair in pairs]
        return [row for row in rows if row is not None]

    def _step(
        self, memory: StrategyGraph, pair: Pair, update: WeightUpdate | None, scope: Scope, epoch: int
    ) -> WeightRow | None:
        (shown,), task = pair.trial.guidance.strategies, pair.trial.task
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
        """Try out what a query activates and take the steps; those that were taken for it before are returned, and stay the only ones.

        run: of the draw.  Raises as `Player.play`.
        """
        activation = memory.activate(task.text, scope=scope, exclude=name_of(task))
        if before := self._earlier(memory, task, activation, scope):
            return before, ()
        trials, failures = apart(self.trials(task, activation, run))
        pairs, failed = self.pairs(trials, self.player.play(self.jobs(trials, 0)))
        return self.steps(memory, pairs, scope=scope), (*failures, *failed)

    async def atry_out(self, memory: StrategyGraph, task: QueryTask, *, scope: Scope, run: str) -> Tried:
        """Do what `try_out` does."""
        activation = await memory.aactivate(task.text, scope=scope, exclude=name_of(task))
        if before := await asyncio.to_thread(self._earlier, memory, task, activation, scope):
            return before, ()
        trials, failures = apart(self.trials(task, activation, run))
        pairs, failed = self.pairs(trials, await self.player.aplay(self.jobs(trials, 0)))
        return await asyncio.to_thread(self.steps, memory, pairs, scope=scope), (*failures, *failed)

    def _earlier(self, memory: StrategyGraph, task: QueryTask, activation: Activation, scope: Scope) -> list[WeightRow]:
        """Return the steps that were taken for this query already. Its rollouts were others', so their traces do not tell."""
        taken = memory.updates(scope=scope, query_id=name_of(task))
        return [
            WeightRow(update=each, epoch=0, relevance=None, activated=len(activation.strategies))
            for each in taken
            if each.run_id == self.player.run
        ]


def _began(trace_id: str) -> datetime:
    """Return when a trace of ours began: its id is a UUIDv7."""
    return datetime.fromtimestamp((UUID(trace_id).int >> 80) / 1_000, UTC)


def apart(found: Sequence[Trial | Failure]) -> tuple[list[Trial], list[Failure]]:
    """Return the trials, and the failures."""
    return [each for each in found if isinstance(each, Trial)], [each for each in found if isinstance(each, Failure)]


def _by_query(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Return neighbouring trials of one query together."""
    return [list(own) for _, own in groupby(trials, key=lambda trial: name_of(trial.task))]


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
    every: bool = False,
    tried: Collection[tuple[str, UUID]] = (),
) -> Pairing:
    """Return how reward gaps are measured and learned from.

    rollout: of `create_rollout_graph`, or which one a job is done with; it has to know what an answer is worth.  learner: makes a step of
    a gap; `memweave.trainers.edge_weights.Reinforce`.  samples: pairs per query, whose mean is the gap; 1 is the paper's.  seed: of
    draws.  advice_chars: of the advice in a prompt.  profile: `none` for policies that were trained on advice in its tags alone.
    run: name of the run in traces and updates.  parallel: rollouts at the same time.  rollout_timeout: seconds for one.  traces: where
    traces are kept.  every: try all strategies that a query activates, against the same rollouts without, instead of one that is drawn;
    with `Reinforce(expected=True)` their steps add up to the gradient of the expected gap, which drawing estimates.  tried: names of
    queries, and strategies, that are not tried (again) then.

    Raises `SettingsError` for a number below 1.
    """
    if samples < 1:
        raise SettingsError(f"samples = {samples}: give 1 at least")
    player = Player(rollout, run, parallel, rollout_timeout, traces)
    return Pairing(player, learner, Advisor(advice_chars, profile), samples, seed, every, frozenset(tried))

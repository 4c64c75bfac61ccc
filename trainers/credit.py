"""Credit: pure functions from the scores of traces to the advantage of each generation.

A credit compares episodes of one group, which started from the same state. An episode without a score, or that failed, is
no reward of 0: it is left out of mean and deviation, and counted. `memory_hop` is in `memweave.trainers.hops`.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

import numpy as np

from memweave.errors import SettingsError
from memweave.tracing import Score, Trace, TraceStatus
from memweave.trainers.rows import Advantages

Scale = Literal["group", "batch", "none"]
"""What centred rewards are divided by: the deviation within the group, that of all rewards of the batch, or 1."""

Excluded = Literal[
    "failed_run", "unscored", "group_of_one", "zero_variance", "no_own_reward", "unread_write", "no_stage", "other_stage",
    "no_tool",
]  # fmt: skip
"""Why a generation has no credit. zero_variance: its group was dropped for it.  no_own_reward: `per_role`, `per_stage`.
unread_write: `memory_hop`.  no_stage, other_stage, no_tool: `memweave.trainers.stages`."""


@dataclass(frozen=True, slots=True)
class Group:
    """Traces of one task, sampled from the same state.

    Traces with the same `replica` are parts of one episode, one after the other on one branch of the memory.
    """

    id: str
    traces: tuple[Trace, ...]


@dataclass(frozen=True, slots=True)
class CreditReport:
    """What was compared. Rewards are those that the credit compares: one per trace, or per role, stage or generation."""

    groups: int
    """Sets of rewards that were compared: groups, or with roles, (group, role)."""
    zero_variance: int
    """Of these, how many had equal rewards, so that nothing is learned from them."""
    group_of_one: int
    """Groups (or (group, role)) with rewards of fewer than two episodes: nothing to compare."""
    rewards: int
    reward_mean: float | None
    """Over the compared rewards; `None` when there is none."""
    reward_std: float | None
    """Sample deviation of the compared rewards; `None` when there are fewer than two."""
    credited: int
    """Generations with an advantage."""
    excluded: dict[Excluded, int]
    """Generations without one, by reason."""


@dataclass(frozen=True, slots=True)
class CreditResult:
    """Advantages by (trace id, generation index), and how they came about."""

    advantages: Advantages
    report: CreditReport


Credit = Callable[[Sequence[Group]], CreditResult]


@dataclass(slots=True)
class Rewarded:
    """A reward and the generations whose advantage it decides. episode: rewards of one episode are no comparison.

    weight: how often it counts in mean and deviation.
    """

    reward: float
    episode: object
    generations: list[tuple[UUID, int]]
    weight: int = 1


@dataclass(slots=True)
class Excluding:
    """Counts generations without credit."""

    counts: Counter[Excluded] = field(default_factory=Counter)

    def ready(self, trace: Trace, *, scored: bool = True) -> bool:
        """Return whether `trace` ended well and (with `scored`) has a score; count its generations if not."""
        if trace.status is not TraceStatus.OK:
            self.counts["failed_run"] += len(trace.generations)
            return False
        if scored and trace.score is None:
            self.counts["unscored"] += len(trace.generations)
            return False
        return True


def broadcast(
    *, scale: Scale = "group", epsilon: float = 1e-6, drop_zero_variance: bool = False, step_pooled: bool = False
) -> Credit:
    """Return the credit that gives every generation of an episode the episode's advantage.

    A = (r - mean of the group) / (sample deviation + epsilon): GRPO, and AgeMem's step-wise GRPO (arXiv 2601.01885,
    section 3.4, algorithm 2: deviation with K - 1). `scale="none"` only centres (Dr. GRPO). A group of equal rewards gets
    0, or with `drop_zero_variance` no credit, so that a KL term does not train on it either.

    step_pooled: mean and deviation over all steps of the group, as AgeMem's released code has them (A7): an episode of T steps
    counts T times, so a longer one pulls the mean towards its reward. A step is a generation whose tokens are known. If all
    episodes have T steps, the mean is the same and the deviation sqrt(T (K - 1) / (T K - 1)) times that over K episodes.
    """
    check_scaling(scale, epsilon)

    def credit(groups: Sequence[Group]) -> CreditResult:
        out = Excluding()
        compared = []
        for group in groups:
            ready = [(trace, trace.score) for trace in group.traces if out.ready(trace)]
            compared.append(
                [
                    Rewarded(score.value, episode_of(trace), keys_of(trace), _steps(trace) if step_pooled else 1)
                    for trace, score in ready
                    if score
                ]
            )
        return compare(compared, out, scale=scale, epsilon=epsilon, drop_zero_variance=drop_zero_variance)

    return credit


def per_role(
    parts: Mapping[str, str] | None = None,
    *,
    otherwise: Literal["exclude", "broadcast"] = "exclude",
    scale: Scale = "group",
    epsilon: float = 1e-6,
    drop_zero_variance: bool = False,
) -> Credit:
    """Return the credit that compares each role's own reward, `Score.parts[role]`, within (group, role).

    parts: which part of the score is a role's reward, where it is not named as the role; a role is a generation's
    `actor` (role, else node).  otherwise: what a generation gets whose role has no part in its trace's score: no credit,
    or the advantage of the whole score among the group's episodes.
    """
    check_scaling(scale, epsilon)
    names = dict(parts or {})

    def credit(groups: Sequence[Group]) -> CreditResult:
        out = Excluding()
        compared: list[list[Rewarded]] = []
        for group in groups:
            by_role: dict[str | None, list[Rewarded]] = {}
            for trace in group.traces:
                if not out.ready(trace) or trace.score is None:
                    continue
                for role, keys in _by_role(trace, names, trace.score).items():
                    if role is None and otherwise == "exclude":
                        out.counts["no_own_reward"] += len(keys)
                        continue
                    reward = trace.score.value if role is None else trace.score.parts[names.get(role, role)]
                    by_role.setdefault(role, []).append(Rewarded(reward, episode_of(trace), keys))
            compared += by_role.values()
        return compare(compared, out, scale=scale, epsilon=epsilon, drop_zero_variance=drop_zero_variance)

    return credit


def shuffled(credit: Credit, seed: int) -> Credit:
    """Return the control for `credit`: it sees the scores of the batch's scored episodes dealt out at random.

    The scores stay the same, so mean and deviation of the batch do; what they say about an episode is lost. Whoever learns
    under this learns from something else than the reward. The deal depends on `seed`, the iteration and the groups' ids.
    """

    def control(groups: Sequence[Group]) -> CreditResult:
        scored = [t for g in groups for t in g.traces if t.score is not None and t.status is TraceStatus.OK]
        where = ";".join([str(scored[0].iteration if scored else None), *(group.id for group in groups)])
        order = np.random.default_rng([seed, zlib.crc32(where.encode())]).permutation(len(scored))
        dealt = {trace.id: scored[other].score for trace, other in zip(scored, order, strict=True)}
        return credit([Group(g.id, tuple(_with_score(t, dealt.get(t.id)) for t in g.traces)) for g in groups])

    return control


def compare(
    compared: Iterable[Sequence[Rewarded]], out: Excluding, *, scale: Scale, epsilon: float, drop_zero_variance: bool
) -> CreditResult:
    """Return the advantages of rewards within each of the sets `compared`; what they leave out is added to `out`."""
    sets, groups_of_one = [], 0
    for rewarded in compared:
        if len({one.episode for one in rewarded if one.weight}) < 2:
            groups_of_one += bool(rewarded)
            out.counts["group_of_one"] += sum(len(one.generations) for one in rewarded)
        else:
            sets.append(rewarded)
    rewards = [reward for rewarded in sets for reward in _counted(rewarded)]
    batch = _deviation(rewards)
    advantages: dict[tuple[UUID, int], float] = {}
    flat = 0
    for rewarded in sets:
        values = _counted(rewarded)
        equal = min(values) == max(values)
        flat += equal
        if equal and drop_zero_variance:
            out.counts["zero_variance"] += sum(len(one.generations) for one in rewarded)
            continue
        mean = math.fsum(values) / len(values)
        divisor = 1.0
        if scale != "none":
            divisor = ((_deviation(values) if scale == "group" else batch) or 0.0) + epsilon
        for one in rewarded:
            advantage = 0.0 if equal else (one.reward - mean) / divisor
            advantages.update(dict.fromkeys(one.generations, advantage))
    report = CreditReport(
        groups=len(sets),
        zero_variance=flat,
        group_of_one=groups_of_one,
        rewards=len(rewards),
        reward_mean=math.fsum(rewards) / len(rewards) if rewards else None,
        reward_std=batch,
        credited=len(advantages),
        excluded={reason: n for reason, n in out.counts.items() if n},
    )
    return CreditResult(advantages, report)


def keys_of(trace: Trace) -> list[tuple[UUID, int]]:
    """Return the keys of a trace's generations."""
    return [(trace.id, generation.index) for generation in trace.generations]


def episode_of(trace: Trace) -> object:
    """Return what tells the episodes of a group apart: the replica, or for a trace without one, the trace."""
    return trace.id if trace.replica is None else trace.replica


def _counted(rewarded: Sequence[Rewarded]) -> list[float]:
    """Return each reward as often as it counts."""
    return [one.reward for one in rewarded for _ in range(one.weight)]


def _steps(trace: Trace) -> int:
    """Return how many generations have known tokens: those of a hosted judge or summarizer are no steps of the policy."""
    return sum(bool(generation.token_ids) for generation in trace.generations)


def _by_role(trace: Trace, names: Mapping[str, str], score: Score) -> dict[str | None, list[tuple[UUID, int]]]:
    """Return the generations of each role that has a reward of its own; those of the others under `None`."""
    found: dict[str | None, list[tuple[UUID, int]]] = {}
    for generation in trace.generations:
        role = generation.actor
        own = role if names.get(role, role) in score.parts else None
        found.setdefault(own, []).append((trace.id, generation.index))
    return found


def _deviation(values: Sequence[float]) -> float | None:
    """Return the sample deviation (n - 1), or `None` for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _with_score(trace: Trace, score: Score | None) -> Trace:
    return trace if score is None else trace.model_copy(update={"score": score})


def check_scaling(scale: str, epsilon: float) -> None:
    """Raise `SettingsError` for a scale or an epsilon that does not exist."""
    if scale not in ("group", "batch", "none"):
        raise SettingsError(f"scale {scale!r} is none of group, batch, none.")
    if not epsilon >= 0:
        raise SettingsError(f"epsilon {epsilon} must be 0 or more.")

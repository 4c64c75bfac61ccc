"""From tasks to rows with credit: run the episodes, keep what can be compared, say what was left out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

from memweave.errors import GroupError, NoPolicyError, RewardError, UnavailableError
from memweave.serving.server import PublishedPolicy
from memweave.tracing.records import Trace, TraceStatus
from memweave.trainers.credit import Credit, Group
from memweave.trainers.rows import Row, RowReport, assign, build_rows

if TYPE_CHECKING:
    from memweave.trainers.grpo_config import TraceGRPOConfig
    from memweave.trainers.rollouts import Rollouts, Task

EQUAL = 1e-8
"""Spread below which the scores of a group count as equal."""


@dataclass
class Collected:
    """Rows of one generation batch, and what happened on the way."""

    rows: list[Row]
    metrics: dict[str, float] = field(default_factory=dict)


class Collector:
    """Runs the episodes of a generation batch and credits them. Only on the main process."""

    least = 2
    """Scored episodes that a group needs, since credit compares them."""

    def __init__(self, rollouts: Rollouts, credit: Credit, args: TraceGRPOConfig) -> None:
        self._rollouts, self._credit, self._args = rollouts, credit, args

    def collect(self, tasks: Sequence[Task], iteration: int, published: PublishedPolicy) -> Collected:
        """Return rows of `num_generations` episodes of each task.

        Raises `UnavailableError`, `RewardError` or `NoPolicyError` when there is nothing to train on.
        """
        began = time.perf_counter()
        groups = self._rollouts.run(
            tasks,
            group_size=self._args.num_generations,
            run=self._args.run,
            iteration=iteration,
            policy_version=published.version,
        )
        ran = time.perf_counter()
        metrics = episode_metrics(groups)
        metrics["time/rollout"] = ran - began
        if ran > began:
            metrics["tokens/per_second"] = metrics["tokens/generated"] / (ran - began)
        comparable = [group for group in groups if len(scores(group)) >= self.least]
        metrics["groups/excluded"] = float(len(groups) - len(comparable))
        if not comparable:
            raise nothing_scored(groups, iteration, self.least)
        rows, report = self._rows(comparable, published)
        metrics.update(row_metrics(report, rows))
        metrics["time/rows"] = time.perf_counter() - ran
        return Collected(rows, metrics)

    def _rows(self, groups: Sequence[Group], published: PublishedPolicy) -> tuple[list[Row], RowReport]:
        traces = [trace for group in groups for trace in group.traces]
        built = build_rows(
            traces,
            policy_version=published.version,
            temperature=self._args.temperature,
            actors=self._args.actors,
            max_length=self._args.max_row_length,
            drop_truncated=self._args.mask_truncated_completions,
            scored=False,  # credit decides: a write may be credited by the score of a later trace
        )
        if not built.rows:
            raise nothing_trained(traces, published, built.report)
        return assign(built.rows, self._credit(groups).advantages), built.report


def scores(group: Group) -> list[float]:
    """Return the scores of the episodes that have one."""
    return [trace.score.value for trace in group.traces if trace.score is not None]


def nothing_scored(groups: Sequence[Group], iteration: int, least: int = 2) -> Exception:
    """Return the error that says why no group can be compared: the server, or the reward."""
    traces = [trace for group in groups for trace in group.traces]
    ended = Counter(trace.status for trace in traces)
    how = ", ".join(f"{number} {status}" for status, number in sorted(ended.items()))
    alone = sum(len(scores(group)) == 1 for group in groups)
    first = next((trace.error for trace in traces if trace.error), None)
    because = f"; the first error: {first}" if first else ""
    enough = "two scored episodes" if least == 2 else "a scored episode"
    where = f"none of the {len(groups)} groups of generation batch {iteration} has {enough} ({how})"
    if ended[TraceStatus.UNAVAILABLE] or ended[TraceStatus.TIMEOUT]:
        return UnavailableError(f"{where}{because}. Check the policy server, then resume the run")
    if alone:
        return GroupError(f"{where}: {alone} have one, which cannot be compared with anything{because}")
    return RewardError(f"{where}{because}. The reward must return a number or a Score")


def nothing_trained(traces: Sequence[Trace], published: PublishedPolicy, report: RowReport) -> NoPolicyError:
    """Return the error that says why no generation can be trained on."""
    calls = report.generations
    if not calls:
        return NoPolicyError(
            f"{len(traces)} episodes made no model call. Build the graph on the server's chat_model, and let its nodes call it"
        )
    why = (
        ", ".join(f"{number} x {reason}" for reason, number in sorted(report.refusals.items())) or "no actor was chosen"
    )
    return NoPolicyError(
        f"none of {calls} model calls in {len(traces)} episodes can be trained on as {published.name} ({why}). "
        "Build the graph on the server's chat_model, at the trainer's temperature"
    )


def episode_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Return rewards, how episodes ended, and how much was generated."""
    traces = [trace for group in groups for trace in group.traces]
    scored = [trace.score for trace in traces if trace.score is not None]
    found: dict[str, float] = {}
    if scored:
        values = [score.value for score in scored]
        found["reward"] = fmean(values)
        found["reward_std"] = pstdev(values)
        spreads = [pstdev(values) for group in groups if len(values := scores(group)) >= 2]
        if spreads:
            found["frac_reward_zero_std"] = fmean(spread < EQUAL for spread in spreads)
    for name in sorted({part for score in scored for part in score.parts}):
        found[f"rewards/{name}/mean"] = fmean(score.parts[name] for score in scored if name in score.parts)
    found["episodes/excluded"] = float(len(traces) - len(scored))
    for status, number in Counter(trace.status for trace in traces).items():
        if status is not TraceStatus.OK:
            found[f"episodes/{status}"] = float(number)
    found["tokens/generated"] = float(sum(len(g.token_ids or ()) for trace in traces for g in trace.generations))
    return found


def row_metrics(report: RowReport, rows: Sequence[Row]) -> dict[str, float]:
    """Return how generations became rows, and what was refused."""
    found = {
        "rows/count": float(len(rows)),
        "rows/merge_ratio": float(report.merge_ratio),
        "rows/forks": float(sum(report.forks.values())),
        "rows/refused": float(sum(report.refusals.values())),
        "rows/without_credit": float(report.rows - len(rows)),
        "tokens/rows": float(report.tokens),
        "tokens/trained": float(sum(int(row.mask.sum()) for row in rows)),
    }
    for reason, number in report.refusals.items():
        found[f"rows/refused/{reason}"] = float(number)
    for fork, number in report.forks.items():
        found[f"rows/forks/{fork}"] = float(number)
    return found

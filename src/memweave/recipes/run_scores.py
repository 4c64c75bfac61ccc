"""What the stored episodes of a run come to: scores of steps, their parts, groups without spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from memweave.errors import OperationError
from memweave.tracing import Trace, TraceStore
from memweave.trainers.credit import Group


def scores(traces: Sequence[Trace]) -> list[float]:
    """Return the scores of the episodes that have one."""
    return [trace.score.value for trace in traces if trace.score is not None]


def mean_score(groups: Sequence[Group], what: str) -> float:
    """Return the mean score of the episodes of some groups. Raises `OperationError`, naming `what`, when none has one."""
    found = scores([trace for group in groups for trace in group.traces])
    if not found:
        raise OperationError(f"the {what} scored no episode; `memweave traces list` shows how they ended")
    return fmean(found)


def by_step(store: TraceStore, run: str, count: int) -> list[list[Trace]]:
    """Return the traces of each step. An episode that was sampled again after a crash counts once, as it was last."""
    last = {(t.iteration, t.group, t.replica): t for t in store.iterate(run=run, newest=False)}
    steps: list[list[Trace]] = [[] for _ in range(count)]
    for trace in last.values():
        if trace.iteration is not None and trace.iteration < count:
            steps[trace.iteration].append(trace)
    return steps


def zero_std(step: Sequence[Trace]) -> float:
    """Return the share of groups in which all scores are equal; groups without a score count as such."""
    groups: dict[str | None, set[float]] = {}
    for trace in step:
        groups.setdefault(trace.group, set()).update([trace.score.value] if trace.score is not None else [])
    return fmean(len(scores) < 2 for scores in groups.values()) if groups else 1.0


def parts(steps: Sequence[Sequence[Trace]]) -> Mapping[str, Sequence[float]]:
    """Return the mean of each named part, step by step."""
    names = sorted({name for step in steps for trace in step if trace.score for name in trace.score.parts})
    found: dict[str, list[float]] = {}
    for name in names:
        for step in steps:
            values = [t.score.parts[name] for t in step if t.score is not None and name in t.score.parts]
            if values:
                found.setdefault(name, []).append(fmean(values))
    return found

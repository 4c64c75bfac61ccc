"""The tables of Memento in docs/results.md, made from the JSON files of the streams.

Trees of marks are seed -> iteration -> task; differences are paired task by task. Intervals: hierarchical bootstrap, 95 %.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from agemem import OPEN, percent

from memweave.metrics import Interval, hierarchical_bootstrap, paired_bootstrap

Tree = list[list[list[float]]]
"""Seed -> iteration -> task."""
RESAMPLES: Final = 4_000
SEEDS: Final = (1, 2, 3, 4, 5)
NAMED: Final = {
    "none": "none",
    "retries": "none, with a second try",
    "random-k": "random K",
    "cosine": "**cosine** (non-parametric)",
    "successes": "cosine, only solved tasks kept",
    "kernel": "kernel",
    "neural-q": "**neural Q** (parametric)",
    "shuffled": "neural Q, shuffled rewards",
    "oracle": "oracle",
}
"""What the arms are called, in the order of the table."""


class Streams:
    """The streams in a results folder."""

    def __init__(self, results: Path) -> None:
        self.folder = results / "planworld"

    def of(self, arm: str, name: str = "", seeds: Sequence[int] = SEEDS) -> dict[int, Mapping[str, Any]]:
        """Return the streams of an arm that are there, by seed."""
        found = {}
        for seed in seeds:
            file = self.folder / f"{arm}{name}-s{seed}.json"
            if file.exists():
                found[seed] = json.loads(file.read_text())["streams"][str(seed)]
        return found


def marks(streams: Mapping[int, Mapping[str, Any]], part: str = "right", last: bool = False) -> Tree:
    """Return the marks of streams, of all iterations or the last one."""
    found = [[[float(mark) for mark in marks] for marks in stream[part]] for _, stream in sorted(streams.items())]
    return [iterations[-1:] for iterations in found] if last else found


def unseen(streams: Mapping[int, Mapping[str, Any]]) -> Tree:
    """Return the marks in unseen families."""
    return [[[float(mark) for mark in stream["unseen"]]] for _, stream in sorted(streams.items())]


def score(tree: Tree) -> str:
    """Return the mean with its interval, in points."""
    return percent(hierarchical_bootstrap(tree, resamples=RESAMPLES))


def minus(
    one: Mapping[int, Mapping[str, Any]],
    other: Mapping[int, Mapping[str, Any]],
    of: Callable[[Mapping[int, Mapping[str, Any]]], Tree] = marks,
) -> Interval | None:
    """Return the paired difference on the seeds that both have; `None` without any."""
    seeds = sorted({*one} & {*other})
    if not seeds:
        return None
    a, b = (of({seed: side[seed] for seed in seeds}) for side in (one, other))
    return paired_bootstrap(a, b, resamples=RESAMPLES)


def last(streams: Mapping[int, Mapping[str, Any]]) -> Tree:
    """Return the marks of the last iteration."""
    return marks(streams, last=True)


def per_iteration(streams: Mapping[int, Mapping[str, Any]], part: str = "right") -> str:
    """Return the mean of each iteration, in percent."""
    columns = zip(*marks(streams, part), strict=True)
    return " / ".join(f"{100 * fmean(mark for one in column for mark in one):.1f}" for column in columns)


def main_table(results: Path) -> str:
    """Return each arm: overall, per iteration, share of the gap between none and oracle, unseen families."""
    streams = Streams(results)
    none, oracle = streams.of("none"), streams.of("oracle")
    if not none or not oracle:
        return OPEN
    lines = [
        "| shown | seeds | solved, % | per iteration | gap to the oracle closed | shown cases that fit, last iteration | unseen families |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, name in NAMED.items():
        found = streams.of(arm)
        if found:
            fit = fmean(stream["shown"][-1] for stream in found.values())
            lines.append(
                f"| {name} | {len(found)} | {score(marks(found))} | {per_iteration(found)} | {gap(found, none, oracle)} "
                f"| {100 * fit:.0f} % | {score(unseen(found))} |"
            )
    return "\n".join(lines)


def gap(found: Mapping[int, Any], none: Mapping[int, Any], oracle: Mapping[int, Any]) -> str:
    """Return (arm - none) / (oracle - none) over the seeds that all have, in percent."""
    seeds = {*found} & {*none} & {*oracle}
    mean = [
        fmean(mark for seed in seeds for iteration in marks({seed: side[seed]})[0] for mark in iteration)
        for side in (found, none, oracle)
    ]
    return f"{100 * (mean[0] - mean[1]) / (mean[2] - mean[1]):.0f} %" if seeds and mean[2] != mean[1] else ""


def claims(results: Path) -> str:
    """Return the bars, and the differences that are reported beside them."""
    streams = Streams(results)
    if not streams.of("cosine") or not streams.of("neural-q"):
        return OPEN
    lines = ["| difference, points | all iterations | last iteration | bar | |", "|---|---|---|---|---|"]

    def line(one: str, other: str, bar: str = "") -> None:
        a, b = streams.of(one), streams.of(other)
        whole, end = minus(a, b), minus(a, b, last)
        if whole is None or end is None:
            return
        met = ("met" if whole.low > 0 else "**missed**") if bar else ""
        lines.append(
            f"| {one} minus {other} | {percent(whole, sign=True)} | {percent(end, sign=True)} | {bar} | {met} |"
        )

    for arm in ("cosine", "neural-q"):
        for other in ("none", "random-k", "retries"):
            line(arm, other, "above 0")
    line("neural-q", "cosine")
    line("neural-q", "shuffled")
    line("cosine", "successes")
    line("kernel", "cosine")
    none = streams.of("none")
    first = [[one[0]] for one in marks(none)]
    flat = percent(_apart(last(none), first), sign=True)
    lines.append(f"| none, last minus first iteration | {flat} | | holds 0 | |")
    for arm in ("cosine", "neural-q", "random-k"):
        difference = minus(streams.of(arm), none, unseen)
        if difference is not None:
            lines.append(f"| {arm} minus none, unseen families | {percent(difference, sign=True)} | | | |")
    return "\n".join(lines)


def _apart(one: Tree, other: Tree) -> Interval:
    """Return the difference where tasks are not the same: seeds pair, tasks do not."""
    differences = [[fmean(a[0]) - fmean(b[0])] for a, b in zip(one, other, strict=True)]
    return hierarchical_bootstrap(differences, resamples=RESAMPLES)


def alignments(results: Path) -> str:
    """Return parametric against non-parametric memory over the alignment of texts with rules."""
    streams = Streams(results)
    lines = [
        "| alignment | seeds | none | cosine | neural Q | neural Q minus cosine | last iteration | cosine minus none |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for share in ("1", "0.7", "0.4", "0.1"):
        name = "" if share == "0.7" else f"-alignment-{share}"
        none, cosine, q = (streams.of(arm, name) for arm in ("none", "cosine", "neural-q"))
        whole, end, gain = minus(q, cosine), minus(q, cosine, last), minus(cosine, none)
        if whole is None or end is None or gain is None:
            continue
        lines.append(
            f"| {share} | {len(q)} | {score(marks(none))} | {score(marks(cosine))} | {score(marks(q))} "
            f"| {percent(whole, sign=True)} | {percent(end, sign=True)} | {percent(gain, sign=True)} |"
        )
    return "\n".join(lines) if len(lines) > 2 else OPEN


def sweep(results: Path) -> str:
    """Return how many cases are shown, with cosine."""
    streams = Streams(results)
    lines = ["| K | seeds | solved, % | last iteration |", "|---|---|---|---|"]
    for k in (0, 1, 2, 4, 8, 16, 32):
        arm, name = ("none", "") if k == 0 else ("cosine", "" if k == 4 else f"-k-{k}")
        found = streams.of(arm, name, (1, 2))
        if found:
            lines.append(f"| {k} | {len(found)} | {score(marks(found))} | {score(last(found))} |")
    return "\n".join(lines) if len(lines) > 3 else OPEN


def repeated(results: Path) -> str:
    """Return the paper's mode: the same tasks in each iteration."""
    streams = Streams(results)
    lines = [
        "| shown | seeds | solved per iteration, % | solved at least once, % |",
        "|---|---|---|---|",
    ]
    for arm in ("none", "cosine", "neural-q"):
        found = streams.of(arm, "-repeated", (1, 2))
        if found:
            lines.append(
                f"| {NAMED[arm]} | {len(found)} | {per_iteration(found)} | {per_iteration(found, 'cumulative')} |"
            )
    return "\n".join(lines) if len(lines) > 2 else OPEN


MEMENTO_TABLES: Final = {
    "memento-claims": claims,
    "memento-streams": main_table,
    "memento-alignment": alignments,
    "memento-k": sweep,
    "memento-repeated": repeated,
}

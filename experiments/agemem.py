"""The tables of AgeMem in docs/results.md, made from the JSON files of the queue.

Trees of marks are seed -> episode; differences are paired episode by episode. An evaluation of one seed stands for every seed. Intervals:
hierarchical bootstrap, 95 %.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from memweave.metrics import Interval, hierarchical_bootstrap, paired_bootstrap

Tree = list[list[float]]
"""Seed -> episode."""
RESAMPLES: Final = 4_000
OPEN: Final = "(not run yet)"


class Results:
    """What lies in the results folder about AgeMem."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def cells(self, recipe: str, arm: str, cell: str = "greedy") -> list[Mapping[str, Any]]:
        """Return a cell of the tests of an arm's runs, by seed."""
        files = sorted((self.folder / recipe).glob(f"{arm}-local-s*.json"))
        tests = [json.loads(file.read_text())["test"] for file in files]
        return [test[cell] for test in tests if cell in test]

    def evaluation(self, name: str) -> Mapping[str, Any] | None:
        """Return what an evaluation found; `None` when it has not been run."""
        file = self.folder / "memhop" / f"{name}.json"
        found: Mapping[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
        return found

    def marks(self, name: str) -> Tree:
        """Return the marks of an evaluation, by seed of sampling; empty when it has not been run."""
        found = self.evaluation(name)
        return [] if found is None else [[float(m) for m in marks] for _, marks in sorted(found["right"].items())]


def right(cells: Sequence[Mapping[str, Any]]) -> Tree:
    """Return the marks of cells."""
    return [[float(mark) for mark in cell["right"]] for cell in cells]


def listed(cells: Sequence[Mapping[str, Any]], what: str) -> Tree:
    """Return a list per episode (`mq`, `tokens`) of cells."""
    return [list(cell[what]) for cell in cells]


def minus(one: Tree, other: Tree) -> Interval:
    """Return the paired difference; where the seeds are not as many, the other side's mean over seeds stands for each."""
    if len(other) != len(one):
        other = [[fmean(column) for column in zip(*other, strict=True)]] * len(one)
    return paired_bootstrap(one, other, resamples=RESAMPLES)


def percent(interval: Interval, *, sign: bool = False) -> str:
    """Return `61.2 [58.0, 64.1]`."""
    form = "{:+.1f}" if sign else "{:.1f}"
    mean, low, high = (form.format(100 * value) for value in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def plain(interval: Interval) -> str:
    """Return `-12.3 [-15.0, -9.8]`."""
    return f"{interval.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"


def score(tree: Tree) -> str:
    """Return the mean of marks with its interval."""
    return percent(hierarchical_bootstrap(tree, resamples=RESAMPLES))


def mean_of(cells: Sequence[Mapping[str, Any]], part: str) -> float:
    """Return the mean over seeds of a part."""
    return fmean(cell["means"].get(part, 0.0) for cell in cells)


def ladder(folder: Path) -> str:
    """Return the ablation: Base, +LT, +LT/ST without training, RL without memory, +LT/RL, +LT/ST/RL; greedy and at T = 1."""
    results = Results(folder)
    lines = [
        "| agent | seeds | greedy | minus Base | minus +LT | T = 1 | tokens | MQ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base, lt = results.marks("base-none"), results.marks("base-rag")
    if not base or not lt:
        return OPEN
    untrained = (("Base", "base-none"), ("+LT", "base-rag"), ("+LT/ST, untrained", "base-full"))
    for name, file in untrained:
        found, marks, warm = results.evaluation(file), results.marks(file), results.marks(f"{file}-t1")
        if found is None:
            continue
        against = ("", "") if name == "Base" else (percent(minus(marks, base), sign=True), "")
        if name == "+LT/ST, untrained":
            against = (against[0], percent(minus(marks, lt), sign=True))
        warmly = score(warm) if warm else ""
        lines.append(
            f"| {name} | 1 | {score(marks)} | {against[0]} | {against[1]} | {warmly} | {found['means']['tokens']:.0f} "
            f"| {100 * found['means']['mq']:.1f} |"
        )
    trained = (
        ("RL, no memory", "agemem", "no-memory"),
        ("+LT/RL", "agemem-rag", "grpo"),
        ("**+LT/ST/RL**", "agemem", "grpo"),
        ("+LT/ST/RL, answer only", "agemem-answer-only", "grpo"),
        ("no R_maintenance", "agemem", "no-maintenance"),
        ("the released code's reward", "agemem", "code"),
        ("shuffled reward", "agemem", "shuffled"),
    )
    for name, recipe, arm in trained:
        rows, sampled = results.cells(recipe, arm), results.cells(recipe, arm, "sampled")
        if rows:
            marks = right(rows)
            lines.append(
                f"| {name} | {len(rows)} | {score(marks)} | {percent(minus(marks, base), sign=True)} "
                f"| {percent(minus(marks, lt), sign=True)} | {score(right(sampled))} | {mean_of(rows, 'tokens'):.0f} "
                f"| {100 * mean_of(rows, 'mq'):.1f} |"
            )
    for name in ("script", "script-tidy", "script-rag"):
        if (marks := results.marks(name)) and (found := results.evaluation(name)):
            lines.append(
                f"| {name} | 1 | {score(marks)} | | | | {found['means']['tokens']:.0f} | {100 * found['means']['mq']:.1f} |"
            )
    return "\n".join(lines)


def claims(folder: Path) -> str:
    """Return the bars and what is reported beside them."""
    results = Results(folder)
    full, sampled = right(results.cells("agemem", "grpo")), right(results.cells("agemem", "grpo", "sampled"))
    if not full or not results.marks("base-none"):
        return OPEN
    lines = ["| difference | exact match, points | bar | |", "|---|---|---|---|"]

    def line(name: str, one: Tree, other: Tree, bar: str = "") -> None:
        if not one or not other:
            return
        interval = minus(one, other)
        met = ("met" if interval.low > 0 else "**missed**") if bar else ""
        lines.append(f"| {name} | {percent(interval, sign=True)} | {bar} | {met} |")

    line("+LT/ST/RL minus Base, greedy", full, results.marks("base-none"), "above 0")
    line("+LT/ST/RL minus Base, T = 1", sampled, results.marks("base-none-t1"), "above 0")
    line("+LT/ST/RL minus +LT, greedy", full, results.marks("base-rag"), "above 0")
    line("+LT/ST/RL minus +LT, T = 1", sampled, results.marks("base-rag-t1"), "above 0")
    line("minus the untrained full agent, greedy", full, results.marks("base-full"))
    if rag := right(results.cells("agemem-rag", "grpo")):
        line("minus +LT/RL, greedy", full, rag)
    if answer := right(results.cells("agemem-answer-only", "grpo")):
        line("All-Returns minus Answer-Only, greedy", full, answer)
    return "\n".join(lines)


def returns(folder: Path) -> str:
    """Return All-Returns minus Answer-Only, and full minus RAG, in what no reward pays for."""
    results = Results(folder)
    full, answer, rag = (results.cells(r, "grpo") for r in ("agemem", "agemem-answer-only", "agemem-rag"))
    if not full or not answer:
        return OPEN
    lines = ["| | difference |", "|---|---|"]
    lines.append(
        f"| memory quality, All-Returns minus Answer-Only, points | {percent(minus(listed(full, 'mq'), listed(answer, 'mq')), sign=True)} |"
    )
    lines.append(
        f"| tokens at the end, All-Returns minus Answer-Only | {plain(minus(listed(full, 'tokens'), listed(answer, 'tokens')))} |"
    )
    if rag:
        lines.append(
            f"| tokens at the end, full minus +LT/RL | {plain(minus(listed(full, 'tokens'), listed(rag, 'tokens')))} |"
        )
    return "\n".join(lines)


def gains(folder: Path) -> str:
    """Return the gain of Answer-Only in its world and in the controls, each over the untrained agent there."""
    results = Results(folder)
    lines = [
        "| world | seeds | untrained | Answer-Only | gain | smaller than in the full world by | UPDATE | SUMMARY | FILTER |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    whole: Tree = []
    for name, arm, base in (
        ("corrections and small talk", "grpo", "base-full"),
        ("no corrections", "no-stale", "base-full-no-stale"),
        ("no small talk", "no-distractors", "base-full-no-distractors"),
        ("neither", "no-both", "base-full-no-both"),
    ):
        cells, untrained = results.cells("agemem-answer-only", arm), results.marks(base)
        if not cells or not untrained:
            continue
        marks = right(cells)
        own = [[a - b for a, b in zip(each, untrained[0], strict=True)] for each in marks]
        whole = whole or own
        # Other worlds have other episodes, so nothing pairs them: seeds and episodes are drawn on each side by itself.
        smaller = "" if own is whole else percent(_apart(whole, own), sign=True)
        calls = " | ".join(
            f"{mean_of(cells, f'calls:{tool}'):.2f}" for tool in ("Update_memory", "Summary_context", "Filter_context")
        )
        gain = percent(hierarchical_bootstrap(own, resamples=RESAMPLES), sign=True)
        lines.append(f"| {name} | {len(cells)} | {score(untrained)} | {score(marks)} | {gain} | {smaller} | {calls} |")
    return "\n".join(lines) if len(lines) > 2 else OPEN


def _apart(one: Tree, other: Tree) -> Interval:
    """Return the difference of the means of two independent samples, with a bootstrap over seeds and episodes of each."""
    import numpy as np

    rng = np.random.default_rng(0)

    def drawn(tree: Tree) -> Any:
        values = np.asarray(tree)
        seeds = rng.integers(len(values), size=(RESAMPLES, len(values)))
        episodes = rng.integers(values.shape[1], size=(RESAMPLES, values.shape[1]))
        return np.asarray([values[s][:, e].mean() for s, e in zip(seeds, episodes, strict=True)])

    differences = drawn(one) - drawn(other)
    low, high = np.percentile(differences, [2.5, 97.5])
    return Interval(float(np.mean(one) - np.mean(other)), float(low), float(high), sum(map(len, one)))


def tools(folder: Path) -> str:
    """Return calls per episode that succeeded, before and after training."""
    results = Results(folder)
    named = (
        "Add_memory",
        "Update_memory",
        "Delete_memory",
        "Retrieve_memory",
        "Summary_context",
        "Filter_context",
        "failed",
    )
    lines = ["| calls per episode | " + " | ".join(named) + " |", "|---" * (len(named) + 1) + "|"]
    base = [("untrained, greedy", "base-full"), ("untrained, T = 1", "base-full-t1")]
    for name, file in base:
        if (found := results.evaluation(file)) is not None:
            lines.append(
                f"| {name} | " + " | ".join(f"{found['means'].get(f'calls:{n}', 0.0):.2f}" for n in named) + " |"
            )
    for name, recipe in (("All-Returns", "agemem"), ("Answer-Only", "agemem-answer-only"), ("RAG", "agemem-rag")):
        if cells := results.cells(recipe, "grpo"):
            lines.append(
                f"| {name}, greedy | " + " | ".join(f"{mean_of(cells, f'calls:{n}'):.2f}" for n in named) + " |"
            )
    return "\n".join(lines) if len(lines) > 2 else OPEN


def sweeps(folder: Path) -> str:
    """Return the sweeps of theta_f and of the number of distractors, and the other worlds, without training again."""
    results = Results(folder)
    points = [
        *(("theta_f", t, f"threshold-{t}") for t in ("0.4", "0.5")),
        ("theta_f", "0.6", "distractors-3"),
        *(("theta_f", t, f"threshold-{t}") for t in ("0.7", "0.8")),
        *(("distractors", n, f"distractors-{n}") for n in ("0", "3", "5", "7")),
        ("no corrections", "", "no-stale"),
        ("related small talk", "", "related"),
    ]
    lines = ["| | | exact match, % | MQ | tokens | overflowed, % |", "|---|---|---|---|---|---|"]
    for what, value, name in points:
        found = [one for seed in (1, 2) if (one := results.evaluation(f"swept-{name}-s{seed}")) is not None]
        if found:
            marks = [[float(m) for m in one["right"]["0"]] for one in found]
            lines.append(
                f"| {what} | {value} | {score(marks)} | {100 * mean_of(found, 'mq'):.1f} | {mean_of(found, 'tokens'):.0f} "
                f"| {100 * mean_of(found, 'overflowed'):.0f} |"
            )
    return "\n".join(lines) if len(lines) > 2 else OPEN


AGEMEM_TABLES: Final = {
    "agemem-claims": claims,
    "agemem-ladder": ladder,
    "agemem-returns": returns,
    "agemem-gains": gains,
    "agemem-tools": tools,
    "agemem-sweeps": sweeps,
}

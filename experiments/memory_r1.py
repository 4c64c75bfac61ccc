"""The tables of Memory-R1 in docs/results.md, made from the JSON files of the queue.

Trees of marks are seed -> dialogue -> question; differences are paired question by question. Intervals: hierarchical bootstrap, 95 %.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memweave.metrics import Interval, hierarchical_bootstrap, paired_bootstrap

Marks = Mapping[str, str]
"""Dialogue -> one `1` or `0` per question."""
RESAMPLES = 2_000


class Results:
    """What lies in the results folder about Memory-R1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def runs(self, role: str, arm: str, server: str = "local") -> dict[int, Mapping[str, Any]]:
        """Return the tests of an arm's runs by seed."""
        files = sorted((self.folder / f"memory-r1-{role}").glob(f"{arm}-{server}-s*.json"))
        found = [json.loads(file.read_text()) for file in files]
        return {int(one["seed"]): one for one in found}

    def file(self, name: str) -> Mapping[str, Any] | None:
        """Return what an evaluation found; `None` when it has not been run."""
        file = self.folder / "dialog-world" / f"{name}.json"
        found: Mapping[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
        return found

    def evaluation(self, name: str, budget: int = 6) -> Marks | None:
        """Return the marks of an evaluation on whole dialogues; `None` when it has not been run."""
        found = self.file(name)
        return None if found is None else found["budgets"][str(budget)]["right"]


def tree(seeds: Sequence[Marks]) -> list[list[list[float]]]:
    """Return seed -> dialogue -> question."""
    return [[[float(mark) for mark in marks[dialogue]] for dialogue in sorted(marks)] for marks in seeds]


def percent(interval: Interval, *, sign: bool = False) -> str:
    """Return `61.2 [58.0, 64.1]`."""
    form = "{:+.1f}" if sign else "{:.1f}"
    mean, low, high = (form.format(100 * value) for value in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def against(marks: Sequence[Marks], base: Sequence[Marks]) -> Interval:
    """Return the paired difference; a base of one run stands for every seed."""
    other = list(base) * len(marks) if len(base) == 1 else list(base)
    return paired_bootstrap(tree(marks), tree(other), resamples=RESAMPLES)


def row(name: str, marks: Sequence[Marks], base: Sequence[Marks] | None, oracle: Sequence[Marks] | None) -> str:
    """Return a line: arm, seeds, score, difference from the base, share of the gap to the oracle."""
    score = hierarchical_bootstrap(tree(marks), resamples=RESAMPLES)
    if base is None:
        return f"| {name} | {len(marks)} | {percent(score)} | | |"
    difference = against(marks, base)
    share = ""
    if oracle is not None:
        gap = against(oracle, base).mean
        share = f"{100 * difference.mean / gap:.0f} %" if gap > 0 else ""
    return f"| {name} | {len(marks)} | {percent(score)} | {percent(difference, sign=True)} | {share} |"


HEAD = ["| arm | seeds | exact match, % | minus base | of the gap to the oracle |", "|---|---|---|---|---|"]


def marks_of(runs: Mapping[int, Mapping[str, Any]], cell: str) -> list[Marks]:
    """Return one cell of the tests of several runs."""
    return [one["test"][cell]["right"] for _, one in sorted(runs.items()) if cell in one["test"]]


def manager(folder: Path) -> str:
    """Return the manager's table: greedy and sampled, budget 6, the base answerer in every row."""
    results = Results(folder)
    base, oracle = results.evaluation("base"), results.evaluation("oracle-manager")
    if base is None or oracle is None:
        return "(not run yet)"
    lines = [*HEAD, row("base, greedy", [base], None, None)]
    for arm in ("grpo", "ppo", "shuffled", "sft", "grpo-window24", "grpo-rollout"):
        if marks := marks_of(results.runs("manager", arm), "greedy-6"):
            lines.append(row(f"{arm}, greedy", marks, [base], [oracle]))
    for name in (
        "oracle-manager",
        "always-add",
        "always-noop",
        "exact-key",
        "rule",
        "bm25-raw-turns",
        "bm25-raw-turns-oracle",
    ):
        if (found := results.evaluation(name)) is not None:
            lines.append(row(name, [found], [base], [oracle]))
    if (full := results.evaluation("full-context", 1000)) is not None:
        lines.append(row("full context", [full], [base], [oracle]))
    for t in ("0.3", "0.5", "0.7"):
        if (found := results.evaluation(f"base-t{t}")) is not None:
            lines.append(row(f"base, T = {t}", [found], [base], [oracle]))
    if (warm := results.evaluation("base-t1")) is not None:
        lines.append(row("base, T = 1", [warm], None, None))
        for arm in ("grpo", "ppo", "shuffled", "sft"):
            if marks := marks_of(results.runs("manager", arm), "sampled-6"):
                lines.append(row(f"{arm}, T = 1 (minus base at T = 1)", marks, [warm], [oracle]))
    return "\n".join(lines)


def answerer(folder: Path) -> str:
    """Return the answerer's table: budget 6, each seed on the bank of the trained manager of that seed."""
    results = Results(folder)
    grpo = results.runs("answerer", "grpo")
    if not grpo:
        return "(not run yet)"
    lines = [*HEAD]
    base, oracle = (marks_of(grpo, f"partner/{name}") for name in ("base", "oracle"))
    lines.append(row("base, greedy", base, None, None))
    arms = ("grpo", "ppo", "shuffled", "sft", "grpo-lenient", "grpo-data40", "grpo-data600")
    for cell, reference, said in (("greedy-6", "base", "greedy"), ("sampled-6", "base-t1", "T = 1")):
        if cell == "sampled-6":
            lines += [
                row(f"base, T = {t}", marks_of(grpo, f"partner/base-t{t}"), base, oracle) for t in ("0.3", "0.5", "0.7")
            ]
            lines.append(row("base, T = 1", marks_of(grpo, "partner/base-t1"), None, None))
            said = "T = 1 (minus base at T = 1)"
        for arm in arms:
            runs = results.runs("answerer", arm)
            same = {seed: grpo[seed] for seed in runs if seed in grpo}  # what does not depend on the arm
            if runs and same.keys() == runs.keys():
                own, top = marks_of(same, f"partner/{reference}"), marks_of(same, "partner/oracle")
                lines.append(row(f"{arm}, {said}", marks_of(runs, cell), own, top))
    lines.append(row("oracle answerer", oracle, base, oracle))
    return "\n".join(lines)


def budgets(folder: Path) -> str:
    """Return the score of each arm at each budget."""
    results = Results(folder)
    lines = ["| arm | B = 6 | B = 12 | B = 60 |", "|---|---|---|---|"]
    for name in (
        "base",
        "oracle-manager",
        "oracle",
        "always-add",
        "always-add-oracle",
        "exact-key",
        "rule",
        "bm25-raw-turns",
    ):
        cells = [results.evaluation(name, budget) for budget in (6, 12, 60)]
        if all(cell is not None for cell in cells):
            scores = [hierarchical_bootstrap(tree([cell]), resamples=RESAMPLES) for cell in cells if cell is not None]
            lines.append(f"| {name} | " + " | ".join(percent(score) for score in scores) + " |")
    for role in ("manager", "answerer"):
        runs = results.runs(role, "grpo")
        if runs:
            trees = [tree(marks_of(runs, f"greedy-{budget}")) for budget in (6, 12, 60)]
            scores = [hierarchical_bootstrap(each, resamples=RESAMPLES) for each in trees]
            lines.append(f"| GRPO {role} | " + " | ".join(percent(score) for score in scores) + " |")
    return "\n".join(lines)


def interaction(folder: Path) -> str:
    """Return the cells {base, trained} manager x {base, trained} answerer, and their interaction."""
    runs = Results(folder).runs("answerer", "grpo")
    names = ("base/base", "partner/base", "base/trained", "greedy-6")
    cells = {name: tree(marks_of(runs, name)) for name in names}
    if not all(cells.values()):
        return "(not run yet)"
    shown = {name: percent(hierarchical_bootstrap(cell, resamples=RESAMPLES)) for name, cell in cells.items()}
    effect = [
        [
            [both - alone - other + neither for both, alone, other, neither in zip(*marks, strict=True)]
            for marks in zip(*dialogue, strict=True)
        ]
        for dialogue in zip(*(cells[n] for n in ("greedy-6", "partner/base", "base/trained", "base/base")), strict=True)
    ]
    found = hierarchical_bootstrap(effect, resamples=RESAMPLES)
    return "\n".join(
        [
            "| | base answerer | trained answerer |",
            "|---|---|---|",
            f"| base manager | {shown['base/base']} | {shown['base/trained']} |",
            f"| trained manager | {shown['partner/base']} | {shown['greedy-6']} |",
            "",
            f"Interaction: {percent(found, sign=True)} points, {len(runs)} seeds.",
        ]
    )


def through_vllm(folder: Path) -> str:
    """Return the runs through vLLM beside the in-process runs of the same seed."""
    results = Results(folder)
    lines = ["| recipe | seed | in-process | through vLLM | difference |", "|---|---|---|---|---|"]
    for role in ("manager", "answerer"):
        here, there = results.runs(role, "grpo"), results.runs(role, "grpo", "vllm")
        for seed in sorted(here.keys() & there.keys()):
            one, other = marks_of({seed: here[seed]}, "greedy-6"), marks_of({seed: there[seed]}, "greedy-6")
            scores = [percent(hierarchical_bootstrap(tree(marks), resamples=RESAMPLES)) for marks in (one, other)]
            lines.append(
                f"| memory-r1-{role} | {seed} | {scores[0]} | {scores[1]} | {percent(against(other, one), sign=True)} |"
            )
    return "\n".join(lines)


TABLES = {
    "memory-r1-manager": manager,
    "memory-r1-answerer": answerer,
    "memory-r1-budgets": budgets,
    "memory-r1-interaction": interaction,
    "memory-r1-vllm": through_vllm,
}

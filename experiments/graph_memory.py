"""The tables of trainable graph memory in docs/results.md, made from the JSON files of the evaluations and runs on FSM-QA.

Trees of marks are seed -> question -> time that it was asked; differences are paired mark by mark. Intervals: hierarchical bootstrap, 95 %.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from agemem import OPEN, percent
from plan import BUILT, OOD, PER_STEP, STEPS, WEIGHED

from memweave.metrics import Interval, hierarchical_bootstrap, paired_bootstrap

Tree = list[list[list[float]]]
"""Seed -> question -> time."""
RESAMPLES: Final = 4_000
SEEDS: Final = (1, 2, 3, 4, 5)
SHOWN: Final = 1
NAMED: Final = {
    "none": "nothing",
    "random": "random strategies",
    "similarity": "strategies by similarity alone",
    "confidence": "strategies by confidence",
    "raw": "raw trajectories",
    "uniform": "uniform weights",
    "trained": "**trained weights**",
}
"""What the arms are called, in the order of the table."""
BARRED: Final = ("uniform", "none", "random")
ESTIMATORS: Final = {
    "chosen": "with minus without, as chosen",
    "n4": "mean of four with and four without",
    "with-only": "with only, no baseline",
    "faithful": "temperature 1, learning rate 0.05, one epoch",
    "gentle": "temperature 1, learning rate 0.003, one epoch",
    "spread": "temperature 5, learning rate 0.02, three epochs",
    "tempered": "temperature 3, learning rate 0.03, three epochs",
    "every": "all strategies of a question, expected gradient, temperature 10",
    "even": "the same, temperature 200, on all questions",
}
ATTEMPTS: Final = ("tempered", "every", "even")
"""Settings that were tried after `chosen`, in this order."""
GUIDED: Final = ("plain", "uniform", "trained", "random", "raw-trajectories")


class Cells:
    """The evaluations in a results folder."""

    def __init__(self, results: Path) -> None:
        self.folder = results / "fsmqa"

    def read(self, name: str, seeds: Sequence[int] = SEEDS) -> dict[int, Mapping[str, Any]]:
        """Return the files of an evaluation that are there, by seed."""
        files = {seed: self.folder / f"{name}-s{seed}.json" for seed in seeds}
        return {seed: json.loads(file.read_text()) for seed, file in files.items() if file.exists()}

    def marks(
        self, arm: str, split: str = "test", heat: float = 0, k: int = SHOWN, name: str = "main"
    ) -> dict[int, Any]:
        """Return the marks of an arm by seed: question -> time."""
        shown = 0 if arm == "none" else k
        found = {}
        for seed, each in self.read(name).items():
            for cell in each["cells"]:
                if (cell["arm"], cell["split"], cell["temperature"], cell["k"]) == (arm, split, heat, shown):
                    times = cell["right"][str(seed)]
                    found[seed] = [[float(mark) for mark in same] for same in zip(*times, strict=True)]
        return found


def tree(marks: Mapping[int, Any]) -> Tree:
    """Return marks by seed as a tree."""
    return [each for _, each in sorted(marks.items())]


def score(marks: Mapping[int, Any]) -> str:
    """Return the mean with its interval, in points."""
    return percent(hierarchical_bootstrap(tree(marks), resamples=RESAMPLES)) if marks else ""


def minus(one: Mapping[int, Any], other: Mapping[int, Any]) -> Interval | None:
    """Return the paired difference on the seeds that both have; `None` without any."""
    seeds = sorted({*one} & {*other})
    if not seeds:
        return None
    a, b = ([side[seed] for seed in seeds] for side in (one, other))
    return paired_bootstrap(a, b, resamples=RESAMPLES)


def verdict(found: Interval, bar: str) -> str:
    """Return what became of a bar."""
    return ("met" if found.low > 0 else "**missed**") if bar else ""


def worth(cells: Cells, name: str) -> dict[str, list[list[float]]]:
    """Return Spearman's correlations of rank and worth: before and after training, seed -> question."""
    read = cells.read(name)
    sides: dict[str, list[list[float]]] = {}
    for side in ("before", "after"):
        sides[side] = [read[seed]["utility"][str(seed)][side] for seed in sorted(read) if read[seed]["utility"]]
    return sides


def claims(results: Path) -> str:
    """Return the bars, and the differences that are reported beside them."""
    cells = Cells(results)
    if not cells.marks("trained"):
        return OPEN
    lines = ["| difference | greedy | T = 1 | bar (greedy) | |", "|---|---|---|---|---|"]
    for other in (*BARRED, "similarity", "confidence", "raw"):
        sides = [minus(cells.marks("trained", heat=heat), cells.marks(other, heat=heat)) for heat in (0, 1)]
        if sides[0] is None or sides[1] is None:
            continue
        bar = "above 0" if other in BARRED else ""
        shown = " | ".join(percent(side, sign=True) for side in sides if side is not None)
        lines.append(f"| trained minus {other} | {shown} | {bar} | {verdict(sides[0], bar)} |")
    lines += ordered(cells, "worth")
    for name in ATTEMPTS:
        for other in BARRED:
            source = "main" if other == "random" else name  # random advice knows no weights, and the graph is the same
            sides = [
                minus(*(cells.marks(arm, heat=heat, name=of) for arm, of in (("trained", name), (other, source))))
                for heat in (0, 1)
            ]
            if sides[0] is not None and sides[1] is not None:
                shown = " | ".join(percent(side, sign=True) for side in sides if side is not None)
                lines.append(f"| `{name}`: trained minus {other} | {shown} | above 0 | {verdict(sides[0], 'b')} |")
        lines += ordered(cells, name)
    deaf = minus(*(cells.marks(arm, name="deaf") for arm in ("trained", "uniform")))
    if deaf is not None:
        same = "met" if deaf.low <= 0 <= deaf.high else "**missed**"
        lines.append(
            f"| a script that is deaf to advice: trained minus uniform | {percent(deaf, sign=True)} | | holds 0 | {same} |"
        )
    return "\n".join(lines)


def ordered(cells: Cells, name: str) -> list[str]:
    """Return the line that says whether training brought rank and worth together; none without a run."""
    ranks = worth(cells, name)
    if not ranks["after"]:
        return []
    gain = paired_bootstrap(ranks["after"], ranks["before"], resamples=RESAMPLES)
    said = "" if name == "worth" else f"`{name}`: "
    return [
        f"| {said}Spearman of rank and worth, after minus before | {number(gain)} | | above 0 | {verdict(gain, 'b')} |"
    ]


def number(found: Interval) -> str:
    """Return an interval of numbers that are no shares."""
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def arms(results: Path) -> str:
    """Return every arm on every split."""
    cells = Cells(results)
    lines = [
        "| advised by | seeds | test, greedy | test, T = 1 | other people | other mixture | longer chains |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, name in NAMED.items():
        found = cells.marks(arm)
        if found:
            cols = [score(found), score(cells.marks(arm, heat=1))]
            cols += [score(cells.marks(arm, split, name="ood")) for split in OOD]
            lines.append(f"| {name} | {len(found)} | {' | '.join(cols)} |")
    found = cells.marks("trained", name="even")
    if found:
        cols = [score(found), score(cells.marks("trained", heat=1, name="even"))]
        cols += [score(cells.marks("trained", split, name="even-ood")) for split in OOD]
        lines.append(f"| **trained weights, `even`** | {len(found)} | {' | '.join(cols)} |")
    for name, ood in (("trained", "ood"), ("`even`", "even-ood")):
        for other in ("uniform", "none"):
            row = [minus(*(cells.marks(arm, split, name=ood) for arm in ("trained", other))) for split in OOD]
            if all(row):
                said = " | ".join(percent(each, sign=True) for each in row if each is not None)
                lines.append(f"| {name} minus {other} | | | | {said} |")
    return "\n".join(lines) if len(lines) > 2 else OPEN


def sweep(results: Path) -> str:
    """Return how many strategies are shown."""
    cells = Cells(results)
    lines = [
        "| k | seeds | uniform, greedy | uniform, T = 1 | trained, greedy | trained, T = 1 |",
        "|---|---|---|---|---|---|",
    ]
    for k in (0, 1, 3, 5):
        sides = [
            cells.marks("none" if k == 0 else arm, heat=heat, k=k, name="k")
            for arm in ("uniform", "trained")
            for heat in (0, 1)
        ]
        if all(sides):
            lines.append(f"| {k} | {len(sides[0])} | {' | '.join(map(score, sides))} |")
    for k, name in ((1, "even"), (3, "even-k")):
        sides = [cells.marks(arm, heat=heat, k=k, name=name) for arm in ("uniform", "trained") for heat in (0, 1)]
        if all(sides):
            lines.append(f"| {k}, `even` | {len(sides[0])} | {' | '.join(map(score, sides))} |")
    return "\n".join(lines) if len(lines) > 2 else OPEN


def runs(results: Path, recipe: str, arm: str, size: str = "") -> dict[int, Mapping[str, Any]]:
    """Return the runs of an arm that are there, by seed."""
    files = {seed: results / recipe / f"{arm}{size}-local-s{seed}.json" for seed in SEEDS}
    return {seed: json.loads(file.read_text()) for seed, file in files.items() if file.exists()}


def estimators(results: Path) -> str:
    """Return what estimators of the gap cost and find."""
    cells = Cells(results)
    lines = [
        "| estimator | seeds | rollouts | steps with a gap | mean square of the gradient | Spearman after | trained | minus uniform |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, name in ESTIMATORS.items():
        seeds = {seed: run for seed, run in runs(results, "graph-memory-weights", arm).items() if seed in (1, 2)}
        if not seeds:
            continue
        evaluated, ranked = ("main", "worth") if arm == "chosen" else (arm, arm)
        sides = [
            {seed: m for seed, m in cells.marks(side, name=evaluated).items() if seed in seeds}
            for side in ("trained", "uniform")
        ]
        after = worth(cells, ranked)["after"][:2]
        gain = minus(*sides)
        mean = [fmean(run[key] for run in seeds.values()) for key in ("rollouts", "nonzero", "gradient")]
        lines.append(
            f"| {name} | {len(seeds)} | {mean[0]:,.0f} | {100 * mean[1]:.0f} % | {mean[2]:.3g} "
            f"| {number(hierarchical_bootstrap(after, resamples=RESAMPLES)) if after else ''} "
            f"| {score(sides[0])} | {percent(gain, sign=True) if gain else ''} |"
        )
    return "\n".join(lines) if len(lines) > 2 else OPEN


def graphs(results: Path) -> str:
    """Return the other graphs, and the larger policy: what trained weights gain there."""
    cells = Cells(results)
    lines = [
        "| | seeds | none | uniform | trained | trained minus uniform | trained minus none | of what is left to gain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    named = {
        "main": "the small base",
        "large": "the larger base",
        "probe": "3 strategies in 10 are random",
        "coarse": "paths of the coarse machine",
        "normalised": "divided by degree",
    }
    for name, said in named.items():
        none, uniform, trained = (cells.marks(arm, name=name) for arm in ("none", "uniform", "trained"))
        first, second = minus(trained, uniform), minus(trained, none)
        if first is None or second is None:
            continue
        before = fmean(mark for seed in none.values() for question in seed for mark in question)
        left = f"{100 * second.mean / (1 - before):.0f} %" if before < 1 else ""
        lines.append(
            f"| {said} | {len(trained)} | {score(none)} | {score(uniform)} | {score(trained)} "
            f"| {percent(first, sign=True)} | {percent(second, sign=True)} | {left} |"
        )
    return "\n".join(lines) if len(lines) > 2 else OPEN


def area(run: Mapping[str, Any], start: float) -> float:
    """Return the mean reward over the budget that all arms have: what memory took counts with `start`, where plain began."""
    budget = BUILT + WEIGHED + STEPS * PER_STEP
    spent = sum(run["test"]["charged"].values())
    rewards = [start if reward is None else reward for reward in run["rewards"]]
    played = rewards[: max(0, budget - spent) // PER_STEP]
    rest = budget - spent - PER_STEP * len(played)  # a step is not begun that the budget does not hold
    return float(spent * start + PER_STEP * sum(played) + rest * (played[-1] if played else start)) / budget


def guided(results: Path) -> str:
    """Return GRPO with memory and without, at equal interactions."""
    every = {arm: runs(results, "graph-memory-grpo", arm) for arm in GUIDED}
    plain = every["plain"]
    if not plain or not every["trained"]:
        return OPEN
    lines = [
        "| arm | seeds | for memory | steps | area under the curve | trained minus it | first 60 steps "
        "| greedy | without memory | T = 1 | without memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    starts = {seed: fmean(map(fmean, marks)) for seed, marks in Cells(results).marks("none", heat=1).items()}
    areas = {
        arm: {seed: area(run, starts[seed]) for seed, run in found.items() if seed in plain and seed in starts}
        for arm, found in every.items()
    }
    for arm, found in every.items():
        if not areas[arm]:
            continue
        both = sorted({*areas[arm]} & {*areas["trained"]})
        apart = [[areas["trained"][seed] - areas[arm][seed]] for seed in both]
        gap = "" if arm == "trained" else percent(hierarchical_bootstrap(apart, resamples=RESAMPLES), sign=True)
        mean = hierarchical_bootstrap([[each] for each in areas[arm].values()], resamples=RESAMPLES)
        cost = fmean(sum(run["test"]["charged"].values()) for run in found.values())
        steps = fmean(run["steps"] for run in found.values())
        began = hierarchical_bootstrap([run["rewards"][:STEPS] for run in found.values()], resamples=RESAMPLES)
        cols = [
            percent(began),
            *(_cell(found, name) for name in ("greedy", "greedy-without", "sampled", "sampled-without")),
        ]
        lines.append(
            f"| {arm} | {len(areas[arm])} | {cost:,.0f} | {steps:.0f} | {percent(mean)} | {gap} | {' | '.join(cols)} |"
        )
    return "\n".join(lines)


def _cell(found: Mapping[int, Mapping[str, Any]], name: str) -> str:
    marks = [
        [float(mark) for mark in run["test"][name]["right"]] for _, run in sorted(found.items()) if name in run["test"]
    ]
    return percent(hierarchical_bootstrap(marks, resamples=RESAMPLES)) if marks else ""


GRAPH_MEMORY_TABLES: Final = {
    "graph-memory-claims": claims,
    "graph-memory-arms": arms,
    "graph-memory-k": sweep,
    "graph-memory-estimators": estimators,
    "graph-memory-graphs": graphs,
    "graph-memory-grpo": guided,
}

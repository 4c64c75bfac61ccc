"""The tables of learning results in docs/results.md, made from the JSON files of the queue."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from agemem import AGEMEM_TABLES
from graph_memory import GRAPH_MEMORY_TABLES
from memento import MEMENTO_TABLES
from memory_r1 import TABLES
from memory_r1_claims import CLAIM_TABLES

Result = dict[str, object]


def load(results: Path, recipe: str) -> dict[tuple[str, int], Result]:
    """Return the results of a recipe by (arm, seed)."""
    found = [json.loads(path.read_text()) for path in sorted((results / recipe).glob("*.json"))]
    return {(str(one["arm"]), int(one["seed"])): one for one in found}


def number(result: Result, key: str) -> float:
    """Return a number of a result."""
    value = result[key]
    assert isinstance(value, int | float)
    return float(value)


def paired_interval(differences: Sequence[float], *, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of paired differences."""
    values = np.asarray(differences)
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def token_class(results: Path) -> str:
    """Return the table of the token-class world."""
    found = load(results, "token-class")
    lines = [
        "| arm | seed | start | end | change | minutes | largest logprob difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for (arm, seed), one in sorted(found.items()):
        start, end = number(one, "start"), number(one, "end")
        lines.append(
            f"| {arm} | {seed} | {start:.3f} | {end:.3f} | {end - start:+.3f} | {number(one, 'seconds') / 60:.1f} "
            f"| {number(one, 'logprob_difference'):.1e} |"
        )
    return "\n".join(lines)


def area(one: Result) -> float:
    """Return the mean over the steps of the chooser's reward."""
    parts = one["parts"]
    assert isinstance(parts, dict)
    return fmean(parts["chooser"])


def two_node(results: Path) -> str:
    """Return the table of the two-node world."""
    found = load(results, "two-node")
    seeds = sorted({seed for _, seed in found})
    lines = ["| seed | per role | broadcast | difference |", "|---|---|---|---|"]
    differences = []
    for seed in seeds:
        role, broad = area(found["per-role", seed]), area(found["broadcast", seed])
        differences.append(role - broad)
        lines.append(f"| {seed} | {role:.3f} | {broad:.3f} | {role - broad:+.3f} |")
    low, high = paired_interval(differences)
    lines.append(f"| mean | | | **{fmean(differences):+.3f}** [{low:+.3f}, {high:+.3f}] |")
    return "\n".join(lines)


def rewrite(page: Path, results: Path) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` in `page`."""
    text = page.read_text()
    for name, make in {
        "token-class": token_class,
        "two-node": two_node,
        **TABLES,
        **CLAIM_TABLES,
        **AGEMEM_TABLES,
        **MEMENTO_TABLES,
        **GRAPH_MEMORY_TABLES,
    }.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = pattern.search(text)
        if found is None:
            raise SystemExit(f"{page} has no markers for {name}")
        text = text[: found.start()] + f"{found[1]}{make(results)}\n{found[2]}" + text[found.end() :]
    page.write_text(text)

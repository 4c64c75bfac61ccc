"""The tables of learning results: computed from files whose numbers can be added up by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "experiments"
GOOD, HALF, BAD = "11110", "11000", "10000"
"""Marks of one dialogue: 80, 40 and 20 %."""


@pytest.fixture(scope="module")
def tables() -> Iterator[tuple[ModuleType, ModuleType, ModuleType]]:
    """Return the modules of the folder `experiments`, which is no package."""
    import importlib
    import sys

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        names = ("memory_r1", "memory_r1_claims", "plan")
        modules = [importlib.import_module(name) for name in names]
        yield modules[0], modules[1], modules[2]
        for name in names:
            sys.modules.pop(name, None)


def marks(word: str) -> dict[str, Any]:
    return {
        "score": word.count("1") / 5,
        "right": {"test-0": word, "test-1": word},
        "f1": 0.5,
        "lenient": 0.5,
        "words": 1,
    }


def bare(text: str) -> str:
    """Return `text` without its intervals, which come from resampling questions too."""
    return re.sub(r" \[[^\]]*\]", "", text)


def write(results: Path, folder: str, name: str, found: dict[str, Any]) -> None:
    (results / folder).mkdir(parents=True, exist_ok=True)
    (results / folder / f"{name}.json").write_text(json.dumps(found))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return results in which GRPO takes the manager from 40 to 80 %, and the oracle has 80 %; PPO reaches 40 %."""
    for name, word in (
        ("base", HALF),
        ("base-t1", HALF),
        ("base-t0.7", HALF),
        ("always-add", BAD),
        ("oracle-manager", GOOD),
    ):
        budgets = {str(budget): marks(word) for budget in (6, 12, 60)}
        write(tmp_path, "dialog-world", name, {"budgets": budgets})
    for arm, word in (("grpo", GOOD), ("ppo", HALF)):
        for seed in (1, 2):
            cells = {f"greedy-{budget}": marks(word) for budget in (6, 12, 60)} | {"sampled-6": marks(word)}
            rewards = [0.2] * 20 + [0.6 if arm == "grpo" else 0.5] * 20
            run = {"seed": seed, "test": cells, "rewards": rewards, "zero_std": [0.5], "steps": 40, "episodes": 9}
            write(tmp_path, "memory-r1-manager", f"{arm}-local-s{seed}", run)
    return tmp_path


def test_a_row_says_the_gain_and_the_share_of_the_gap(tables: Any, results: Path) -> None:
    made = bare(tables[0].manager(results))
    assert "| base, greedy | 1 | 40.0 | | |" in made
    assert "| grpo, greedy | 2 | 80.0 | +40.0 | 100 % |" in made
    assert "| ppo, greedy | 2 | 40.0 | +0.0 | 0 % |" in made
    assert "| always-add | 1 | 20.0 | -20.0 | -50 % |" in made


def test_claims_say_what_was_beaten_and_what_was_not(tables: Any, results: Path) -> None:
    (line,) = [
        line for line in bare(tables[1].claims(results)).splitlines() if line.startswith("| GRPO manager > base")
    ]
    assert "greedy: +40.0 points, 100 % of the gap; T = 1: +40.0" in line
    assert "better than base, sharpened base" in line
    assert "always-add, ppo; no difference to none; worse than none" in line
    (answerer,) = [
        line for line in bare(tables[1].claims(results)).splitlines() if line.startswith("| GRPO answerer > base")
    ]
    assert "(not run yet)" in answerer


def test_curves_compare_the_same_seeds_early_and_late(tables: Any, results: Path) -> None:
    lines = bare(tables[1].curves(results)).splitlines()
    assert lines[2] == "| manager | first 20 | 20.0 | 20.0 | +0.0 | 2 |"
    assert lines[3] == "| manager | last 20 | 60.0 | 50.0 | +10.0 | 2 |"


def test_distractors_are_paired_by_lookup_and_seed(tables: Any, results: Path) -> None:
    for form, word in (("select_then_answer", "1111"), ("direct", "1100"), ("direct_with_filler", "1000")):
        for seed in (0, 1):
            found = {"0": {"marks": "1111"}, "54": {"marks": word}}
            write(results, "dialog-world", f"distractors-{form}-s{seed}", {"distractors": found})
    lines = bare(tables[1].distillation(results)).splitlines()
    assert lines[2].startswith("| 0 distractors | 100.0 | 100.0 | 100.0 | +0.0")
    assert "| 54 distractors | 100.0 | 50.0 |" in lines[3]
    assert lines[3].endswith("| +50.0 | +75.0 |")


def test_interaction_is_what_both_give_beyond_the_sum(tables: Any, results: Path) -> None:
    cells = {"base/base": BAD, "partner/base": HALF, "base/trained": HALF, "greedy-6": GOOD}
    for seed in (1, 2):
        run = {"seed": seed, "test": {name: marks(word) for name, word in cells.items()}}
        write(results, "memory-r1-answerer", f"grpo-local-s{seed}", run)
    made = bare(tables[0].interaction(results))
    assert "| base manager | 20.0 | 40.0 |" in made
    assert made.endswith("Interaction: +20.0 points, 2 seeds.")  # 80 - 40 - 40 + 20


def test_every_job_of_the_plan_has_a_place_of_its_own(tables: Any, tmp_path: Path) -> None:
    plan = tables[2]
    files = [job.file(tmp_path) for job in (*plan.PLAN, *plan.PRETRAININGS, *plan.EVALUATIONS)]
    assert len(set(files)) == len(files)
    made = {job.name for job in plan.PLAN if job.arm == "grpo" and job.server == "local"}
    assert {job.partner for job in plan.PLAN} - {None} <= made
    of_dialogs = [each for each in plan.EVALUATIONS if each.world == "dialog-world"]
    assert {each.policy for each in of_dialogs} - {None} == {each.name for each in plan.PRETRAININGS}
    graphs = {job.name for job in plan.PLAN if job.recipe == "graph-memory-weights"}
    of_graphs = [each for each in plan.EVALUATIONS if each.world == "fsmqa"]
    assert {each.policy for each in of_graphs} - {None} <= graphs
    others = [each for each in plan.EVALUATIONS if each not in (*of_dialogs, *of_graphs)]
    assert {each.policy for each in others} - {None} <= made

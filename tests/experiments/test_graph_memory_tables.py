"""The tables of graph memory: computed from evaluations and runs whose numbers can be added up by hand."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "experiments"
MAIN = {
    "none": "1000",
    "random": "0000",
    "similarity": "1000",
    "confidence": "0100",
    "raw": "1000",
    "uniform": "1100",
    "trained": "1110",
}


@pytest.fixture(scope="module")
def tables() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("graph_memory")
        for name in ("graph_memory", "agemem", "plan"):
            sys.modules.pop(name, None)


def evaluated(
    results: Path,
    name: str,
    seed: int,
    right: Mapping[str, str],
    splits: tuple[str, ...] = ("test",),
    ks: tuple[int, ...] = (1,),
    ranks: tuple[list[float], list[float]] | None = None,
) -> None:
    folder = results / "fsmqa"
    folder.mkdir(parents=True, exist_ok=True)
    cells = [
        {
            "arm": arm, "split": split, "k": 0 if arm == "none" else k, "temperature": heat,
            "right": {str(seed): [marks] * (3 if heat else 1)},
        }
        for arm, marks in right.items()
        for split in splits
        for k in ks
        for heat in (0.0, 1.0)
    ]  # fmt: skip
    worth = {str(seed): {"before": ranks[0], "after": ranks[1]}} if ranks else {}
    (folder / f"{name}-s{seed}.json").write_text(json.dumps({"cells": cells, "utility": worth}))


def ran(results: Path, recipe: str, arm: str, seed: int, **found: Any) -> None:
    folder = results / recipe
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{arm}-local-s{seed}.json").write_text(json.dumps({"arm": arm, "seed": seed, **found}))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for seed in (1, 2):
        evaluated(tmp_path, "main", seed, MAIN)
        evaluated(tmp_path, "ood", seed, MAIN, ("ood-entities", "ood-mixture", "ood-chains"))
        evaluated(tmp_path, "worth", seed, {"none": "1000"}, ranks=([0.1, 0.3], [0.6, 0.4]))
    return tmp_path


def row(table: str, begin: str) -> list[str]:
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {begin} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_nothing_is_claimed_before_the_runs(tables: ModuleType, tmp_path: Path) -> None:
    assert {make(tmp_path) for make in tables.GRAPH_MEMORY_TABLES.values()} == {"(not run yet)"}


def test_bars_are_differences_question_by_question(tables: ModuleType, results: Path) -> None:
    table = tables.claims(results)
    for other, points in (("uniform", "+25.0"), ("none", "+50.0"), ("random", "+75.0")):
        cells = row(table, f"trained minus {other}")
        assert [cell.split()[0] for cell in cells[:2]] == [points, points]
        assert cells[2] == "above 0"
    assert row(table, "trained minus random")[3] == "met"
    assert row(table, "trained minus similarity")[2:] == ["", ""]
    ranks = row(table, "Spearman of rank and worth, after minus before")
    assert ranks[0].startswith("+0.300 [")
    assert ranks[3] == "met"


def test_a_bar_that_is_missed_is_said(tables: ModuleType, results: Path) -> None:
    for seed in (1, 2):
        evaluated(results, "main", seed, {**MAIN, "trained": "1010"})
    assert row(tables.claims(results), "trained minus uniform")[3] == "**missed**"


def test_where_no_strategy_is_worth_anything_trained_has_to_be_uniform(tables: ModuleType, results: Path) -> None:
    what = "a script that is deaf to advice: trained minus uniform"
    evaluated(results, "deaf", 1, {"uniform": "1100", "trained": "1100"})
    assert row(tables.claims(results), what) == ["+0.0 [+0.0, +0.0]", "", "holds 0", "met"]
    evaluated(results, "deaf", 1, {"uniform": "0000", "trained": "1111"})
    assert row(tables.claims(results), what)[3] == "**missed**"


def test_every_arm_has_a_line_with_every_split(tables: ModuleType, results: Path) -> None:
    table = tables.arms(results)
    for arm, marks in MAIN.items():
        cells = row(table, tables.NAMED[arm])
        assert cells[0] == "2"
        assert {cell.split()[0] for cell in cells[1:]} == {f"{100 * marks.count('1') / 4:.1f}"}
    assert [cell.split()[0] for cell in row(table, "trained minus none")[3:]] == ["+50.0"] * 3


def test_a_setting_that_was_tried_later_stands_beside_the_first(tables: ModuleType, results: Path) -> None:
    other = {**MAIN, "trained": "1111"}
    for seed in (1, 2):
        evaluated(results, "even", seed, other, ranks=([0.2], [0.9]))
        evaluated(results, "even-ood", seed, other, ("ood-entities", "ood-mixture", "ood-chains"))
        evaluated(results, "even-k", seed, other, ks=(3,))
    claims, arms = tables.claims(results), tables.arms(results)
    assert row(claims, "trained minus uniform")[0].startswith("+25.0 [")
    assert row(claims, "`even`: trained minus uniform")[0].startswith("+50.0 [")
    assert row(claims, "`even`: Spearman of rank and worth, after minus before")[0].startswith("+0.700 [")
    assert [cell.split()[0] for cell in row(arms, "**trained weights, `even`**")[1:]] == ["100.0"] * 5
    assert [cell.split()[0] for cell in row(arms, "`even` minus none")[3:]] == ["+75.0"] * 3
    assert [cell.split()[0] for cell in row(tables.sweep(results), "3, `even`")[1:]] == [
        "50.0",
        "50.0",
        "100.0",
        "100.0",
    ]


def test_k_0_is_no_advice(tables: ModuleType, results: Path) -> None:
    for seed in (1, 2):
        evaluated(results, "k", seed, {"none": "1000", "uniform": "1100", "trained": "1111"}, ks=(1, 3))
    table = tables.sweep(results)
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["0", "1", "3"]
    assert [cell.split()[0] for cell in row(table, "0")[1:]] == ["25.0"] * 4
    assert [cell.split()[0] for cell in row(table, "3")[1:]] == ["50.0", "50.0", "100.0", "100.0"]


def test_estimators_say_what_they_cost_and_find(tables: ModuleType, results: Path) -> None:
    for seed in (1, 2):
        ran(results, "graph-memory-weights", "chosen", seed, rollouts=6_000, nonzero=0.14, gradient=0.02)
        ran(results, "graph-memory-weights", "n4", seed, rollouts=24_000, nonzero=0.4, gradient=0.01)
        evaluated(results, "n4", seed, {"uniform": "1100", "trained": "1100"}, ranks=([0.1], [0.5]))
    table = tables.estimators(results)
    assert row(table, "with minus without, as chosen")[1:5] == ["6,000", "14 %", "0.02", "+0.500 [+0.400, +0.600]"]
    assert row(table, "mean of four with and four without")[1:4] == ["24,000", "40 %", "0.01"]
    assert len(table.splitlines()) == 4


def test_other_graphs_and_the_larger_policy_stand_beside_the_main_one(tables: ModuleType, results: Path) -> None:
    evaluated(results, "large", 1, {"none": "0000", "uniform": "1000", "trained": "1100"})
    table = tables.graphs(results)
    small, large = row(table, "the small base"), row(table, "the larger base")
    assert [cell.split()[0] for cell in small[4:6]] == ["+25.0", "+50.0"]
    assert (small[6], large[6]) == ("67 %", "50 %")  # 50 of 75, and 50 of 100


def test_the_area_charges_memory_at_where_plain_began(tables: ModuleType) -> None:
    budget = tables.BUILT + tables.WEIGHED + tables.STEPS * tables.PER_STEP
    plain = {"test": {"charged": {"build": 0, "weights": 0}}, "rewards": [0.5] * (budget // tables.PER_STEP)}
    assert tables.area(plain, 0.25) == pytest.approx(0.5)
    charged = {"build": tables.BUILT, "weights": tables.WEIGHED}
    memory = {"test": {"charged": charged}, "rewards": [1.0] * tables.STEPS}
    spent = tables.BUILT + tables.WEIGHED
    assert tables.area(memory, 0.25) == pytest.approx((0.25 * spent + tables.STEPS * tables.PER_STEP) / budget)
    longer = {**memory, "rewards": [1.0] * (tables.STEPS + 50)}
    assert tables.area(longer, 0.25) == tables.area(memory, 0.25)  # what is beyond the budget does not count


def test_grpo_is_compared_at_equal_interactions(tables: ModuleType, results: Path) -> None:
    steps = (tables.BUILT + tables.WEIGHED) // tables.PER_STEP + tables.STEPS
    for seed in (1, 2):
        none, all_ = {"build": 0, "weights": 0}, {"build": tables.BUILT, "weights": tables.WEIGHED}
        ran(
            results, "graph-memory-grpo", "plain", seed, start=0.9, steps=steps, rewards=[0.6] * steps,
            test={"charged": none, "greedy": {"right": "10"}, "sampled": {"right": "10"}},
        )  # fmt: skip
        ran(
            results, "graph-memory-grpo", "trained", seed, start=0.6, steps=60, rewards=[1.0] * 60,
            test={
                "charged": all_, "greedy": {"right": "11"}, "greedy-without": {"right": "01"},
                "sampled": {"right": "10"}, "sampled-without": {"right": "00"},
            },
        )  # fmt: skip
    table = tables.guided(results)
    plain, trained = row(table, "plain"), row(table, "trained")
    assert plain[1:4] == ["0", str(steps), "60.0 [60.0, 60.0]"]
    spent = tables.BUILT + tables.WEIGHED
    mean = 100 * (0.25 * spent + tables.STEPS * tables.PER_STEP) / (spent + tables.STEPS * tables.PER_STEP)
    assert trained[3].startswith(f"{mean:.1f} [")
    assert plain[4].startswith(f"{mean - 60:+.1f} [")
    assert (plain[5], trained[5]) == ("60.0 [60.0, 60.0]", "100.0 [100.0, 100.0]")
    assert [cell.split()[0] if cell else "" for cell in trained[6:]] == ["100.0", "50.0", "50.0", "0.0"]
    assert [cell.split()[0] if cell else "" for cell in plain[6:]] == ["50.0", "", "50.0", ""]


def test_every_run_of_the_plan_has_a_file_of_its_own_and_equal_interactions(tables: ModuleType) -> None:
    plan = importlib.import_module("plan")
    jobs = [*plan.PLAN, *plan.EVALUATIONS]
    assert len({job.file(Path()) for job in jobs}) == len(jobs)
    names = {run.name for run in plan.PLAN}
    own = [job for job in plan.EVALUATIONS if job.world == "fsmqa"]
    assert {job.policy for job in own if job.policy} <= names
    for run in (run for run in plan.PLAN if run.recipe == "graph-memory-grpo"):
        assert run.data is None or run.data in names
        steps = int(run.options[run.options.index("--steps") + 1])
        memory = {"plain": 0, "trained": plan.BUILT + plan.WEIGHED}.get(run.arm, plan.BUILT)
        budget = plan.BUILT + plan.WEIGHED + plan.STEPS * plan.PER_STEP
        assert 0 <= budget - memory - steps * plan.PER_STEP < plan.PER_STEP

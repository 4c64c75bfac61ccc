"""The tables of AgeMem: computed from files whose numbers can be added up by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def agemem() -> Iterator[ModuleType]:
    import importlib
    import sys

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("agemem")
        sys.modules.pop("agemem", None)


def cell(right: str, *, mq: float = 0.5, tokens: float = 200.0, **calls: float) -> dict[str, Any]:
    means = {"mq": mq, "tokens": tokens, "overflowed": 0.1, **{f"calls:{name}": value for name, value in calls.items()}}
    return {"right": right, "mq": [mq] * len(right), "tokens": [tokens] * len(right), "means": means}


def run(results: Path, recipe: str, arm: str, seed: int, greedy: dict[str, Any]) -> None:
    folder = results / recipe
    folder.mkdir(parents=True, exist_ok=True)
    found = {"arm": arm, "seed": seed, "test": {"greedy": greedy, "sampled": greedy}}
    (folder / f"{arm}-local-s{seed}.json").write_text(json.dumps(found))


def evaluation(results: Path, name: str, *rights: str) -> None:
    folder = results / "memhop"
    folder.mkdir(parents=True, exist_ok=True)
    found = {"right": {str(i): right for i, right in enumerate(rights)}, "means": cell("1")["means"]}
    (folder / f"{name}.json").write_text(json.dumps(found))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name in ("base-none", "base-none-t1"):
        evaluation(tmp_path, name, "1000")
    for name in ("base-rag", "base-rag-t1", "base-full"):
        evaluation(tmp_path, name, "1100")
    evaluation(tmp_path, "base-full-no-both", "1100")
    for seed in (1, 2):
        run(tmp_path, "agemem", "grpo", seed, cell("1111", mq=0.75, tokens=150.0, Update_memory=0.5))
        run(tmp_path, "agemem-answer-only", "grpo", seed, cell("1110", mq=0.5, tokens=180.0, Update_memory=0.25))
        run(tmp_path, "agemem-answer-only", "no-both", seed, cell("1101"))
        run(tmp_path, "agemem-rag", "grpo", seed, cell("1100", tokens=210.0))
    return tmp_path


def test_nothing_is_claimed_before_the_runs(agemem: ModuleType, tmp_path: Path) -> None:
    assert {make(tmp_path) for make in agemem.AGEMEM_TABLES.values()} == {"(not run yet)"}


def test_bars_are_differences_episode_by_episode(agemem: ModuleType, results: Path) -> None:
    table = agemem.claims(results)
    assert "| +LT/ST/RL minus Base, greedy | +75.0 [" in table
    assert "| +LT/ST/RL minus +LT, T = 1 | +50.0 [" in table
    assert "| minus +LT/RL, greedy | +50.0 [" in table
    assert "| All-Returns minus Answer-Only, greedy | +25.0 [" in table
    assert table.count("| above 0 |") == 4


def test_a_bar_that_is_missed_is_said(agemem: ModuleType, results: Path) -> None:
    for seed in (1, 2):
        run(results, "agemem", "grpo", seed, cell("1000"))
    assert "| +LT/ST/RL minus Base, greedy | +0.0 [+0.0, +0.0] | above 0 | **missed** |" in agemem.claims(results)


def test_what_no_reward_pays_for(agemem: ModuleType, results: Path) -> None:
    table = agemem.returns(results)
    assert "| memory quality, All-Returns minus Answer-Only, points | +25.0 [+25.0, +25.0] |" in table
    assert "| tokens at the end, All-Returns minus Answer-Only | -30.0 [-30.0, -30.0] |" in table
    assert "| tokens at the end, full minus +LT/RL | -60.0 [-60.0, -60.0] |" in table


def test_gains_are_over_the_untrained_agent_of_the_same_world(agemem: ModuleType, results: Path) -> None:
    table = agemem.gains(results).splitlines()
    assert table[2].startswith("| corrections and small talk | 2 | 50.0 [")
    assert "| +25.0 [" in table[2]
    assert table[3].startswith("| neither | 2 |")
    assert "| +0.0 [" in table[3]


def test_seeds_of_sampling_stand_for_each_seed_of_training_by_their_mean(agemem: ModuleType) -> None:
    trained = [[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    found = agemem.minus(trained, [[1.0, 0.0], [0.0, 0.0]])
    assert found.mean == pytest.approx((0.5 + 1.0 + 0.5 + 0.0 + 0.5 + 1.0) / 6)


def test_the_plan_has_what_the_rules_say(agemem: ModuleType) -> None:
    import plan

    seeds: dict[tuple[str, str], int] = {}
    for one in plan.PLAN:
        if one.recipe.startswith("agemem"):
            seeds[one.recipe, one.arm] = seeds.get((one.recipe, one.arm), 0) + 1
    assert {key for key, count in seeds.items() if count == 5} == {
        ("agemem", "grpo"), ("agemem-answer-only", "grpo"), ("agemem-rag", "grpo")
    }  # fmt: skip
    assert set(seeds.values()) == {2, 5}
    from memweave.recipes import find_recipe

    for recipe, arm in seeds:
        find_recipe(recipe).arm(arm)
    names = [each.name for each in plan.EVALUATIONS if each.world == "memhop"]
    assert {"base-none", "base-rag", "base-full", "base-full-no-both", "swept-threshold-0.4-s1"} <= set(names)
    assert len(names) == len(set(names))

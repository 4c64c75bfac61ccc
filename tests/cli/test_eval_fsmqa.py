"""`memweave eval world fsmqa`: what is printed, and how wrong input leaves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")

from memweave.recipes.graph_memory.arms import SHOWN

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

SMALL = ("--policy", "script", "--episodes", "6", "--build-questions", "10", "--weights-questions", "4")


def test_arms_and_their_scores_are_shown(cli: Cli) -> None:
    result = cli("eval", "world", "fsmqa", *SMALL, "--split", "val", "--split", "ood-mixture", "--utility", "2")
    assert (result.code, result.err) == (0, "")
    assert "FSM-QA: policy script, 1 seed." in result.out
    for arm, k in (("none", 0), ("uniform", SHOWN), ("trained", SHOWN)):
        for split in ("val", "ood-mixture"):
            assert re.search(rf"^{arm} +{split} +{k} +0 +\d+\.\d ", result.out, re.MULTILINE)
    assert re.search(r"Rank and worth, seed 0: Spearman [+-]0\.\d\d with every weight 1", result.out)


def test_json_is_one_object_with_every_combination(cli: Cli) -> None:
    found = cli(
        "eval", "world", "fsmqa", *SMALL, "--agent", "none", "--agent", "random", "--k", "1", "--k", "5", "--temperature", "1",
        "--seed", "3", "--json",
    ).json  # fmt: skip
    assert (found["world"], found["policy"], list(found["graphs"])) == ("fsmqa", "script", ["3"])
    assert [(cell["arm"], cell["k"]) for cell in found["cells"]] == [("none", 0), ("random", 1), ("random", 5)]
    for cell in found["cells"]:
        assert [len(marks) for marks in cell["right"]["3"]] == [6, 6, 6]
    assert found["graphs"]["3"]["weights_arm"] is None  # nothing here needs trained weights


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--agent", "best"), "there is no agent 'best'. There are: none, uniform, trained"),
        (("--split", "train"), "there is no split 'train'"),
        (("--policy", "nobody"), "no policy is called 'nobody'"),
        (("--graph", "nowhere"), "nowhere holds no graph of FSM-QA"),
        (("--graph", "a", "--graph", "b"), "2 graphs for 1 seeds"),
        (("--weights-arm", "best"), "graph-memory-weights has no arm 'best'"),
        (("--base", "nowhere"), "the base policy nowhere does not exist. Make it: memweave pretrain --world fsmqa"),
        (("--k", "-1"), "'--k'"),
    ],
)
def test_wrong_calls_are_one_line(cli: Cli, tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    result = cli("eval", "world", "fsmqa", *options)
    assert (result.code, result.out) == (2, "")
    assert says in result.error

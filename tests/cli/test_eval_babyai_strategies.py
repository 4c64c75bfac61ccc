"""`memweave eval world babyai-strategies`: what is printed, what goes to standard output, and how wrong input leaves."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

pytest.importorskip("minigrid")

STUDY = ("eval", "world", "babyai-strategies")
SMALL = (
    "--level",
    "PickupLoc",
    "--seeds",
    "1",
    "--build",
    "1",
    "--samples",
    "2",
    "--train",
    "1",
    "--test",
    "2",
    "--k",
    "1",
)


def test_a_line_for_each_kind_of_advice_and_for_each_difference(cli: Cli) -> None:
    result = cli(*STUDY, *SMALL, "--advice", "uniform", "--advice", "trained", "--steps", "12")
    assert (result.code, result.err) == (0, "")
    assert "a graph from 1 mission of each level, weights from 1, measured on 2 others. Played by script." in result.out
    for name in ("none", "uniform, k = 1", "trained, k = 1"):
        assert re.search(rf"^{name} +\d+\.0 +\d+\.0 - \d+\.0 +\d+\.0 *$", result.out, re.M)
    assert re.search(r"^trained, k = 1 - uniform +[+-]\d+\.0 +[+-]\d+\.0 - [+-]\d+\.0 *$", result.out, re.M)
    assert re.search(r"^Seed 0: \d+ paths?, ", result.out, re.M)


def test_json_is_one_object(cli: Cli) -> None:
    found = cli(*STUDY, *SMALL, "--advice", "random", "--steps", "12", "--compliance", "0.25", "--json").json
    assert (found["world"], found["policy"]) == ("babyai", "script")
    assert (found["settings"]["compliance"], found["settings"]["levels"]) == (0.25, ["PickupLoc"])
    assert set(found["arms"]) == {"none", "random, k = 1"}
    assert set(found["gains"]["random, k = 1 - none"]) == {"mean", "low", "high", "n"}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--advice", "best"], 2, "there is no advice 'best'. There are: random, similarity, uniform, trained"),
        (["--level", "Nowhere"], 2, "no level 'Nowhere'"),
        (["--seeds", "0"], 2, "seeds"),
        (["--policy", "gpt"], 2, "does not name a provider"),
        (["--learning-rate", "0", *SMALL], 2, "learning_rate = 0"),
    ],
)
def test_wrong_input_is_one_line(cli: Cli, arguments: list[str], code: int, says: str) -> None:
    result = cli(*STUDY, *arguments)
    assert result.code == code
    assert says in result.error
    assert "\n" not in result.error.strip()

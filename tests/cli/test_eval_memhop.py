"""`memweave eval world memhop` and `memweave pretrain --world memhop`: what is printed, and how wrong input leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from memweave.recipes.agemem import pretraining as own  # noqa: E402 - after importorskip
from memweave.recipes.agemem.lessons import texts  # noqa: E402
from memweave.recipes.agemem.measuring import measure  # noqa: E402
from memweave.recipes.agemem.pretraining import WHOLE, MemHopPretrainSettings  # noqa: E402
from memweave.serving.policy_folder import create_policy  # noqa: E402

if TYPE_CHECKING:
    from tests.cli.conftest import Cli


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("policy") / "base"
    create_policy(folder, texts(0, 60), vocab_size=500, layers=1, context=768, initializer_range=0.05, whole=WHOLE)
    return str(folder)


def test_score_and_tools_are_shown(cli: Cli, base: str) -> None:
    result = cli("eval", "world", "memhop", "--policy", "script", "--base", base, "--episodes", "6", "--split", "val")
    assert (result.code, result.err) == (0, "")
    assert "MemHop, val: 6 episodes, agent full, policy script." in result.out
    assert re.search(r"^Add_memory +6\.\d\d", result.out, re.MULTILINE)
    assert "Exact match in percent" in result.out


def test_json_is_one_object_and_options_reach_the_world(cli: Cli, base: str) -> None:
    found = cli(
        "eval", "world", "memhop", "--policy", "script-tidy", "--base", base, "--episodes", "5", "--seeds", "2",
        "--distractors", "0", "--p-stale", "0", "--related", "--threshold", "0.4", "--agent", "rag", "--json",
    ).json  # fmt: skip
    assert (found["world"], found["agent"], found["episodes"], found["seeds"]) == ("memhop", "rag", 10, 2)
    assert (found["settings"]["distractors"], found["settings"]["p_stale"], found["settings"]["mode"]) == (
        0,
        0,
        "related",
    )
    assert found["threshold"] == 0.4
    assert 0 <= found["low"] <= found["score"] <= found["high"] <= 1
    assert found["means"]["calls:Update_memory"] == 0.0
    assert set(found["right"]) == {"0", "1"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--agent", "everything"), "there is no agent 'everything'. There are: full, rag, none"),
        (("--policy", "nobody"), "no policy is called 'nobody'"),
        (("--split", "dev"), "--split 'dev' is not known"),
        (("--base", "nowhere"), "the base policy nowhere does not exist"),
        (("--distractors", "50"), "50 distractors"),
    ],
)
def test_wrong_options_are_one_line_and_code_2(cli: Cli, base: str, options: tuple[str, ...], says: str) -> None:
    given = ("--base", base) if "--base" not in options else ()
    result = cli("eval", "world", "memhop", *given, *options)
    assert (result.code, result.out) == (2, "")
    assert says in result.error


def test_a_base_policy_of_memhop_is_made_and_measured(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"lessons": 2, "vocab_size": 500, "hidden": 64, "layers": 3, "heads": 2, "intermediate": 64}
    monkeypatch.setattr(own, "texts", lambda seed: texts(seed, 60))
    monkeypatch.setattr(own, "measure", lambda path, seed: measure(path, seed, episodes=2))
    monkeypatch.setattr(own, "MemHopPretrainSettings", lambda **given: MemHopPretrainSettings(**{**small, **given}))
    made = cli(
        "pretrain",
        "--world",
        "memhop",
        "--out",
        "p",
        "--clean-steps",
        "2",
        "--habit-steps",
        "1",
        "--seed",
        "4",
        "--json",
    )
    assert made.code == 1  # it cannot look things up after two steps
    assert made.json["passed"] is False
    assert made.json["settings"]["seed"] == 4
    assert json.loads((tmp_path / "p" / "pretraining.json").read_text())["gate"]["lookups"] == 0.0
    measured = cli("pretrain", "--world", "memhop", "--measure", "p")
    assert (measured.code, measured.err) == (0, "")
    assert "gate missed: 0.000 of lookups" in measured.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--world", "mars", "--out", "p"), "no policy is made for a world 'mars'. There are: dialog, memhop"),
        (("--world", "memhop", "--distill", "direct", "--out", "p"), "are about DialogWorld"),
    ],
)
def test_what_cannot_be_made(cli: Cli, options: tuple[str, ...], says: str) -> None:
    result = cli("pretrain", *options)
    assert result.code == 2
    assert says in result.error

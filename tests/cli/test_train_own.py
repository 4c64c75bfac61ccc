"""`memweave train` with a recipe that learns from a file of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

from memweave.recipes.memento import offline
from memweave.recipes.run_file import LOCK, held

if TYPE_CHECKING:
    from tests.cli.conftest import Cli


def written(path: Path) -> Path:
    """Return a file of 40 rows of 20 queries, every other one solved."""
    made = [
        {
            "query": f"question {n}",
            "case": f"case {n} {i}",
            "plan": "p",
            "case_label": "positive",
            "truth_label": n % 2 == 0,
        }
        for n in range(20)
        for i in range(2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "minilm_installed", lambda: False)
    monkeypatch.setattr(offline, "SEEDS", 2)


def test_the_command_and_what_it_refuses(cli: Cli, tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl")
    done = cli("train", "memento-q-offline", "--data", str(file), "--steps", "1", "--out", "run")
    assert done.code == 0, done.err
    assert "AUC on held-out" in done.out
    assert (tmp_path / "run" / "head.safetensors").is_file()
    found = cli("train", "memento-q-offline", "--data", str(file), "--steps", "1", "--json").json
    assert (found["recipe"], found["arm"], found["rows"], len(found["by_query"])) == (
        "memento-q-offline",
        "plain",
        40,
        2,
    )
    for wrong, why in {
        ("--out", "other"): "memento-q-offline needs --data: a file of rows",
        ("--data", str(file), "--group-size", "4"): "--group-size means nothing to memento-q-offline",
        ("--data", str(file), "--arm", "best"): "has no arm 'best'. There are: plain, label-input",
        ("--data", str(file), "--out", "run"): "run is not empty",
    }.items():
        refused = cli("train", "memento-q-offline", *wrong)
        assert refused.code == 2
        assert why in refused.err
    refused = cli("train", "token-class", "--data", str(file))
    assert "--data means nothing to token-class. It is for: memento-q-offline" in refused.err
    assert "--data means nothing to memento-q" in cli("train", "memento-q", "--data", str(file)).err
    assert "memento-q-offline" in cli("train", "--list").out


def test_a_stream_is_played_and_its_q_function_kept(cli: Cli, tmp_path: Path) -> None:
    short = ("--base", "script", "--steps", "2", "--tasks", "40")
    done = cli("train", "memento-q", *short)
    assert done.code == 0, done.err
    assert "solved, % of each iteration:" in done.out
    assert (tmp_path / "runs/memento-q-neural-q-s0/head.safetensors").is_file()
    found = cli("train", "memento-q", *short, "--arm", "cosine", "--json").json
    assert (found["head"], found["stream"]["cases"], len(found["per_iteration"])) == (None, 80, 2)
    missing = cli("train", "memento-q", *short[2:], "--base", "nowhere", "--out", "other")
    assert missing.code == 2
    assert "no planner is called 'nowhere'" in missing.err
    assert not (tmp_path / "other").exists()


def test_one_process_at_a_time_runs_in_a_folder(cli: Cli, tmp_path: Path) -> None:
    small = ("train", "graph-memory-build", "--base", "script", "--tasks", "2", "--out", "built")
    assert cli(*small).code == 0
    with held(tmp_path / "built"):
        refused = cli(*small, "--resume")
        assert (refused.code, "another process runs in built" in refused.err) == (2, True), refused.err
    assert not (tmp_path / "built" / LOCK).exists()
    (tmp_path / "built" / LOCK).touch()  # of a process that was killed
    assert cli(*small, "--resume").code == 0


def test_a_graph_is_built_its_weights_are_trained_and_both_go_on(cli: Cli, tmp_path: Path) -> None:
    small = ("--base", "script", "--tasks", "6", "--group-size", "2")
    done = cli("train", "graph-memory-build", *small, "--out", "built")
    assert done.code == 0, done.err
    assert "6 questions, 12 rollouts" in done.out
    assert (tmp_path / "built" / "graph.jsonl").is_file()
    again = cli("train", "graph-memory-build", *small, "--out", "built", "--resume", "--json")
    assert (again.code, again.json["rollouts"]) == (0, 12)
    on = ("train", "graph-memory-weights", "--base", "script", "--data", "built", "--tasks", "4", "--steps", "1")
    found = cli(*on, "--out", "trained", "--json")
    assert found.code == 0, found.err
    assert (found.json["recipe"], found.json["arm"]) == ("graph-memory-weights", "even")
    assert (
        found.json["rollouts"] == found.json["updates"] + 4
    )  # all strategies of a question against one rollout without
    assert found.json["made"]["build_rollouts"] == 12
    for name in ("graph.jsonl", "log.jsonl", "curves.png", "run.json"):
        assert (tmp_path / "trained" / name).is_file()
    assert cli(*on, "--out", "trained", "--resume", "--json").json["made"] == found.json["made"]
    listed = cli("strategies", "list", "--home", "trained/memory", "--user", "fsmqa", "--json")
    assert listed.code == 0, listed.err
    for wrong, why in {
        ("--out", "trained"): "trained is not empty",
        ("--out", "trained", "--resume", "--learning-rate", "9"): "learning_rate: None then, 9.0 now",
        ("--out", "trained", "--resume", "--seed", "1"): "seed: 0 then, 1 now",
        ("--out", "trained", "--resume", "--temperature", "0"): "temperature: None then, 0.0 now",
        ("--out", "other", "--learning-rate", "-1"): "learning_rate = -1.0: give a number above 0",
        ("--out", "other", "--temperature", "nan"): "temperature is 0 (greedy) or above, not nan",
        ("--out", "other", "--temperature", "-1"): "temperature is 0 (greedy) or above, not -1.0",
        ("--out", "other", "--data", "trained"): "the weights of trained are trained already (even)",
        ("--out", "other", "--arm", "coarse"): "holds paths of the machine cognitive, and arm coarse is about coarse",
        ("--out", "other", "--arm", "best"): "has no arm 'best'. There are: even, chosen",
        ("--out", "other", "--data", "nowhere"): "nowhere holds no graph of FSM-QA",
    }.items():
        refused = cli(*on, *wrong)
        assert (refused.code, why in refused.err) == (2, True), refused.err
    assert not (tmp_path / "other").exists()
    evaluated = cli(
        "eval", "world", "fsmqa", "--policy", "script", "--episodes", "2", "--graph", "built", "--agent", "trained"
    )
    assert (evaluated.code, "the weights of built are not trained" in evaluated.err) == (2, True)
    useless = cli("eval", "world", "fsmqa", "--policy", "script", "--graph", "trained", "--build-questions", "3")
    assert (useless.code, "--build-questions is about a graph made on the spot" in useless.err) == (2, True)
    within = cli("strategies", "list", "--home", "trained", "--user", "fsmqa")
    assert (within.code, "There is one at trained/memory: --home trained/memory" in within.err) == (2, True)
    assert not (tmp_path / "trained" / "ledger.sqlite").exists()
    missing = cli("train", "graph-memory-grpo", "--arm", "trained", "--base", "nowhere", "--out", "other")
    assert (missing.code, "nowhere is no folder" in missing.err) == (2, True)

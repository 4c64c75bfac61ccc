from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from memweave.worlds.dialog_world import DialogWorld
from tests.serving.stub_vllm import StubVLLM

pytest.importorskip("torch")
pytest.importorskip("trl")

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

SHORT = ("--steps", "1", "--tasks", "2", "--group-size", "2")


@pytest.fixture
def stub() -> Iterator[StubVLLM]:
    server = StubVLLM()
    yield server
    server.stop()


def test_the_list_shows_recipes_arms_and_settings(cli: Cli) -> None:
    shown = cli("train", "--list")
    assert (shown.code, shown.err) == (0, "")
    for part in ("token-class", "arms: grpo, shuffled", "60 steps of 8 tasks x 8 episodes", "temperature 1"):
        assert part in shown.out
    found = {recipe["name"]: recipe for recipe in cli("train", "--list", "--json").json["recipes"]}
    of_agemem = ["agemem", "agemem-answer-only", "agemem-rag"]
    first_ones = ["token-class", "two-node", "memory-r1-manager", "memory-r1-answerer"]
    assert list(found) == [*first_ones, *of_agemem, "graph-memory-grpo"]
    assert found["graph-memory-grpo"]["arms"] == ["plain", "uniform", "trained", "random", "raw-trajectories"]
    of_credit = ["terminal-only", "per-stage", "step-pooled", "tool-steps"]
    assert found["agemem"]["arms"] == ["grpo", "shuffled", "code", "no-maintenance", "no-memory", *of_credit]
    first = found["token-class"]
    assert (first["arms"], first["settings"]["steps"]) == (["grpo", "shuffled"], 60)
    manager, answerer = found["memory-r1-manager"], found["memory-r1-answerer"]
    both = ["grpo", "ppo", "shuffled", "sft", "grpo-data40", "grpo-data600"]
    assert answerer["arms"] == [*both, "grpo-lenient"]
    assert manager["arms"] == [*both, "grpo-window24", "grpo-rollout"]
    columns = {line.index(" arms:") for line in shown.out.splitlines() if " arms:" in line}
    assert columns == {len("graph-memory-weights")}  # names of any length stand in one column


def test_a_run_and_what_it_says(cli: Cli, tmp_path: Path) -> None:
    result = cli("train", "two-node", *SHORT, "--temperature", "0.7")
    assert result.code == 0, result.err
    assert "two-node (per-role, seed 0): mean reward" in result.out
    assert "memweave traces list --store runs/two-node-per-role-s0/traces.db" in result.out
    # Nothing but our own lines: no bar, no banner, no warning of a library.
    assert [line.partition(" ")[0] for line in result.err.splitlines()] == ["evaluating", "mean"] * 2
    assert json.loads((tmp_path / "runs/two-node-per-role-s0/run.json").read_text())["temperature"] == 0.7
    store = ("--store", "runs/two-node-per-role-s0/traces.db")
    assert cli("traces", "doctor", *store, "--temperature", "0.7").code == 0  # warnings only
    assert cli("traces", "list", *store, "--run", "two-node-per-role-s0", "--json").json["total"] == 4

    used = cli("train", "two-node", *SHORT, "--temperature", "0.7")
    assert (used.code, used.out) == (2, "")
    assert used.error == (
        "error: runs/two-node-per-role-s0 is not empty. Go on with its run (--resume), or choose another --out"
    )
    other = cli("train", "two-node", *SHORT, "--resume", "--json")
    assert (other.code, other.json["exit_code"]) == (2, 2)
    assert "temperature: 0.7 then, 1.0 now" in other.json["error"]


def test_json_is_one_object_and_nothing_else_is_said(cli: Cli) -> None:
    result = cli("train", "two-node", *SHORT, "--json")
    assert (result.code, result.err) == (0, "")
    assert (result.json["steps"], result.json["recipe"], len(result.json["rewards"])) == (1, "two-node", 1)


def test_json_has_null_where_there_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    from memweave.cli import render

    render.emit({"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": (float("-inf"), "x")}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.0, None], "c": {"d": [None, "x"]}}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            (),
            "name a recipe: agemem, agemem-answer-only, agemem-rag, graph-memory-build, graph-memory-grpo, graph-memory-weights, "
            "memento-q, memento-q-offline, memory-r1-answerer, memory-r1-manager, token-class, two-node. "
            "See: memweave train --list",
        ),
        (("two-nod",), "there is no recipe 'two-nod'. Did you mean two-node?"),
        (("two-node", "--arm", "x"), "has no arm 'x'. There are: per-role, broadcast"),
        (("two-node", "--steps", "0"), "'--steps'"),
        (("two-node", "--group-size", "1"), "group_size = 1 is too small: it must be at least 2"),
        (("two-node", "--temperature", "0"), "temperature = 0.0 must be a number above 0"),
        (("two-node", "--learning-rate", "nan"), "learning_rate = nan must be a number above 0"),
        (("two-node", "--resume"), "runs/two-node-per-role-s0 holds no run to go on with. Start it without --resume"),
        (("two-node", "--resume", "--out", "empty"), "empty holds no run to go on with"),
        (("two-node", "--out", "file"), "file is a file. Name a folder with --out"),
        (("two-node", "--base", "nowhere"), "nowhere is no folder. A policy is a folder with config.json"),
        (("two-node", "--base", "empty"), "empty lacks its config: expected config.json"),
        (("two-node", "--partner", "empty"), "recipe two-node has one role only; it takes no partner"),
        (("two-node", "--test-size", "-1"), "'--test-size'"),
        (
            ("memory-r1-manager", "--arm", "sft", "--base", "nowhere", "--policy-server", "http://127.0.0.1:1"),
            "arm sft trains all weights, which a vLLM server cannot take over; run it in-process",
        ),
        (
            ("memory-r1-answerer", "--arm", "grpo-rollout"),
            "has no arm 'grpo-rollout'. There are: grpo, ppo, shuffled, sft",
        ),
        (("two-node", "--policy-server", "foo"), "'foo' is not the URL of a server, e.g. http://localhost:8000"),
    ],
)
def test_bad_calls_are_one_line_and_make_no_run(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    result = cli("train", *arguments)
    assert (result.code, result.out) == (2, "")
    assert says in result.error
    assert not (tmp_path / "runs").exists()
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a base policy that knows nothing, in a DialogWorld of three short dialogues."""
    from memweave.recipes.memory_r1 import training
    from memweave.serving import create_policy

    small = DialogWorld(sessions=1, session_turns=14, keys=2, friend_keys=1, follow_ups=2)
    monkeypatch.setattr(training, "DialogWorld", lambda: small)
    monkeypatch.setattr("memweave.worlds.dialog_world.SIZES", {"train": 1, "val": 1, "test": 1})
    return create_policy(tmp_path / "tiny", ["who lives where"], vocab_size=300, layers=1).path


def test_imitation_is_a_run_too(cli: Cli, tiny: Path) -> None:
    """It has no reward before and after, no episodes and no curves; with --partner it trains beside another policy."""
    manager = (
        "train",
        "memory-r1-manager",
        "--arm",
        "sft",
        *SHORT,
        "--steps",
        "3",
        "--base",
        str(tiny),
        "--out",
        "manager",
    )
    result = cli(*manager, "--test-size", "0")
    assert result.code == 0, result.err
    first, second = result.out.splitlines()
    assert first.startswith("memory-r1-manager (sft, seed 0): 3 steps of imitation, ")
    assert second.startswith("policy ")
    assert second.endswith(": manager/policy")
    again = cli(*manager, "--test-size", "0", "--resume", "--json")
    assert (again.code, again.json["start"], again.json["test"]) == (0, None, {})

    answerer = (
        "train",
        "memory-r1-answerer",
        "--arm",
        "sft",
        *SHORT,
        "--steps",
        "3",
        "--base",
        str(tiny),
        "--out",
        "answerer",
    )
    partner = cli(*answerer, "--partner", "manager/policy", "--test-size", "0", "--json")
    assert partner.json["frozen"] == {"manager": again.json["policy_version"]}
    other = cli(*answerer, "--test-size", "0", "--resume")
    assert (other.code, other.out) == (2, "")
    assert f"partner: '{again.json['policy_version']}' then" in other.error


def test_a_final_test_is_part_of_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from memweave.cli.train import _show
    from memweave.recipes import RecipeResult, TrainSettings

    result = RecipeResult(
        recipe="memory-r1-manager", arm="grpo", seed=0, steps=1, server="local", start=0.25, end=0.5, rewards=[0.3],
        parts={}, zero_std=[0.5], seconds=2.0, episodes=4, generated_tokens=1234, excluded=0, logprob_difference=0.0,
        policy_version="abc", settings=TrainSettings(), policy=tmp_path / "policy",
        test={"greedy-6": {"score": 0.75, "right": {"test-0000": "1110"}}}, frozen={"answerer": "def"},
    )  # fmt: skip
    _show(result, tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("mean reward 0.250 -> 0.500 in 1 steps, 4 episodes, 1,234 tokens, 2 s")
    assert said[1] == "test greedy-6: 0.750"


def test_a_base_of_the_package_that_is_not_there_is_not_made_up(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memweave.recipes.running.DIALOG_BASE", tmp_path / "package" / "dialog-world")
    result = cli("train", "memory-r1-manager", *SHORT)
    assert result.code == 2
    assert "dialog-world is no folder. A policy is a folder with config.json" in result.error
    assert not (tmp_path / "package").exists()


def test_a_policy_server_that_is_not_there(cli: Cli, closed_port: Callable[[], int]) -> None:
    result = cli("train", "two-node", "--policy-server", f"http://127.0.0.1:{closed_port()}", "--json")
    assert (result.code, result.json["exit_code"]) == (1, 1)
    assert "does not answer" in result.error
    assert result.error.endswith("Start it: memweave serve")


def test_a_policy_server_that_is_no_vllm(cli: Cli, stub: StubVLLM) -> None:
    stub.fault = lambda path, body: (404, "not here")
    result = cli("train", "two-node", "--policy-server", stub.url)
    assert (result.code, result.error) == (2, f"error: {stub.url} has no /v1/models. Is it vLLM?")


def test_a_policy_server_gets_the_key(cli: Cli, stub: StubVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMWEAVE_MODEL_API_KEY", "sesame")
    stub.raw = True  # refused, but after it was asked
    assert "--logprobs-mode processed_logprobs" in cli("train", "two-node", "--policy-server", stub.url).error
    assert stub.keys == {"Bearer sesame"}


def test_a_policy_server_of_another_base(cli: Cli, stub: StubVLLM, tmp_path: Path) -> None:
    from memweave.serving import create_policy

    other = create_policy(tmp_path / "other", ["a b c"], seed=5).path
    card: dict[str, Any] = {"id": "base", "parent": None, "root": str(other)}
    stub.fault = lambda path, body: (200, json.dumps({"data": [card]})) if path == "/v1/models" else None
    result = cli("train", "two-node", "--policy-server", stub.url)
    assert result.code == 2
    assert f"serves {other}, whose weights are not those of" in result.error
    assert f"memweave train --base {other}" in result.error
    card["root"] = "/models/on/another/machine"  # then it cannot be told from here: the next check speaks
    stub.raw = True
    assert "--logprobs-mode processed_logprobs" in cli("train", "two-node", "--policy-server", stub.url).error


def test_ctrl_c_says_how_to_go_on(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memweave.recipes import running

    def interrupted(recipe: Any, settings: Any, place: Any, *, arm: str) -> None:
        place.out.mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "run_recipe", interrupted)
    result = cli("train", "two-node")
    assert (result.code, result.out) == (130, "")
    said = result.err.splitlines()
    assert said == [
        "what was done is in runs/two-node-per-role-s0; the same command with --resume goes on with it",
        "interrupted",
    ]
    assert cli("train", "two-node", "--out", "b", "--json").json == {"error": "interrupted", "exit_code": 130}


def test_what_is_missing_is_named_with_the_command(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trl" else found(name))
    result = cli("train", "two-node")
    assert result.code == 1
    assert "training needs trl. Install memweave with the extra: pip install 'memweave[train]'" in result.error

"""`memweave eval world babyai`: what is printed, what goes to standard output, and how wrong input leaves."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from memweave import models
from memweave.cli.eval_world import WORLDS
from memweave.models import ModelOptions, register_provider
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import TraceStore

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

pytest.importorskip("minigrid")

BABYAI = ("eval", "world", "babyai")
WAY = ("go forward", "go forward", "turn right")
"""What wins GoToObj with seed 0."""


def wins(messages: list[BaseMessage]) -> AIMessage | str:
    done = sum(isinstance(message, ToolMessage) for message in messages)
    if done == len(WAY):
        return "I am there."
    return AIMessage("", tool_calls=[{"name": "act", "args": {"action": WAY[done]}, "id": "a", "type": "tool_call"}])


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ModelOptions]]:
    """Let `scripted:NAME` and `local:NAME` win the first episode of GoToObj, and `away:NAME` not answer; record what is asked for."""
    asked: list[tuple[str, ModelOptions]] = []

    def scripted(rest: str, options: ModelOptions) -> ScriptedChatModel:
        asked.append((rest, options))
        return ScriptedChatModel(wins, model_name=rest)

    def away(rest: str, options: ModelOptions) -> ScriptedChatModel:
        return ScriptedChatModel(lambda messages: ConnectionError("refused"), model_name=rest)

    monkeypatch.setattr(models, "_PROVIDERS", dict(models._PROVIDERS))
    register_provider("scripted", scripted)
    register_provider("local", scripted)
    register_provider("away", away)
    return asked


def test_a_line_for_each_level_and_one_for_all(cli: Cli) -> None:
    result = cli(*BABYAI, "--level", "GoToObj", "--level", "BabyAI-PutNextLocal-v0", "--episodes", "3", "--seeds", "2")
    assert (result.code, result.err) == (0, "")
    assert "BabyAI: bot, 3 episodes of each level, 2 seeds, at most 64 steps." in result.out
    for level in ("BabyAI-GoToObj-v0", "BabyAI-PutNextLocal-v0"):
        assert re.search(rf"^{level} +100\.0 +100\.0 - 100\.0 +0\.\d\d +\d+\.\d +0 +0 +0 +0 +0 *$", result.out, re.M)
    assert re.search(r"^all +100\.0 +100\.0 - 100\.0 *$", result.out, re.M)


def test_json_is_one_object(cli: Cli) -> None:
    found = cli(
        *BABYAI, "--agent", "random", "--level", "GoToObj", "--episodes", "4", "--max-steps", "20", "--json"
    ).json
    assert found.pop("seconds") > 0
    level = found["levels"].pop("BabyAI-GoToObj-v0")
    marks = level["won"][0]
    assert found == {
        "world": "babyai", "agent": "random", "policy": None, "policy_version": None, "episodes": 4, "seeds": 1,
        "max_steps": 20, "score": marks.count("1") / 4, "low": level["low"], "high": level["high"], "levels": {}, "run": None,
    }  # fmt: skip
    assert level["score"] == found["score"]
    assert level["ended"] == {
        "won": marks.count("1"), "lost": 0, "out_of_steps": marks.count("0"), "gave_up": 0, "failed": 0,
    }  # fmt: skip
    assert (level["invalid"], level["errors"]) == (0, [])
    assert level["steps"] <= 20


def test_an_agent_plays_and_leaves_traces(cli: Cli, made: list[tuple[str, ModelOptions]], tmp_path: Path) -> None:
    options = ("--level", "GoToObj", "--episodes", "1", "--temperature", "0.5", "--store", "traces.db")
    result = cli(*BABYAI, "--agent", "full", "--policy", "scripted:hero", *options)
    assert (result.code, result.err) == (0, "")
    assert "BabyAI: full with scripted:hero, 1 episode of each level, 1 seed" in result.out
    assert re.search(r"^BabyAI-GoToObj-v0 +100\.0", result.out, re.M)
    run = re.search(r"^Traces: run (\S+)\.$", result.out, re.M)
    assert run is not None
    with TraceStore(tmp_path / "traces.db") as store:
        (trace,) = store.query(run=run[1])
    assert trace.score is not None
    assert trace.score.value > 0.9
    assert [(name, asked.temperature, asked.seed) for name, asked in made] == [("hero", 0.5, None)]


def test_a_policy_of_ours_gets_a_seed_of_its_own_each_time(cli: Cli, made: list[tuple[str, ModelOptions]]) -> None:
    options = ("--level", "GoToObj", "--episodes", "1", "--seeds", "2", "--json")
    found = cli(*BABYAI, "--agent", "none", "--policy", "local:mine", *options).json
    assert [asked.seed for _, asked in made] == [0, 1]
    assert found["policy"] == "local:mine"
    assert found["levels"]["BabyAI-GoToObj-v0"]["won"][0] == "1"


def test_the_model_of_the_settings_plays(
    cli: Cli, made: list[tuple[str, ModelOptions]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMWEAVE_MODEL", "scripted:set")
    found = cli(*BABYAI, "--agent", "rag", "--level", "GoToObj", "--episodes", "1", "--json").json
    assert (found["agent"], found["policy"], found["score"]) == ("rag", "scripted:set", 1.0)
    assert cli(*BABYAI, "--level", "GoToObj", "--episodes", "1", "--json").json["policy"] is None  # the bot needs none


def test_what_an_agent_failed_with_is_shown(cli: Cli) -> None:
    result = cli(*BABYAI, "--level", "KeyInBox", "--episodes", "2")
    assert result.code == 0
    assert "OperationError: the bot finds no way through BabyAI-KeyInBox-v0" in result.out


def test_many_errors_are_not_all_printed(cli: Cli, made: list[tuple[str, ModelOptions]]) -> None:
    numbers = iter(range(5))
    register_provider(
        "fails", lambda rest, options: ScriptedChatModel(lambda messages: ValueError(f"no idea {next(numbers)}"))
    )
    options = ("--agent", "none", "--policy", "fails:x", "--level", "GoToObj", "--episodes", "5", "--concurrency", "1")
    result = cli(*BABYAI, *options)
    assert re.findall(r"^ValueError: no idea (\d)$", result.out, re.M) == ["0", "1", "2"]
    assert "and 2 other errors, which --json shows" in result.out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--agent", "robot"], 2, "no agent is called 'robot'. There are: bot, random, full, rag, none"),
        (["--agent", "full"], 2, "the agent 'full' needs a model"),
        (["--policy", "scripted:x"], 2, "the agent 'bot' plays without a model; leave the policy out"),
        (["--agent", "random", "--store", "t.db"], 2, "there is nothing to trace"),
        (["--agent", "full", "--policy", "openai:gpt-4.1-mini"], 2, "MEMWEAVE_MODEL_API_KEY"),
        (["--agent", "full", "--policy", "gpt"], 2, "does not name a provider"),
        (["--level", "GoToMoon"], 2, "BabyAI has no level 'GoToMoon'"),
        (["--episodes", "0"], 2, "Invalid value for '--episodes'"),
        (["--seeds", "0"], 2, "Invalid value for '--seeds'"),
        (["--episodes", "100001"], 2, "at most 100,000 episodes"),
        (["--max-steps", "0"], 2, "Invalid value for '--max-steps'"),
        (["--manager", "rule"], 2, "No such option: --manager"),
        (["--agent", "none", "--policy", "away:x"], 1, "The model 'x' cannot be reached"),
    ],
)
@pytest.mark.usefixtures("made")
def test_wrong_input_is_one_line(cli: Cli, arguments: list[str], code: int, says: str) -> None:
    result = cli(*BABYAI, *arguments)
    assert (result.code, result.out) == (code, "")
    assert says in result.error


def test_without_minigrid_it_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minigrid", None)
    result = cli(*BABYAI, "--json")
    assert result.code == 1
    assert "pip install 'memweave[babyai]'" in result.json["error"]


def test_every_world_has_a_command_with_help_and_json(cli: Cli) -> None:
    listed = cli("eval", "world", "--help").out
    for world in WORLDS:
        assert re.search(rf"^  {world} +\w", listed, re.M)
        usage = cli("eval", "world", world, "--help").out
        assert f"memweave eval world {world}" in usage
        assert "--json" in usage
    unknown = cli("eval", "world", "atari")
    assert (unknown.code, unknown.error) == (2, f"error: there is no world 'atari'. There are: {', '.join(WORLDS)}")

"""`memweave eval world`: what is printed, what goes to standard output, and how wrong input leaves."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from langchain_core.messages import BaseMessage

from memweave import models
from memweave.models import ModelOptions, register_provider
from memweave.testing.models import ScriptedChatModel
from memweave.worlds.dialog_world import DialogWorld

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

WORLD = ("eval", "world", "dialog", "--split", "val")


def test_a_line_for_each_budget_and_a_table_of_kinds(cli: Cli) -> None:
    options = ("--manager", "always-add", "--answerer", "oracle", "--dialogues", "2", "--budget", "6", "--budget", "60")
    result = cli(*WORLD, *options)
    assert (result.code, result.err) == (0, "")
    asked = sum(len(dialogue.questions) for dialogue in DialogWorld().dialogues("val", 2))
    assert f"DialogWorld, val: 2 dialogues, {asked} questions. Memory by always-add, answers by oracle." in result.out
    assert "temperature" not in result.out
    for budget in (6, 60):
        assert re.search(
            rf"^ +{budget} +\d+\.\d +\d+\.\d - \d+\.\d +\d+\.\d +0 +0 +\d+\.\d *$", result.out, re.MULTILINE
        )
    assert re.search(r"^kind +n +budget 6 +budget 60 *$", result.out, re.MULTILINE)
    assert re.search(r"^lookup +\d+ +\d+\.\d +\d+\.\d *$", result.out, re.MULTILINE)


def test_json_is_one_object(cli: Cli) -> None:
    found = cli(*WORLD, "--manager", "oracle", "--answerer", "oracle", "--dialogues", "2", "--json").json
    seconds = found.pop("seconds")
    at = found["budgets"].pop("6")
    val = DialogWorld().dialogues("val", 2)
    kinds = [question.kind.value for dialogue in val for question in dialogue.questions]
    assert found == {
        "world": "dialog",
        "manager": "oracle",
        "answerer": "oracle",
        "policy_versions": {"manager": None, "answerer": None},
        "split": "val",
        "seed": 0,
        "temperature": 0.0,
        "answerer_temperature": 0.0,
        "dialogues": 2,
        "questions": len(kinds),
        "questions_by_kind": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "budgets": {},
    }
    assert {each: len(marks) for each, marks in at["right"].items()} == {d.id: len(d.questions) for d in val}
    assert set("".join(at["right"].values())) <= {"0", "1"}
    assert at["low"] <= at["score"] <= at["high"] <= 1
    assert at["kinds"].keys() == set(kinds)
    assert (at["failed_turns"], at["unanswered"]) == (0, 0)
    assert at["bank_size"] > 1
    assert seconds > at["seconds"] > 0


def test_managers_without_a_model_differ_as_they_should(cli: Cli) -> None:
    sizes, scores = {}, {}
    for manager in ("oracle", "always-add", "exact-key", "rule", "raw-turns", "always-noop"):
        options = ("--manager", manager, "--answerer", "oracle", "--dialogues", "3", "--budget", "1000", "--json")
        at = cli(*WORLD, *options).json["budgets"]["1000"]
        sizes[manager], scores[manager] = at["bank_size"], at["score"]
    # Who takes nothing back keeps more than a perfect manager.
    order = ["always-noop", "oracle", "exact-key", "always-add", "raw-turns"]
    assert [name for name in sorted(sizes, key=sizes.__getitem__) if name != "rule"] == order
    assert (sizes["always-noop"], sizes["raw-turns"]) == (0, 60)
    assert 0 < sizes["rule"] < sizes["always-add"]
    # A reader that knows the language needs no manager when it sees everything; one that was told nothing knows little.
    assert scores["raw-turns"] == 1.0
    assert scores["always-noop"] < scores["exact-key"] < scores["always-add"] <= scores["raw-turns"]


def test_rules_answer_too(cli: Cli) -> None:
    found = cli(*WORLD, "--manager", "rule", "--answerer", "rule", "--dialogues", "2", "--json").json
    assert 0 < found["budgets"]["6"]["score"] < 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["atari"], 2, "there is no world 'atari'. There are: dialog"),
        (["dialog", "--split", "train"], 2, "--split 'train' is not known; choose val, test, ood"),
        (["dialog", "--manager", "none"], 2, "no manager is called 'none'. There are: oracle, always-add"),
        (
            ["dialog", "--manager", "oracle", "--answerer", "rules"],
            2,
            "no answerer is called 'rules'. There are: oracle",
        ),
        (["dialog", "--manager", "openai:gpt-4.1-mini"], 2, "set MEMWEAVE_MODEL_API_KEY"),
        (["dialog", "--manager", "oracle", "--answerer", "oracle", "--budget", "1"], 2, "give 2 to 2,000"),
        (["dialog", "--base", "nowhere"], 2, "nowhere does not exist. Name one with --base"),
        (["dialog", "--manager", "."], 2, "holds neither an adapter nor a policy"),
        (["dialog", "--dialogues", "0"], 2, "Invalid value for '--dialogues'"),
        (["dialog", "--temperature", "nan"], 2, "Invalid value for '--temperature'"),
    ],
)
def test_wrong_input_is_one_line(cli: Cli, arguments: list[str], code: int, says: str) -> None:
    result = cli("eval", "world", *arguments)
    assert (result.code, result.out) == (code, "")
    assert says in result.error


def test_a_model_that_is_away_is_an_error_and_no_score(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(rest: str, options: ModelOptions) -> ScriptedChatModel:
        def reply(messages: list[BaseMessage]) -> str:
            raise ConnectionError("refused")

        return ScriptedChatModel(reply, model_name=rest)

    monkeypatch.setattr(models, "_PROVIDERS", dict(models._PROVIDERS))
    register_provider("away", make)
    for roles in (("--manager", "away:x", "--answerer", "oracle"), ("--manager", "oracle", "--answerer", "away:x")):
        result = cli(*WORLD, *roles, "--dialogues", "1", "--json")
        assert result.code == 1
        assert "cannot be reached" in result.json["error"]


def test_a_hosted_model_is_told_what_to_do_and_a_trained_one_is_not(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ScriptedChatModel] = []

    def make(rest: str, options: ModelOptions) -> ScriptedChatModel:
        made.append(ScriptedChatModel(lambda messages: "**Answer:** Rome", model_name=rest))
        assert options.temperature == 0.5
        return made[-1]

    monkeypatch.setattr(models, "_PROVIDERS", dict(models._PROVIDERS))
    register_provider("openai", make)
    register_provider("vllm", make)
    for spec in ("openai:x", "vllm:x@http://localhost:1"):
        options = ("--manager", "oracle", "--answerer", spec, "--dialogues", "1", "--temperature", "0.5", "--json")
        assert cli(*WORLD, *options).json["answerer"] == spec
    hosted, trained = ({messages[-1].text: messages for messages in model.calls} for model in made)
    assert hosted.keys() == trained.keys()
    assert {tuple(message.type for message in messages) for messages in hosted.values()} == {("system", "human")}
    assert {tuple(message.type for message in messages) for messages in trained.values()} == {("human",)}

"""`memweave eval`: what is printed, what goes to standard output, and how wrong input leaves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from langchain_core.messages import BaseMessage

from memweave import models
from memweave.models import ModelOptions, register_provider
from memweave.testing.models import ScriptedChatModel
from tests.evaluation.samples import write_hotpotqa, write_locomo

if TYPE_CHECKING:
    from tests.cli.conftest import Cli


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedChatModel]:
    """Make `scripted:TEXT` a model that always replies TEXT; return the models made."""
    made: list[ScriptedChatModel] = []
    monkeypatch.setattr(models, "_PROVIDERS", dict(models._PROVIDERS))

    def make(rest: str, options: ModelOptions) -> ScriptedChatModel:
        def reply(messages: list[BaseMessage]) -> str:
            if rest == "interrupt":
                raise KeyboardInterrupt
            if rest == "unreachable":
                raise ConnectionError("refused")
            return rest

        made.append(ScriptedChatModel(reply, model_name=rest))
        return made[-1]

    register_provider("scripted", make)
    return made


def test_retrieval_prints_a_table(cli: Cli, tmp_path: Path) -> None:
    result = cli("eval", "retrieval", "--dataset", "locomo", "--path", str(write_locomo(tmp_path)), "--k", "1,5")
    assert result.code == 0
    assert result.err == ""
    assert "3 questions (1 without evidence left out)" in result.out
    assert re.search(r"memweave +83.3 +100.0\s+95 % interval +50.0 - 100.0 +100.0 - 100.0", result.out)
    assert "1 multi-hop" in result.out
    assert "conv-2" in result.out


def test_retrieval_json_is_one_object(cli: Cli, tmp_path: Path) -> None:
    path = write_hotpotqa(tmp_path)
    found = cli(
        "eval", "retrieval", "--dataset", "hotpotqa", "--path", str(path), "--k", "2,5", "--baselines", "--json"
    ).json
    assert found["recall"]["5"] == 1.0
    assert found["n"] == 2
    assert set(found["baselines"]) == {"dense", "bm25", "rrf"}
    assert found["config"]["embedding"] == "hashing:256"


def test_retrieval_of_a_part(cli: Cli, tmp_path: Path) -> None:
    path = str(write_hotpotqa(tmp_path))
    part = cli("eval", "retrieval", "--dataset", "hotpotqa", "--path", path, "--questions", "1:", "--json").json
    assert part["n"] == 1
    path = str(write_locomo(tmp_path))
    one = cli("eval", "retrieval", "--dataset", "locomo", "--path", path, "--conversation", "conv-2", "--json").json
    assert list(one["by_collection"]) == ["conv-2"]


def test_data_are_found_in_their_folder(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sets/locomo").mkdir(parents=True)
    write_locomo(tmp_path / "sets/locomo")
    monkeypatch.setenv("MEMWEAVE_DATA", str(tmp_path / "sets"))
    assert cli("eval", "retrieval", "--dataset", "locomo", "--json").json["n"] == 3


@pytest.mark.parametrize("command", ["retrieval", "qa"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dataset", "squad"], "choose locomo, hotpotqa, musique"),
        (["--dataset", "locomo"], "Add --path FILE, or set MEMWEAVE_DATA"),
        (["--dataset", "locomo", "--path", "none.json"], "none.json does not exist"),
        (["--dataset", "locomo", "--path", "x", "--questions", "1:2"], "name a --conversation"),
        (["--dataset", "hotpotqa", "--path", "x", "--conversation", "c"], "range of --questions"),
        (["--dataset", "musique", "--path", "locomo.json"], "question 0"),
        (["--dataset", "locomo", "--path", "locomo.json", "--conversation", "c"], "It has: conv-1, conv-2"),
    ],
)
def test_wrong_input_is_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, arguments: list[str], says: str
) -> None:
    monkeypatch.delenv("MEMWEAVE_DATA", raising=False)
    write_locomo(tmp_path)
    result = cli("eval", command, *arguments)
    assert result.code == 2
    assert says in result.error
    assert result.out == ""


def test_a_wrong_k_and_a_wrong_agent(cli: Cli, tmp_path: Path) -> None:
    path = str(write_locomo(tmp_path))
    assert "whole numbers" in cli("eval", "retrieval", "--dataset", "locomo", "--path", path, "--k", "0").error
    assert "choose memory-r1" in cli("eval", "qa", "--dataset", "locomo", "--path", path, "--agent", "x").error


def test_qa_prints_scores_and_cost(cli: Cli, tmp_path: Path, scripted: list[ScriptedChatModel]) -> None:
    path = str(write_locomo(tmp_path))
    result = cli("eval", "qa", "--dataset", "locomo", "--path", path, "--agent", "rag", "--model", "scripted:whippet")
    assert result.code == 0
    assert "locomo: 4 questions. rag, answers by scripted:whippet." in result.out
    assert "4 single-hop" in result.out
    assert "0.0 - 75.0" in result.out
    assert "Memory: 7 turns -> 7 memories, 0 tokens" in result.out
    assert "were not kept" in result.err


def test_qa_json_with_a_judge(cli: Cli, tmp_path: Path, scripted: list[ScriptedChatModel]) -> None:
    options = ("--agent", "rag", "--model", "scripted:whippet", "--judge", "scripted:CORRECT", "--limit", "2", "--json")
    found = cli("eval", "qa", "--dataset", "locomo", "--path", str(write_locomo(tmp_path)), *options).json
    assert found["n"] == 2
    assert found["judge"] == "scripted:CORRECT"
    assert found["scores"]["judge"]["mean"] == 1.0
    assert found["scores"]["em"]["mean"] == 0.5
    assert found["tokens"]["calls"] == 2


def test_qa_continues_in_its_folder_and_refuses_other_settings(
    cli: Cli, tmp_path: Path, scripted: list[ScriptedChatModel]
) -> None:
    base = (
        "eval",
        "qa",
        "--dataset",
        "locomo",
        "--path",
        str(write_locomo(tmp_path)),
        "--agent",
        "rag",
        "--out",
        "run",
    )
    assert cli(*base, "--model", "scripted:whippet", "--limit", "1").code == 0
    assert cli(*base, "--model", "scripted:whippet", "--json").json["n"] == 4
    assert [len(model.calls) for model in scripted] == [1, 3]
    refused = cli(*base, "--model", "scripted:cello")
    assert refused.code == 2
    assert "model was 'scripted:whippet', now 'scripted:cello'" in refused.error


def test_qa_manager_builds_the_memory_and_model_answers(
    cli: Cli, tmp_path: Path, scripted: list[ScriptedChatModel]
) -> None:
    path = str(write_locomo(tmp_path))
    options = ("--model", "scripted:whippet", "--manager", 'scripted:{"facts": []}', "--json")
    found = cli("eval", "qa", "--dataset", "locomo", "--path", path, *options).json
    assert found["agent"] == "memory-r1"
    assert found["extractor"] == found["manager"] == 'scripted:{"facts": []}'
    assert found["construction"]["memories"] == 0
    assert found["construction"]["tokens"]["calls"] == 7
    assert found["scores"]["em"]["mean"] == 0.25


@pytest.mark.parametrize(("model", "code"), [("interrupt", 130), ("unreachable", 1)])
def test_an_interrupted_or_failed_run_says_where_it_is(
    cli: Cli, tmp_path: Path, scripted: list[ScriptedChatModel], model: str, code: int
) -> None:
    path = str(write_locomo(tmp_path))
    options = ("--agent", "rag", "--model", f"scripted:{model}", "--out", "run")
    result = cli("eval", "qa", "--dataset", "locomo", "--path", path, *options)
    assert result.code == code
    assert "What is finished is in run. The same command continues there." in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_a_judge_cannot_be_rules(cli: Cli, tmp_path: Path, scripted: list[ScriptedChatModel]) -> None:
    path = str(write_locomo(tmp_path))
    options = ("--agent", "rag", "--model", "scripted:x", "--judge", "rule")
    result = cli("eval", "qa", "--dataset", "locomo", "--path", path, *options)
    assert result.code == 2
    assert "judge" in result.error


def test_an_option_beats_the_setting_of_a_role(
    cli: Cli, tmp_path: Path, scripted: list[ScriptedChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMWEAVE_ANSWERER", "scripted:cello")
    options = ("--path", str(write_locomo(tmp_path)), "--agent", "rag", "--limit", "1", "--json")
    assert cli("eval", "qa", "--dataset", "locomo", *options).json["model"] == "scripted:cello"
    assert cli("eval", "qa", "--dataset", "locomo", *options, "--model", "scripted:x").json["model"] == "scripted:x"

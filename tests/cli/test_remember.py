"""`memweave remember` and `memweave ask`, with a scripted model: what they store, show and survive."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from langchain_core.messages import BaseMessage

from memweave import models
from memweave.agents.prompts import load_prompt
from memweave.errors import UnavailableError
from memweave.testing.models import Scripted, ScriptedChatModel

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

CHAT = [
    {"id": "m1", "speaker": "Anna", "text": "I live in Porto.", "time": "2025-01-01T10:00+00:00"},
    {"id": "m2", "speaker": "Ben", "text": "Nice!", "time": "2025-01-01T10:01+00:00"},
    {"id": "m2b", "speaker": "Anna", "text": "Nice! to hear", "time": "2025-01-01T10:01+00:00"},
    {"id": "m2c", "speaker": "Ben", "text": "Nice! indeed", "time": "2025-01-01T10:01+00:00"},
    {"id": "m3", "speaker": "Anna", "text": "My cat is called Miso.", "time": "2025-01-01T10:02+00:00"},
]
USER = ("--user", "anna", "--model", "scripted:x")


def good(messages: list[BaseMessage]) -> Scripted:
    """Play every role well: a fact for each turn but `Nice!`, an ADD for each fact, an answer from the first memory."""
    system, body = messages[0].text, messages[1].text
    last = body.strip().splitlines()[-1]
    if system == load_prompt("extractor").text:
        facts = [] if "Nice!" in last else [last.partition(": ")[2]]
        return json.dumps({"facts": facts})
    if system == load_prompt("manager").text:
        return json.dumps({"memory": [{"event": "ADD", "text": last[2:], "reason": "new"}]})
    return "- quoted [0]\n**Answer:** Porto"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[BaseMessage]], Scripted]], None]:
    """Return a function that sets who answers for the model `scripted:x`."""

    def use(play: Callable[[list[BaseMessage]], Scripted]) -> None:
        monkeypatch.setitem(models._PROVIDERS, "scripted", lambda rest, options: ScriptedChatModel(play))

    use(good)
    return use


@pytest.fixture
def chat(tmp_path: Path, script: object) -> str:
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(message) + "\n" for message in CHAT))
    return "chat.jsonl"


def test_remember_shows_operations_with_reasons_and_sums_up_small_talk(cli: Cli, chat: str) -> None:
    result = cli("remember", chat, *USER)
    assert result.code == 0
    lines = result.err.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["+", "ADD", "Anna", "I", "live", "in", "Porto.", "(new)"],
        ["...", "3", "turns", "of", "small", "talk"],
        ["+", "ADD", "Anna", "My", "cat", "is", "called", "Miso.", "(new)"],
    ]
    assert result.out.strip() == "5 turns read: 2 ADD. 2 memories."


def test_reading_again_changes_nothing(cli: Cli, chat: str) -> None:
    first = cli("remember", chat, *USER, "--json").json
    again = cli("remember", chat, *USER, "--json").json
    assert (first["turns_done"], first["memories"]) == (5, 2)
    assert (again["turns_done"], again["turns_known"], again["memories"], again["operations"]) == (0, 5, 2, {})


def test_quiet_and_json_show_no_operations(cli: Cli, chat: str) -> None:
    assert "ADD" not in cli("remember", chat, *USER, "--quiet").err
    assert cli("remember", chat, *USER, "--json").err == ""


def test_a_run_can_be_undone(cli: Cli, chat: str) -> None:
    run = cli("remember", chat, *USER, "--json").json["run_id"]
    assert len(cli("memory", "undo", "--run", run, "--user", "anna", "--json").json["operations"]) == 2
    assert cli("memory", "list", "--user", "anna", "--json").json["total"] == 0


def test_a_model_that_answers_with_prose_changes_nothing_and_can_be_retried(
    cli: Cli, chat: str, script: Callable[[Callable[[list[BaseMessage]], Scripted]], None]
) -> None:
    def prose(messages: list[BaseMessage]) -> Scripted:
        return "I would rather talk about the weather." if "Miso" in messages[1].text else good(messages)

    script(prose)
    result = cli("remember", chat, *USER)
    assert result.code == 1
    assert "! FAILED" in result.err
    assert "m3" in result.err
    assert "memweave remember" in result.err
    assert cli("memory", "list", "--user", "anna", "--json").json["total"] == 1
    failed = cli("memory", "log", "--failed", "--user", "anna", "--json").json["operations"]
    assert [op["source_ids"] for op in failed] == [["m3"]]

    script(good)
    retried = cli("remember", *USER, "--json")
    assert retried.code == 0
    assert (retried.json["turns_done"], retried.json["turns_pending"], retried.json["memories"]) == (1, 0, 2)


def test_an_endpoint_out_of_reach_stops_the_run_and_loses_nothing(
    cli: Cli, chat: str, script: Callable[[Callable[[list[BaseMessage]], Scripted]], None]
) -> None:
    script(lambda messages: UnavailableError("the model at http://localhost:1 does not answer"))
    result = cli("remember", chat, *USER, "--json")
    assert result.code == 1
    assert "does not answer" in result.json["stopped"]
    assert result.json["turns_pending"] == 5


def test_ask_answers_with_numbered_dated_memories(cli: Cli, chat: str) -> None:
    cli("remember", chat, *USER)
    result = cli("ask", "Where does Anna live?", *USER)
    assert result.code == 0
    assert result.out.splitlines()[0] == "Porto"
    for part in ("0", "2025-01-01", "Anna", "I live in Porto."):
        assert part in result.out
    answered = cli("ask", "Where does Anna live?", *USER, "--json").json
    assert answered["answer"] == "Porto"
    assert [memory["text"] for memory in answered["used"]] == ["I live in Porto."]
    assert answered["memories_seen"] == 2


def test_terminal_escapes_in_a_memory_are_shown_not_obeyed(cli: Cli, script: object, tmp_path: Path) -> None:
    hostile = {
        "speaker": "Anna",
        "text": "I like [bold red]\u202ered and \u200b\N{ESCAPE}[31mgreen :smile:",
        "id": "m1",
    }
    (tmp_path / "chat.jsonl").write_text(json.dumps(hostile))
    assert cli("remember", "chat.jsonl", *USER).code == 0
    out = cli("memory", "list", "--user", "anna").out
    assert not set(out) & {"\x1b", "\u202e", "\u200b"}
    assert "[bold red]" in out
    assert ":smile:" in out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"Dear diary, today", "unknown format"),
        (b'{"speaker": "Anna", "text": "I live', "line 1"),
        (b'[{"sample_id": "c", "conversation": {"speaker_a": "A"', "cut off"),
        (b"[]", "empty"),
        (b'{"speaker": "Anna"}', "text"),
        (b'{"speaker": "Anna", "text": "x", "time": "yesterday"}', "time"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_and_makes_nothing(
    cli: Cli, tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "chat.jsonl").write_bytes(content)
    result = cli("remember", "chat.jsonl", "--user", "anna")
    assert result.code == 2
    assert says in result.error
    assert "chat.jsonl" in result.error
    assert not (tmp_path / ".memweave").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("remember", "nowhere.jsonl", "--user", "anna"), 2, "nowhere.jsonl does not exist"),
        (("remember", "chat.jsonl"), 2, "no user is given"),
        (("remember", "--user", "anna"), 2, "no data folder"),
        (("remember", "chat.jsonl", "--user", "anna", "--model", "gpt-9"), 2, "gpt-9"),
        (("ask", " ", "--user", "anna"), 2, "question is empty"),
        (("ask", "Where?", "--user", "anna"), 2, "no data folder"),
    ],
)
def test_misuse_is_one_line_and_makes_nothing(
    cli: Cli, chat: str, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    result = cli(*arguments)
    assert result.code == code
    assert says in result.error
    assert not (tmp_path / ".memweave").exists()


def test_an_unknown_embedding_is_named_and_can_be_corrected(cli: Cli, chat: str) -> None:
    refused = cli("remember", chat, *USER, "--embedding", "bert")
    assert refused.code == 2
    assert "bert" in refused.error
    assert cli("remember", chat, *USER, "--embedding", "hashing").code == 0


def test_a_folder_made_with_another_embedding_is_refused_with_the_remedy(
    cli: Cli, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("remember", chat, *USER)
    monkeypatch.setenv("MEMWEAVE_EMBEDDING", "hashing:64")
    result = cli("memory", "list", "--user", "anna")
    assert result.code == 1
    assert "memweave memory rebuild --embedding hashing:64" in result.error

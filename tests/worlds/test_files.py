"""`read_turns` finds the format by looking inside."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from memweave.errors import InputError
from memweave.worlds import read_turns

MESSAGE = {"speaker": "Ann", "text": "the word conversation is no sign"}
LOCOMO = {
    "sample_id": "conv-1",
    "conversation": {
        "speaker_a": "Ann",
        "speaker_b": "Ben",
        "session_1": [{"speaker": "Ann", "dia_id": "D1:1", "text": "Hello"}],
    },
}


@pytest.mark.parametrize(
    ("text", "dialogues"),
    [
        (json.dumps([LOCOMO]), ["conv-1"]),
        (json.dumps([LOCOMO, {**LOCOMO, "sample_id": "conv-2"}]), ["conv-1", "conv-2"]),
        (json.dumps(LOCOMO), ["conv-1"]),
        (json.dumps(LOCOMO, indent=2), ["conv-1"]),
        (json.dumps(MESSAGE), ["file"]),
        (f"\n\n  {json.dumps(MESSAGE)}\n{json.dumps({**MESSAGE, 'dialogue': 'd'})}\n", ["file", "d"]),
    ],
)
def test_formats(tmp_path: Path, text: str, dialogues: list[str]) -> None:
    path = tmp_path / "file.txt"
    path.write_text(text, encoding="utf-8")
    assert [turn.dialogue for turn in read_turns(path)] == dialogues


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("Ann: Hello\nBen: Hi\n", r"unknown format: it starts with 'Ann: Hello"),
        ("<html>", "unknown format"),
        ("[]", "list of conversations is empty"),
        (json.dumps([MESSAGE]), "one JSON object per line, not as a list"),
        (json.dumps(LOCOMO, indent=2)[:-40], "not valid JSON .* cut off"),
        (json.dumps([LOCOMO])[:-40], "not valid JSON .* cut off"),
        (json.dumps(MESSAGE)[:-3], "line 1, column .*not valid JSON"),
        (f"{json.dumps(MESSAGE)}\n{json.dumps(MESSAGE)[:-3]}", "line 2, column .*not valid JSON"),
    ],
)
def test_what_is_no_conversation_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_turns(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_turns(tmp_path / "none.json")
    with pytest.raises(InputError, match="is a folder"):
        read_turns(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.json"
    path.write_text("[]")
    path.chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        read_turns(path)

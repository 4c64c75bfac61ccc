"""JSON lines of messages: names are tolerant, values strict, ids stable."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from memweave.errors import InputError
from memweave.records import Trust, Turn
from memweave.worlds.messages import read_messages


def write(path: Path, *messages: object) -> Path:
    path.write_text("".join(f"{m if isinstance(m, str) else json.dumps(m)}\n" for m in messages), encoding="utf-8")
    return path


def read(folder: Path, *messages: object) -> list[Turn]:
    return read_messages(write(folder / "chat.jsonl", *messages))


def test_names_are_tolerant(tmp_path: Path) -> None:
    turns = read(
        tmp_path,
        {"speaker": "Ann", "text": "Hi", "time": "2025-01-31T18:00:00+01:00", "id": "m1", "dialogue": "d"},
        {
            "role": "assistant",
            "content": "Hello",
            "timestamp": 1738342860,
            "source_id": 2,
            "dialogue": "d",
            "mood": "ok",
        },
        {"speaker": "Ann", "role": "user", "text": "Bye", "observed_at": "2025-01-31", "dialogue": "e"},
    )
    assert [(t.source_id, t.dialogue, t.speaker, t.text) for t in turns[:2]] == [
        ("m1", "d", "Ann", "Hi"),
        ("2", "d", "assistant", "Hello"),
    ]
    assert turns[0].observed_at == datetime(2025, 1, 31, 17, 0, tzinfo=UTC)
    assert turns[1].observed_at == datetime(2025, 1, 31, 17, 1, tzinfo=UTC)
    assert turns[2].observed_at == datetime(2025, 1, 31, tzinfo=UTC)
    assert [t.observed_naive for t in turns] == [False, False, True]
    assert [t.trust for t in turns] == [Trust.USER, Trust.AGENT, Trust.USER]
    assert [t.previous for t in turns] == [None, "Hi", None], "the message before in the same dialogue"


def test_date_id_and_dialogue_may_be_missing(tmp_path: Path) -> None:
    (turn,) = read(tmp_path, {"speaker": "Ann", "text": "Hi", "time": None})
    assert (turn.observed_at, turn.observed_naive, turn.dialogue) == (None, False, "chat")


def test_ids_follow_content_so_that_reading_again_or_more_is_idempotent(tmp_path: Path) -> None:
    ok, hi = {"speaker": "Ann", "text": "ok"}, {"speaker": "Ann", "text": "hi"}
    before = [t.source_id for t in read(tmp_path, ok, hi, ok)]
    assert len(set(before)) == 3
    assert [t.source_id for t in read(tmp_path, ok, hi, ok)] == before
    more = [t.source_id for t in read(tmp_path, {"speaker": "Ben", "text": "ok"}, ok, hi, ok, ok)]
    assert more[1:4] == before
    assert len(set(more)) == 5
    other = read_messages(write(tmp_path / "other.jsonl", ok))
    assert other[0].source_id not in before, "another file is another dialogue"


def test_the_same_message_twice_is_read_once(tmp_path: Path) -> None:
    assert len(read(tmp_path, {"id": 1, "speaker": "A", "text": "x"}, {"id": "1", "speaker": "A", "text": "x"})) == 1


def test_blank_lines_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\r\n{"speaker": "A", "text": "x"}\r\n\r\n{"speaker": "B", "text": "y"}')
    assert [t.text for t in read_messages(path)] == ["x", "y"]


def test_control_characters_go_emoji_stay(tmp_path: Path) -> None:
    (turn,) = read(tmp_path, '{"speaker": "A\\u0007nn", "text": "a\\u0000b\\u001b[1m\\tc\\nd \\ud83c\\udf89 \\ud800!"}')
    assert (turn.speaker, turn.text) == ("Ann", "ab[1m\tc\nd 🎉 \ufffd!")


def test_line_separators_inside_a_text_do_not_end_the_line(tmp_path: Path) -> None:
    (turn,) = read(tmp_path, '{"speaker": "A", "text": "one\u2028two\u0085three"}')
    assert turn.text == "one\u2028twothree"


def test_one_megabyte_is_read(tmp_path: Path) -> None:
    assert len(read(tmp_path, {"speaker": "A", "text": "x" * 1_000_000})[0].text) == 1_000_000


GOOD = {"speaker": "A", "text": "x", "id": "1"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"speaker": "A", "te', r"line 2, column 18: not valid JSON"),
        ("hello", r"line 2, column 1: not valid JSON"),
        ("[1]", r"line 2: expected an object, found a list"),
        ({"text": "x"}, r"line 2: has no `speaker` \(or `role`\)"),
        ({"speaker": "A"}, r"line 2: has no `text` \(or `content`\)"),
        ({"speaker": "A", "text": ["x"]}, r"line 2: `text` must be a string, found a list"),
        ({"speaker": "A", "text": " \n"}, r"line 2: `text` is empty"),
        ({"speaker": "A", "text": "\x00"}, r"line 2: `text` is empty"),
        ({"speaker": True, "text": "x"}, r"line 2: `speaker` must be a string, found a boolean"),
        ({"speaker": "A" * 257, "text": "x"}, r"line 2: `speaker` has 257 characters, at most 256"),
        ({"speaker": "A", "text": "x" * 1_000_001}, r"line 2: `text` has 1,000,001 characters, at most 1,000,000"),
        ({"speaker": "A", "text": "x", "content": "y"}, r"line 2: `text` and `content` mean the same and differ"),
        ({"speaker": "A", "text": "x", "time": "soon"}, r"line 2: cannot read the time, the string 'soon'"),
        ({"speaker": "A", "text": "x", "time": 1738342860000}, r"line 2: cannot read the time, the number"),
        ({"speaker": "A", "text": "x", "time": True}, r"line 2: cannot read the time, a boolean"),
        ({"speaker": "A", "text": "x", "time": "9999-12-31T23:59:59-10:00"}, r"line 2: cannot read the time"),
        ({"speaker": "A", "text": "x", "id": 1.5}, r"line 2: `id` must be a string, found the number 1.5"),
        ({"speaker": "A", "text": "x", "dialogue": ""}, r"line 2: `dialogue` is empty"),
        ({"speaker": "A", "text": "y", "id": "1"}, r"line 2: the id '1' is already used on line 1"),
        ("[" * 100_000, r"line 2: not usable JSON"),
    ],
)
def test_what_cannot_be_read_names_file_and_line(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", GOOD, line)
    with pytest.raises(InputError, match=message) as caught:
        read_messages(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


def test_a_byte_that_is_not_utf8_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"speaker": "A", "text": "x"}\n{"speaker": "B", "text": "\xff"}\n')
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        read_messages(path)


def test_a_file_of_blank_lines_holds_no_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no message"):
        read(tmp_path, "", "  ")

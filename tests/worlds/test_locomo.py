"""LoCoMo files: what a clean one gives, how the data's known faults are mended, and what is refused."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from memweave.errors import InputError
from memweave.worlds.locomo import LocomoConversation, parse_date, read_locomo

SAMPLE: dict[str, Any] = {
    "sample_id": "conv-1",
    "conversation": {
        "speaker_a": "Ann",
        "speaker_b": "Ben",
        "session_1_date_time": "1:56 pm on 8 May, 2023",
        "session_1": [
            {"speaker": "Ann", "dia_id": "D1:1", "text": "Hello Ben!"},
            {"speaker": "Ben", "dia_id": "D1:2", "text": "Look!", "blip_caption": "a photo of a dog"},
        ],
        "session_2": [{"speaker": "Ann", "dia_id": "D2:1", "text": "Sorry, I was away."}],
        "session_10_date_time": "12:05 am on 1 January, 2024",
        "session_10": [{"speaker": "Ben", "dia_id": "D10:1", "text": "Happy new year"}],
        "session_11_date_time": "3:00 pm on 2 January, 2024",
    },
    "qa": [
        {"question": "Who said hello?", "answer": "Ann", "evidence": ["D1:1"], "category": 4},
        {"question": "Since when?", "answer": 2022, "evidence": ["D1:2; D2:01", "D:10:1"], "category": 2},
        {"question": "Why?", "evidence": ["D1:1", "D9:9", "D1:1", ""], "category": 5, "adversarial_answer": "love"},
    ],
}


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def read(path: Path, sample: dict[str, Any]) -> LocomoConversation:
    return read_locomo(write(path / "locomo.json", [sample]))[0]


def changed(**conversation: object) -> dict[str, Any]:
    sample = copy.deepcopy(SAMPLE)
    sample["conversation"].update(conversation)
    return sample


def test_sessions_come_in_order_and_turns_carry_who_when_and_what_came_before(tmp_path: Path) -> None:
    conversation = read(tmp_path, SAMPLE)
    assert [s.number for s in conversation.sessions] == [1, 2, 10]
    assert conversation.speakers == ("Ann", "Ben")
    first, second, third, fourth = conversation.turns
    assert (first.source_id, first.dialogue, first.speaker, first.previous) == ("D1:1", "conv-1", "Ann", None)
    assert first.observed_at == datetime(2023, 5, 8, 13, 56, tzinfo=UTC)
    assert first.observed_naive
    assert second.text == "Look! [shares a photo: a photo of a dog]"
    assert second.previous == "Hello Ben!"
    assert third.previous is None, "the first turn of a session follows nothing"
    assert (third.observed_at, third.observed_naive) == (None, False)
    assert fourth.observed_at == datetime(2024, 1, 1, 0, 5, tzinfo=UTC)


def test_questions_keep_their_category_number_and_evidence_is_mended(tmp_path: Path) -> None:
    first, second, third = read(tmp_path, SAMPLE).questions
    assert (first.id, first.category, first.evidence) == ("conv-1/0", 4, ("D1:1",))
    assert second.answer == "2022"
    assert second.evidence == ("D1:2", "D2:1", "D10:1")
    assert third.evidence == ("D1:1",)
    assert (third.answer, third.adversarial_answer) == (None, "love")


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({"text": "", "blip_caption": "a cat"}, "[shares a photo: a cat]"),
        ({"blip_caption": "a cat"}, "[shares a photo: a cat]"),
        ({"text": " ", "img_url": ["http://x/y.jpg"]}, "[shares a photo]"),
        ({"text": "Hi\x00 \x1b[31mthere 🎉", "img_url": ["u"]}, "Hi [31mthere 🎉"),
        ({"text": "tab\tand\nline"}, "tab\tand\nline"),
    ],
)
def test_image_only_turns_and_control_characters(tmp_path: Path, turn: dict[str, Any], expected: str) -> None:
    sample = changed(session_2=[{"speaker": "Ann", "dia_id": "D2:1", **turn}])
    assert read(tmp_path, sample).sessions[1].turns[0].text == expected


def test_a_turn_with_nothing_in_it_is_skipped_and_a_repeated_id_is_told_apart(tmp_path: Path) -> None:
    said = [("D2:1", "one"), ("D2:2", ""), ("D2:1", "two")]
    sample = changed(session_2=[{"speaker": "Ann", "dia_id": i, "text": text} for i, text in said])
    turns = read(tmp_path, sample).sessions[1].turns
    assert [(t.source_id, t.text, t.previous) for t in turns] == [("D2:1", "one", None), ("D2:1#2", "two", "one")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1:56 pm on 8 May, 2023", datetime(2023, 5, 8, 13, 56)),
        ("12:00 am on 31 December, 2022", datetime(2022, 12, 31, 0, 0)),
        ("12:30 pm on 1 june 2023", datetime(2023, 6, 1, 12, 30)),
        ("1:56 pm on 31 February, 2023", None),
        ("8 May 2023", None),
        ("1:56 pm on 8 Mai, 2023", None),
    ],
)
def test_dates(text: str, expected: datetime | None) -> None:
    assert parse_date(text) == expected


def test_one_conversation_may_stand_alone(tmp_path: Path) -> None:
    assert len(read_locomo(write(tmp_path / "one.json", SAMPLE))) == 1


def without(*path: str) -> dict[str, Any]:
    sample = copy.deepcopy(SAMPLE)
    inner: Any = sample
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return sample


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"empty"),
        ("[" + json.dumps(SAMPLE)[:200], r"line 1, column \d+: not valid JSON .* cut off"),
        ('{"a": 1,}', r"not valid JSON"),
        ("[" * 200_000, r"not usable JSON"),
        ({"a": 1}, r"expected a list, found an object"),
        ([1], r"conversation 0: expected an object, found the number 1"),
        ([{"speaker": "Ann", "text": "hi"}], r"not a LoCoMo file"),
        ([without("sample_id")], r"conversation 0: `sample_id` must be a string"),
        ([SAMPLE, SAMPLE], r"two conversations have the sample_id 'conv-1'"),
        ([without("conversation", "speaker_b")], r"conv-1.*`speaker_b`"),
        ([changed(session_1="no")], r"conv-1.*session_1: expected a list, found the string 'no'"),
        ([changed(session_1=[3])], r"session_1, turn 0: expected an object"),
        ([changed(session_1=[{"text": "x", "dia_id": "D1:1"}])], r"session_1, turn 0: `speaker`"),
        ([changed(session_1=[{"text": "x", "speaker": "Ann"}])], r"session_1, turn 0: `dia_id`"),
        ([changed(session_1=[{"text": 5, "speaker": "Ann", "dia_id": "D1:1"}])], r"session_1, turn 0: `text`"),
        ([changed(session_1=[{"text": "x" * 1_000_001, "speaker": "A", "dia_id": "1"}])], r"turn 0: .* 1,000,001"),
        ([changed(session_1_date_time="yesterday")], r"session_1: cannot read the date, the string 'yesterday'"),
        ([changed(session_1=[], session_2=[], session_10=[])], r"conv-1.*conversation is empty"),
        ([{**SAMPLE, "qa": {}}], r"`qa`: expected a list"),
        ([{**SAMPLE, "qa": [{"question": "q", "answer": "a", "category": "4"}]}], r"question 0: `category`"),
        ([{**SAMPLE, "qa": [{"question": "q", "category": 4}]}], r"question 0: has no `answer`"),
        ([{**SAMPLE, "qa": [{"answer": "a", "category": 4}]}], r"question 0: `question`"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_file_and_place(tmp_path: Path, value: object, message: str) -> None:
    path = write(tmp_path / "bad.json", value)
    with pytest.raises(InputError, match=message) as caught:
        read_locomo(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_a_text_of_the_largest_size_is_read(tmp_path: Path) -> None:
    sample = changed(session_2=[{"speaker": "Ann", "dia_id": "D2:1", "text": "x" * 1_000_000}])
    assert len(read(tmp_path, sample).sessions[1].turns[0].text) == 1_000_000


@pytest.mark.data
def test_the_released_conversations(data: Path) -> None:
    first, second = read_locomo(data / "locomo/locomo_train_val.json")
    assert (first.sample_id, len(first.sessions), len(first.turns)) == ("conv-26", 19, 419)
    assert (second.sample_id, len(second.sessions), len(second.turns)) == ("conv-30", 19, 369)
    by_category = [sum(q.category == number for q in first.questions) for number in (1, 2, 3, 4)]
    assert by_category == [32, 37, 13, 70]
    assert sum(not q.evidence for q in first.questions if q.category < 5) == 2
    assert all(turn.observed_at is not None for turn in first.turns + second.turns)

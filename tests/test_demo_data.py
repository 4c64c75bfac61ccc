"""The demo's conversation and questions: complete, consistent, and about what they say they are about."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta
from importlib.resources import files

from memweave.demo import DIALOGUE, conversation, questions

TURN_KEYS = {"source_id", "dialogue", "speaker", "text", "observed_at"}


def lines(name: str) -> list[dict[str, object]]:
    text = files("memweave.demo").joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_file_is_json_lines_of_messages_with_a_time_zone() -> None:
    for line in lines("conversation.jsonl"):
        assert set(line) == TURN_KEYS
        assert datetime.fromisoformat(str(line["observed_at"])).tzinfo is not None


def test_about_two_hundred_turns_of_two_speakers_over_months() -> None:
    turns = conversation()
    assert 200 <= len(turns) <= 240
    assert set(Counter(t.speaker for t in turns)) == {"Mara", "Jonas"}
    assert min(Counter(t.speaker for t in turns).values()) > 90
    assert {t.dialogue for t in turns} == {DIALOGUE}
    assert len({t.source_id for t in turns}) == len(turns)
    times = [t.observed_at for t in turns if t.observed_at]
    assert len(times) == len(turns)
    assert times == sorted(times)
    assert times[-1] - times[0] > timedelta(days=200)
    assert not any(t.observed_naive for t in turns)


def test_a_session_begins_without_a_previous_message() -> None:
    turns = conversation()
    first = [t.source_id for t in turns if t.previous is None]
    assert first == [f"s{n}-01" for n in range(1, 9)]
    assert turns[1].previous == turns[0].text


def test_questions_name_turns_that_exist_and_every_kind_is_asked() -> None:
    ids = {t.source_id for t in conversation()}
    asked = questions()
    assert 25 <= len(asked) <= 30
    assert len({q.id for q in asked}) == len(asked)
    assert Counter(q.category for q in asked).keys() == {"lookup", "list", "current", "when", "comparison"}
    assert all(set(q.evidence) <= ids for q in asked)
    assert all(q.question.endswith("?") for q in asked)


def test_undo_questions_change_their_answer_with_a_turn_of_their_evidence() -> None:
    undoable = [q for q in questions() if q.undo]
    assert len(undoable) >= 3
    assert all(q.undo in q.evidence and q.answer_after_undo and q.answer_after_undo != q.answer for q in undoable)
    assert all(q.answer_after_undo is None for q in questions() if not q.undo)

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from memweave.agents.extractor import parse_extract_reply, render_extract
from memweave.agents.roles import Attempt, ExtractRequest
from memweave.errors import ModelReplyError
from memweave.records import Turn

SAID = datetime(2023, 5, 8, 14, 0, tzinfo=UTC)
TURN = Turn(source_id="D1:3", dialogue="d", speaker="Anna", text="I moved to Berlin\nyesterday!", observed_at=SAID)
BEFORE = Turn(source_id="D1:2", dialogue="d", speaker="Ben", text="What is new?")
REQUEST = ExtractRequest(turn=TURN, history=(BEFORE,))


def test_prompt_shows_history_and_turn_on_one_line_each() -> None:
    system, user = render_extract(REQUEST)
    assert '{"facts"' in system.text
    assert user.text == (
        "Earlier turns:\nBen: What is new?\n\nNew turn:\n2023-05-08, Anna: I moved to Berlin yesterday!"
    )


def test_prompt_of_the_request_replaces_the_shipped_one_and_none_leaves_it_out() -> None:
    own, _ = render_extract(REQUEST.model_copy(update={"system_prompt": "Only names."}))
    assert own.text == "Only names."
    assert [message.type for message in render_extract(REQUEST, "none")] == ["human"]


def test_second_attempt_extends_the_first_prompt() -> None:
    first = render_extract(REQUEST)
    failed = Attempt(reply="Sure!", error="The reply is prose")
    second = render_extract(REQUEST.model_copy(update={"failed": (failed,)}))
    assert second[: len(first)] == first
    assert [message.type for message in second[len(first) :]] == ["ai", "human"]
    assert second[-2].text == "Sure!"
    assert "The reply is prose" in second[-1].text


@pytest.mark.parametrize(
    "reply",
    [
        '{"facts": ["Anna moved.", "Anna has a cat."]}',
        '```json\n{"facts": ["Anna moved.", "Anna has a cat."]}\n```',
        'Here are the facts {as asked}:\n{"facts": ["Anna moved.", "Anna has a cat.",],}\nAnything else?',
        '<think>{"facts": ["wrong"]}</think>{"facts": ["Anna  moved.", {"text": "Anna\nhas a cat."}]}',
        '{"facts": ["Anna moved.", "Anna has a cat.", "Anna moved."]}',
    ],
)
def test_facts_are_read_and_repaired(reply: str) -> None:
    facts = parse_extract_reply(reply, REQUEST)
    assert [fact.text for fact in facts] == ["Anna moved.", "Anna has a cat."]
    assert {fact.turn.source_id for fact in facts} == {"D1:3"}


def test_small_talk_has_no_facts() -> None:
    assert parse_extract_reply('{"facts": []}', REQUEST) == []


def test_commas_and_brackets_inside_strings_are_left_alone() -> None:
    (fact,) = parse_extract_reply(r'{"facts": ["Anna said \",}\" and {x, ]}"]}', REQUEST)
    assert fact.text == 'Anna said ",}" and {x, ]}'


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ("", "The reply is empty"),
        ("<think>hm</think>  ", "The reply is empty"),
        ("Anna moved to Berlin.", "prose without JSON"),
        ('{"facts": ["Anna moved.", "Anna', "ends inside a JSON object"),
        ('{"facts": ["a"]} {"facts": ["b"]}', "2 JSON objects"),
        ('{"facts": ["a"], "facts": ["b"]}', "'facts' appears twice"),
        ('{"facts": ["a" "b"]}', "cannot be read"),
        ('{"facts": NaN}', "NaN is not JSON"),
        ('{"fact": ["a"]}', "no key 'facts' (it has: fact)"),
        ('{"facts": "a"}', "not a list"),
        ('{"facts": ["a", 7]}', "Fact 2 is not a sentence"),
        ('{"facts": [" "]}', "Fact 1 is not a sentence"),
        (r'{"facts": ["\ud800"]}', "Fact 1: "),
        ('{"facts": ' + "[" * 100_000 + "]" * 100_000 + "}", "cannot be read"),
    ],
)
def test_a_reply_that_is_not_facts_is_refused_whole(reply: str, error: str) -> None:
    with pytest.raises(ModelReplyError, match=re.escape(error)):
        parse_extract_reply(reply, REQUEST)

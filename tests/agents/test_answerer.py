from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from memweave.agents.answerer import parse_answer_reply, render_answer
from memweave.agents.judge import parse_judge_reply, render_judge
from memweave.agents.roles import AnswerRequest, JudgeRequest
from memweave.errors import ModelReplyError
from memweave.records import Memory, Scope, new_id

SAID = datetime(2023, 5, 8, tzinfo=UTC)


def memory(text: str, speaker: str | None) -> Memory:
    return Memory(
        id=new_id(),
        version=1,
        scope=Scope(user="u"),
        text=text,
        speaker=speaker,
        observed_at=SAID,
        recorded_at=SAID,
    )


REQUEST = AnswerRequest(
    question="Where does\nAnna live?",
    memories=(memory("Anna moved to Berlin.", "Anna"), memory("Anna is tall.", "Anna"), memory("Ben sings.", "Ben")),
    asked_at=datetime(2023, 7, 1, tzinfo=UTC),
)
JUDGED = JudgeRequest(question="When?", reference="May 2023", answer="in May of 2023")


def test_prompt_has_a_block_per_participant_and_numbers_go_on() -> None:
    system, user = render_answer(REQUEST)
    assert "**Answer:**" in system.text
    assert user.text == (
        "Memories of Anna:\n[0] 2023-05-08: Anna moved to Berlin.\n[1] 2023-05-08: Anna is tall.\n\n"
        "Memories of Ben:\n[2] 2023-05-08: Ben sings.\n\n"
        "Question (asked on 2023-07-01): Where does Anna live?"
    )


def test_prompt_without_memories_says_so() -> None:
    (user,) = render_answer(AnswerRequest(question="Who?", memories=()), "none")
    assert user.text == "Memories:\n(none)\n\nQuestion: Who?"


@pytest.mark.parametrize(
    ("reply", "answer", "used"),
    [
        ("[0] 2023-05-08: Anna moved to Berlin.\n**Answer:** Berlin", "Berlin", (0,)),
        ("[2] x\n[0] y\n[2] z\n**Answer**: in  Berlin ", "in Berlin", (2, 0)),
        ("[0, 1]\n**answer:**\n\n  Berlin\n(I am sure.)", "Berlin", (0, 1)),
        ("Answer: Paris\nNo, wait.\nFinal answer: Berlin", "Berlin", ()),
        ("[0] Anna moved. **Answer:** Berlin", "Berlin", (0,)),
        ("I think\nit is\n\nBerlin\n\n", "Berlin", ()),
        ("**Berlin**", "Berlin", ()),
        ("Answering this is easy", "Answering this is easy", ()),
        ("<think>[1] **Answer:** Paris</think>[0]\n**Answer:** Berlin", "Berlin", (0,)),
        ("[7] [99999999] **Answer:** Berlin", "Berlin", ()),
    ],
)
def test_answer_and_quoted_memories(reply: str, answer: str, used: tuple[int, ...]) -> None:
    parsed = parse_answer_reply(reply, REQUEST)
    assert (parsed.text, parsed.used) == (answer, used)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ("", "The reply is empty"),
        (" \n ", "The reply is empty"),
        ("[0] Anna moved.\n**Answer:** ", "There is nothing after"),
    ],
)
def test_a_reply_without_an_answer_is_refused(reply: str, error: str) -> None:
    with pytest.raises(ModelReplyError, match=re.escape(error)):
        parse_answer_reply(reply, REQUEST)


def test_judge_prompt() -> None:
    _, user = render_judge(JUDGED)
    assert user.text == "Question: When?\nReference answer: May 2023\nAnswer to grade: in May of 2023"


@pytest.mark.parametrize(
    ("reply", "correct"),
    [
        ('{"reason": "Same month.", "label": "CORRECT"}', True),
        ('```json\n{"label": " wrong "}\n```', False),
        ("The answer is CORRECT.", True),
        ("That is WRONG", False),
        ('{"label": "CORRECT"', True),
    ],
)
def test_judge_verdict(reply: str, correct: bool) -> None:
    assert parse_judge_reply(reply, JUDGED).correct is correct


@pytest.mark.parametrize("reply", ["", "CORRECT or WRONG", "INCORRECT", '{"label": "MAYBE"}'])
def test_an_undecided_judge_is_no_verdict(reply: str) -> None:
    with pytest.raises(ModelReplyError):
        parse_judge_reply(reply, JUDGED)

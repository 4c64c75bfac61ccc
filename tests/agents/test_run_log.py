from __future__ import annotations

import re
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from memweave.agents.run_log import UNKNOWN, read_run, read_trace
from memweave.errors import InputError, RewardError
from memweave.records import utc_now
from memweave.tracing.reading import chat_messages, tool_calls
from memweave.tracing.records import Generation, Score, Trace
from tests.agents.logged import CHAIN, FRIEND, QUESTION, native, tagged


def told(messages: list[BaseMessage]) -> list[tuple[list[str], list[str], str | None]]:
    run = read_run(messages, reward=1.0)
    return [([c.words for c in each.calls], [r.text for r in each.results], each.answer) for each in run.rounds]


def traced(messages: list[BaseMessage], score: float | None = 0.0) -> Trace:
    """Return what a tracer keeps of a run: one generation for each reply, with the prompt before it."""
    made = []
    for place, message in enumerate(messages):
        if isinstance(message, AIMessage):
            made.append(
                Generation(
                    index=len(made),
                    role="agent",
                    messages=chat_messages(messages[:place]),
                    reply=message.text,
                    tool_calls=tool_calls(message),
                    started_at=utc_now(),
                )
            )
    return Trace(
        id=uuid4(),
        generations=tuple(made),
        score=None if score is None else Score(value=score),
        started_at=utc_now(),
        ended_at=utc_now(),
    )


def test_both_protocols_tell_the_same_run() -> None:
    expected = [
        (["friend of Anna"], ["Anna's friend is Boris."], None),
        (["boss of Boris"], ["The boss of Boris is Clara."], None),
        ([], [], "Clara"),
    ]
    assert told(native(*CHAIN)) == expected
    assert told(tagged(*CHAIN)) == expected
    assert read_run(native(*CHAIN), reward=0.5).question == QUESTION
    assert read_run(native(*CHAIN), reward=0.5).answer == "Clara"


@pytest.mark.parametrize("protocol", [native, tagged])
def test_a_trace_tells_the_same_run_as_its_messages(protocol: object) -> None:
    steps = (
        ("I look it up.", CHAIN[0][1]),
        *CHAIN[1:],
    )  # text beside native calls, which a prompt's text does not show
    messages = [SystemMessage("Be brief."), *protocol(*steps)]  # type: ignore[operator]
    read = read_trace(traced(messages, 1.0))
    assert read == read_run(messages, reward=1.0)
    assert read.success
    assert read.rounds[0].think == "I look it up."
    assert read_trace(traced(messages, 0.0), reward=1.0).success
    assert not read_trace(traced(messages, 0.0)).success
    assert read_trace(traced(messages, None)).reward is None


def test_a_trace_without_a_reply_or_a_question_is_refused() -> None:
    with pytest.raises(InputError, match="no reply of the role 'judge'"):
        read_trace(traced(native(*CHAIN)), role="judge")
    with pytest.raises(InputError, match="Nobody asks"):
        read_trace(traced([AIMessage("Clara")]))


def test_the_messages_of_a_record_tell_the_run_too() -> None:
    assert read_run(chat_messages(tagged(*CHAIN)), reward=1.0) == read_run(tagged(*CHAIN), reward=1.0)
    assert read_run(chat_messages(native(*CHAIN)), reward=1.0) == read_run(native(*CHAIN), reward=1.0)


def test_a_call_that_a_record_does_not_show_is_known_by_its_result() -> None:
    """A record keeps messages as text, and of a native reply with text beside its calls only the text."""
    messages = native(("I look it up.", [FRIEND]), *CHAIN[1:])
    shown = chat_messages(messages)
    full = read_run(messages, reward=1.0)
    calls = [(call, result.text) for each in full.rounds for call, result in zip(each.calls, each.results, strict=True)]
    assert read_run(shown, reward=1.0, carried_out=calls) == full
    first = read_run(shown, reward=1.0).rounds[0]
    assert (first.calls, first.answer, first.think) == ((UNKNOWN,), None, "I look it up.")


def test_a_whole_run_in_one_text_is_cut_into_its_turns() -> None:
    """As the paper's raw responses are."""
    response = "".join(m.text for m in tagged(*CHAIN)[1:])
    assert told([HumanMessage(QUESTION), AIMessage(response)]) == told(tagged(*CHAIN))


def test_errors_of_tools_are_told_apart_from_results() -> None:
    failing = ("", [("friend of Anna", "!it is down"), ("boss", "Clara")])
    for messages in (native(failing, "x"), tagged(failing, "x")):
        results = read_run(messages, reward=0.0).rounds[0].results
        assert [result.failed for result in results] == [True, False]


def test_the_question_is_the_users_and_neither_advice_nor_a_note() -> None:
    messages = [
        HumanMessage("What is 2 + 2?"),
        AIMessage("4"),
        HumanMessage("<advice>\n- When in doubt, search.\n</advice>", name="advice"),
        *tagged(*CHAIN),
    ]
    messages.insert(5, HumanMessage("Error: a call cannot be read. Write it again."))
    read = read_run(messages, reward=1.0)
    assert (read.question, len(read.rounds)) == (QUESTION, 3)
    together = [HumanMessage(f"<advice>\n- Search.\n</advice>\n\n{QUESTION}"), *tagged(*CHAIN)[1:]]
    assert read_run(together, reward=1.0).question == QUESTION
    named = [*messages[:4], HumanMessage("Mind the tone.", name="note-of-mine"), *messages[4:]]
    assert read_run(named, reward=1.0, question=QUESTION) == read
    with pytest.raises(InputError, match="Nobody asks"):
        read_run([AIMessage("4"), HumanMessage("<tool_response>5</tool_response>")], reward=1.0)


def test_a_text_without_tags_is_an_answer_only_where_tags_are_not_used() -> None:
    spoken = [HumanMessage(QUESTION), AIMessage("I do not know."), AIMessage("<answer>Clara</answer>")]
    assert [each.answer for each in read_run(spoken, reward=0.0).rounds] == [None, "Clara"]
    assert read_run(spoken[:2], reward=0.0).answer == "I do not know."
    thought = [HumanMessage(QUESTION), AIMessage("<think>It is Clara, I assume.</think>Clara")]
    (only,) = read_run(thought, reward=0.0).rounds
    assert (only.think, only.answer) == ("It is Clara, I assume.", "Clara")


@pytest.mark.parametrize("reward", [1.5, -0.1, float("nan"), float("inf")])
def test_a_reward_out_of_range_is_refused_by_name(reward: float) -> None:
    with pytest.raises(RewardError, match="from 0 to 1"):
        read_run(tagged(*CHAIN), reward=reward)


def test_calls_that_were_never_carried_out_are_no_calls() -> None:
    deep: object = "x"
    for _ in range(40):
        deep = [deep]
    calls = [
        {"name": "search", "args": {"query": deep}, "id": "1", "type": "tool_call"},
        {"name": "search", "args": {"query": "a", "top": 3}, "id": "2", "type": "tool_call"},
    ]
    (turn,) = read_run([HumanMessage("q"), AIMessage("", tool_calls=calls)], reward=0.0).rounds
    assert [call.words for call in turn.calls] == ["a 3"]


native_call = {"name": "search", "id": "1", "type": "tool_call"}
TEXTS = st.lists(
    st.sampled_from(
        [
            "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<answer>",
            "</answer>", '{"name": "search", "arguments": {"q": "a"}}', "[", "]", "Error", "x", "\ud800", '[{"name": 1}]',
        ]
    ),
    max_size=8,
).map("".join)  # fmt: skip
MESSAGES = st.lists(
    st.one_of(
        TEXTS.map(AIMessage),
        TEXTS.map(HumanMessage),
        TEXTS.map(lambda text: ToolMessage(text, tool_call_id="1")),
        TEXTS.map(lambda text: AIMessage(text, tool_calls=[{**native_call, "args": {"q": text}}])),
    ),
    max_size=8,
)


@given(MESSAGES)
def test_whatever_was_logged_can_be_read(messages: list[BaseMessage]) -> None:
    read = read_run(messages, reward=1.0, question="What?")
    for each in read.rounds:
        assert not re.search("[\ud800-\udfff]", f"{each.think}{each.answer}")

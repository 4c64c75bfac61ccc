"""The text protocol of agents with tools: what a reply asks for, and what a model is told that got it wrong."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, ToolCall
from langchain_core.tools import tool

from memweave.agents.memory_tools import LONG_TERM, SHORT_TERM, tool_specs
from memweave.agents.tool_protocol import (
    DEEPEST,
    AgentTurn,
    read_native_turn,
    read_text_turn,
    too_deep,
    tools_block,
)
from memweave.serving.tool_text import render_tool_calls

ADD_TEA = '{"name": "Add_memory", "arguments": {"content": "tea"}}'
ADD_RYE = '{"name": "Add_memory", "arguments": {"content": "rye"}}'
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>", "<", ADD_TEA, f"[{ADD_TEA}]")


def kinds(turn: AgentTurn) -> list[str]:
    return [problem.kind for problem in turn.problems]


def asked(turn: AgentTurn) -> list[tuple[str, dict[str, Any]]]:
    return [(call["name"], call["args"]) for call in turn.calls]


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


# what is well formed


def test_a_thought_and_calls_in_their_order() -> None:
    turn = read_text_turn(f"<think> look first </think>\n<tool_call>[{ADD_TEA}, {ADD_RYE}]</tool_call>")
    assert turn.think == "look first"
    assert asked(turn) == [("Add_memory", {"content": "tea"}), ("Add_memory", {"content": "rye"})]
    assert [call["id"] for call in turn.calls] == ["call_0", "call_1"]
    assert (turn.answer, turn.problems) == (None, ())


def test_a_thought_and_an_answer() -> None:
    turn = read_text_turn("<think>known</think><answer>\n Utrecht \n</answer>")
    assert (turn.think, turn.answer, turn.calls, turn.problems) == ("known", "Utrecht", (), ())


def test_one_call_without_a_list_and_several_blocks() -> None:
    turn = read_text_turn(f"<tool_call>{ADD_TEA}</tool_call><tool_call>[{ADD_RYE}]</tool_call>")
    assert [args["content"] for _, args in asked(turn)] == ["tea", "rye"]
    assert turn.problems == ()


def test_prose_around_the_blocks_does_not_matter() -> None:
    turn = read_text_turn(f"I will store it.\n<tool_call>[{ADD_TEA}]</tool_call>\nDone.")
    assert asked(turn) == [("Add_memory", {"content": "tea"})]
    assert turn.problems == ()


def test_tags_inside_an_answer_are_part_of_it() -> None:
    text = f"write <tool_call>[{ADD_TEA}]</tool_call> or <think>hm</think>"
    turn = read_text_turn(f"<think>so</think><answer>{text}</answer>")
    assert (turn.answer, turn.calls, turn.problems) == (text, (), ())


def test_tags_inside_an_argument_are_part_of_it() -> None:
    args = {"content": "she wrote <answer>42</answer> and <think>no</think>"}
    turn = read_text_turn(f"<tool_call>{json.dumps([{'name': 'Add_memory', 'arguments': args}])}</tool_call>")
    assert asked(turn) == [("Add_memory", args)]
    assert (turn.answer, turn.problems) == (None, ())


def test_what_a_thought_says_of_tags_does_nothing() -> None:
    turn = read_text_turn(
        f"<think>not <answer>x</answer> nor <tool_call>[{ADD_TEA}]</tool_call></think><answer>y</answer>"
    )
    assert (turn.answer, turn.calls, turn.problems) == ("y", (), ())


def test_of_several_answers_the_first_counts() -> None:
    assert read_text_turn("<answer>a</answer><answer>b</answer>").answer == "a"


# what a model gets wrong


@pytest.mark.parametrize("tolerant", [False, True])
def test_calls_and_an_answer_are_both_taken_and_the_model_is_told(tolerant: bool) -> None:
    for text in (
        f"<tool_call>[{ADD_TEA}]</tool_call><answer>ok</answer>",
        f"<answer>ok</answer><tool_call>[{ADD_TEA}]</tool_call>",
    ):
        turn = read_text_turn(text, tolerant=tolerant)
        assert (len(turn.calls), turn.answer, kinds(turn)) == (1, "ok", ["two_blocks"])
        assert "either calls or an answer" in turn.problems[0].text


@pytest.mark.parametrize(
    "text", ["", "Utrecht.", "<think>where?</think>", "</answer>", "</tool_call>", "<ANSWER>x</ANSWER>"]
)
def test_neither_calls_nor_an_answer(text: str) -> None:
    for tolerant in (False, True):
        turn = read_text_turn(text, tolerant=tolerant)
        assert (turn.calls, turn.answer, kinds(turn)) == ((), None, ["no_block"])
        assert "<answer>...</answer>" in turn.problems[0].text


@pytest.mark.parametrize(
    "text", [f"<tool_call>[{ADD_TEA}]", "<answer>tea", f"<think>hm <tool_call>[{ADD_TEA}]</tool_call>"]
)
def test_what_is_not_closed_does_nothing_and_the_model_is_told(text: str) -> None:
    turn = read_text_turn(text)
    assert (turn.calls, turn.answer, kinds(turn)) == ((), None, ["unclosed_tag"])
    assert "not closed with </" in turn.problems[0].text


@pytest.mark.parametrize(
    ("text", "contents", "answer"),
    [
        (f"<tool_call>[{ADD_TEA}]", ["tea"], None),
        ("<answer>tea", [], "tea"),
        (f"<think>hm <tool_call>[{ADD_TEA}]</tool_call>", ["tea"], None),
        ("<think>hm <answer>tea</answer>", [], "tea"),
        (f"<tool_call>[{ADD_TEA}]<tool_call>[{ADD_RYE}]</tool_call>", ["tea", "rye"], None),
        (f"<tool_call>[{ADD_TEA}]<answer>ok", ["tea"], "ok"),
    ],
)
def test_tolerant_takes_what_is_not_closed(text: str, contents: list[str], answer: str | None) -> None:
    turn = read_text_turn(text, tolerant=True)
    assert ([args["content"] for _, args in asked(turn)], turn.answer) == (contents, answer)
    assert "unclosed_tag" not in kinds(turn)


def test_an_unclosed_block_does_not_take_the_next_one_with_it() -> None:
    turn = read_text_turn(f"<tool_call>[{ADD_TEA}]\n<tool_call>[{ADD_RYE}]</tool_call>")
    assert ([args["content"] for _, args in asked(turn)], kinds(turn)) == (["rye"], ["unclosed_tag"])
    turn = read_text_turn(f"<tool_call>[{ADD_TEA}] <answer>ok</answer>")
    assert (turn.calls, turn.answer, kinds(turn)) == ((), "ok", ["unclosed_tag", "two_blocks"])


def test_only_tolerant_drops_a_call_that_was_made_already() -> None:
    text = f"<tool_call>[{ADD_TEA}, {ADD_RYE}, {ADD_TEA}]</tool_call><tool_call>{ADD_RYE}</tool_call>"
    assert [args["content"] for _, args in asked(read_text_turn(text))] == ["tea", "rye", "tea", "rye"]
    assert [args["content"] for _, args in asked(read_text_turn(text, tolerant=True))] == ["tea", "rye"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (f"Here it is: [{ADD_TEA}]", "is not JSON"),
        ("[]", "empty list"),
        ('["Add_memory"]', "is not an object"),
        ('{"arguments": {}}', 'has no "name"'),
        ('{"name": "Add_memory", "arguments": [1]}', "is not an object"),
        ('{"name": "Add_memory", "arguments": {"metadata": {"a": NaN}}}', "NaN"),
        ("", "is not JSON"),
    ],
)
def test_a_block_that_is_no_call_does_nothing_and_the_model_is_told(body: str, said: str) -> None:
    turn = read_text_turn(f"<tool_call>{body}</tool_call>")
    assert (turn.calls, turn.answer, kinds(turn)) == ((), None, ["not_a_call"])
    assert said in turn.problems[0].text
    assert '<tool_call>[{"name"' in turn.problems[0].text


def test_calls_beside_one_that_cannot_be_read_are_made() -> None:
    turn = read_text_turn(f'<tool_call>[{ADD_TEA}, {{"nome": 1}}]</tool_call>')
    assert ([args["content"] for _, args in asked(turn)], kinds(turn)) == (["tea"], ["not_a_call"])


def test_arguments_that_no_log_could_hold_are_refused() -> None:
    def call(levels: int) -> str:
        return json.dumps({"name": "Add_memory", "arguments": {"metadata": nested(levels)}})

    assert len(read_text_turn(f"<tool_call>{call(DEEPEST - 1)}</tool_call>").calls) == 1
    turn = read_text_turn(f"<tool_call>[{call(DEEPEST)}, {ADD_TEA}]</tool_call>")
    assert ([args["content"] for _, args in asked(turn)], kinds(turn)) == (["tea"], ["not_a_call"])
    assert "nested more than 32 levels" in turn.problems[0].text
    assert not too_deep({"a": nested(DEEPEST - 1)})
    assert too_deep({"a": nested(DEEPEST)})


def test_characters_that_cannot_be_stored_are_replaced() -> None:
    turn = read_text_turn("<think>a\udc00</think><answer>b\0</answer>")
    assert (turn.think, turn.answer) == ("a\ufffd", "b\ufffd")


# properties

pieces = st.lists(
    st.one_of(st.sampled_from(TAGS), st.text(st.characters(exclude_categories=()), max_size=8)), max_size=12
)


@given(pieces.map("".join), st.booleans())
def test_no_text_raises_and_every_turn_says_something(text: str, tolerant: bool) -> None:
    turn = read_text_turn(text, tolerant=tolerant)
    assert turn.calls or turn.answer is not None or turn.problems
    assert AgentTurn.model_validate_json(turn.model_dump_json()) == turn
    said = read_native_turn(AIMessage(text))
    assert (said.answer is None) != (not said.problems)


@given(pieces.map("".join))
def test_tolerant_reads_whatever_strict_reads(text: str) -> None:
    strict, tolerant = read_text_turn(text), read_text_turn(text, tolerant=True)
    if not strict.problems:
        assert (tolerant.think, tolerant.answer, tolerant.problems) == (strict.think, strict.answer, ())
        assert [each for each in asked(strict) if each not in asked(tolerant)] == []


words = st.text(string.ascii_letters + string.digits + " <>/\"'\\{}[]é\n", max_size=30)
arguments = st.dictionaries(
    words, st.one_of(words, st.integers(), st.booleans(), st.none(), st.lists(words)), max_size=3
)
thoughts = words.filter(lambda text: "<" not in text)
calls = st.lists(
    st.builds(
        lambda name, args: ToolCall(name=name, args=args, id=None, type="tool_call"),
        st.sampled_from(["Add_memory", "Filter_context", "my_tool"]),
        arguments,
    ),
    min_size=1,
    max_size=4,
)


@given(thoughts, calls)
def test_rendered_calls_read_back(thought: str, made: list[ToolCall]) -> None:
    turn = read_text_turn(f"<think>{thought}</think>{render_tool_calls(made)}")
    assert turn.think == thought.strip()
    assert asked(turn) == [(call["name"], call["args"]) for call in made]
    assert (turn.answer, turn.problems) == (None, ())


@given(thoughts, words.filter(lambda text: "</answer>" not in text))
def test_a_rendered_answer_reads_back(thought: str, answer: str) -> None:
    turn = read_text_turn(f"<think>{thought}</think><answer>{answer}</answer>")
    assert (turn.think, turn.answer, turn.problems) == (thought.strip(), answer.strip(), ())


# native calls


def call_of(name: str, args: dict[str, Any], call_id: str = "1") -> dict[str, Any]:
    return {"name": name, "args": args, "id": call_id, "type": "tool_call"}


def test_a_native_reply_is_its_calls_or_else_its_text() -> None:
    turn = read_native_turn(AIMessage(" She moved. ", tool_calls=[call_of("Add_memory", {"content": "tea"})]))
    assert (turn.think, asked(turn), turn.answer) == ("She moved.", [("Add_memory", {"content": "tea"})], None)
    assert read_native_turn(AIMessage(" Utrecht ")) == AgentTurn(answer="Utrecht")


def test_an_empty_native_reply_is_a_problem() -> None:
    turn = read_native_turn(AIMessage(" \n"))
    assert (turn.answer, kinds(turn)) == (None, ["no_block"])


def test_native_calls_that_could_not_be_read_are_problems_and_no_answer() -> None:
    broken = {"name": "Add_memory", "args": "{", "id": "2", "error": None, "type": "invalid_tool_call"}
    turn = read_native_turn(AIMessage("so", tool_calls=[call_of("A", {})], invalid_tool_calls=[broken]))
    assert (asked(turn), turn.answer, kinds(turn)) == ([("A", {})], None, ["not_a_call"])
    assert turn.problems[0].text == "Error: a call cannot be read: the arguments are not JSON. Write it again."


# the list of tools


def test_the_tools_are_listed_one_line_of_json_each_the_users_last() -> None:
    @tool
    def weather(city: str) -> str:
        """Look at the sky."""
        return city

    block = tools_block(tool_specs(), [weather])
    first, *lines, last = block.splitlines()
    assert (first, last) == ("<tools>", "</tools>")
    listed = [json.loads(line) for line in lines]
    assert [each["name"] for each in listed] == [*LONG_TERM, *SHORT_TERM, "weather"]
    assert listed[-1]["parameters"]["required"] == ["city"]
    assert tools_block([]) == "You have no tools."

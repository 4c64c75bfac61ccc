from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, ChatMessage, FunctionMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.tool import tool_call
from langchain_core.tools import tool

from memweave.errors import InputError
from memweave.serving.tool_text import (
    MAX_CALLS,
    parse_tool_calls,
    render_tool_calls,
    template_messages,
    tool_specs,
)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.text(min_size=1).map(str.strip).filter(bool)
PIECES = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        '{"name":',
        '"f"',
        ', "arguments":',
        "{",
        "}",
        "[",
        "]",
        "null",
        "NaN",
        "\n",
        "1e999",
        '"',
    ]
)


def block(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def test_calls_between_text_in_order() -> None:
    first, second = block('{"name": "a", "arguments": {"x": 1}}'), block('{"name": "b"}')
    text = f"I look.{first} then {second} done"
    calls, invalid = parse_tool_calls(text)
    assert [(call["name"], call["args"], call["id"]) for call in calls] == [
        ("a", {"x": 1}, "call_0"),
        ("b", {}, "call_1"),
    ]
    assert invalid == []


def test_a_list_in_one_block_and_arguments_quoted_once_more() -> None:
    calls, invalid = parse_tool_calls(block('[{"name": "a", "arguments": "{\\"x\\": [1]}"}, {"name": "b"}]'))
    assert [(call["name"], call["args"]) for call in calls] == [("a", {"x": [1]}), ("b", {})]
    assert invalid == []


def test_text_without_a_block_makes_no_call() -> None:
    assert parse_tool_calls('{"name": "a", "arguments": {}} </tool_call>') == ([], [])


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ('<tool_call>{"name": "a"}', None, "the block is not closed with </tool_call>"),
        (block("{name: a}"), None, "is not JSON"),
        (block(""), None, "is not JSON"),
        (block('"a"'), None, 'is not an object with "name" and "arguments"'),
        (block("[]"), None, "is an empty list"),
        (block('{"arguments": {}}'), None, 'has no "name"'),
        (block('{"name": " "}'), None, 'has no "name"'),
        (block('{"name": 3}'), None, 'has no "name"'),
        (block('{"name": "a", "arguments": [1]}'), "a", '"arguments" is not an object'),
        (block('{"name": "a", "arguments": "x"}'), "a", '"arguments" is not JSON'),
        (block('{"name": "a", "arguments": {"x": NaN}}'), None, "NaN is no JSON number"),
        (block('{"name": "a", "arguments": {"x": 1e999}}'), None, "1e999 is no JSON number"),
        (block("[" * 100_000), None, "is not JSON"),
    ],
)
def test_what_makes_no_sense_is_an_invalid_call_with_its_reason(text: str, name: str | None, reason: str) -> None:
    calls, invalid = parse_tool_calls(text)
    assert calls == []
    assert len(invalid) == 1
    assert invalid[0]["name"] == name
    assert reason in str(invalid[0]["error"])


def test_a_broken_call_does_not_hide_the_one_after_it() -> None:
    calls, invalid = parse_tool_calls('<tool_call>{"name": <tool_call>{"name": "b"}</tool_call>')
    assert [call["name"] for call in calls] == ["b"]
    assert [call["id"] for call in (*calls, *invalid)] == ["call_1", "call_0"]


def test_calls_beyond_the_most_are_one_invalid_call() -> None:
    calls, invalid = parse_tool_calls(block(json.dumps([{"name": "a"}] * 1000)))
    assert len(calls) == MAX_CALLS
    assert [call["error"] for call in invalid] == [f"a reply may make at most {MAX_CALLS} calls"]


@given(st.lists(st.tuples(NAMES, st.dictionaries(st.text(), VALUES, max_size=3)), max_size=4))
def test_rendered_calls_are_read_back(given_calls: list[tuple[str, dict[str, object]]]) -> None:
    text = render_tool_calls([tool_call(name=name, args=args, id=None) for name, args in given_calls])
    calls, invalid = parse_tool_calls(text)
    assert [(call["name"], call["args"]) for call in calls] == given_calls
    assert invalid == []


def test_tags_within_arguments_do_not_end_the_block() -> None:
    args = {"<tool_call>": "a </tool_call> <tool_call> <b>"}
    calls, invalid = parse_tool_calls(render_tool_calls([tool_call(name="say", args=args, id=None)]))
    assert [call["args"] for call in calls] == [args]
    assert invalid == []


@given(st.lists(PIECES | st.text(max_size=5), max_size=30).map("".join))
def test_reading_never_raises_and_every_block_is_accounted_for(text: str) -> None:
    calls, invalid = parse_tool_calls(text)
    assert bool(calls or invalid) == ("<tool_call>" in text)
    assert all(isinstance(call["args"], dict) for call in calls)
    assert all(call["error"] for call in invalid)


def test_specs_of_functions_tools_and_dicts() -> None:
    @tool
    def search(query: str, k: int = 3) -> str:
        """Find memories."""
        return query * k

    spec = tool_specs([search])[0]
    assert spec == tool_specs([spec])[0]
    assert spec["function"] == {
        "name": "search",
        "description": "Find memories.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string"}, "k": {"type": "integer", "default": 3}},
            "required": ["query"],
        },
    }
    with pytest.raises(InputError, match="Cannot describe a tool"):
        tool_specs([{"nothing": 1}])


def test_messages_for_a_chat_template_carry_role_and_text_only() -> None:
    raw = 'x <tool_call>{"name": "a"}</tool_call>'
    messages = [
        SystemMessage("be brief"),
        HumanMessage([{"type": "text", "text": "hi"}]),
        AIMessage(raw, tool_calls=[tool_call(name="a", args={}, id="call_0")]),
        ToolMessage("found", tool_call_id="call_0"),
        AIMessage("", tool_calls=[tool_call(name="a", args={"x": 1}, id="1")]),
        ToolMessage([{"rows": 2}], tool_call_id="1"),
        ChatMessage(content="and", role="user"),
    ]
    assert template_messages(messages) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": raw},
        {"role": "tool", "content": "found"},
        {"role": "assistant", "content": '<tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>'},
        {"role": "tool", "content": '[{"rows": 2}]'},
        {"role": "user", "content": "and"},
    ]
    with pytest.raises(InputError, match="not 'function'"):
        template_messages([FunctionMessage(content="x", name="f")])

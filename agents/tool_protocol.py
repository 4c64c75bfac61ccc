"""The text protocol of agents with tools: a thought, then calls or an answer (AgeMem, section 2.1).

    <think>...</think><tool_call>[{"name": "...", "arguments": {...}}, ...]</tool_call>
    <think>...</think><answer>...</answer>

What a model gets wrong is a `Problem` with words that tell it what to do. Calls and an answer in one turn: the calls are run first, then
the answer is taken, as in the released code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final, Literal

from langchain_core.messages import AIMessage, ToolCall
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from memweave.records import Record
from memweave.serving.tool_text import parse_tool_calls

ProblemKind = Literal["two_blocks", "no_block", "unclosed_tag", "not_a_call"]

_THINK: Final = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
_ANSWER: Final = re.compile(r"<answer>(.*?)(</answer>|(?=<tool_call>)|\Z)", re.DOTALL)
_FORM: Final = 'Write <tool_call>[{"name": ..., "arguments": {...}}]</tool_call> or <answer>...</answer>, and nothing outside the tags'


class Problem(Record):
    """What is wrong with a turn."""

    kind: ProblemKind
    text: str
    """For the model."""


class AgentTurn(Record):
    """One reply of an agent, read."""

    think: str = ""
    calls: tuple[ToolCall, ...] = ()
    answer: str | None = None
    problems: tuple[Problem, ...] = ()


def read_text_turn(text: str, *, tolerant: bool = False) -> AgentTurn:
    """Return what a reply in the text protocol asks for. Never raises.

    tolerant: take an unclosed last tag for closed, and the same call only once, as the released code does; otherwise an unclosed tag is a
    problem, and its block does nothing.
    """
    thought = _THINK.search(text)
    rest = _THINK.sub("", text, count=1) if thought else text
    if tolerant and rest.count("<tool_call>") > rest.count("</tool_call>"):
        rest += "</tool_call>"
    answers = list(_ANSWER.finditer(rest))
    calls, invalid = parse_tool_calls(_ANSWER.sub("", rest))
    problems = [_invalid(str(each.get("error"))) for each in invalid]
    answer = answers[0].group(1).strip() if answers else None
    if answers and not answers[0].group(0).endswith("</answer>") and not tolerant:
        problems.append(
            Problem(kind="unclosed_tag", text="Error: <answer> is not closed with </answer>. Write it again.")
        )
        answer = None
    if tolerant:
        calls = [call for i, call in enumerate(calls) if not any(_same(call, other) for other in calls[:i])]
    if (calls or invalid) and answers:
        problems.append(
            Problem(
                kind="two_blocks",
                text="Note: a turn is either calls or an answer. The calls were run first, then the answer was taken.",
            )
        )
    if not calls and not invalid and not answers:
        problems.append(Problem(kind="no_block", text=f"Error: the reply has neither calls nor an answer. {_FORM}."))
    return AgentTurn(
        think=thought.group(1).strip() if thought else "", calls=tuple(calls), answer=answer, problems=tuple(problems)
    )


def read_native_turn(message: AIMessage) -> AgentTurn:
    """Return what a reply with native tool calls asks for: its calls, or if there are none, its text as the answer."""
    problems = tuple(
        _invalid(str(each.get("error") or "the arguments are not JSON")) for each in message.invalid_tool_calls
    )
    if message.tool_calls or problems:
        return AgentTurn(think=message.text.strip(), calls=tuple(message.tool_calls), problems=problems)
    if not message.text.strip():
        return AgentTurn(
            problems=(Problem(kind="no_block", text="Error: the reply is empty. Call a tool, or answer."),)
        )
    return AgentTurn(answer=message.text.strip())


def _invalid(error: str) -> Problem:
    unclosed = "not closed" in error
    return Problem(
        kind="unclosed_tag" if unclosed else "not_a_call", text=f"Error: a call cannot be read: {error}. {_FORM}."
    )


def _same(one: ToolCall, other: ToolCall) -> bool:
    return one["name"] == other["name"] and one["args"] == other["args"]


def tools_block(specs: Sequence[dict[str, Any]], tools: Sequence[BaseTool] = ()) -> str:
    """Return the tools as a system prompt lists them: one line of JSON each, in <tools> tags."""
    listed = [*specs, *(convert_to_openai_tool(tool) for tool in tools)]
    lines = [json.dumps(each["function"], ensure_ascii=False) for each in listed]
    return "\n".join(["<tools>", *lines, "</tools>"]) if lines else "You have no tools."

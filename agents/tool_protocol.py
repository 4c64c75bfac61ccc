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
from dataclasses import dataclass
from typing import Any, Final, Literal

from langchain_core.messages import AIMessage, ToolCall
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from memweave.records import Record, storable
from memweave.serving.tool_text import parse_tool_calls

ProblemKind = Literal["two_blocks", "no_block", "unclosed_tag", "not_a_call"]

_THINK: Final = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_OPENING: Final = re.compile(r"<(tool_call|answer)>")
_FORM: Final = 'Write <tool_call>[{"name": ..., "arguments": {...}}]</tool_call> or <answer>...</answer>, and nothing outside the tags'


DEEPEST: Final = 32
"""Lists and objects in each other that an argument may have."""
TOO_DEEP: Final = f"the arguments are nested more than {DEEPEST} levels deep"


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


@dataclass(frozen=True)
class _Block:
    kind: str
    """tool_call or answer."""
    body: str
    closed: bool


def read_text_turn(text: str, *, tolerant: bool = False) -> AgentTurn:
    """Return what a reply in the text protocol asks for. Never raises.

    What stands in a closed block is its content, tags included: an answer may speak of <tool_call>, and an argument of <answer>.
    tolerant: take a block that is not closed for closed where the next one begins, and the same call only once, as the released code
    does; otherwise an unclosed tag is a problem, and its block does nothing.
    """
    think, blocks, problems = _parts(storable(text), tolerant)
    answers = [block for block in blocks if block.kind == "answer"]
    calls, invalid = parse_tool_calls("".join(map(_written, (block for block in blocks if block.kind == "tool_call"))))
    problems += [_invalid(str(each.get("error"))) for each in invalid]
    for call in [call for call in calls if too_deep(call["args"])]:
        calls.remove(call)
        problems.append(_invalid(TOO_DEEP))
    answer = next((block.body.strip() for block in answers[:1] if block.closed), None)
    if answers and answer is None:
        problems.append(
            Problem(kind="unclosed_tag", text="Error: <answer> is not closed with </answer>. Write it again.")
        )
    if tolerant:
        calls = [call for i, call in enumerate(calls) if not any(_same(call, other) for other in calls[:i])]
    if answers and len(answers) < len(blocks):
        problems.append(
            Problem(
                kind="two_blocks",
                text="Note: a turn is either calls or an answer. The calls were run first, then the answer was taken.",
            )
        )
    if not blocks and not problems:
        problems.append(Problem(kind="no_block", text=f"Error: the reply has neither calls nor an answer. {_FORM}."))
    return AgentTurn(think=think, calls=tuple(calls), answer=answer, problems=tuple(problems))


def _parts(text: str, tolerant: bool) -> tuple[str, list[_Block], list[Problem]]:
    """Return the thought, the blocks after it, and what is wrong with the thought."""
    start = text.find("<think>")
    first = _OPENING.search(text)
    if start < 0 or (first and first.start() < start):
        return "", _blocks(text, tolerant), []
    thought = _THINK.match(text, start)
    if thought:
        return thought.group(1).strip(), _blocks(text[:start] + text[thought.end() :], tolerant), []
    if tolerant:  # the thought ends where a block begins
        end = first.start() if first else len(text)
        return text[start + len("<think>") : end].strip(), _blocks(text[end:], tolerant), []
    said = f"Error: <think> is not closed with </think>. {_FORM}."
    return text[start + len("<think>") :].strip(), [], [Problem(kind="unclosed_tag", text=said)]


def _blocks(text: str, tolerant: bool) -> list[_Block]:
    found: list[_Block] = []
    at = 0
    while opening := _OPENING.search(text, at):
        kind, start = opening.group(1), opening.end()
        end = text.find(f"</{kind}>", start)
        if kind == "tool_call":  # a block that another one follows before it is closed was not closed
            again = text.find("<tool_call>", start)
            end = -1 if -1 < again < end else end
        if end < 0:
            following = _OPENING.search(text, start)
            at = following.start() if following else len(text)
            found.append(_Block(kind, text[start:at], closed=tolerant))
        else:
            found.append(_Block(kind, text[start:end], closed=True))
            at = end + len(f"</{kind}>")
    return found


def _written(block: _Block) -> str:
    return f"<tool_call>{block.body}{'</tool_call>' if block.closed else ''}"


def read_native_turn(message: AIMessage) -> AgentTurn:
    """Return what a reply with native tool calls asks for: its calls, or if there are none, its text as the answer."""
    problems = tuple(
        _invalid(str(each.get("error") or "the arguments are not JSON"), "Write it again")
        for each in message.invalid_tool_calls
    )
    text = storable(message.text).strip()
    if message.tool_calls or problems:
        return AgentTurn(think=text, calls=tuple(message.tool_calls), problems=problems)
    if not text:
        return AgentTurn(
            problems=(Problem(kind="no_block", text="Error: the reply is empty. Call a tool, or answer."),)
        )
    return AgentTurn(answer=text)


def too_deep(value: object, levels: int = DEEPEST) -> bool:
    """Return whether lists and objects stand in each other more than `levels` deep: neither log nor checkpoint could hold them."""
    if not isinstance(value, dict | list):
        return False
    return levels == 0 or any(
        too_deep(each, levels - 1) for each in (value.values() if isinstance(value, dict) else value)
    )


def _invalid(error: str, remedy: str = _FORM) -> Problem:
    kind: ProblemKind = "unclosed_tag" if "not closed" in error else "not_a_call"
    return Problem(kind=kind, text=storable(f"Error: a call cannot be read: {error:.300}. {remedy}."))


def _same(one: ToolCall, other: ToolCall) -> bool:
    return one["name"] == other["name"] and one["args"] == other["args"]


def tools_line(names: Sequence[str]) -> str:
    """Return the one line that tells a small policy which tools it has; it was trained on them."""
    return f"Tools: {', '.join(names) or 'none'}."


def tools_block(specs: Sequence[dict[str, Any]], tools: Sequence[BaseTool] = ()) -> str:
    """Return the tools as a system prompt lists them: one line of JSON each, in <tools> tags."""
    listed = [*specs, *(convert_to_openai_tool(tool) for tool in tools)]
    lines = [json.dumps(each["function"], ensure_ascii=False) for each in listed]
    return "\n".join(["<tools>", *lines, "</tools>"]) if lines else "You have no tools."

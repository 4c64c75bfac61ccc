"""Tool calls as text, for policies behind our chat models: one block per call, inside the reply.

    <tool_call>
    {"name": "search", "arguments": {"query": "lisbon"}}
    </tool_call>

This is the form that Qwen2.5 and the Hermes models were trained on, and what the chat template of our own policy folders
expects. The reply's content stays the whole raw text, so that the next prompt repeats exactly what was sampled.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, InvalidToolCall, ToolCall, ToolMessage
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import JsonValue

from memweave.errors import InputError

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"
MAX_CALLS: Final = 64
"""Most calls that one reply may make; the rest is one invalid call."""

ToolLike = dict[str, Any] | type | Callable[..., Any] | BaseTool
ToolSpec = dict[str, JsonValue]
"""A tool as the OpenAI protocol describes it: `{"type": "function", "function": {"name", "description", "parameters"}}`."""

_BLOCK: Final = re.compile(rf"{OPEN}(.*?)(?:{CLOSE}|(?={OPEN})|\Z)", re.DOTALL)


def tool_specs(tools: Sequence[ToolLike]) -> list[ToolSpec]:
    """Return the tools as a chat template lists them. Raises `InputError` for what is no tool."""
    try:
        return [convert_to_openai_tool(tool) for tool in tools]
    except (ValueError, TypeError) as error:
        raise InputError(f"Cannot describe a tool to the model: {error}") from error


def parse_tool_calls(text: str) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    """Return the tool calls in a reply, in order, and those that make no sense, each with the reason.

    A block may hold a list of calls. Never raises: what a model gets wrong is data. Ids are `call_0`, `call_1`, ... by
    position in this reply, so that the same reply gives the same ids.
    """
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for number, (given, raw, problem) in enumerate(_given_calls(text)):
        if number == MAX_CALLS:
            invalid.append(_invalid(None, text, number, f"a reply may make at most {MAX_CALLS} calls"))
            break
        name, arguments, problem = _read_call(given) if problem is None else (None, None, problem)
        if problem is not None or name is None or arguments is None:
            invalid.append(_invalid(name, raw, number, problem or "is not a call"))
        else:
            calls.append(ToolCall(name=name, args=arguments, id=f"call_{number}", type="tool_call"))
    return calls, invalid


def render_tool_calls(calls: Sequence[ToolCall]) -> str:
    """Return calls as the text that `parse_tool_calls` reads back."""
    blocks = []
    for call in calls:
        body = json.dumps({"name": call["name"], "arguments": call["args"]}, ensure_ascii=False, default=str)
        # Within JSON "<" may be written as an escape: a tag in an argument must not end the block.
        body = body.replace(CLOSE, "\\u003c" + CLOSE[1:]).replace(OPEN, "\\u003c" + OPEN[1:])
        blocks.append(f"{OPEN}\n{body}\n{CLOSE}")
    return "\n".join(blocks)


def template_messages(messages: Sequence[BaseMessage]) -> list[dict[str, str]]:
    """Return messages as a chat template takes them: role and text, nothing else.

    An assistant's tool calls are part of its text; those of another model, which come beside the text, are written into
    it. Raises `InputError` for a message that is neither system, user, assistant nor tool.
    """
    return [{"role": _role(message), "content": _content(message)} for message in messages]


_ROLES: Final = {"system": "system", "human": "user", "ai": "assistant", "tool": "tool", "developer": "system"}


def _role(message: BaseMessage) -> str:
    role = message.type if message.type != "chat" else str(getattr(message, "role", ""))
    if role in _ROLES.values():
        return role
    if role not in _ROLES:
        raise InputError(f"A policy reads system, user, assistant and tool messages, not {role or message.type!r}")
    return _ROLES[role]


def _content(message: BaseMessage) -> str:
    text = message.text
    if isinstance(message, AIMessage) and message.tool_calls and OPEN not in text:
        return "\n".join(part for part in (text, render_tool_calls(message.tool_calls)) if part)
    if isinstance(message, ToolMessage) and not text and message.content:
        return json.dumps(message.content, ensure_ascii=False, default=str)
    return text


def _given_calls(text: str) -> Iterator[tuple[object, str, str | None]]:
    """Yield what each block holds, its raw text, and why it cannot be read."""
    for block in _BLOCK.finditer(text):
        raw = block.group(1).strip()
        if not block.group(0).endswith(CLOSE):
            yield None, raw, f"the block is not closed with {CLOSE}"
            continue
        try:
            body = json.loads(raw, parse_constant=_no_constant, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            yield None, raw, f"is not JSON: {error}"
            continue
        if not isinstance(body, list):
            yield body, raw, None
        elif not body:
            yield None, raw, "is an empty list"
        else:
            for item in body:
                yield item, json.dumps(item, ensure_ascii=False), None


def _read_call(given: object) -> tuple[str | None, dict[str, Any] | None, str | None]:
    """Return name, arguments and what is wrong with a call."""
    if not isinstance(given, dict):
        return None, None, 'is not an object with "name" and "arguments"'
    name, arguments = given.get("name"), given.get("arguments", {})
    if not isinstance(name, str) or not name.strip():
        return None, None, 'has no "name"'
    if isinstance(arguments, str):  # some models quote the object once more
        try:
            arguments = json.loads(arguments, parse_constant=_no_constant, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            return name, None, f'"arguments" is not JSON: {error}'
    if not isinstance(arguments, dict):
        return name, None, '"arguments" is not an object'
    return name.strip(), arguments, None


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _no_constant(digits)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _invalid(name: str | None, raw: str, number: int, problem: str) -> InvalidToolCall:
    return InvalidToolCall(name=name, args=raw, id=f"call_{number}", error=problem, type="invalid_tool_call")

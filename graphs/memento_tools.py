"""What Memento's executor calls: the user's tools, each guarded, some of them only after a person has approved the call.

What a tool does (raise, hang, return too much, die) is a message to the executor, never an exception of the run.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.messages import BaseMessage, ToolCall
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command, interrupt
from pydantic import JsonValue

from memweave.agents.llm import bounded
from memweave.agents.roles import one_line
from memweave.errors import SettingsError
from memweave.graphs.memento_state import Approval
from memweave.records import storable

TOOL_TIMEOUT: Final = 60.0
"""Seconds that one call of a tool may take."""
RESULT_CHARS: Final = 20_000
"""Characters of one result; the rest is cut off and the executor is told."""
CHECKPOINTER: Final = "__pregel_checkpointer"
"""Where LangGraph 1.2 keeps the checkpointer of a run."""


def check_tools(tools: Sequence[BaseTool]) -> tuple[BaseTool, ...]:
    """Return the tools. Raises `SettingsError` for two of one name."""
    names = [tool.name for tool in tools]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(f"two tools are called {twice[0]!r}; give each a name of its own")
    return tuple(tools)


def dangerous(tools: Sequence[BaseTool], approve: Collection[str]) -> frozenset[str]:
    """Return the names of the tools that need approval: those in `approve`, and those with metadata `{"dangerous": True}`.

    Raises `SettingsError` for a name that no tool has.
    """
    names = {tool.name for tool in tools}
    if unknown := sorted(set(approve) - names):
        raise SettingsError(
            f"approve names {unknown[0]!r}, which is no tool. There are: {', '.join(sorted(names)) or 'none'}"
        )
    return frozenset({*approve, *(tool.name for tool in tools if (tool.metadata or {}).get("dangerous"))})


@dataclass(frozen=True)
class Limits:
    """What one call of a tool may take."""

    seconds: float
    chars: int
    """Of its result; the rest is cut off and the executor is told."""


def run_call(tool: BaseTool, call: ToolCall, limits: Limits, config: RunnableConfig) -> tuple[str, bool]:
    """Return what the executor is told of a call, and whether it went well. Raises LangGraph's own (an interrupt) alone."""
    try:
        return _told(tool, bounded(lambda: _invoked(tool, call, config), limits.seconds), limits)
    except GraphBubbleUp:
        raise
    except Exception as error:
        return _raised(tool, error, limits)


async def arun_call(tool: BaseTool, call: ToolCall, limits: Limits, config: RunnableConfig) -> tuple[str, bool]:
    """Return the same as `run_call`."""
    try:
        if not _is_async(tool):  # in a thread that nothing waits for: an event loop would wait for its own when it ends
            return await asyncio.to_thread(run_call, tool, call, limits, config)
        async with asyncio.timeout(limits.seconds):
            return _told(tool, await tool.ainvoke({**call, "type": "tool_call"}, config), limits)
    except GraphBubbleUp:
        raise
    except Exception as error:
        return _raised(tool, error, limits)


def _invoked(tool: BaseTool, call: ToolCall, config: RunnableConfig) -> object:
    if isinstance(tool, StructuredTool) and tool.func is None:  # those of MCP servers
        return asyncio.run(tool.ainvoke({**call, "type": "tool_call"}, config))
    return tool.invoke({**call, "type": "tool_call"}, config)


def _is_async(tool: BaseTool) -> bool:
    if isinstance(tool, StructuredTool):
        return tool.coroutine is not None
    return type(tool)._arun is not BaseTool._arun


def _told(tool: BaseTool, result: object, limits: Limits) -> tuple[str, bool]:
    if any(isinstance(each, Command) for each in (result if isinstance(result, list | tuple) else (result,))):
        return f"Error: the tool {tool.name} cannot be used here: it tries to steer the graph. Go on without it.", False
    ok = getattr(result, "status", "success") != "error"
    text = result.text if isinstance(result, BaseMessage) else str(result)
    if isinstance(result, BaseMessage) and not text and result.content:
        text = json.dumps(result.content, ensure_ascii=False, default=str)
    cut = len(text) - limits.chars
    return storable(text if cut <= 0 else f"{text[: limits.chars]}\n[{cut} characters were cut off]"), ok


def _raised(tool: BaseTool, error: Exception, limits: Limits) -> tuple[str, bool]:
    late = isinstance(error, TimeoutError) and not str(error)
    what = (
        f"no result within {limits.seconds:g} s" if late else one_line(f"{type(error).__name__}: {error}").rstrip(".")
    )
    return storable(
        f"Error: the tool {tool.name} failed ({what[:300]}). Check the arguments, or go on without it."
    ), False


def unknown_tool(name: str, tools: Sequence[BaseTool]) -> str:
    """Return what the executor is told of a call to a tool that it does not have."""
    names = ", ".join(tool.name for tool in tools)
    use = f"Use one of: {names}" if names else "You have no tools; report what you know"
    return storable(f"Error: there is no tool {name!r:.60}. {use}.")


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Return arguments as a record can hold them; they come from a model, and may be anything."""
    try:
        plain: dict[str, JsonValue] = json.loads(
            storable(json.dumps(arguments, ensure_ascii=False, allow_nan=False, default=str))
        )
    except (ValueError, RecursionError):
        return {"unreadable": storable(repr(arguments)[:500])}
    return plain


# approval


def ask_person(call: ToolCall, subtask: str) -> Approval:
    """Pause the run until a person decides about a call; an answer that cannot be read is asked for again.

    The request has the shape of LangChain's human-in-the-loop middleware, and so may the answer:
    `{"decisions": [{"type": "approve"}]}`. Shorter: `"approve"`, `"reject"`, `{"type": "reject", "message": "..."}`,
    `{"type": "edit", "args": {...}}`.
    """
    request: dict[str, Any] = {
        "action_requests": [
            {"name": call["name"], "args": call["args"], "description": f"For the subtask: {subtask}"},
        ],
        "review_configs": [{"action_name": call["name"], "allowed_decisions": ["approve", "edit", "reject"]}],
    }
    answer = interrupt(request)
    while (decided := read_decision(answer, call["name"])) is None:
        answer = interrupt({**request, "problem": "Answer with approve, reject, or edit and new args."})
    return decided


def read_decision(answer: object, name: str) -> Approval | None:
    """Return what a person decided about a call of the tool `name`; `None` when it cannot be read."""
    if isinstance(answer, Mapping) and isinstance(answer.get("decisions"), list) and len(answer["decisions"]) == 1:
        answer = answer["decisions"][0]
    if isinstance(answer, bool):
        return Approval(decision="approve" if answer else "reject")
    given: Mapping[str, Any] = answer if isinstance(answer, Mapping) else {"type": answer}
    match given.get("type"):
        case "approve":
            return Approval(decision="approve")
        case "reject":
            message = given.get("message")
            return Approval(decision="reject", message=message if isinstance(message, str) else None)
        case "edit":
            action = given.get("edited_action", given)
            arguments = action.get("args") if isinstance(action, Mapping) else None
            if isinstance(arguments, dict) and action.get("name", name) == name:
                return Approval(decision="edit", arguments=arguments)
    return None

"""Tools of the user's own beside those of the memory: run, and turned into what the model is told."""

from __future__ import annotations

from langchain_core.messages import BaseMessage, ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command

from memweave.agents.memory_tools import Outcome, failed
from memweave.agents.roles import one_line
from memweave.errors import UnavailableError
from memweave.records import storable


def own_tool(tool: BaseTool, call: ToolCall, config: RunnableConfig) -> Outcome:
    """Run a tool; what it raises is told to the model. Raises `UnavailableError`, and LangGraph's own (an interrupt)."""
    try:
        return _told(tool, tool.invoke({**call, "type": "tool_call"}, config))
    except (GraphBubbleUp, UnavailableError):
        raise
    except Exception as error:
        return _raised(tool, error)


async def aown_tool(tool: BaseTool, call: ToolCall, config: RunnableConfig) -> Outcome:
    """Run a tool, as `own_tool` does."""
    try:
        return _told(tool, await tool.ainvoke({**call, "type": "tool_call"}, config))
    except (GraphBubbleUp, UnavailableError):
        raise
    except Exception as error:
        return _raised(tool, error)


def _told(tool: BaseTool, result: object) -> Outcome:
    if any(isinstance(each, Command) for each in (result if isinstance(result, list | tuple) else (result,))):
        why = "it returned a Command, and a tool of this agent cannot steer its graph: it has to return what it found"
        return failed(tool.name, "tool_error", f"the tool {tool.name} cannot be used here: {why}. Go on without it")
    message = result if isinstance(result, BaseMessage) else ToolMessage(str(result), tool_call_id="")
    ok = not (isinstance(message, ToolMessage) and message.status == "error")
    return Outcome(name=tool.name, ok=ok, text=storable(message.text), fault=None if ok else "tool_error")


def _raised(tool: BaseTool, error: Exception) -> Outcome:
    what = one_line(f"{type(error).__name__}: {error}").rstrip(".")[:300]
    return failed(
        tool.name, "tool_error", f"the tool {tool.name} failed ({what}). Check the arguments, or go on without it"
    )

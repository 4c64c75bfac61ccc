"""What tests of graph memory share: tools, replies in both protocols, and advice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import BaseTool, StructuredTool

from memweave.graphs.graph_memory_rollout import ADVICE
from memweave.graphs.graph_memory_state import Guidance, ShownStrategy

CHECK = Guidance(
    text="<advice>\n- Consider to look twice. [0]\n</advice>",
    strategies=(
        ShownStrategy(id=UUID(int=7), version=3, summary="Consider to look twice.", relevance=1.5, probability=0.75),
    ),
)


def lookup(found: dict[str, str] | Callable[[str], Any], name: str = "search") -> BaseTool:
    """Return a tool that takes one text `query`."""

    def run(query: str) -> Any:
        return found(query) if callable(found) else found.get(query, "nothing was found")

    return StructuredTool.from_function(run, name=name, description="Search.")


def asks(*queries: str, name: str = "search", text: str = "") -> AIMessage:
    """Return a native reply that searches."""
    calls = [
        {"name": name, "args": {"query": each}, "id": f"{each}-{i}", "type": "tool_call"}
        for i, each in enumerate(queries)
    ]
    return AIMessage(text, tool_calls=calls)


def tagged(query: str, think: str = "look it up", name: str = "search") -> str:
    """Return a reply that searches, in the text protocol."""
    return f'<think>{think}</think><tool_call>{{"name": "{name}", "arguments": {{"query": "{query}"}}}}</tool_call>'


def answers(text: str, think: str = "that is it") -> str:
    """Return a reply that answers, in the text protocol."""
    return f"<think>{think}</think><answer>{text}</answer>"


def advised(messages: Sequence[BaseMessage]) -> str:
    """Return the advice in a prompt, or nothing."""
    return next((message.text for message in messages if message.name == ADVICE), "")

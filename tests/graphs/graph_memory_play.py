"""What tests of graph memory share: tools, replies in both protocols, and advice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import BaseTool, StructuredTool

from memweave.graphs.graph_memory_play import QueryTask
from memweave.graphs.graph_memory_rollout import RolloutGraph, create_rollout_graph
from memweave.graphs.graph_memory_rollout_nodes import ADVICE, QUERY
from memweave.graphs.graph_memory_state import Guidance, ShownStrategy
from memweave.testing.models import Script, ScriptedChatModel

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


KNOWN = {
    f"capital of {country}": f"{city} is the capital of {country}."
    for country, city in {
        "Norway": "Oslo",
        "Peru": "Lima",
        "Chad": "Ndjamena",
        "Cuba": "Havana",
        "Oman": "Muscat",
        "Togo": "Lome",
        "Mali": "Bamako",
        "Fiji": "Suva",
    }.items()
}
"""What can be looked up, and what comes back."""


def capital(country: str, **more: Any) -> QueryTask:
    """Return a query about a capital."""
    answer = KNOWN[f"capital of {country}"].split(" is ")[0]
    given = {"query_id": country.lower(), "ground_truth": (answer,), **more}
    return QueryTask(text=f"What is the capital of {country}?", **given)


def searching(messages: Sequence[BaseMessage]) -> AIMessage:
    """Reply as a policy that looks up what it is asked, then answers with what it found."""
    if messages[-1].type == "tool":
        return AIMessage(messages[-1].text.split(" is ")[0])
    return asks(asked(messages).removeprefix("What is the ").rstrip("?"))


def guessing(messages: Sequence[BaseMessage]) -> AIMessage:
    """Reply as a policy that does not look."""
    return AIMessage("Bergen")


def asked(messages: Sequence[BaseMessage]) -> str:
    """Return the query in a prompt."""
    return next(message.text for message in messages if message.id == QUERY)


class Wavering:
    """Replies as a policy whose rollouts of a query search and guess in turn; with advice to search, it searches."""

    def __init__(self, *, heeds: bool = True) -> None:
        self._heeds = heeds
        self._seen: dict[str, int] = {}
        self._lock = threading.Lock()

    def __call__(self, messages: list[BaseMessage]) -> AIMessage:
        """Reply."""
        if messages[-1].type == "tool" or (self._heeds and "searching" in advised(messages)):
            return searching(messages)
        with self._lock:
            number = self._seen[asked(messages)] = self._seen.get(asked(messages), 0) + 1
        return searching(messages) if number % 2 else guessing(messages)


def rollouts(script: Script, **more: Any) -> RolloutGraph:
    """Return a rollout graph that can look capitals up."""
    return create_rollout_graph(ScriptedChatModel(script), [lookup(KNOWN)], **more)

"""A chat model that plays the roles of Memory-R1 by their system prompt, and both ways of running a graph."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.messages import BaseMessage
from langgraph.pregel import Pregel

from memweave.agents.strategist import RULE_MATCH
from memweave.memory_stores import MemoryBank, StrategyGraph, StrategySettings, open_bank
from memweave.records import Scope, new_id
from memweave.testing.models import Scripted, ScriptedChatModel

ROLES = {"You read one turn": "extractor", "You manage": "manager", "You answer": "answerer"}


def role_of(messages: list[BaseMessage]) -> str:
    return next((role for begin, role in ROLES.items() if messages[0].text.startswith(begin)), "chat")


def extract_all(messages: list[BaseMessage]) -> str:
    """Reply with what was said as one fact; small talk ends with an exclamation mark and holds none."""
    said = messages[1].text.splitlines()[-1].split(": ", 1)[1]
    return json.dumps({"facts": [] if said.endswith("!") else [said]})


def add_all(messages: list[BaseMessage]) -> str:
    """Reply with an ADD for every fact."""
    facts = [line[2:] for line in messages[1].text.partition("New facts")[2].splitlines() if line.startswith("- ")]
    return json.dumps({"memory": [{"event": "ADD", "text": fact, "reason": "It is new."} for fact in facts]})


@pytest.fixture(scope="session")
def shared_bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryBank]:
    """Return one bank for all tests of graphs: opening an index takes longer than most of them."""
    with open_bank(tmp_path_factory.mktemp("bank"), embedding="hashing") as opened:
        yield opened


@pytest.fixture
def bank(shared_bank: MemoryBank) -> MemoryBank:
    """Return a bank; every test has a tenant of its own in it."""
    return shared_bank


@pytest.fixture
def scope() -> Scope:
    """Return the scope of Anna, in a tenant that no other test uses."""
    return Scope(tenant=str(new_id()), user="anna")


One = Callable[[list[BaseMessage]], Scripted] | Scripted
Reply = One | list[One]


@pytest.fixture
def brain() -> Callable[..., ScriptedChatModel]:
    """Return a model: roles that are not given extract and add everything; a list replies in turn, its last for ever."""

    def make(**replies: Reply) -> ScriptedChatModel:
        defaults: dict[str, Reply] = {
            "extractor": extract_all,
            "manager": add_all,
            "answerer": "- quoted [0]\n**Answer:** tea",
            "chat": "Hello!",
        }
        script = defaults | replies

        def reply(messages: list[BaseMessage]) -> Scripted:
            entry = script[role_of(messages)]
            if isinstance(entry, list):
                entry = entry.pop(0) if len(entry) > 1 else entry[0]
            return entry(messages) if callable(entry) else entry

        return ScriptedChatModel(reply)

    return make


@pytest.fixture
def calls() -> Callable[[ScriptedChatModel, str], list[list[BaseMessage]]]:
    """Return the calls that a model got in one role."""
    return lambda model, role: [call for call in model.calls if role_of(call) == role]


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Run a graph to its end, by `invoke` and by `ainvoke`."""

    def invoke(graph: Pregel[Any, Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        if request.param == "sync":
            return graph.invoke(*args, **kwargs)
        return asyncio.run(graph.ainvoke(*args, **kwargs))

    return invoke


@pytest.fixture(params=["sync", "async"])
def stream(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """Run a graph to its end, by `stream` and by `astream`, and return the parts."""

    def collect(graph: Pregel[Any, Any, Any, Any], *args: Any, **kwargs: Any) -> list[Any]:
        async def acollect() -> list[Any]:
            return [part async for part in graph.astream(*args, **kwargs)]

        return list(graph.stream(*args, **kwargs)) if request.param == "sync" else asyncio.run(acollect())

    return collect


@pytest.fixture
def strategies(shared_bank: MemoryBank) -> StrategyGraph:
    """Return a graph of strategies, for those that rules make; every test has a tenant of its own in it."""
    return StrategyGraph(shared_bank, StrategySettings(match_threshold=RULE_MATCH))

"""What tests of Memento share: plans, calls, tools that count what they did, and short ways to make an agent and ask it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import BaseTool, StructuredTool

from memweave.graphs.memento import MementoAgent, create_memento_agent
from memweave.serving.tool_text import render_tool_calls
from memweave.testing.models import Script, ScriptedChatModel

Run = Callable[..., Any]


def plan(*steps: str | tuple[str, list[int]], think: str = "") -> str:
    """Return a plan as a planner writes it; a pair names what a step comes after."""
    items: list[dict[str, Any]] = []
    for number, step in enumerate(steps, 1):
        text, after = (step, None) if isinstance(step, str) else step
        items.append({"id": number, "description": text} | ({} if after is None else {"after": after}))
    return f"{f'<think>{think}</think>' if think else ''}{json.dumps({'plan': items})}"


def final(answer: str) -> str:
    return f"FINAL ANSWER: {answer}"


def calling(*calls: tuple[str, dict[str, Any]], text: str = "") -> AIMessage:
    """Return a reply with native calls."""
    made = [
        {"name": name, "args": args, "id": f"call-{i}", "type": "tool_call"} for i, (name, args) in enumerate(calls)
    ]
    return AIMessage(text, tool_calls=made)


def tagged(*calls: tuple[str, dict[str, Any]]) -> str:
    """Return a reply with calls in the text protocol."""
    return render_tool_calls([{"name": n, "args": a, "id": None, "type": "tool_call"} for n, a in calls])


class Counted:
    """Tools that note every call that was carried out."""

    def __init__(self) -> None:
        self.done: list[tuple[str, dict[str, Any]]] = []

    def tool(self, name: str, *, returns: Callable[..., Any] | None = None, dangerous: bool = False) -> BaseTool:
        """Return a tool that takes one text `x`."""

        def run(x: str) -> Any:
            self.done.append((name, {"x": x}))
            return returns(x) if returns else f"{name} of {x}"

        made = StructuredTool.from_function(run, name=name, description=f"Do {name} with x.")
        if dangerous:
            made.metadata = {"dangerous": True}
        return made

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.done]


def echo(messages: Sequence[BaseMessage]) -> str:
    """Reply as an executor that needs no tools: what it was told to do, done."""
    return f"done: {messages[-1].text}"


def agent(planner: Script | None, executor: Script = echo, tools: Sequence[BaseTool] = (), **more: Any) -> MementoAgent:
    return create_memento_agent(
        None if planner is None else ScriptedChatModel(planner), ScriptedChatModel(executor), tools, **more
    )


def asking(text: str = "What is it?", **more: Any) -> Any:
    return {"messages": text, **more}

"""What tests of the AgeMem agent share: replies in both protocols, and short ways to say what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph

from memweave.graphs.agemem_state import Protocol, StepLog
from memweave.memory_stores import MemoryStore
from memweave.records import Memory, OpKind, ProposedOp, Scope, new_id
from memweave.serving.tool_text import render_tool_calls
from memweave.testing.models import Script, ScriptedChatModel

Asked = tuple[str, dict[str, Any]]
Graph = CompiledStateGraph[Any, Any, Any, Any]


class Speaker:
    """Writes a model's replies in one protocol."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol: Protocol = protocol

    def calls(self, *asked: Asked, think: str = "") -> AIMessage:
        """Return a reply that calls tools."""
        made = [{"name": name, "args": args, "id": str(new_id()), "type": "tool_call"} for name, args in asked]
        if self.protocol == "native":
            return AIMessage(think, tool_calls=made)
        rendered = render_tool_calls([{"name": n, "args": a, "id": None, "type": "tool_call"} for n, a in asked])
        return AIMessage(f"<think>{think}</think>{rendered}")

    def answer(self, text: str) -> AIMessage:
        """Return a reply that answers."""
        return AIMessage(text if self.protocol == "native" else f"<answer>{text}</answer>")


class Bound(ScriptedChatModel):
    """A scripted model that notes which tools it was bound to."""

    tools: list[str] = []

    def __init__(self, script: Script) -> None:
        super().__init__(script)

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        """Note the names of the tools."""
        self.tools = [each["function"]["name"] if isinstance(each, dict) else each.name for each in tools]
        return self


class Ours(ScriptedChatModel):
    """A scripted model that passes for a policy of this process."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)

    @property
    def _llm_type(self) -> str:
        return "memweave-local"


def thread(name: str = "t", **more: Any) -> RunnableConfig:
    return {"configurable": {"thread_id": name}, **more}  # type: ignore[typeddict-item]  # of callbacks and the like


def saying(text: str, **fields: Any) -> Any:
    return {"messages": [HumanMessage(text, **fields)]}


def remember(bank: MemoryStore, scope: Scope, *texts: str) -> list[Memory]:
    """Write memories as somebody else would."""
    ops = [ProposedOp(kind=OpKind.ADD, text=text, reason="said", actor="test") for text in texts]
    return [op.after for op in bank.apply(ops, scope=scope) if op.after]


def stored(bank: MemoryStore, scope: Scope) -> list[str]:
    return sorted(memory.text for memory in bank.memories(scope=scope))


def said(messages: Sequence[BaseMessage]) -> list[str]:
    return [message.text for message in messages]


def steps(graph: Graph, config: RunnableConfig) -> list[StepLog]:
    """Return the turns of the last round of a graph with a checkpointer."""
    found: list[StepLog] = graph.get_state(config).values["steps"]
    return found


def context(graph: Graph, config: RunnableConfig) -> list[BaseMessage]:
    """Return what the model would see of a thread."""
    found: list[BaseMessage] = graph.get_state(config).values["context"]["messages"]
    return found


def streamed(parts: Sequence[Any]) -> list[BaseMessage]:
    """Return the messages of a stream of `messages` and `updates`."""
    return [part[0] for mode, part in parts if mode == "messages"]


def arrived(parts: Sequence[Any]) -> list[BaseMessage]:
    """Return what came into the public channel meanwhile."""
    updates = [update for mode, part in parts if mode == "updates" for update in part.values() if update]
    return [message for update in updates for message in update.get("messages", [])]

"""AgeMem's six operations as LangChain tools for any agent: what a native tool call becomes, and what it changes in the agent's state.

What a call means is decided by `memweave.agents.memory_tools`; here it gets its place (whose memories, which messages, who asks and
why), and its outcome becomes a `ToolMessage` and an update of the private state.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolCall, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.config import get_config
from langgraph.prebuilt import ToolRuntime
from langgraph.types import Command

from memweave.agents.context import ExtractiveSummarizer, ModelSummarizer, Summarizer
from memweave.agents.memory_tools import (
    ADD,
    MOST_RETRIEVED,
    RETRIEVE,
    SUMMARY,
    Call,
    Numbers,
    Outcome,
    RetrieveMemory,
    Workplace,
    arun,
    checked,
    run,
    tool_specs,
)
from memweave.graphs.memory_middleware_view import ARTIFACT, asked, kept, seen
from memweave.graphs.session import DefaultScope, LazyBank, areport, current_scope, current_thread, emit, report
from memweave.memory_stores import MemoryStore

GAP: Final = UUID(int=0)
"""Stands in `Numbers` for a number that was set aside and not used; no memory has this id."""
ROLE: Final = "model"
"""The node of `create_agent` that asks for operations: traces call its replies by this name unless the run names a role."""
_NOTED_MODELS: Final = 1_000
"""Replies that asked for a summary and whose model is kept, the latest."""


def merged(left: Numbers, right: Numbers) -> Numbers:
    """Return the numbers that either side knows: the reducer for calls that run beside each other.

    They never contradict each other, because each call of a reply has numbers of its own (`set_aside`).
    """
    longer, shorter = sorted((left.ids, right.ids), key=len, reverse=True)
    both = zip(longer, shorter, strict=False)
    return Numbers(ids=tuple(b if a == GAP else a for a, b in both) + longer[len(shorter) :])


def set_aside(numbers: Numbers, calls: Sequence[ToolCall], call_id: str | None, names: Sequence[str]) -> Numbers:
    """Return the numbers from which a call goes on: those that the calls before it in the same reply may give are left out.

    The calls of a reply run beside each other, from the same state. Told apart like this, they give the same numbers in whatever
    order they run, also when one of them is run again after a crash.
    """
    taken = 0
    for call in calls:
        if call["id"] == call_id:
            break
        taken += _most_given(call, names)
    return Numbers(ids=(*numbers.ids, *[GAP] * taken)) if taken else numbers


def _most_given(call: ToolCall, names: Sequence[str]) -> int:
    """Return how many new numbers a call can give."""
    asks = checked(call, names=names)
    if isinstance(asks, Call) and isinstance(asks.arguments, RetrieveMemory):
        return min(asks.arguments.top_k, MOST_RETRIEVED)
    return int(isinstance(asks, Call) and asks.name == ADD)


class Summarizers:
    """Who writes the summary that a reply asks for: one for all, or else the model that gave the reply."""

    def __init__(self, one: Summarizer | None) -> None:
        self._one = one
        self._models: OrderedDict[str, BaseChatModel] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, model: BaseChatModel, replies: Sequence[BaseMessage]) -> None:
        """Keep the model of replies that ask for a summary: a tool is not told which model called it."""
        for reply in replies:
            if isinstance(reply, AIMessage) and reply.id and any(call["name"] == SUMMARY for call in reply.tool_calls):
                with self._lock:
                    self._models[reply.id] = model
                    while len(self._models) > _NOTED_MODELS:
                        self._models.popitem(last=False)

    def of(self, reply: AIMessage) -> Summarizer:
        """Return who summarises for a reply.

        Without its model (the program was started anew between the reply and its tools) the rarest sentences stand for the rest.
        """
        if self._one is not None:
            return self._one
        with self._lock:
            model = self._models.get(reply.id or "")
        return ModelSummarizer(model) if isinstance(model, BaseChatModel) else ExtractiveSummarizer()


@dataclass(frozen=True)
class MemoryTools:
    """What the tools of one middleware share."""

    bank: LazyBank
    scope: DefaultScope
    names: tuple[str, ...]
    summarizers: Summarizers
    threshold: float

    def tools(self) -> list[BaseTool]:
        """Return the tools, sync and async."""
        return [self._tool(spec["function"]) for spec in tool_specs(self.names)]

    def _tool(self, spec: Mapping[str, Any]) -> BaseTool:
        name: str = spec["name"]

        def call(*, runtime: ToolRuntime[Any, Any], **arguments: Any) -> Command[Any] | ToolMessage:
            return self._call(name, arguments, runtime)

        async def acall(*, runtime: ToolRuntime[Any, Any], **arguments: Any) -> Command[Any] | ToolMessage:
            return await self._acall(name, arguments, runtime)

        # The schema as JSON: what a model passes comes here unchecked, and `checked` answers it in our words.
        return _AnyArguments(
            name=name,
            description=spec["description"],
            args_schema=dict(spec["parameters"]),
            func=call,
            coroutine=acall,
        )

    def _call(self, name: str, arguments: dict[str, Any], runtime: ToolRuntime[Any, Any]) -> Command[Any] | ToolMessage:
        call, at = self._placed(name, arguments, runtime, self.bank.get())
        outcome = run(call, at, get_config())
        if outcome.ops:
            emit(outcome.ops, _dialogue())
            report(outcome.ops, _dialogue(), _role())
        return _answer(outcome, runtime.tool_call_id)

    async def _acall(
        self, name: str, arguments: dict[str, Any], runtime: ToolRuntime[Any, Any]
    ) -> Command[Any] | ToolMessage:
        call, at = self._placed(name, arguments, runtime, await self.bank.aget())
        outcome = await arun(call, at, get_config())
        if outcome.ops:
            emit(outcome.ops, _dialogue())
            await areport(outcome.ops, _dialogue(), _role())
        return _answer(outcome, runtime.tool_call_id)

    def _placed(
        self, name: str, arguments: dict[str, Any], runtime: ToolRuntime[Any, Any], bank: MemoryStore
    ) -> tuple[Call | Outcome, Workplace]:
        """Return the call, and what it works on. Raises `ScopeError` when nobody says whose memories."""
        state: Mapping[str, Any] = runtime.state
        messages: list[BaseMessage] = state["messages"]
        reply = _asking(messages, runtime.tool_call_id)
        call = ToolCall(name=name, args=arguments, id=runtime.tool_call_id, type="tool_call")
        keep = kept(messages)
        version = reply.response_metadata.get("policy_version")
        at = Workplace(
            store=bank,
            scope=current_scope(self.scope),
            numbers=set_aside(
                state.get("memory_numbers") or Numbers(), reply.tool_calls, runtime.tool_call_id, self.names
            ),
            context=seen(messages, state.get("memory_edits") or (), keep),
            keep=keep,
            summarizer=self.summarizers.of(reply),
            actor=state.get("memory_actor") or "agent",
            policy_version=version if isinstance(version, str) else None,
            run_id=state.get("memory_run"),
            source_ids=tuple(message.id for message in asked(messages) if message.id),
            threshold=self.threshold,
        )
        return checked(call, names=self.names, reason=reply.text), at


class _AnyArguments(StructuredTool):
    """A tool whose model may pass arguments of any name, `self` and `config` included, without breaking the call."""

    def _run(self, /, **arguments: Any) -> Any:  # type: ignore[override]
        assert self.func is not None
        return self.func(**arguments)

    async def _arun(self, /, **arguments: Any) -> Any:  # type: ignore[override]
        assert self.coroutine is not None
        return await self.coroutine(**arguments)


def _asking(messages: Sequence[BaseMessage], call_id: str | None) -> AIMessage:
    """Return the reply that made a call; an empty one when somebody else did."""
    for message in reversed(messages):
        if isinstance(message, AIMessage) and any(call["id"] == call_id for call in message.tool_calls):
            return message
    return AIMessage("")


def _answer(outcome: Outcome, call_id: str | None) -> Command[Any] | ToolMessage:
    """Return what an outcome is to the agent: a message for the model, and what changes in the private state."""
    message = ToolMessage(
        outcome.text, name=outcome.name, tool_call_id=call_id or "", status="success" if outcome.ok else "error"
    )
    if outcome.name == RETRIEVE and outcome.retrieved:
        message.artifact = {ARTIFACT: [[str(memory.id), memory.version] for memory in outcome.retrieved]}
    update: dict[str, Any] = {"messages": [message]}
    if outcome.numbers is not None:
        update["memory_numbers"] = _trimmed(outcome.numbers)
    if outcome.edit is not None:
        update["memory_edits"] = [outcome.edit]
    return Command(update=update) if len(update) > 1 else message


def _trimmed(numbers: Numbers) -> Numbers:
    """Return the numbers without those at the end that were set aside in vain."""
    used = len(numbers.ids)
    while used and numbers.ids[used - 1] == GAP:
        used -= 1
    return numbers if used == len(numbers.ids) else Numbers(ids=numbers.ids[:used])


def _dialogue() -> str:
    return current_thread(get_config()) or "default"


def _role() -> str:
    """Return who asks for operations, as a tracer names the replies: the run's role, else the node."""
    named = (get_config().get("metadata") or {}).get("memweave_role")
    return named if isinstance(named, str) and named else ROLE

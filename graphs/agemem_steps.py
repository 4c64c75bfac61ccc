"""What AgeMem's two machines share: asking the model and carrying out what its reply asks for (specification, section 3).

A machine has a *context*, the messages that the model sees, beside the public `messages`, which only ever grow. `AgentSteps` does not know
stages, tasks or rewards.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    InvalidToolCall,
    ToolCall,
    ToolMessage,
)
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.constants import TAG_NOSTREAM
from pydantic import JsonValue

from memweave.agents.context import (
    FILTER_THRESHOLD,
    ContextCounter,
    Summarizer,
    apply_edit,
    estimate_context,
)
from memweave.agents.llm import DEFAULT_TIMEOUT, aask, ask, described
from memweave.agents.memory_tools import (
    Call,
    Numbers,
    Outcome,
    Workplace,
    arun,
    checked,
    failed,
    run,
    tool_specs,
)
from memweave.agents.prompts import load_prompt
from memweave.agents.recall import recalled_message
from memweave.agents.tool_protocol import (
    TOO_DEEP,
    AgentTurn,
    read_native_turn,
    read_text_turn,
    too_deep,
    tools_block,
)
from memweave.errors import InputError, SettingsError
from memweave.graphs.agemem_own_tools import aown_tool, own_tool
from memweave.graphs.agemem_state import (
    ROLE,
    TOOLS,
    TOOLS_OF,
    Acted,
    Budget,
    CallLog,
    Dialogue,
    Protocol,
    Shown,
    StepLog,
    StepState,
    Variant,
    is_users,
)
from memweave.graphs.session import areport, emit, report
from memweave.memory_stores import MemoryStore
from memweave.models import model_name
from memweave.records import Memory, Scope, new_id, storable
from memweave.tracing.records import MemoryRef

LONGEST_RESULT: Final = 20_000
"""Characters of one tool result; the rest is cut off and the model is told."""
_MOST_KNOWN: Final = 50_000
_OWN_MODELS: Final = ("memweave-local", "memweave-vllm")


@dataclass(frozen=True)
class AgentSteps:
    """A model with tools, and how its replies are read and carried out."""

    model: BaseChatModel
    protocol: Protocol
    variant: Variant = "full"
    tools: tuple[BaseTool, ...] = ()
    """Tools beside those of the memory."""
    summarizer: Summarizer | None = None
    count: ContextCounter = estimate_context
    threshold: float = FILTER_THRESHOLD
    top_k: int | None = None
    dated: bool = True
    tolerant: bool = False
    tool_role: bool = False
    """Whether the model takes tool messages after calls in text; our own policies do."""
    timeout: float = DEFAULT_TIMEOUT
    _known: dict[str | None, int] = field(default_factory=dict, repr=False, compare=False)
    """Tokens of messages that were counted by themselves, by id."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the memory's tools that the agent has."""
        return TOOLS_OF[self.variant]

    def asked(
        self, context: Sequence[BaseMessage], shown: Sequence[Shown], prompt: str | None, config: RunnableConfig
    ) -> tuple[list[BaseMessage], RunnableConfig]:
        """Return the messages of the next call, and its configuration, which keeps tags of the text protocol out of a chat."""
        there = {message.id for message in context}
        memories = {m.id: m.version for each in shown if each.message_id in there for m in each.memories}
        own = described(config, ROLE, (), prompt)
        read = {"memweave_memories": [[str(each), version] for each, version in memories.items()]} if memories else {}
        unseen = [TAG_NOSTREAM] if self.protocol == "text" else []
        tags = [*(own.get("tags") or []), *unseen]
        return self.seen(context), {**own, "tags": tags, "metadata": {**own["metadata"], **read}}

    def seen(self, context: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Return the context as the model gets it."""
        return [_as_user(m) for m in context] if self.protocol == "text" and not self.own() else list(context)

    def tokens(self, context: Sequence[BaseMessage]) -> int:
        """Return how many tokens the model sees of a context."""
        return self.count(self.seen(context))

    def about(self, messages: Sequence[BaseMessage]) -> int:
        """Return about how many tokens messages have, each counted once."""
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        for message in messages:
            if message.id not in self._known:
                self._known[message.id] = self.tokens([message])
        return sum(self._known[message.id] for message in messages)

    def ask(
        self, context: Sequence[BaseMessage], shown: Sequence[Shown], prompt: str | None, config: RunnableConfig
    ) -> AIMessage:
        """Return the model's reply. Raises `UnavailableError`, `ModelReplyError`."""
        messages, own = self.asked(context, shown, prompt, config)
        return self._replied(ask(self._bound, messages, own, self.timeout))

    async def aask(
        self, context: Sequence[BaseMessage], shown: Sequence[Shown], prompt: str | None, config: RunnableConfig
    ) -> AIMessage:
        """Return the model's reply, as `ask` does."""
        messages, own = self.asked(context, shown, prompt, config)
        return self._replied(await aask(self._bound, messages, own, self.timeout))

    def instructions(self, given: str | None) -> str:
        """Return the system prompt: the one that is given, else the shipped one; in the text protocol with the tools."""
        if self.protocol == "native":
            return given or load_prompt("agemem").text
        return f"{given or load_prompt('agemem_text').text}\n\n{self._listed}"

    @cached_property
    def _listed(self) -> str:
        return tools_block(tool_specs(self.names), self.tools)

    @cached_property
    def _bound(self) -> BaseChatModel:
        if self.protocol == "text" or not (self.names or self.tools):
            return self.model
        # A Runnable, with the model's own invoke and ainvoke.
        return cast("BaseChatModel", self.model.bind_tools([*tool_specs(self.names), *self.tools]))

    def own(self) -> bool:
        """Return whether the model is a policy of ours: it reads a conversation of any shape, tool messages included."""
        return self.tool_role or self.model._llm_type in _OWN_MODELS

    @staticmethod
    def _replied(message: AIMessage) -> AIMessage:
        deep = [call for call in message.tool_calls if too_deep(call["args"])]
        update: dict[str, Any] = {} if message.id else {"id": str(new_id())}
        if deep:  # no checkpoint could hold them
            refused = [
                InvalidToolCall(name=c["name"], args="", id=c["id"], error=TOO_DEEP, type="invalid_tool_call")
                for c in deep
            ]
            update["tool_calls"] = [call for call in message.tool_calls if call not in deep]
            update["invalid_tool_calls"] = [*message.invalid_tool_calls, *refused]
        return message.model_copy(update=update) if update else message

    def read(self, reply: AIMessage) -> AgentTurn:
        """Return what a reply asks for."""
        return (
            read_text_turn(reply.text, tolerant=self.tolerant) if self.protocol == "text" else read_native_turn(reply)
        )

    def kept_reply(self, reply: AIMessage) -> AIMessage:
        """Return the reply as it stands in the context."""
        return AIMessage(reply.text, id=reply.id) if self.protocol == "text" else reply

    # calls

    def begin(self, state: StepState) -> Acted:
        """Return where the calls of the present turn start from."""
        reply = self.kept_reply(state["reply"]["message"])
        return Acted([*state["context"]["messages"], reply], state.get("numbers") or Numbers())

    def prepared(self, call: ToolCall, turn: AgentTurn) -> Call | BaseTool | Outcome:
        """Return what a call is of: a memory tool, one of the user's, or nothing that there is."""
        own = next((tool for tool in self.tools if tool.name == call["name"]), None)
        known = [*self.names, *(tool.name for tool in self.tools)]
        if own is not None:
            return own
        found = checked(call, names=self.names, reason=turn.think)
        if isinstance(found, Outcome) and found.fault == "unknown_tool":
            use = f"Use one of: {', '.join(known)}" if known else "You have no tools; answer"
            return failed(call["name"], "unknown_tool", f"there is no tool {call['name']!r:.60}. {use}")
        return found

    def workplace(
        self, store: MemoryStore, scope: Scope, acted: Acted, keep: Collection[str], run_id: str
    ) -> Workplace:
        """Return what the next call works on."""
        return Workplace(
            store=store,
            scope=scope,
            numbers=acted.numbers,
            context=acted.context,
            keep=keep,
            summarizer=self.summarizer,
            actor=model_name(self.model),
            policy_version=_version(self.model),
            run_id=run_id,
            source_ids=tuple(str(m.id) for m in acted.context if is_users(m))[-1:],
            dated=self.dated,
            threshold=self.threshold,
            top_k=self.top_k,
        )

    def carry_out(
        self,
        state: StepState,
        store: MemoryStore,
        scope: Scope,
        keep: Collection[str],
        run_id: str,
        config: RunnableConfig,
    ) -> Acted:
        """Run the calls of the present turn: the user's tools, then the memory's, each on what the one before left."""
        acted, turn, reply = self.begin(state), state["turn"], state["reply"]["message"]
        results: list[tuple[str, str, bool]] = []
        kept = {*keep, str(reply.id)}
        # The user's tools first: one may interrupt the run to ask somebody, and what comes before that happens again afterwards.
        found = [(call, self.prepared(call, turn)) for call in turn.calls]
        ready = [(call, own_tool(each, call, config) if isinstance(each, BaseTool) else each) for call, each in found]
        for call, each in ready:
            here = self.workplace(store, scope, acted, kept, run_id)
            results.append(_take(acted, call, run(each, here, config)))
        self._finish(acted, turn, reply, results)
        report(acted.ops, "agent", ROLE)
        return acted

    async def acarry_out(
        self,
        state: StepState,
        store: MemoryStore,
        scope: Scope,
        keep: Collection[str],
        run_id: str,
        config: RunnableConfig,
    ) -> Acted:
        """Run the calls of the present turn, as `carry_out` does."""
        acted, turn, reply = self.begin(state), state["turn"], state["reply"]["message"]
        results: list[tuple[str, str, bool]] = []
        kept = {*keep, str(reply.id)}
        found = [(call, self.prepared(call, turn)) for call in turn.calls]
        ready = [
            (call, await aown_tool(each, call, config) if isinstance(each, BaseTool) else each) for call, each in found
        ]
        for call, each in ready:
            here = self.workplace(store, scope, acted, kept, run_id)
            results.append(_take(acted, call, await arun(each, here, config)))
        self._finish(acted, turn, reply, results)
        await areport(acted.ops, "agent", ROLE)
        return acted

    def _finish(
        self, acted: Acted, turn: AgentTurn, reply: AIMessage, results: Sequence[tuple[str, str, bool]]
    ) -> None:
        """Put the results, and what was wrong with the reply, into the context."""
        problems = [problem.text for problem in turn.problems]
        if self.protocol == "native":
            new: list[BaseMessage] = [
                ToolMessage(text, tool_call_id=call_id, id=str(new_id()), status="success" if ok else "error")
                for call_id, text, ok in results
            ]
            for invalid in reply.invalid_tool_calls:
                said = problems.pop(0) if problems else "Error: the call cannot be read."
                new.append(_refused(said, invalid["id"]))
            if problems:
                new.append(HumanMessage("\n".join(problems), name=TOOLS, id=str(new_id())))
        else:
            lines = [text for _, text, _ in results] + problems
            new = [ToolMessage("\n".join(lines), tool_call_id="calls", id=str(new_id()))] if lines else []
        acted.new = new
        acted.context = [*acted.context, *new]
        acted.shown = [shown_in(new[0], acted.found)] if acted.found and new else []
        emit(acted.ops, "agent")

    # what is retrieved without being asked for

    def recalled(self, memories: Sequence[Memory], numbers: Numbers) -> tuple[BaseMessage, Numbers]:
        """Return the message that shows memories which nobody asked for, and their numbers."""
        numbers = numbers.including([memory.id for memory in memories])
        if self.protocol == "text":
            return ToolMessage(numbers.lines(memories), tool_call_id="recall", id=str(new_id())), numbers
        message = recalled_message(memories, numbers.lines(memories))
        return message.model_copy(update={"id": str(new_id())}), numbers

    def measured(self, context: Sequence[BaseMessage], budget: Budget, dropped: int = 0) -> Budget:
        """Return the budget with what the context takes now."""
        used = self.tokens(context)
        over = budget.limit is not None and used > budget.limit
        return budget.model_copy(
            update={"used": used, "overflowed": budget.overflowed or over, "dropped": budget.dropped + dropped}
        )


def shown_in(message: BaseMessage, memories: Sequence[Memory]) -> Shown:
    """Return that a message shows memories."""
    return Shown(message_id=str(message.id), memories=tuple(MemoryRef(id=m.id, version=m.version) for m in memories))


def as_messages(messages: Sequence[BaseMessage]) -> list[AnyMessage]:
    """Return messages as a channel of a graph holds them."""
    return cast("list[AnyMessage]", list(messages))  # every message that LangChain has is one of these


def as_dialogue(messages: Sequence[BaseMessage]) -> Dialogue:
    """Return messages that are not to be streamed as a channel of a graph holds them."""
    return Dialogue(messages=as_messages(messages))


def protocol_for(model: BaseChatModel) -> Protocol:
    """Return how a model calls tools if nobody says it: policies of ours in text, whose tokens are then exact."""
    return "text" if model._llm_type in _OWN_MODELS else "native"


def check_tools(tools: Sequence[BaseTool], variant: Variant) -> tuple[BaseTool, ...]:
    """Return the user's tools. Raises `SettingsError` for two of one name, or one that is named as the memory's."""
    if variant not in TOOLS_OF:
        raise SettingsError(f"variant {variant!r} is none of {', '.join(TOOLS_OF)}")
    names = [*TOOLS_OF[variant], *(tool.name for tool in tools)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(f"two tools are called {twice[0]!r}; give each a name of its own")
    return tuple(tools)


def log_of(state: StepState, acted: Acted, budget: Budget) -> StepLog:
    """Return the record of the present turn."""
    turn = state["turn"]
    before = state["budget"]
    return StepLog(
        stage=state.get("stage", 0),
        round=state.get("round", 0),
        think=turn.think,
        calls=tuple(acted.calls),
        answer=turn.answer,
        problems=tuple(problem.kind for problem in turn.problems),
        tokens=budget.used,
        overflow=budget.limit is not None and max(before.used, budget.used) > budget.limit,
        late=before.overflowed,
    )


def _take(acted: Acted, call: ToolCall, outcome: Outcome) -> tuple[str, str, bool]:
    """Put the outcome of a call where it belongs; return the call's id and what the model is told."""
    if outcome.edit is not None:
        acted.context = apply_edit(acted.context, outcome.edit)
        acted.edits.append(outcome.edit)
    if outcome.numbers is not None:
        acted.numbers = outcome.numbers
    if outcome.retrieved:
        acted.found += outcome.retrieved
    acted.ops += outcome.ops
    written = outcome.ops[0].memory_id if outcome.ops else None
    acted.calls.append(
        CallLog(
            name=outcome.name[:60],
            arguments=_logged(call["args"]),
            ok=outcome.ok,
            fault=outcome.fault,
            memory_id=None if written is None else str(written),
            retrieved=tuple(memory.text for memory in outcome.retrieved),
            removed=len(outcome.edit.removed) if outcome.edit else 0,
        )
    )
    text = outcome.text
    if len(text) > LONGEST_RESULT:
        text = f"{text[:LONGEST_RESULT]}\n[{len(text) - LONGEST_RESULT} characters were cut off]"
    return str(call["id"] or ""), text, outcome.ok


def _logged(arguments: dict[str, Any]) -> dict[str, JsonValue]:
    """Return arguments as the log can hold them; they come from a model, and may be anything."""
    try:
        plain: dict[str, JsonValue] = json.loads(
            storable(json.dumps(arguments, ensure_ascii=False, allow_nan=False, default=str))
        )
    except (ValueError, RecursionError):
        return {"unreadable": storable(repr(arguments)[:500])}
    return plain


def _as_user(message: BaseMessage) -> BaseMessage:
    """Return a tool result of the text protocol as a user message: chat endpoints take tool messages after native calls only.

    A result cannot end its block.
    """
    if not isinstance(message, ToolMessage):
        return message
    inner = message.text.replace("</tool_result", "&lt;/tool_result")
    return HumanMessage(f"<tool_result>\n{inner}\n</tool_result>", id=message.id)


def _refused(said: str, call_id: str | None) -> ToolMessage:
    return ToolMessage(said, tool_call_id=call_id or "", id=str(new_id()), status="error")


def _version(model: BaseChatModel) -> str | None:
    version = getattr(model, "policy_version", None)
    return version if isinstance(version, str) else None


def check_limit(limit: int | None) -> int | None:
    """Return a token budget. Raises `InputError` for one below 1."""
    if limit is not None and limit < 1:
        raise InputError(f"context_tokens = {limit}: give 1 at least, or None for no limit")
    return limit

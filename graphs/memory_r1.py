"""Memory-R1 as a chat agent, and the factories behind `langgraph.json`.

    accept -> remember -> recall -> reply

`accept` stores what the user said, `remember` runs the construction graph on it, `recall` finds memories within a token
budget, `reply` answers. Only what the user says is ever a source of memories: never the reply, the recalled memories or
the system prompt. The two state machines of the paper are in `memory_r1_construction` and `memory_r1_answering`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer
from pydantic import ValidationError
from typing_extensions import TypedDict

from memweave.agents.answerer import parse_answer_reply
from memweave.agents.llm import DEFAULT_TIMEOUT, PolicyLike, aask, as_answerer, ask, described
from memweave.agents.prompts import load_prompt, prompt_hash
from memweave.agents.recall import TokenCounter, estimate_tokens, recalled_message, within_budget
from memweave.agents.roles import AnswerRequest, ExtractRequest, ManageRequest, Policy
from memweave.errors import ConflictError, InputError
from memweave.graphs.memory_r1_answering import AnsweringGraph, create_answering_graph, said_at
from memweave.graphs.memory_r1_construction import (
    ConstructionGraph,
    ConstructionInput,
    ConstructionOutput,
    FailedTurn,
    create_construction_graph,
)
from memweave.graphs.memory_r1_context import MemoryR1Context, prompt_of
from memweave.graphs.server import server
from memweave.graphs.session import (
    BankSource,
    DefaultScope,
    LazyBank,
    Node,
    current_run_id,
    current_scope,
    current_thread,
    emit,
    new_messages,
    quiet_known_types,
)
from memweave.models import chat_model
from memweave.records import Memory, MemoryHit, MemoryOp, OpKind, OpStatus, Turn, utc_now

__all__ = [
    "MemoryR1Context",
    "create_answering_graph",
    "create_construction_graph",
    "create_memory_r1_agent",
    "make_answering_graph",
    "make_construction_graph",
    "make_graph",
]

RECALL_LIMIT: Final = 60
"""Most memories that are recalled for one message, before the token budget (Memory-R1, section 2.6: 30 for each of 2)."""
RETRIED_TURNS: Final = 2
"""Turns that failed earlier and are tried again with a new message."""

_LONGEST_QUERY: Final = 4_000
"""Characters of the new messages that memories are searched with, from the end."""
_DURABILITY: Final = "__pregel_durability"
"""Where LangGraph 1.2 keeps the durability of a run: `sync` makes a subgraph without checkpoints fail."""
_METADATA: Final = "memweave"
_QUESTION: Final = (
    r"(who|whom|whose|what|when|where|which|why|how|do|does|did|is|are|was|were|can|could|should|will|would|have|has)\b"
)


# State


class AgentInput(TypedDict, total=False):
    """A chat. The messages since the last reply are new."""

    messages: Annotated[list[AnyMessage], add_messages]


class AgentOutput(AgentInput, total=False):
    """The chat with the reply, and what the agent did with its memory."""

    operations: list[MemoryOp]
    """Operations that the new messages led to, failed ones included."""
    failed: list[FailedTurn]
    """Messages that could not be remembered; they are tried again with the next message."""
    recalled: list[Memory]
    """Memories that were put before the model, or that the rules answered from."""


class AgentState(AgentOutput, total=False):
    """One round of a chat."""

    dialogue: str
    new: list[str]
    """Source ids of the new messages."""
    query: str


# Nodes


@dataclass(frozen=True)
class _Agent:
    bank: LazyBank
    chat: BaseChatModel | None
    answerer: Policy[AnswerRequest] | None
    scope: DefaultScope
    recall_tokens: int
    count_tokens: TokenCounter
    window: int

    def accept(self, state: AgentState, config: RunnableConfig) -> AgentState:
        """Store the new messages before anything is made of them."""
        turns, scope, bank = self._turns(state, config), current_scope(self.scope), self.bank.get()
        try:
            bank.accept(turns, scope=scope)
        except ConflictError:
            turns = _edited(turns)
            bank.accept(turns, scope=scope)
        return self._accepted(state, turns, config)

    async def aaccept(self, state: AgentState, config: RunnableConfig) -> AgentState:
        turns, scope, bank = self._turns(state, config), current_scope(self.scope), await self.bank.aget()
        try:
            await bank.aaccept(turns, scope=scope)
        except ConflictError:
            turns = _edited(turns)
            await bank.aaccept(turns, scope=scope)
        return self._accepted(state, turns, config)

    def _turns(self, state: AgentState, config: RunnableConfig) -> list[Turn]:
        """Return the new messages as turns; one without text (an image alone) holds nothing to remember."""
        scope, dialogue, messages = current_scope(self.scope), _dialogue(config), state.get("messages", [])
        new = new_messages(messages)
        before = messages[-len(new) - 1] if len(messages) > len(new) else None
        previous = before.text if isinstance(before, AIMessage) and not _rests_on_memories(before) else None
        turns: list[Turn] = []
        for message in new:
            if message.text.strip():
                turns.append(_as_turn(message, dialogue, scope.user, previous))
                previous = message.text
        return turns

    def _accepted(self, state: AgentState, turns: Sequence[Turn], config: RunnableConfig) -> AgentState:
        query = "\n".join(message.text for message in new_messages(state["messages"]))
        return {
            "dialogue": _dialogue(config),
            "new": [turn.source_id for turn in turns],
            "query": query.strip()[-_LONGEST_QUERY:],
            "operations": [],
            "failed": [],
            "recalled": [],
        }

    def recall(self, state: AgentState, config: RunnableConfig) -> AgentState:
        """Find memories that fit the new messages, as many as the token budget holds."""
        if not state["query"]:
            return {}
        hits = self.bank.get().search(state["query"], scope=current_scope(self.scope), limit=RECALL_LIMIT)
        return self._recalled(state, hits)

    async def arecall(self, state: AgentState, config: RunnableConfig) -> AgentState:
        if not state["query"]:
            return {}
        bank = await self.bank.aget()
        hits = await bank.asearch(state["query"], scope=current_scope(self.scope), limit=RECALL_LIMIT)
        return self._recalled(state, hits)

    def _recalled(self, state: AgentState, hits: Sequence[MemoryHit]) -> AgentState:
        """Keep the best that fit. A memory made of the message itself would only repeat it."""
        just_added = {op.memory_id for op in state["operations"] if op.kind is OpKind.ADD}
        memories = [hit.memory for hit in hits if hit.memory.id not in just_added]
        fitting = within_budget(memories, self.recall_tokens, self.count_tokens)
        return {"recalled": sorted(fitting, key=lambda memory: (memory.speaker or "", said_at(memory)))}

    def reply(self, state: AgentState, config: RunnableConfig) -> AgentState:
        """Answer: a chat model in its own words, a policy by quoting. Raises `UnavailableError`."""
        if self.chat is not None:
            message = ask(self.chat, self._chat_messages(state), _chat_config(state, config), DEFAULT_TIMEOUT)
            return _replied(message, state["recalled"])
        if not is_question(state["query"]):
            return _replied(AIMessage(confirmation(state["operations"])), [])
        request = self._question(state)
        return _answered(request, self._policy().reply(request, config))

    async def areply(self, state: AgentState, config: RunnableConfig) -> AgentState:
        if self.chat is not None:
            message = await aask(self.chat, self._chat_messages(state), _chat_config(state, config), DEFAULT_TIMEOUT)
            return _replied(message, state["recalled"])
        if not is_question(state["query"]):
            return _replied(AIMessage(confirmation(state["operations"])), [])
        request = self._question(state)
        return _answered(request, await self._policy().areply(request, config))

    def _policy(self) -> Policy[AnswerRequest]:
        assert self.answerer is not None  # the builder gives either a chat model or a policy
        return self.answerer

    def _chat_messages(self, state: AgentState) -> list[BaseMessage]:
        """Return what the model sees: the latest messages, with the memories as data before the new ones."""
        messages = state["messages"]
        new = new_messages(messages)
        earlier = _from_a_user(messages[: -len(new)][-self.window :]) if self.window else []
        memories = [recalled_message(state["recalled"])] if state["recalled"] else []
        return [SystemMessage(_chat_prompt()), *earlier, *memories, *new]

    def _question(self, state: AgentState) -> AnswerRequest:
        return AnswerRequest(
            question=state["query"],
            memories=tuple(state["recalled"]),
            asked_at=utc_now(),
            system_prompt=prompt_of("answerer"),
        )


def _chat_prompt() -> str:
    return prompt_of("chat") or load_prompt("chat").text


def _chat_config(state: AgentState, config: RunnableConfig) -> RunnableConfig:
    return described(config, "chat", state["recalled"], _chat_prompt())


def _remember_node(construction: ConstructionGraph) -> RunnableLambda[AgentState, AgentState]:
    """Return the node that runs the construction graph on this dialogue; the new messages come first.

    Closures over `construction`, in a `RunnableLambda`: that is how LangGraph Studio finds a subgraph that a node calls.
    What runs is a copy without checkpoints. It needs none: a run that dies is begun again, and the ledger knows how far
    it got.
    """
    unsaved = construction.copy(update={"checkpointer": False})

    def remember(state: AgentState, config: RunnableConfig) -> AgentState:
        if not state["new"]:
            return {}
        task, own = _task(state, config, construction)
        return _remembered(state, cast(ConstructionOutput, unsaved.invoke(task, own)))

    async def aremember(state: AgentState, config: RunnableConfig) -> AgentState:
        if not state["new"]:
            return {}
        task, own = _task(state, config, construction)
        return _remembered(state, cast(ConstructionOutput, await unsaved.ainvoke(task, own)))

    return RunnableLambda(remember, aremember, name="remember")


def _task(
    state: AgentState, config: RunnableConfig, construction: ConstructionGraph
) -> tuple[ConstructionInput, RunnableConfig]:
    """Return the input for the new messages and a few old ones, and a config with the graph's own step limit."""
    turns = len(state["new"]) + RETRIED_TURNS
    task = ConstructionInput(dialogue=state["dialogue"], run_id=current_run_id(config), max_turns=turns)
    own = construction.config or RunnableConfig()
    configurable = {**(config.get("configurable") or {}), _DURABILITY: "async"}
    return task, {**config, "recursion_limit": own["recursion_limit"], "configurable": configurable}


def _from_a_user(messages: Sequence[AnyMessage]) -> list[AnyMessage]:
    """Return the messages from the first one of a user on: a chat cannot begin with a reply, or with a tool's result."""
    start = next((i for i, message in enumerate(messages) if isinstance(message, HumanMessage)), len(messages))
    return list(messages[start:])


def _as_turn(message: HumanMessage, dialogue: str, user: str, previous: str | None) -> Turn:
    try:
        return Turn(
            source_id=str(message.id),
            dialogue=dialogue,
            speaker=message.name or user,
            text=message.text,
            observed_at=utc_now(),
            previous=previous[:_LONGEST_QUERY] if previous else None,
        )
    except ValidationError as error:
        where = error.errors()[0]
        raise InputError(f"The message cannot be stored: its {where['loc'][0]} is refused. {where['msg']}") from None


def _edited(turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns under new ids: a message was edited under its old one (as LangGraph Studio does)."""
    return [turn.model_copy(update={"source_id": f"{turn.source_id}~{prompt_hash(turn.text)}"}) for turn in turns]


def _dialogue(config: RunnableConfig) -> str:
    return current_thread(config) or "default"


def _rests_on_memories(message: AIMessage) -> bool:
    return bool(message.response_metadata.get(_METADATA, {}).get("memories"))


def _remembered(state: AgentState, output: ConstructionOutput) -> AgentState:
    # Here and not in the subgraph, whose events only `stream(subgraphs=True)` shows.
    emit(output["operations"], state["dialogue"])
    return {"operations": output["operations"], "failed": output["failed"]}


def _replied(message: AIMessage, memories: Sequence[Memory]) -> AgentState:
    """Return the reply with the ids of the memories it rests on in its metadata."""
    rests_on = {_METADATA: {"memories": [str(memory.id) for memory in memories]}}
    reply = message.model_copy(update={"response_metadata": {**message.response_metadata, **rests_on}})
    return {"messages": [reply]}


def _answered(request: AnswerRequest, reply: str) -> AgentState:
    answer = parse_answer_reply(reply, request)
    return _replied(AIMessage(answer.text), [request.memories[number] for number in answer.used])


def is_question(text: str) -> bool:
    """Return whether a message asks something rather than tells."""
    return "?" in text or re.match(_QUESTION, text.strip(), re.IGNORECASE) is not None


def confirmation(operations: Sequence[MemoryOp]) -> str:
    """Return what was remembered, one line per operation; what a rule-based agent replies to a statement."""
    lines: list[str] = []
    for op in operations:
        if op.status is OpStatus.FAILED:
            lines.append(f"I could not remember that: {op.error}")
        elif op.kind is OpKind.ADD and op.after:
            lines.append(f"Remembered: {op.after.text}")
        elif op.kind is OpKind.UPDATE and op.after and op.before:
            lines.append(f"Updated: {op.before.text} -> {op.after.text}")
        elif op.kind is OpKind.DELETE and op.before:
            lines.append(f"Forgotten: {op.before.text}")
        else:
            lines.append(f"Nothing changed: {op.reason}")
    return "\n".join(lines) or "There was nothing to remember in that."


# Builder

MemoryR1Agent = CompiledStateGraph[AgentState, MemoryR1Context, AgentInput, AgentOutput]


def create_memory_r1_agent(
    bank: BankSource,
    *,
    model: str | BaseChatModel | None = None,
    extractor: PolicyLike[ExtractRequest] | None = None,
    manager: PolicyLike[ManageRequest] | None = None,
    answerer: PolicyLike[AnswerRequest] | None = None,
    scope: DefaultScope = None,
    recall_tokens: int = 2_000,
    count_tokens: TokenCounter = estimate_tokens,
    window: int = 20,
    checkpointer: Checkpointer = None,
) -> MemoryR1Agent:
    """Return a chat agent that remembers what it is told and answers from memory.

    It takes and returns `messages`, so it can be a chat, a subgraph, or a node of another graph. The user comes from
    `context={"user": ...}`, or from the server's authentication; the dialogue is the thread.

    bank: where memories live (`open_bank`), a branch of it, or a function that opens it when it is first needed.
    model: plays every role that is not given, and replies; without it, rules do, and no model is called.
    extractor, manager: `"rule"`, a specification for `chat_model`, a chat model, or a policy.  answerer: the same; a chat
    model replies in its own words with the recalled memories before it, a policy answers by quoting them.
    scope: whose memories, for runs whose context names no user.  recall_tokens: most tokens of recalled memories per
    reply, as `count_tokens` counts them.  window: earlier messages shown to the chat model.
    """
    replies = answerer or model or "rule"
    if isinstance(replies, str) and replies != "rule":
        replies = chat_model(replies)
    chat = replies if isinstance(replies, BaseChatModel) else None
    load_prompt("chat")  # read the file now, not in the middle of a run
    construction = create_construction_graph(
        bank, model=model, extractor=extractor, manager=manager, scope=scope, events=False
    )
    nodes = _Agent(
        bank=LazyBank(bank),
        chat=chat,
        answerer=None if chat else as_answerer(replies),
        scope=scope,
        recall_tokens=recall_tokens,
        count_tokens=count_tokens,
        window=window,
    )
    quiet_known_types()
    builder = StateGraph(AgentState, MemoryR1Context, input_schema=AgentInput, output_schema=AgentOutput)
    builder.add_node("accept", Node("accept", nodes.accept, nodes.aaccept))
    builder.add_node("remember", _remember_node(construction))
    builder.add_node("recall", Node("recall", nodes.recall, nodes.arecall))
    builder.add_node("reply", Node("reply", nodes.reply, nodes.areply))
    builder.add_edge(START, "accept")
    builder.add_edge("accept", "remember")
    builder.add_edge("remember", "recall")
    builder.add_edge("recall", "reply")
    builder.add_edge("reply", END)
    return builder.compile(checkpointer=checkpointer, name="memory-r1")


# Factories for langgraph.json: the server brings store and checkpointer, and everything else is in the settings.
# They are called on the event loop; prompts and rules are read from files, so the graphs are built in a thread.


async def make_graph(config: RunnableConfig) -> MemoryR1Agent:
    """Return the chat agent that the settings describe."""
    at = await server()
    return await asyncio.to_thread(
        create_memory_r1_agent,
        at.bank,
        extractor=at.extractor,
        manager=at.manager,
        answerer=at.answerer,
        scope=at.home,
        recall_tokens=at.settings.recall_tokens,
    )


async def make_construction_graph(config: RunnableConfig) -> ConstructionGraph:
    """Return the construction graph that the settings describe."""
    at = await server()
    return await asyncio.to_thread(
        create_construction_graph, at.bank, extractor=at.extractor, manager=at.manager, scope=at.home
    )


async def make_answering_graph(config: RunnableConfig) -> AnsweringGraph:
    """Return the answering graph that the settings describe."""
    at = await server()
    return await asyncio.to_thread(create_answering_graph, at.bank, answerer=at.answerer, scope=at.home)

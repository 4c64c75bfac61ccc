"""AgeMem as an agent for apps: one model that manages its long- and its short-term memory with tools, over `messages`.

    accept -> recall -> policy -> act -> policy -> ... -> answer

`accept` takes the new messages into the *context*, `recall` (variant `rag`) puts what fits beside them, `policy` asks the model,
`act` carries out its calls. The context is what the model sees; SUMMARY, FILTER and the token budget rewrite it. The public
`messages` only ever grow, and `edits` says what was taken out, so nothing is lost. The stages that the paper trains in are in
`agemem_episode`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer, Overwrite
from typing_extensions import TypedDict

from memweave.agents.context import (
    FILTER_THRESHOLD,
    ContextCounter,
    ContextEdit,
    ModelSummarizer,
    Summarizer,
    apply_edit,
    estimate_context,
)
from memweave.agents.llm import DEFAULT_TIMEOUT
from memweave.agents.memory_tools import LONGEST_QUERY, TOP_K, Numbers
from memweave.errors import SettingsError
from memweave.graphs.agemem_context import AgeMemContext, agent_prompt
from memweave.graphs.agemem_fitting import fitted, least
from memweave.graphs.agemem_state import Acted, Budget, Dialogue, Protocol, Reply, StepState, Variant
from memweave.graphs.agemem_steps import (
    AgentSteps,
    as_dialogue,
    as_messages,
    check_limit,
    check_tools,
    log_of,
    protocol_for,
    shown_in,
)
from memweave.graphs.server import agent_model, server
from memweave.graphs.session import (
    BankSource,
    DefaultScope,
    LazyBank,
    Node,
    current_run_id,
    current_scope,
    new_messages,
    quiet_known_types,
)
from memweave.models import chat_model
from memweave.records import MemoryHit, MemoryOp, new_id

CONTEXT_TOKENS: Final = 8_192
"""Most tokens that the model sees (section 4)."""
MAX_ROUNDS: Final = 10
"""Turns of the model for one message of the user."""

Status = Literal["answered", "rounds", "over_budget"]


# state


class AgentInput(TypedDict, total=False):
    """A chat. The user's messages since the last reply are new."""

    messages: Annotated[list[AnyMessage], add_messages]


class AgentOutput(AgentInput, total=False):
    """The chat with the reply, and what the agent did."""

    operations: Annotated[list[MemoryOp], operator.add]
    """Memory operations of this round."""
    status: Status | None
    """rounds: no answer within the limit of turns.  over_budget: the question alone does not fit into the context."""
    budget: Budget


class AgentState(StepState, AgentOutput, total=False):
    """One round of a chat; `context`, `numbers`, `edits` and `budget` go on from round to round."""

    question: list[str]
    """Ids of the messages that are to be answered; they are never removed."""
    tools: list[str]
    """What the agent can call."""


# nodes


@dataclass(frozen=True)
class _Agent:
    steps: AgentSteps
    bank: LazyBank
    scope: DefaultScope
    limit: int
    rounds: int
    instructions: str | None

    def accept(self, state: AgentState, config: RunnableConfig) -> AgentState:
        """Take the new messages into the context."""
        messages = state.get("messages") or []
        new = new_messages(messages)
        system = SystemMessage(self._prompt(), id="system")
        asked = {message.id for message in new}  # some may be there already: the run that brought them broke off
        seen = state.get("context")
        before = seen["messages"] if seen else self._earlier(messages, new)
        kept = [message for message in before if not _is_prompt(message) and message.id not in asked]
        fresh: object = Overwrite([])
        update: AgentState = {
            "context": as_dialogue([system, *kept, *new]),
            "question": [str(message.id) for message in new],
            "status": None,
            "round": 0,
            "stage": 0,
            "numbers": state.get("numbers") or Numbers(),
            "shown": state.get("shown") or [],
            "budget": (state.get("budget") or Budget(limit=None)).model_copy(update={"limit": self.limit}),
            "tools": [*self.steps.names, *(tool.name for tool in self.steps.tools)],
            "operations": fresh,  # type: ignore[typeddict-item]  # LangGraph's way to empty a channel that adds
            "steps": fresh,  # type: ignore[typeddict-item]
        }
        return update

    async def aaccept(self, state: AgentState, config: RunnableConfig) -> AgentState:
        return self.accept(state, config)

    def _earlier(self, messages: Sequence[AnyMessage], new: Sequence[AnyMessage]) -> list[AnyMessage]:
        """Return what was said before, of a chat that another graph began, or without a checkpointer."""
        return list(messages[: len(messages) - len(new)])

    def _prompt(self) -> str:
        return self.steps.instructions(agent_prompt() or self.instructions)

    # what fits is put beside the new messages: variant `rag`

    def recall(self, state: AgentState, config: RunnableConfig) -> AgentState:
        """Put the memories that fit before the new messages."""
        query = self._query(state)
        if not query:
            return {}
        return self._recalled(
            state, self.bank.get().search(query, scope=current_scope(self.scope), limit=self.steps.top_k or TOP_K)
        )

    async def arecall(self, state: AgentState, config: RunnableConfig) -> AgentState:
        query = self._query(state)
        if not query:
            return {}
        bank = await self.bank.aget()
        return self._recalled(
            state, await bank.asearch(query, scope=current_scope(self.scope), limit=self.steps.top_k or TOP_K)
        )

    def _query(self, state: AgentState) -> str:
        asked = set(state["question"])
        return "\n".join(m.text for m in state["context"]["messages"] if m.id in asked).strip()[-LONGEST_QUERY:]

    def _recalled(self, state: AgentState, hits: Sequence[MemoryHit]) -> AgentState:
        memories = [hit.memory for hit in hits]
        if not memories:
            return {}
        message, numbers = self.steps.recalled(memories, state["numbers"])
        context = _before(state["context"]["messages"], message, state["question"][0])
        return {"context": context, "numbers": numbers, "shown": [*state["shown"], shown_in(message, memories)]}

    # the model's turn

    def policy(self, state: AgentState, config: RunnableConfig) -> AgentState:
        """Ask the model, if what it would see fits. Raises `UnavailableError`."""
        ready = self._fitted(state)
        if ready.get("status"):
            return ready
        context = ready.get("context", state["context"])["messages"]
        reply = self.steps.ask(context, state["shown"], self._prompt(), config)
        return {**ready, "reply": Reply(message=reply), "turn": self.steps.read(reply), "round": state["round"] + 1}

    async def apolicy(self, state: AgentState, config: RunnableConfig) -> AgentState:
        ready = self._fitted(state)
        if ready.get("status"):
            return ready
        context = ready.get("context", state["context"])["messages"]
        reply = await self.steps.aask(context, state["shown"], self._prompt(), config)
        return {**ready, "reply": Reply(message=reply), "turn": self.steps.read(reply), "round": state["round"] + 1}

    def _fitted(self, state: AgentState) -> AgentState:
        """Return the context within the budget; when the question alone is too long, the message that says so."""
        context, before = state["context"]["messages"], state["budget"]
        needed = self.steps.tokens(least(context, state["question"]))
        if needed > self.limit:
            return self._too_long(state, before.model_copy(update={"overflowed": True}), needed)
        begins = None if self.steps.own() or not state["messages"] else state["messages"][0].id
        count, question = self.steps.tokens, state["question"]
        cut = fitted(context, self.limit, count, question=question, first=begins, alone=self.steps.about)
        gone = sum(len(edit.removed) for edit in cut.edits)
        over = {"overflowed": before.overflowed or cut.overflowed, "used": cut.used, "dropped": before.dropped + gone}
        budget = before.model_copy(update=over)
        update: AgentState = {"budget": budget, "edits": cut.edits}
        if cut.context != context:  # a checkpoint need not write again what did not change
            update["context"] = as_dialogue(cut.context)
        return update

    def _too_long(self, state: AgentState, before: Budget, needed: int) -> AgentState:
        """Say that the question does not fit, and leave it out of the context: nothing else has to go for it."""
        said = (
            f"What I was asked does not fit into my context: it takes {needed} tokens with my instructions, and "
            f"{self.limit} are allowed. Ask with fewer words, or give me a larger context_tokens."
        )
        reply = AIMessage(said, id=str(new_id()))
        edit = ContextEdit(kind="budget", removed=tuple(state["question"]))
        context = [*apply_edit(state["context"]["messages"], edit), self._own(reply)]
        return {
            "status": "over_budget",
            "messages": [reply],
            "context": as_dialogue(context),
            "budget": self.steps.measured(context, before, len(edit.removed)),
            "edits": [edit],
        }

    def _own(self, said: AIMessage) -> AIMessage:
        """Return what the agent says on its own as the model would have written it."""
        return (
            said
            if self.steps.protocol == "native"
            else said.model_copy(update={"content": f"<answer>{said.text}</answer>"})
        )

    # what it asked for

    def act(self, state: AgentState, config: RunnableConfig) -> AgentState:
        """Carry out the calls of the model's turn. Raises `UnavailableError`."""
        run_id = current_run_id(config)
        scope = current_scope(self.scope)
        acted = self.steps.carry_out(state, self.bank.get(), scope, state["question"], run_id, config)
        return self._acted(state, acted)

    async def aact(self, state: AgentState, config: RunnableConfig) -> AgentState:
        run_id = current_run_id(config)
        scope, bank = current_scope(self.scope), await self.bank.aget()
        acted = await self.steps.acarry_out(state, bank, scope, state["question"], run_id, config)
        return self._acted(state, acted)

    def _acted(self, state: AgentState, acted: Acted) -> AgentState:
        turn, said = state["turn"], as_messages([state["reply"]["message"], *acted.new])
        status: Status | None = None
        if turn.answer is not None:
            status = "answered"
            if self.steps.protocol == "text":  # the tags are for us
                said = _without_tags(said, turn.answer)
        elif state["round"] >= self.rounds:
            status = "rounds"
            ended = f"I stopped after {self.rounds} turns without an answer. Ask again, or with fewer things at once."
            said.append(AIMessage(ended, id=str(new_id())))
            acted.context = [*acted.context, self._own(AIMessage(ended, id=said[-1].id))]
        budget = self.steps.measured(acted.context, state["budget"])
        there = {message.id for message in acted.context}
        return {
            "context": as_dialogue(acted.context),
            "numbers": acted.numbers,
            "shown": [shown for shown in [*state["shown"], *acted.shown] if shown.message_id in there],
            "edits": acted.edits,
            "budget": budget,
            "operations": acted.ops,
            "steps": [log_of(state, acted, budget)],
            "messages": said,
            "status": status,
        }


def _without_tags(said: list[AnyMessage], answer: str) -> list[AnyMessage]:
    """Return what is said in public: the answer in the place of the reply, or after the results when there were calls too."""
    if len(said) > 1:
        return [*said, AIMessage(answer, id=str(new_id()))]
    return [said[0].model_copy(update={"content": answer})]


def _is_prompt(message: BaseMessage) -> bool:
    return isinstance(message, SystemMessage) and message.id == "system"


def _before(context: Sequence[BaseMessage], message: BaseMessage, first: str) -> Dialogue:
    place = next(i for i, each in enumerate(context) if each.id == first)
    return as_dialogue([*context[:place], message, *context[place:]])


# routing


def after_policy(state: AgentState) -> str:
    """End when the context is too small for the question."""
    return END if state.get("status") == "over_budget" else "act"


def after_act(state: AgentState) -> str:
    """Go on until there is an answer, or no turn is left."""
    return END if state.get("status") in ("answered", "rounds") else "policy"


# builder

AgeMemAgent = CompiledStateGraph[AgentState, AgeMemContext, AgentInput, AgentOutput]


def create_agemem_agent(
    model: str | BaseChatModel,
    bank: BankSource,
    *,
    tools: Sequence[BaseTool] = (),
    scope: DefaultScope = None,
    variant: Variant = "full",
    context_tokens: int = CONTEXT_TOKENS,
    max_rounds: int = MAX_ROUNDS,
    system_prompt: str | None = None,
    protocol: Protocol | None = None,
    summarizer: Summarizer | None = None,
    count_tokens: ContextCounter = estimate_context,
    filter_threshold: float = FILTER_THRESHOLD,
    top_k: int | None = None,
    tolerant: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
    checkpointer: Checkpointer = None,
) -> AgeMemAgent:
    """Return an agent that manages its memory with tools, as a compiled graph over `messages` (AgeMem, arXiv 2601.01885).

    model: a chat model, or its specification (`chat_model`).  bank: long-term memory.  tools: others that it may use; they return
    what they found, and one that returns a `Command` is an error that the model is told.
    scope: whose memories, when neither authentication nor the run's context says it.
    variant: `full`, `rag` (long-term tools; what fits is retrieved for every message) or `none`.
    context_tokens: most tokens that the model sees; the oldest messages go when there are more, never the system message, the
    question, or results that the model has not seen.  max_rounds: turns of the model for one message.
    protocol: `native` calls or `text` tags; by default text for policies of ours, native otherwise.
    summarizer: who shortens; by default the model.  count_tokens: counts messages; the default estimates.
    filter_threshold: cosine from which FILTER removes; it belongs to the bank's embedding.  top_k: fixes how many memories
    RETRIEVE returns.  tolerant: read unclosed tags, and calls that are there twice, as the released code does (text protocol).
    timeout: seconds for one reply.

    Raises `SettingsError` for a variant or a tool's name that cannot be, `InputError` for a budget below 1.
    """
    chat = chat_model(model) if isinstance(model, str) else model
    if max_rounds < 1:
        raise SettingsError(f"max_rounds = {max_rounds}: give 1 at least")
    quiet_known_types()
    steps = AgentSteps(
        model=chat,
        protocol=protocol or protocol_for(chat),
        variant=variant,
        tools=check_tools(tools, variant),
        summarizer=summarizer or ModelSummarizer(chat),
        count=count_tokens,
        threshold=filter_threshold,
        top_k=top_k,
        tolerant=tolerant,
        timeout=timeout,
    )
    check_limit(context_tokens)
    nodes = _Agent(steps, LazyBank(bank), scope, context_tokens, max_rounds, system_prompt)
    builder = StateGraph(AgentState, AgeMemContext, input_schema=AgentInput, output_schema=AgentOutput)
    builder.add_node("accept", Node("accept", nodes.accept, nodes.aaccept))
    builder.add_node("policy", Node("policy", nodes.policy, nodes.apolicy))
    builder.add_node("act", Node("act", nodes.act, nodes.aact))
    builder.add_edge(START, "accept")
    if variant == "rag":
        builder.add_node("recall", Node("recall", nodes.recall, nodes.arecall))
        builder.add_edge("accept", "recall")
        builder.add_edge("recall", "policy")
    else:
        builder.add_edge("accept", "policy")
    builder.add_conditional_edges("policy", after_policy, ["act", END])
    builder.add_conditional_edges("act", after_act, ["policy", END])
    graph = builder.compile(name="agemem", checkpointer=checkpointer)
    return graph.with_config(recursion_limit=2 * max_rounds + 10)


async def make_graph(config: RunnableConfig) -> AgeMemAgent:
    """Return the agent for a LangGraph server, with the model that the settings name; without one, a run says what to set."""
    own = await server()
    return create_agemem_agent(agent_model(own.settings), own.bank, scope=own.home)

"""Trainable graph memory as an agent for apps: a model with tools that is advised by strategies, and learns new ones (arXiv 2511.07800).

    accept -> recall -> compose -> policy <-> parse, search -> score -> reply -> learn
                        (a rollout, see `graph_memory_rollout`)

`recall` shows the strategies that are most relevant to the question, `learn` puts the run into the graph once its worth is known. The
public `messages` get the answer alone: neither advice nor calls of tools.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, get_args

import numpy as np
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.channels import EphemeralValue
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import get_runtime
from langgraph.types import Checkpointer
from typing_extensions import TypedDict

from memweave.agents.advice import BUDGET
from memweave.agents.path_mapper import MapperLike, as_mapper
from memweave.agents.strategist import RULE_MATCH, StrategistLike, as_strategist
from memweave.agents.tools.calculator import calculator
from memweave.errors import InputError, SettingsError
from memweave.graphs.agemem_steps import as_messages
from memweave.graphs.graph_memory_context import GraphMemoryContext
from memweave.graphs.graph_memory_feedback import Learned, Learning, lesson_of
from memweave.graphs.graph_memory_guidance import Advisor, Strategies, StrategySource
from memweave.graphs.graph_memory_induction import Induction
from memweave.graphs.graph_memory_pairing import Learner, paired_rollouts
from memweave.graphs.graph_memory_play import TraceKeeper
from memweave.graphs.graph_memory_rollout import create_rollout_graph, most_steps, rolling, wire_rollout
from memweave.graphs.graph_memory_state import UNANSWERED, RolloutRecord, RolloutState, ShownStrategy, Status
from memweave.graphs.server import server
from memweave.graphs.session import DefaultScope, Node, current_scope, new_messages, quiet_known_types
from memweave.memory_stores.strategy_graph import Rank, ScoredStrategy, StrategyGraph, StrategySettings
from memweave.records import new_id, storable

K: Final = 3
"""Strategies that are shown (section 5.1)."""
WINDOW: Final = 20
"""Earlier messages of the chat that the agent sees."""


# state


class AgentInput(TypedDict, total=False):
    """A chat whose last messages ask. The other fields are about this question alone."""

    messages: Annotated[list[AnyMessage], add_messages]
    query_id: Annotated[str | None, EphemeralValue]
    """A question is never advised by its own run. In an app, leave it out: every run is then a query of its own."""
    ground_truth: Annotated[str | list[str] | None, EphemeralValue]
    """The right answer, or several of which one is enough; never shown to the agent."""
    family: Annotated[str | None, EphemeralValue]


class AgentOutput(TypedDict, total=False):
    """The chat with the answer, and what came of it."""

    messages: Annotated[list[AnyMessage], add_messages]
    status: Status | None
    answer: str | None
    reward: float | None
    strategies: list[ShownStrategy]
    """What the agent was advised, most relevant first."""
    learned: Learned | None
    """What the run has taught; `None` when nobody verified the answer."""
    record: RolloutRecord | None


class AgentState(RolloutState, total=False):
    """One question on its way. Everything but `messages` begins anew with every question."""

    messages: Annotated[list[AnyMessage], add_messages]
    strategies: list[ShownStrategy]
    """What the agent is advised, with relevance and probability."""
    left_out: list[str]
    """Strategies that did not fit into the advice, each with the reason."""
    learned: Learned | None


# nodes


@dataclass(frozen=True)
class Advising:
    """The nodes around a rollout."""

    memory: Strategies
    scope: DefaultScope
    k: int
    rank: Rank
    seed: int
    advisor: Advisor
    window: int
    learning: Learning

    def accept(self, state: AgentState, config: RunnableConfig) -> AgentState:
        """Take the question in. Raises `InputError` for one without words."""
        messages = state.get("messages") or []
        new = new_messages(messages)
        query = storable("\n".join(message.text for message in new)).strip()
        if not query:
            raise InputError("The question is empty: it has to say something in words")
        return {
            "query": query,
            "arm": "app",
            "query_id": state.get("query_id"),
            "ground_truth": state.get("ground_truth"),
            "family": state.get("family"),
            "history": as_messages(_earlier(messages[: len(messages) - len(new)], self.window)),
            "guidance": None,
            "strategies": [],
            "left_out": [],
            "learned": None,
        }

    async def aaccept(self, state: AgentState, config: RunnableConfig) -> AgentState:
        """Do what `accept` does."""
        return self.accept(state, config)

    # advice

    def recall(self, state: AgentState, config: RunnableConfig) -> AgentState:
        """Find the strategies that are most relevant to the question (section 4.3: best first, not drawn)."""
        return self._advised(state, self._top(state, self.memory.get()))

    async def arecall(self, state: AgentState, config: RunnableConfig) -> AgentState:
        """Do what `recall` does."""
        memory, scope = await self.memory.aget(), current_scope(self.scope)
        found = await memory.atop(
            state["query"], scope=scope, k=self.k, exclude=state.get("query_id"), rank=self.rank, rng=self._rng(state)
        )
        return self._advised(state, found)

    def _top(self, state: AgentState, memory: StrategyGraph) -> list[ScoredStrategy]:
        scope = current_scope(self.scope)
        return memory.top(
            state["query"], scope=scope, k=self.k, exclude=state.get("query_id"), rank=self.rank, rng=self._rng(state)
        )

    def _rng(self, state: AgentState) -> np.random.Generator:
        """Return a generator of this question's own, for strategies at random."""
        name = f"{self.seed}\0{state.get('query_id') or state['query']}".encode()
        return np.random.default_rng(int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "big"))

    def _advised(self, state: AgentState, found: Sequence[ScoredStrategy]) -> AgentState:
        guidance, left_out = self.advisor.advise(found)
        shown = list(guidance.strategies) if guidance else []
        told = [{"id": str(each.id), "relevance": each.relevance, "probability": each.probability} for each in shown]
        get_runtime().stream_writer({"type": "advice", "strategies": told})
        return {
            "guidance": guidance,
            "strategies": shown,
            "left_out": list(left_out),
            "query_id": state.get("query_id"),
            "ground_truth": state.get("ground_truth"),
            "family": state.get("family"),
        }

    # the end

    def reply(self, state: AgentState, config: RunnableConfig) -> AgentState:
        """Say the answer, or why there is none."""
        status, reply = state["status"], state.get("reply")
        assert status is not None
        said = state["answer"] or UNANSWERED[status]
        streamed = reply["message"].id if reply and reply["message"].text.strip() == said else None
        return {"messages": [AIMessage(said, id=streamed or str(new_id()))]}

    async def areply(self, state: AgentState, config: RunnableConfig) -> AgentState:
        """Do what `reply` does."""
        return self.reply(state, config)

    def learn(self, state: AgentState, config: RunnableConfig) -> AgentState:
        """Put the run into the graph, make of it what can be made, and measure a gap where that is allowed."""
        record, scope = _record(state), current_scope(self.scope)
        assert record.reward is not None
        return _taught(self.learning.learn(self.memory.get(), lesson_of(record, record.reward), scope=scope))

    async def alearn(self, state: AgentState, config: RunnableConfig) -> AgentState:
        """Do what `learn` does."""
        record, scope, memory = _record(state), current_scope(self.scope), await self.memory.aget()
        assert record.reward is not None
        return _taught(await self.learning.alearn(memory, lesson_of(record, record.reward), scope=scope))

    def after_reply(self, state: AgentState) -> str:
        """Learn, if somebody knows what the answer was worth."""
        return END if state.get("reward") is None else "learn"


def _taught(learned: Learned) -> AgentState:
    write = get_runtime().stream_writer
    if learned.taught is not None:
        write(learned.taught.event())
    for row in learned.updates:
        write(row.event())
    return {"learned": learned}


def _record(state: AgentState) -> RolloutRecord:
    record = state["record"]
    assert record is not None
    return record


def _earlier(messages: Sequence[BaseMessage], window: int) -> list[BaseMessage]:
    """Return what was said before in this chat: the last messages of user and agent that say something."""
    said: list[BaseMessage] = [
        message
        for message in messages
        if isinstance(message, HumanMessage | AIMessage) and message.text.strip() and not _calls(message)
    ]
    return said[-window:] if window else []


def _calls(message: BaseMessage) -> bool:
    """Return whether a message calls tools; without their results, endpoints refuse it."""
    return isinstance(message, AIMessage) and bool(message.tool_calls or message.invalid_tool_calls)


# builder

GraphMemoryAgent = CompiledStateGraph[AgentState, GraphMemoryContext, AgentInput, AgentOutput]


def create_graph_memory_agent(
    model: str | BaseChatModel,
    tools: Sequence[BaseTool] = (),
    memory: StrategySource | None = None,
    *,
    scope: DefaultScope = None,
    k: int = K,
    rank: Rank = "weights",
    seed: int = 0,
    retain: bool = True,
    mapper: MapperLike = "rule",
    strategist: StrategistLike = "rule",
    positive: bool = False,
    borrow: bool = True,
    learner: Learner | None = None,
    pairs: int = 0,
    traces: TraceKeeper | None = None,
    advice_chars: int = BUDGET,
    window: int = WINDOW,
    checkpointer: Checkpointer = None,
    **rollout: Any,
) -> GraphMemoryAgent:
    """Return an agent with tools that is advised by strategies and learns new ones, as a compiled graph over `messages`.

    model: a chat model, or its specification (`chat_model`).  tools: that it may call.  memory: the graph of strategies
    (`open_strategies`), or how to open it.  scope: whose strategies, when neither authentication nor the run's context says it.

    k: strategies that are shown; 0 for none.  rank: how they are chosen, `weights` being the paper's; the others are controls, `random` by
    `seed`.  advice_chars: of the advice in a prompt; what does not fit is left out, by name.  window: earlier messages of the chat that the
    agent sees.

    retain: whether a run whose worth is known goes into the graph; otherwise `record_feedback` does that, when you call it.
    mapper, strategist: who finds the path of a run, and who makes strategies of paths: `rule`, a chat model or its specification, or
    your own.  positive: let right answers alone teach something too.  borrow: contrast a wrong answer with a similar question's right one
    when no strategy of one can be re-used; without it, the first strategy needs a question with a right and a wrong answer.

    learner, pairs: `Reinforce()` and 1 measure a gap whenever the worth of an answer is known: 2 more rollouts, calls of tools included,
    one with a strategy and one without, which move the weights. Without them, weights stay as they are.  traces: where traces of
    these rollouts are kept.

    The other keyword arguments are those of `create_rollout_graph`: `evaluate` or `judge` says what an answer is worth; `max_calls`,
    `system_prompt`, `protocol`, `profile`, `context_tokens`, `timeout` and so on.

    Raises `SettingsError` for a number below its least, an unknown `rank`, a learner without pairs or the other way round, no memory, or a
    mapper of another machine than the graph's.
    """
    if memory is None:
        raise SettingsError("an agent with graph memory needs a graph: give it open_strategies(...), or how to open it")
    if min(k, pairs, window) < 0:
        raise SettingsError(f"k = {k}, pairs = {pairs}, window = {window}: give 0 at least")
    if rank not in get_args(Rank):
        raise SettingsError(f"rank {rank!r} is none of {', '.join(get_args(Rank))}")
    if (learner is None) != (pairs == 0):
        raise SettingsError(
            "weights are learned from pairs of rollouts: give both a learner and pairs = 1 (2 more rollouts for each answer "
            "whose worth is known), or neither"
        )
    nodes = rolling(model, tools, **rollout)
    paths = as_mapper(mapper)
    induction = Induction(
        paths, as_strategist(strategist, paths.machine), positive=positive, borrow=borrow, same_text=True, seed=seed
    )
    pairing = None
    if learner is not None:
        alone = create_rollout_graph(model, tools, **rollout)
        profile = nodes.steps.profile
        pairing = paired_rollouts(
            alone, learner, samples=pairs, seed=seed, advice_chars=advice_chars, profile=profile, traces=traces
        )
    own = Advising(
        memory=Strategies(memory, paths.machine),
        scope=scope,
        k=k,
        rank=rank,
        seed=seed,
        advisor=Advisor(advice_chars, nodes.steps.profile),
        window=window,
        learning=Learning(induction, pairing),
    )
    quiet_known_types()
    builder = StateGraph(AgentState, GraphMemoryContext, input_schema=AgentInput, output_schema=AgentOutput)
    wire_rollout(builder, nodes)
    builder.add_node("accept", Node("accept", own.accept, own.aaccept))
    builder.add_node("reply", Node("reply", own.reply, own.areply))
    builder.add_edge(START, "accept")
    if k:
        builder.add_node("recall", Node("recall", own.recall, own.arecall))
        builder.add_edge("accept", "recall")
        builder.add_edge("recall", "compose")
    else:
        builder.add_edge("accept", "compose")
    builder.add_edge("score", "reply")
    if retain:
        builder.add_node("learn", Node("learn", own.learn, own.alearn))
        builder.add_conditional_edges("reply", own.after_reply, ["learn", END])
        builder.add_edge("learn", END)
    else:
        builder.add_edge("reply", END)
    graph = builder.compile(name="graph-memory", checkpointer=checkpointer)
    return graph.with_config(recursion_limit=most_steps(nodes) + 4)


async def make_graph(config: RunnableConfig) -> GraphMemoryAgent:
    """Return the agent for a LangGraph server: model and bank of the settings, a calculator, the server's checkpointer."""
    own = await server()
    settings = StrategySettings(match_threshold=RULE_MATCH)
    return await asyncio.to_thread(
        create_graph_memory_agent,
        own.executor,
        [calculator()],
        lambda: StrategyGraph(own.bank(), settings),
        scope=own.home,
        timeout=own.settings.model_timeout,
    )

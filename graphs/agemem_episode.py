"""One AgeMem episode in three stages, as a state machine: what the policy is trained and evaluated on (specification, 2.3 and 3).

    begin -> feed -> (recall) -> policy -> act -> policy | feed | judge

Stage 1 feeds messages that tell facts, one at a time; then the context is wiped and the memory stays. Stage 2 feeds distractors.
Stage 3 keeps the context of stage 2 and asks the question. The policy sees the context and nothing else: the question is not in it
before stage 3, the true answer never. A stage ends when the context has more tokens than allowed (A4); what overflowed in stage 2
leaves no room for the question.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, runtime_checkable
from typing import Protocol as Interface

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.graph.state import CompiledStateGraph
from pydantic import Field
from typing_extensions import TypedDict

from memweave.agents.context import (
    FILTER_THRESHOLD,
    ContextCounter,
    ContextEdit,
    ExtractiveSummarizer,
    Summarizer,
    all_but_system,
    apply_edit,
    cosines,
    estimate_context,
)
from memweave.agents.llm import DEFAULT_TIMEOUT
from memweave.agents.memory_tools import LONGEST_QUERY, TOP_K, Numbers
from memweave.agents.rendering import Profile
from memweave.agents.tool_protocol import tools_line
from memweave.errors import InputError, OperationError
from memweave.graphs.agemem_context import AgeMemContext, agent_prompt
from memweave.graphs.agemem_reward import EpisodeLog
from memweave.graphs.agemem_state import Acted, Budget, Protocol, Reply, StepState, Variant
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
from memweave.graphs.session import BankSource, DefaultScope, LazyBank, Node, current_run_id, current_scope
from memweave.memory_stores import MemoryStore
from memweave.records import Memory, MemoryHit, MemoryOp, Record, new_id, storable
from memweave.tracing.records import Score

ROUNDS: Final = (5, 5, 5)
"""Turns of the model for one message of stages 1 and 2, and for the question (section 3)."""
RECALLED: Final = 3
MOST_STEPS: Final = 400
"""Turns of one episode."""


class EpisodeTask(Record):
    """What is fed. The truth is not part of it: a judge has that."""

    id: str
    messages: tuple[str, ...] = Field(min_length=1)
    """Stage 1, one at a time."""
    distractors: tuple[str, ...] = ()
    """Stage 2, one at a time; the same for all episodes of a task (A17)."""
    question: str = Field(min_length=1)
    key_phrases: tuple[str, ...] = ()
    """What must still be in the context when the answer is given (K_q of Eq. 21); not shown."""


class EpisodeInput(TypedDict, total=False):
    """One task."""

    task: EpisodeTask


class EpisodeOutput(TypedDict, total=False):
    """What came of it."""

    answer: str | None
    log: EpisodeLog
    stored: list[str]
    """Texts of the memories at the end."""
    preserved: bool
    """Whether all key phrases of the question were in the context at the end; not where there was no room for the question."""
    reward: Score | None
    """`None` without a judge, and where it could not tell."""
    unjudged: str | None
    """Why there is no reward although there is a judge: its model was away, or said nothing that makes sense."""
    operations: Annotated[list[MemoryOp], operator.add]


class EpisodeState(StepState, EpisodeInput, EpisodeOutput, total=False):
    """An episode under way."""

    messages: Annotated[list[AnyMessage], add_messages]
    """Everything that was ever said, in all stages."""
    feed_index: int
    """Messages of the present stage that were fed."""
    exhausted: bool
    over: bool
    """Whether the present stage ended because the context is too full."""


EpisodeJudge = Callable[[EpisodeTask, "EpisodeOutput"], Score | None]
"""Says what an episode was worth, from its task and its outcome (without `reward`); `None`, or an `OperationError`, when it cannot tell.

A judge that waits for something is an `AsyncEpisodeJudge` too."""


@runtime_checkable
class AsyncEpisodeJudge(Interface):
    """A judge that does not hold up the event loop: asked in the place of `__call__` when the graph runs asynchronously."""

    async def ajudge(self, task: EpisodeTask, outcome: EpisodeOutput) -> Score | None:
        """Return what the judge says as a function."""


# nodes


@dataclass(frozen=True)
class Episode:
    """The nodes of an episode."""

    steps: AgentSteps
    bank: LazyBank
    scope: DefaultScope
    limit: int
    rounds: tuple[int, int, int]
    recall_stages: tuple[int, ...]
    recalled: int
    floor: float
    profile: Profile
    judge: EpisodeJudge | None

    def begin(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        """Start with an empty context. Raises `InputError` without a task."""
        task = state.get("task")
        if not isinstance(task, EpisodeTask):
            raise InputError("The episode has no task. Pass {'task': EpisodeTask(...)}")
        turns = len(task.messages) * self.rounds[0] + len(task.distractors) * self.rounds[1] + self.rounds[2]
        if turns > MOST_STEPS:
            raise InputError(
                f"the task {task.id} may take {turns} turns, and an episode at most {MOST_STEPS}. Split it"
            )
        return {
            "context": as_dialogue(self._system()),
            "numbers": Numbers(),
            "shown": [],
            "budget": Budget(limit=self.limit),
            "stage": 1,
            "feed_index": 0,
            "round": 0,
            "over": False,
            "exhausted": False,
            "answer": None,
        }

    def _system(self) -> list[BaseMessage]:
        text = self._prompt()
        return [SystemMessage(text, id="system")] if text else []

    def _prompt(self) -> str:
        given = agent_prompt()
        return given or tools_line(self.steps.names) if self.profile == "none" else self.steps.instructions(given)

    def feed(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        """Give the next message; wipe the context where stage 1 has ended."""
        task, stage, index = state["task"], state["stage"], state["feed_index"]
        update: EpisodeState = {"round": 0, "over": False}
        context: list[BaseMessage] = list(state["context"]["messages"])
        if index == 0 and (stage == 2 or (stage == 3 and not task.distractors)):
            context, update["edits"] = self._wiped(context)
        message = HumanMessage(_fed(task, stage)[index], id=str(new_id()))
        context.append(message)
        budget = self.steps.measured(context, state["budget"])
        return {
            **update,
            "context": as_dialogue(context),
            "messages": [message],
            "feed_index": index + 1,
            "budget": budget,
            "over": budget.used > self.limit,
        }

    async def afeed(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        """Do what `feed` does."""
        return self.feed(state, config)

    async def abegin(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        """Do what `begin` does."""
        return self.begin(state, config)

    @staticmethod
    def _wiped(context: Sequence[BaseMessage]) -> tuple[list[BaseMessage], list[ContextEdit]]:
        edit = all_but_system(context)
        return (apply_edit(context, edit), [edit]) if edit else (list(context), [])

    # what is retrieved without being asked for

    def recall(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        """Put memories that resemble the message beside it; that is no call of RETRIEVE (A11)."""
        query = self._query(state)
        if not query:
            return {}
        bank = self.bank.get()
        hits = bank.search(query, scope=current_scope(self.scope), limit=self._limit(state))
        return self._recalled(state, self._near(bank, query, hits))

    async def arecall(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        """Do what `recall` does."""
        query = self._query(state)
        if not query:
            return {}
        bank = await self.bank.aget()
        hits = await bank.asearch(query, scope=current_scope(self.scope), limit=self._limit(state))
        return self._recalled(state, await asyncio.to_thread(self._near, bank, query, hits))

    @staticmethod
    def _query(state: EpisodeState) -> str:
        return storable(state["context"]["messages"][-1].text).strip()[:LONGEST_QUERY]

    def _limit(self, state: EpisodeState) -> int:
        return self.recalled if state["stage"] == 1 else self.steps.top_k or TOP_K

    def _near(self, bank: MemoryStore, query: str, hits: Sequence[MemoryHit]) -> list[Memory]:
        """Return the memories whose cosine with the query is not below the floor."""
        memories = [hit.memory for hit in hits]
        if not memories or self.floor <= -1:
            return memories
        similar = cosines(bank.embedder, query, [memory.text for memory in memories])
        return [memory for memory, value in zip(memories, similar, strict=True) if value >= self.floor]

    def _recalled(self, state: EpisodeState, memories: Sequence[Memory]) -> EpisodeState:
        if not memories:
            return {}
        message, numbers = self.steps.recalled(memories, state["numbers"])
        context = [*state["context"]["messages"], message]
        budget = self.steps.measured(context, state["budget"])
        shown = [*state["shown"], shown_in(message, memories)]
        return {
            "context": as_dialogue(context),
            "messages": as_messages([message]),
            "numbers": numbers,
            "shown": shown,
            "budget": budget,
            "over": budget.used > self.limit,
        }

    # the policy's turn

    def policy(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        """Ask the model. Raises `UnavailableError`, and `ContextLengthError` when the context does not fit it."""
        context = state["context"]["messages"]
        reply = self.steps.ask(context, state["shown"], self._prompt(), _staged(config, state["stage"]))
        return {"reply": Reply(message=reply), "turn": self.steps.read(reply), "round": state["round"] + 1}

    async def apolicy(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        """Do what `policy` does."""
        context = state["context"]["messages"]
        reply = await self.steps.aask(context, state["shown"], self._prompt(), _staged(config, state["stage"]))
        return {"reply": Reply(message=reply), "turn": self.steps.read(reply), "round": state["round"] + 1}

    def act(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        """Carry out the calls of the turn, measure the context, and see what comes next."""
        scope, run_id = current_scope(self.scope), current_run_id(config)
        acted = self.steps.carry_out(state, self.bank.get(), scope, self._kept(state), run_id, config)
        return self._acted(state, acted)

    async def aact(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        """Do what `act` does."""
        scope, run_id, bank = current_scope(self.scope), current_run_id(config), await self.bank.aget()
        acted = await self.steps.acarry_out(state, bank, scope, self._kept(state), run_id, config)
        return self._acted(state, acted)

    def _kept(self, state: EpisodeState) -> list[str]:
        """Return the id of the question, once it is asked."""
        if state["stage"] < 3:
            return []
        asked = [m for m in state["messages"] if isinstance(m, HumanMessage) and m.text == state["task"].question]
        return [str(asked[-1].id)] if asked else []

    def _acted(self, state: EpisodeState, acted: Acted) -> EpisodeState:
        turn, stage = state["turn"], state["stage"]
        budget = self.steps.measured(acted.context, state["budget"])
        over = budget.used > self.limit
        answered = turn.answer is not None and not over
        spent = state["round"] >= self.rounds[stage - 1]
        update: EpisodeState = {
            "context": as_dialogue(acted.context),
            "messages": as_messages([state["reply"]["message"], *acted.new]),
            "numbers": acted.numbers,
            "shown": [*state["shown"], *acted.shown],
            "edits": acted.edits,
            "budget": budget,
            "operations": acted.ops,
            "over": over,
            "steps": [log_of(state, acted, budget)],
        }
        if stage == 3:
            return {
                **update,
                "answer": turn.answer if answered else None,
                "exhausted": spent and not answered and not over,
            }
        if over or ((answered or spent) and state["feed_index"] >= len(_fed(state["task"], stage))):
            update |= _next_stage(state)
        return update

    # the end

    def finish(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        """Collect what happened, and judge it."""
        stored = self.bank.get().memories(scope=current_scope(self.scope))
        outcome, score, unjudged = self._outcome(state, stored), None, None
        if self.judge is not None:
            try:
                score = self.judge(state["task"], outcome)
            except OperationError as error:  # it says nothing about the policy
                unjudged = str(error)
        return _judged(outcome, score, unjudged)

    async def afinish(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        """Do what `finish` does."""
        stored = await (await self.bank.aget()).amemories(scope=current_scope(self.scope))
        outcome, score, unjudged, judge = self._outcome(state, stored), None, None, self.judge
        if judge is not None:
            try:
                if isinstance(judge, AsyncEpisodeJudge):
                    score = await judge.ajudge(state["task"], outcome)
                else:
                    score = judge(state["task"], outcome)
            except OperationError as error:
                unjudged = str(error)
        return _judged(outcome, score, unjudged)

    def _outcome(self, state: EpisodeState, stored: Sequence[Memory]) -> EpisodeOutput:
        budget = state["budget"]
        seen = "\n".join(m.text for m in state["context"]["messages"] if not isinstance(m, SystemMessage)).lower()
        log = EpisodeLog(
            steps=tuple(state["steps"]),
            answered=state["answer"] is not None,
            used=budget.used,
            limit=self.limit,
            overflowed=budget.overflowed,
            exhausted=state["exhausted"],
            rounds=self.rounds[2],
        )
        return {
            "answer": state["answer"],
            "log": log,
            "stored": [memory.text for memory in stored],
            "preserved": not state["over"] and all(p.lower() in seen for p in state["task"].key_phrases),
        }


def _judged(outcome: EpisodeOutput, score: Score | None, unjudged: str | None) -> EpisodeState:
    return {**outcome, "reward": score, "unjudged": unjudged}  # type: ignore[typeddict-item]  # an outcome is part of the state


def _staged(config: RunnableConfig, stage: int) -> RunnableConfig:
    """Return `config` with the stage in which a call is made, for the trace."""
    return {**config, "metadata": {**(config.get("metadata") or {}), "memweave_stage": stage}}


def _next_stage(state: EpisodeState) -> EpisodeState:
    """Return what begins the stage after the present one; without distractors there is no second."""
    return {"stage": 3 if state["stage"] == 2 or not state["task"].distractors else 2, "feed_index": 0}


def _fed(task: EpisodeTask, stage: int) -> Sequence[str]:
    return (task.messages, task.distractors, (task.question,))[stage - 1]


# routing


def to_recall(stages: tuple[int, ...]) -> Callable[[EpisodeState], str]:
    """Return the route after a message was fed."""

    def route(state: EpisodeState) -> str:
        if state["over"]:
            return over_full(state)
        return "recall" if state["stage"] in stages else "policy"

    return route


def over_full(state: EpisodeState) -> str:
    """Return where a context that is too full leads: the rest of the stage is left out, and a question cannot be asked."""
    return "judge" if state["stage"] == 3 else "skip"


def after_recall(state: EpisodeState) -> str:
    """Ask the policy, unless what was recalled is too much."""
    return over_full(state) if state["over"] else "policy"


def after_act(rounds: tuple[int, int, int]) -> Callable[[EpisodeState], str]:
    """Return the route after a turn."""

    def route(state: EpisodeState) -> str:
        if state["feed_index"] == 0:  # the stage ended
            return "feed"
        if state["stage"] == 3:
            ended = state["over"] or state["answer"] is not None or state["exhausted"]
            return "judge" if ended else "policy"
        answered = state["turn"].answer is not None
        return "feed" if answered or state["round"] >= rounds[state["stage"] - 1] else "policy"

    return route


def skip(state: EpisodeState, config: RunnableConfig) -> EpisodeState:
    """Leave out the rest of a stage."""
    return _next_stage(state)


async def askip(state: EpisodeState, config: RunnableConfig) -> EpisodeState:
    """Leave out the rest of a stage."""
    return skip(state, config)


# builder

EpisodeGraph = CompiledStateGraph[EpisodeState, AgeMemContext, EpisodeInput, EpisodeOutput]


def create_agemem_episode_graph(
    model: BaseChatModel,
    bank: BankSource,
    *,
    judge: EpisodeJudge | None = None,
    scope: DefaultScope = None,
    variant: Variant = "full",
    context_tokens: int = 8_192,
    rounds: tuple[int, int, int] = ROUNDS,
    auto_retrieve: bool = True,
    recalled: int = RECALLED,
    recall_floor: float = -1.0,
    protocol: Protocol | None = None,
    profile: Profile = "full",
    summarizer: Summarizer | None = None,
    count_tokens: ContextCounter = estimate_context,
    filter_threshold: float = FILTER_THRESHOLD,
    top_k: int | None = TOP_K,
    tolerant: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
) -> EpisodeGraph:
    """Return the three-stage episode that AgeMem's policy is trained on.

    judge: gives the reward; without it there is none.  variant: as in `create_agemem_agent`; `rag` retrieves for every message.
    context_tokens: T_max.  rounds: turns per message in stages 1 and 2, and for the question.
    auto_retrieve: put memories beside each message of stage 1 (A11), at most `recalled` of cosine `recall_floor` or more.
    profile: `none` for policies trained on this: their prompt is one line.  Others as in `create_agemem_agent`; the summarizer is
    extractive by default.

    Raises `InputError` for rounds, memories or tokens below 1, `SettingsError` for a variant that cannot be.
    """
    check_limit(context_tokens)
    check_tools((), variant)
    if min(*rounds, recalled) < 1:
        raise InputError(f"rounds = {rounds}, recalled = {recalled}: give 1 at least for each")
    steps = AgentSteps(
        model=model,
        protocol=protocol or protocol_for(model),
        variant=variant,
        summarizer=summarizer or ExtractiveSummarizer(),
        count=count_tokens,
        threshold=filter_threshold,
        top_k=top_k,
        tolerant=tolerant,
        dated=False,
        tool_role=profile == "none",
        timeout=timeout,
    )
    stages: dict[Variant, tuple[int, ...]] = {"full": (1,) if auto_retrieve else (), "rag": (1, 2, 3), "none": ()}
    recall_stages = stages[variant]
    nodes = Episode(
        steps, LazyBank(bank), scope, context_tokens, rounds, recall_stages, recalled, recall_floor, profile, judge
    )
    return compiled(nodes)


def compiled(nodes: Episode, state: type[EpisodeState] = EpisodeState, given: type[Any] = EpisodeInput) -> EpisodeGraph:
    """Return the graph of these nodes, over `state`, with the input `given`."""
    builder = StateGraph(state, AgeMemContext, input_schema=given, output_schema=EpisodeOutput)
    builder.add_node("begin", Node("begin", nodes.begin, nodes.abegin))
    builder.add_node("feed", Node("feed", nodes.feed, nodes.afeed))
    builder.add_node("recall", Node("recall", nodes.recall, nodes.arecall))
    builder.add_node("policy", Node("policy", nodes.policy, nodes.apolicy))
    builder.add_node("act", Node("act", nodes.act, nodes.aact))
    builder.add_node("skip", Node("skip", skip, askip))
    builder.add_node("judge", Node("judge", nodes.finish, nodes.afinish))
    builder.add_edge(START, "begin")
    builder.add_edge("begin", "feed")
    builder.add_conditional_edges("feed", to_recall(nodes.recall_stages), ["recall", "policy", "skip", "judge"])
    builder.add_conditional_edges("recall", after_recall, ["policy", "skip", "judge"])
    builder.add_edge("policy", "act")
    builder.add_conditional_edges("act", after_act(nodes.rounds), ["policy", "feed", "judge"])
    builder.add_edge("skip", "feed")
    builder.add_edge("judge", END)
    graph = builder.compile(name="agemem-episode")
    return graph.with_config(recursion_limit=6 * MOST_STEPS + 20)

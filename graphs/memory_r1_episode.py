"""One Memory-R1 episode, as a state machine: turns are remembered, then questions are answered from the memory.

    accept -> construct (the construction graph) -> answer (the answering graph, once per question, in parallel)

It is what both roles are trained and evaluated on (specification, sections 3.3, 3.4 and 5, B2). One turn on a bank that is filled
already is the single-turn episode of a manager, all turns on an empty bank its rollout, no turn at all that of an answerer.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Overwrite, Send
from typing_extensions import TypedDict

from memweave.agents.llm import PolicyLike
from memweave.agents.roles import AnswerRequest, ExtractRequest, ManageRequest
from memweave.errors import InputError, UnavailableError
from memweave.graphs.memory_r1_answering import PER_PARTICIPANT, AnsweringGraph, AnsweringOutput, create_answering_graph
from memweave.graphs.memory_r1_construction import TOP_K, FailedTurn, create_construction_graph
from memweave.graphs.memory_r1_context import MemoryR1Context
from memweave.graphs.session import BankSource, DefaultScope, LazyBank, Node, current_scope
from memweave.records import Record, Turn

MAX_QUESTIONS: Final = 1_000
"""Most questions of one episode."""


# state


class Answered(Record):
    """What was answered to one question."""

    number: int
    """Its place among the questions."""
    answer: str | None
    """`None` when no reply could be used."""
    error: str | None = None


class EpisodeInput(TypedDict, total=False):
    """What is said, and what is asked afterwards."""

    turns: Sequence[Turn]
    questions: Sequence[str]


class EpisodeOutput(TypedDict, total=False):
    """What came of it."""

    answers: list[str | None]
    """One per question, in their order."""
    turns_done: int
    failed: list[FailedTurn]
    """Turns that could not be turned into operations."""
    stopped: str | None
    """Why not all turns were tried, if so; then nothing is asked, and the run raises."""


class EpisodeState(EpisodeInput, EpisodeOutput, total=False):
    """An episode under way."""

    answered: Annotated[list[Answered], operator.add]
    """Filled by the parallel answers; emptied by `accept`."""


class Asking(TypedDict):
    """One question on its way."""

    number: int
    question: str


# nodes


@dataclass(frozen=True)
class _Episode:
    bank: LazyBank
    scope: DefaultScope
    answering: AnsweringGraph

    def accept(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        """Store the turns as pending."""
        turns, blank = self._checked(state)
        if turns:
            self.bank.get().accept(turns, scope=current_scope(self.scope))
        return blank

    async def aaccept(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        turns, blank = self._checked(state)
        if turns:
            await (await self.bank.aget()).aaccept(turns, scope=current_scope(self.scope))
        return blank

    def _checked(self, state: EpisodeState) -> tuple[list[Turn], EpisodeState]:
        turns, questions = list(state.get("turns") or ()), state.get("questions") or ()
        if not turns and not questions:
            raise InputError("The episode is empty. Pass {'turns': [...], 'questions': [...]}, at least one of them")
        if len(questions) > MAX_QUESTIONS:
            raise InputError(
                f"{len(questions)} questions in one episode; at most {MAX_QUESTIONS} are answered. Split it"
            )
        emptied: object = Overwrite([])
        return turns, {"answered": emptied, "answers": [], "turns_done": 0, "failed": [], "stopped": None}  # type: ignore[typeddict-item]  # LangGraph's way to empty a channel that adds

    def answer(self, task: Asking, config: RunnableConfig) -> EpisodeState:
        """Answer one question."""
        return _answered(task, self.answering.invoke({"question": task["question"]}, config))

    async def aanswer(self, task: Asking, config: RunnableConfig) -> EpisodeState:
        return _answered(task, await self.answering.ainvoke({"question": task["question"]}, config))

    def collect(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        """Put the answers in the order of the questions."""
        found = {one.number: one.answer for one in state["answered"]}
        return {"answers": [found[number] for number in range(len(state.get("questions") or ()))]}

    async def acollect(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        return self.collect(state, config)


def _answered(task: Asking, output: object) -> EpisodeState:
    found: AnsweringOutput = output  # type: ignore[assignment]  # LangGraph types outputs as Any or dict
    return {"answered": [Answered(number=task["number"], answer=found.get("answer"), error=found.get("error"))]}


# routing


def after_accept(state: EpisodeState) -> Literal["construct"] | list[Send]:
    """Remember what was said, if anything was; then ask."""
    return "construct" if state.get("turns") else to_answers(state)


def to_answers(state: EpisodeState) -> list[Send]:
    """Answer every question, each by itself. Raises `UnavailableError` when the turns were not all tried.

    What would be asked of half a conversation says nothing about the policy.
    """
    if stopped := state.get("stopped"):
        raise UnavailableError(f"the episode ended before all turns were remembered: {stopped}")
    questions = state.get("questions") or ()
    if not questions:
        return [Send("collect", state)]
    return [Send("answer", Asking(number=number, question=text)) for number, text in enumerate(questions)]


# builder

EpisodeGraph = CompiledStateGraph[EpisodeState, MemoryR1Context, EpisodeInput, EpisodeOutput]


def create_episode_graph(
    bank: BankSource,
    *,
    extractor: PolicyLike[ExtractRequest] = "rule",
    manager: PolicyLike[ManageRequest] = "rule",
    answerer: PolicyLike[AnswerRequest] = "rule",
    scope: DefaultScope = None,
    top_k: int = TOP_K,
    history_window: int | None = None,
    per_participant: int = PER_PARTICIPANT,
    max_attempts: int = 3,
) -> EpisodeGraph:
    """Return the graph that remembers turns and then answers questions, to train and evaluate Memory-R1 on.

    Arguments as in `create_construction_graph` and `create_answering_graph`.  max_attempts: replies asked for per turn and
    question; 1 for training, where a reply that makes no sense should earn what it is worth.
    """
    construction = create_construction_graph(
        bank, extractor=extractor, manager=manager, scope=scope, top_k=top_k, history_window=history_window,
        max_attempts=max_attempts, events=False,
    )  # fmt: skip
    answering = create_answering_graph(
        bank, answerer=answerer, scope=scope, per_participant=per_participant, max_attempts=max_attempts
    )
    nodes = _Episode(LazyBank(bank), scope, answering)
    builder = StateGraph(EpisodeState, MemoryR1Context, input_schema=EpisodeInput, output_schema=EpisodeOutput)
    builder.add_node("accept", Node("accept", nodes.accept, nodes.aaccept))
    builder.add_node("construct", construction)
    builder.add_node("answer", Node[Asking, EpisodeState]("answer", nodes.answer, nodes.aanswer), input_schema=Asking)
    builder.add_node("collect", Node("collect", nodes.collect, nodes.acollect))
    builder.add_edge(START, "accept")
    builder.add_conditional_edges("accept", after_accept, ["construct", "answer", "collect"])
    builder.add_conditional_edges("construct", to_answers, ["answer", "collect"])
    builder.add_edge("answer", "collect")
    builder.add_edge("collect", END)
    return builder.compile(name="memory-r1-episode")

"""Memory-R1's answering of questions, as a state machine (arXiv 2508.19828; section 3.2 of the specification).

begin -> retrieve (once per participant, in parallel) -> assemble -> answer
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer, Overwrite, Send
from typing_extensions import TypedDict

from memweave.agents.answerer import parse_answer_reply
from memweave.agents.llm import PolicyLike, as_answerer
from memweave.agents.roles import AnswerRequest, Attempt, Policy
from memweave.errors import InputError, ModelReplyError
from memweave.graphs.memory_r1_context import MemoryR1Context, prompt_of
from memweave.graphs.session import BankSource, DefaultScope, LazyBank, Node, current_scope, quiet_known_types
from memweave.records import IndexFilter, Memory, MemoryHit, Record, Scope

PER_PARTICIPANT: Final = 30
"""Memories that the answerer sees per participant (section 2.6)."""
MAX_PARTICIPANTS: Final = 8
"""Participants that are retrieved for one by one; the others share one retrieval, with memories that are nobody's."""


# state


class AnsweringInput(TypedDict, total=False):
    """A question about what the participants said."""

    question: str
    asked_at: datetime | None
    """When it is asked, for questions about time."""


class AnsweringOutput(TypedDict, total=False):
    """The answer and what it rests on."""

    answer: str | None
    """`None` when no reply could be used."""
    used: list[Memory]
    """Memories that the answerer quoted."""
    memories: list[Memory]
    """All memories that it saw: grouped by participant, oldest first within one."""
    reply: str
    """The whole reply, with the memories it quoted."""
    error: str | None
    """Why there is no answer."""


class Found(Record):
    """What one retrieval found."""

    order: int
    memories: tuple[Memory, ...]


class AnsweringState(AnsweringInput, AnsweringOutput, total=False):
    """A question on its way to an answer."""

    participants: list[str]
    found: Annotated[list[Found], operator.add]
    """Filled by the parallel retrievals; emptied by `begin`."""
    attempts: list[Attempt]
    retry: bool


class Retrieval(TypedDict):
    """One parallel retrieval."""

    question: str
    order: int
    participant: str | None
    """Whose memories; `None` for those that are nobody's, or of participants beyond the first ones."""
    participants: list[str]


# nodes


@dataclass(frozen=True)
class _Answering:
    bank: LazyBank
    answerer: Policy[AnswerRequest]
    scope: DefaultScope
    per_participant: int
    max_attempts: int

    def begin(self, state: AnsweringState, config: RunnableConfig) -> AnsweringState:
        """Find out whose memories there are."""
        scope = self._checked(state)
        return self._begun(self.bank.get().speakers(scope=scope))

    async def abegin(self, state: AnsweringState, config: RunnableConfig) -> AnsweringState:
        scope = self._checked(state)
        return self._begun(await (await self.bank.aget()).aspeakers(scope=scope))

    def _checked(self, state: AnsweringState) -> Scope:
        if not state.get("question", "").strip():
            raise InputError("The question is empty. Pass {'question': '...'}")
        return current_scope(self.scope)

    def _begun(self, speakers: list[str]) -> AnsweringState:
        emptied: Any = Overwrite([])
        return {"participants": speakers[:MAX_PARTICIPANTS], "found": emptied, "attempts": [], "memories": []}

    def retrieve(self, task: Retrieval, config: RunnableConfig) -> AnsweringState:
        """Find the memories of one participant that fit the question best."""
        where, limit = self._query(task)
        hits = self.bank.get().search(task["question"], scope=current_scope(self.scope), limit=limit, where=where)
        return self._found(task, hits)

    async def aretrieve(self, task: Retrieval, config: RunnableConfig) -> AnsweringState:
        where, limit = self._query(task)
        bank = await self.bank.aget()
        hits = await bank.asearch(task["question"], scope=current_scope(self.scope), limit=limit, where=where)
        return self._found(task, hits)

    def _query(self, task: Retrieval) -> tuple[IndexFilter | None, int]:
        if task["participant"] is not None:
            return IndexFilter(speakers=(task["participant"],)), self.per_participant
        return None, min(1_000, self.per_participant * (len(task["participants"]) + 1))

    def _found(self, task: Retrieval, hits: Sequence[MemoryHit]) -> AnsweringState:
        memories = [hit.memory for hit in hits]
        if task["participant"] is None:
            memories = [memory for memory in memories if memory.speaker not in task["participants"]]
        return {"found": [Found(order=task["order"], memories=tuple(memories[: self.per_participant]))]}

    def assemble(self, state: AnsweringState, config: RunnableConfig) -> AnsweringState:
        """Put the memories in the order in which they are shown."""
        found = sorted(state["found"], key=lambda one: one.order)
        return {"memories": [memory for one in found for memory in sorted(one.memories, key=said_at)]}

    async def aassemble(self, state: AnsweringState, config: RunnableConfig) -> AnsweringState:
        return self.assemble(state, config)

    def answer(self, state: AnsweringState, config: RunnableConfig) -> AnsweringState:
        """Ask for the memories that matter and the answer. Raises `UnavailableError`."""
        request = self._request(state)
        try:
            return self._parsed(state, request, self.answerer.reply(request, config))
        except ModelReplyError as error:
            return _unanswered(error)

    async def aanswer(self, state: AnsweringState, config: RunnableConfig) -> AnsweringState:
        request = self._request(state)
        try:
            return self._parsed(state, request, await self.answerer.areply(request, config))
        except ModelReplyError as error:
            return _unanswered(error)

    def _request(self, state: AnsweringState) -> AnswerRequest:
        return AnswerRequest(
            question=state["question"],
            memories=tuple(state["memories"]),
            asked_at=state.get("asked_at"),
            system_prompt=prompt_of("answerer"),
            failed=tuple(state["attempts"]),
        )

    def _parsed(self, state: AnsweringState, request: AnswerRequest, reply: str) -> AnsweringState:
        try:
            answer = parse_answer_reply(reply, request)
        except ModelReplyError as error:
            attempts = [*state["attempts"], Attempt(reply=reply, error=str(error))]
            return {**_unanswered(error), "attempts": attempts, "retry": len(attempts) < self.max_attempts}
        used = [request.memories[number] for number in answer.used]
        return {"answer": answer.text, "used": used, "reply": reply, "error": None, "retry": False}


def said_at(memory: Memory) -> datetime:
    """Return when it was said; when it was recorded, if that is not known."""
    return memory.observed_at or memory.recorded_at


def _unanswered(error: ModelReplyError) -> AnsweringState:
    return {"answer": None, "used": [], "reply": "", "error": str(error), "retry": False}


# routing


def to_retrievals(state: AnsweringState) -> list[Send]:
    """Retrieve for each participant, and once for what belongs to none of them."""
    participants = state["participants"]
    return [
        Send(
            "retrieve",
            Retrieval(question=state["question"], order=order, participant=participant, participants=participants),
        )
        for order, participant in enumerate([*participants, None])
    ]


def after_answer(state: AnsweringState) -> Literal["answer", "end"]:
    """Ask again when the reply cannot be used."""
    return "answer" if state["retry"] else "end"


# builder

AnsweringGraph = CompiledStateGraph[AnsweringState, MemoryR1Context, AnsweringInput, AnsweringOutput]


def create_answering_graph(
    bank: BankSource,
    *,
    model: str | BaseChatModel | None = None,
    answerer: PolicyLike[AnswerRequest] | None = None,
    scope: DefaultScope = None,
    per_participant: int = PER_PARTICIPANT,
    max_attempts: int = 3,
    checkpointer: Checkpointer = None,
) -> AnsweringGraph:
    """Return the graph that answers a question from memory.

    model, answerer, scope: as in `create_construction_graph`.  per_participant: memories retrieved for each participant.
    max_attempts: replies asked for.
    """
    nodes = _Answering(
        bank=LazyBank(bank),
        answerer=as_answerer(answerer or model or "rule"),
        scope=scope,
        per_participant=per_participant,
        max_attempts=max_attempts,
    )
    quiet_known_types()
    builder = StateGraph(AnsweringState, MemoryR1Context, input_schema=AnsweringInput, output_schema=AnsweringOutput)
    builder.add_node("begin", Node("begin", nodes.begin, nodes.abegin))
    builder.add_node(
        "retrieve", Node[Retrieval, AnsweringState]("retrieve", nodes.retrieve, nodes.aretrieve), input_schema=Retrieval
    )
    builder.add_node("assemble", Node("assemble", nodes.assemble, nodes.aassemble))
    builder.add_node("answer", Node("answer", nodes.answer, nodes.aanswer))
    builder.add_edge(START, "begin")
    builder.add_conditional_edges("begin", to_retrievals, ["retrieve"])
    builder.add_edge("retrieve", "assemble")
    builder.add_edge("assemble", "answer")
    builder.add_conditional_edges("answer", after_answer, {"answer": "answer", "end": END})
    return builder.compile(checkpointer=checkpointer, name="memory-r1-answering")

"""What an answer of Memento is worth: exact match, a judge, or the caller's own function; `None` when nobody can tell (section 3.1).

A judge that gives no verdict is not a WRONG, unlike in the official code: the reward is then `None`, and the case is not learned from.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar, cast

from langchain_core.runnables import RunnableConfig

from memweave.agents.judge import parse_judge_reply
from memweave.agents.llm import bounded
from memweave.agents.roles import Attempt, Judge, JudgeRequest
from memweave.errors import ModelReplyError, RewardError, SettingsError, UnavailableError
from memweave.graphs.memento_context import prompt_of
from memweave.graphs.memento_state import About, MementoState, QueryRecord, Verdict
from memweave.metrics import exact_match


class Answered(Protocol):
    """What can be judged: a query that was answered, and what the caller said of it."""

    @property
    def query(self) -> str:
        """Return what was asked."""

    @property
    def answer(self) -> str | None:
        """Return the answer, if there is one."""

    @property
    def about(self) -> About:
        """Return what the caller said of the query: right answers, for one."""


AnsweredT = TypeVar("AnsweredT", bound=Answered)
EvaluateOf = Callable[[AnsweredT], float | None] | Callable[[AnsweredT], Awaitable[float | None]]
"""Returns the reward of a finished query, in [0, 1], or `None` when it cannot tell."""
Evaluate = EvaluateOf[QueryRecord]

JUDGE_ATTEMPTS: Final = 2


@dataclass(frozen=True)
class Evaluating(Generic[AnsweredT]):
    """Who says what an answer is worth: the function, else (with a right answer to compare with) the judge, else exact match."""

    function: EvaluateOf[AnsweredT] | None
    judge: Judge | None
    timeout: float
    """Seconds for the function."""

    def verdict(self, record: AnsweredT, config: RunnableConfig) -> Verdict:
        """Return the verdict. Raises `UnavailableError` when the judge is away, `RewardError` for what is no reward."""
        if self.function is not None:
            if inspect.iscoroutinefunction(self.function):
                raise SettingsError(
                    "evaluate is a coroutine function: run the graph with ainvoke, or give it a plain one"
                )
            function = cast("Callable[[AnsweredT], float | None]", self.function)
            try:
                return _own(bounded(lambda: function(record), self.timeout))
            except TimeoutError as error:
                raise self._late() from error
        if (settled := _settled(record, self.judge)) is not None:
            return settled
        assert self.judge is not None
        request = _request(record)
        for _ in range(JUDGE_ATTEMPTS):
            reply = ""
            try:
                reply = self.judge.reply(request, config)
                return _judged(reply, request)
            except ModelReplyError as error:
                request = _again(request, reply, error)
        return _undecided(request)

    async def averdict(self, record: AnsweredT, config: RunnableConfig) -> Verdict:
        """Return the verdict, as `verdict` does."""
        if self.function is not None:
            if not inspect.iscoroutinefunction(self.function):
                return await asyncio.to_thread(self.verdict, record, config)
            try:
                async with asyncio.timeout(self.timeout):
                    return _own(await self.function(record))
            except TimeoutError as error:
                raise self._late() from error
        if (settled := _settled(record, self.judge)) is not None:
            return settled
        assert self.judge is not None
        request = _request(record)
        for _ in range(JUDGE_ATTEMPTS):
            reply = ""
            try:
                reply = await self.judge.areply(request, config)
                return _judged(reply, request)
            except ModelReplyError as error:
                request = _again(request, reply, error)
        return _undecided(request)

    def _late(self) -> UnavailableError:
        return UnavailableError(f"evaluate did not return within {self.timeout:g} s. Give the agent a longer timeout")


def _own(value: object) -> Verdict:
    if value is None:
        return Verdict(reward=None, by="evaluate")
    if isinstance(value, bool | int | float) and math.isfinite(value) and 0 <= value <= 1:
        return Verdict(reward=float(value), by="evaluate")
    raise RewardError(f"evaluate returned {value!r:.80}: give a number from 0 to 1, or None when nobody can tell")


def _settled(record: Answered, judge: Judge | None) -> Verdict | None:
    """Return the verdict where no judge has to be asked."""
    golds = record.about.ground_truth
    if not golds:
        return Verdict(reward=None)
    if record.answer is None:
        return Verdict(reward=0.0, by="exact_match", reason="there is no answer")
    if judge is None:
        return Verdict(reward=max(exact_match(record.answer, gold) for gold in golds), by="exact_match")
    return None


def _request(record: Answered) -> JudgeRequest:
    golds = record.about.ground_truth
    reference = golds[0] if len(golds) == 1 else f"any one of these: {'; '.join(golds)}"
    return JudgeRequest(
        question=record.query, reference=reference, answer=record.answer or "", system_prompt=prompt_of("judge")
    )


def _judged(reply: str, request: JudgeRequest) -> Verdict:
    found = parse_judge_reply(reply, request)
    return Verdict(reward=float(found.correct), by="judge", reason=found.reason)


def _again(request: JudgeRequest, reply: str, error: ModelReplyError) -> JudgeRequest:
    return request.model_copy(update={"failed": (*request.failed, Attempt(reply=reply, error=str(error)))})


def _undecided(request: JudgeRequest) -> Verdict:
    return Verdict(reward=None, by="judge", reason=f"the judge gave no verdict: {request.failed[-1].error}")


# the node


@dataclass(frozen=True)
class Ending:
    """The node after the answer: puts the record of the task together, and says what the answer is worth."""

    evaluating: Evaluating[QueryRecord]

    def evaluate(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Find out what the answer is worth. Raises `UnavailableError` when the judge is away."""
        record = query_record(state)
        return _valued(record, self.evaluating.verdict(record, config))

    async def aevaluate(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Do what `evaluate` does."""
        record = query_record(state)
        return _valued(record, await self.evaluating.averdict(record, config))


def query_record(state: MementoState) -> QueryRecord:
    """Return the record of a task that is over, not evaluated yet."""
    status, plan = state["status"], state["plan"]
    assert status is not None
    return QueryRecord(
        run_id=state["run_id"],
        query=state["query"],
        about=state["about"],
        status=status,
        answer=state["answer"],
        plan=plan.text if plan else None,
        plans=tuple(state["plans"]),
        planner_calls=tuple(state["planner_calls"]),
        subtasks=tuple(state["subtasks"]),
        cases=tuple(state["seen"]),
        verdict=Verdict(reward=None),
    )


def _valued(record: QueryRecord, verdict: Verdict) -> MementoState:
    return {"record": record.model_copy(update={"verdict": verdict}), "reward": verdict.reward}

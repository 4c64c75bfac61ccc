"""One episode: a task's graph run on a branch of its own, traced, and its reward."""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import JsonValue

from memweave.errors import InputError, RewardError, ScopeError, UnavailableError
from memweave.memory_stores import MemoryBank, MemoryStore, use_bank
from memweave.records import Scope, new_id, utc_now
from memweave.serving.patience import CLOCK
from memweave.tracing import Score, Trace, TraceStatus
from memweave.tracing.reading import error_line
from memweave.tracing.tracer import Tracer

POLICY_VERSION_KEY = "policy_version"
"""Where a trace's metadata say under which published weights the episode ran."""

_AWAY = ("APIConnectionError", "APITimeoutError", "InternalServerError", "RateLimitError", "TransportError")


@dataclass(frozen=True)
class Task:
    """What an episode is about. `id` names the group of its episodes, so it must differ from other tasks' of one call."""

    id: str
    input: Any
    """Input of the graph; every episode gets a copy."""
    context: Mapping[str, Any] | None = None
    """Run context of the graph, such as `{"user": "anna"}`."""
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    """Kept with every trace of the task."""


RewardValue = float | Score | None
Reward = Callable[[Task, Any, Trace], RewardValue | Awaitable[RewardValue]]
"""What an episode was worth, from its task, the graph's output and the trace; `None` when it cannot be told."""


@dataclass(frozen=True, slots=True)
class Episode:
    """A finished episode; `error` is what ended it, when it failed."""

    trace: Trace
    error: Exception | None = None

    @property
    def trainable(self) -> bool:
        """Return whether it ran to its end, has a score, and called a policy whose tokens are known."""
        return self.trace.status is TraceStatus.OK and self.trace.score is not None and has_policy_call(self.trace)


@dataclass(frozen=True, slots=True)
class EpisodeRunner:
    """Runs episodes of one graph. timeout: seconds for the graph, and again for the reward; `None`: no limit.

    Waiting for a policy server that is being restarted does not count.
    """

    graph: Runnable[Any, Any]
    reward: Reward
    timeout: float | None
    recursion_limit: int
    bank: MemoryBank | None
    scope: Scope | None

    async def run(self, task: Task, replica: int, *, run: str, iteration: int, policy_version: str | None) -> Episode:
        """Run one episode. What goes wrong in the graph is its status; what goes wrong in the reward is raised."""
        metadata = dict(task.metadata)
        if policy_version is not None:
            metadata[POLICY_VERSION_KEY] = policy_version
        tracer = Tracer(run=run, group=task.id, replica=replica, iteration=iteration, metadata=metadata, keep=1)
        thread = new_id()
        config = RunnableConfig(
            callbacks=[tracer],
            metadata={"memweave_episode": f"{run}/{iteration}/{task.id}/{replica}"},
            recursion_limit=self.recursion_limit,
            configurable={"thread_id": str(thread)},
        )
        blank = Trace(
            id=thread, run=run, group=task.id, replica=replica, iteration=iteration, metadata=metadata,
            started_at=utc_now(), ended_at=utc_now(),
        )  # fmt: skip
        with await self._branched(task):
            try:
                output = await self._invoke(task, config)
            except Exception as error:
                return _failed(tracer.last or blank, error)
            trace = tracer.last or blank
            try:
                score = await self._score(task, output, trace)
            except UnavailableError as error:  # a judge that is away says nothing about the policy
                return _failed(trace, error)
        return Episode(trace.model_copy(update={"score": score}))

    async def _invoke(self, task: Task, config: RunnableConfig) -> Any:
        given = {} if task.context is None else {"context": dict(task.context)}
        clock = _EpisodeClock(self.timeout)
        held = CLOCK.set(clock)
        try:
            async with clock.limit:
                return await self.graph.ainvoke(_own(task), config, **given)
        except TimeoutError as error:
            if clock.limit.expired():
                raise EpisodeTimeout(f"the episode did not end within {self.timeout:g} s") from error
            raise
        finally:
            clock.ended = True
            CLOCK.reset(held)

    async def _branched(self, task: Task) -> AbstractContextManager[MemoryStore | None]:
        """Return the block inside which graphs use a branch of the episode's own; it is forgotten afterwards."""
        if self.bank is None:
            return nullcontext()
        return use_bank(await self.bank.abranch(scope=self.scope or scope_of(task)))

    async def _score(self, task: Task, output: object, trace: Trace) -> Score | None:
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                return _as_score(task, await self._asked(task, output, trace))
        except (RewardError, UnavailableError):
            raise
        except Exception as error:
            if limit.expired():
                raise RewardError(f"the reward of task {task.id!r} took longer than {self.timeout:g} s.") from error
            raise RewardError(f"the reward of task {task.id!r} raised {error_line(error)}") from error

    async def _asked(self, task: Task, output: object, trace: Trace) -> object:
        if inspect.iscoroutinefunction(self.reward) or inspect.iscoroutinefunction(type(self.reward).__call__):
            value: object = self.reward(task, output, trace)
        else:
            value = await asyncio.to_thread(self.reward, task, output, trace)  # it may take its time: a judge, a search
        return await value if inspect.isawaitable(value) else value


class _EpisodeClock:
    """The time limit of an episode; it stands still while a server that was called is away."""

    def __init__(self, seconds: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self.limit = asyncio.timeout(seconds)
        self.ended = False
        self._waiting = 0
        self._left: float | None = None

    def pause(self) -> None:
        self._later(1)

    def resume(self) -> None:
        self._later(-1)

    def _later(self, change: int) -> None:
        with suppress(RuntimeError):  # a call that was given up outlived the loop, and so the episode
            self._loop.call_soon_threadsafe(self._change, change)

    def _change(self, change: int) -> None:
        self._waiting += change
        if self.ended or self.limit.expired():
            return
        until = self.limit.when()
        if self._waiting and until is not None:
            self._left = until - self._loop.time()
            self.limit.reschedule(None)
        elif not self._waiting and self._left is not None:
            self.limit.reschedule(self._loop.time() + self._left)
            self._left = None


class EpisodeTimeout(TimeoutError):
    """The episode's own time limit ended it, not that of a call inside."""


def has_policy_call(trace: Trace) -> bool:
    """Return whether a model was called whose sampled tokens are known."""
    return any(generation.prompt_token_ids and generation.token_ids for generation in trace.generations)


def scope_of(task: Task) -> Scope:
    """Return whose memory a task is about, from its context. Raises: `ScopeError` when that names no user."""
    context = task.context or {}
    user = context.get("user")
    if not isinstance(user, str) or not user:
        raise ScopeError(
            f"task {task.id!r} does not say whose memory it uses. Give it context={{'user': ...}}, or Rollouts a scope."
        )
    tenant = context.get("tenant")
    return Scope(user=user) if tenant is None else Scope(tenant=str(tenant), user=user)


def causes(error: BaseException, depth: int = 20) -> Iterator[BaseException]:
    """Yield an error and what caused it."""
    yield error
    if depth:
        inside = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
        for cause in (error.__cause__, *inside):
            if cause is not None:
                yield from causes(cause, depth - 1)


def _own(task: Task) -> Any:
    """Return a copy of the input: LangGraph gives messages their ids in place."""
    try:
        return copy.deepcopy(task.input)
    except Exception as error:
        raise InputError(
            f"the input of task {task.id!r} cannot be copied for each episode: {error_line(error)}"
        ) from error


def _failed(trace: Trace, error: Exception) -> Episode:
    if isinstance(error, EpisodeTimeout):
        status = TraceStatus.TIMEOUT
    elif any(_is_away(cause) for cause in causes(error)):
        status = TraceStatus.UNAVAILABLE
    else:
        status = TraceStatus.TIMEOUT if isinstance(error, TimeoutError) else TraceStatus.FAILED
    return Episode(trace.model_copy(update={"status": status, "error": error_line(error), "score": None}), error)


def _is_away(error: BaseException) -> bool:
    """Return whether a server that the run needed did not answer. Clients' errors are known by their names."""
    if isinstance(error, UnavailableError | ConnectionError):
        return True
    return any(cls.__name__ in _AWAY for cls in type(error).__mro__)


def _as_score(task: Task, value: object) -> Score | None:
    """Return a reward as a score; a bare number gets the range 0..1, widened to hold it."""
    if value is None or isinstance(value, Score):
        return value
    try:
        number = float(value)  # type: ignore[arg-type]  # NumPy's and torch's numbers too; what is none raises
    except (TypeError, ValueError):
        kind = type(value).__name__
        raise RewardError(f"the reward of task {task.id!r} is a {kind}. Return a number, a Score, or None.") from None
    if isinstance(value, str) or not math.isfinite(number):
        raise RewardError(
            f"the reward of task {task.id!r} is {value!r}. Return a finite number, or None for no reward."
        )
    return Score(value=number, low=min(0.0, number), high=max(1.0, number))

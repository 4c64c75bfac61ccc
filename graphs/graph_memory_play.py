"""Rollouts for the machines that build the graph and train its weights: several at once, each with a trace of its own.

A rollout that fails is data, with its reason; what the caller got wrong (a reward outside its range, a tool twice) is raised at once.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, cast
from uuid import UUID

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import get_runtime
from pydantic import Field, JsonValue, ValidationError

from memweave.agents.llm import bounded
from memweave.errors import InputError, SettingsError, UnavailableError, UsageError
from memweave.graph_records import NewQuery
from memweave.graphs.graph_memory_context import GraphMemoryContext
from memweave.graphs.graph_memory_rollout import RolloutGraph
from memweave.graphs.graph_memory_state import Arm, Guidance, RolloutInput, RolloutRecord
from memweave.records import Metadata, Name, Record, Text
from memweave.tracing.reading import error_line
from memweave.tracing.records import ChatMessage, Score, Trace
from memweave.tracing.tracer import Tracer

ROLLOUT_TIMEOUT: Final = 600.0
"""Seconds that one rollout may take."""
PARALLEL: Final = 8
"""Rollouts at the same time."""

FailureKind = Literal[
    "unavailable", "timeout", "error", "no_reward", "no_path", "leak", "no_strategy", "too_long", "duplicate"
]
"""unavailable: a server that it needs does not answer.  timeout, error: the rollout did not end.  no_reward: nobody can tell what
its answer is worth.  no_path: its trace fits no path of the machine.  leak: the strategist wrote about this very question.
no_strategy: what it wrote cannot be used, or its model is away.  too_long: it does not fit into the prompt's budget.
duplicate: the query is there twice; the second time is left out."""


class Failure(Record):
    """Something that went wrong and that the run went on without."""

    kind: FailureKind
    reason: str
    query_id: str | None = None
    trace_id: str | None = None


class QueryTask(Record):
    """A query that rollouts are made for."""

    text: Text
    query_id: Name | None = None
    """The caller's id; without one, the text is the identity."""
    ground_truth: tuple[str, ...] = ()
    """Right answers; one is enough."""
    family: Name | None = None
    split: Name | None = None
    history: tuple[ChatMessage, ...] = ()
    """What was said before, by user and agent, where the query goes on with a chat."""
    metadata: Metadata = Field(default_factory=dict)
    """Kept with every trace."""


def name_of(task: QueryTask) -> str:
    """Return what identifies a query in the graph: it is never its own neighbour."""
    return NewQuery(text=task.text, query_id=task.query_id).name


def query_tasks(given: object) -> tuple[list[QueryTask], list[Failure]]:
    """Return queries as a caller or a server gives them, each once, and a failure for each that was there before.

    Raises `InputError` for what is no query, and for two queries with one id.
    """
    try:
        tasks = [QueryTask.model_validate(each) for each in (given if isinstance(given, list | tuple) else [])]
        names = [name_of(task) for task in tasks]
    except ValidationError as error:
        where = error.errors()[0]
        place = ".".join(map(str, where["loc"]))
        raise InputError(f"a query has {place} = {where['input']!r:.60}: {where['msg']}") from None
    first: dict[str, QueryTask] = {}
    again = []
    for name, task in zip(names, tasks, strict=True):
        if first.setdefault(name, task) is task:
            continue
        if first[name].text != task.text:
            raise InputError(f"two queries have the id {name!r}")
        again.append(Failure(kind="duplicate", reason="the query was there before", query_id=name))
    return list(first.values()), again


class Played(Record):
    """A rollout that is over."""

    record: RolloutRecord | None
    trace: Trace | None
    failure: Failure | None = None
    query_id: str | None = None

    @property
    def reward(self) -> float | None:
        """Return what it was worth; `None` when it failed, or nobody can tell."""
        return self.record.reward if self.record else None


@dataclass(frozen=True)
class Job:
    """A rollout to be made."""

    task: QueryTask
    arm: Arm
    replica: int
    iteration: int = 0
    guidance: Guidance | None = None
    pair: int | None = None
    """Number of the pair, if it is one of two sides: both draw the same random numbers."""


class TraceKeeper(Protocol):
    """Where traces are kept; `TraceStore` is one."""

    def add(self, trace: Trace) -> UUID:
        """Store a trace durably."""

    async def aadd(self, trace: Trace) -> UUID:
        """Do what `add` does."""


RolloutSource = RolloutGraph | Callable[[Job], RolloutGraph]
"""A rollout graph; or which one a job is done with, for worlds whose tools belong to one episode."""


@dataclass(frozen=True)
class Player:
    """Makes rollouts with a rollout graph."""

    rollout: RolloutSource
    run: str
    """Name of the run that the traces belong to."""
    parallel: int = PARALLEL
    timeout: float = ROLLOUT_TIMEOUT
    traces: TraceKeeper | None = None

    def __post_init__(self) -> None:
        if self.parallel < 1 or not self.timeout > 0:
            raise SettingsError(f"parallel = {self.parallel}, timeout = {self.timeout}: give more than 0")
        if not self.run or "/" in self.run:
            raise SettingsError(f"run = {self.run!r}: give a name without a slash")

    def play(self, jobs: Sequence[Job]) -> list[Played]:
        """Return the rollouts, in the order of the jobs; at most `parallel` at the same time.

        Raises `UsageError` of whoever wrote the graph or its reward, and `UnavailableError` when no rollout could reach its model.
        """
        given = _given_context()
        with ThreadPoolExecutor(max(1, min(self.parallel, len(jobs))), "memweave-rollout") as pool:
            works = [pool.submit(_detached().run, self._one, job, given) for job in jobs]
            try:
                played = [work.result() for work in works]
            except BaseException:
                for work in works:
                    work.cancel()
                raise
        return _some(played)

    async def aplay(self, jobs: Sequence[Job]) -> list[Played]:
        """Return the rollouts, as `play` does."""
        given, free = _given_context(), asyncio.Semaphore(self.parallel)

        async def one(job: Job) -> Played:
            async with free:
                return await self._aone(job, given)

        try:
            async with asyncio.TaskGroup() as together:
                works = [together.create_task(one(job), context=_detached()) for job in jobs]
        except BaseExceptionGroup as errors:
            failed = errors.exceptions[0]
        else:
            return _some([work.result() for work in works])
        raise failed  # out here: without the group around it

    def _one(self, job: Job, given: GraphMemoryContext | None) -> Played:
        tracer = self._tracer(job)
        ended = self._invoked(job, tracer, given)
        return self._kept(job, tracer, ended)

    def _invoked(self, job: Job, tracer: Tracer, given: GraphMemoryContext | None) -> RolloutRecord | Exception:
        try:
            graph, config = self._graph(job), self._config(job, tracer)
            return _record(bounded(lambda: graph.invoke(_input(job), config, context=given), self.timeout))
        except UsageError:
            raise
        except Exception as error:
            return error

    def _kept(self, job: Job, tracer: Tracer, ended: RolloutRecord | Exception) -> Played:
        played = _played(job, tracer.last, ended, self.timeout)
        if self.traces is not None and played.trace is not None:
            self.traces.add(played.trace)
        return played

    async def _aone(self, job: Job, given: GraphMemoryContext | None) -> Played:
        tracer = self._tracer(job)
        ended: RolloutRecord | Exception
        try:
            async with asyncio.timeout(self.timeout):
                ended = _record(await self._graph(job).ainvoke(_input(job), self._config(job, tracer), context=given))
        except UsageError:
            raise
        except Exception as error:
            ended = error
        played = _played(job, tracer.last, ended, self.timeout)
        if self.traces is not None and played.trace is not None:
            await self.traces.aadd(played.trace)
        return played

    def _graph(self, job: Job) -> RolloutGraph:
        return self.rollout if isinstance(self.rollout, CompiledStateGraph) else self.rollout(job)

    def _tracer(self, job: Job) -> Tracer:
        shown = job.guidance.strategies if job.guidance else ()
        about: dict[str, JsonValue] = {
            **job.task.metadata,
            "arm": job.arm,
            "query_id": job.task.query_id,
            "k": len(shown),
            "strategies": [[str(each.id), each.version, each.relevance, each.probability] for each in shown],
        }
        return Tracer(
            run=self.run, group=_group(job), replica=job.replica, iteration=job.iteration, metadata=about, keep=1
        )

    def _config(self, job: Job, tracer: Tracer) -> RunnableConfig:
        """Return the configuration of a rollout; tools and policies that draw find in `memweave_episode` what by."""
        number = job.replica if job.pair is None else job.pair
        place = {"memweave_episode": f"{self.run}/{job.iteration}/{_group(job)}/{number}"}
        pair = {} if job.pair is None else {"memweave_pair": str(job.pair)}
        return RunnableConfig(callbacks=[tracer], metadata={**place, **pair})


def _group(job: Job) -> str:
    """Return the name of the query's traces: its id, or as much of its text as a name may have."""
    return job.task.query_id or " ".join(job.task.text.split())[:200]


def _input(job: Job) -> RolloutInput:
    return {
        "query": job.task.text,
        "guidance": job.guidance,
        "arm": job.arm,
        "query_id": job.task.query_id,
        "ground_truth": list(job.task.ground_truth),
        "family": job.task.family,
        "history": [
            HumanMessage(said.text) if said.role == "user" else AIMessage(said.text) for said in job.task.history
        ],
    }


def _given_context() -> GraphMemoryContext | None:
    """Return the run context of the graph that asks for rollouts: its prompts hold for them too."""
    try:
        given = get_runtime().context
    except (RuntimeError, KeyError):  # outside any graph
        return None
    return cast("GraphMemoryContext | None", given)


def _detached() -> contextvars.Context:
    """Return a context in which a rollout is a run of its own, not a part of the graph that asks for it."""
    context = contextvars.copy_context()
    context.run(var_child_runnable_config.set, None)
    return context


def _record(output: Any) -> RolloutRecord:
    record = output.get("record")
    if not isinstance(record, RolloutRecord):
        raise UsageError("a rollout has stopped to ask a person: leave tools that do that out of rollouts")
    return record


def _played(job: Job, trace: Trace | None, ended: RolloutRecord | Exception, timeout: float) -> Played:
    trace_id = str(trace.id) if trace else None
    if isinstance(ended, Exception):
        failed = _failure(job, ended, trace_id, timeout)
        return Played(record=None, trace=trace, failure=failed, query_id=job.task.query_id)
    if trace is not None and ended.reward is not None:
        trace = trace.model_copy(update={"score": Score(value=ended.reward)})
    failure = None
    if ended.reward is None:
        why = ended.verdict.reason or "there is neither a right answer nor anything else that could tell"
        failure = Failure(kind="no_reward", reason=why, query_id=job.task.query_id, trace_id=trace_id)
    return Played(record=ended, trace=trace, failure=failure, query_id=job.task.query_id)


def _failure(job: Job, error: Exception, trace_id: str | None, timeout: float) -> Failure:
    kind: FailureKind = "error"
    reason = error_line(error)
    if isinstance(error, UnavailableError):
        kind, reason = "unavailable", str(error)
    elif isinstance(error, TimeoutError):
        kind, reason = "timeout", f"the rollout did not end within {timeout:g} s"
    return Failure(kind=kind, reason=reason, query_id=job.task.query_id, trace_id=trace_id)


def _some(played: list[Played]) -> list[Played]:
    """Return the rollouts. Raises `UnavailableError` when all of them failed for a server that is away."""
    failures = [each.failure for each in played if each.failure and each.failure.kind == "unavailable"]
    if played and len(failures) == len(played):
        raise UnavailableError(f"no rollout could be made: {failures[0].reason}")
    return played

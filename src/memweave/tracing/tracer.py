"""`Tracer`: a callback that turns every LangGraph run into a `Trace`.

    tracer = Tracer()
    graph.invoke(input, {"callbacks": [tracer]})
    tracer.last.generations[0].token_ids

It relies on run metadata alone (`langgraph_node`, `langgraph_step`, `langgraph_checkpoint_ns`, and ours, `memweave_*`),
so it works on any graph, under any way of running it, from any thread. It does not know what a graph computes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult

from memweave.errors import UnavailableError, UsageError
from memweave.records import new_id, utc_now
from memweave.tracing import reading
from memweave.tracing.attribution import MEMORY_OP_EVENT, Finished, memory_event, written_by
from memweave.tracing.records import ChatMessage, Generation, MemoryEvent, MemoryRef, Trace, TraceStatus

if TYPE_CHECKING:
    from memweave.tracing.store import TraceStore
    from memweave.tracing.writer import TraceWriter

KEPT_WITH_STORE: Final = 100
"""Latest traces that a tracer with a store keeps in memory."""
UNFINISHED: Final = "the run ended before the model replied"
_NOT_OURS: Final = ("langgraph_", "ls_", "lc_", "memweave_", "checkpoint_", "__")
_STALE_RUNS: Final = 10_000
"""Runs of finished traces that are remembered, so that what one of them still starts is no run of its own."""


@dataclass(slots=True)
class _Call:
    """A model call that has not ended."""

    index: int
    metadata: Mapping[str, Any]
    messages: tuple[ChatMessage, ...]
    parameters: Mapping[str, Any]
    started_at: datetime
    clock: float


@dataclass(slots=True)
class _Open:
    """A root run that has not ended."""

    id: UUID
    root: UUID
    name: str | None
    metadata: Mapping[str, Any]
    started_at: datetime
    runs: set[UUID] = field(default_factory=set)
    """The root and all runs below it, ended or not: one that has ended may still have children."""
    calls: dict[UUID, _Call] = field(default_factory=dict)
    next_index: int = 0
    finished: list[Finished] = field(default_factory=list)
    """Model calls in the order in which they ended."""
    events: list[MemoryEvent] = field(default_factory=list)
    written: dict[int, list[MemoryRef]] = field(default_factory=dict)


class Tracer(BaseCallbackHandler):
    """Collect a `Trace` of every root run; with a `store`, also write it there, in the background.

    run, group, replica, iteration: which training run and episode the traces belong to; by default what the run's
    metadata says (`memweave_episode`).  metadata: kept with every trace, beside the run's own.  keep: latest traces kept
    in memory; by default all, or with a store 100.

    One tracer may follow any number of concurrent runs, from threads and event loops. With a store, call `flush` (or
    leave the `with` block) before relying on what is on disk: that is where a full disk is reported.
    """

    run_inline = True
    """Called in the order of events, on the thread (or loop) that runs the graph."""
    raise_error = True
    """A fault here fails the run: a trace with a hole must not pass for a whole one."""

    def __init__(
        self,
        store: TraceStore | None = None,
        *,
        run: str | None = None,
        group: str | None = None,
        replica: int | None = None,
        iteration: int | None = None,
        metadata: Mapping[str, object] | None = None,
        keep: int | None = None,
    ) -> None:
        if keep is not None and keep < 1:
            raise UsageError(f"keep={keep}: a tracer keeps at least its last trace; leave it out to keep all")
        given = {"run": run, "group": group, "replica": replica, "iteration": iteration}
        self._given = {name: value for name, value in given.items() if value is not None}
        self._metadata = {key: reading.plain(value) for key, value in (metadata or {}).items()}
        self._lock = threading.RLock()
        self._roots: dict[UUID, _Open] = {}
        self._of: dict[UUID, _Open] = {}
        self._stale: dict[UUID, None] = {}
        self._traces: deque[Trace] = deque(maxlen=keep or (KEPT_WITH_STORE if store is not None else None))
        self._writer = _writer(store) if store is not None else None

    # what came of it

    @property
    def traces(self) -> list[Trace]:
        """Return the finished traces, oldest first."""
        with self._lock:
            return list(self._traces)

    @property
    def last(self) -> Trace | None:
        """Return the trace that finished last; `None` before the first."""
        with self._lock:
            return self._traces[-1] if self._traces else None

    def take(self) -> list[Trace]:
        """Return the finished traces, oldest first, and forget them here."""
        with self._lock:
            taken = list(self._traces)
            self._traces.clear()
        return taken

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until every finished trace is on disk.

        timeout: seconds.  Raises what kept a trace from being written (`StorageFullError` with the path) and keeps the
        trace, so that the next `flush` tries again; `UnavailableError` when the time is over.
        """
        if self._writer is not None:
            self._writer.flush(timeout)

    async def aflush(self, timeout: float = 30.0) -> None:  # noqa: ASYNC109 - the same parameter as `flush`
        """Wait as `flush` does, without blocking the event loop."""
        if self._writer is not None:
            await asyncio.to_thread(self._writer.flush, timeout)

    def close(self, timeout: float = 30.0) -> None:
        """Flush, and end the background writer; the store stays open."""
        if self._writer is not None:
            self._writer.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # runs

    def _begin(
        self, run_id: UUID, parent: UUID | None, kwargs: Mapping[str, Any], *, name: bool = True
    ) -> _Open | None:
        """Register a run; return the root run that it belongs to, `None` if that has ended already."""
        if parent in self._stale:
            self._set_stale(run_id)
            return None
        opened = self._of.get(parent) if parent is not None else None
        if opened is None:
            called = reading.text_or_none(kwargs.get("name")) if name else None
            opened = _Open(new_id(), run_id, called, kwargs.get("metadata") or {}, utc_now())
            self._roots[run_id] = opened
        opened.runs.add(run_id)
        self._of[run_id] = opened
        return opened

    def _end(self, run_id: UUID, error: BaseException | None) -> None:
        """With the end of a root run, its trace is finished, whatever of it is still at work somewhere."""
        with self._lock:
            opened = self._roots.pop(run_id, None)
            if opened is None:
                return
            for run in opened.runs:
                self._of.pop(run, None)
                self._set_stale(run)
            trace = self._finished(opened, error)
            self._traces.append(trace)
        if self._writer is not None:
            self._writer.put(trace)

    def _set_stale(self, run_id: UUID) -> None:
        self._stale[run_id] = None
        while len(self._stale) > _STALE_RUNS:
            del self._stale[next(iter(self._stale))]

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Begin a chain: a graph, a node, or anything else that may call a model."""
        with self._lock:
            self._begin(run_id, parent_run_id, kwargs)

    def on_tool_start(
        self, serialized: Any, input_str: str, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Begin a tool."""
        with self._lock:
            self._begin(run_id, parent_run_id, kwargs)

    def on_retriever_start(
        self, serialized: Any, query: str, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Begin a retriever."""
        with self._lock:
            self._begin(run_id, parent_run_id, kwargs)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """End a chain."""
        self._end(run_id, None)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """End a tool."""
        self._end(run_id, None)

    def on_retriever_end(self, documents: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """End a retriever."""
        self._end(run_id, None)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """End a chain that failed."""
        self._end(run_id, error)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """End a tool that failed."""
        self._end(run_id, error)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """End a retriever that failed."""
        self._end(run_id, error)

    # model calls

    def on_chat_model_start(
        self,
        serialized: Any,
        messages: Sequence[Sequence[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin a call of a chat model."""
        shown = reading.chat_messages(messages[0]) if messages else ()
        self._begin_call(shown, run_id, parent_run_id, kwargs)

    def on_llm_start(
        self,
        serialized: Any,
        prompts: Sequence[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin a call of a model that is no chat model."""
        shown = tuple(ChatMessage(role="user", text=reading.clean(prompt)) for prompt in prompts)
        self._begin_call(shown, run_id, parent_run_id, kwargs)

    def _begin_call(
        self, shown: tuple[ChatMessage, ...], run_id: UUID, parent: UUID | None, kwargs: Mapping[str, Any]
    ) -> None:
        metadata, parameters = kwargs.get("metadata") or {}, kwargs.get("invocation_params") or {}
        with self._lock:
            opened = self._begin(run_id, parent, kwargs, name=False)
            if opened is None:
                return
            opened.calls[run_id] = _Call(opened.next_index, metadata, shown, parameters, utc_now(), time.perf_counter())
            opened.next_index += 1

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """End a model call with its reply."""
        self._end_call(run_id, response, None)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """End a model call that failed."""
        self._end_call(run_id, None, error)

    def _end_call(self, run_id: UUID, response: LLMResult | None, error: BaseException | None) -> None:
        with self._lock:
            opened = self._of.get(run_id)
            call = opened.calls.pop(run_id, None) if opened is not None else None
        if opened is not None and call is not None:
            said = None if error is None else reading.error_line(error)
            done = Finished(_generation(call, response, said), ok=error is None)
            with self._lock:
                opened.finished.append(done)
        self._end(run_id, error)

    # memory

    def on_custom_event(
        self, name: str, data: Any, *, run_id: UUID, metadata: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Take in a memory operation, and find the reply that asked for it."""
        if name != MEMORY_OP_EVENT or not isinstance(data, Mapping):
            return
        with self._lock:
            opened = self._of.get(run_id)
            if opened is None:
                return
            place = metadata or {}
            asked = written_by(
                opened.finished,
                role=reading.text_or_none(data.get("role")),
                namespace=str(place.get("langgraph_checkpoint_ns") or ""),
                step=place.get("langgraph_step"),
            )
            event = memory_event(data, generation=asked)
            opened.events.append(event)
            if asked is not None and event.memory and event.status == "applied" and event.kind in ("ADD", "UPDATE"):
                opened.written.setdefault(asked, []).append(event.memory)

    def _finished(self, opened: _Open, error: BaseException | None) -> Trace:
        generations = [done.generation for done in opened.finished]
        generations += [_generation(call, None, UNFINISHED) for call in opened.calls.values()]
        for place, generation in enumerate(generations):
            if refs := opened.written.get(generation.index):
                generations[place] = generation.model_copy(update={"memories_written": tuple(refs)})
        named = reading.episode(opened.metadata.get("memweave_episode")) or {}
        thread = opened.metadata.get("thread_id")
        return Trace.model_validate(
            {
                **named,
                **self._given,
                "id": opened.id,
                "graph": opened.name,
                "thread": None if thread is None else reading.clean(str(thread)),
                "status": _status(error),
                "error": None if error is None else reading.error_line(error),
                "generations": tuple(sorted(generations, key=lambda generation: generation.index)),
                "memory_events": tuple(opened.events),
                "started_at": opened.started_at,
                "ended_at": utc_now(),
                "metadata": {**_own(opened.metadata), **self._metadata},
            }
        )


def _writer(store: TraceStore) -> TraceWriter:
    from memweave.tracing.writer import TraceWriter

    return TraceWriter(store)


def _generation(call: _Call, response: LLMResult | None, error: str | None) -> Generation:
    reply = reading.reply_of(response) if response is not None else ""
    message = reply if isinstance(reply, BaseMessage) else None
    info: Mapping[str, Any] = message.response_metadata if message is not None else {}
    metadata = call.metadata
    ids = reading.token_ids(info.get("token_ids"))
    step, stage = metadata.get("langgraph_step"), metadata.get("memweave_stage")
    return Generation(
        index=call.index,
        node=reading.text_or_none(metadata.get("langgraph_node")),
        role=reading.text_or_none(metadata.get("memweave_role")),
        step=step if isinstance(step, int) else None,
        stage=stage if isinstance(stage, int) and stage >= 0 else None,
        namespace=str(metadata.get("langgraph_checkpoint_ns") or ""),
        policy=_policy(info, metadata),
        policy_version=reading.text_or_none(info.get("policy_version")),
        prompt_hash=reading.text_or_none(metadata.get("memweave_prompt_hash")),
        prompt_token_ids=reading.token_ids(info.get("prompt_token_ids")),
        token_ids=ids,
        # Log-probabilities of tokens that nobody knows (a hosted model's) are of no use and could be mistaken for some.
        logprobs=reading.log_probabilities(info.get("token_logprobs")) if ids is not None else None,
        sampling=reading.sampling_of(info.get("sampling"), call.parameters),
        messages=call.messages,
        reply=reading.clean(message.text if message is not None else str(reply)),
        tool_calls=reading.tool_calls(message) if message is not None else (),
        memories_read=reading.memory_refs(metadata.get("memweave_memories")),
        finish_reason=reading.text_or_none(info.get("finish_reason") or info.get("stop_reason")),
        started_at=call.started_at,
        seconds=time.perf_counter() - call.clock,
        error=error,
    )


def _policy(info: Mapping[str, Any], metadata: Mapping[str, Any]) -> str | None:
    named = (info.get("policy"), info.get("model_name"), info.get("model"), metadata.get("ls_model_name"))
    return next((text for value in named if (text := reading.text_or_none(value))), None)


def _status(error: BaseException | None) -> TraceStatus:
    """Return how a run ended; a server that did not answer counts as such wherever it stands in the chain of causes."""
    if error is None:
        return TraceStatus.OK
    if _caused_by(error, UnavailableError):
        return TraceStatus.UNAVAILABLE
    if isinstance(error, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt):
        return TraceStatus.CANCELLED
    return TraceStatus.TIMEOUT if isinstance(error, TimeoutError) else TraceStatus.FAILED


def _caused_by(error: BaseException | None, kind: type[BaseException], depth: int = 20) -> bool:
    if error is None or depth == 0:
        return False
    inside = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return isinstance(error, kind) or any(_caused_by(each, kind, depth - 1) for each in (error.__cause__, *inside))


def _own(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the caller put into the run's metadata, without what LangGraph, LangChain and we put there."""
    kept = {key: reading.plain(value) for key, value in metadata.items() if not str(key).startswith(_NOT_OURS)}
    kept.pop("thread_id", None)
    if reading.episode(name := metadata.get("memweave_episode")) is None and name is not None:
        kept["memweave_episode"] = reading.plain(name)
    return kept

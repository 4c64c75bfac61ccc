"""What our graphs share: whose data a run is about, which bank it uses, and nodes that run sync and async alike.

This module does not know any one system.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.config import get_config
from langgraph.runtime import Runtime, get_runtime
from pydantic import ValidationError
from typing_extensions import TypedDict

from memweave.errors import InputError, ScopeError
from memweave.memory_stores import MemoryStore, bank_in_use
from memweave.records import MemoryOp, Scope, new_id
from memweave.tracing.attribution import MEMORY_OP_EVENT

StateT = TypeVar("StateT")
UpdateT = TypeVar("UpdateT")


@dataclass(frozen=True)
class Home:
    """Whose data a run is about when it does not say so itself; without a user, every run has to name one."""

    tenant: str = "default"
    user: str | None = None


DefaultScope = Scope | Home | None
"""Whose data, for runs that do not say: a scope, a tenant alone, or nobody's."""

BankSource = MemoryStore | Callable[[], MemoryStore]
"""A bank (or a branch of one), or how to open it when it is first needed."""


class LazyBank:
    """A bank that is opened on first use, once, and never on the event loop. Inside `use_bank`, that one instead."""

    def __init__(self, source: BankSource) -> None:
        self._source = source
        self._lock = threading.Lock()

    def get(self) -> MemoryStore:
        """Return the bank."""
        if (given := bank_in_use()) is not None:
            return given
        with self._lock:
            if not isinstance(self._source, MemoryStore):
                self._source = self._source()
            return self._source

    async def aget(self) -> MemoryStore:
        """Return the bank; opening it happens in a thread."""
        if (given := bank_in_use()) is not None:
            return given
        if isinstance(self._source, MemoryStore):
            return self._source
        return await asyncio.to_thread(self.get)


class Node(Runnable[StateT, UpdateT], Generic[StateT, UpdateT]):
    """A node with a sync and an async form, so that a graph works under `invoke` and `ainvoke`.

    `RunnableLambda` does this too, at twice the cost per step (it opens a run of its own; the graph has opened one).
    """

    def __init__(
        self,
        name: str,
        sync: Callable[[StateT, RunnableConfig], UpdateT],
        async_: Callable[[StateT, RunnableConfig], Awaitable[UpdateT]],
    ) -> None:
        self.name = name
        self._sync = sync
        self._async = async_

    def invoke(self, input: StateT, config: RunnableConfig | None = None, **kwargs: Any) -> UpdateT:
        """Run the sync form."""
        return self._sync(input, config or RunnableConfig())

    async def ainvoke(self, input: StateT, config: RunnableConfig | None = None, **kwargs: Any) -> UpdateT:
        """Run the async form."""
        return await self._async(input, config or RunnableConfig())


def quiet_known_types() -> None:
    """Let checkpoints of our records be read back without a warning.

    LangGraph warns about every type that is not its own, unless it runs in strict mode, where it takes the types from the
    state's schema. Ours are in the schemas.
    """
    logger = logging.getLogger("langgraph.checkpoint.serde.jsonplus")
    if _not_ours not in logger.filters:
        logger.addFilter(_not_ours)


def _not_ours(record: logging.LogRecord) -> bool:
    ours = isinstance(record.args, tuple) and record.args and str(record.args[0]).startswith("memweave.")
    return not (ours and record.msg.startswith("Deserializing unregistered type"))


def current_scope(default: DefaultScope) -> Scope:
    """Return whose data the current run is about.

    The server's authenticated user, where there is one, wins. Otherwise the run's context says it (`user`, `tenant`),
    and where it does not, `default`.

    Raises `ScopeError` when nobody says it, or when the context names somebody else than the authenticated user.
    """
    runtime = get_runtime()
    user, tenant = _named(runtime.context, "user"), _named(runtime.context, "tenant")
    home = default.tenant if default else "default"
    identity = _identity(runtime)
    if identity is not None:
        _refuse_other("user", user, identity[1])
        _refuse_other("tenant", tenant, identity[0] or home)
        return _scope(identity[0] or home, identity[1])
    owner = user or (default.user if default else None)
    if owner is None:
        raise ScopeError("Whose memories? Pass context={'user': '...'} with the run, or give the graph a scope")
    return _scope(tenant or home, owner)


def current_run_id(config: RunnableConfig) -> str:
    """Return the id under which a run's operations are logged: the server's run id, or a new one."""
    info = get_runtime().execution_info
    given = (info.run_id if info else None) or config.get("run_id")
    return str(given or new_id())


def current_thread(config: RunnableConfig) -> str | None:
    """Return the id of the thread that the run belongs to, if it has one."""
    thread = (config.get("configurable") or {}).get("thread_id")
    return None if thread is None else str(thread)


def new_messages(messages: Sequence[BaseMessage]) -> list[HumanMessage]:
    """Return the user's messages since the last reply.

    Raises `InputError` when there is none.
    """
    new: list[HumanMessage] = []
    for message in reversed(messages):
        if not isinstance(message, HumanMessage):
            break
        new.insert(0, message)
    if not new:
        raise InputError("There is nothing new to reply to: the last message has to be the user's")
    return new


class MemoryEvent(TypedDict):
    """What `stream_mode="custom"` yields for every memory operation, at the moment it is logged."""

    type: Literal["memory_op"]
    id: str
    """Of the operation: what `undo` takes."""
    kind: str
    status: str
    text: str | None
    """The memory after the operation, or before it when it is deleted."""
    before: str | None
    """The memory before an UPDATE or DELETE."""
    reason: str
    actor: str
    error: str | None
    memory_id: str | None
    dialogue: str
    source_ids: list[str]
    """Ids of the messages that it came from."""
    run_id: str | None


def emit(ops: Iterable[MemoryOp], dialogue: str) -> None:
    """Write one `MemoryEvent` per operation to the run's custom stream."""
    write = get_runtime().stream_writer
    for op in ops:
        write(_event(op, dialogue))


def report(ops: Iterable[MemoryOp], dialogue: str, role: str) -> None:
    """Tell the run's callbacks of operations that `role` decided on: a tracer joins them to the reply that asked for them.

    Each is a custom event `memweave.memory_op`: a `MemoryEvent` with `role`, and the `version` that it left or closed.
    """
    if not listened_to():
        return
    for op in ops:
        dispatch_custom_event(MEMORY_OP_EVENT, _reported(op, dialogue, role))


async def areport(ops: Iterable[MemoryOp], dialogue: str, role: str) -> None:
    """Tell the run's callbacks of operations, as `report` does."""
    if not listened_to():
        return
    for op in ops:
        await adispatch_custom_event(MEMORY_OP_EVENT, _reported(op, dialogue, role))


def listened_to() -> bool:
    """Return whether any callback could take an event in."""
    callbacks = get_config().get("callbacks")
    return bool(callbacks if isinstance(callbacks, list) else getattr(callbacks, "handlers", None))


def _event(op: MemoryOp, dialogue: str) -> MemoryEvent:
    side = op.after or op.before
    return MemoryEvent(
        type="memory_op",
        id=str(op.id),
        kind=op.kind.value,
        status=op.status.value,
        text=side.text if side else None,
        before=op.before.text if op.before else None,
        reason=op.reason,
        actor=op.actor,
        error=op.error,
        memory_id=str(op.memory_id) if op.memory_id else None,
        dialogue=dialogue,
        source_ids=list(op.source_ids),
        run_id=op.run_id,
    )


def _reported(op: MemoryOp, dialogue: str, role: str) -> dict[str, object]:
    side = op.after or op.before
    return {**_event(op, dialogue), "role": role, "version": side.version if side else None}


def _identity(runtime: Runtime[Any]) -> tuple[str | None, str] | None:
    """Return (tenant or `None`, user) of the server's authenticated user; `None` without authentication."""
    user = runtime.server_info.user if runtime.server_info else None
    if user is None or not user.identity:
        return None
    tenant = user["tenant"] if "tenant" in user else None  # noqa: SIM401 - this user is no dict and has no get()
    return (None if tenant is None else str(tenant)), user.identity


def _named(context: object, field: str) -> str | None:
    value = context.get(field) if isinstance(context, Mapping) else getattr(context, field, None)
    return value if isinstance(value, str) and value else None


def _refuse_other(what: str, named: str | None, authenticated: str) -> None:
    if named is not None and named != authenticated:
        raise ScopeError(f"You are authenticated as {what} {authenticated!r}, so the run cannot be for {named!r}")


def _scope(tenant: str, user: str) -> Scope:
    try:
        return Scope(tenant=tenant, user=user)
    except ValidationError as error:
        where = error.errors()[0]
        raise ScopeError(f"{where['loc'][0]} {where['input']!r:.60} cannot be used: {where['msg']}") from None

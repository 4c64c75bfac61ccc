"""Which reply asked for a memory operation: what joins a later reward to the write that earned it.

An operation belongs to the last reply of its role in the same place of the graph. The place is the checkpoint
namespace: `sub:1|apply:2` is the task `apply:2` in the graph that the task `sub:1` runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from pydantic import ValidationError

from memweave.tracing.reading import clean, text_or_none
from memweave.tracing.records import Generation, MemoryEvent, MemoryRef

MEMORY_OP_EVENT: Final = "memweave.memory_op"
"""Name of the custom callback event that reports a memory operation."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A model call that has ended. ok: it brought a reply."""

    generation: Generation
    ok: bool


def written_by(finished: Sequence[Finished], *, role: str | None, namespace: str, step: int | None) -> int | None:
    """Return the index of the generation whose reply asked for an operation; `None` when no model did.

    finished: calls in the order in which they ended.  role: whose operation it is; `None` for any.  namespace, step: of the
    task that logged it.  A reply of the same task (or of a graph that it runs) comes first, then one of an earlier task
    of the same graph. A branch that runs beside the task is never the author, and neither is another graph.
    """
    own = [done.generation for done in finished if done.ok and role in (None, done.generation.actor)]
    for generation in reversed(own):
        if generation.namespace == namespace or (namespace and generation.namespace.startswith(f"{namespace}|")):
            return generation.index
    for generation in reversed(own):
        if namespace and generation.namespace and parent(generation.namespace) == parent(namespace):
            earlier = step is None or generation.step is None or generation.step < step
            if earlier:
                return generation.index
    return None


def parent(namespace: str) -> str:
    """Return the namespace of the graph that a task belongs to; empty for the outermost."""
    return namespace.rpartition("|")[0]


def memory_event(data: Mapping[str, Any], *, generation: int | None) -> MemoryEvent:
    """Return the record of a reported operation. Raises `ValueError` when it has no id or kind."""
    memory = None
    if data.get("memory_id") is not None and data.get("version") is not None:
        memory = MemoryRef(id=UUID(str(data["memory_id"])), version=data["version"])
    try:
        return MemoryEvent(
            op_id=str(data["id"]),
            kind=str(data["kind"]),
            status=str(data["status"]),
            memory=memory,
            text=None if data.get("text") is None else clean(str(data["text"])),
            reason=clean(str(data.get("reason") or "")),
            actor=text_or_none(data.get("actor")),
            error=text_or_none(data.get("error")),
            generation=generation,
        )
    except (KeyError, ValidationError) as error:
        raise ValueError(f"the event {MEMORY_OP_EVENT} is incomplete: {error}") from error

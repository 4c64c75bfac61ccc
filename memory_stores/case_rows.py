"""A case as a memory, and back: the task is the text, everything else is its metadata."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from pydantic import JsonValue

from memweave.records import Case, Memory, NewCase

_KEY: Final = "case"


def memory_text(task: str) -> str:
    """Return the text of the memory, which is also what is embedded."""
    return task


def metadata_of(case: NewCase) -> dict[str, JsonValue]:
    """Return what of a case is no text."""
    kept = case.model_dump(mode="json", exclude={"task"}, exclude_defaults=True)
    return {_KEY: {**kept, "reward": case.reward}}


def case_of(memory: Memory) -> Case:
    """Return the case in a memory of the collection; trusts the ledger and validates nothing."""
    kept: Any = memory.metadata[_KEY]  # written by `metadata_of`
    given: dict[str, Any] = {**kept, "plans": tuple(kept.get("plans") or ())}
    return Case.model_construct(
        id=UUID(int=memory.id.int), scope=memory.scope, recorded_at=memory.recorded_at, task=memory.text, **given
    )

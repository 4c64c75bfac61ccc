"""Every record that crosses a seam or is written to disk.

Records are frozen. Inputs (`Turn`, `ProposedOp`) are separate from what the ledger logs (`Memory`, `MemoryOp`). Times are UTC-aware
datetimes; a source that gave no time zone keeps `observed_naive=True`. A missing value is `None`, never 0 or an empty string.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Final, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

RECORD_FORMAT: Final = 1
"""Version of everything memweave writes to disk; raised when a reader of the old one would misread the new one."""

MAX_TEXT: Final = 1_000_000
"""Longest text of one turn or memory, in characters."""


def new_id() -> UUID:
    """Return a UUIDv7: 48 bits of Unix milliseconds, then 74 random bits, so that ids sort by creation time."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)


def utc_now() -> datetime:
    """Return the current time, UTC-aware."""
    return datetime.now(UTC)


def as_utc(value: datetime) -> datetime:
    """Return `value` in UTC; a naive time is read as UTC."""
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _printable(value: str) -> str:
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise ValueError("must not contain control characters")
    return value


def _storable(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain the NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"is not valid Unicode (lone surrogate at character {error.start})") from error
    return value


UtcTime = Annotated[datetime, AfterValidator(as_utc)]
Name = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_printable)]
"""An identifier that a caller chooses: tenant, user, dialogue, speaker, actor."""
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT), AfterValidator(_storable)]
Context = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_storable)]


class Record(BaseModel):
    """Base of all records: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Scope(Record):
    """Whose data it is. Every read and write carries one, and nothing crosses it."""

    tenant: Name = "default"
    user: Name

    def partition(self, collection: str = "memories") -> str:
        """Return the index key of this scope in `collection`: 32 hex digits that do not reveal the user."""
        return _partition(self.tenant, self.user, collection)

    def __str__(self) -> str:
        return f"{self.tenant}/{self.user}"


@lru_cache(maxsize=65_536)
def _partition(tenant: str, user: str, collection: str) -> str:
    return hashlib.blake2b(f"{collection}\0{tenant}\0{user}".encode(), digest_size=16).hexdigest()


class Trust(StrEnum):
    """Where a text came from, from most to least trusted."""

    USER = "user"
    AGENT = "agent"
    TOOL = "tool"
    IMPORT = "import"
    WEB = "web"


class OpKind(StrEnum):
    """What an operation does to a memory (Memory-R1, section 3.1)."""

    ADD = "ADD"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    NOOP = "NOOP"


class OpStatus(StrEnum):
    """Whether an operation took effect. A failed one is logged and changed nothing."""

    APPLIED = "applied"
    FAILED = "failed"


class TurnStatus(StrEnum):
    """Where a turn is on its way into memory."""

    PENDING = "pending"
    """Accepted and durable; not yet turned into operations, or the last attempt failed and may be retried."""
    DONE = "done"


TURN_TRANSITIONS: Final[dict[TurnStatus, frozenset[TurnStatus]]] = {
    TurnStatus.PENDING: frozenset({TurnStatus.PENDING, TurnStatus.DONE}),
    TurnStatus.DONE: frozenset(),
}


class Turn(Record):
    """One message of a conversation, as it came in."""

    source_id: Name
    """The caller's id of this message, unique within the dialogue; repeating it is a no-op."""
    dialogue: Name = "default"
    speaker: Name
    text: Text
    observed_at: UtcTime | None = None
    """When it was said."""
    observed_naive: bool = False
    """The source gave no time zone; `observed_at` reads it as UTC."""
    previous: Context | None = None
    """Text of the message before it, if any: helps to find the turn, is not part of it."""
    trust: Trust = Trust.USER

    @model_validator(mode="before")
    @classmethod
    def _flag_naive(cls, data: Any) -> Any:
        """Set `observed_naive` when the given time has no zone and the flag was not given."""
        if isinstance(data, dict) and "observed_naive" not in data:
            value = data.get("observed_at")
            if isinstance(value, str):
                try:
                    value = datetime.fromisoformat(value)
                except ValueError:
                    return data  # field validation reports it
            if isinstance(value, datetime) and value.tzinfo is None:
                return {**data, "observed_naive": True}
        return data


class StoredTurn(Turn):
    """A turn in the ledger."""

    scope: Scope
    position: int
    """Order of arrival within the ledger."""
    status: TurnStatus
    attempts: int
    """Failed attempts so far."""
    error: str | None
    """Why the last attempt failed."""


class Memory(Record):
    """One version of one memory.

    World time (`observed_at`, `valid_from`, `valid_to`) says when something happened or held; ledger time (`recorded_at`,
    `closed_at`) says when this version was the current one. They are independent (bi-temporal).
    """

    id: UUID
    version: int = Field(ge=1)
    scope: Scope
    text: Text
    speaker: Name | None = None
    """Whose memory it is: the participant it was learned from."""
    dialogue: Name | None = None
    context: Context | None = None
    """Text around the memory at its source (the message before); searched, not shown to the model."""
    source_ids: tuple[str, ...] = ()
    observed_at: UtcTime | None = None
    observed_naive: bool = False
    valid_from: UtcTime | None = None
    valid_to: UtcTime | None = None
    """First moment at which it no longer holds."""
    trust: Trust = Trust.USER
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    recorded_at: UtcTime
    closed_at: UtcTime | None = None
    """When a later version or a deletion replaced it; `None` while current."""


class ProposedOp(Record):
    """An operation that a policy, a person or a program wants applied.

    ADD needs `text`; UPDATE needs `memory_id` and `text`; DELETE needs `memory_id`; NOOP may name the memory that already says it.
    For an UPDATE, a field left at `None` keeps the old version's value.
    """

    kind: OpKind
    memory_id: UUID | None = None
    text: Text | None = None
    reason: Annotated[str, Field(min_length=1, max_length=2_000), AfterValidator(_storable)]
    """Why, in one sentence; shown by `memory log`."""
    actor: Name
    """Who decided: `rule`, a model name, `user:anna`."""
    policy_version: Name | None = None
    source_ids: tuple[str, ...] = ()
    run_id: Name | None = None
    speaker: Name | None = None
    dialogue: Name | None = None
    context: Context | None = None
    observed_at: UtcTime | None = None
    observed_naive: bool | None = None
    valid_from: UtcTime | None = None
    valid_to: UtcTime | None = None
    trust: Trust | None = None
    metadata: dict[str, JsonValue] | None = None
    expected_version: int | None = None
    """Refuse with `ConflictError` unless the memory is at this version (compare-and-set)."""
    undoes: UUID | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind in (OpKind.UPDATE, OpKind.DELETE) and self.memory_id is None:
            raise ValueError(f"{self.kind} needs memory_id")
        if self.kind in (OpKind.ADD, OpKind.UPDATE) and not (self.text or "").strip():
            raise ValueError(f"{self.kind} needs a text that is not blank")
        return self


class MemoryOp(Record):
    """An operation in the log: what was done (or failed), by whom, why, from what, and both sides of it."""

    id: UUID
    seq: int
    """Position in the ledger; grows with every operation, over all scopes."""
    kind: OpKind
    status: OpStatus
    scope: Scope
    memory_id: UUID | None
    reason: str
    actor: str
    policy_version: str | None
    source_ids: tuple[str, ...]
    run_id: str | None
    error: str | None
    """Why it failed, when it did."""
    undoes: UUID | None
    """The operation that this one takes back."""
    before: Memory | None
    after: Memory | None
    recorded_at: UtcTime


class PurgeReceipt(Record):
    """What a purge erased, in rows."""

    memories: int
    """Versions of memories."""
    operations: int
    turns: int


class ImportReceipt(Record):
    """What an import added, in rows; zeros when everything was there already."""

    memories: int
    """Versions of memories."""
    operations: int
    turns: int


@dataclass(frozen=True, slots=True)
class MemoryHit:
    """A memory found by a search, and its fused score (higher is better; comparable within one search only)."""

    memory: Memory
    score: float


class IndexFilter(Record):
    """Which memories of a scope a search may return; all given conditions must hold."""

    speakers: tuple[str, ...] | None = None
    dialogues: tuple[str, ...] | None = None
    runs: tuple[str, ...] | None = None
    trust: tuple[Trust, ...] | None = None
    observed_from: UtcTime | None = None
    observed_to: UtcTime | None = None
    """Exclusive. A memory without `observed_at` matches no time condition."""
    valid_at: UtcTime | None = None
    """Only memories that hold at this time; an open end always matches."""

    @field_validator("speakers", "dialogues", "runs", "trust")
    @classmethod
    def _not_empty(cls, value: tuple[object, ...] | None) -> tuple[object, ...] | None:
        if value == ():
            raise ValueError("must name at least one value; use None for no condition")
        return value

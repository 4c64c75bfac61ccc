"""Every record that crosses a seam or is written to disk.

Records are frozen. Inputs (`Turn`, `ProposedOp`) are separate from what the ledger logs (`Memory`, `MemoryOp`). Times are UTC-aware
datetimes; a source that gave no time zone keeps `observed_naive=True`. A missing value is `None`, never 0 or an empty string.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
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


_id_lock = threading.Lock()
_last_tick = 0


def new_id() -> UUID:
    """Return a UUIDv7: 48 bits of Unix milliseconds, 12 bits of its fraction, 62 random bits (RFC 9562, method 3).

    Within a process ids sort in the order in which they were made, also within one millisecond and when the clock goes back.
    """
    global _last_tick
    now = time.time_ns()
    tick = now // 1_000_000 << 12 | now % 1_000_000 * 4096 // 1_000_000
    with _id_lock:
        tick = _last_tick = max(tick, _last_tick + 1)
    milliseconds, fraction = tick >> 12, tick & 0xFFF
    random = int.from_bytes(os.urandom(8), "big") >> 2
    return UUID(int=milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0x2 << 62 | random)


def utc_now() -> datetime:
    """Return the current time, UTC-aware."""
    return datetime.now(UTC)


def as_utc(value: datetime) -> datetime:
    """Return `value` in UTC; a naive time is read as UTC. Raises: ValueError when UTC has no such year."""
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{value.isoformat()} lies outside the years 1 to 9999 in UTC") from error


def storable(text: str) -> str:
    """Return a text that came from elsewhere with what cannot be stored (NUL, lone surrogates) as U+FFFD."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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


def _as_json(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise ValueError("must be JSON, which has no NaN and no infinity") from error
    _storable(text)
    return value


UtcTime = Annotated[datetime, AfterValidator(as_utc)]
Name = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_printable)]
"""An identifier that a caller chooses: tenant, user, dialogue, speaker, actor."""
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT), AfterValidator(_storable)]
Context = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_storable)]
Metadata = Annotated[dict[str, JsonValue], AfterValidator(_as_json)]
"""Whatever the caller wants to keep beside a memory."""


class Record(BaseModel):
    """Base of all records: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _flag_naive(data: Any) -> Any:
    """Set `observed_naive` for a given `observed_at`, unless the flag is given too."""
    if isinstance(data, dict) and data.get("observed_naive") is None:
        value = data.get("observed_at")
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                return data  # field validation reports it
        if isinstance(value, datetime):
            return {**data, "observed_naive": value.tzinfo is None}
    return data


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

    _flag_naive = model_validator(mode="before")(_flag_naive)


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
    source_ids: tuple[Name, ...] = ()
    observed_at: UtcTime | None = None
    observed_naive: bool = False
    valid_from: UtcTime | None = None
    valid_to: UtcTime | None = None
    """First moment at which it no longer holds."""
    trust: Trust = Trust.USER
    metadata: Metadata = Field(default_factory=dict)
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
    source_ids: tuple[Name, ...] = ()
    run_id: Name | None = None
    speaker: Name | None = None
    dialogue: Name | None = None
    context: Context | None = None
    observed_at: UtcTime | None = None
    observed_naive: bool | None = None
    valid_from: UtcTime | None = None
    valid_to: UtcTime | None = None
    trust: Trust | None = None
    metadata: Metadata | None = None
    expected_version: int | None = None
    """Refuse with `ConflictError` unless the memory is at this version (compare-and-set)."""
    undoes: UUID | None = None

    _flag_naive = model_validator(mode="before")(_flag_naive)

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

    speakers: tuple[Name, ...] | None = None
    dialogues: tuple[Name, ...] | None = None
    runs: tuple[Name, ...] | None = None
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


Reward = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""What an answer was worth, in [0, 1]."""


class NewCase(Record):
    """A finished task, to be written into a case bank: c = (s, a, r) (Memento, Definition 3.1)."""

    task: Text
    """s: the task's text, as it was asked."""
    plan: Text
    """a: the latest plan, as the planner wrote it (A9)."""
    plans: tuple[Text, ...] = ()
    """All plans of the run, the latest one last."""
    reward: Reward | None
    """r; `None` when nobody verified the answer."""
    task_id: Name | None = None
    """Id of the query: a query is never shown its own case, unless the bank is told to (A4)."""
    family: Name | None = None
    iteration: int | None = None
    run_id: Name | None = None
    metadata: Metadata = Field(default_factory=dict)

    @property
    def positive(self) -> bool:
        """Return whether it is shown as a positive example: r = 1 (section 3.4)."""
        return self.reward == 1.0


class Case(NewCase):
    """A case in a bank."""

    id: UUID
    scope: Scope
    recorded_at: UtcTime


class ReplayRow(Record):
    """One row of experience: a case was shown for a query, and the query got the reward (A11: the data's `truth_label`)."""

    query: Text
    task_id: Name | None = None
    case_id: UUID
    reward: Reward
    iteration: int | None = None
    run_id: Name | None = None
    probability: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of the case being drawn, given those drawn before it; `None` when the policy does not draw."""
    credit: Reward | None = None
    """What the case itself did, found by leaving it out: 1 the query was solved only with it, 0 only without it, 0.5 all the same (A5)."""

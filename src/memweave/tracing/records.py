"""What a traced run is made of: `Trace` > `Generation`, with its sampling settings, memories and score.

A trace is token-exact: `prompt_token_ids`, `token_ids` and `logprobs` are what the server used and sampled, never text that
was tokenised again. A missing value is `None`; nothing is filled in.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal, Self
from uuid import UUID

from pydantic import Field, JsonValue, model_validator

from memweave.records import Metadata, Name, Record, UtcTime

TRACE_FORMAT: Final = 1
"""Version of a stored or exported trace; raised when a reader of the old one would misread the new one."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class MemoryRef(Record):
    """One version of one memory."""

    id: UUID
    version: Annotated[int, Field(ge=1)]


class ChatMessage(Record):
    """One message of a prompt, as text."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    text: str


class Sampling(Record):
    """How a reply was sampled. `None` is the server's default, which is only harmless if it changes nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    logprobs: Literal["processed", "raw"] | None = None
    """Whether log-probabilities are of the distribution that was sampled from (`processed`: after temperature), or before
    (`raw`); `None` when the server did not say."""


class Generation(Record, ser_json_inf_nan="strings"):
    """One model call within a run."""

    index: Annotated[int, Field(ge=0)]
    """Order of start within the trace."""
    node: str | None = None
    """LangGraph node that made the call."""
    role: str | None = None
    """Role that the model played (`manager`, `answerer`, ...), if the caller said so; credit falls back to the node."""
    step: int | None = None
    """LangGraph step."""
    stage: Annotated[int, Field(ge=0)] | None = None
    """Stage of the episode in which the call was made, if the graph said so."""
    namespace: str = ""
    """Checkpoint namespace of the node: tells subgraphs and parallel branches apart."""
    policy: str | None = None
    """Name under which the server knows the policy, or the model's name."""
    policy_version: str | None = None
    """Hash of the weights that sampled the reply; `None` for a model whose weights nobody can see."""
    prompt_hash: str | None = None
    """Hash of the instructions (role prompt) in use, if the caller said so."""
    prompt_token_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    """Sampled tokens, the end token included when it was sampled."""
    logprobs: tuple[float, ...] | None = None
    """Log-probability (nat) of each sampled token, in [-inf, 0]; as long as `token_ids`."""
    sampling: Sampling = Sampling()
    messages: tuple[ChatMessage, ...] = ()
    reply: str = ""
    """The text that the graph received."""
    tool_calls: tuple[JsonValue, ...] = ()
    memories_read: tuple[MemoryRef, ...] = ()
    """Memories whose text was rendered into the prompt."""
    memories_written: tuple[MemoryRef, ...] = ()
    """Versions of memories that exist because of this reply."""
    finish_reason: str | None = None
    """`stop`, `length` (cut off at `max_tokens`), or what the server says."""
    started_at: UtcTime
    seconds: Annotated[float, Field(ge=0)] | None = None
    error: str | None = None
    """Why the call failed, when it did; then there is no reply."""

    @property
    def actor(self) -> str:
        """Return the role, else the node, else `model`: what credit is assigned by."""
        return self.role or self.node or "model"


class MemoryEvent(Record):
    """One memory operation that was logged during the run."""

    op_id: str
    kind: str
    """ADD, UPDATE, DELETE or NOOP."""
    status: str
    """`applied` or `failed`."""
    memory: MemoryRef | None = None
    """The version that it left behind; for a DELETE, the version that it closed."""
    text: str | None = None
    reason: str = ""
    actor: str | None = None
    error: str | None = None
    generation: int | None = None
    """Index of the generation whose reply asked for it."""


class Score(Record):
    """The outcome of a run: a value within a stated range, and the named parts that it was made from."""

    value: Finite
    low: Finite = 0.0
    high: Finite = 1.0
    parts: dict[str, Finite] = Field(default_factory=dict)
    """Components of the value, or the rewards of single roles (key: the role)."""

    @model_validator(mode="after")
    def _within(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"score {self.value} lies outside its range [{self.low}, {self.high}]")
        return self


class TraceStatus(StrEnum):
    """How a run ended."""

    OK = "ok"
    FAILED = "failed"
    """An exception left the graph."""
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    UNAVAILABLE = "unavailable"
    """A server that the run needed did not answer: no fault of the policy, excluded from training."""


class Trace(Record):
    """One run of a graph. Training compares traces with the same `group`."""

    id: UUID
    format: Literal[1] = TRACE_FORMAT
    graph: str | None = None
    """Name of the graph."""
    run: Name | None = None
    """Training run or application that it belongs to."""
    iteration: Annotated[int, Field(ge=0)] | None = None
    """Training step for which it was sampled."""
    group: Name | None = None
    """Task: traces of one group started from the same state and are compared with each other."""
    replica: Annotated[int, Field(ge=0)] | None = None
    """Number within the group."""
    thread: str | None = None
    status: TraceStatus = TraceStatus.OK
    error: str | None = None
    generations: tuple[Generation, ...] = ()
    memory_events: tuple[MemoryEvent, ...] = ()
    score: Score | None = None
    """`None`: not scored; such a trace is never trained on."""
    started_at: UtcTime
    ended_at: UtcTime
    metadata: Metadata = Field(default_factory=dict)

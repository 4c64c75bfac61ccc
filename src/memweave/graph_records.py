"""Records of the trainable graph memory: queries, paths, strategies, the edges between them, and what changed their weights.

Vocabulary and equations: "From Experience to Strategy" (arXiv 2511.07800), sections 3.1, 4.1 and 4.2. A path is what one rollout went
through in a finite-state machine; a strategy is the paper's meta-cognition.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Final, Literal, Self
from uuid import UUID

from pydantic import Field, model_validator

from memweave.errors import InputError
from memweave.records import Metadata, Name, Record, Reward, Scope, Text, UtcTime, storable

MIN_SCORE: Final = 30
MAX_SCORE: Final = 85
SUPPORT: Final = 5
"""What supporting evidence adds to a score."""
DOUBT: Final = 10
"""What contradicting evidence takes from it."""
DROPPED_AFTER: Final = 3
"""Contradictions after which a strategy with the lowest score goes."""

Score = Annotated[int, Field(ge=MIN_SCORE, le=MAX_SCORE)]
Confidence = Literal["low", "medium", "high"]
States = Annotated[tuple[Name, ...], Field(min_length=1, max_length=1_000)]


class StrategyKind(StrEnum):
    """What a strategy was made of."""

    CONTRAST = "contrast"
    """A success and a failure of the same query."""
    SPECULATIVE = "speculative"
    """A failure, and what worked for similar queries."""
    POSITIVE = "positive"
    """Successes only."""


START_SCORES: Final[Mapping[StrategyKind, int]] = {
    StrategyKind.CONTRAST: 60,
    StrategyKind.SPECULATIVE: 40,
    StrategyKind.POSITIVE: 50,
}


class EdgeKind(StrEnum):
    """What an edge leads from and to."""

    QUERY_PATH = "query_path"
    PATH_STRATEGY = "path_strategy"


class StrategyAction(StrEnum):
    """What a change did to a strategy."""

    CREATED = "created"
    UPDATED = "updated"
    LINKED = "linked"
    CONTRADICTED = "contradicted"
    DROPPED = "dropped"
    REMOVED = "removed"


def confidence_of(score: int) -> Confidence:
    """Return the band of a score: low below 50, medium below 70, high from there."""
    return "low" if score < 50 else "medium" if score < 70 else "high"


class Principle(Record):
    """One rule of a strategy and how sure one may be of it."""

    text: Text
    score: Score

    @property
    def confidence(self) -> Confidence:
        """Return the band of the score."""
        return confidence_of(self.score)


class NewStrategy(Record):
    """A strategy, to be written into a graph."""

    summary: Text
    """In one sentence, about no particular query; this is what is embedded."""
    principles: tuple[Principle, ...] = ()
    kind: StrategyKind
    score: Score
    """Overall; see `START_SCORES`."""
    uncertainty: Text | None = None
    """What may be wrong with it."""
    run_id: Name | None = None
    metadata: Metadata = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.summary.strip():
            raise ValueError("summary is blank")
        return self

    @property
    def confidence(self) -> Confidence:
        """Return the band of the overall score."""
        return confidence_of(self.score)


class Strategy(NewStrategy):
    """A strategy in a graph."""

    id: UUID
    scope: Scope
    recorded_at: UtcTime
    """When this version was written."""
    version: int = Field(ge=1)
    evidence: int = Field(ge=1)
    """How often experience supported it, its first time included."""
    contradictions: int = Field(ge=0)


class StrategyChange(Record):
    """What a write did."""

    action: StrategyAction
    strategy: Strategy
    """As it is afterwards; for one that went, as it was."""
    op_id: UUID
    """In the log; `StrategyGraph.undo` takes it back, unless it only added links."""
    edges: int = 0
    """New edges from paths."""
    similarity: float | None = None
    """Cosine to the strategy that it was found to be; `None` when nothing was looked for or found."""


class RolloutOutcome(Record):
    """The path that one rollout took, and what its answer was worth."""

    states: States
    """A canonical, legal path, from the machine's first state to its last."""
    reward: Reward
    trace_id: Name | None = None

    @property
    def success(self) -> bool:
        """Return whether the answer was right: reward 1."""
        return self.reward == 1.0


def text_name(text: str) -> str:
    """Return what a query without an id of its own is called."""
    return f"text:{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


class NewQuery(Record):
    """A question that rollouts were made for, to be written into a graph."""

    text: Text
    query_id: Name | None = None
    """The caller's id; without one, the text is the identity."""
    split: Name | None = None
    run_id: Name | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not self.text.strip():
            raise ValueError("text is blank")
        return self

    @property
    def name(self) -> str:
        """Return what identifies it within a scope, and what `exclude` takes."""
        return self.query_id or text_name(self.text)


class QueryNode(NewQuery):
    """A query in a graph."""

    id: UUID
    scope: Scope
    recorded_at: UtcTime
    outcomes: tuple[RolloutOutcome, ...]


class PathNode(Record):
    """A canonical path in a graph; one node for all rollouts of a scope that took it (B3)."""

    id: UUID
    machine: Name
    """Name of the finite-state machine, its version included: equal sequences of different machines are different paths."""
    states: States
    n_success: int = Field(ge=0)
    """Rollouts that took it and were right."""
    n_failure: int = Field(ge=0)


class Edge(Record):
    """An edge with its trainable weight."""

    kind: EdgeKind
    source: UUID
    target: UUID
    weight: float
    updates: int
    """How many weight updates touched it."""
    gap_sum: float
    """Sum of their reward gaps."""


class EdgeDelta(Record):
    """What a step adds to one weight."""

    kind: EdgeKind
    source: UUID
    target: UUID
    delta: float = Field(allow_inf_nan=False)


class EdgeStep(Record):
    """One step of the weights, not taken yet: w <- w + alpha Delta R grad log p(m | q) (section 4.2, algorithm 2).

    Made by a learner, applied by `StrategyGraph.apply`.
    """

    query: Text
    query_id: Name | None = None
    strategy_id: UUID
    probability: float = Field(gt=0, le=1)
    """p(m | q) of the strategy that was tried, when it was drawn."""
    reward_with: Reward
    reward_without: Reward
    gradient_norm: float = Field(ge=0, allow_inf_nan=False)
    """Of grad log p(m | q), over all edges of the activation."""
    deltas: tuple[EdgeDelta, ...] = ()
    """Empty for a gap of 0: nothing changes."""
    run_id: Name | None = None
    trace_with: Name | None = None
    trace_without: Name | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.deltas and self.reward_with == self.reward_without:
            raise ValueError("the gap is 0, which changes no weight, but there are deltas")
        # Numbers, and not the ids themselves: hashing those takes longer than the rest of a step.
        if len({(each.source.int, each.target.int, each.kind) for each in self.deltas}) < len(self.deltas):
            raise ValueError("deltas name an edge twice")
        return self

    @property
    def gap(self) -> float:
        """Return Delta R = R_with - R_without, in [-1, 1]."""
        return self.reward_with - self.reward_without


class WeightUpdate(Record):
    """A step that was taken, as the graph keeps it."""

    query: Text
    query_id: Name | None = None
    strategy_id: UUID
    probability: float
    reward_with: float
    reward_without: float
    gap: float
    gradient_norm: float
    edges: int
    """Edges that it touched; 0 for a gap of 0."""
    version: int
    """Of the weights afterwards."""
    recorded_at: UtcTime
    run_id: Name | None = None
    trace_with: str | None = None
    trace_without: str | None = None


class WeightVersion(Record):
    """A version of the weights of one scope that can be gone back to."""

    version: int
    """0: every edge at its initial weight."""
    recorded_at: UtcTime | None
    """`None` for version 0."""
    edges: int
    """Edges that had been trained by then."""
    current: bool


class GraphProblem(Record):
    """Something in a stored graph that must not be."""

    what: str
    where: str
    """The node, edge or version that it was found on."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def path_id(machine: str, states: Sequence[str]) -> UUID:
    """Return the id of a path: equal sequences of one machine are one node."""
    said = json.dumps([machine, *states], ensure_ascii=False).encode()
    return UUID(bytes=hashlib.blake2b(said, digest_size=16, person=b"path").digest())


def query_node_id(name: str) -> UUID:
    """Return the id of the node of a query, by `NewQuery.name`. Raises `InputError` for a name that no query can have."""
    if name != storable(name):
        raise InputError(f"{name[:60]!r} is no id of a query: it cannot be stored")
    return UUID(bytes=hashlib.blake2b(name.encode(), digest_size=16, person=b"query").digest())

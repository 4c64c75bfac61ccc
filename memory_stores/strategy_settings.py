"""How a graph of strategies is built and read, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from memweave.graph_records import Strategy
from memweave.records import Name, Record

Rank = Literal["weights", "uniform", "similarity", "random", "confidence"]
RANKS: Final[tuple[Rank, ...]] = ("weights", "uniform", "similarity", "random", "confidence")


class StrategySettings(Record):
    """How a graph is built and read."""

    machine: Name = "cognitive"
    """The finite-state machine whose paths are added, its version included."""
    match_threshold: float = Field(default=0.85, ge=-1, le=1)
    """A new strategy is an old one when the cosine of their summaries is at least this (FindMatching)."""
    neighbours: int = Field(default=8, ge=1, le=1_000)
    """k of N_k(q)."""
    initial_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    min_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_weight: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    degree_normalised: bool = False
    """Divide by the number of paths, so that strategies with many are not favoured."""
    snapshot_every: int = Field(default=50, ge=1)
    """Weight updates between versions that can be gone back to."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min_weight <= self.initial_weight <= self.max_weight:
            raise ValueError("initial_weight must lie between min_weight and max_weight")
        return self


@dataclass(frozen=True, slots=True)
class ScoredStrategy:
    """A strategy that was chosen for a query."""

    strategy: Strategy
    score: float
    """What it was ranked by; comparable within one call."""
    relevance: float | None
    """rho(m | q) at the weights used; `None` when the query does not activate it."""
    probability: float | None
    """p(m | q); `None` likewise."""

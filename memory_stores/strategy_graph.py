"""`StrategyGraph`: queries, canonical paths and strategies of many scopes, on the same ledger and index as memories (sections 3.1 and 4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self
from uuid import UUID

import numpy as np
from pydantic import Field

from memweave.graph_records import (
    Edge,
    EdgeKind,
    EdgeStep,
    GraphProblem,
    NewQuery,
    NewStrategy,
    PathNode,
    QueryNode,
    RolloutOutcome,
    Strategy,
    StrategyChange,
    WeightUpdate,
    WeightVersion,
)
from memweave.memory_stores.bank import MemoryBank
from memweave.memory_stores.strategy_activation import Activation
from memweave.records import MemoryOp, Name, Record, Scope

ACTOR: Final = "graph-memory"
Rank = Literal["weights", "uniform", "similarity", "random", "confidence"]


class StrategySettings(Record):
    """How a graph is built and read."""

    machine: Name = "cognitive"
    """The finite-state machine whose paths are added, its version included."""
    match_threshold: float = Field(0.85, ge=-1, le=1)
    """A new strategy is an old one when the cosine of their summaries is at least this (FindMatching)."""
    neighbours: int = Field(8, ge=1, le=1_000)
    """k of N_k(q)."""
    initial_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    min_weight: float = Field(0.0, ge=0, allow_inf_nan=False)
    max_weight: float = Field(5.0, gt=0, allow_inf_nan=False)
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    degree_normalised: bool = False
    """Divide by the number of paths, so that strategies with many are not favoured."""
    snapshot_every: int = Field(50, ge=1)
    """Weight updates between versions that can be gone back to."""


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


class StrategyGraph:
    """Strategies of many scopes, on disk. Open one with `open_strategies`, or make one of a memory bank that is open.

    Safe to use from any thread and from async code. Each method has an async twin with the prefix `a`.
    """

    def __init__(self, bank: MemoryBank, settings: StrategySettings | None = None) -> None:
        self.settings = settings or StrategySettings()
        self._bank = bank

    # building

    def add(self, query: NewQuery, outcomes: Sequence[RolloutOutcome], *, scope: Scope) -> QueryNode:
        """Add a query, its paths and the edges between them, in one transaction. A query that is there already is returned as it is.

        Raises `ConflictError` for a known id with another text.
        """
        raise NotImplementedError

    def write(
        self,
        new: NewStrategy,
        paths: Sequence[UUID],
        *,
        scope: Scope,
        reason: str,
        actor: str = ACTOR,
        target: UUID | None = None,
    ) -> StrategyChange:
        """Write a strategy and link every path that it was made of: an update of the one that it matches, or a new one (algorithm 1).

        target: the strategy to update, when the caller knows; its summary and principles are then replaced. Found by similarity, they stay.
        """
        raise NotImplementedError

    def contradict(
        self, strategy_id: UUID, *, scope: Scope, reason: str, actor: str = ACTOR, run_id: str | None = None
    ) -> StrategyChange:
        """Take 10 from a strategy's score; with the lowest score and three contradictions, it goes."""
        raise NotImplementedError

    def link(
        self,
        paths: Sequence[UUID],
        strategies: Sequence[UUID],
        *,
        scope: Scope,
        reason: str = "speculative: worked for similar queries",
        actor: str = ACTOR,
        run_id: str | None = None,
    ) -> list[StrategyChange]:
        """Link paths to strategies that exist."""
        raise NotImplementedError

    def remove(self, strategy_id: UUID, *, scope: Scope, reason: str, actor: str = "user") -> StrategyChange:
        """Take a strategy out; `undo` brings it back with its edges and their weights."""
        raise NotImplementedError

    def undo(self, op_id: UUID, *, scope: Scope, actor: str = "user") -> MemoryOp:
        """Take back one operation on a query or a strategy, and the edges that came with it."""
        raise NotImplementedError

    def log(self, *, scope: Scope, limit: int | None = None, run_id: str | None = None) -> list[MemoryOp]:
        """Return operations on queries and strategies, oldest first; with `limit`, the last ones."""
        raise NotImplementedError

    # reading

    def query(self, name: str, *, scope: Scope) -> QueryNode | None:
        """Return a query by its id, or by `NewQuery.name`; `None` when it is not there."""
        raise NotImplementedError

    def queries(self, *, scope: Scope) -> list[QueryNode]:
        """Return the queries, in the order in which they were added."""
        raise NotImplementedError

    def paths(self, *, scope: Scope) -> list[PathNode]:
        """Return the paths that queries lead to, in the order in which they were added."""
        raise NotImplementedError

    def strategies(self, *, scope: Scope) -> list[Strategy]:
        """Return the strategies, in the order in which they were first written."""
        raise NotImplementedError

    def strategy(self, strategy_id: UUID, *, scope: Scope) -> Strategy:
        """Return a strategy. Raises `UnknownMemoryError`."""
        raise NotImplementedError

    def edges(self, *, scope: Scope, kind: EdgeKind | None = None) -> list[Edge]:
        """Return the edges with their weights, in the order in which they were added."""
        raise NotImplementedError

    def strategies_of(self, path_id: UUID, *, scope: Scope) -> list[Strategy]:
        """Return M(t): the strategies that a path leads to."""
        raise NotImplementedError

    def success_paths(self, name: str, *, scope: Scope) -> list[PathNode]:
        """Return the paths by which a query was answered rightly; empty for a query that is not there."""
        raise NotImplementedError

    def neighbours(
        self, text: str, *, scope: Scope, k: int | None = None, exclude: str | None = None
    ) -> list[tuple[QueryNode, float]]:
        """Return the `k` most similar queries and their cosines, most similar first.

        k: default is that of the settings.  exclude: id (or name) of the query itself.
        """
        raise NotImplementedError

    def speculate(self, text: str, *, scope: Scope, k: int | None = None, exclude: str | None = None) -> list[Strategy]:
        """Return M_spec: what success paths of the most similar queries lead to (section 4.1), nearest query first."""
        raise NotImplementedError

    def activate(self, text: str, *, scope: Scope, exclude: str | None = None) -> Activation:
        """Return what a query activates: neighbours, paths, strategies, relevance and probability, with closed-form gradients.

        exclude: id (or name) of the query itself, so that it is not its own neighbour.
        """
        raise NotImplementedError

    def top(
        self,
        text: str,
        *,
        scope: Scope,
        k: int = 3,
        exclude: str | None = None,
        rank: Rank = "weights",
        rng: np.random.Generator | None = None,
    ) -> list[ScoredStrategy]:
        """Return up to `k` strategies for a query, best first.

        rank: `weights` by rho (section 4.3); `uniform` by rho with every weight 1; `confidence` by score among the activated ones;
        `similarity` by the cosine of summary and query, without the graph; `random` from all of the scope, by `rng`.
        """
        raise NotImplementedError

    # weights

    def apply(self, step: EdgeStep, *, scope: Scope) -> WeightUpdate:
        """Take a step: durable, one version later, weights kept in their bounds. A gap of 0 is noted and changes nothing."""
        raise NotImplementedError

    def updates(self, *, scope: Scope, limit: int | None = None) -> list[WeightUpdate]:
        """Return the steps that were taken, oldest first; with `limit`, the last ones."""
        raise NotImplementedError

    def version(self, *, scope: Scope) -> int:
        """Return the present version of the weights; 0 before the first step."""
        raise NotImplementedError

    def snapshot(self, *, scope: Scope) -> WeightVersion:
        """Keep the present weights as a version that can be gone back to."""
        raise NotImplementedError

    def versions(self, *, scope: Scope) -> list[WeightVersion]:
        """Return the versions that can be gone back to, and the present one, oldest first."""
        raise NotImplementedError

    def rollback(self, version: int, *, scope: Scope) -> WeightVersion:
        """Go back to the weights of a version; the present ones are kept as a version. Raises `InputError` for one that was not kept."""
        raise NotImplementedError

    def check(self, *, scope: Scope) -> list[GraphProblem]:
        """Return everything in a stored graph that must not be; empty for a sound one."""
        raise NotImplementedError

    # moving

    def export(self, *, scope: Scope) -> Iterator[str]:
        """Yield the graph as JSON lines: queries and strategies with their history, paths, edges, steps and versions of the weights."""
        raise NotImplementedError

    def import_(self, lines: Iterable[str], *, scope: Scope) -> int:
        """Add an export to a scope without a graph, all or nothing; returns how many queries and strategies, 0 when it is there already."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the memory bank below; the data folder is closed with its last bank in this process."""
        self._bank.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_strategies(home: Path | str, *, settings: StrategySettings | None = None, **given: Any) -> StrategyGraph:
    """Open the graph in the folder `home`, beside its memories; the other arguments and errors are those of `open_bank`."""
    from memweave.memory_stores.opening import open_bank

    return StrategyGraph(open_bank(home, **given), settings)

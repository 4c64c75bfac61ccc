"""`StrategyGraph`: queries, canonical paths and strategies of many scopes, on the same ledger and index as memories.

Queries and strategies are memories of the collections `queries` and `strategies`: embedded once, explained in the log, and undone like any
other. Paths and edges with their trainable weights are kept beside them (sections 3.1 and 4 of the paper; see `memweave.graph_records`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

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
from memweave.memory_stores.closing import Closing
from memweave.memory_stores.opening import open_bank
from memweave.memory_stores.strategy_activation import Activation
from memweave.memory_stores.strategy_check import problems
from memweave.memory_stores.strategy_lines import export_graph, import_graph
from memweave.memory_stores.strategy_settings import RANKS, Rank, ScoredStrategy, StrategySettings
from memweave.memory_stores.strategy_store import QUERIES
from memweave.memory_stores.strategy_training import StrategyTrainer
from memweave.memory_stores.strategy_writing import ACTOR, LINK_REASON
from memweave.records import MemoryOp, Scope

__all__ = [
    "ACTOR",
    "LINK_REASON",
    "RANKS",
    "Rank",
    "ScoredStrategy",
    "StrategyGraph",
    "StrategySettings",
    "open_strategies",
]


class StrategyGraph(StrategyTrainer, Closing):
    """Strategies of many scopes, on disk. Open one with `open_strategies`, or make one of a memory bank that is open.

    Safe to use from any thread and from async code. Each method has an async twin with the prefix `a`.
    """

    def check(self, *, scope: Scope) -> list[GraphProblem]:
        """Return everything in a stored graph that must not be; empty for a sound one."""
        with self._strategies.ledger.database.read() as connection:
            return problems(connection, scope.partition(QUERIES), self._partition(scope), scope)

    # moving

    def export(self, *, scope: Scope) -> Iterator[str]:
        """Yield the graph as JSON lines: queries and strategies with their history, paths, edges, steps and versions of the weights."""
        return export_graph(self._queries, self._strategies, scope)

    def import_(self, lines: Iterable[str], *, scope: Scope) -> int:
        """Add an export to a scope without a graph, all or nothing; return how many queries and strategies, 0 when it is there already.

        Raises `InputError` naming what cannot be read, `ConflictError` for a scope that holds another graph, `EmbeddingMismatchError` for a
        graph that was built with another encoder.
        """
        return import_graph(self._queries, self._strategies, lines, scope)

    # async twins

    async def aadd(
        self, query: NewQuery, outcomes: Sequence[RolloutOutcome], *, scope: Scope, fresh: bool = False
    ) -> QueryNode:
        """Async twin of `add`."""
        return await self._strategies._in_thread(self.add, query, outcomes, scope=scope, fresh=fresh)

    async def aadd_all(
        self, given: Sequence[tuple[NewQuery, Sequence[RolloutOutcome]]], *, scope: Scope, fresh: bool = False
    ) -> list[QueryNode]:
        """Async twin of `add_all`."""
        return await self._strategies._in_thread(self.add_all, given, scope=scope, fresh=fresh)

    async def awrite(
        self,
        new: NewStrategy,
        paths: Sequence[UUID],
        *,
        scope: Scope,
        reason: str,
        actor: str = ACTOR,
        target: UUID | None = None,
    ) -> StrategyChange:
        """Async twin of `write`."""
        return await self._strategies._in_thread(
            self.write, new, paths, scope=scope, reason=reason, actor=actor, target=target
        )

    async def acontradict(
        self, strategy_id: UUID, *, scope: Scope, reason: str, actor: str = ACTOR, run_id: str | None = None
    ) -> StrategyChange:
        """Async twin of `contradict`."""
        return await self._strategies._in_thread(
            self.contradict, strategy_id, scope=scope, reason=reason, actor=actor, run_id=run_id
        )

    async def alink(
        self,
        paths: Sequence[UUID],
        strategies: Sequence[UUID],
        *,
        scope: Scope,
        reason: str = LINK_REASON,
        actor: str = ACTOR,
        run_id: str | None = None,
    ) -> list[StrategyChange]:
        """Async twin of `link`."""
        return await self._strategies._in_thread(
            self.link, paths, strategies, scope=scope, reason=reason, actor=actor, run_id=run_id
        )

    async def aremove(self, strategy_id: UUID, *, scope: Scope, reason: str, actor: str = "user") -> StrategyChange:
        """Async twin of `remove`."""
        return await self._strategies._in_thread(self.remove, strategy_id, scope=scope, reason=reason, actor=actor)

    async def aundo(self, op_id: UUID, *, scope: Scope, actor: str = "user") -> MemoryOp:
        """Async twin of `undo`."""
        return await self._strategies._in_thread(self.undo, op_id, scope=scope, actor=actor)

    async def alog(self, *, scope: Scope, limit: int | None = None, run_id: str | None = None) -> list[MemoryOp]:
        """Async twin of `log`."""
        return await self._strategies._in_thread(self.log, scope=scope, limit=limit, run_id=run_id)

    async def aquery(self, name: str, *, scope: Scope) -> QueryNode | None:
        """Async twin of `query`."""
        return await self._strategies._in_thread(self.query, name, scope=scope)

    async def aqueries(self, *, scope: Scope) -> list[QueryNode]:
        """Async twin of `queries`."""
        return await self._strategies._in_thread(self.queries, scope=scope)

    async def apaths(self, *, scope: Scope) -> list[PathNode]:
        """Async twin of `paths`."""
        return await self._strategies._in_thread(self.paths, scope=scope)

    async def astrategies(self, *, scope: Scope) -> list[Strategy]:
        """Async twin of `strategies`."""
        return await self._strategies._in_thread(self.strategies, scope=scope)

    async def astrategy(self, strategy_id: UUID, *, scope: Scope) -> Strategy:
        """Async twin of `strategy`."""
        return await self._strategies._in_thread(self.strategy, strategy_id, scope=scope)

    async def aedges(self, *, scope: Scope, kind: EdgeKind | None = None) -> list[Edge]:
        """Async twin of `edges`."""
        return await self._strategies._in_thread(self.edges, scope=scope, kind=kind)

    async def astrategies_of(self, path_id: UUID, *, scope: Scope) -> list[Strategy]:
        """Async twin of `strategies_of`."""
        return await self._strategies._in_thread(self.strategies_of, path_id, scope=scope)

    async def asuccess_paths(self, name: str, *, scope: Scope) -> list[PathNode]:
        """Async twin of `success_paths`."""
        return await self._strategies._in_thread(self.success_paths, name, scope=scope)

    async def aneighbours(
        self, text: str, *, scope: Scope, k: int | None = None, exclude: str | None = None
    ) -> list[tuple[QueryNode, float]]:
        """Async twin of `neighbours`."""
        return await self._strategies._in_thread(self.neighbours, text, scope=scope, k=k, exclude=exclude)

    async def aspeculate(
        self, text: str, *, scope: Scope, k: int | None = None, exclude: str | None = None
    ) -> list[Strategy]:
        """Async twin of `speculate`."""
        return await self._strategies._in_thread(self.speculate, text, scope=scope, k=k, exclude=exclude)

    async def aactivate(self, text: str, *, scope: Scope, exclude: str | None = None) -> Activation:
        """Async twin of `activate`."""
        return await self._strategies._in_thread(self.activate, text, scope=scope, exclude=exclude)

    async def atop(
        self,
        text: str,
        *,
        scope: Scope,
        k: int = 3,
        exclude: str | None = None,
        rank: Rank = "weights",
        rng: np.random.Generator | None = None,
    ) -> list[ScoredStrategy]:
        """Async twin of `top`."""
        return await self._strategies._in_thread(self.top, text, scope=scope, k=k, exclude=exclude, rank=rank, rng=rng)

    async def aapply(self, step: EdgeStep, *, scope: Scope) -> WeightUpdate:
        """Async twin of `apply`."""
        return await self._strategies._in_thread(self.apply, step, scope=scope)

    async def aupdates(
        self, *, scope: Scope, limit: int | None = None, since: datetime | None = None, query_id: str | None = None
    ) -> list[WeightUpdate]:
        """Async twin of `updates`."""
        return await self._strategies._in_thread(self.updates, scope=scope, limit=limit, since=since, query_id=query_id)

    async def aversion(self, *, scope: Scope) -> int:
        """Async twin of `version`."""
        return await self._strategies._in_thread(self.version, scope=scope)

    async def asnapshot(self, *, scope: Scope) -> WeightVersion:
        """Async twin of `snapshot`."""
        return await self._strategies._in_thread(self.snapshot, scope=scope)

    async def aversions(self, *, scope: Scope) -> list[WeightVersion]:
        """Async twin of `versions`."""
        return await self._strategies._in_thread(self.versions, scope=scope)

    async def arollback(self, version: int, *, scope: Scope) -> WeightVersion:
        """Async twin of `rollback`."""
        return await self._strategies._in_thread(self.rollback, version, scope=scope)

    async def acheck(self, *, scope: Scope) -> list[GraphProblem]:
        """Async twin of `check`."""
        return await self._strategies._in_thread(self.check, scope=scope)

    async def aexport(self, *, scope: Scope) -> list[str]:
        """Async twin of `export`; returns all lines."""
        return await self._strategies._in_thread(lambda: list(self.export(scope=scope)))

    async def aimport(self, lines: Sequence[str], *, scope: Scope) -> int:
        """Async twin of `import_`."""
        return await self._strategies._in_thread(self.import_, lines, scope=scope)

    # its end

    def optimize(self) -> bool:
        """Build the search graphs of an embedded index, as `MemoryBank.optimize`: worth it beyond tens of thousands of queries."""
        return self._bank.optimize()

    def close(self) -> None:
        """Release the memory bank below; the data folder is closed with its last bank in this process."""
        self._bank.close()

    async def aclose(self) -> None:
        """Async twin of `close`."""
        await self._bank.aclose()


def open_strategies(home: Path | str, *, settings: StrategySettings | None = None, **given: Any) -> StrategyGraph:
    """Open the graph in the folder `home`, beside its memories; the other arguments and errors are those of `open_bank`."""
    return StrategyGraph(open_bank(home, **given), settings)

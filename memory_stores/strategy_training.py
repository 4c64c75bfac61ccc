"""The weights of a graph of strategies: steps, versions, and going back."""

from __future__ import annotations

from datetime import datetime

from memweave.errors import ConflictError
from memweave.graph_records import EdgeStep, WeightUpdate, WeightVersion
from memweave.memory_stores import strategy_weights
from memweave.memory_stores.store import check_limit
from memweave.memory_stores.strategy_writing import StrategyWriter
from memweave.records import Scope


class StrategyTrainer(StrategyWriter):
    """The part of a `StrategyGraph` that changes weights."""

    def apply(self, step: EdgeStep, *, scope: Scope) -> WeightUpdate:
        """Take a step: durable, one version later, weights kept in their bounds. A gap of 0 is noted and changes nothing.

        Raises `ConflictError` when the strategy, or an edge of the step, is not there any more.
        """
        bounds = self.settings.min_weight, self.settings.max_weight
        with self._strategies.writing_weights(scope) as tx:
            # Nobody else writes now: what the table says is what the ledger has.
            now = self._tables.of(scope)
            if now.strategies.place_of(step.strategy_id) is None:
                raise ConflictError(
                    f"there is no strategy {step.strategy_id} of {scope} (any more), so no step can be taken for it. Activate again."
                )
            table, position, weight = now.stepped(step, bounds)
            partition, every = self._partition(scope), self.settings.snapshot_every
            update = strategy_weights.take(tx, partition, step, position, weight, snapshot_every=every)
        self._tables.keep(scope, table)
        return update

    def updates(
        self, *, scope: Scope, limit: int | None = None, since: datetime | None = None, query_id: str | None = None
    ) -> list[WeightUpdate]:
        """Return the steps that were taken, oldest first.

        limit: the last ones.  since: those from then on.  query_id: those of one query.
        """
        check_limit(limit)
        with self._strategies.ledger.database.read() as connection:
            return strategy_weights.steps(connection, self._partition(scope), limit, since, query_id)

    def version(self, *, scope: Scope) -> int:
        """Return the present version of the weights; 0 before the first step."""
        return self._tables.state(scope).weights

    def snapshot(self, *, scope: Scope) -> WeightVersion:
        """Keep the present weights as a version that can be gone back to."""
        with self._strategies.writing(scope) as tx:
            strategy_weights.save(tx, self._partition(scope), kept=True)
        return self._present(scope)

    def versions(self, *, scope: Scope) -> list[WeightVersion]:
        """Return the versions that can be gone back to, and the present one, oldest first."""
        with self._strategies.ledger.database.read() as connection:
            return strategy_weights.versions(connection, self._partition(scope))

    def rollback(self, version: int, *, scope: Scope) -> WeightVersion:
        """Go back to the weights of a version and return the new version; the present weights are kept as a version too.

        Edges made since then get their initial weight.  Raises `InputError` for a version that was not kept.
        """
        with self._strategies.writing(scope) as tx:
            strategy_weights.restore(tx, self._partition(scope), version)
        return self._present(scope)

    def _present(self, scope: Scope) -> WeightVersion:
        return next(each for each in self.versions(scope=scope) if each.current)

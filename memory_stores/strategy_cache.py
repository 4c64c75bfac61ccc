"""The graphs of the scopes that were used last, in memory and up to date."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from memweave.memory_stores.strategy_loading import caught_up, read_table, state_of
from memweave.memory_stores.strategy_store import QUERIES, STRATEGIES, GraphStore
from memweave.memory_stores.strategy_table import State, Table
from memweave.records import Scope

_TABLES: Final = 4
"""Scopes whose graph is held in memory."""


class Tables:
    """Tables of the graph that a store belongs to; safe to use from any thread, as tables are never written to."""

    def __init__(self, store: GraphStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._known: OrderedDict[Scope, Table] = OrderedDict()

    def state(self, scope: Scope) -> State:
        """Return the present state of a scope's graph; other processes' changes included."""
        return state_of(self._store.ledger, (scope.partition(QUERIES), scope.partition(STRATEGIES)))

    def of(self, scope: Scope) -> Table:
        """Return a scope's graph as it is now."""
        state, known = self.state(scope), self._known.get(scope)
        if known is not None and known.state == state:
            return self.keep(scope, known)
        ledger, partitions = self._store.ledger, (scope.partition(QUERIES), scope.partition(STRATEGIES))
        table = caught_up(ledger, scope, partitions, known) if known is not None else None
        return self.keep(scope, table or read_table(ledger, scope, partitions))

    def keep(self, scope: Scope, table: Table) -> Table:
        """Hold a table; the one that was used longest ago goes."""
        with self._lock:
            self._known[scope] = table
            self._known.move_to_end(scope)
            while len(self._known) > _TABLES:
                self._known.popitem(last=False)
        return table

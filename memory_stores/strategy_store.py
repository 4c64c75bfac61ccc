"""What a graph of strategies needs of the memory layer: its two collections, `queries` and `strategies`, written in one transaction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final
from uuid import UUID

import numpy as np
import sqlalchemy as sa

from memweave.memory_stores.bank import MemoryBank
from memweave.memory_stores.case_store import CaseStore
from memweave.memory_stores.ledger import Ledger, LedgerTransaction
from memweave.memory_stores.schema import versions
from memweave.memory_stores.store import Transaction, Vector
from memweave.memory_stores.strategy_edges import set_taken, toggle_edges
from memweave.memory_stores.strategy_rows import query_of
from memweave.records import Memory, MemoryOp, ProposedOp, Scope

QUERIES: Final = "queries"
STRATEGIES: Final = "strategies"


class GraphStore(CaseStore):
    """One collection of a graph; the graph's tables go by the partition of its strategies."""

    def __init__(self, bank: MemoryBank, collection: str) -> None:
        super().__init__(bank, collection)
        self.collection = collection

    @contextmanager
    def writing(self, scope: Scope) -> Iterator[LedgerTransaction]:
        """Open the write transaction of a graph; both collections are then known to belong to the scope. Projects what was committed."""
        with self._write(scope) as tx:
            for collection in (QUERIES, STRATEGIES):
                tx.ensure_owner(scope.partition(collection), scope, collection)
            yield tx
        self._written()

    @contextmanager
    def writing_weights(self, scope: Scope) -> Iterator[LedgerTransaction]:
        """Open a write transaction for weights only: no node changes, so the index need not follow."""
        with self._write(scope) as tx:
            yield tx

    def do(self, tx: LedgerTransaction, op: ProposedOp, scope: Scope, vectors: Mapping[str, Vector]) -> MemoryOp:
        """Apply one operation in an open transaction; see `MemoryStore.apply`."""
        return self._apply_one(tx, self._partition(scope), op, scope, vectors)

    def current(self, tx: LedgerTransaction, memory_id: UUID, scope: Scope) -> Memory | None:
        """Return a memory as an open transaction sees it."""
        found = tx.current(self._partition(scope), memory_id, scope)
        return found.memory if found else None

    def in_transaction(self, tx: LedgerTransaction, scope: Scope) -> list[UUID]:
        """Return the current memories as an open transaction sees them."""
        v = versions.c
        query = sa.select(v.memory_id).where(v.partition == self._partition(scope), v.closed_seq.is_(None))
        return [UUID(hex=found) for found in tx.connection.execute(query).scalars()]

    @property
    def ledger(self) -> Ledger:
        """Return the ledger below."""
        return self._core.ledger

    def found(self, ids: Sequence[UUID], *, scope: Scope) -> list[Memory]:
        """Return those of the memories that exist."""
        return self._found(ids, scope=scope)

    def embedded(self, texts: Sequence[str]) -> dict[str, Vector]:
        """Return the vectors of texts, of length 1."""
        return self._embed(texts)

    def all_vectors(self, scope: Scope) -> tuple[list[UUID], np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
        """Return the current memories, oldest first, and (n, d) their vectors."""
        v = versions.c
        query = sa.select(v.memory_id, v.vector).where(v.partition == self._partition(scope), v.closed_seq.is_(None))
        with self._core.ledger.database.read() as connection:
            found = connection.execute(query.order_by(v.memory_id)).all()
        rows = np.frombuffer(b"".join(row.vector for row in found), dtype="<f4").reshape(
            len(found), self.embedder.dimension
        )
        return [UUID(hex=row.memory_id) for row in found], rows

    def _undo_one(self, tx: Transaction, partition: str, op: MemoryOp, actor: str, reason: str | None) -> MemoryOp:
        done = super()._undo_one(tx, partition, op, actor, reason)
        assert isinstance(tx, LedgerTransaction)  # as `_write` opens it
        first = op
        while first.undoes is not None:  # an undo of an undo brings back what the first one made
            first = tx.op(partition, first.undoes, op.scope)
        if self.collection == QUERIES:
            # By what the node says, not by the operation: it may have been added several times, with other outcomes.
            assert done.memory_id is not None
            taken = [each.states for each in query_of(done.after).outcomes] if done.after else []
            set_taken(tx.connection, op.scope.partition(STRATEGIES), done.memory_id, taken)
        else:
            toggle_edges(tx.connection, op.scope.partition(STRATEGIES), first.id)
        return done

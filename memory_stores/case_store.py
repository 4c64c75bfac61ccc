"""What a case bank needs of the memory layer beyond a memory bank: neighbours by vector, the vectors, and experience."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from memweave.errors import UnknownMemoryError
from memweave.memory_stores.bank import MemoryBank
from memweave.memory_stores.engine import IndexQuery
from memweave.memory_stores.store import Vector, check_limit
from memweave.records import MemoryHit, ProposedOp, ReplayRow, Scope

COLLECTION: Final = "cases"


class CaseStore(MemoryBank):
    """A collection, `cases` unless told otherwise, in the data folder of a memory bank; open as long as that bank is."""

    def __init__(self, bank: MemoryBank, collection: str = COLLECTION) -> None:
        super().__init__(bank._core, lambda: None, collection=collection)
        self._bank = bank

    def _check_open(self) -> None:
        self._bank._check_open()

    def nearest(self, vector: Vector, *, scope: Scope, limit: int) -> list[MemoryHit]:
        """Return the current memories nearest to a vector (d,) of length 1, nearest first; the score is the cosine."""
        projector = self._core.projector
        projector.catch_up()
        question = IndexQuery(self._partition(scope), dense=vector, sparse=None, limit=limit)
        for _ in range(3):  # as in `search`
            hits = projector.search(question)
            found = projector.resolve(question.partition, scope, hits)
            if len(found) == len(hits):
                break
            projector.catch_up()
        return found

    def vectors(self, ids: Sequence[UUID], *, scope: Scope) -> NDArray[np.float32]:
        """Return (n, d) the vectors of current memories, as they are stored. Raises `UnknownMemoryError`."""
        found = self._core.ledger.vectors(self._partition(scope), ids)
        if missing := [each for each in ids if each not in found]:
            raise UnknownMemoryError(f"there is no memory {missing[0]} of {scope}, or it was deleted meanwhile.")
        rows = [found[each] for each in ids]
        return np.stack(rows) if rows else np.zeros((0, self.embedder.dimension), dtype=np.float32)

    def query_vector(self, text: str) -> Vector:
        """Return the vector (d,) of a text, of length 1; remembered for the last few hundred."""
        vector = self._core.query_vector(text, lambda asked: self._embed([asked])[asked])
        assert vector is not None
        return vector

    def head(self) -> int:
        """Return the number of the ledger's last operation; it grows with each one, of any scope."""
        return self._core.ledger.head()

    def add_replay(self, rows: Sequence[ReplayRow], *, scope: Scope) -> None:
        """Append rows of experience to the collection (see `CaseBank`)."""
        partition = self._partition(scope)
        with self._write(scope) as tx:
            tx.add_replay(partition, [row.model_dump_json(exclude_defaults=True) for row in rows])

    def apply_with_replay(self, ops: Sequence[ProposedOp], rows: Sequence[ReplayRow], *, scope: Scope) -> None:
        """Apply operations and append rows of experience in one transaction; errors are those of `apply`."""
        partition = self._partition(scope)
        vectors = self._embed([text for op in ops if (text := self._text_of(op, scope))])
        with self._write(scope) as tx:
            for op in ops:
                self._apply_one(tx, partition, op, scope, vectors)
            if rows:
                tx.add_replay(partition, [row.model_dump_json(exclude_defaults=True) for row in rows])
        self._written()

    def replay(self, *, scope: Scope, limit: int | None = None) -> list[ReplayRow]:
        """Return the last `limit` rows of experience of the collection, or all, oldest first."""
        check_limit(limit)
        return [ReplayRow.model_validate_json(row) for row in self._core.ledger.replay(self._partition(scope), limit)]

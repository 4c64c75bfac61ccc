"""`MemoryBank`: scoped memories over a ledger and an index, and what only a whole bank can do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from uuid import UUID

from memweave.errors import EmbeddingMismatchError, UsageError
from memweave.memory_stores.branch import Branch
from memweave.memory_stores.closing import Closing
from memweave.memory_stores.core import Core
from memweave.memory_stores.engine import AsyncSearch, IndexQuery, conditions
from memweave.memory_stores.exact import ExactEngine, ExactIndex, matches
from memweave.memory_stores.ledger import LedgerTransaction
from memweave.memory_stores.rows import fields_of, point_of, speakers_of
from memweave.memory_stores.store import MemoryStore, Vector, check_limit
from memweave.memory_stores.transfer import export_lines, import_lines
from memweave.records import (
    ImportReceipt,
    IndexFilter,
    Memory,
    MemoryHit,
    MemoryOp,
    OpStatus,
    PurgeReceipt,
    Scope,
    StoredTurn,
    TurnStatus,
)


class MemoryBank(MemoryStore, Closing):
    """Memories of many scopes, on disk. Open one with `open_bank`; it is safe to use from any thread and from async code."""

    def __init__(self, core: Core, release: Callable[[], None], *, collection: str = "memories") -> None:
        super().__init__(core.embedder, core.config, core.encoder, core.executor)
        self._opened = core
        self._release: Callable[[], None] | None = release
        self._collection = collection

    def search(
        self,
        query: str,
        *,
        scope: Scope,
        limit: int = 10,
        where: IndexFilter | None = None,
        as_of: datetime | None = None,
    ) -> list[MemoryHit]:
        """Return the memories that fit `query` best, best first: dense and BM25 rankings, fused.

        limit: 1..1000.  where: conditions on top of the scope.  as_of: search the state at that ledger time (exact, slower).
        Raises: InputError for a blank query or a limit out of range.
        """
        if as_of is not None:
            return self._search_past(query, scope=scope, limit=limit, where=where, as_of=as_of)
        projector = self._core.projector
        projector.catch_up()
        question, boosted = self._plan(
            query, scope, limit, where, projector.speakers(scope.partition(self._collection))
        )
        # A memory that another process replaces in between is found again by the next look.
        for _ in range(3):
            hits = self._boosted(projector.search(question), boosted, limit)
            found = projector.resolve(question.partition, scope, hits)
            if len(found) == len(hits):
                break
            projector.catch_up()
        return found

    async def asearch(
        self,
        query: str,
        *,
        scope: Scope,
        limit: int = 10,
        where: IndexFilter | None = None,
        as_of: datetime | None = None,
    ) -> list[MemoryHit]:
        """Async twin of `search`; a Qdrant server is asked without occupying a thread."""
        engine = (await self._in_thread(lambda: self._core.projector)).engine
        if as_of is not None or not isinstance(engine, AsyncSearch):
            return await self._in_thread(self.search, query, scope=scope, limit=limit, where=where, as_of=as_of)

        def prepare() -> tuple[IndexQuery, str | None]:
            projector = self._core.projector
            projector.catch_up()
            return self._plan(query, scope, limit, where, projector.speakers(scope.partition(self._collection)))

        question, boosted = await self._in_thread(prepare)
        hits = self._boosted(await engine.asearch(question), boosted, limit)
        found = await self._in_thread(self._core.projector.resolve, question.partition, scope, hits)
        if len(found) < len(hits):  # replaced in between: look again, as `search` does
            return await self._in_thread(self.search, query, scope=scope, limit=limit, where=where)
        return found

    def memories(
        self, *, scope: Scope, where: IndexFilter | None = None, as_of: datetime | None = None, limit: int | None = None
    ) -> list[Memory]:
        """Return the current memories (or those at a ledger time), oldest first."""
        check_limit(limit)
        partition, asked = self._partition(scope), conditions(where)
        found = self._core.ledger.memories(partition, scope, at=as_of, limit=None if asked else limit)
        return [memory for memory, run_id in found if matches(fields_of(memory, run_id), asked)][:limit]

    def log(
        self,
        *,
        scope: Scope,
        limit: int | None = None,
        after: int = 0,
        run_id: str | None = None,
        memory_id: UUID | None = None,
        status: OpStatus | None = None,
        newest: bool = False,
    ) -> list[MemoryOp]:
        """Return operations, oldest first; with `newest`, the last `limit` of them."""
        check_limit(limit)
        return self._core.ledger.log(
            self._partition(scope), scope, after=after, limit=limit, run_id=run_id, memory_id=memory_id, status=status, newest=newest
        )  # fmt: skip

    def turns(
        self,
        *,
        scope: Scope,
        dialogue: str | None = None,
        status: TurnStatus | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[StoredTurn]:
        """Return accepted turns, oldest first; with `before` and `limit`, the last ones before that position."""
        check_limit(limit)
        return self._core.ledger.turns(
            self._partition(scope), scope, dialogue=dialogue, status=status, before=before, limit=limit
        )

    def speakers(self, *, scope: Scope) -> list[str]:
        """Return the participants that own current memories, most memories first."""
        return self._core.ledger.speakers(self._partition(scope))

    def count(self, *, scope: Scope) -> int:
        """Return the number of current memories."""
        self._core.projector.catch_up()
        return self._core.projector.count(self._partition(scope))

    async def acount(self, *, scope: Scope) -> int:
        """Async twin of `count`."""
        return await self._in_thread(self.count, scope=scope)

    def purge(self, *, scope: Scope) -> PurgeReceipt:
        """Erase all memories, operations and turns of a scope, for good. A tombstone without content remains.

        Ledger and embedded index are written anew, so that nothing of it stays in their files; the temporary index of another process
        follows at its next read. On a Qdrant server the points are deleted; the server reclaims their storage in its own time.
        Raises: OperationError when that fails half-way: the scope is empty then, and repeating the purge cleans up.
        """
        core = self._core
        with core.ledger.write() as tx:
            receipt = tx.purge(scope)
        try:
            core.ledger.database.erase_traces()
        finally:
            core.projector.catch_up()
        return receipt

    async def apurge(self, *, scope: Scope) -> PurgeReceipt:
        """Async twin of `purge`."""
        return await self._in_thread(self.purge, scope=scope)

    def export(self, *, scope: Scope) -> Iterator[str]:
        """Yield the scope as JSON lines: a header, then turns, versions and operations with full history (no vectors)."""
        return export_lines(self._core.ledger, self._partition(scope), scope, collection=self._collection)

    def import_(self, lines: Iterable[str], *, scope: Scope) -> ImportReceipt:
        """Add an export to a scope that is empty, history included, or that holds just this export (then nothing happens).

        Raises: InputError naming the line that cannot be read; ConflictError for a scope that holds something else.
        """
        partition = self._partition(scope)
        receipt = import_lines(
            self._write(scope), partition, scope, lines, embed=self._embed, collection=self._collection
        )
        self._written()
        return receipt

    async def aexport(self, *, scope: Scope) -> list[str]:
        """Async twin of `export`; returns all lines."""
        return await self._in_thread(lambda: list(self.export(scope=scope)))

    async def aimport(self, lines: Sequence[str], *, scope: Scope) -> ImportReceipt:
        """Async twin of `import_`."""
        return await self._in_thread(self.import_, lines, scope=scope)

    def branch(self, *, scope: Scope) -> Branch:
        """Return an overlay over the current state: it reads this bank as it is now, and its writes never leave it."""
        return Branch(self._core, scope, collection=self._collection)

    async def abranch(self, *, scope: Scope) -> Branch:
        """Async twin of `branch`."""
        return await self._in_thread(self.branch, scope=scope)

    def rebuild(self) -> None:
        """Write the index anew from the ledger. To change the embedding model, see `opening.reembed`."""
        self._core.projector.rebuild()

    async def arebuild(self) -> None:
        """Async twin of `rebuild`."""
        await self._in_thread(self.rebuild)

    def optimize(self) -> bool:
        """Build the search graphs of an embedded index and return whether there was anything to do; a server does it by itself.

        Worth it for tens of thousands of memories of one user: without, a search compares with all of them. What is written later is
        compared one by one until the next call. The engine lets no other Python thread run meanwhile (40 s at 100,000 memories), which is
        why nothing calls it but you and `memweave memory rebuild`, and why it has no async twin.
        """
        return self._core.projector.optimize()

    def close(self) -> None:
        """Release the bank; the data folder is closed with its last bank in this process."""
        if self._release is not None:
            release, self._release = self._release, None
            release()

    async def aclose(self) -> None:
        """Async twin of `close`."""
        # Not in the bank's own threads: closing waits for them.
        await asyncio.to_thread(self.close)

    @property
    def _core(self) -> Core:
        self._check_open()
        return self._opened

    def _check_open(self) -> None:
        if self._release is None:
            raise UsageError("this memory bank is closed. Open the folder again with open_bank.")

    def _partition(self, scope: Scope) -> str:
        return scope.partition(self._collection)

    @contextmanager
    def _write(self, scope: Scope) -> Iterator[LedgerTransaction]:
        with self._core.ledger.write() as tx:
            if tx.meta("embedding") != self.embedder.model_id:
                raise EmbeddingMismatchError(
                    f"{self._core.ledger.database.where} was converted from {self.embedder.model_id!r} to another embedding meanwhile. "
                    "Close the bank and open it again; nothing was changed."
                )
            tx.ensure_owner(self._partition(scope), scope, self._collection)
            yield tx

    def _written(self) -> None:
        self._core.project()

    def _found(self, ids: Sequence[UUID], *, scope: Scope, as_of: datetime | None = None) -> list[Memory]:
        partition = self._partition(scope)
        if as_of is not None:
            wanted = set(ids)
            return [m for m, _ in self._core.ledger.memories(partition, scope, at=as_of) if m.id in wanted]
        return list(self._core.ledger.current(partition, ids, scope).values())

    def _query_vector(self, query: str) -> Vector | None:
        return self._core.query_vector(query, super()._query_vector)

    def _search_past(
        self, query: str, *, scope: Scope, limit: int, where: IndexFilter | None, as_of: datetime
    ) -> list[MemoryHit]:
        partition = self._partition(scope)
        versions = {v.memory.id: v for v in self._core.ledger.snapshot(partition, scope, at=as_of)}
        engine = ExactEngine(ExactIndex([point_of(partition, v, self._encoder) for v in versions.values()]))
        names = speakers_of(versions.values())
        return self._search_exact(engine, versions.__getitem__, names, query, scope=scope, limit=limit, where=where)

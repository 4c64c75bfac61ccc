"""`MemoryStore`: what a memory bank and a branch of one have in common, sync and async.

Every call carries a scope, and nothing crosses it. A subclass supplies the write transaction and the reads; how an operation changes
memories, what is embedded, and how an undo is made are here, once.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from contextvars import copy_context
from datetime import datetime
from functools import partial
from typing import ParamSpec, Protocol, TypeVar
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from memweave.embeddings import Embedder, unit_rows
from memweave.errors import ConflictError, InputError, UnknownMemoryError
from memweave.memory_stores.engine import IndexHit, IndexQuery, SearchConfig, conditions
from memweave.memory_stores.exact import ExactEngine
from memweave.memory_stores.rows import Version
from memweave.memory_stores.text import Bm25Encoder, embedded_text, named_speakers
from memweave.memory_stores.transitions import Sides, lineage, transition
from memweave.records import (
    IndexFilter,
    Memory,
    MemoryHit,
    MemoryOp,
    OpKind,
    OpStatus,
    ProposedOp,
    Scope,
    StoredTurn,
    Turn,
    TurnStatus,
    new_id,
    storable,
)

P = ParamSpec("P")
R = TypeVar("R")
Vector = NDArray[np.float32]


def check_limit(limit: int | None) -> None:
    """Raise `InputError` for a negative number of rows, and for one that no database can hold."""
    if limit is not None and not 0 <= limit < 2**63:
        raise InputError(f"limit {limit} is {'negative' if limit < 0 else 'too large'}; leave it out for all.")


class Transaction(Protocol):
    """An open write transaction: all of it happens, or none."""

    def tick(self) -> datetime:
        """Return the time of the next operation; each one has its own."""

    def current(self, partition: str, memory_id: UUID, scope: Scope) -> Version | None:
        """Return the current version of a memory."""

    def last_version(self, partition: str, memory_id: UUID) -> int:
        """Return the number of the last version ever of a memory, 0 if it never existed."""

    def version(self, partition: str, memory: Memory) -> Version:
        """Return a version with its vector."""

    def op(self, partition: str, op_id: UUID, scope: Scope) -> MemoryOp:
        """Return an operation. Raises: UnknownMemoryError."""

    def changes(self, partition: str, memory_id: UUID) -> list[tuple[UUID, UUID | None]]:
        """Return the operations that changed a memory and what each takes back, oldest first."""

    def record(self, partition: str, op: MemoryOp, opened: Version | None) -> MemoryOp:
        """Append an operation, close what it replaces, open what it writes; return it with its `seq`."""

    def accept(self, partition: str, turns: Sequence[Turn], scope: Scope) -> list[StoredTurn]:
        """Insert the turns that are new and return all, in order."""

    def finish_turn(self, partition: str, turn: StoredTurn) -> None:
        """Mark a turn done."""

    def fail_turn(self, partition: str, turn: StoredTurn, error: str) -> None:
        """Leave a turn pending and count the failed attempt."""


class MemoryStore(ABC):
    """Scoped memories that explain themselves and can be undone.

    Each method has an async twin with the prefix `a`, which never blocks the event loop.
    """

    embedder: Embedder
    config: SearchConfig

    def __init__(self, embedder: Embedder, config: SearchConfig, encoder: Bm25Encoder, executor: Executor) -> None:
        self.embedder = embedder
        self.config = config
        self._encoder = encoder
        self._executor = executor

    # What a subclass supplies.

    @abstractmethod
    def _partition(self, scope: Scope) -> str:
        """Return the partition of a scope. Raises: ScopeError when this store does not serve it."""

    @abstractmethod
    def _write(self, scope: Scope) -> AbstractContextManager[Transaction]:
        """Open the write transaction."""

    @abstractmethod
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

        limit: 1..1000.  where: conditions on top of the scope.  as_of: search the state at that ledger time.
        Raises: InputError for a blank query or a limit out of range.
        """

    @abstractmethod
    def memories(
        self, *, scope: Scope, where: IndexFilter | None = None, as_of: datetime | None = None, limit: int | None = None
    ) -> list[Memory]:
        """Return the current memories (or those at a ledger time), oldest first."""

    @abstractmethod
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

    @abstractmethod
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

    @abstractmethod
    def speakers(self, *, scope: Scope) -> list[str]:
        """Return the participants that own current memories, most memories first."""

    # What follows from it.

    def accept(self, turns: Sequence[Turn], *, scope: Scope) -> list[StoredTurn]:
        """Store turns durably before anything is made of them; return all, in order, with their status.

        Idempotent by (dialogue, source id).  Raises: ConflictError for a known id with another text.
        """
        if not turns:
            return []
        partition = self._partition(scope)
        with self._write(scope) as tx:
            return tx.accept(partition, turns, scope)

    def apply(self, ops: Sequence[ProposedOp], *, scope: Scope, turn: StoredTurn | None = None) -> list[MemoryOp]:
        """Apply operations in one transaction: all of them or none. With `turn`, that turn is done in the same transaction.

        Raises: UnknownMemoryError, ConflictError (see `transition`), InputError for an unusable embedding. Then nothing changed.
        """
        partition = self._partition(scope)
        vectors = self._embed([text for op in ops if (text := self._text_of(op, scope))])
        with self._write(scope) as tx:
            done = [self._apply_one(tx, partition, op, scope, vectors) for op in ops]
            if turn is not None:
                tx.finish_turn(partition, turn)
        self._written()
        return done

    def reject(
        self,
        error: str,
        *,
        scope: Scope,
        actor: str,
        reason: str = "reply could not be used",
        turn: StoredTurn | None = None,
        run_id: str | None = None,
        policy_version: str | None = None,
    ) -> MemoryOp:
        """Log an operation that failed before it could be applied. Nothing changes; `turn` stays pending and can be retried.

        A turn that somebody else has done meanwhile stays done.
        """
        partition = self._partition(scope)
        error, reason = storable(error), storable(reason)  # they may quote whatever a model said
        with self._write(scope) as tx:
            failed = MemoryOp.model_construct(
                id=new_id(), seq=0, kind=OpKind.NOOP, status=OpStatus.FAILED, scope=scope, memory_id=None, reason=reason,
                actor=actor, policy_version=policy_version, source_ids=(turn.source_id,) if turn else (), run_id=run_id,
                error=error, undoes=None, before=None, after=None, recorded_at=tx.tick(),
            )  # fmt: skip
            if turn is not None:
                tx.fail_turn(partition, turn, error)
            return tx.record(partition, failed, None)

    def get(self, memory_id: UUID, *, scope: Scope, as_of: datetime | None = None) -> Memory:
        """Return a memory. Raises: UnknownMemoryError, also for one of another scope."""
        for memory in self._found([memory_id], scope=scope, as_of=as_of):
            return memory
        raise UnknownMemoryError(f"no memory {memory_id} for {scope}. `memweave memory list` shows what there is.")

    @abstractmethod
    def _found(self, ids: Sequence[UUID], *, scope: Scope, as_of: datetime | None = None) -> list[Memory]:
        """Return those of the memories that exist."""

    def history(self, memory_id: UUID, *, scope: Scope) -> list[MemoryOp]:
        """Return all operations on a memory, oldest first; in a branch, those of the branch.

        Raises: UnknownMemoryError when there never was such a memory.
        """
        found = self.log(scope=scope, memory_id=memory_id)
        if not found and not self._found([memory_id], scope=scope):
            raise UnknownMemoryError(f"no memory {memory_id} for {scope}, now or before.")
        return found

    def as_of(self, time: datetime, *, scope: Scope) -> list[Memory]:
        """Return the memories that were current at a ledger time, oldest first."""
        return self.memories(scope=scope, as_of=time)

    def undo(self, op_id: UUID, *, scope: Scope, actor: str, reason: str | None = None) -> MemoryOp:
        """Take back one operation by a new one; returns that one. Undoing the undo restores.

        Raises: UnknownMemoryError; ConflictError when it changed nothing, is already undone, or the memory changed since.
        """
        partition = self._partition(scope)
        with self._write(scope) as tx:
            done = self._undo_one(tx, partition, tx.op(partition, op_id, scope), actor, reason)
        self._written()
        return done

    def undo_run(self, run_id: str, *, scope: Scope, actor: str, reason: str | None = None) -> list[MemoryOp]:
        """Take back all operations of a run, last first, in one transaction.

        Raises: UnknownMemoryError for an unknown run; ConflictError as in `undo`. Then nothing changed.
        """
        partition = self._partition(scope)
        ops = self.log(scope=scope, run_id=run_id)
        if not ops:
            raise UnknownMemoryError(f"no run {run_id!r} for {scope}. `memweave memory log` shows runs.")
        with self._write(scope) as tx:
            changed = [op for op in reversed(ops) if op.before or op.after]
            memories = {op.memory_id for op in changed if op.memory_id}
            undone = {i for memory_id in memories for i in lineage(tx.changes(partition, memory_id)).undone}
            open_ops = [op for op in changed if op.id not in undone]
            if not open_ops:
                raise ConflictError(f"run {run_id!r} changed nothing, or is already undone.")
            done = [self._undo_one(tx, partition, op, actor, reason) for op in open_ops]
        self._written()
        return done

    # How it is done.

    def _check_open(self) -> None:  # noqa: B027 -- only a bank can be closed
        """Raise UsageError when this store is closed."""

    def _written(self) -> None:  # noqa: B027 -- nothing follows a commit, except in a bank, which brings its index up to date
        """Do what follows a commit."""

    def _plan(
        self, query: str, scope: Scope, limit: int, where: IndexFilter | None, speakers: Collection[str]
    ) -> tuple[IndexQuery, str | None]:
        """Return the engine's query, and the participant whose memories are to be preferred."""
        if not query.strip():
            raise InputError("the search query is blank; give it at least one word.")
        if query != storable(query):
            raise InputError(f"the search query {query[:80]!r} holds NUL or half a surrogate pair, which are no text.")
        if not 1 <= limit <= 1_000:
            raise InputError(f"limit {limit} is outside 1..1000.")
        config = self.config
        nameless, named = named_speakers(query, speakers)
        open_to_all = where is None or where.speakers is None
        boosted = named[0] if len(named) == 1 and config.speaker_boost > 1 and open_to_all else None
        plan = IndexQuery(
            self._partition(scope),
            self._query_vector(query if config.names_in_query else nameless),
            self._encoder.query(query) if config.bm25_weight > 0 else None,
            2 * limit if boosted else limit,
            conditions(where),
            config.rrf_k,
            (config.dense_weight, config.bm25_weight),
            max(config.prefetch, 2 * limit),
        )
        return plan, boosted

    def _boosted(self, hits: Sequence[IndexHit], speaker: str | None, limit: int) -> list[IndexHit]:
        """Return the best `limit` hits after preferring the memories of `speaker`."""
        if speaker is None:
            return list(hits[:limit])
        factor = self.config.speaker_boost
        # A cosine can be negative, where multiplying would push it down.
        preferred = [
            h._replace(score=max(h.score * factor, h.score / factor)) if h.speaker == speaker else h for h in hits
        ]
        return sorted(preferred, key=lambda hit: -hit.score)[:limit]

    def _search_exact(
        self,
        engine: ExactEngine,
        version: Callable[[UUID], Version],
        speakers: Collection[str],
        query: str,
        *,
        scope: Scope,
        limit: int,
        where: IndexFilter | None,
    ) -> list[MemoryHit]:
        """Search a state that is held in memory. version: returns what the engine has under an id."""
        plan, boosted = self._plan(query, scope, limit, where, speakers)
        hits = self._boosted(engine.search(plan), boosted, limit)
        return [MemoryHit(memory=version(hit.key).memory, score=hit.score) for hit in hits]

    def _query_vector(self, query: str) -> Vector | None:
        if self.config.dense_weight <= 0:
            return None
        return self._embed([query])[query]

    def _text_of(self, op: ProposedOp, scope: Scope) -> str | None:
        """Return what is embedded for an operation; an UPDATE may inherit its speaker."""
        if op.text is None:
            return None
        if op.kind is OpKind.UPDATE and op.speaker is None and op.memory_id is not None:
            for memory in self._found([op.memory_id], scope=scope):
                return embedded_text(op.text, memory.speaker)
        return embedded_text(op.text, op.speaker) if op.kind in (OpKind.ADD, OpKind.UPDATE) else None

    def _embed(self, texts: Sequence[str]) -> dict[str, Vector]:
        unique = list(dict.fromkeys(texts))
        if not unique:
            return {}
        rows = unit_rows(
            self.embedder.embed(unique),
            count=len(unique),
            dimension=self.embedder.dimension,
            model_id=self.embedder.model_id,
        )
        return dict(zip(unique, rows, strict=True))

    def _apply_one(
        self, tx: Transaction, partition: str, op: ProposedOp, scope: Scope, vectors: Mapping[str, Vector]
    ) -> MemoryOp:
        current = tx.current(partition, op.memory_id, scope) if op.memory_id else None
        last = tx.last_version(partition, op.memory_id) if op.memory_id else 0
        now = tx.tick()
        sides = transition(op, current.memory if current else None, last, scope=scope, now=now)
        opened = None
        if sides.after is not None:
            text = embedded_text(sides.after.text, sides.after.speaker)
            # Missing only when the speaker changed between reading and writing.
            vector = vectors[text] if text in vectors else self._embed([text])[text]
            opened = Version(sides.after, vector, op.run_id)
        return tx.record(partition, _logged(op, sides, scope, now), opened)

    def _undo_one(self, tx: Transaction, partition: str, op: MemoryOp, actor: str, reason: str | None) -> MemoryOp:
        if op.memory_id is None or (op.before is None and op.after is None):
            raise ConflictError(
                f"operation {op.id} ({op.kind}, {op.status}) changed nothing, so there is nothing to undo."
            )
        line = lineage(tx.changes(partition, op.memory_id))
        if op.id in line.undone:
            raise ConflictError(f"operation {op.id} is already undone.")
        if line.states[op.id] != line.state:
            raise ConflictError(
                f"memory {op.memory_id} changed after operation {op.id}. Undo the later operations first "
                f"(`memweave memory log --memory {op.memory_id}`), or the whole run."
            )
        now = tx.tick()
        current, opened = tx.current(partition, op.memory_id, op.scope), None
        before = current.memory if current else None
        if op.before is not None:
            old = tx.version(partition, op.before)
            version = tx.last_version(partition, op.memory_id) + 1
            restored = old.memory.model_copy(update={"version": version, "recorded_at": now, "closed_at": None})
            opened = Version(restored, old.vector, old.run_id)
        sides = Sides(before, opened.memory if opened else None)
        kind = OpKind.DELETE if opened is None else OpKind.UPDATE if before else OpKind.ADD
        proposal = ProposedOp(
            kind=kind,
            memory_id=op.memory_id,
            text=opened.memory.text if opened else None,
            reason=reason or f"undo of {op.kind} ({op.reason})"[:2_000],
            actor=actor,
            source_ids=op.source_ids,
            undoes=op.id,
        )
        return tx.record(partition, _logged(proposal, sides, op.scope, now), opened)

    async def _in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a call in the store's bounded thread pool, with the caller's context."""
        self._check_open()
        context = copy_context()
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._executor, context.run, call)

    # Async twins.

    async def aaccept(self, turns: Sequence[Turn], *, scope: Scope) -> list[StoredTurn]:
        """Async twin of `accept`."""
        return await self._in_thread(self.accept, turns, scope=scope)

    async def aapply(
        self, ops: Sequence[ProposedOp], *, scope: Scope, turn: StoredTurn | None = None
    ) -> list[MemoryOp]:
        """Async twin of `apply`."""
        return await self._in_thread(self.apply, ops, scope=scope, turn=turn)

    async def areject(
        self,
        error: str,
        *,
        scope: Scope,
        actor: str,
        reason: str = "reply could not be used",
        turn: StoredTurn | None = None,
        run_id: str | None = None,
        policy_version: str | None = None,
    ) -> MemoryOp:
        """Async twin of `reject`."""
        return await self._in_thread(
            self.reject, error, scope=scope, actor=actor, reason=reason, turn=turn, run_id=run_id, policy_version=policy_version
        )  # fmt: skip

    async def asearch(
        self,
        query: str,
        *,
        scope: Scope,
        limit: int = 10,
        where: IndexFilter | None = None,
        as_of: datetime | None = None,
    ) -> list[MemoryHit]:
        """Async twin of `search`."""
        return await self._in_thread(self.search, query, scope=scope, limit=limit, where=where, as_of=as_of)

    async def aget(self, memory_id: UUID, *, scope: Scope, as_of: datetime | None = None) -> Memory:
        """Async twin of `get`."""
        return await self._in_thread(self.get, memory_id, scope=scope, as_of=as_of)

    async def amemories(
        self, *, scope: Scope, where: IndexFilter | None = None, as_of: datetime | None = None, limit: int | None = None
    ) -> list[Memory]:
        """Async twin of `memories`."""
        return await self._in_thread(self.memories, scope=scope, where=where, as_of=as_of, limit=limit)

    async def alog(
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
        """Async twin of `log`."""
        return await self._in_thread(
            self.log, scope=scope, limit=limit, after=after, run_id=run_id, memory_id=memory_id, status=status, newest=newest
        )  # fmt: skip

    async def aturns(
        self,
        *,
        scope: Scope,
        dialogue: str | None = None,
        status: TurnStatus | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[StoredTurn]:
        """Async twin of `turns`."""
        return await self._in_thread(
            self.turns, scope=scope, dialogue=dialogue, status=status, before=before, limit=limit
        )

    async def aspeakers(self, *, scope: Scope) -> list[str]:
        """Async twin of `speakers`."""
        return await self._in_thread(self.speakers, scope=scope)

    async def ahistory(self, memory_id: UUID, *, scope: Scope) -> list[MemoryOp]:
        """Async twin of `history`."""
        return await self._in_thread(self.history, memory_id, scope=scope)

    async def aas_of(self, time: datetime, *, scope: Scope) -> list[Memory]:
        """Async twin of `as_of`."""
        return await self._in_thread(self.as_of, time, scope=scope)

    async def aundo(self, op_id: UUID, *, scope: Scope, actor: str, reason: str | None = None) -> MemoryOp:
        """Async twin of `undo`."""
        return await self._in_thread(self.undo, op_id, scope=scope, actor=actor, reason=reason)

    async def aundo_run(self, run_id: str, *, scope: Scope, actor: str, reason: str | None = None) -> list[MemoryOp]:
        """Async twin of `undo_run`."""
        return await self._in_thread(self.undo_run, run_id, scope=scope, actor=actor, reason=reason)


def _logged(op: ProposedOp, sides: Sides, scope: Scope, now: datetime) -> MemoryOp:
    side = sides.after or sides.before
    return MemoryOp.model_construct(
        id=new_id(),
        seq=0,  # the log gives it its place
        kind=op.kind,
        status=OpStatus.APPLIED,
        scope=scope,
        memory_id=side.id if side else op.memory_id,
        reason=op.reason,
        actor=op.actor,
        policy_version=op.policy_version,
        source_ids=op.source_ids,
        run_id=op.run_id,
        error=None,
        undoes=op.undoes,
        before=sides.before,
        after=sides.after,
        recorded_at=now,
    )

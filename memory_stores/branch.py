"""A branch: an overlay over one scope of a bank, for trying things out. Its writes never leave it.

The base is the state at the moment of branching, held once for all branches of that state; later writes to the bank are not seen.
So G rollouts from one state are independent, and creating one costs far less than a millisecond.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from uuid import UUID

from memweave.errors import ConflictError, InputError, ScopeError, UnknownMemoryError
from memweave.memory_stores.core import Core
from memweave.memory_stores.engine import conditions
from memweave.memory_stores.exact import ExactEngine, matches
from memweave.memory_stores.rows import Version, fields_of, point_of, speakers_of
from memweave.memory_stores.store import MemoryStore, check_limit
from memweave.records import (
    IndexFilter,
    Memory,
    MemoryHit,
    MemoryOp,
    OpStatus,
    Scope,
    StoredTurn,
    Turn,
    TurnStatus,
    as_utc,
    utc_now,
)


@dataclass(slots=True)
class _State:
    """What a branch holds; copied before a transaction, so that a failed one leaves nothing behind."""

    engine: ExactEngine
    written: dict[UUID, Version | None] = field(default_factory=dict)
    """Memories that differ from the base; `None` where one was deleted."""
    closed: list[Version] = field(default_factory=list)
    """Versions that were replaced or deleted in the branch, with `closed_at`."""
    ops: list[MemoryOp] = field(default_factory=list)
    turns: dict[tuple[str, str], StoredTurn] = field(default_factory=dict)

    def copy(self) -> _State:
        return _State(self.engine.fork(), dict(self.written), list(self.closed), list(self.ops), dict(self.turns))


class Branch(MemoryStore):
    """A private copy of one scope; made by `MemoryBank.branch`. `as_of` reaches back to the moment of branching."""

    def __init__(self, core: Core, scope: Scope, *, collection: str) -> None:
        super().__init__(core.embedder, core.config, core.encoder, core.executor)
        self._core = core
        self.scope = scope
        self._collection = collection
        self._key = scope.partition(collection)
        self.base_seq, self._base, self._base_speakers, index = core.snapshot(self._key, scope)
        self.branched_at = utc_now()
        self._state = _State(ExactEngine(index))
        self._lock = threading.RLock()

    def search(
        self,
        query: str,
        *,
        scope: Scope,
        limit: int = 10,
        where: IndexFilter | None = None,
        as_of: datetime | None = None,
    ) -> list[MemoryHit]:
        """Return the memories that fit `query` best; see `MemoryStore.search`."""
        self._partition(scope)
        state = self._state
        if as_of is None:
            names = self._base_speakers | speakers_of(v for v in state.written.values() if v is not None)
            return self._search_exact(
                state.engine, partial(self._current, state), names, query, scope=scope, limit=limit, where=where
            )
        past = {m.id: v for v in self._all(state, as_of) for m in (v.memory,)}
        engine = ExactEngine()
        engine.upsert([point_of(self._key, version, self._encoder) for version in past.values()])
        names = speakers_of(past.values())
        return self._search_exact(engine, past.__getitem__, names, query, scope=scope, limit=limit, where=where)

    def memories(
        self, *, scope: Scope, where: IndexFilter | None = None, as_of: datetime | None = None, limit: int | None = None
    ) -> list[Memory]:
        """Return the current memories (or those at a time since branching), oldest first."""
        check_limit(limit)
        self._partition(scope)
        asked = conditions(where)
        found = sorted(self._all(self._state, as_of), key=lambda v: v.memory.id)
        return [v.memory for v in found if matches(fields_of(v.memory, v.run_id), asked)][:limit]

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
        """Return the operations of this branch (not those before it), oldest first."""
        check_limit(limit)
        self._partition(scope)
        found = [
            op
            for op in self._state.ops
            if op.seq > after
            and (run_id is None or op.run_id == run_id)
            and (memory_id is None or op.memory_id == memory_id)
            and (status is None or op.status is status)
        ]
        return found[-limit:] if newest and limit else found[:limit]

    def turns(
        self,
        *,
        scope: Scope,
        dialogue: str | None = None,
        status: TurnStatus | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[StoredTurn]:
        """Return the turns that were given to this branch, oldest first."""
        check_limit(limit)
        self._partition(scope)
        found = [
            turn
            for turn in self._state.turns.values()
            if (dialogue is None or turn.dialogue == dialogue)
            and (status is None or turn.status is status)
            and (before is None or turn.position < before)
        ]
        return found[-limit:] if before is not None and limit else found[:limit]

    def speakers(self, *, scope: Scope) -> list[str]:
        """Return the participants that own current memories, most memories first."""
        counts: dict[str, int] = {}
        for memory in self.memories(scope=scope):
            if memory.speaker is not None:
                counts[memory.speaker] = counts.get(memory.speaker, 0) + 1
        return sorted(counts, key=lambda name: (-counts[name], name))

    def _partition(self, scope: Scope) -> str:
        if scope != self.scope:
            raise ScopeError(f"this branch holds {self.scope}, not {scope}. Make a branch of that scope.")
        return self._key

    @contextmanager
    def _write(self, scope: Scope) -> Iterator[_BranchTransaction]:
        self._partition(scope)
        with self._lock:
            draft = self._state.copy()
            yield _BranchTransaction(draft, self._base, self._index, self.branched_at)
            self._state = draft

    def _index(self, version: Version, engine: ExactEngine) -> None:
        engine.upsert([point_of(self._key, version, self._encoder)])

    def _found(self, ids: Sequence[UUID], *, scope: Scope, as_of: datetime | None = None) -> list[Memory]:
        self._partition(scope)
        wanted = set(ids)
        if as_of is None:
            alive = ((i, self._state.written.get(i, self._base.get(i))) for i in wanted)
            return [version.memory for _, version in alive if version is not None]
        return [v.memory for v in self._all(self._state, as_of) if v.memory.id in wanted]

    def _current(self, state: _State, memory_id: UUID) -> Version:
        return state.written.get(memory_id) or self._base[memory_id]

    def _alive(self, state: _State) -> dict[UUID, Version]:
        merged: dict[UUID, Version | None] = {**self._base, **state.written}
        return {i: version for i, version in merged.items() if version is not None}

    def _all(self, state: _State, as_of: datetime | None) -> list[Version]:
        if as_of is None:
            return list(self._alive(state).values())
        as_of = as_utc(as_of)
        if as_of < self.branched_at:
            raise InputError(
                f"this branch of {self.scope} knows its past since {self.branched_at.isoformat()} only. Ask the bank."
            )
        everything = [*self._alive(state).values(), *state.closed]
        return [
            v
            for v in everything
            if (self._is_base(v) or v.memory.recorded_at <= as_of)
            and (v.memory.closed_at is None or v.memory.closed_at > as_of)
        ]

    def _is_base(self, version: Version) -> bool:
        base = self._base.get(version.memory.id)
        return base is not None and base.memory.version == version.memory.version


class _BranchTransaction:
    """The open write transaction of a branch; see `store.Transaction`."""

    def __init__(
        self,
        state: _State,
        base: dict[UUID, Version],
        index: Callable[[Version, ExactEngine], None],
        branched_at: datetime,
    ) -> None:
        self._state = state
        self._base = base
        self._index = index
        last = state.ops[-1].recorded_at if state.ops else branched_at
        # As in the ledger, time never stands still or goes back.
        self._now = max(utc_now(), last + timedelta(microseconds=1))
        self._positions = count(len(state.turns) + 1)

    def tick(self) -> datetime:
        """Return the time of the next operation."""
        now = self._now
        self._now = now + timedelta(microseconds=1)
        return now

    def current(self, partition: str, memory_id: UUID, scope: Scope) -> Version | None:
        """Return the current version of a memory."""
        return self._state.written.get(memory_id, self._base.get(memory_id))

    def last_version(self, partition: str, memory_id: UUID) -> int:
        """Return the number of the last version that this branch knows of."""
        known = [v.memory.version for v in self._state.closed if v.memory.id == memory_id]
        current = self.current(partition, memory_id, Scope(user="-"))
        return max([*known, current.memory.version if current else 0])

    def version(self, partition: str, memory: Memory) -> Version:
        """Return a version with its vector."""
        candidates = [*self._state.closed, *self._state.written.values(), self._base.get(memory.id)]
        return next(v for v in candidates if v and (v.memory.id, v.memory.version) == (memory.id, memory.version))

    def op(self, partition: str, op_id: UUID, scope: Scope) -> MemoryOp:
        """Return an operation of this branch. Raises: UnknownMemoryError."""
        for op in self._state.ops:
            if op.id == op_id:
                return op
        raise UnknownMemoryError(f"no operation {op_id} in this branch of {scope}.")

    def changes(self, partition: str, memory_id: UUID) -> list[tuple[UUID, UUID | None]]:
        """Return the operations of this branch that changed a memory and what each takes back, oldest first."""
        changed = (op for op in self._state.ops if op.memory_id == memory_id and (op.before or op.after))
        return [(op.id, op.undoes) for op in changed]

    def record(self, partition: str, op: MemoryOp, opened: Version | None) -> MemoryOp:
        """Append an operation, close what it replaces, open what it writes."""
        state = self._state
        op = op.model_copy(update={"seq": len(state.ops) + 1})
        state.ops.append(op)
        if op.before is not None:
            old = self.current(partition, op.before.id, op.scope)
            assert old is not None  # `before` was read in this transaction
            closed = old.memory.model_copy(update={"closed_at": op.recorded_at})
            state.closed.append(replace(old, memory=closed))
        if opened is not None:
            state.written[opened.memory.id] = opened
            self._index(opened, state.engine)
        elif op.before is not None:
            state.written[op.before.id] = None
            state.engine.delete([(partition, op.before.id)])
        return op

    def accept(self, partition: str, turns: Sequence[Turn], scope: Scope) -> list[StoredTurn]:
        """Keep the turns that are new and return all, in order. Raises: ConflictError for a known id with another text."""
        out: list[StoredTurn] = []
        for turn in turns:
            key = (turn.dialogue, turn.source_id)
            known = self._state.turns.get(key)
            if known is None:
                said = turn.model_dump(include=set(Turn.model_fields))  # it may be a stored turn of the bank
                known = StoredTurn(
                    **said, scope=scope, position=next(self._positions), status=TurnStatus.PENDING, attempts=0, error=None
                )  # fmt: skip
                self._state.turns[key] = known
            elif (known.text, known.speaker) != (turn.text, turn.speaker):
                raise ConflictError(f"turn {turn.source_id!r} was already given with another text or speaker.")
            out.append(known)
        return out

    def finish_turn(self, partition: str, turn: StoredTurn) -> None:
        """Mark a turn done. Raises: ConflictError when it already was."""
        known = self._state.turns.get((turn.dialogue, turn.source_id))
        if known is None or known.status is TurnStatus.DONE:
            raise ConflictError(f"turn {turn.source_id!r} is already done or was not given to this branch.")
        done = known.model_copy(update={"status": TurnStatus.DONE, "error": None})
        self._state.turns[turn.dialogue, turn.source_id] = done

    def fail_turn(self, partition: str, turn: StoredTurn, error: str) -> None:
        """Leave a turn pending and count the failed attempt; one that is done stays as it is."""
        known = self._state.turns.get((turn.dialogue, turn.source_id))
        if known is not None and known.status is TurnStatus.PENDING:
            failed = known.model_copy(update={"attempts": known.attempts + 1, "error": error})
            self._state.turns[turn.dialogue, turn.source_id] = failed

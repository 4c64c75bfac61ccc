"""Keeps an index in step with the ledger, and the current memories at hand.

A projector applies committed operations in order and remembers the last one in the index itself, after the points it speaks for. So a
crash between commit and projection costs nothing: the next read catches up. An index that belongs to another ledger, was written under
another configuration or is ahead of its ledger is rebuilt.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Final, TypeVar
from uuid import UUID

from memweave.errors import DataFolderError, OperationError
from memweave.memory_stores.engine import IndexHit, IndexQuery, Marker, Optimizing, VectorEngine
from memweave.memory_stores.ledger import Change, Effect, Ledger
from memweave.memory_stores.probes import reached
from memweave.memory_stores.rows import point_of
from memweave.memory_stores.text import Bm25Encoder
from memweave.records import Memory, MemoryHit, Scope

R = TypeVar("R")

_BATCH: Final = 1_000
_CACHED: Final = 200_000


class Projector:
    """Applies the operations of `ledger` to `engine`.

    write_key: what the points are written under (configuration and embedding model).  shared: other processes project into the
    same engine (a Qdrant server), so one at a time.
    """

    def __init__(
        self, ledger: Ledger, engine: VectorEngine, encoder: Bm25Encoder, *, write_key: str, shared: bool
    ) -> None:
        self.engine = engine
        self._ledger = ledger
        self._encoder = encoder
        self._write_key = write_key
        self._shared = shared
        self._lock = threading.RLock()
        self._seq = -1  # not opened yet, or being written anew
        self._fills = 0  # counts up when writing anew begins and again when it ends: odd in between
        self._cache: OrderedDict[tuple[str, UUID], Memory] = OrderedDict()
        self._speakers: dict[str, frozenset[str]] = {}

    def catch_up(self) -> None:
        """Bring the index up to the last committed operation. Cheap when nothing happened."""
        if self._seq >= self._ledger.head() and self._seq >= 0:
            return
        with self._lock, self._ledger.database.projecting() if self._shared else nullcontext():
            marker = self._opened()
            while self._seq < self._ledger.head():  # another thread may have been here
                changes = self._ledger.changes(self._seq, limit=_BATCH)
                if not self._shared and any(c.effect is Effect.DROP for c in changes):
                    # Deleted points linger in the files of an embedded index; a purge must leave nothing behind.
                    marker = self._fill()
                    continue
                self._apply([c for c in changes if c.seq > marker.seq])
                self._remember(changes)
                self._seq = changes[-1].seq
                if self._seq > marker.seq:
                    marker = self._mark(self._seq)

    def rebuild(self) -> None:
        """Write the index anew from the ledger."""
        with self._lock, self._ledger.database.projecting() if self._shared else nullcontext():
            self._fill()

    def optimize(self) -> bool:
        """Let the engine build its search graphs; return whether there was anything to do."""
        self.catch_up()
        with self._lock:
            return isinstance(self.engine, Optimizing) and self.engine.optimize()

    def _opened(self) -> Marker:
        """Return the index's marker, after filling an index that is new or does not fit."""
        if self._seq >= 0 and not self._shared:
            return Marker(self._ledger.id, self._seq, self._write_key)
        if self._seq < 0 and self._fills:  # writing it anew failed half-way
            return self._fill()
        marker = self._marker()
        fits = marker is not None and (marker.ledger, marker.write_key) == (self._ledger.id, self._write_key)
        if marker is None or not fits or marker.seq > self._ledger.head():
            return self._fill()
        if self._seq < 0 and not self._shared and self.engine.count() != self._ledger.count(marker.seq):
            return self._fill()  # its files lost something, in a power cut for example
        if self._seq < 0 or self._seq > marker.seq:
            self._seq = marker.seq
        return marker

    def _marker(self) -> Marker | None:
        try:
            return self.engine.marker()
        except DataFolderError:  # damaged: as good as new
            return None

    def _fill(self) -> Marker:
        """Write the index anew. Readers wait meanwhile; interrupted, it leaves no marker, so the next look starts over."""
        head = self._ledger.head()
        self._seq = -1
        self._fills += 1
        try:
            self._cache.clear()
            self._speakers.clear()
            self.engine.clear()
            reached("fill:cleared")
            for batch in self._ledger.everything(head):
                self.engine.upsert([point_of(partition, version, self._encoder) for partition, version in batch])
                reached("fill:upserted")
                for partition, version in batch[: max(0, _CACHED - len(self._cache))]:
                    self._cache[partition, version.memory.id] = version.memory
            marker = self._mark(head)
            self._seq = head
            return marker
        finally:
            self._fills += 1

    def _mark(self, seq: int) -> Marker:
        marker = Marker(self._ledger.id, seq, self._write_key)
        self.engine.set_marker(marker)
        reached("project:marked")
        return marker

    def _apply(self, changes: Iterable[Change]) -> None:
        """Apply changes to the engine; only the last one of each memory matters."""
        pending: dict[tuple[str, UUID], Change] = {}
        for change in changes:
            if change.effect is Effect.DROP:
                pending = {at: c for at, c in pending.items() if at[0] != change.partition}
                self.engine.drop_partition(change.partition)
            elif change.effect is not Effect.NONE:
                pending[change.partition, change.memory_id] = change
        points = [point_of(c.partition, c.opened, self._encoder) for c in pending.values() if c.opened is not None]
        if points:
            self.engine.upsert(points)
            reached("project:upserted")
        gone = [at for at, c in pending.items() if c.opened is None]
        if gone:
            self.engine.delete(gone)
            reached("project:deleted")

    def _remember(self, changes: Sequence[Change]) -> None:
        for change in changes:
            at = (change.partition, change.memory_id)
            if change.effect is Effect.DROP:
                for key in [key for key in self._cache if key[0] == change.partition]:
                    del self._cache[key]
                self._speakers.pop(change.partition, None)
            elif change.opened is not None:
                memory = self._cache[at] = change.opened.memory
                known = self._speakers.get(change.partition)
                if memory.speaker is not None and known is not None and memory.speaker not in known:
                    # A new set: others may be reading this one.
                    self._speakers[change.partition] = known | {memory.speaker}
                if len(self._cache) > _CACHED:
                    self._cache.popitem(last=False)
            elif change.effect is Effect.REMOVE:
                self._cache.pop(at, None)

    def search(self, query: IndexQuery) -> list[IndexHit]:
        """Search the index as it is; once more when it was written anew meanwhile."""
        return self._steady(lambda: self.engine.search(query))

    def count(self, partition: str) -> int:
        """Return the number of points of a partition."""
        return self._steady(lambda: self.engine.count(partition))

    def _steady(self, read: Callable[[], R]) -> R:
        while True:
            fills = self._fills
            try:
                found = read()
            except OperationError:
                if fills == self._fills and fills % 2 == 0:
                    raise
            else:
                if fills == self._fills and fills % 2 == 0:
                    return found
            self.catch_up()  # waits for the other thread

    def speakers(self, partition: str) -> frozenset[str]:
        """Return the participants of a partition, those whose last memory was deleted since opening included."""
        found = self._speakers.get(partition)
        if found is None:
            with self._lock:
                found = self._speakers[partition] = frozenset(self._ledger.speakers(partition))
        return found

    def resolve(self, partition: str, scope: Scope, hits: Sequence[IndexHit]) -> list[MemoryHit]:
        """Return the current memories of index hits; a hit that was replaced or deleted meanwhile is left out."""
        cache = self._cache
        known = {hit.key: cache.get((partition, hit.key)) for hit in hits}
        missing = [key for key, memory in known.items() if memory is None]
        if missing:
            with self._lock:  # no projection in between: what is read here is as new as the cache
                for memory in self._ledger.current(partition, missing, scope).values():
                    known[memory.id] = cache.setdefault((partition, memory.id), memory)
                    if len(cache) > _CACHED:
                        cache.popitem(last=False)
        out: list[MemoryHit] = []
        for hit in hits:
            found = known[hit.key]
            if found is not None and found.version == hit.version:
                out.append(MemoryHit(found, hit.score))
        return out

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

"""What all banks that this process has open on one data folder share: ledger, index, embedder, threads and small caches."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from uuid import UUID

from memweave.embeddings import Embedder
from memweave.errors import OperationError
from memweave.memory_stores.engine import SearchConfig, VectorEngine
from memweave.memory_stores.exact import ExactIndex
from memweave.memory_stores.ledger import Ledger
from memweave.memory_stores.projector import Projector
from memweave.memory_stores.rows import Version, point_of, speakers_of
from memweave.memory_stores.store import Vector
from memweave.memory_stores.text import EMBED_TEMPLATE, Bm25Encoder
from memweave.records import Scope

_log = logging.getLogger(__name__)
_THREADS: Final = 4
"""Threads for async calls of one bank. More of them only make the event loop wait longer for the interpreter."""
_QUERY_VECTORS: Final = 512
_SNAPSHOTS: Final = 4


class Core:
    """Ledger, index and embedder of one data folder, opened once per process.

    make_engine: opens the index on first use; returns it and whether other processes write to it too (a Qdrant server).
    """

    def __init__(
        self,
        ledger: Ledger,
        embedder: Embedder,
        config: SearchConfig,
        make_engine: Callable[[], tuple[VectorEngine, bool]],
    ) -> None:
        self.ledger = ledger
        self.embedder = embedder
        self.config = config
        self.encoder = Bm25Encoder(config)
        self.executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="memweave")
        self._make_engine = make_engine
        self._projector: Projector | None = None
        self._lock = threading.RLock()
        self._query_vectors: OrderedDict[str, Vector] = OrderedDict()
        self._snapshots: OrderedDict[tuple[str, int], tuple[dict[UUID, Version], frozenset[str], ExactIndex]] = (
            OrderedDict()
        )
        self._snapshot_lock = threading.Lock()  # of its own: making one takes long, and searches must not wait for it

    @property
    def projector(self) -> Projector:
        """Return the projector; opens the index the first time."""
        if self._projector is None:
            with self._lock:
                if self._projector is None:
                    engine, shared = self._make_engine()
                    key = f"{self.config.write_key()};{self.embedder.model_id};template={EMBED_TEMPLATE}"
                    self._projector = Projector(self.ledger, engine, self.encoder, write_key=key, shared=shared)
        return self._projector

    def project(self) -> None:
        """Bring the index up to date if it is open. What fails here is not lost: the next read catches up, or says why not."""
        if self._projector is not None:
            try:
                self._projector.catch_up()
            except OperationError as error:
                _log.warning("committed to the ledger, but the index is behind: %s", error)

    def query_vector(self, text: str, embed: Callable[[str], Vector | None]) -> Vector | None:
        """Return the vector of a query, remembered for the last few hundred queries."""
        with self._lock:
            if text in self._query_vectors:
                self._query_vectors.move_to_end(text)
                return self._query_vectors[text]
        vector = embed(text)
        if vector is not None:
            with self._lock:
                self._query_vectors[text] = vector
                if len(self._query_vectors) > _QUERY_VECTORS:
                    self._query_vectors.popitem(last=False)
        return vector

    def snapshot(self, partition: str, scope: Scope) -> tuple[int, dict[UUID, Version], frozenset[str], ExactIndex]:
        """Return the state of a partition now: sequence number, versions, speakers and exact index. Shared, never written to."""
        seq = self.ledger.head()
        with self._snapshot_lock:
            found = self._snapshots.get((partition, seq))
            if found is None:
                versions = {v.memory.id: v for v in self.ledger.snapshot(partition, scope, seq=seq)}
                index = ExactIndex([point_of(partition, v, self.encoder) for v in versions.values()])
                found = versions, speakers_of(versions.values()), index
                self._snapshots[partition, seq] = found
                if len(self._snapshots) > _SNAPSHOTS:
                    self._snapshots.popitem(last=False)
        return seq, *found

    def close(self) -> None:
        """Flush and release everything. What the index cannot write any more is not lost: it catches up when it is opened."""
        self.executor.shutdown(wait=True)
        try:
            if self._projector is not None:
                self._projector.close()
        except OperationError as error:
            _log.warning("the index could not be closed properly: %s", error)
        finally:
            self.ledger.close()

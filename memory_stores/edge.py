"""The default engine: Qdrant Edge, the Rust engine of Qdrant in this process, on disk.

One process owns a folder (`opening.py` sees to that). Writes go through Edge's write-ahead log, so they survive a hard exit; the
marker is a point of its own, written after the points it speaks for.
"""

from __future__ import annotations

import errno
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from memweave.errors import DataFolderError, StorageFullError
from memweave.memory_stores.engine import (
    KEYWORD_FIELDS,
    NUMBER_FIELDS,
    Condition,
    IndexHit,
    IndexPoint,
    IndexQuery,
    Marker,
    Match,
    point_id,
)

if TYPE_CHECKING:
    import qdrant_edge as qe

_MARKER_ID: Final = uuid.UUID(int=0)
_BATCH: Final = 512
_WHOSE: Final = "whose"
"""Payload field that holds partition and speaker in one: Edge checks one condition nearly twice as fast as two."""
_ROOM: Final = 64 * 1024 * 1024
"""Free space that a write needs, in bytes. The engine writes through memory maps, and on a full disk the kernel does not report an
error for that: it kills the process (SIGBUS). A batch of vectors of 3,072 numbers takes 27 MB with its log."""


class EdgeEngine:
    """A `VectorEngine` over one Qdrant Edge shard in `path`; `dimension` is the length of dense vectors.

    wal: write-ahead log; a temporary index does without (it is rebuilt anyway).
    Raises: DataFolderError when the folder cannot be opened, for example because another process holds it; StorageFullError, also
    from every write, when less than `_ROOM` is free on its disk.
    """

    def __init__(self, path: Path, dimension: int, *, wal: bool = True) -> None:
        self._path = path
        self._dimension = dimension
        self._wal = wal
        # Just created and never written to: clearing it would only create it again, a second's work on a slow disk.
        self._blank = False
        self._shard = self._open()

    def _open(self) -> qe.EdgeShard:
        import qdrant_edge as qe

        config = qe.EdgeConfig(
            vectors={"dense": qe.EdgeVectorParams(size=self._dimension, distance=qe.Distance.Cosine)},
            sparse_vectors={"bm25": qe.EdgeSparseVectorParams(modifier=qe.Modifier.Idf)},
            wal_enabled=self._wal,
            max_search_threads=1,  # there is one segment, and handing a search over costs more than it saves
        )
        with self._errors("opening"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._check_room()
            if (self._path / "edge_config.json").exists():
                return qe.EdgeShard.load(str(self._path))
            self._path.mkdir(parents=True, exist_ok=True)
            shard = qe.EdgeShard.create(str(self._path), config)
            for update in _field_indexes():
                shard.update(update)
            self._blank = True
            return shard

    def upsert(self, points: Sequence[IndexPoint]) -> None:
        """Insert points, or replace those with the same partition and key."""
        import qdrant_edge as qe

        for start in range(0, len(points), _BATCH):
            batch = [
                qe.Point(
                    p.id,
                    {"dense": p.dense.tolist(), "bm25": qe.SparseVector(p.sparse.indices, p.sparse.values)},
                    {"partition": p.partition, "key": p.key.hex, "version": p.version, **p.fields, **_whose(p)},
                )
                for p in points[start : start + _BATCH]
            ]
            self._update(qe.UpdateOperation.upsert_points(batch))

    def delete(self, points: Sequence[tuple[str, uuid.UUID]]) -> None:
        """Remove points by (partition, key); an absent one is ignored."""
        import qdrant_edge as qe

        if points:
            self._update(qe.UpdateOperation.delete_points([point_id(*point) for point in points]))

    def drop_partition(self, partition: str) -> None:
        """Remove all points of a partition."""
        import qdrant_edge as qe

        self._update(qe.UpdateOperation.delete_points_by_filter(_filter(partition, ())))

    def search(self, query: IndexQuery) -> list[IndexHit]:
        """Return the best `query.limit` points of the partition, best first."""
        with self._errors("searching"):
            found = self._shard.query(_request(query))
        return [
            IndexHit(uuid.UUID(hex=payload["key"]), payload["version"], point.score, payload.get("speaker"))
            for point in found
            if (payload := point.payload) is not None
        ]

    def count(self, partition: str | None = None) -> int:
        """Return the number of points, of one partition or of all."""
        import qdrant_edge as qe

        where = _filter(partition, ()) if partition is not None else None
        with self._errors("reading"):
            found = self._shard.count(qe.CountRequest(exact=True, filter=where))
        return found if partition is not None else found - (self.marker() is not None)

    def marker(self) -> Marker | None:
        """Return how far the ledger has been projected, or `None` for a new index."""
        with self._errors("reading"):
            found = self._shard.retrieve([_MARKER_ID], True, False)
        if not found or found[0].payload is None:
            return None
        payload = found[0].payload
        return Marker(payload["ledger"], payload["seq"], payload["write_key"])

    def set_marker(self, marker: Marker) -> None:
        """Record how far the ledger has been projected; durable after the points written before it."""
        import qdrant_edge as qe

        self._update(qe.UpdateOperation.upsert_points([qe.Point(_MARKER_ID, {}, dict(marker._asdict()))]))

    def optimize(self) -> bool:
        """Merge segments and build HNSW graphs; no other Python thread runs meanwhile. Returns whether it did anything."""
        self._blank = False
        with self._errors("optimizing"):
            self._check_room()
            return self._shard.optimize()

    def clear(self) -> None:
        """Remove everything, files included: nothing that was deleted stays readable on disk."""
        if self._blank:
            return
        with suppress(DataFolderError, StorageFullError), self._errors("closing"):
            self._shard.close()  # whatever it failed to flush is thrown away here
        with self._errors("clearing"):
            if self._path.exists():
                shutil.rmtree(self._path)
        self._shard = self._open()

    def close(self) -> None:
        """Flush and release the folder."""
        with self._errors("closing"):
            try:
                self._shard.flush()
            finally:
                self._shard.close()

    def _update(self, operation: qe.UpdateOperation) -> None:
        self._blank = False
        with self._errors("writing to"):
            self._check_room()
            self._shard.update(operation)

    def _check_room(self) -> None:
        free = shutil.disk_usage(self._path.parent).free
        if free < _ROOM:
            raise OSError(
                errno.ENOSPC, f"No space left on device: {free >> 20} MB are free, {_ROOM >> 20} MB are needed"
            )

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Turn the engine's errors into ours."""
        try:
            yield
        except BaseException as error:
            # The binding raises bare Exceptions with the engine's text; a panic of the engine is not even an Exception.
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise _translated(error, f"{doing} index {self._path}") from error
            raise


def _field_indexes() -> Iterable[qe.UpdateOperation]:
    import qdrant_edge as qe

    yield qe.UpdateOperation.create_field_index("partition", qe.KeywordIndexParams(is_tenant=True))
    for field in (_WHOSE, *(field for field in KEYWORD_FIELDS if field != "speaker")):
        yield qe.UpdateOperation.create_field_index(field, qe.PayloadSchemaType.Keyword)
    for field in NUMBER_FIELDS:
        yield qe.UpdateOperation.create_field_index(field, qe.PayloadSchemaType.Float)


def _whose(point: IndexPoint) -> dict[str, str]:
    speaker = point.fields.get("speaker")
    return {_WHOSE: f"{point.partition}{speaker}"} if speaker is not None else {}


def _filter(partition: str, conditions: Sequence[Condition]) -> qe.Filter:
    import qdrant_edge as qe

    speaker = next((c for c in conditions if isinstance(c, Match) and c.field == "speaker"), None)
    if speaker is None:
        must: list[qe.ConditionType] = [_match("partition", [partition])]
    else:
        must = [_match(_WHOSE, [f"{partition}{name}" for name in speaker.values])]
    for c in conditions:
        if c is speaker:
            continue
        if isinstance(c, Match):
            must.append(_match(c.field, c.values))
        else:
            must.append(qe.FieldCondition(c.field, range=qe.RangeFloat(gte=c.gte, gt=c.gt, lte=c.lte, lt=c.lt)))
    return qe.Filter(must=must)


def _match(field: str, values: Sequence[str]) -> qe.FieldCondition:
    import qdrant_edge as qe

    # Edge checks one value faster than a list of one.
    return qe.FieldCondition(field, match=qe.MatchValue(values[0]) if len(values) == 1 else qe.MatchAny(list(values)))


def _request(query: IndexQuery) -> qe.QueryRequest:
    import qdrant_edge as qe

    where = _filter(query.partition, query.conditions)
    # IDF over the partition: another tenant's texts must not change this one's scores.
    idf = qe.SearchParams(idf=qe.IdfParams(corpus=_filter(query.partition, ())))
    dense = qe.Query.Nearest(query.dense.tolist(), using="dense") if query.dense is not None else None
    bm25 = None
    if query.sparse is not None:
        bm25 = qe.Query.Nearest(qe.SparseVector(query.sparse.indices, query.sparse.values), using="bm25")
    payload = ["key", "version", "speaker"]
    if dense is not None and bm25 is not None:
        return qe.QueryRequest(
            limit=query.limit,
            query=cast(
                "qe.Fusion", qe.Fusion.Rrf(k=query.rrf_k, weights=list(query.weights))
            ),  # its stubs nest the class
            prefetches=[
                qe.Prefetch(limit=query.prefetch, query=dense, filter=where),
                qe.Prefetch(limit=query.prefetch, query=bm25, filter=where, params=idf),
            ],
            with_payload=payload,
        )
    return qe.QueryRequest(
        limit=query.limit,
        query=dense or bm25,
        filter=where,
        params=idf if dense is None else None,
        with_payload=payload,
    )


def _translated(error: BaseException, what: str) -> Exception:
    text = str(error)
    if "No space left" in text or "os error 28" in text:
        return StorageFullError(
            f"the disk is full, or nearly so: {what} failed ({text}). Free space and repeat; the index catches up by itself."
        )
    if "WouldBlock" in text or "lock" in text.lower():
        return DataFolderError(f"{what} failed: another process holds it. Close that, or use another data folder.")
    return DataFolderError(
        f"{what} failed: {text}. If the folder is damaged, `memweave memory rebuild` restores it from the ledger."
    )

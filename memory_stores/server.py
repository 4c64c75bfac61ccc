"""The engine for a Qdrant server, sync and async, through qdrant-client.

One collection per ledger, partitions by a keyword index with `is_tenant`, the partition filter inside every prefetch.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from memweave.errors import DataFolderError, UnavailableError
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
    from qdrant_client import AsyncQdrantClient, QdrantClient
    from qdrant_client import models as m

_MARKER_ID: Final = str(uuid.UUID(int=0))
_BATCH: Final = 512


class ServerEngine:
    """A `VectorEngine` over one collection of a Qdrant server.

    client: sync client.  aclient: its async twin; without one, async searches run in a thread.  url: named in errors.
    Raises: UnavailableError when the server does not answer; DataFolderError when the collection has another dimension.
    """

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        dimension: int,
        *,
        aclient: AsyncQdrantClient | None = None,
        url: str = "",
    ) -> None:
        self._client = client
        self._aclient = aclient
        self._collection = collection
        self._dimension = dimension
        self._url = url
        with self._boundary():
            self._ensure()

    @classmethod
    def connect(
        cls, url: str, collection: str, dimension: int, *, api_key: str | None = None, timeout: float = 10.0
    ) -> ServerEngine:
        """Connect to the server at `url`. timeout: seconds per request."""
        from qdrant_client import AsyncQdrantClient, QdrantClient

        seconds = max(1, round(timeout))
        client = QdrantClient(url=url, api_key=api_key, timeout=seconds, check_compatibility=False)
        aclient = AsyncQdrantClient(url=url, api_key=api_key, timeout=seconds, check_compatibility=False)
        return cls(client, collection, dimension, aclient=aclient, url=url)

    def _ensure(self) -> None:
        from qdrant_client import models as m

        if self._client.collection_exists(self._collection):
            vectors = self._client.get_collection(self._collection).config.params.vectors
            dense = vectors.get("dense") if isinstance(vectors, dict) else None
            if dense is None or dense.size != self._dimension:
                raise DataFolderError(
                    f"Qdrant collection {self._collection!r} at {self._url} has "
                    f"{'no dense vector' if dense is None else f'dimension {dense.size}'}, expected {self._dimension}. "
                    "Delete it (it is rebuilt from the ledger) or choose another ledger."
                )
            return
        self._client.create_collection(
            self._collection,
            vectors_config={"dense": m.VectorParams(size=self._dimension, distance=m.Distance.COSINE)},
            sparse_vectors_config={"bm25": m.SparseVectorParams(modifier=m.Modifier.IDF)},
            # Per-tenant graphs only: no search ever crosses a partition.
            hnsw_config=m.HnswConfigDiff(m=0, payload_m=16),
        )
        if not self._indexable():
            return
        keyword = m.KeywordIndexParams(type=m.KeywordIndexType.KEYWORD, is_tenant=True)
        self._client.create_payload_index(self._collection, "partition", keyword, wait=True)
        for field in KEYWORD_FIELDS:
            self._client.create_payload_index(self._collection, field, m.PayloadSchemaType.KEYWORD, wait=True)
        for field in NUMBER_FIELDS:
            self._client.create_payload_index(self._collection, field, m.PayloadSchemaType.FLOAT, wait=True)

    def _indexable(self) -> bool:
        """Whether payload indexes exist; qdrant-client's in-memory engine scans and warns about them."""
        from qdrant_client.local.qdrant_local import QdrantLocal

        return not isinstance(self._client._client, QdrantLocal)

    def upsert(self, points: Sequence[IndexPoint]) -> None:
        """Insert points, or replace those with the same partition and key."""
        from qdrant_client import models as m

        for start in range(0, len(points), _BATCH):
            batch = [
                m.PointStruct(
                    id=str(p.id),
                    vector={
                        "dense": p.dense.tolist(),
                        "bm25": m.SparseVector(indices=p.sparse.indices, values=p.sparse.values),
                    },
                    payload={"partition": p.partition, "key": p.key.hex, "version": p.version, **p.fields},
                )
                for p in points[start : start + _BATCH]
            ]
            with self._boundary():
                self._client.upsert(self._collection, batch, wait=True)

    def delete(self, points: Sequence[tuple[str, uuid.UUID]]) -> None:
        """Remove points by (partition, key); an absent one is ignored."""
        from qdrant_client import models as m

        if points:
            ids: list[int | str | uuid.UUID] = [str(point_id(*point)) for point in points]
            with self._boundary():
                self._client.delete(self._collection, m.PointIdsList(points=ids), wait=True)

    def drop_partition(self, partition: str) -> None:
        """Remove all points of a partition."""
        from qdrant_client import models as m

        with self._boundary():
            self._client.delete(self._collection, m.FilterSelector(filter=_filter(partition, ())), wait=True)

    def search(self, query: IndexQuery) -> list[IndexHit]:
        """Return the best `query.limit` points of the partition, best first."""
        with self._boundary():
            return _hits(self._client.query_points(self._collection, **_request(query)))

    async def asearch(self, query: IndexQuery) -> list[IndexHit]:
        """Return the best `query.limit` points of the partition, best first, without occupying a thread."""
        if self._aclient is None:
            import asyncio

            return await asyncio.to_thread(self.search, query)
        with self._boundary():
            return _hits(await self._aclient.query_points(self._collection, **_request(query)))

    def count(self, partition: str | None = None) -> int:
        """Return the number of points, of one partition or of all."""
        where = _filter(partition, ()) if partition is not None else None
        with self._boundary():
            found = self._client.count(self._collection, count_filter=where, exact=True).count
        return found if partition is not None else found - (self.marker() is not None)

    def marker(self) -> Marker | None:
        """Return how far the ledger has been projected, or `None` for a new index."""
        with self._boundary():
            found = self._client.retrieve(self._collection, [_MARKER_ID], with_payload=True)
        if not found or found[0].payload is None:
            return None
        payload = found[0].payload
        return Marker(payload["ledger"], payload["seq"], payload["write_key"])

    def set_marker(self, marker: Marker) -> None:
        """Record how far the ledger has been projected; durable after the points written before it."""
        from qdrant_client import models as m

        point = m.PointStruct(id=_MARKER_ID, vector={}, payload=dict(marker._asdict()))
        with self._boundary():
            self._client.upsert(self._collection, [point], wait=True)

    def clear(self) -> None:
        """Remove everything."""
        with self._boundary():
            self._client.delete_collection(self._collection)
            self._ensure()

    def close(self) -> None:
        """Release connections."""
        self._client.close()

    @contextmanager
    def _boundary(self) -> Iterator[None]:
        """Name the server in whatever goes wrong between it and us."""
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        where = f"Qdrant server at {self._url}" if self._url else "Qdrant server"
        try:
            yield
        except ResponseHandlingException as error:
            raise UnavailableError(
                f"{where} does not answer ({error}). Start it or correct qdrant_url; the ledger is unharmed and the index catches up."
            ) from error
        except UnexpectedResponse as error:
            reason = error.content.decode(errors="replace")[:300]
            raise UnavailableError(f"{where} refused the request (HTTP {error.status_code}): {reason}") from error


def _filter(partition: str, conditions: Sequence[Condition]) -> m.Filter:
    from qdrant_client import models as m

    must: list[m.Condition] = [m.FieldCondition(key="partition", match=m.MatchValue(value=partition))]
    for c in conditions:
        if isinstance(c, Match):
            must.append(m.FieldCondition(key=c.field, match=m.MatchAny(any=list(c.values))))
        else:
            must.append(m.FieldCondition(key=c.field, range=m.Range(gte=c.gte, gt=c.gt, lte=c.lte, lt=c.lt)))
    return m.Filter(must=must)


def _request(query: IndexQuery) -> dict[str, Any]:  # keyword arguments of query_points, sync and async
    from qdrant_client import models as m

    where = _filter(query.partition, query.conditions)
    # IDF over the partition: another tenant's texts must not change this one's scores.
    idf = m.SearchParams(idf=m.IdfCorpusParams(corpus=_filter(query.partition, ())))
    dense = query.dense.tolist() if query.dense is not None else None
    bm25 = None
    if query.sparse is not None:
        bm25 = m.SparseVector(indices=query.sparse.indices, values=query.sparse.values)
    common: dict[str, Any] = {"limit": query.limit, "with_payload": ["key", "version", "speaker"]}
    if dense is not None and bm25 is not None:
        return common | {
            "query": m.RrfQuery(rrf=m.Rrf(k=query.rrf_k, weights=list(query.weights))),
            "prefetch": [
                m.Prefetch(query=dense, using="dense", filter=where, limit=query.prefetch),
                m.Prefetch(query=bm25, using="bm25", filter=where, limit=query.prefetch, params=idf),
            ],
        }
    if dense is not None:
        return common | {"query": dense, "using": "dense", "query_filter": where}
    return common | {"query": bm25, "using": "bm25", "query_filter": where, "search_params": idf}


def _hits(response: m.QueryResponse) -> list[IndexHit]:
    return [
        IndexHit(
            uuid.UUID(hex=point.payload["key"]), point.payload["version"], point.score, point.payload.get("speaker")
        )
        for point in response.points
        if point.payload is not None
    ]

"""Search among 20,000 memories, records returned, embedding excluded; beside raw Qdrant Edge and qdrant-client's local mode.

All three get the same points and the same request: dense and BM25 with a tenant filter in both, IDF over the tenant, fused by RRF,
limit 10. The embedding is looked up; encoding the question for BM25 is part of each measurement.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import qdrant_edge as qe
from common import DIMENSION, Given, Row, fill, percentile, queries, report, timed, users

from memweave.memory_stores import MemoryBank, SearchConfig, open_bank
from memweave.memory_stores.rows import Version, point_of
from memweave.memory_stores.text import Bm25Encoder
from memweave.records import Scope

CONFIG = SearchConfig()
ENCODER = Bm25Encoder(CONFIG)


def ours(bank: MemoryBank, asked: Sequence[tuple[str, Scope]]) -> list[Callable[[], object]]:
    """Return searches of the bank."""
    return [lambda q=q, s=s: bank.search(q, scope=s, limit=10) for q, s in asked]


def versions(bank: MemoryBank, scopes: Sequence[Scope]) -> list[tuple[str, Version]]:
    """Return all memories with their vectors and partitions."""
    return [(s.partition(), version) for s in scopes for version in bank._core.ledger.snapshot(s.partition(), s)]


def payload_of(partition: str, version: Version) -> dict[str, object]:
    """Return the record as someone without a ledger would store it."""
    memory = version.memory
    return {
        "partition": partition, "text": memory.text, "speaker": memory.speaker, "dialogue": memory.dialogue,
        "sources": list(memory.source_ids), "observed": memory.observed_at.isoformat() if memory.observed_at else None,
    }  # fmt: skip


class RawEdge:
    """Qdrant Edge without anything of ours around it."""

    def __init__(self, folder: Path, points: Sequence[tuple[str, Version]]) -> None:
        folder.mkdir()
        config = qe.EdgeConfig(
            vectors={"dense": qe.EdgeVectorParams(size=DIMENSION, distance=qe.Distance.Cosine)},
            sparse_vectors={"bm25": qe.EdgeSparseVectorParams(modifier=qe.Modifier.Idf)},
        )
        self._shard = qe.EdgeShard.create(str(folder), config)
        self._shard.update(qe.UpdateOperation.create_field_index("partition", qe.KeywordIndexParams(is_tenant=True)))
        for start in range(0, len(points), 500):
            batch = []
            for partition, version in points[start : start + 500]:
                point = point_of(partition, version, ENCODER)
                sparse = qe.SparseVector(point.sparse.indices, point.sparse.values)
                payload = payload_of(partition, version)
                batch.append(qe.Point(point.id, {"dense": point.dense.tolist(), "bm25": sparse}, payload))
            self._shard.update(qe.UpdateOperation.upsert_points(batch))

    def search(self, question: str, vector: list[float], partition: str | None) -> int:
        """Ask as the bank does; `partition=None` searches everything."""
        where = idf = None
        if partition is not None:
            where = qe.Filter(must=[qe.FieldCondition("partition", match=qe.MatchValue(partition))])
            idf = qe.SearchParams(idf=qe.IdfParams(corpus=where))
        tokens = ENCODER.query(question)
        sparse = qe.SparseVector(tokens.indices, tokens.values)
        depth = CONFIG.prefetch
        request = qe.QueryRequest(
            limit=10,
            query=cast("qe.Fusion", qe.Fusion.Rrf(k=CONFIG.rrf_k, weights=[CONFIG.dense_weight, CONFIG.bm25_weight])),
            prefetches=[
                qe.Prefetch(limit=depth, query=qe.Query.Nearest(vector, using="dense"), filter=where),
                qe.Prefetch(limit=depth, query=qe.Query.Nearest(sparse, using="bm25"), filter=where, params=idf),
            ],
            with_payload=True,
        )
        return len([point.payload for point in self._shard.query(request)])

    def close(self) -> None:
        """Release the folder."""
        self._shard.close()


class LocalMode:
    """qdrant-client's in-memory engine, without anything of ours around it."""

    def __init__(self, points: Sequence[tuple[str, Version]]) -> None:
        from qdrant_client import QdrantClient
        from qdrant_client import models as m

        self._m = m
        self._client = QdrantClient(":memory:")
        self._client.create_collection(
            "memories",
            vectors_config={"dense": m.VectorParams(size=DIMENSION, distance=m.Distance.COSINE)},
            sparse_vectors_config={"bm25": m.SparseVectorParams(modifier=m.Modifier.IDF)},
        )
        for start in range(0, len(points), 500):
            batch = []
            for partition, version in points[start : start + 500]:
                point = point_of(partition, version, ENCODER)
                sparse = m.SparseVector(indices=point.sparse.indices, values=point.sparse.values)
                vectors = {"dense": point.dense.tolist(), "bm25": sparse}
                batch.append(m.PointStruct(id=str(point.id), vector=vectors, payload=payload_of(partition, version)))
            self._client.upsert("memories", batch)

    def search(self, question: str, vector: list[float], partition: str) -> int:
        """Ask as the bank does."""
        m = self._m
        where = m.Filter(must=[m.FieldCondition(key="partition", match=m.MatchValue(value=partition))])
        tokens = ENCODER.query(question)
        sparse = m.SparseVector(indices=tokens.indices, values=tokens.values)
        depth = CONFIG.prefetch
        found = self._client.query_points(
            "memories",
            query=m.RrfQuery(rrf=m.Rrf(k=CONFIG.rrf_k, weights=[CONFIG.dense_weight, CONFIG.bm25_weight])),
            prefetch=[
                m.Prefetch(query=vector, using="dense", filter=where, limit=depth),
                m.Prefetch(query=sparse, using="bm25", filter=where, limit=depth),
            ],
            limit=10,
        )
        return len(found.points)


def interleaved(arms: dict[str, list[Callable[[], object]]], *, rounds: int = 4) -> dict[str, list[float]]:
    """Measure arms in turns, so that whatever else the machine does hits all of them."""
    out: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        for name, calls in arms.items():
            out[name] += timed(calls[number::rounds])
    return out


def compare(
    title: str, name: str, bank: MemoryBank, given: Given, scopes: list[Scope], args: argparse.Namespace
) -> None:
    """Measure one data set: `scopes` own everything in `bank`."""
    rng = random.Random(0)
    asked = [(q, rng.choice(scopes)) for q in queries(args.queries, given, seed=1_000)]
    named = [(q, rng.choice(scopes)) for q in queries(args.queries, given, seed=2_000, name="Annabel")]
    points = versions(bank, scopes)
    single = len(scopes) == 1
    with tempfile.TemporaryDirectory() as folder:
        edge = RawEdge(Path(folder) / "raw", points)
        vectors = {q: given.embed([q])[0].tolist() for q, _ in asked}

        def raw(q: str, s: Scope) -> int:
            # Building the list from the vector belongs to the request, as it does in the bank.
            return edge.search(q, given.embed([q])[0].tolist(), None if single else s.partition())

        arms: dict[str, list[Callable[[], object]]] = {
            "ours": ours(bank, asked),
            "named": ours(bank, named),
            "raw": [lambda q=q, s=s: raw(q, s) for q, s in asked],
        }
        for calls in arms.values():
            timed(calls[:20])  # warm
        found = interleaved(arms)
        edge.close()
    rows = [
        Row("memweave, p50", percentile(found["ours"], 50), "ms"),
        Row("memweave, p95", percentile(found["ours"], 95), "ms"),
        Row("memweave, question names a participant, p50", percentile(found["named"], 50), "ms"),
        Row("raw Edge, p50", percentile(found["raw"], 50), "ms", detail="no tenant filter" if single else ""),
        Row("raw Edge, p95", percentile(found["raw"], 95), "ms"),
    ]
    ratio = percentile(found["ours"], 50) / percentile(found["raw"], 50)
    rows.append(Row("memweave / raw Edge, p50", ratio, "x", "<= 2", ratio <= 2))
    if not args.no_local:
        local = LocalMode(points)
        few = asked[: args.local_queries]
        slow = timed([lambda q=q, s=s: local.search(q, vectors[q], s.partition()) for q, s in few])
        again = timed(ours(bank, few))
        faster = percentile(slow, 50) / percentile(again, 50)
        rows.append(Row("qdrant-client local mode, p50", percentile(slow, 50), "ms", detail=f"{len(few)} queries"))
        rows.append(Row("local mode / memweave, p50", faster, "x", *((">= 100", faster >= 100) if not single else ())))
    report(name, f"{title}: {len(points):,} memories, dimension {DIMENSION}, limit 10, {args.queries} queries", rows)


def cold(home: Path, given: Given, scopes: list[Scope], name: str, title: str) -> None:
    """Measure opening a folder and the first searches in it."""
    rng = random.Random(3)
    asked = [(q, rng.choice(scopes)) for q in queries(101, given, seed=3_000)]
    start = time.perf_counter()
    with open_bank(home, embedding=given) as bank:
        opened = (time.perf_counter() - start) * 1_000
        first, *others = timed(ours(bank, asked))
        rows = [
            Row("open_bank", opened, "ms"),
            Row("first search (opens the index)", first, "ms"),
            Row("next 100 searches, p50", percentile(others, 50), "ms"),
            Row("next 100 searches, maximum", max(others), "ms"),
        ]
    report(name, title, rows)


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--local-queries", type=int, default=20)
    parser.add_argument(
        "--no-local", action="store_true", help="leave out qdrant-client's local mode, which takes a minute"
    )
    args = parser.parse_args()
    for name, count, title in (("search", 50, "Search, 50 users"), ("search_one_tenant", 1, "Search, one user")):
        given, scopes = Given(), users(count)
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder) / "bank"
            with open_bank(home, embedding=given) as bank:
                fill(bank, given, scopes, 20_000 // count)
                compare(title, name, bank, given, scopes, args)
            cold(home, given, scopes, f"{name}_cold", f"{title}, after reopening")


if __name__ == "__main__":
    main()

"""An exact index in NumPy: the engine of branches and as-of reads, and the oracle the Qdrant drivers are tested against.

An `ExactIndex` is immutable and shared; an `ExactEngine` is a thin overlay of writes and tombstones over one, so that a fork costs two
dictionary copies. Scores follow Qdrant: cosine; BM25 weights times ln(1 + (N - df + 0.5) / (df + 0.5)) with N and df taken over the
partition; weighted RRF.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memweave.memory_stores.engine import (
    Condition,
    IndexHit,
    IndexPoint,
    IndexQuery,
    Marker,
    Match,
    Sparse,
    rrf_share,
)

_NO_ROWS: Final[NDArray[np.int64]] = np.zeros(0, dtype=np.int64)
_NO_WEIGHTS: Final[NDArray[np.float32]] = np.zeros(0, dtype=np.float32)


class ExactIndex:
    """An immutable set of points, arranged for scanning."""

    def __init__(self, points: Sequence[IndexPoint]) -> None:
        self.points = list(points)
        self.row = {(p.partition, p.key): i for i, p in enumerate(self.points)}
        # (n, d) float32, one row per point.
        self.dense: NDArray[np.float32] = (
            np.stack([p.dense for p in self.points]) if self.points else np.zeros((0, 0), dtype=np.float32)
        )
        by_partition: dict[str, list[int]] = {}
        for i, point in enumerate(self.points):
            by_partition.setdefault(point.partition, []).append(i)
        self.partitions: dict[str, NDArray[np.int64]] = {
            name: np.asarray(rows, dtype=np.int64) for name, rows in by_partition.items()
        }
        self._postings = self._invert()

    def _invert(self) -> dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]]:
        lengths = [len(p.sparse.indices) for p in self.points]
        if not sum(lengths):
            return {}
        rows = np.repeat(np.arange(len(self.points)), lengths)
        tokens = np.fromiter((t for p in self.points for t in p.sparse.indices), dtype=np.int64, count=sum(lengths))
        weights = np.fromiter((w for p in self.points for w in p.sparse.values), dtype=np.float32, count=sum(lengths))
        order = np.argsort(tokens, kind="stable")
        tokens, rows, weights = tokens[order], rows[order], weights[order]
        names, starts = np.unique(tokens, return_index=True)
        ends = np.append(starts[1:], len(tokens))
        return {int(t): (rows[a:b], weights[a:b]) for t, a, b in zip(names, starts, ends, strict=True)}

    def posting(self, token: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return rows (m,) int64 and weights (m,) float32 of the points that contain a token."""
        return self._postings.get(token, (_NO_ROWS, _NO_WEIGHTS))


_EMPTY: Final = ExactIndex([])


class ExactEngine:
    """A `VectorEngine` that scans: `base` is shared and never written to, this engine's writes lie over it."""

    def __init__(self, base: ExactIndex | None = None) -> None:
        self._base = base or _EMPTY
        self._written: dict[tuple[str, uuid.UUID], IndexPoint] = {}
        self._hidden: set[int] = set()
        self._marker: Marker | None = None

    def fork(self) -> ExactEngine:
        """Return an engine that starts from this one's state; neither sees the other's later writes."""
        twin = ExactEngine(self._base)
        twin._written, twin._hidden, twin._marker = dict(self._written), set(self._hidden), self._marker
        return twin

    def upsert(self, points: Sequence[IndexPoint]) -> None:
        """Insert points, or replace those with the same partition and key."""
        for point in points:
            self._hide(point.partition, point.key)
            self._written[point.partition, point.key] = point

    def delete(self, points: Sequence[tuple[str, uuid.UUID]]) -> None:
        """Remove points by (partition, key); an absent one is ignored."""
        for partition, key in points:
            self._hide(partition, key)
            self._written.pop((partition, key), None)

    def drop_partition(self, partition: str) -> None:
        """Remove all points of a partition."""
        self._hidden.update(self._base.partitions.get(partition, _NO_ROWS).tolist())
        self._written = {at: point for at, point in self._written.items() if at[0] != partition}

    def count(self, partition: str | None = None) -> int:
        """Return the number of points, of one partition or of all."""
        if partition is None:
            return len(self._base.points) - len(self._hidden) + len(self._written)
        return len(self._rows(partition)) + sum(at[0] == partition for at in self._written)

    def marker(self) -> Marker | None:
        """Return how far the ledger has been projected."""
        return self._marker

    def set_marker(self, marker: Marker) -> None:
        """Record how far the ledger has been projected."""
        self._marker = marker

    def clear(self) -> None:
        """Remove everything."""
        self._base, self._written, self._hidden, self._marker = _EMPTY, {}, set(), None

    def close(self) -> None:
        """Release nothing: the index lives in memory."""

    def search(self, query: IndexQuery) -> list[IndexHit]:
        """Return the best `query.limit` points of the partition, best first; ties by record id."""
        rows = self._rows(query.partition)
        own = [p for at, p in self._written.items() if at[0] == query.partition]
        points = [self._base.points[i] for i in rows] + own
        if not points:
            return []
        allowed = np.ones(len(points), dtype=bool)
        if query.conditions:
            allowed = np.fromiter((matches(p.fields, query.conditions) for p in points), dtype=bool, count=len(points))
        depth = max(query.prefetch, query.limit)
        rankings: list[tuple[list[int], NDArray[np.float64], float]] = []
        if query.dense is not None:
            scores = self._dense_scores(query.dense, rows, own)
            rankings.append((_ranked(scores, allowed, points, depth), scores, query.weights[0]))
        if query.sparse is not None:
            scores = self._bm25_scores(query.sparse, rows, own)
            rankings.append((_ranked(scores, allowed & (scores > 0), points, depth), scores, query.weights[1]))
        if len(rankings) == 1:
            order, scores, _ = rankings[0]
            return [_hit(points[i], float(scores[i])) for i in order[: query.limit]]
        fused: dict[int, float] = {}
        for order, _, weight in rankings:
            for rank, i in enumerate(order[: query.prefetch]):
                fused[i] = fused.get(i, 0.0) + rrf_share(rank, query.rrf_k, weight)
        best = sorted(fused, key=lambda i: (-fused[i], points[i].key))
        return [_hit(points[i], fused[i]) for i in best[: query.limit]]

    def _hide(self, partition: str, key: uuid.UUID) -> None:
        row = self._base.row.get((partition, key))
        if row is not None:
            self._hidden.add(row)

    def _rows(self, partition: str) -> NDArray[np.int64]:
        rows = self._base.partitions.get(partition, _NO_ROWS)
        if not self._hidden or not len(rows):
            return rows
        hidden = np.fromiter(self._hidden, dtype=np.int64, count=len(self._hidden))
        return rows[~np.isin(rows, hidden)]

    def _dense_scores(
        self, vector: NDArray[np.float32], rows: NDArray[np.int64], own: Sequence[IndexPoint]
    ) -> NDArray[np.float64]:
        # Multiplying first and selecting afterwards spares a copy of the matrix.
        parts = [(self._base.dense @ vector)[rows]] if len(rows) else []
        if own:
            parts.append(np.stack([p.dense for p in own]) @ vector)
        return np.concatenate(parts).astype(np.float64)

    def _bm25_scores(self, query: Sparse, rows: NDArray[np.int64], own: Sequence[IndexPoint]) -> NDArray[np.float64]:
        total = len(rows) + len(own)
        scores = np.zeros(total)
        place = np.full(len(self._base.points), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        own_weights = [dict(zip(p.sparse.indices, p.sparse.values, strict=True)) for p in own]
        for token, times in zip(query.indices, query.values, strict=True):
            found, weights = self._base.posting(token)
            at = place[found]
            at, weights = at[at >= 0], weights[at >= 0]
            mine = [(len(rows) + j, w[token]) for j, w in enumerate(own_weights) if token in w]
            df = len(at) + len(mine)
            idf = math.log(1 + (total - df + 0.5) / (df + 0.5))
            scores[at] += weights * (idf * times)
            for j, weight in mine:
                scores[j] += weight * idf * times
        return scores


def matches(fields: Mapping[str, str | float], conditions: Sequence[Condition]) -> bool:
    """Return whether indexed fields fulfil all conditions."""
    for condition in conditions:
        value = fields.get(condition.field)
        if value is None:
            return False
        if isinstance(condition, Match):
            if value not in condition.values:
                return False
        elif isinstance(value, str) or not (
            (condition.gte is None or value >= condition.gte)
            and (condition.gt is None or value > condition.gt)
            and (condition.lt is None or value < condition.lt)
            and (condition.lte is None or value <= condition.lte)
        ):
            return False
    return True


def _ranked(
    scores: NDArray[np.float64], allowed: NDArray[np.bool_], points: Sequence[IndexPoint], depth: int
) -> list[int]:
    candidates = np.flatnonzero(allowed)
    if len(candidates) > depth:
        # Keep everything that ties with the last place, so that ties are broken by id and not by the partition.
        cut = np.partition(scores[candidates], -depth)[-depth]
        candidates = candidates[scores[candidates] >= cut]
    return sorted(candidates.tolist(), key=lambda i: (-scores[i], points[i].key))[:depth]


def _hit(point: IndexPoint, score: float) -> IndexHit:
    speaker = point.fields.get("speaker")
    return IndexHit(point.key, point.version, score, speaker if isinstance(speaker, str) else None)

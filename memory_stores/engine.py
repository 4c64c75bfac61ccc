"""The vector engine seam: what an index of points can do, and the types that cross it.

An engine stores points and finds them again by dense vector, BM25 and both fused. It does not know what a memory is, who a user is
(a partition is an opaque key) or that a ledger exists; it can always be rebuilt. Drivers: `edge.EdgeEngine` (default, on disk, in
process), `server.ServerEngine` (a Qdrant server) and `exact.ExactEngine` (NumPy; branches, as-of reads, the oracle of the tests).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from memweave.records import IndexFilter, Record

FAR_PAST: Final = -1e18
FAR_FUTURE: Final = 1e18
"""Open ends of a validity interval, in Unix seconds, so that one range condition covers them."""

POINT_FORMAT: Final = 2
"""Version of what the drivers store with a point; an index of another one is rebuilt."""

KEYWORD_FIELDS: Final = ("speaker", "dialogue", "run", "trust")
NUMBER_FIELDS: Final = ("observed", "valid_from", "valid_to")


class SearchConfig(Record):
    """How text is indexed and how the two rankings are fused.

    The first group is fixed when a point is written (changing it rebuilds the index), the second applies to each search. Defaults
    were chosen on LoCoMo conversation 26 and 50 + 50 HotpotQA / MuSiQue questions (docs/results.md).
    """

    bm25_k: float = Field(default=1.5, ge=0)
    bm25_b: float = Field(default=0.75, ge=0, le=1)
    bm25_avg_len: float = Field(default=40.0, gt=0)
    """Expected length of an indexed text, in tokens after stop words."""
    context_in_bm25: bool = True
    """Index the text around a memory (the message before it) beside its own words."""
    date_in_bm25: bool = True
    """Index the date it happened in words ("8 May 2023")."""

    names_in_query: bool = False
    """Embed the participants' names as part of the query. Without them a name does not pull in all that mentions it."""
    speaker_boost: float = Field(default=2.0, ge=1)
    """Factor on the scores of a participant's memories when the query names that one participant; 1 switches it off."""
    rrf_k: int = Field(default=5, ge=1)
    dense_weight: float = Field(default=1.5, ge=0)
    bm25_weight: float = Field(default=1.0, ge=0)
    """Weights of reciprocal rank fusion; 0 switches a ranking off."""
    prefetch: int = Field(default=100, ge=1)
    """How deep each ranking goes before fusion; never less than twice the limit."""

    @model_validator(mode="after")
    def _ranks(self) -> Self:
        if self.dense_weight == self.bm25_weight == 0:
            raise ValueError("dense_weight and bm25_weight cannot both be 0: nothing would rank the memories")
        return self

    def write_key(self) -> str:
        """Return what identifies the written side of this configuration."""
        options = f"context={int(self.context_in_bm25)},date={int(self.date_in_bm25)}"
        return f"k={self.bm25_k:g},b={self.bm25_b:g},len={self.bm25_avg_len:g},{options},points={POINT_FORMAT}"


@dataclass(frozen=True, slots=True)
class Sparse:
    """A sparse vector: token hashes and their weights."""

    indices: list[int]
    values: list[float]


@dataclass(frozen=True, slots=True)
class IndexPoint:
    """One point: the current version of one record."""

    partition: str
    key: uuid.UUID
    """Id of the record within its partition."""
    version: int
    dense: NDArray[np.float32]
    """(d,) float32 of length 1."""
    sparse: Sparse
    fields: Mapping[str, str | float]
    """Indexed fields: `KEYWORD_FIELDS` and `NUMBER_FIELDS`; a missing one matches no condition on it."""

    @property
    def id(self) -> uuid.UUID:
        """Return the id within the engine."""
        return point_id(self.partition, self.key)


def point_id(partition: str, key: uuid.UUID) -> uuid.UUID:
    """Return the engine id of a record: the same record id in two partitions gives two points."""
    return uuid.uuid5(uuid.UUID(hex=partition), key.hex)


class Match(NamedTuple):
    """The field is one of the values."""

    field: str
    values: tuple[str, ...]


class Range(NamedTuple):
    """The field is at least `gte` and less than `lt`, where given."""

    field: str
    gte: float | None = None
    lt: float | None = None
    gt: float | None = None
    lte: float | None = None


Condition = Match | Range


@dataclass(frozen=True, slots=True)
class IndexQuery:
    """A search of one partition. With both vectors the rankings are fused by RRF, otherwise the one given decides."""

    partition: str
    dense: NDArray[np.float32] | None
    sparse: Sparse | None
    limit: int
    conditions: tuple[Condition, ...] = ()
    rrf_k: int = 5
    weights: tuple[float, float] = (1.0, 1.0)
    prefetch: int = 100


class IndexHit(NamedTuple):
    """A point found."""

    key: uuid.UUID
    version: int
    score: float
    speaker: str | None


class Marker(NamedTuple):
    """How far a ledger has been projected into an index."""

    ledger: str
    """Id of the ledger."""
    seq: int
    """Last operation that the index contains."""
    write_key: str
    """`SearchConfig.write_key()` and the embedding model the points were written with."""


@runtime_checkable
class VectorEngine(Protocol):
    """An index of points. Every call is safe from any thread."""

    def upsert(self, points: Sequence[IndexPoint]) -> None:
        """Insert points, or replace those with the same partition and key."""

    def delete(self, points: Sequence[tuple[str, uuid.UUID]]) -> None:
        """Remove points by (partition, key); an absent one is ignored."""

    def drop_partition(self, partition: str) -> None:
        """Remove all points of a partition."""

    def search(self, query: IndexQuery) -> list[IndexHit]:
        """Return the best `query.limit` points of the partition, best first."""

    def count(self, partition: str | None = None) -> int:
        """Return the number of points, of one partition or of all."""

    def marker(self) -> Marker | None:
        """Return how far the ledger has been projected, or `None` for a new index."""

    def set_marker(self, marker: Marker) -> None:
        """Record how far the ledger has been projected; durable after the points written before it."""

    def clear(self) -> None:
        """Remove everything, physically where the engine can."""

    def close(self) -> None:
        """Release files and connections."""


@runtime_checkable
class AsyncSearch(Protocol):
    """An engine that can search without occupying a thread."""

    async def asearch(self, query: IndexQuery) -> list[IndexHit]:
        """Return the best `query.limit` points of the partition, best first."""


@runtime_checkable
class Optimizing(Protocol):
    """An engine that builds its search graphs when it is told to; a server does that by itself."""

    def optimize(self) -> bool:
        """Build them; return whether there was anything to do."""


def rrf_share(rank: int, k: int, weight: float) -> float:
    """Return what a ranking adds to a point's fused score.

    rank: position from 0. This is Qdrant's weighted reciprocal rank fusion, 1 / (k - 1 + (rank + 1) / weight): with weight 1
    it is the usual 1 / (k + rank).
    """
    return 1.0 / (k - 1 + (rank + 1) / weight)


def conditions(where: IndexFilter | None) -> tuple[Condition, ...]:
    """Translate a filter into conditions that all engines understand."""
    if where is None:
        return ()
    out: list[Condition] = []
    for field, values in (("speaker", where.speakers), ("dialogue", where.dialogues), ("run", where.runs)):
        if values is not None:
            out.append(Match(field, values))
    if where.trust is not None:
        out.append(Match("trust", tuple(t.value for t in where.trust)))
    if where.observed_from is not None or where.observed_to is not None:
        out.append(Range("observed", gte=_seconds(where.observed_from), lt=_seconds(where.observed_to)))
    if where.valid_at is not None:
        at = where.valid_at.timestamp()
        out += [Range("valid_from", lte=at), Range("valid_to", gt=at)]
    return tuple(out)


def _seconds(value: datetime | None) -> float | None:
    return value.timestamp() if value is not None else None

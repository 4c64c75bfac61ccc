"""What a case did for queries like this one, as a number: the kernel of episodic control, in NumPy (Memento, Eq. 9).

    Q_EC(s, M, c) = sum_i k(s, s_i) Q_i / sum_i k(s, s_i)  over the past uses (s_i, Q_i) of the same case c

Trainers write the file of a learned map W; this module knows no trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from memweave.errors import EmbeddingMismatchError, InputError, SettingsError
from memweave.memory_stores.weights_file import WeightsKind, load_weights, save_weights
from memweave.records import ReplayRow

PRIOR_Q: Final = 0.5
"""Q of a case of which nothing is known, for rewards of 0 and 1 (section 2.5)."""
Array = NDArray[np.float32]
Scores = NDArray[np.float64]
Places = NDArray[np.int64]
_KIND: Final = WeightsKind("case-kernel", "kernel", "memweave train memento-q --arm kernel", ("weights",))


@dataclass(frozen=True)
class Uses:
    """Past uses of one case: D_c (section 2.4)."""

    queries: Array
    """(m, d): the queries that it was shown for."""
    q: Scores
    """(m,): what came of it."""

    def and_then(self, query: Array, q: float) -> Uses:
        """Return these and one more. query: (d,)."""
        return Uses(np.concatenate([self.queries, query[None]]), np.append(self.q, q))


@dataclass(frozen=True)
class Kernel:
    """How much a past query says about another. nec: 1 / (|h - h'|^2 + 1e-3).  gaussian: exp(-|h - h'|^2 / (2 sigma^2)) (A12).

    h = W s with a learned W, or s itself.
    """

    kind: Literal["nec", "gaussian"] = "nec"
    sigma: float = 0.5
    weights: Array | None = None
    """W, (h, d)."""
    neighbours: int = 50
    """Past uses of a case that count: the nearest."""
    prior: float = PRIOR_Q
    """Q of a case that was never used."""
    encoder: str | None = None
    """`model_id` of the embedding that W belongs to."""

    def __post_init__(self) -> None:
        if self.kind not in ("nec", "gaussian"):
            raise SettingsError(f"there is no kernel {self.kind!r}. There are: nec, gaussian")
        if self.weights is not None and self.weights.ndim != 2:
            raise InputError(f"a kernel's map is (h, d), and this has the shape {self.weights.shape}")

    def check(self, encoder: str, dimension: int) -> None:
        """Raise `EmbeddingMismatchError` unless the map was learned on embeddings of this kind; without a map any will do."""
        if self.weights is None:
            return
        mine = self.encoder or encoder, self.weights.shape[1]
        if (encoder, dimension) != mine:
            raise EmbeddingMismatchError(
                f"the kernel was learned on embeddings {mine[0]!r} ({mine[1]} dimensions), and the cases have {encoder!r} "
                f"({dimension}). Learn it on these cases, or open the bank with that embedding"
            )

    def mapped(self, queries: Array) -> Array:
        """Return h of queries: (..., d) to (..., h)."""
        return queries if self.weights is None else queries @ self.weights.T

    def log_nearness(self, distance: Scores) -> Scores:
        """Return log k of (n,) squared distances in h."""
        found: Scores = -np.log(distance + 1e-3) if self.kind == "nec" else -distance / (2 * self.sigma**2)
        return found

    def estimates(self, here: Array, there: Array, cases: Places, q: Scores) -> tuple[Places, Scores]:
        """Return which cases were used, and Q_EC(s, M, c) of each (Eq. 9): the mean of past outcomes, weighted by nearness.

        here: (h,) the query, mapped.  there: (n, h) the queries of all past uses, mapped.  cases: (n,) the number of the case that was
        used.  q: (n,) what came of it.
        """
        distance = ((there - here) ** 2).sum(axis=1).astype(np.float64)
        order = np.lexsort((distance, cases))  # by case, the nearest first
        found, first, counts = np.unique(cases[order], return_index=True, return_counts=True)
        kept = np.arange(len(order)) - np.repeat(first, counts) < self.neighbours
        group, near = np.repeat(np.arange(len(found)), counts)[kept], order[kept]
        # relative to the nearest, so that far ones do not vanish all at once
        weight = np.exp(self.log_nearness(distance[near]) - self.log_nearness(distance[order[first]])[group])
        total = np.bincount(group, weight, len(found))
        return found, np.bincount(group, weight * q[near], len(found)) / total

    def estimate(self, query: Array, uses: Uses | None) -> float:
        """Return Q_EC(s, M, c) (Eq. 9) of one case; `prior` when it was never used. query: (d,)."""
        if uses is None or not len(uses.q):
            return self.prior
        same = np.zeros(len(uses.q), dtype=np.int64)
        return float(self.estimates(self.mapped(query), self.mapped(uses.queries), same, uses.q)[1][0])

    def save(self, file: Path) -> None:
        """Write a learned kernel to a safetensors file. Raises `InputError` when it has no map, or of no known embedding."""
        if self.weights is None or self.encoder is None:
            raise InputError("this kernel has no map that was learned on a known embedding; there is nothing to keep")
        about = {"encoder": self.encoder, "kind": self.kind, "sigma": repr(self.sigma), "prior": repr(self.prior)}
        save_weights(file, _KIND, {"weights": self.weights}, {**about, "neighbours": str(self.neighbours)})


def load_kernel(file: Path) -> Kernel:
    """Return the kernel in a file. Raises `InputError` when it is none, `FormatError` for one of another format."""
    tensors, about = load_weights(file, _KIND)
    kind = about.get("kind")
    try:
        sigma, prior, neighbours = float(about["sigma"]), float(about["prior"]), int(about["neighbours"])
        if kind not in ("nec", "gaussian"):
            raise ValueError(kind)
    except (KeyError, ValueError) as error:
        raise InputError(f"{file} does not say which kernel its map belongs to: {error}") from error
    return Kernel(
        "nec" if kind == "nec" else "gaussian",
        sigma,
        tensors["weights"],
        neighbours,
        prior,
        encoder=about.get("encoder"),
    )


def uses_of(rows: Sequence[ReplayRow], queries: Array) -> dict[UUID, Uses]:
    """Return D from experience, of single steps: what came of a case is the reward. queries: (n, d), of the rows."""
    grouped: dict[UUID, list[int]] = {}
    for number, row in enumerate(rows):
        grouped.setdefault(row.case_id, []).append(number)
    return {
        case: Uses(queries[places], np.array([rows[i].reward for i in places], dtype=np.float64))
        for case, places in grouped.items()
    }

"""Embedders with known behaviour, good and bad, for tests without a model: yours as well as ours.

    TableEmbedder({"cats": [1, 0], "dogs": [0, 1]})     the vectors you say, per word of the text
    FaultyEmbedder("nan")                               what a broken model would return; `.fault = None` repairs it

Both are real embedders: give them to `open_bank(home, embedding=...)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from memweave.embeddings import HashingEmbedder, Vectors
from memweave.errors import UnavailableError

Fault = Literal["nan", "infinity", "zeros", "short", "too few", "unavailable"]


class TableEmbedder:
    """Sum up the given vector of each known word in a text; words are compared in lower case.

    vectors: per word, all of one length.  A text without a known word gets the last unit vector, so leave that axis free.
    `texts` holds everything that was embedded, in order.
    """

    def __init__(self, vectors: Mapping[str, Sequence[float]], *, model_id: str = "table") -> None:
        self.model_id = model_id
        self.texts: list[str] = []
        self._vectors = {word.lower(): np.asarray(vector, dtype=np.float32) for word, vector in vectors.items()}
        self.dimension = len(next(iter(self._vectors.values())))

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (n, dimension) float32."""
        self.texts.extend(texts)
        out = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in zip(out, texts, strict=True):
            known = [self._vectors[word] for word in re.findall(r"\w+", text.lower()) if word in self._vectors]
            row += sum(known) if known else np.eye(self.dimension, dtype=np.float32)[-1]
        return out


class FaultyEmbedder:
    """Hash like `HashingEmbedder`, but return what a broken model would as long as `fault` is set.

    "short": vectors with one number too few.  "too few": one row too few.  "unavailable": raises `UnavailableError`.
    """

    def __init__(self, fault: Fault | None = None, *, dimension: int = 64) -> None:
        self.fault = fault
        self._sound = HashingEmbedder(dimension)
        self.dimension = dimension
        self.model_id = f"faulty:{dimension}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (n, dimension) float32, or something else."""
        rows = self._sound.embed(texts)
        if self.fault == "unavailable":
            raise UnavailableError(f"embedding endpoint for {self.model_id!r} cannot be reached. Start it.")
        if self.fault == "short":
            return rows[:, :-1]
        if self.fault == "too few":
            return rows[:-1]
        if self.fault is not None and len(rows):
            rows[-1] = {"nan": np.nan, "infinity": np.inf, "zeros": 0.0}[self.fault]
        return rows

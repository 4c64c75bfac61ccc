"""The Q-function of a case-retrieval policy as it is used: two layers over frozen embeddings, in NumPy (Memento, section 4).

    Q(s, c) = softmax(W2 relu(W1 [enc(c) ; enc(s)] + b1) + b2)[1] = p(r = 1 | s, c)

Trainers write the file; this module knows no trainer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memweave.errors import EmbeddingMismatchError, InputError
from memweave.memory_stores.weights_file import WeightsKind, load_weights, save_weights

Array = NDArray[np.float32]
_SHAPES: Final = ("w1", "b1", "w2", "b2")
_KIND: Final = WeightsKind("q-head", "Q-function", "memweave train memento-q-offline", _SHAPES)


@dataclass(frozen=True, eq=False)
class QHead:
    """Weights of a Q-function. Immutable: a learner makes a new one.

    w1: (h, 2 d), or (h, 2 d + 1) when the case's own reward is an input; the case comes first, then the query.  b1: (h,).
    w2: (2, h).  b2: (2,); row 1 is "the query will be solved".  encoder: `model_id` of the embedding.
    """

    w1: Array
    b1: Array
    w2: Array
    b2: Array
    encoder: str
    label_input: bool = False
    """Whether the case's own reward is an input; the official code has it not (section 4)."""
    _halves: list[tuple[Array, Array]] = field(default_factory=list, repr=False)
    """The cases of the last call and what they add to the first layer."""

    def __post_init__(self) -> None:
        hidden, width = self.w1.shape if self.w1.ndim == 2 else (0, 0)
        good = self.b1.shape == (hidden,) and self.w2.shape == (2, hidden) and self.b2.shape == (2,)
        if not good or (width - self.label_input) % 2 or width < 2:
            shapes = ", ".join(f"{name} {getattr(self, name).shape}" for name in _SHAPES)
            raise InputError(f"these are no weights of a Q-function: {shapes}")

    @property
    def dimension(self) -> int:
        """Return the length of the embeddings."""
        return int((self.w1.shape[1] - self.label_input) // 2)

    def check(self, encoder: str, dimension: int) -> None:
        """Raise `EmbeddingMismatchError` unless the head was trained on embeddings of this kind."""
        if (encoder, dimension) != (self.encoder, self.dimension):
            raise EmbeddingMismatchError(
                f"the Q-function was trained on embeddings {self.encoder!r} ({self.dimension} dimensions), and the cases have "
                f"{encoder!r} ({dimension}). Train it on these cases, or open the bank with that embedding"
            )

    def q(self, query: Array, cases: Array, rewards: NDArray[np.float64]) -> Array:
        """Return (n,) Q of each case for a query.

        query: (d,).  cases: (n, d).  rewards: (n,) of the cases, NaN for none (which counts as 0.5).
        The part of the first layer that is about the cases is kept for the next query on the same array, so that scoring a whole
        bank costs one addition, ReLU and (n, h) x (h, 2).
        """
        d = self.dimension
        hidden = self._half(cases) + (self.w1[:, d : 2 * d] @ query + self.b1)
        if self.label_input:
            hidden += np.outer(np.nan_to_num(rewards, nan=0.5), self.w1[:, 2 * d]).astype(np.float32)
        np.maximum(hidden, 0, out=hidden)
        logits = hidden @ (self.w2[1] - self.w2[0]) + (self.b2[1] - self.b2[0])
        scores: Array = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
        return scores

    def _half(self, cases: Array) -> Array:
        for known, half in self._halves:
            if known is cases:
                return half
        half = cases @ self.w1[:, : self.dimension].T
        self._halves[:] = [(cases, half)]
        return half

    def save(self, file: Path) -> None:
        """Write the head to a safetensors file."""
        about = {"encoder": self.encoder, "label_input": str(int(self.label_input))}
        save_weights(file, _KIND, {name: getattr(self, name) for name in _SHAPES}, about)


def load_q_head(file: Path) -> QHead:
    """Return the head in a file. Raises `InputError` when it is none, `FormatError` for one of another format."""
    tensors, about = load_weights(file, _KIND)
    w1, b1, w2, b2 = (tensors[name] for name in _SHAPES)
    return QHead(w1, b1, w2, b2, encoder=about.get("encoder", ""), label_input=about.get("label_input") == "1")

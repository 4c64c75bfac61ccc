"""What of a record is embedded and indexed, and the BM25 encoder.

The encoder is Qdrant's own (in process, no download), also for a Qdrant server, so both indexes hold the same sparse vectors.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from memweave.memory_stores.engine import SearchConfig, Sparse

if TYPE_CHECKING:
    from qdrant_edge import Bm25

EMBED_TEMPLATE = 1
"""Version of `embedded_text`; part of what vectors are compared under."""


def embedded_text(text: str, speaker: str | None) -> str:
    """Return the string that is embedded: the speaker belongs to the meaning (who said it is often what is asked)."""
    return f'{speaker} said, "{text}"' if speaker else text


class Bm25Encoder:
    """Turns texts into BM25 term weights; the engine multiplies them by the inverse document frequency at search time."""

    def __init__(self, config: SearchConfig) -> None:
        self._context = config.context_in_bm25
        self._model = _bm25(config.bm25_k, config.bm25_b, config.bm25_avg_len)

    def document(self, text: str, *, speaker: str | None, context: str | None) -> Sparse:
        """Return the weights of an indexed text."""
        parts = [speaker, text, context if self._context else None]
        vector = self._model.embed_document("\n".join(part for part in parts if part))
        return Sparse(vector.indices, vector.values)

    def query(self, text: str) -> Sparse:
        """Return weight 1 for each distinct token of a query."""
        vector = self._model.embed_query(text)
        return Sparse(vector.indices, vector.values)


@lru_cache(maxsize=8)
def _bm25(k: float, b: float, avg_len: float) -> Bm25:
    from qdrant_edge import Bm25, Bm25Config

    return Bm25(Bm25Config(k=k, b=b, avg_len=avg_len, language="english"))

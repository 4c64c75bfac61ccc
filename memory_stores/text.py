"""What of a record is embedded and indexed, how a query is read, and the BM25 encoder.

The encoder is Qdrant's own (in process, no download), also for a Qdrant server, so both indexes hold the same sparse vectors.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from memweave.memory_stores.engine import SearchConfig, Sparse

if TYPE_CHECKING:
    from qdrant_edge import Bm25

EMBED_TEMPLATE: Final = 1
"""Version of `embedded_text`; part of what vectors are compared under."""

_ROLES: Final = frozenset({"user", "assistant", "human", "ai", "system", "tool", "bot", "agent"})
"""Speakers that are words of their own in a question, not names."""


def embedded_text(text: str, speaker: str | None) -> str:
    """Return the string that is embedded: the speaker belongs to the meaning (who said it is often what is asked)."""
    return f'{speaker} said, "{text}"' if speaker else text


def named_speakers(query: str, speakers: Collection[str]) -> tuple[str, list[str]]:
    """Return the query without the participants' names, and the participants it names.

    A participant is named by the full name, by a part of it, or by a capitalised beginning of at least three letters ("Mel" for
    Melanie), as a whole word, possessive or not. Roles such as "user" are not names. A word that mostly is no name ("Will", "The")
    counts only in full, capitalised, and not at the start of the query. A query of names only is returned as it is.
    """
    matches = list(_WORD.finditer(query))
    named: list[str] = []
    spans: set[int] = set()
    for speaker in speakers:
        parts = _name_parts(speaker)
        found = {match.start() for match in matches if _is_name(match[1], parts, first=match is matches[0])}
        if found:
            named.append(speaker)
            spans |= found
    if not spans:
        return query, named
    rest = " ".join(_WORD.sub(lambda match: "" if match.start() in spans else match[0], query).split())
    return (rest if re.search(r"\w", rest) else query), named


_WORD: Final = re.compile(r"\b(\w+)(?:['’]s)?\b")
_ORDINARY: Final = re.compile(
    "all|and|any|are|can|could|did|does|for|had|has|have|her|him|his|how|its|let|many|may|might|must|not|one|our|out|shall|"
    "she|should|some|than|that|the|their|them|then|there|these|they|this|was|were|what|when|where|which|who|whom|whose|why|"
    "will|with|would|you|your"
)
"""Frequent words with which names begin (Theo, Candace, Hassan), or that are names (Will, May)."""


@lru_cache(maxsize=4096)
def _name_parts(speaker: str) -> tuple[str, ...]:
    return () if speaker.lower() in _ROLES else tuple(part.lower() for part in re.findall(r"\w+", speaker))


def _is_name(word: str, parts: tuple[str, ...], *, first: bool) -> bool:
    low = word.lower()
    if _ORDINARY.fullmatch(low):
        return low in parts and word[0].isupper() and not first
    return low in parts or (len(word) >= 3 and word[0].isupper() and any(part.startswith(low) for part in parts))


class Bm25Encoder:
    """Turns texts into BM25 term weights; the engine multiplies them by the inverse document frequency at search time."""

    def __init__(self, config: SearchConfig) -> None:
        self._config = config
        self._model = _bm25(config.bm25_k, config.bm25_b, config.bm25_avg_len)

    def document(self, text: str, *, speaker: str | None, context: str | None, observed_at: datetime | None) -> Sparse:
        """Return the weights of an indexed text."""
        date = None
        if observed_at is not None and self._config.date_in_bm25:
            date = f"{observed_at.day} {observed_at:%B} {observed_at.year}"
        parts = [speaker, text, context if self._config.context_in_bm25 else None, date]
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

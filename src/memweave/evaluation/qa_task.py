"""What a question answering evaluation asks, and what may be remembered for it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from memweave.errors import InputError
from memweave.evaluation.retrieval import Collection, locomo_task, passage_task
from memweave.records import Record, Trust, Turn
from memweave.worlds.locomo import LocomoConversation
from memweave.worlds.passages import PassageSet

READER = "document"
"""Speaker of a passage that is read into memory as if somebody said it."""


class QAQuestion(Record):
    """One question with its accepted answers."""

    id: str
    collection: str
    """Name of the collection that is asked."""
    category: str
    """LoCoMo category number, HotpotQA type, MuSiQue hops."""
    question: str
    golds: tuple[str, ...]
    """Accepted answers, the preferred one first."""
    evidence: tuple[str, ...]
    """Source ids that support the answer; empty when they are not known."""
    context: tuple[str, ...] | None = None
    """Source ids that `full-context` shows; `None` for all of the collection."""


@dataclass(frozen=True)
class Source:
    """What is remembered: as turns to be worked on, and as raw memories."""

    turns: tuple[Turn, ...]
    raw: Collection


@dataclass(frozen=True)
class QATask:
    """Questions and the collections that they are about."""

    dataset: str
    sources: dict[str, Source]
    questions: tuple[QAQuestion, ...]

    def first(self, limit: int | None) -> QATask:
        """Return the first `limit` questions, and the collections that they need. Raises: InputError if none is left."""
        questions = self.questions[:limit]
        if not questions:
            raise InputError(f"{self.dataset}: there is no question to ask.")
        needed = {question.collection for question in questions}
        sources = {name: source for name, source in self.sources.items() if name in needed}
        return QATask(self.dataset, sources, questions)

    def fingerprint(self) -> str:
        """Return 16 hex digits that identify what may be remembered and all that may be asked."""
        digest = hashlib.blake2b(digest_size=8)
        for name, source in self.sources.items():
            digest.update(name.encode())
            for turn in source.turns:
                digest.update(turn.model_dump_json().encode())
        for question in self.questions:
            digest.update(question.model_dump_json().encode())
        return digest.hexdigest()


def locomo_qa(conversations: Sequence[LocomoConversation]) -> QATask:
    """Return LoCoMo's questions of categories 1 to 4 (Memory-R1 drops the adversarial ones), each about its conversation."""
    raw = {collection.name: collection for collection in locomo_task(conversations).collections}
    questions = tuple(
        QAQuestion(
            id=q.id,
            collection=conversation.sample_id,
            category=str(q.category),
            question=q.question,
            golds=(q.answer,),
            evidence=q.evidence,
        )
        for conversation in conversations
        for q in conversation.questions
        if q.category <= 4 and q.answer is not None
    )
    sources = {c.sample_id: Source(tuple(c.turns), raw[c.sample_id]) for c in conversations}
    return QATask("locomo", sources, questions)


def passage_qa(passages: PassageSet) -> QATask:
    """Return a passage set's questions, all about the shared corpus."""
    (raw,) = passage_task(passages).collections
    turns = tuple(
        Turn(source_id=p.id, dialogue=passages.name, speaker=READER, text=p.memory_text, trust=Trust.IMPORT)
        for p in passages.passages
    )
    questions = tuple(
        QAQuestion(
            id=q.id,
            collection=passages.name,
            category=q.kind,
            question=q.question,
            golds=(q.answer, *q.aliases),
            evidence=q.gold,
            context=q.context,
        )
        for q in passages.questions
    )
    return QATask(passages.name, {passages.name: Source(turns, raw)}, questions)

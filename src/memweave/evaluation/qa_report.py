"""The numbers of a question answering run: scores with intervals, failures, cost and latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from pydantic import JsonValue

from memweave.evaluation.qa_folder import CollectionResult, QAResult, QASettings, Usage
from memweave.metrics import bootstrap
from memweave.records import Record

METRICS: Final = ("em", "f1", "bleu1")
_SEED: Final = 0


class Score(Record):
    """A mean and its 95 % bootstrap interval over questions."""

    mean: float
    low: float
    high: float
    n: int


class QAScores(Record):
    """Scores of a group of questions."""

    n: int
    failed: int
    """Questions without an answer; they count with 0."""
    em: Score
    f1: Score
    bleu1: Score
    judge: Score | None
    """Over the questions that the judge decided; `None` without a judge."""
    judge_undecided: int
    evidence_shown: Score | None
    """Share of the evidence among the sources of the memories shown, where the evidence is known."""


class QAReport(Record):
    """All numbers of one run."""

    settings: QASettings
    overall: QAScores
    by_category: dict[str, QAScores]
    tokens: Usage
    """Of the answerer, all questions together."""
    judge_tokens: Usage
    latency_p50: float
    """Seconds per question, the judge excluded."""
    latency_p95: float
    memories_shown: float
    """Mean number of memories per question."""
    construction: tuple[CollectionResult, ...]

    def payload(self) -> dict[str, JsonValue]:
        """Return the report as the JSON object of the command line."""
        overall = self.overall.model_dump(mode="json")
        scores = {name: overall.pop(name) for name in (*METRICS, "judge", "evidence_shown")}
        names = ("dataset", "agent", "model", "extractor", "manager", "judge", "embedding")
        settings = self.settings.model_dump(mode="json")
        dumped: dict[str, JsonValue] = self.model_dump(mode="json", include={"by_category", "tokens", "judge_tokens"})
        return {
            **{name: settings.pop(name) for name in names},
            **overall,
            "scores": {name: score for name, score in scores.items() if score is not None},
            **dumped,
            "latency_s": {"p50": self.latency_p50, "p95": self.latency_p95},
            "memories_shown": self.memories_shown,
            "construction": _construction(self.construction),
            "config": settings,
        }


def summarise(settings: QASettings, answers: Sequence[QAResult], construction: Sequence[CollectionResult]) -> QAReport:
    """Return the report of a finished run; there is at least one answer."""
    seconds = [answer.seconds for answer in answers]
    categories = sorted({answer.category for answer in answers})
    return QAReport(
        settings=settings,
        overall=_scores(answers),
        by_category={name: _scores([a for a in answers if a.category == name]) for name in categories},
        tokens=sum((answer.usage for answer in answers), Usage()),
        judge_tokens=sum((answer.judge_usage for answer in answers), Usage()),
        latency_p50=float(np.percentile(seconds, 50)),
        latency_p95=float(np.percentile(seconds, 95)),
        memories_shown=float(np.mean([answer.memories for answer in answers])),
        construction=tuple(construction),
    )


def _scores(answers: Sequence[QAResult]) -> QAScores:
    judged = [float(answer.correct) for answer in answers if answer.correct is not None]
    shown = [answer.evidence_shown for answer in answers if answer.evidence_shown is not None]
    return QAScores(
        n=len(answers),
        failed=sum(answer.answer is None for answer in answers),
        em=_score([answer.em for answer in answers]),
        f1=_score([answer.f1 for answer in answers]),
        bleu1=_score([answer.bleu1 for answer in answers]),
        judge=_score(judged) if judged else None,
        judge_undecided=sum(answer.judge_error is not None for answer in answers),
        evidence_shown=_score(shown) if shown else None,
    )


def _score(values: Sequence[float]) -> Score:
    interval = bootstrap(values, seed=_SEED)
    return Score(mean=interval.mean, low=interval.low, high=interval.high, n=interval.n)


def _construction(collections: Sequence[CollectionResult]) -> dict[str, JsonValue]:
    operations: Counter[str] = Counter()
    for collection in collections:
        operations.update(collection.operations)
    return {
        "turns": sum(c.turns for c in collections),
        "failed_turns": sum(c.failed_turns for c in collections),
        "memories": sum(c.memories for c in collections),
        "operations": dict(operations),
        "tokens": sum((c.usage for c in collections), Usage()).model_dump(mode="json"),
        "seconds": sum(c.seconds for c in collections),
    }

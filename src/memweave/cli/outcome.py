"""What a demo found out: as a report for a person, and as an object for a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean as mean
from typing import Final

from memweave import __version__
from memweave.cli import render
from memweave.cli.learning import LearningStory
from memweave.cli.report import AskedQuestion, RecallRow, Report, UndoStory
from memweave.records import MemoryOp, Turn

LABELS: Final = {"ADD": "added", "UPDATE": "updated", "DELETE": "deleted", "NOOP": "known already", "FAILED": "failed"}


@dataclass(frozen=True)
class Outcome:
    """What a demo found out."""

    turns: Sequence[Turn]
    ops: Sequence[MemoryOp]
    """The whole log, the undo and its own undo included."""
    counts: Mapping[str, int]
    """Operations of the conversation, by kind."""
    memories: int
    questions: Sequence[AskedQuestion]
    undo: UndoStory | None
    recall: Sequence[RecallRow]
    learning: LearningStory | None
    """`None` when it was left out."""
    embedding: str
    model: str
    seconds: float
    """From the first turn to the last answer."""


def page(outcome: Outcome) -> Report:
    """Return what the report shows."""
    right = sum(asked.exact == 1 for asked in outcome.questions)
    first, last = render.day(outcome.turns[0].observed_at), render.day(outcome.turns[-1].observed_at)
    return Report(
        title="What memweave remembered",
        lead=f"A conversation of two friends, {first} to {last}: {len(outcome.turns)} messages, read one by one.",
        tiles=(
            ("messages", str(len(outcome.turns))),
            ("memories", str(outcome.memories)),
            *((LABELS.get(kind, kind), str(count)) for kind, count in outcome.counts.items()),
            ("right answers", f"{right} of {len(outcome.questions)}"),
            ("token F1", f"{mean(asked.f1 for asked in outcome.questions):.2f}"),
        ),
        turns=outcome.turns,
        ops=outcome.ops,
        questions=outcome.questions,
        undo=outcome.undo,
        recall=outcome.recall,
        learning=outcome.learning,
        footer=f"memweave {__version__}. Embedding: {outcome.embedding}. Policies: {outcome.model}. "
        f"Reading and answering took {outcome.seconds:.1f} s.",
    )


def payload(outcome: Outcome, report: Path, home: Path) -> dict[str, object]:
    """Return the object of `--json`."""
    story = outcome.undo
    return {
        "turns": len(outcome.turns),
        "memories": outcome.memories,
        "operations": dict(outcome.counts),
        "exact_match": mean(asked.exact for asked in outcome.questions),
        "f1": mean(asked.f1 for asked in outcome.questions),
        "questions": [
            {"question": q.question, "expected": q.expected, "answer": q.answer, "exact_match": q.exact, "f1": q.f1}
            for q in outcome.questions
        ],
        "undo": story and {"operation": str(story.undone.id), "question": story.question,
                           "answer_before": story.answer_before, "answer_after": story.answer_after},
        "recall": {row.name: {str(k): share for k, share in row.recall} for row in outcome.recall},
        "learning": outcome.learning and asdict(outcome.learning),
        "embedding": outcome.embedding,
        "model": outcome.model,
        "seconds": outcome.seconds,
        "home": str(home),
        "report": str(report),
    }  # fmt: skip

"""The report of a demo: one HTML file that needs nothing else, in light and dark, also for thousands of memories.

Every text is escaped; the page carries a content security policy that forbids loading anything; it is well-formed XML,
so that a test can parse it strictly. It does not know where its numbers come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from memweave.cli.learning import Learner, LearningStory
from memweave.cli.markup import cell, change, section, sign, table, text
from memweave.cli.render import day
from memweave.cli.timeline import timeline
from memweave.records import Memory, MemoryOp, Turn

USED_SHOWN: Final = 3
"""Memories that are shown below an answer."""


@dataclass(frozen=True)
class AskedQuestion:
    """A question with its answer, and how good that was."""

    category: str
    question: str
    expected: str
    answer: str
    exact: float
    """1 or 0."""
    f1: float
    """0..1"""
    used: tuple[Memory, ...]


@dataclass(frozen=True)
class UndoStory:
    """One operation taken back, and what that did to an answer."""

    undone: MemoryOp
    question: str
    answer_before: str
    answer_after: str


@dataclass(frozen=True)
class RecallRow:
    """Share of evidence found among the first k memories, for one kind of question."""

    name: str
    questions: int
    recall: tuple[tuple[int, float], ...]
    """(k, 0..1), k ascending; the same k in every row."""


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    title: str
    lead: str
    tiles: tuple[tuple[str, str], ...]
    turns: Sequence[Turn]
    ops: Sequence[MemoryOp]
    questions: Sequence[AskedQuestion]
    undo: UndoStory | None
    recall: Sequence[RecallRow]
    learning: LearningStory | None
    footer: str


def write_report(report: Report, path: Path) -> None:
    """Write the page to `path`."""
    template = Template(files("memweave.cli").joinpath("report.html").read_text(encoding="utf-8"))
    sections = (
        timeline(report.turns, report.ops),
        _questions(report.questions),
        _undo(report.undo),
        _recall(report.recall),
        _learning(report.learning),
        _log(report.ops),
    )
    page = template.substitute(
        title=text(report.title),
        lead=text(report.lead),
        tiles="".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in report.tiles),
        sections="\n".join(section for section in sections if section),
        footer=text(report.footer),
    )
    path.write_text(page, encoding="utf-8")


def _questions(questions: Sequence[AskedQuestion]) -> str:
    if not questions:
        return ""
    right = sum(question.exact == 1 for question in questions)
    lead = f"{right} of {len(questions)} are answered exactly. Below each answer: the memories that it was read from."
    columns = ("", "question", "expected", "answer", "F1")
    return section(
        "Questions",
        lead,
        f'<div class="scroll">{table(columns, map(_question, questions), numeric=("F1",))}</div>',
    )


def _question(asked: AskedQuestion) -> str:
    verdict = cell("\u2713 right", "right") if asked.exact == 1 else cell("\u2717 wrong", "wrong")
    used = "".join(f'<div class="small">{day(m.observed_at)} {text(m.text)}</div>' for m in asked.used[:USED_SHOWN])
    question = f"{text(asked.question)} <small>({text(asked.category)})</small>"
    cells = (
        verdict,
        cell(question),
        cell(text(asked.expected)),
        cell(text(asked.answer) + used),
        cell(f"{asked.f1:.2f}", "n"),
    )
    return f"<tr>{''.join(cells)}</tr>"


def _undo(story: UndoStory | None) -> str:
    if story is None:
        return ""
    body = (
        f'<div class="story"><p>{sign(story.undone)} {change(story.undone)}</p>'
        f'<p class="small">{text(story.undone.reason)}</p>'
        f"<p><b>{text(story.question)}</b></p>"
        f"<p>before the undo: {text(story.answer_before)}<br/>"
        f"after the undo: <b>{text(story.answer_after)}</b></p></div>"
    )
    lead = "One operation was taken back, the question asked again, and the operation restored."
    return section("Undo", lead, body)


def _recall(rows: Sequence[RecallRow]) -> str:
    if not rows:
        return ""
    names = [f"R@{k}" for k, _ in rows[0].recall]
    lead = "Share of the turns that an answer follows from whose memories are among the first k results of a search."
    made = table(("questions", "count", *names), map(_recall_row, rows), numeric=("count", *names))
    return section("Retrieval", lead, f'<div class="scroll">{made}</div>')


def _recall_row(row: RecallRow) -> str:
    values = "".join(
        f'<td class="n meter" style="--v:{100 * share:.0f}%">{100 * share:.0f}</td>' for _, share in row.recall
    )
    kind = ' class="all"' if row.name == "all" else ""
    return f'<tr{kind}><td>{text(row.name)}</td><td class="n">{row.questions}</td>{values}</tr>'


def _learning(story: LearningStory | None) -> str:
    if story is None:
        return ""
    lead = (
        f"A small policy was trained for {len(story.rewards)} steps ({story.episodes} episodes, {story.seconds:.0f} s) to manage "
        f"memory; its only reward is whether questions are answered right afterwards. Exact match on {story.questions} questions "
        f"about {story.dialogues} dialogues that it was not trained on; the answerer is the same for all."
    )
    made = table(
        ("manager", "exact match", "memories"), map(_learner_row, story.managers), numeric=("exact match", "memories")
    )
    return section("Learning", lead, f'<div class="scroll">{made}</div>')


def _learner_row(learner: Learner) -> str:
    share = f"{100 * learner.exact_match:.0f}"
    return (
        f'<tr><td>{text(learner.name)}</td><td class="n meter" style="--v:{share}%">{share}</td>'
        f'<td class="n">{learner.memories:.1f}</td></tr>'
    )


def _log(ops: Sequence[MemoryOp]) -> str:
    if not ops:
        return ""
    columns = ("id", "operation", "change", "reason", "by", "from")
    made = table(columns, map(_log_row, ops))
    body = f'<div class="scroll"><details class="more"><summary>{len(ops)} operations</summary>{made}</details></div>'
    return section(
        "Operations", "Every operation with its reason, who decided it, and the turn that it came from.", body
    )


def _log_row(op: MemoryOp) -> str:
    return (
        f"<tr>{cell(op.id.hex[-8:], 'id')}{cell(sign(op))}{cell(change(op))}{cell(text(op.reason))}"
        f"{cell(text(op.actor))}{cell(text(', '.join(op.source_ids)), 'when')}</tr>"
    )

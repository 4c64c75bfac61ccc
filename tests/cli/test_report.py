"""The report: well-formed, self-contained, and harmless whatever a memory says."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree

import pytest

from memweave.cli.learning import Learner, LearningStory
from memweave.cli.report import AskedQuestion, RecallRow, Report, UndoStory, write_report
from memweave.memory_stores import MemoryBank
from memweave.records import MemoryOp, OpKind, ProposedOp, Scope, Turn

HOSTILE = "<script>alert('x')</script> & \"quoted\" \x1b[31mred\x07 \u202eright to left"
DAY = datetime(2025, 1, 1, tzinfo=UTC)


def turn(number: int, text: str) -> Turn:
    return Turn(source_id=f"t{number}", speaker="Mara", text=text, observed_at=DAY + timedelta(days=number))


def add(bank: MemoryBank, scope: Scope, said: Turn) -> MemoryOp:
    proposal = ProposedOp(
        kind=OpKind.ADD,
        text=said.text,
        reason=f"said {HOSTILE}",
        actor="rule",
        source_ids=(said.source_id,),
        speaker=said.speaker,
        observed_at=said.observed_at,
    )
    return bank.apply([proposal], scope=scope)[0]


@pytest.fixture
def report(bank: MemoryBank, scope: Scope) -> Report:
    turns = [turn(1, "I live in Ghent"), turn(2, HOSTILE), turn(3, "I live in Utrecht now"), turn(4, "The van is gone")]
    first, hostile, gone = (add(bank, scope, turns[i]) for i in (0, 1, 3))
    changes = [
        ProposedOp(kind=OpKind.UPDATE, memory_id=first.memory_id, text="I live in Utrecht", reason="moved", actor="rule",
                   source_ids=("t3",)),
        ProposedOp(kind=OpKind.NOOP, memory_id=hostile.memory_id, reason="said again", actor="rule", source_ids=("t3",)),
        ProposedOp(kind=OpKind.DELETE, memory_id=gone.memory_id, reason="taken back", actor="rule", source_ids=("t4",)),
    ]  # fmt: skip
    update = bank.apply(changes, scope=scope)[0]
    bank.undo(update.id, scope=scope, actor="user:anna")
    memory = bank.memories(scope=scope)[0]
    return Report(
        title=f"Demo {HOSTILE}",
        lead=HOSTILE,
        tiles=(("turns", "4"), (HOSTILE, HOSTILE)),
        turns=turns,
        ops=bank.log(scope=scope),
        questions=[
            AskedQuestion("current", f"Where? {HOSTILE}", "Utrecht", "Utrecht", 1.0, 1.0, (memory,)),
            AskedQuestion("list", "Which dogs?", "Biscuit and Pepper", HOSTILE, 0.0, 0.25, ()),
        ],
        undo=UndoStory(update, "Where?", "Utrecht", HOSTILE),
        recall=[RecallRow("current", 1, ((1, 0.5), (5, 1.0))), RecallRow("all", 2, ((1, 0.25), (5, 0.75)))],
        learning=LearningStory(
            managers=(
                Learner("base policy", 0.25, 9.04),
                Learner(f"after {HOSTILE}", 0.625, 7.5),
                Learner("perfect", 1.0, 6.0),
            ),
            rewards=(0.125, 0.5),
            dialogues=6,
            questions=90,
            episodes=128,
            seconds=61.4,
        ),
        footer=HOSTILE,
    )


def parse(path: Path) -> ElementTree.Element:
    return ElementTree.fromstring(path.read_text(encoding="utf-8"))


def test_page_is_well_formed_and_has_every_section(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "report.html")
    titles = [node.text for node in parse(tmp_path / "report.html").iter("h2")]
    assert titles == ["What is remembered", "Questions", "Undo", "Retrieval", "Learning", "Operations"]


def test_text_from_outside_cannot_become_markup(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1  # ours
    assert "&lt;script&gt;" in page
    assert not set(page) & {"\x1b", "\x07", "\u202e"}
    handlers = [key for node in parse(tmp_path / "report.html").iter() for key in node.attrib if key.startswith("on")]
    assert handlers == []


def test_page_loads_nothing_from_anywhere(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"https?:|//[a-z]|url\(|@import|src=|href=", page) == []
    assert "default-src 'none'" in page


def test_timeline_shows_versions_ticks_and_what_is_gone(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "report.html")
    rows = [node for node in parse(tmp_path / "report.html").iter("details") if "memory" in node.get("class", "")]
    assert len(rows) == 3
    moved, hostile, gone = rows
    assert "changed" in (moved.get("class") or "").split()
    assert [piece.get("class") for piece in moved.findall(".//i")] == ["last"]  # the move was taken back
    assert "taken back" in "".join(moved.itertext())
    assert len(hostile.findall(".//i[@class='again']")) == 1
    assert "gone" in (gone.get("class") or "").split()
    assert gone.findall(".//i[@class='last']") == []


def test_what_was_learned_stands_beside_what_does_not_learn(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "report.html")
    page = parse(tmp_path / "report.html")
    (section,) = [node for node in page.iter("section") if "Learning" in [title.text for title in node.iter("h2")]]
    rows = [["".join(cell.itertext()) for cell in row] for row in section.iter("tr")]
    assert rows[0] == ["manager", "exact match", "memories"]
    assert [row[1:] for row in rows[1:]] == [["25", "9.0"], ["62", "7.5"], ["100", "6.0"]]
    assert rows[2][0].startswith("after <script>")
    assert [cell.get("style") for row in section.iter("tr") for cell in row if cell.get("style")] == [
        "--v:25%", "--v:62%", "--v:100%",
    ]  # fmt: skip
    said = "".join(section.itertext())
    assert "2 steps (128 episodes, 61 s)" in said
    assert "90 questions about 6 dialogues" in said


def test_a_story_knows_before_and_after(report: Report) -> None:
    assert report.learning is not None
    assert (report.learning.before, report.learning.after) == (0.25, 0.625)


def test_an_empty_report_is_a_page_too(tmp_path: Path) -> None:
    empty = Report(
        title="t", lead="", tiles=(), turns=(), ops=(), questions=(), undo=None, recall=(), learning=None, footer=""
    )
    write_report(empty, tmp_path / "report.html")
    assert list(parse(tmp_path / "report.html").iter("h2")) == []


def test_two_thousand_memories_fit_on_one_page(bank: MemoryBank, scope: Scope, tmp_path: Path) -> None:
    turns = [turn(number, f"fact number {number} about something") for number in range(2_000)]
    proposals = [
        ProposedOp(
            kind=OpKind.ADD, text=t.text, reason="new", actor="rule", source_ids=(t.source_id,), speaker=t.speaker
        )
        for t in turns
    ]
    ops = bank.apply(proposals, scope=scope)
    many = Report(
        title="t", lead="", tiles=(), turns=turns, ops=ops, questions=(), undo=None, recall=(), learning=None, footer=""
    )
    before = time.perf_counter()
    write_report(many, tmp_path / "report.html")
    assert time.perf_counter() - before < 5
    rows = [node for node in parse(tmp_path / "report.html").iter("details") if "memory" in node.get("class", "")]
    assert len(rows) == 2_000
    assert (tmp_path / "report.html").stat().st_size < 5_000_000

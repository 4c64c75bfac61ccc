"""`memweave remember` and `memweave ask`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from memweave.cli import render
from memweave.cli.common import AsJson, Embedding, Home, Model, Session, Tenant, User, session
from memweave.cli.feed import Feed
from memweave.errors import InputError, ModelReplyError
from memweave.records import MemoryOp, OpStatus, TurnStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from memweave.graphs.memory_r1_answering import AnsweringGraph, AnsweringOutput
    from memweave.graphs.memory_r1_construction import ConstructionState

    Stream = Iterator[tuple[str, Any]]

File = Annotated[
    Path | None, typer.Argument(help="LoCoMo JSON, or JSON lines of messages. Without it: what is still pending.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Do not show operations as they happen.")]
MOST_TURNS: Final = 1_000_000
"""Turns of one run: in effect, all that are pending."""
KINDS: Final = ("ADD", "UPDATE", "DELETE", "NOOP", "FAILED")
Question = Annotated[str, typer.Argument(help="What to answer from memory.")]


def remember(
    file: File = None,
    user: User = None,
    tenant: Tenant = None,
    home: Home = None,
    model: Model = None,
    embedding: Embedding = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Read a conversation into memory.

    Reading it again changes nothing. What failed stays pending and is tried again by the next run.
    """
    from memweave.embeddings import minilm_installed
    from memweave.worlds import read_turns

    turns = read_turns(file) if file is not None else []
    options = {"user": user, "tenant": tenant, "home": home, "model": model, "embedding": embedding}
    with session(create=file is not None, roles=("extractor", "manager"), **options) as here:
        if here.settings.embedding is None and not minilm_installed():
            render.note(
                f"MiniLM is not installed; embedding with {here.bank.embedder.model_id}. See docs/embedding.md."
            )
        stored = here.bank.accept(turns, scope=here.scope)
        known = sum(turn.status is TurnStatus.DONE for turn in stored)
        shown = not (quiet or as_json)
        outcome = construct(here, render.notes(), show=shown, bar=shown)
        pending = here.bank.turns(scope=here.scope, status=TurnStatus.PENDING)
        total = len(here.bank.memories(scope=here.scope))
    counts = count_kinds(outcome["operations"])
    if as_json:
        render.emit(
            {
                "turns_read": len(turns),
                "turns_known": known,
                "turns_done": outcome["turns_done"],
                "turns_pending": len(pending),
                "operations": dict(counts),
                "memories": total,
                "run_id": outcome["run_id"],
                "failed": [failed.model_dump(mode="json") for failed in outcome["failed"]],
                "stopped": outcome["stopped"],
            }
        )
    else:
        _report(outcome, counts, total, known=known)
    if outcome["failed"] or outcome["stopped"]:
        raise typer.Exit(1)


def _report(outcome: ConstructionState, counts: Mapping[str, int], total: int, *, known: int) -> None:
    again = f" ({known} were known already)" if known else ""
    made = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "no operation"
    render.out().print(
        f"{render.count(outcome['turns_done'], 'turn')} read{again}: {made}. {render.count(total, 'memory')}."
    )
    if outcome["operations"]:
        render.note(f"Take all of it back with: memweave memory undo --run {outcome['run_id']}")
    for failed in outcome["failed"]:
        render.notes().print(
            f"failed: turn {failed.source_id} of {failed.dialogue}: {render.safe(failed.error)}", style="red"
        )
    if outcome["stopped"]:
        render.notes().print(f"stopped: {render.safe(outcome['stopped'])}", style="red")
    if outcome["failed"] or outcome["stopped"]:
        render.note(
            "These turns are stored and stay pending; nothing of them was lost. Try again with: memweave remember"
        )


def ask(
    question: Question,
    user: User = None,
    tenant: Tenant = None,
    home: Home = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Answer from memory, with the memories used."""
    if not question.strip():
        raise InputError("the question is empty; write it after `memweave ask`.")
    with (
        session(roles=("answerer",), user=user, tenant=tenant, home=home, model=model) as here,
        render.notes().status("looking in memory ..."),
    ):
        reply = cast("AnsweringOutput", answering_graph(here).invoke({"question": question}))
    text, used, seen = reply["answer"], reply["used"], reply["memories"]
    if text is None:
        raise ModelReplyError(f"there is no answer: {reply['error']}")
    if as_json:
        dumped = [memory.model_dump(mode="json") for memory in used]
        render.emit({"answer": text, "used": dumped, "memories_seen": len(seen)})
        return
    render.out().print(render.safe(text), style="bold")
    if not used:
        render.note(f"It rests on none of the {len(seen)} memories that were looked at.")
        return
    render.out().print()
    made = render.table("no.", "date", "speaker", "memory", "id", right=["no."])
    for memory in used:
        render.row(made, seen.index(memory), render.day(memory.observed_at), memory.speaker or "-", memory.text,
                   render.short(memory.id))  # fmt: skip
    render.out().print(made)
    render.note(f"{len(used)} of {len(seen)} memories that were looked at.")


def answering_graph(here: Session) -> AnsweringGraph:
    """Return the graph that answers questions, as the settings describe it."""
    from memweave.graphs.memory_r1 import create_answering_graph
    from memweave.graphs.server import role_model

    answerer = role_model(here.settings, here.settings.answerer)
    return create_answering_graph(here.bank, answerer=answerer, scope=here.scope)


def construct(here: Session, console: Console, *, show: bool, bar: bool) -> ConstructionState:
    """Run the construction graph on all pending turns; see `Feed` for what is shown. Returns the last state."""
    from memweave.graphs.memory_r1 import create_construction_graph
    from memweave.graphs.server import role_model

    settings = here.settings
    pending = here.bank.turns(scope=here.scope, status=TurnStatus.PENDING)
    graph = create_construction_graph(
        here.bank,
        extractor=role_model(settings, settings.extractor),
        manager=role_model(settings, settings.manager),
        scope=here.scope,
        max_turns=MOST_TURNS,
    )
    state: ConstructionState = {}
    with Feed(pending, console, show=show, bar=bar) as feed:
        for mode, chunk in cast("Stream", graph.stream({}, stream_mode=["custom", "updates"])):
            if mode == "custom":
                feed.operation(chunk)
                continue
            for node, update in chunk.items():
                state |= update
                if node == "next_turn":
                    feed.next_turn()
    return state


def count_kinds(ops: Sequence[MemoryOp]) -> dict[str, int]:
    """Return how many operations there are of each kind, and how many failed."""
    counts = Counter("FAILED" if op.status is OpStatus.FAILED else str(op.kind) for op in ops)
    return {kind: counts[kind] for kind in KINDS if counts[kind]}

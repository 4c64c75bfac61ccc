"""`memweave memory ...`: look at memories and their history, take changes back, move them, erase them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

import typer

from memweave.cli import render
from memweave.cli.common import AsJson, Embedding, Home, Tenant, User, hand_out, need_folder, secret, session
from memweave.errors import InputError, UnknownMemoryError
from memweave.records import Memory, MemoryOp, OpStatus, as_utc

if TYPE_CHECKING:
    from memweave.memory_stores import MemoryBank
    from memweave.records import Scope

SHOWN: Final = 50
"""Rows of a list or log that are shown unless the caller asks for more."""
SHORTEST: Final = 4
"""Fewest digits of an id that are accepted."""

memory_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at memories, undo changes, export, erase."
)

Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="Most rows to show.")]
Op = Annotated[str | None, typer.Argument(metavar="[OP]", help="Id of the operation: its first or last digits.")]
Run = Annotated[str | None, typer.Option("--run", help="Id of a run (see log --json).")]


@memory_app.command("list")
def list_(
    user: User = None, tenant: Tenant = None, home: Home = None, limit: Limit = SHOWN, as_json: AsJson = False
) -> None:
    """Show what is remembered, oldest first."""
    with session(user=user, tenant=tenant, home=home) as here:
        memories = here.bank.memories(scope=here.scope)
        _show_memories(memories, limit, as_json, empty=f"Nothing is remembered about {here.scope}.")


@memory_app.command("as-of")
def as_of(
    time: Annotated[str, typer.Argument(help="Moment of the ledger, e.g. 2026-11-20 or 2026-11-20T18:30 (UTC).")],
    user: User = None,
    tenant: Tenant = None,
    home: Home = None,
    limit: Limit = SHOWN,
    as_json: AsJson = False,
) -> None:
    """Show what was remembered at an earlier time."""
    moment = _moment(time)
    with session(user=user, tenant=tenant, home=home) as here:
        memories = here.bank.as_of(moment, scope=here.scope)
        empty = f"Nothing was remembered about {here.scope} at {moment:%Y-%m-%d %H:%M} UTC."
        _show_memories(memories, limit, as_json, empty=empty)


@memory_app.command()
def log(
    user: User = None,
    tenant: Tenant = None,
    home: Home = None,
    limit: Limit = SHOWN,
    run: Run = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="Only operations on this memory (first or last digits).")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only operations that failed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the latest operations: what, why, by whom, from which message, before -> after."""
    with session(user=user, tenant=tenant, home=home) as here:
        memory_id = _find_memory(here.bank, here.scope, memory) if memory else None
        status = OpStatus.FAILED if failed else None
        ops = here.bank.log(scope=here.scope, limit=limit, run_id=run, memory_id=memory_id, status=status, newest=True)
        if as_json:
            render.emit({"operations": [op.model_dump(mode="json") for op in ops]})
        elif ops:
            render.out().print(render.op_table(ops))
        else:
            render.note(f"No operations of {here.scope} match.")


@memory_app.command()
def undo(
    op: Op = None, run: Run = None, user: User = None, tenant: Tenant = None, home: Home = None, as_json: AsJson = False
) -> None:
    """Take back one operation, or all operations of a run. Undoing the undo restores."""
    if (op is None) == (run is None):
        raise InputError("give either the id of an operation (see `memweave memory log`) or --run RUN.")
    with session(user=user, tenant=tenant, home=home) as here:
        actor = f"user:{here.scope.user}"
        if run is not None:
            done = here.bank.undo_run(run, scope=here.scope, actor=actor)
        else:
            done = [here.bank.undo(_find_op(here.bank, here.scope, op or ""), scope=here.scope, actor=actor)]
        if as_json:
            render.emit({"operations": [each.model_dump(mode="json") for each in done]})
        else:
            render.out().print(render.op_table(done))


@memory_app.command()
def export(
    file: Annotated[Path | None, typer.Argument(help="File to write; standard output without one.")] = None,
    user: User = None,
    tenant: Tenant = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Write memories, their history and pending turns as JSON lines."""
    with session(user=user, tenant=tenant, home=home) as here:
        lines = list(here.bank.export(scope=here.scope))
    told, counts = render.count(len(lines), "line"), {"lines": len(lines)}
    hand_out(lines, file, told=told, counts=counts, content=lambda: {"lines": lines}, as_json=as_json)


@memory_app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="JSON lines made by `memweave memory export`.")],
    user: User = None,
    tenant: Tenant = None,
    home: Home = None,
    embedding: Embedding = None,
    as_json: AsJson = False,
) -> None:
    """Read what export wrote; what is there already is skipped."""
    from memweave.worlds.files import read_text

    lines = [line for line in read_text(file).split("\n") if line]
    with session(create=True, user=user, tenant=tenant, home=home, embedding=embedding) as here:
        receipt = here.bank.import_(lines, scope=here.scope)
    if as_json:
        render.emit(receipt.model_dump(mode="json"))
    else:
        counts = ", ".join(f"{value} {name}" for name, value in receipt.model_dump().items())
        render.note(f"Imported {counts}.")


@memory_app.command()
def purge(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    user: User = None,
    tenant: Tenant = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Erase a user: memories, history and turns, for good. The one thing that cannot be undone."""
    with session(user=user, tenant=tenant, home=home) as here:
        if not yes:
            _confirm_purge(len(here.bank.memories(scope=here.scope)), here.scope)
        receipt = here.bank.purge(scope=here.scope)
        if as_json:
            render.emit(receipt.model_dump(mode="json"))
        else:
            render.note(
                f"Erased {receipt.memories} versions of memories, {receipt.operations} operations and "
                f"{receipt.turns} turns of {here.scope}."
            )


@memory_app.command()
def rebuild(
    home: Home = None,
    embedding: Embedding = None,
    user: Annotated[
        str | None, typer.Option("--user", "-u", help="Accepted; the index of the whole folder is made.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the index again from the ledger, with its search graphs; with --embedding, embed everything again with that model."""
    from memweave.config import Settings
    from memweave.memory_stores import reembed
    from memweave.memory_stores.configured import open_bank_from

    settings = Settings.load(home=home, user=user)
    need_folder(settings)
    if embedding is not None:
        render.note(f"Embedding every memory again with {embedding} ...")
        reembed(
            settings.home, embedding, ledger_url=secret(settings.ledger_url), api_key=secret(settings.embedding_api_key)
        )
        settings = Settings.load(home=home, embedding=embedding)
    with open_bank_from(settings) as bank:
        bank.rebuild()
        bank.optimize()
        done = {
            "home": str(settings.home),
            "embedding": bank.embedder.model_id,
            "dimension": bank.embedder.dimension,
        }
    if as_json:
        render.emit(done)
    else:
        render.note(
            f"The index of {done['home']} is made again, with {done['embedding']} ({done['dimension']} dimensions)."
        )


def _show_memories(memories: Sequence[Memory], limit: int, as_json: bool, *, empty: str) -> None:
    shown = list(memories)[:limit]
    if as_json:
        render.emit({"memories": [memory.model_dump(mode="json") for memory in shown], "total": len(memories)})
    elif not memories:
        render.note(empty)
    else:
        render.out().print(render.memory_table(shown))
        more = f"; --limit {len(memories)} shows all" if len(memories) > len(shown) else ""
        render.note(f"{len(shown)} of {len(memories)} memories{more}.")


def _confirm_purge(count: int, scope: Scope) -> None:
    if not sys.stdin.isatty():
        raise InputError("purge erases for good and nobody is there to confirm; add --yes if that is what you want.")
    typer.confirm(f"Erase {count} memories of {scope} and their history for good?", abort=True, err=True)


def _moment(text: str) -> datetime:
    try:
        return as_utc(datetime.fromisoformat(text))
    except ValueError:
        raise InputError(f"{text!r} is not a time; write it like 2026-11-20 or 2026-11-20T18:30.") from None


def _find_op(bank: MemoryBank, scope: Scope, digits: str) -> UUID:
    wanted = _digits(digits)
    return _only(digits, [op.id for op in bank.log(scope=scope) if _fits(op, wanted)], "operation", "memory log")


def _fits(op: MemoryOp, digits: str) -> bool:
    return op.id.hex.startswith(digits) or op.id.hex.endswith(digits)


def _find_memory(bank: MemoryBank, scope: Scope, digits: str) -> UUID:
    wanted = _digits(digits)
    known = {op.memory_id for op in bank.log(scope=scope) if op.memory_id}
    found = [key for key in sorted(known) if key.hex.startswith(wanted) or key.hex.endswith(wanted)]
    return _only(digits, found, "memory", "memory list")


def _digits(text: str) -> str:
    digits = text.replace("-", "").lower()
    if len(digits) < SHORTEST or set(digits) - set("0123456789abcdef"):
        raise InputError(
            f"{text!r} is not an id; give at least {SHORTEST} of its hexadecimal digits, as the lists show them."
        )
    return digits


def _only(digits: str, found: Sequence[UUID], what: str, where: str) -> UUID:
    if not found:
        raise UnknownMemoryError(
            f"there is no {what} {digits!r} of this user. `memweave {where} --user ...` shows them."
        )
    if len(found) > 1:
        some = ", ".join(str(each) for each in found[:3])
        raise InputError(f"{digits!r} fits {len(found)} ids ({some}); give more digits.")
    return found[0]

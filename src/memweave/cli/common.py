"""Options that commands share, and the way from options to an open bank."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memweave.cli import render
from memweave.errors import InputError, SettingsError, UsageError

if TYPE_CHECKING:
    from pydantic import SecretStr

    from memweave.config import Settings
    from memweave.memory_stores import MemoryBank
    from memweave.records import Scope

User = Annotated[str | None, typer.Option("--user", "-u", help="Whose memories (or MEMWEAVE_USER).")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Whose installation.  [default: default]")]
Home = Annotated[Path | None, typer.Option("--home", help="Data folder.  [default: .memweave]")]
Embedding = Annotated[
    str | None, typer.Option("--embedding", help="minilm, hashing or openai:MODEL@URL.  [default: what the folder has]")
]
Model = Annotated[str | None, typer.Option("--model", help="rule, openai:NAME or openai:NAME@URL.  [default: rule]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else.")]


@dataclass(frozen=True)
class Session:
    """What a command works with."""

    settings: Settings
    bank: MemoryBank
    scope: Scope


@contextmanager
def session(*, create: bool = False, roles: Sequence[str] = (), **options: object) -> Iterator[Session]:
    """Read the settings, open the bank and close it at the end.

    create: whether a data folder may be made.  roles: whose models will be needed; one that cannot be had is refused
    before anything is opened.  Raises: SettingsError without a user, UsageError without a folder.
    """
    from memweave.config import Settings
    from memweave.memory_stores.configured import open_bank_from
    from memweave.records import Scope

    settings = Settings.load(**options)
    if settings.user is None:
        raise SettingsError("no user is given. Add --user NAME, or set MEMWEAVE_USER.")
    if not create:
        need_folder(settings)
    if roles:
        from memweave.graphs.server import role_model

        for role in roles:
            role_model(settings, getattr(settings, role))
    with open_bank_from(settings) as bank:
        yield Session(settings, bank, Scope(tenant=settings.tenant, user=settings.user))


def need_folder(settings: Settings) -> None:
    """Raise `UsageError` when there is nothing yet where the settings point: reading must not make a data folder."""
    from memweave.memory_stores.opening import LEDGER

    if settings.ledger_url is not None or (settings.home / LEDGER).exists():
        return
    within = [each.parent for each in sorted(settings.home.glob(f"*/{LEDGER}"))]
    raise UsageError(
        f"there is no data folder at {settings.home}. "
        + (f"There is one at {within[0]}: --home {within[0]}" if within else
           "Make one with `memweave remember FILE --user NAME`, or name another with --home.")
    )  # fmt: skip


def hand_out(
    lines: Sequence[str],
    file: Path | None,
    *,
    told: str,
    counts: Mapping[str, object],
    content: Callable[[], Mapping[str, object]],
    as_json: bool,
) -> None:
    """Give an export out: into a new file, saying what it holds, or on standard output.

    told: what a person is told of it, e.g. "12 lines".  counts: what a program is told, beside the name of the file.
    content: the export as a JSON object, for standard output.  Raises: InputError for a file that exists already.
    """
    if file is None:
        if as_json:
            render.emit(content())
        else:
            sys.stdout.writelines(f"{line}\n" for line in lines)
        return
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in lines)
    except FileExistsError:
        raise InputError(f"{file} exists already; name another file, or remove it first.") from None
    if as_json:
        render.emit({"file": str(file), **counts})
    else:
        render.note(f"Wrote {told} to {file}.")


def secret(value: SecretStr | None) -> str | None:
    """Return what a secret holds."""
    return value.get_secret_value() if value else None

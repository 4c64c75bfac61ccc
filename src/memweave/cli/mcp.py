"""`memweave mcp`: the memory of one user for any MCP client, over standard input and output."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from memweave.cli import render
from memweave.cli.common import Embedding, Home, Model, Tenant, User, session
from memweave.errors import NotInstalledError, SettingsError


def mcp(
    user: User = None,
    tenant: Tenant = None,
    home: Home = None,
    model: Model = None,
    embedding: Embedding = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Serve nothing: print the entry for a client's configuration as one JSON object."),
    ] = False,
) -> None:
    """Serve the memories of one user to an MCP client, over standard input and output.

    The client starts this command; --json prints what it wants in its configuration. Tools: search_memory, remember,
    list_memories, memory_history, undo. Whose memories they are is fixed here; a client cannot name another user. Logs go
    to standard error.
    """
    options = {"user": user, "tenant": tenant, "home": home, "model": model, "embedding": embedding}
    if as_json:
        render.emit(_entry(options))
        return
    try:
        import mcp.server.lowlevel  # noqa: F401
    except ImportError:
        raise NotInstalledError(
            "memweave mcp needs more packages. Install them: pip install 'memweave[tools]'"
        ) from None
    import logging

    from memweave.cli.mcp_stdio import serve
    from memweave.graphs.memory_server import memory_server
    from memweave.graphs.server import role_model

    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    with _standard_output() as out, session(create=True, roles=("extractor", "manager"), **options) as here:
        extractor, manager = (role_model(here.settings, getattr(here.settings, r)) for r in ("extractor", "manager"))
        server = memory_server(here.bank, here.scope, extractor=extractor, manager=manager)
        render.note(f"Serving the memories of {here.scope} in {here.settings.home} over standard input and output.")
        serve(server, 0, out)


def _entry(options: Mapping[str, object]) -> dict[str, object]:
    """Return what clients have in their configuration.

    They start the command in a folder and an environment of their own, so that paths are absolute and our settings are options.
    """
    from memweave.config import Settings

    settings = Settings.load(**options)
    if settings.user is None:
        raise SettingsError("no user is given. Add --user NAME, or set MEMWEAVE_USER.")
    given = {
        "user": settings.user,
        "tenant": settings.tenant,
        "home": settings.home.absolute(),
        "model": settings.model,
        "embedding": settings.embedding,
    }
    flags = [part for key, value in given.items() if value is not None for part in (f"--{key}", str(value))]
    return {"mcpServers": {"memweave": {"command": sys.executable, "args": ["-P", "-m", "memweave", "mcp", *flags]}}}


@contextmanager
def _standard_output() -> Iterator[int]:
    """Yield where messages go; whatever else is written to standard output meanwhile goes to standard error."""
    sys.stdout.flush()
    ours, shared = os.dup(1), 1
    os.dup2(2, shared)
    try:
        yield ours
    finally:
        sys.stdout.flush()
        os.dup2(ours, shared)
        os.close(ours)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)

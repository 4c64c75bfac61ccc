"""`memweave mcp`: the memory of one user for any MCP client, over standard input and output."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from memweave.cli import render
from memweave.cli.common import Embedding, Home, Model, Tenant, User, session
from memweave.errors import InputError, NotInstalledError, SettingsError

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectSendStream
    from mcp.server.lowlevel import Server
    from mcp.shared.message import SessionMessage

    Incoming = MemoryObjectSendStream[SessionMessage | Exception]

LINE: Final = 16_000_000
"""Bytes of one message from the client; a longer one ends the server."""
LEAVE: Final = 2.0
"""Seconds that the last replies have to get out."""
_CHUNK: Final = 65_536


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
    from memweave.graphs.memory_server import memory_server
    from memweave.graphs.server import role_model

    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    with _standard_output() as out, session(create=True, roles=("extractor", "manager"), **options) as here:
        extractor, manager = (role_model(here.settings, getattr(here.settings, r)) for r in ("extractor", "manager"))
        server = memory_server(here.bank, here.scope, extractor=extractor, manager=manager)
        render.note(f"Serving the memories of {here.scope} in {here.settings.home} over standard input and output.")
        asyncio.run(_serve(server, 0, out))


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


async def _serve(server: Server[Any, Any], stdin: int, stdout: int) -> None:
    """Serve until the client closes our input.

    Reading and writing have threads of their own, which nothing waits for: a read from standard input cannot be cancelled.
    """
    import anyio
    from mcp.shared.message import SessionMessage

    to_server, received = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    sent, from_server = anyio.create_memory_object_stream[SessionMessage](0)
    replies: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    ended: list[InputError] = []
    loop = asyncio.get_running_loop()
    threading.Thread(target=_read, args=(stdin, loop, to_server, ended), name="memweave-mcp-in", daemon=True).start()
    writer = threading.Thread(target=_write, args=(stdout, replies), name="memweave-mcp-out", daemon=True)
    writer.start()

    async def pass_on() -> None:
        async with from_server:
            async for message in from_server:
                line = message.message.model_dump_json(by_alias=True, exclude_none=True)
                replies.put(f"{line}\n".encode())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pass_on)
        await server.run(received, sent, server.create_initialization_options())
        await sent.aclose()
    replies.put(None)
    await asyncio.to_thread(writer.join, LEAVE)
    if ended:
        raise ended[0]


def _read(stdin: int, loop: asyncio.AbstractEventLoop, to_server: Incoming, ended: list[InputError]) -> None:
    from mcp.shared.message import SessionMessage
    from mcp.types import JSONRPCMessage

    def deliver(line: bytes) -> None:
        message: SessionMessage | Exception
        try:
            message = SessionMessage(JSONRPCMessage.model_validate_json(line))
        except (ValueError, RecursionError):
            logging.getLogger(__name__).warning("a line that is no message was skipped: %.200r", line)
            return
        asyncio.run_coroutine_threadsafe(to_server.send(message), loop).result()

    pending = bytearray()
    try:
        while chunk := os.read(stdin, _CHUNK):
            *lines, rest = chunk.split(b"\n")
            for line in lines:
                pending += line
                if pending.strip():
                    deliver(bytes(pending))
                pending.clear()
            pending += rest
            if len(pending) > LINE:
                ended.append(InputError(f"a message of the client has more than {LINE} bytes. Send less at once."))
                break
    except Exception:  # there is no input, or the server has ended meanwhile
        logging.getLogger(__name__).debug("reading ended", exc_info=True)
    with suppress(RuntimeError):  # its loop may have ended too
        loop.call_soon_threadsafe(to_server.close)


def _write(stdout: int, replies: queue.SimpleQueue[bytes | None]) -> None:
    try:
        while (line := replies.get()) is not None:
            view = memoryview(line)
            while view:
                view = view[os.write(stdout, view) :]
    except OSError:  # the client is gone; our input ends too
        logging.getLogger(__name__).debug("writing ended", exc_info=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)

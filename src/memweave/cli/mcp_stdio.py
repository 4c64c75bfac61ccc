"""How messages travel between an MCP server in this process and its client: a line each, over two file descriptors.

Unlike the SDK's, this transport bounds a message, and ends at a signal while the client is silent. It knows nothing of tools.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from memweave.errors import InputError

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
_logger = logging.getLogger(__name__)


def serve(server: Server[Any, Any], stdin: int, stdout: int) -> None:
    """Serve until the client closes our input. Raises: InputError for a message that is too long; KeyboardInterrupt."""
    asyncio.run(_served(server, stdin, stdout))


async def _served(server: Server[Any, Any], stdin: int, stdout: int) -> None:
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
            _logger.warning("a line that is no message was skipped: %.200r", line)
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
        _logger.debug("reading ended", exc_info=True)
    with suppress(RuntimeError):  # its loop may have ended too
        loop.call_soon_threadsafe(to_server.close)


def _write(stdout: int, replies: queue.SimpleQueue[bytes | None]) -> None:
    try:
        while (line := replies.get()) is not None:
            view = memoryview(line)
            while view:
                view = view[os.write(stdout, view) :]
    except OSError:  # the client is gone; our input ends too
        _logger.debug("writing ended", exc_info=True)

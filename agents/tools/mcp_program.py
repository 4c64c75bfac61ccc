"""An MCP server that is a program on this machine: its messages are bounded, and it never outlives its session.

The official transport joins a long message anew with every chunk (50 MB take minutes), holds what a server sends without end, and lets
servers write to our standard error; this one does not. It knows nothing of tools.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio
from anyio.abc import Process
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCMessage
from pydantic import ValidationError

GRACE: Final = 2.0
"""Seconds that a server has to end by itself when its input is closed (it is told by SIGTERM halfway)."""
STDERR: Final = 2_000
"""Bytes of a server's standard error that are kept: the last ones."""

_logger = logging.getLogger(__name__)

Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]


@dataclass
class Trouble:
    """Why a session does not work, as far as is known; its scope is cancelled as soon as it cannot work any more."""

    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    reason: str | None = None
    stderr: bytearray = field(default_factory=bytearray)

    def stop(self, reason: str) -> None:
        """End the session; the first reason stays."""
        self.reason = self.reason or reason
        self.scope.cancel()


@asynccontextmanager
async def program_streams(
    command: list[str], *, env: Mapping[str, str], cwd: str | None, max_bytes: int, trouble: Trouble
) -> AsyncIterator[Streams]:
    """Start a program in a process group of its own, and yield the streams of a session with it; end it afterwards.

    env: beside a few harmless variables of ours (PATH, HOME).  max_bytes: of one message.  Raises: OSError.
    """
    process = await anyio.open_process(
        command, env={**get_default_environment(), **env}, cwd=cwd, start_new_session=True
    )
    to_session, received = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    sent, from_session = anyio.create_memory_object_stream[SessionMessage](0)
    closing = anyio.Event()
    try:  # from here on, so that a cancellation at any moment ends the program
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_receive, process, to_session, max_bytes, trouble, closing)
            tasks.start_soon(_send, process, from_session)
            tasks.start_soon(_listen, process, trouble)
            yield received, sent
            closing.set()
            with anyio.CancelScope(shield=True):
                await _end(process)
            tasks.cancel_scope.cancel()
    finally:
        _signal(process, kill=True)
        with anyio.CancelScope(shield=True):
            await process.aclose()
        received.close()
        sent.close()


async def _receive(
    process: Process,
    to_session: MemoryObjectSendStream[SessionMessage | Exception],
    max_bytes: int,
    trouble: Trouble,
    closing: anyio.Event,
) -> None:
    assert process.stdout is not None
    pending = bytearray()
    async with to_session:
        with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            async for chunk in process.stdout:
                *ends, rest = chunk.split(b"\n")
                for end in ends:
                    pending += end
                    if len(pending) > max_bytes:
                        break
                    if (message := _message(bytes(pending))) is not None:
                        await to_session.send(message)
                    pending.clear()
                pending += rest
                if len(pending) > max_bytes:
                    trouble.stop(f"sent a message of more than {max_bytes} bytes")
                    return
        if not closing.is_set():
            with anyio.move_on_after(GRACE):
                await process.wait()
            trouble.stop("ended" if process.returncode is None else f"ended with exit code {process.returncode}")


def _message(line: bytes) -> SessionMessage | None:
    try:
        return SessionMessage(JSONRPCMessage.model_validate_json(line))
    except (ValidationError, ValueError, RecursionError):
        if line.strip():
            _logger.debug("a line that is no message was skipped: %.200r", line)
        return None


async def _send(process: Process, from_session: MemoryObjectReceiveStream[SessionMessage]) -> None:
    assert process.stdin is not None
    async with from_session:
        with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            async for message in from_session:
                line = message.message.model_dump_json(by_alias=True, exclude_none=True)
                await process.stdin.send(f"{line}\n".encode())


async def _listen(process: Process, trouble: Trouble) -> None:
    assert process.stderr is not None
    with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
        async for chunk in process.stderr:
            trouble.stderr += chunk
            del trouble.stderr[:-STDERR]


async def _end(process: Process) -> None:
    """End a program: its input is closed, then it is asked to end, then it is killed, with all that it started."""
    if process.stdin is not None:
        with contextlib.suppress(OSError, anyio.BrokenResourceError):
            await process.stdin.aclose()
    for kill in (False, True):
        with anyio.move_on_after(GRACE / 2):
            await process.wait()
            break
        _signal(process, kill=kill)


def _signal(process: Process, *, kill: bool) -> None:
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is not None:
            return
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL if kill else signal.SIGTERM)
        elif kill:
            process.kill()
        else:
            process.terminate()

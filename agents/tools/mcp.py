"""Tools of MCP servers as LangChain tools, through LangChain's adapters: whatever a server does, the model gets a message.

Every call has a session of its own, as in the adapters: a server that is a program is started for the call and ended after it. One that
dies or hangs therefore harms one call only; one that keeps something between calls (a browser) starts anew each time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from langchain_core.tools import BaseTool

from memweave.agents.llm import bounded
from memweave.agents.roles import one_line
from memweave.agents.tools.guard import guarded
from memweave.errors import NotInstalledError, SettingsError, UnavailableError

if TYPE_CHECKING:
    from langchain_mcp_adapters.interceptors import MCPToolCallRequest, MCPToolCallResult
    from langchain_mcp_adapters.sessions import Connection
    from mcp import ClientSession
    from mcp.types import CallToolResult, ContentBlock

    from memweave.agents.tools.mcp_program import Trouble

MAX_BYTES: Final = 10_000_000
MOST_TOOLS: Final = 500
"""Tools of one server; one that names more is refused."""
DESCRIPTION: Final = 8_000
"""Characters of a tool's description that the model is shown."""
MARGIN: Final = 10.0
"""Seconds beyond its time that a call has to end its server, before it is given up."""

_NEEDS: Final = "tools of MCP servers need more packages. Install them: pip install 'memweave[tools]'"
_VARIABLE: Final = re.compile(r"\$\{(\w+)\}")
_logger = logging.getLogger(__name__)
T = TypeVar("T")


def mcp_tools(
    connections: Mapping[str, Mapping[str, Any]],
    *,
    timeout: float = 60.0,
    max_chars: int = 20_000,
    max_bytes: int = MAX_BYTES,
    prefix: bool = False,
    required: bool = True,
) -> list[BaseTool]:
    """Return the tools of MCP servers, each guarded: it may be used sync and async.

    connections: by name of the server, as `MultiServerMCPClient` takes them, or the `mcpServers` of other clients' settings (there a
    command means stdio, a URL means HTTP). `${NAME}` in `env` is a variable of ours.  timeout: seconds of one call, the start of
    its server included; and of asking for the tools.  max_chars: of one result.  max_bytes: of what a server sends in one message.
    prefix: put the server's name before those of its tools.  required: with False a server that does not name its tools is left out,
    with a warning in the log.
    Raises: SettingsError for limits or connections that cannot be, and for two tools of one name; UnavailableError for a server
    that does not name its tools; NotInstalledError.
    """

    async def asked() -> list[BaseTool]:
        return await amcp_tools(
            connections, timeout=timeout, max_chars=max_chars, max_bytes=max_bytes, prefix=prefix, required=required
        )

    try:
        return bounded(lambda: asyncio.run(asked()), timeout + MARGIN)
    except TimeoutError:
        raise UnavailableError(f"MCP servers did not name their tools within {timeout:g} s") from None


async def amcp_tools(
    connections: Mapping[str, Mapping[str, Any]],
    *,
    timeout: float = 60.0,  # noqa: ASYNC109 - of each call of a tool, later
    max_chars: int = 20_000,
    max_bytes: int = MAX_BYTES,
    prefix: bool = False,
    required: bool = True,
) -> list[BaseTool]:
    """Async twin of `mcp_tools`."""
    if min(timeout, max_chars, max_bytes) <= 0:
        raise SettingsError("the limits of mcp_tools must be positive")
    try:
        import langchain_mcp_adapters.tools  # noqa: F401
    except ImportError:
        raise NotInstalledError(_NEEDS) from None
    servers = [
        _Server(name, _connection(name, given), timeout, max_chars, max_bytes) for name, given in connections.items()
    ]
    found = await asyncio.gather(*(server.tools(prefix=prefix) for server in servers), return_exceptions=True)
    tools: list[BaseTool] = []
    for named in found:
        if isinstance(named, list):
            tools += named
        elif required or not isinstance(named, UnavailableError):
            raise named
        else:
            _logger.warning("left out: %s", named)
    names = [tool.name for tool in tools]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(f"two tools are called {twice[0]!r}. Give prefix=True, which adds the servers' names")
    return tools


@dataclass(frozen=True)
class _Server:
    name: str
    connection: Connection
    seconds: float
    chars: int
    bytes: int

    async def tools(self, *, prefix: bool) -> list[BaseTool]:
        from langchain_mcp_adapters.tools import load_mcp_tools

        async def ask(session: ClientSession) -> list[BaseTool]:
            return await load_mcp_tools(
                session, tool_interceptors=[self.call], server_name=self.name, tool_name_prefix=prefix
            )

        found = await self._work(ask, quote=True)
        if len(found) > MOST_TOOLS:
            raise UnavailableError(
                f"the MCP server {self.name!r} names {len(found)} tools; at most {MOST_TOOLS} can be"
            )
        return [self._guarded(tool) for tool in found]

    def _guarded(self, tool: BaseTool) -> BaseTool:
        if len(tool.description) > DESCRIPTION:
            tool = tool.model_copy(update={"description": f"{tool.description[:DESCRIPTION]} [...]"})
        return guarded(tool, timeout=self.seconds + MARGIN, max_chars=self.chars)

    async def call(
        self, request: MCPToolCallRequest, handler: Callable[[MCPToolCallRequest], Awaitable[MCPToolCallResult]]
    ) -> CallToolResult:
        """Call a tool in a session of its own, instead of the adapters' (`handler`), which has no bounds."""
        return _lean(await self._work(lambda session: session.call_tool(request.name, request.args)), self.chars)

    async def _work(self, use: Callable[[ClientSession], Awaitable[T]], *, quote: bool = False) -> T:
        """Return what `use` makes of a new session, in time. Raises `UnavailableError`.

        quote: tell what the server wrote to standard error, which is for whoever set it up; in any case it is logged.
        """
        import anyio

        from memweave.agents.tools.mcp_program import Trouble

        trouble, done, failure = Trouble(), list[T](), None
        trouble.scope.deadline = anyio.current_time() + self.seconds
        try:
            with trouble.scope:
                async with self._session(trouble) as session:
                    await session.initialize()
                    done.append(await use(session))
        except Exception as error:  # whatever the server, its transport and the session raise, often in groups
            failure = _innermost(error)
        if done:  # what goes wrong while a session ends does not matter any more
            return done[0]
        told, said = self._words(trouble, failure), one_line(trouble.stderr.decode("utf-8", "replace"))
        in_full = f"{told}. Its standard error ends with: {said}" if said else told
        _logger.warning("%s", in_full)
        raise UnavailableError(in_full if quote else told) from failure

    def _words(self, trouble: Trouble, failure: Exception | None) -> str:
        who = f"the MCP server {self.name!r}"
        if trouble.reason is not None:
            return f"{who} {trouble.reason}"
        if failure is None:
            return f"{who} gave no answer within {self.seconds:g} s and was given up"
        return f"{who} cannot be used: {type(failure).__name__}: {one_line(str(failure))[:300]}"

    @asynccontextmanager
    async def _session(self, trouble: Trouble) -> AsyncIterator[ClientSession]:
        from langchain_mcp_adapters.sessions import create_session
        from mcp import ClientSession

        from memweave.agents.tools.mcp_program import program_streams

        connection = cast("dict[str, Any]", self.connection)
        if connection["transport"] != "stdio":
            async with create_session(_bounded_http(self.connection, self.bytes, trouble)) as session:
                yield session
            return
        env = {key: _expanded(value) for key, value in (connection.get("env") or {}).items()}
        program = shutil.which(connection["command"], path=env.get("PATH")) or connection["command"]
        cwd = str(connection["cwd"]) if connection.get("cwd") else None
        async with (
            program_streams(
                [program, *connection["args"]], env=env, cwd=cwd, max_bytes=self.bytes, trouble=trouble
            ) as streams,
            ClientSession(*streams, **(connection.get("session_kwargs") or {})) as session,
        ):
            yield session


def _connection(name: str, given: Mapping[str, Any]) -> Connection:
    made = {key: value for key, value in given.items() if key != "type"}
    if "transport" not in made:
        made["transport"] = given.get("type") or ("stdio" if "command" in given else "http")
    if made["transport"] == "stdio":
        made.setdefault("args", [])
    wanted = "command" if made["transport"] == "stdio" else "url"
    if not isinstance(made.get(wanted), str):
        raise SettingsError(f"the connection {name!r} has no {wanted}. Give a command with args, or a url")
    return cast("Connection", made)


def _expanded(value: str) -> str:
    return _VARIABLE.sub(lambda found: os.environ.get(found[1], found[0]), value)


def _bounded_http(connection: Connection, max_bytes: int, trouble: Trouble) -> Connection:
    """Return the connection with a client that stops when a response is too large; one that brings its own keeps it."""
    made = cast("dict[str, Any]", connection)
    if made["transport"] == "websocket" or made.get("httpx_client_factory") is not None:
        return connection
    import httpx

    class Counted(httpx.AsyncByteStream):
        def __init__(self, stream: httpx.AsyncByteStream) -> None:
            self.stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = max_bytes
            async for chunk in self.stream:
                if (left := left - len(chunk)) < 0:
                    trouble.stop(f"sent more than {max_bytes} bytes")
                    return
                yield chunk

        async def aclose(self) -> None:
            await self.stream.aclose()

    async def count(response: httpx.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":  # it may unpack to anything
            trouble.stop("sent packed data, which it was not asked for")
        response.stream = Counted(cast("httpx.AsyncByteStream", response.stream))

    def client(
        headers: dict[str, str] | None = None, timeout: httpx.Timeout | None = None, auth: httpx.Auth | None = None
    ) -> httpx.AsyncClient:
        plain = {**(headers or {}), "accept-encoding": "identity"}
        return httpx.AsyncClient(headers=plain, timeout=timeout, auth=auth, event_hooks={"response": [count]})

    return cast("Connection", {**made, "httpx_client_factory": client})


def _lean(result: CallToolResult, max_chars: int) -> CallToolResult:
    """Return a result without sound, which the adapters refuse, and without structured data beyond the length of a result."""
    from mcp.types import AudioContent, TextContent

    def block(given: ContentBlock) -> ContentBlock:
        if isinstance(given, AudioContent):
            return TextContent(type="text", text=f"[Sound ({given.mimeType:.40}) was left out.]")
        return given

    data = result.structuredContent
    if data is not None and len(json.dumps(data, default=str)) > max_chars:
        data = None
    return result.model_copy(update={"content": [block(each) for each in result.content], "structuredContent": data})


def _innermost(error: BaseException) -> Exception:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else RuntimeError(repr(error))

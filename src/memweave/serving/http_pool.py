"""A small HTTP client for one server: shared keep-alive connections, JSON in and out, called from any thread.

httpx costs more CPU per request than the rest of a model call, and its asynchronous client belongs to one event loop. This
one blocks; from async code it runs on a thread. It does not know vLLM.
"""

from __future__ import annotations

import http.client
import json
import select
import socket
import ssl
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from memweave.errors import SettingsError

JsonObject = dict[str, Any]
_IDLE: Final = 256
"""Connections that are kept open."""


class ConnectionLost(Exception):
    """Nothing listens, or the connection broke before the answer was complete."""


class Cancelled(Exception):
    """The caller no longer wants the answer."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. body: the JSON value, or `None` when it is none; text: its beginning, for messages."""

    status: int
    body: Any
    text: str
    retry_after: float | None = None
    """Seconds after which an overloaded server wants to be asked again."""


class Call:
    """One request that another thread may cancel: the connection is closed, and the server stops working on it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        """End the request; its thread gets `Cancelled`."""
        with self._lock:
            self.cancelled.set()
            if self._socket is not None:
                _shut(self._socket)

    def uses(self, connection: socket.socket | None) -> None:
        """Say which socket the request is on. Raises `Cancelled` when it is no longer wanted."""
        with self._lock:
            self._socket = connection
            if self.cancelled.is_set():
                raise Cancelled


class HttpPool:
    """Keep-alive connections to `url`. Raises `SettingsError` for a malformed one."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise SettingsError(f"{url!r} is not the URL of a server, e.g. http://localhost:8000")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        self._host, self._port = parts.hostname, port
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = urlsplit(self.url).path
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._idle)

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None, *, timeout: float, call: Call | None = None
    ) -> Reply:
        """Send one request and return the answer, whatever its status.

        timeout: seconds without a byte.  Raises `ConnectionLost`, `TimeoutError`, or `Cancelled` (only with `call`).
        """
        payload = None if body is None else json.dumps(body, separators=(",", ":"), default=str).encode()
        connection = self._take()
        reused = connection is not None
        connection = connection or self._new()
        try:
            try:
                return self._exchange(connection, method, path, payload, timeout, call)
            except ConnectionLost:
                if not reused:
                    raise
            # The server had closed a connection that waited too long; a new one tells whether it is there.
            connection = self._new()
            return self._exchange(connection, method, path, payload, timeout, call)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Close idle connections; the pool stays usable."""
        with self._lock:
            _close_all(self._idle)

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        payload: bytes | None,
        timeout: float,
        call: Call | None,
    ) -> Reply:
        try:
            if connection.sock is None:
                connection.timeout = min(timeout, 10.0)
                connection.connect()
            line = connection.sock
            line.settimeout(timeout)
            if call is not None:
                call.uses(line)
            connection.request(method, self._prefix + path, payload, self._headers)
            response = connection.getresponse()
            raw = response.read()
        except TimeoutError:
            connection.close()
            raise
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if call is not None and call.cancelled.is_set():
                raise Cancelled from error
            raise ConnectionLost(str(error) or type(error).__name__) from error
        if call is not None:
            call.uses(None)
        if response.will_close:
            connection.close()
        else:
            self._give(connection)
        return _reply(response, raw)

    def _take(self) -> http.client.HTTPConnection | None:
        """Return an idle connection that the server has not closed."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            # Between requests nothing may come: readable means closed.
            if connection.sock is not None and not _readable(connection.sock):
                return connection
            connection.close()

    def _give(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if len(self._idle) < _IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def _new(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(self._host, self._port, context=self._tls)
        return http.client.HTTPConnection(self._host, self._port)


def _reply(response: http.client.HTTPResponse, raw: bytes) -> Reply:
    try:
        body = json.loads(raw) if raw else None
    except (ValueError, RecursionError):
        body = None
    after = response.getheader("Retry-After") if response.status in (429, 503) else None
    seconds = float(after) if after and after.isascii() and after.isdigit() else None
    return Reply(response.status, body, raw[:2_000].decode(errors="replace") if body is None else "", seconds)


def _close_all(connections: list[http.client.HTTPConnection]) -> None:
    while connections:
        connections.pop().close()


def _readable(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is closed already

"""One vLLM server over HTTP: typed errors for what it answers, and patience while it is being restarted.

Every call blocks. It knows neither roles nor adapters: who does, gives `restore`, which is called once after each restart.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Final, cast

from memweave.errors import (
    ContextLengthError,
    InputError,
    ModelReplyError,
    OperationError,
    ServerSetupError,
    UnavailableError,
)
from memweave.serving.http_pool import Call, Cancelled, ConnectionLost, HttpPool, JsonObject, Reply
from memweave.serving.patience import clock_stopped

logger = logging.getLogger(__name__)

RECONNECT_TIMEOUT: Final = 300.0
"""Seconds that calls wait for a server that went away."""
_POLL: Final = 0.5
_OVERLOADED_TRIES: Final = 5
_LOSSES: Final = 10
"""Restarts that one request survives."""
_DYING: Final = re.compile(r"EngineCore|EngineDead|engine is dead|shutting down", re.I)
_CONTEXT: Final = re.compile(
    r"maximum context length|max_model_len|context window|longer than the maximum model length", re.I
)


class UnknownModelError(OperationError):
    """The server does not know the model name: it was restarted, or the adapter has been replaced meanwhile."""


class ServerAwayError(UnavailableError):
    """Nothing answers at the server's address."""


class VLLMEndpoint:
    """A vLLM server at `url` (with or without `/v1`).

    reconnect_timeout: seconds to wait for a server that does not answer; 0 gives up at once.  on_wait: called with one line
    when the waiting starts and when it ends; by default it goes to the log as a warning.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        reconnect_timeout: float = RECONNECT_TIMEOUT,
        on_wait: Callable[[str], None] | None = None,
        restore: Callable[[], None] | None = None,
    ) -> None:
        self._pool = HttpPool(url, api_key)
        self.url = self._pool.url
        self._reconnect_timeout = reconnect_timeout
        self._on_wait = on_wait or logger.warning
        self._restore = restore
        self._lock = threading.RLock()
        self._lives = 0  # how often the server was found again; tells threads whether another one has already waited
        self._gone: str | None = None  # why waiting failed, and
        self._gone_at = 0.0  # when: calls that waited in line behind it do not wait once more

    def get(self, path: str, *, timeout: float = 10.0) -> Any:
        """Return the JSON answer of a GET; no waiting. Raises `ServerAwayError` and the errors of `post`."""
        try:
            return self._body(self._pool.request("GET", path, None, timeout=timeout), path)
        except (ConnectionLost, TimeoutError) as error:
            raise self._unreachable(error) from error

    def post(
        self, path: str, body: Mapping[str, Any], *, timeout: float, call: Call | None = None, wait: bool = True
    ) -> JsonObject:
        """Return the JSON object that the server answers; wait and send again while it is being restarted.

        timeout: seconds for one attempt.  Raises `UnknownModelError` (404), `ContextLengthError`, `InputError` (other
        400), `ServerSetupError` (401, 403), `ModelReplyError` (no JSON), `UnavailableError` (timeout, overload, fault of the
        server, or it stayed away); without `wait`, `ServerAwayError` at once.
        """
        waited_from = time.monotonic()
        for losses in count():
            lives = self._lives
            try:
                return self._object(self._patiently(path, body, timeout, call), path)
            except TimeoutError as error:
                raise UnavailableError(
                    f"{self.url} gave no answer within {timeout:g} s. Raise timeout, or look at the server's log"
                ) from error
            except ConnectionLost as error:
                if not wait or losses == _LOSSES:
                    raise self._unreachable(error) from error
                self._wait(lives, waited_from, error, call)
        raise AssertionError("unreachable: the loop ends by return or raise")

    def wait_ready(self) -> None:
        """Return when the server answers; raise `UnavailableError` when it stays away."""
        lives, since = self._lives, time.monotonic()
        if not self._healthy():
            self._wait(lives, since, ConnectionLost("no answer"), None)

    def close(self) -> None:
        """Close idle connections."""
        self._pool.close()

    def _patiently(self, path: str, body: Mapping[str, Any], timeout: float, call: Call | None) -> Reply:
        """Send; when the server is overloaded, send again after a while. Raises `ConnectionLost` when it is going down."""
        for attempt in range(_OVERLOADED_TRIES):
            reply = self._pool.request("POST", path, body, timeout=timeout, call=call)
            if reply.status in (502, 503, 504) or (reply.status == 500 and _DYING.search(_message(reply))):
                raise ConnectionLost(f"{reply.status}: {_message(reply)[:120]}")
            if _aborted(reply):
                raise ConnectionLost("it broke off the reply")
            if reply.status != 429:
                return reply
            if attempt + 1 < _OVERLOADED_TRIES:
                _pause(min(reply.retry_after or 0.2 * 2**attempt, 10.0), call)
        return reply

    @clock_stopped()
    def _wait(self, lives: int, since: float, error: ConnectionLost, call: Call | None) -> None:
        """Return when the server is back and has its adapters; one thread waits for all."""
        while not self._lock.acquire(timeout=_POLL):
            if call is not None and call.cancelled.is_set():
                raise Cancelled
        try:
            if self._lives != lives:
                return
            if self._gone is not None and self._gone_at > since:
                raise UnavailableError(self._gone)
            self._wait_alone(error, call)
        finally:
            self._lock.release()

    def _wait_alone(self, error: ConnectionLost, call: Call | None) -> None:
        deadline = time.monotonic() + self._reconnect_timeout
        told = False
        while not self._healthy():
            left = deadline - time.monotonic()
            if left <= 0:
                self._gone = (
                    f"vLLM at {self.url} does not answer ({error})"
                    + (f" and did not come back within {self._reconnect_timeout:g} s" if told else "")
                    + ". Start it: memweave serve"
                )
                self._gone_at = time.monotonic()
                raise UnavailableError(self._gone) from error
            if not told:
                self._on_wait(
                    f"vLLM at {self.url} does not answer ({error}); waiting up to {self._reconnect_timeout:g} s for it"
                )
                told = True
            _pause(min(_POLL, left), call)
        if self._restore is not None:
            self._restore()
        self._lives += 1
        if told:
            self._on_wait(f"vLLM at {self.url} answers again; going on")

    def _healthy(self) -> bool:
        try:
            return self._pool.request("GET", "/health", None, timeout=5.0).status == 200
        except (ConnectionLost, TimeoutError):
            return False

    def _object(self, reply: Reply, path: str) -> JsonObject:
        body = self._body(reply, path)
        if not isinstance(body, dict) and path.startswith("/v1/chat"):
            raise ModelReplyError(f"{self.url}{path} answered with something other than a JSON object. Is it vLLM?")
        return body if isinstance(body, dict) else {}

    def _body(self, reply: Reply, path: str) -> Any:
        """Return the body of a good answer; raise what a bad one means."""
        if reply.status == 200:
            if reply.body is None and path not in _WORDS_ONLY:
                raise ModelReplyError(f"{self.url}{path} answered with no JSON: {reply.text[:80]!r}. Is it vLLM?")
            return reply.body
        said = _message(reply)
        match reply.status:
            case 400 | 422 if _CONTEXT.search(said):
                raise ContextLengthError(f"The prompt (with max_tokens) does not fit the model's context: {said}")
            case 400 | 413 | 422:
                raise InputError(f"vLLM refuses the request: {said}")
            case 401 | 403:
                raise ServerSetupError(
                    f"vLLM at {self.url} refuses the API key ({reply.status}): give the one it was started with"
                )
            case 404:
                raise UnknownModelError(said)
            case 429:
                raise UnavailableError(f"vLLM at {self.url} is overloaded (429): {said}. Lower the concurrency")
            case status:
                raise UnavailableError(f"vLLM at {self.url} failed ({status}): {said}. Its log says why")

    def _unreachable(self, error: Exception) -> ServerAwayError:
        return ServerAwayError(f"vLLM at {self.url} does not answer ({error}). Start it: memweave serve")


_WORDS_ONLY: Final = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/health")
"""Paths that are answered with words."""


def _message(reply: Reply) -> str:
    """Return what the server says is wrong, on one line."""
    body = reply.body
    if isinstance(body, dict):
        error = body.get("error", body)
        said = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        text = str(said if said is not None else cast("object", body))
    else:
        text = reply.text or "no reason given"
    return " ".join(text.split())[:400]


def _aborted(reply: Reply) -> bool:
    """Return whether a server that is being stopped has cut the reply short."""
    if not isinstance(reply.body, dict) or not isinstance(choices := reply.body.get("choices"), list) or not choices:
        return False
    return isinstance(choices[0], dict) and choices[0].get("finish_reason") in ("abort", "error")


def _pause(seconds: float, call: Call | None) -> None:
    """Wait; a cancelled call stops waiting."""
    if call is None:
        time.sleep(seconds)
    elif call.cancelled.wait(seconds):
        raise Cancelled

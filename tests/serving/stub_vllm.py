"""A server that speaks vLLM's protocol over a real socket, with faults that can be switched on."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
LOGITS = {5: 2.0, 6: 1.0, 7: 0.5, 8: 0.0}
"""Of the one distribution that this model has, by token id."""


class StubVLLM:
    """`fault` is called with path and body; what it returns (status, text) is answered instead, `None` changes nothing."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Json]] = []
        self.keys: set[str | None] = set()
        """What callers sent as their authorization."""
        self.adapters: list[str] = []
        self.fault: Callable[[str, Json], tuple[int, str] | None] = lambda path, body: None
        self.change: Callable[[Json], object] = lambda answer: None
        self.raw = False
        self.top_p_default = False
        self.hold = threading.Event()
        self.port = 0
        self._connections: list[socket.socket] = []
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                stub._connections.append(self.connection)

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: Json) -> None:
                stub.keys.add(self.headers["Authorization"])
                if self.path.startswith("/v1/chat") or self.path.endswith("lora_adapter"):
                    stub.requests.append((self.path, body))
                status, text = stub.fault(self.path, body) or stub.reply(self.path, body)
                payload = text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.hold.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            for connection in self._connections:
                # A process that dies takes its open connections with it.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._connections.clear()

    def reply(self, path: str, body: Json) -> tuple[int, str]:
        match path:
            case "/health":
                return 200, ""
            case "/v1/models":
                cards = [{"id": "base", "parent": None}, *({"id": name, "parent": "base"} for name in self.adapters)]
                return 200, json.dumps({"data": cards})
            case "/v1/load_lora_adapter":
                if body["lora_path"].startswith("/nonexistent"):
                    return 404, error(404, f"Loading lora failed: No adapter found for {body['lora_path']}")
                self.adapters.append(body["lora_name"])
                return 200, "Success"
            case "/v1/unload_lora_adapter":
                self.adapters.remove(body["lora_name"])
                return 200, "Success"
            case "/v1/chat/completions":
                return self.chat(body)
        return 404, json.dumps({"detail": "Not Found"})

    def chat(self, body: Json) -> tuple[int, str]:
        if body["model"] not in ("base", *self.adapters):
            return 404, error(404, f"The model `{body['model']}` does not exist.")
        scaled = logprobs(body, raw=self.raw, top_p=self.top_p_default)
        entries = [{"token": f"token_id:{token}", "logprob": value} for token, value in scaled.items()]
        count = min(body.get("max_tokens", 3), 3)
        answer = {
            "id": "chatcmpl-1",
            "model": body["model"],
            "choices": [
                {
                    "message": {"role": "assistant", "content": f"from {body['model']}"},
                    "logprobs": {"content": [{**entries[0], "top_logprobs": entries}] * count},
                    "finish_reason": "stop",
                    "token_ids": [5] * count,
                }
            ],
            "usage": {"prompt_tokens": 4, "completion_tokens": count},
            "prompt_token_ids": [1, 2, 3, 4],
        }
        self.change(answer)
        return 200, json.dumps(answer)


def logprobs(body: Json, *, raw: bool, top_p: bool) -> dict[int, float]:
    """Return the log-probabilities that a server gives for `body`. top_p: whether its default cuts the tail."""
    import math

    bias = {int(token): value for token, value in body.get("logit_bias", {}).items()}
    scale = 1.0 if raw else float(body.get("temperature", 1.0))
    logits = {token: (value + (0 if raw else bias.get(token, 0))) / scale for token, value in LOGITS.items()}
    if top_p and "top_p" not in body:
        logits = dict(list(logits.items())[:2])
    total = math.log(sum(math.exp(value) for value in logits.values()))
    return {token: value - total for token, value in logits.items()}


def error(code: int, message: str) -> str:
    return json.dumps({"error": {"message": message, "code": code}})

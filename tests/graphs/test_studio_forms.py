"""Every graph of `langgraph.json` has the forms that LangGraph Studio shows: what goes in, what comes out, what can be set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from memweave.graphs import server

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
GRAPHS = json.loads((ROOT / "langgraph.json").read_text())["graphs"]


@pytest.fixture(autouse=True)
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMWEAVE_EMBEDDING", "hashing")
    server.reset()
    yield
    server.reset()


@pytest.mark.parametrize("name", GRAPHS)
async def test_a_graph_has_forms(name: str) -> None:
    module, factory = GRAPHS[name]["path"].split(":")
    graph = await getattr(import_module(module), factory)({})
    assert graph.get_input_jsonschema()["properties"]
    assert graph.get_output_jsonschema()["properties"]
    assert graph.get_context_jsonschema()["properties"]

"""The factory behind `langgraph.json`: the graph can be looked at without a model, and says what is missing when it is run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from memweave.errors import SettingsError
from memweave.graphs import server
from memweave.graphs.agemem import make_graph

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMWEAVE_EMBEDDING", "hashing")
    server.reset()
    yield
    server.reset()


async def test_without_a_model_the_graph_is_there_and_a_run_says_what_to_set() -> None:
    graph = await make_graph({})
    assert {"accept", "policy", "act"} <= set(graph.get_graph().nodes)
    with pytest.raises(SettingsError, match="set MEMWEAVE_MODEL, e.g. openai:gpt-4.1-mini"):
        await graph.ainvoke({"messages": "Hello."}, context={"user": "anna"})  # type: ignore[call-overload]


async def test_the_model_of_the_settings_plays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMWEAVE_MODEL", "openai:some-model@http://127.0.0.1:1/v1")
    own = await server.server()
    assert server.agent_model(own.settings).model_name == "some-model"  # type: ignore[attr-defined]

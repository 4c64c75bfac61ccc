"""The factory behind `langgraph.json`: Memento can be looked at without a model, and the settings say who plans and who acts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from memweave.agents.prompts import load_prompt
from memweave.errors import SettingsError
from memweave.graphs import server
from memweave.graphs.memento import make_graph

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
    nodes = {
        "ingest",
        "read_cases",
        "plan",
        "next_task",
        "record_subtask",
        "finalize_exhausted",
        "evaluate",
        "write_case",
    }
    assert nodes <= set(graph.get_graph().nodes)
    assert {"subtask:execute", "subtask:tools"} <= set(graph.get_graph(xray=True).nodes)
    with pytest.raises(SettingsError, match="set MEMWEAVE_MODEL, e.g. openai:gpt-4.1-mini"):
        await graph.ainvoke({"messages": "Hello."}, context={"user": "anna"})  # type: ignore[call-overload]


async def test_planner_and_executor_may_be_two_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMWEAVE_MODEL", "openai:small@http://127.0.0.1:1/v1")
    monkeypatch.setenv("MEMWEAVE_PLANNER", "openai:large@http://127.0.0.1:1/v1")
    own = await server.server()
    assert (own.planner.model_name, own.executor.model_name) == ("large", "small")  # type: ignore[attr-defined]


async def test_prompts_can_be_edited_in_studio() -> None:
    schema = (await make_graph({})).get_context_jsonschema()
    assert schema is not None
    fields = schema["properties"]
    assert fields["planner_prompt"]["langgraph_nodes"] == ["plan", "finalize_exhausted"]
    assert fields["executor_prompt"]["default"] == load_prompt("executor").text
    assert {"user", "tenant", "judge_prompt"} <= fields.keys()

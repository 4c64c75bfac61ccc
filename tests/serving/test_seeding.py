from __future__ import annotations

from typing import Any
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Send

from memweave.serving.seeding import call_seed, checkpoint_place
from memweave.testing.models import ScriptedChatModel


def where(**changes: object) -> dict[str, object]:
    return {
        "memweave_episode": "run/3/task-1/0",
        "langgraph_checkpoint_ns": f"outer:{uuid4()}|inner:{uuid4()}",
        "langgraph_step": 2,
        "langgraph_path": ("__pregel_pull", "inner"),
    } | changes


def test_random_ids_of_langgraph_do_not_change_the_seed() -> None:
    assert call_seed(1, where(), "hello") == call_seed(1, where(), "hello")
    assert checkpoint_place(f"outer:{uuid4()}|inner:{uuid4()}") == "outer|inner"
    assert checkpoint_place("node-a|node-b") == "node-a|node-b"


def test_everything_that_says_where_a_call_is_made_changes_the_seed() -> None:
    seeds = [
        call_seed(1, where(), "hello"),
        call_seed(2, where(), "hello"),
        call_seed(1, where(), "hello "),
        call_seed(1, where(), [104, 105]),
        call_seed(1, where(), [10, 4105]),
        call_seed(1, where(memweave_episode="run/3/task-1/1"), "hello"),
        call_seed(1, where(memweave_sample=1), "hello"),
        call_seed(1, where(langgraph_step=3), "hello"),
        call_seed(1, where(langgraph_checkpoint_ns=f"other:{uuid4()}"), "hello"),
        call_seed(1, where(langgraph_path=("__pregel_push", 0)), "hello"),
        call_seed(1, where(langgraph_path=("__pregel_push", 1)), "hello"),
        call_seed(1, None, "hello"),
    ]
    assert len(set(seeds)) == len(seeds)


def test_a_pair_draws_the_same_whatever_its_prompts_say() -> None:
    one = call_seed(1, where(memweave_pair="q1"), "with advice")
    assert one == call_seed(1, where(memweave_pair="q1"), [1, 2])
    others = [
        call_seed(1, where(memweave_pair="q2"), "with advice"),
        call_seed(1, where(memweave_pair="q1", langgraph_step=3), "with advice"),
        call_seed(1, where(memweave_pair="q1", memweave_episode="run/3/task-2/0"), "with advice"),
        call_seed(2, where(memweave_pair="q1"), "with advice"),
        call_seed(1, where(), "with advice"),
    ]
    assert len({one, *others}) == 6


def test_a_seed_never_changes_between_releases() -> None:
    assert call_seed(0, None, "") == 9015630647750004410
    assert call_seed(7, {"memweave_episode": "r/0/g/1", "langgraph_step": 1}, [1, 2, 3]) == 777457147661870793


@given(st.integers(), st.dictionaries(st.text(), st.text()), st.text() | st.lists(st.integers()))
def test_any_call_has_a_seed_of_63_bits(seed: int, metadata: dict[str, str], prompt: str | list[int]) -> None:
    assert 0 <= call_seed(seed, metadata, prompt) < 2**63


class Seeds(BaseCallbackHandler):
    """Collects the seed of every model call."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def on_chat_model_start(
        self, serialized: Any, messages: Any, *, metadata: dict[str, Any] | None = None, **_: Any
    ) -> None:
        self.found.append(call_seed(5, metadata, str(messages[0][0].content)))


def test_in_a_graph_parallel_sends_differ_and_a_second_run_repeats_the_first() -> None:
    def call(state: MessagesState, config: RunnableConfig) -> MessagesState:
        return {"messages": [ScriptedChatModel(["yes"]).invoke([HumanMessage("same")], config)]}

    inner = StateGraph(MessagesState).add_node("call", call).add_edge(START, "call").add_edge("call", END).compile()
    graph = StateGraph(MessagesState)
    graph.add_node("call", call).add_node("sub", inner)
    graph.add_conditional_edges(START, lambda state: [Send("call", state), Send("call", state), Send("sub", state)])
    compiled = graph.compile()

    runs = []
    for _ in range(2):
        seeds = Seeds()
        compiled.invoke({"messages": [HumanMessage("hi")]}, {"callbacks": [seeds], "max_concurrency": 1})
        runs.append(seeds.found)
    assert sorted(runs[0]) == sorted(runs[1])
    assert len(set(runs[0])) == 3

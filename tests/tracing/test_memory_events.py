"""Memory operations in a trace: each belongs to the reply that asked for it, each prompt names the memories in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.messages import BaseMessage, HumanMessage
from langgraph.graph import START, StateGraph
from langgraph.types import Send
from typing_extensions import TypedDict

from memweave.agents.prompts import load_prompt
from memweave.graphs.memory_r1 import create_answering_graph, create_construction_graph, create_memory_r1_agent
from memweave.memory_stores import MemoryBank, open_bank
from memweave.records import OpStatus, Scope, Turn, new_id
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import MemoryRef, Trace, Tracer
from memweave.tracing.attribution import MEMORY_OP_EVENT

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryBank]:
    with open_bank(tmp_path_factory.mktemp("bank"), embedding="hashing") as opened:
        yield opened


@pytest.fixture
def scope() -> Scope:
    return Scope(tenant=str(new_id()), user="anna")


def brain(messages: list[BaseMessage]) -> str:
    """Extract what was said, add the first fact, update memory 0 with every later one; quote memory 0 in answers."""
    system, body = messages[0].text, messages[1].text
    if system.startswith("You read one turn"):
        return json.dumps({"facts": [body.splitlines()[-1].split(": ", 1)[1]]})
    if system.startswith("You manage"):
        fact = next(line[2:] for line in body.partition("New facts")[2].splitlines() if line.startswith("- "))
        event = {"event": "ADD"} if "(none)" in body else {"event": "UPDATE", "id": 0}
        return json.dumps({"memory": [{**event, "text": fact, "reason": "said"}]})
    return "- quoted [0]\n**Answer:** Rome"


def say(bank: MemoryBank, scope: Scope, *texts: str) -> None:
    bank.accept([Turn(source_id=str(n), speaker="Anna", text=text) for n, text in enumerate(texts)], scope=scope)


async def traced(graph: Any, given: Any, how: str) -> Trace:
    tracer = Tracer()
    if how == "sync":
        graph.invoke(given, {"callbacks": [tracer]})
    else:
        await graph.ainvoke(given, {"callbacks": [tracer]})
    (trace,) = tracer.traces
    return trace


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("events", [True, False])
async def test_construction_joins_each_operation_to_its_reply(
    bank: MemoryBank, scope: Scope, how: str, events: bool
) -> None:
    say(bank, scope, "I live in Oslo", "I live in Rome")
    graph = create_construction_graph(bank, model=ScriptedChatModel(brain), scope=scope, events=events)
    trace = await traced(graph, {}, how)
    assert [each.role for each in trace.generations] == ["extractor", "manager", "extractor", "manager"]
    first, second = bank.log(scope=scope)
    assert first.after is not None
    assert second.after is not None
    versions = [MemoryRef(id=op.after.id, version=op.after.version) for op in (first, second) if op.after]
    assert [(event.op_id, event.kind, event.memory, event.generation) for event in trace.memory_events] == [
        (str(first.id), "ADD", versions[0], 1),
        (str(second.id), "UPDATE", versions[1], 3),
    ]
    assert [each.memories_written for each in trace.generations] == [(), (versions[0],), (), (versions[1],)]
    assert [each.memories_read for each in trace.generations] == [(), (), (), (versions[0],)]
    assert {each.prompt_hash for each in trace.generations} == {load_prompt(r).hash for r in ("extractor", "manager")}


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_answering_reads_the_memories_that_its_prompt_shows(bank: MemoryBank, scope: Scope, how: str) -> None:
    say(bank, scope, "I live in Oslo")
    create_construction_graph(bank, scope=scope, model=ScriptedChatModel(brain)).invoke({})
    graph = create_answering_graph(bank, model=ScriptedChatModel(brain), scope=scope)
    trace = await traced(graph, {"question": "Where does Anna live?"}, how)
    (only,) = trace.generations
    (memory,) = bank.memories(scope=scope)
    assert (only.node, only.role) == ("answer", "answerer")
    assert only.memories_read == (MemoryRef(id=memory.id, version=memory.version),)
    assert trace.memory_events == ()


async def test_the_chat_agent_joins_them_through_its_subgraph_and_once(bank: MemoryBank, scope: Scope) -> None:
    agent = create_memory_r1_agent(bank, model=ScriptedChatModel(brain), scope=scope)
    trace = await traced(agent, {"messages": [HumanMessage("I live in Oslo"), HumanMessage("I live in Rome")]}, "sync")
    by_role = [(each.role, len(each.memories_written)) for each in trace.generations]
    assert by_role == [("extractor", 0), ("manager", 1), ("extractor", 0), ("manager", 1), ("chat", 0)]
    assert [event.generation for event in trace.memory_events] == [1, 3]
    reply = trace.generations[-1]
    assert reply.prompt_hash == load_prompt("chat").hash
    shown = {ref.id for ref in reply.memories_read}
    assert shown <= {memory.id for memory in bank.memories(scope=scope)}


async def test_a_refused_reply_is_a_failed_event_of_its_role(bank: MemoryBank, scope: Scope) -> None:
    say(bank, scope, "I live in Oslo")
    model = ScriptedChatModel(lambda messages: "nonsense")
    trace = await traced(create_construction_graph(bank, model=model, scope=scope, max_attempts=2), {}, "sync")
    (event,) = trace.memory_events
    assert (event.status, event.generation, event.memory) == (OpStatus.FAILED, 1, None)
    assert event.error
    assert [each.memories_written for each in trace.generations] == [(), ()]


async def test_rules_decide_without_a_generation(bank: MemoryBank, scope: Scope) -> None:
    say(bank, scope, "I live in Oslo.")
    trace = await traced(create_construction_graph(bank, scope=scope), {}, "sync")
    assert trace.generations == ()
    assert [event.generation for event in trace.memory_events] == [None]


def test_the_custom_stream_says_what_it_said_before(bank: MemoryBank, scope: Scope) -> None:
    say(bank, scope, "I live in Oslo")
    graph = create_construction_graph(bank, model=ScriptedChatModel(brain), scope=scope)
    (event,) = graph.stream({}, {"callbacks": [Tracer()]}, stream_mode="custom")
    assert isinstance(event, dict)
    assert set(event) == {
        "type", "id", "kind", "status", "text", "before", "reason", "actor", "error", "memory_id", "dialogue", "source_ids",
        "run_id",
    }  # fmt: skip


class State(TypedDict, total=False):
    name: str


def operation(name: str, role: str | None) -> dict[str, object]:
    memory = str(new_id())
    return {"id": name, "kind": "ADD", "status": "applied", "memory_id": memory, "version": 1, "role": role}


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_parallel_branches_keep_their_own(how: str) -> None:
    """Each branch calls the model and writes; one writes before anything, with nobody to ask for it."""
    model = ScriptedChatModel(lambda messages: messages[-1].text)

    def work(state: State) -> State:
        model.invoke(state["name"])
        dispatch_custom_event(MEMORY_OP_EVENT, operation(state["name"], "branch"))
        return {}

    async def awork(state: State) -> State:
        await model.ainvoke(state["name"])
        await adispatch_custom_event(MEMORY_OP_EVENT, operation(state["name"], "branch"))
        return {}

    def alone(state: State) -> State:
        dispatch_custom_event(MEMORY_OP_EVENT, operation("alone", None))
        return {}

    builder = StateGraph(State)
    builder.add_node("alone", alone)
    builder.add_node("branch", work if how == "sync" else awork)  # type: ignore[call-overload]  # one of two forms
    builder.add_conditional_edges(
        START, lambda _: [*(Send("branch", {"name": f"b{n}"}) for n in range(8)), Send("alone", {})]
    )
    trace = await traced(builder.compile(), {}, how)
    replies: dict[int | None, str] = {each.index: each.reply for each in trace.generations}
    found = {event.op_id: replies.get(event.generation) for event in trace.memory_events}
    assert found == {**{f"b{n}": f"b{n}" for n in range(8)}, "alone": None}


def test_another_roles_reply_is_not_blamed() -> None:
    model = ScriptedChatModel(lambda messages: "ok")

    def chain(*nodes: Callable[[State], State]) -> Trace:
        builder = StateGraph(State)
        previous = START
        for number, node in enumerate(nodes):
            builder.add_node(f"n{number}", node)
            builder.add_edge(previous, f"n{number}")
            previous = f"n{number}"
        tracer = Tracer()
        builder.compile().invoke({}, {"callbacks": [tracer]})
        return tracer.traces[0]

    def call(role: str) -> Callable[[State], State]:
        def node(state: State) -> State:
            model.invoke("hi", {"metadata": {"memweave_role": role}})
            return {}

        return node

    def write(role: str | None) -> Callable[[State], State]:
        def node(state: State) -> State:
            dispatch_custom_event(MEMORY_OP_EVENT, operation("1", role))
            return {}

        return node

    asked = [chain(call("manager"), call("answerer"), write(role)).memory_events[0].generation
             for role in ("manager", "answerer", "judge", None)]  # fmt: skip
    assert asked == [0, 1, None, 1]


def test_reporting_costs_nothing_when_nobody_listens(bank: MemoryBank, scope: Scope, tmp_path: Path) -> None:
    """Without callbacks no event is made; with a foreign one it may ignore ours."""
    say(bank, scope, "I live in Oslo")
    made: list[object] = []
    from memweave.graphs import session

    def noted(*args: Any) -> dict[str, object]:
        made.append(args)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "_reported", noted)
        create_construction_graph(bank, model=ScriptedChatModel(brain), scope=scope).invoke({})
    assert made == []

"""The AgeMem agent beside other things: tools of the user's own, streams, traces, a graph around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.constants import TAG_NOSTREAM
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from memweave.agents.memory_tools import ADD, FILTER, RETRIEVE, SUMMARY, UPDATE
from memweave.errors import InputError, SettingsError, UnavailableError
from memweave.graphs.agemem import create_agemem_agent
from memweave.graphs.agemem_state import Variant
from memweave.memory_stores import MemoryBank
from memweave.records import Scope
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import MemoryRef, Tracer
from tests.graphs.agemem_play import (
    Ours,
    Speaker,
    arrived,
    remember,
    said,
    saying,
    steps,
    stored,
    streamed,
    thread,
)

Run = Callable[..., Any]
Stream = Callable[..., list[Any]]
HEARD: Any = {"stream_mode": ["messages", "updates"]}


@pytest.fixture(params=["native", "text"])
def speaker(request: pytest.FixtureRequest) -> Speaker:
    return Speaker(request.param)


# tools of the user's own


@tool
def weather(city: str) -> str:
    """Look at the sky."""
    return f"It rains in {city}."


@tool
def broken(city: str) -> str:
    """Look at the sky."""
    raise RuntimeError(f"no sky over {city}")


@tool
def away(city: str) -> str:
    """Look at the sky."""
    raise UnavailableError("the weather station is away")


def test_a_tool_of_ones_own_is_called_beside_those_of_the_memory(
    bank: MemoryBank, scope: Scope, run: Run, speaker: Speaker
) -> None:
    model = ScriptedChatModel(
        [
            speaker.calls(
                (ADD, {"content": "tea"}), ("weather", {"city": "Ghent"}), (ADD, {"content": "rye"}), think="both"
            ),
            speaker.answer("It rains."),
        ]
    )
    agent = create_agemem_agent(
        model, bank, scope=scope, protocol=speaker.protocol, tools=[weather], checkpointer=InMemorySaver()
    )
    output = run(agent, saying("Weather?"), thread())
    results = "\n".join(said(output["messages"][2:-1]))
    assert results == "Added [1].\nIt rains in Ghent.\nAdded [2]."
    (first, _) = steps(agent, thread())
    assert [(call.name, call.ok) for call in first.calls] == [(ADD, True), ("weather", True), (ADD, True)]
    assert first.calls[1].arguments == {"city": "Ghent"}
    assert [call.memory_id for call in first.calls] == [str(m.id) if m else None for m in _placed(bank, scope)]


def _placed(bank: MemoryBank, scope: Scope) -> list[Any]:
    tea, rye = bank.memories(scope=scope)
    return [tea, None, rye]


@pytest.mark.parametrize(
    ("args", "told"),
    [({"city": "Ghent"}, "RuntimeError: no sky over Ghent"), ({"town": "Ghent"}, "validation error"), ({}, "city")],
)
def test_a_tool_that_raises_is_told_to_the_model(
    bank: MemoryBank, scope: Scope, run: Run, speaker: Speaker, args: dict[str, Any], told: str
) -> None:
    model = ScriptedChatModel([speaker.calls(("broken", args), (ADD, {"content": "tea"})), speaker.answer("Sorry.")])
    agent = create_agemem_agent(
        model, bank, scope=scope, protocol=speaker.protocol, tools=[broken], checkpointer=InMemorySaver()
    )
    output = run(agent, saying("Weather?"), thread())
    result = "\n".join(said(output["messages"][2:-1]))
    assert "Error: the tool broken failed (" in result
    assert told in result
    assert "Check the arguments, or go on without it" in result
    assert "Added [1]." in result
    call = steps(agent, thread())[0].calls[0]
    assert (call.ok, call.fault) == (False, "tool_error")
    assert (output["status"], output["messages"][-1].text) == ("answered", "Sorry.")


@tool
def steering(where: str) -> Command[str]:
    """Go somewhere."""
    return Command(goto=where, update={"messages": []})


@tool
def steering_on(where: str) -> list[Command[str]]:
    """Go to several places."""
    return [Command(goto=where)]


@pytest.mark.parametrize("own", [steering, steering_on])
def test_a_tool_that_returns_a_command_is_told_that_it_cannot_be_used(
    bank: MemoryBank, scope: Scope, run: Run, speaker: Speaker, own: BaseTool
) -> None:
    model = ScriptedChatModel(
        [speaker.calls((own.name, {"where": "home"}), (ADD, {"content": "tea"})), speaker.answer("I stay.")]
    )
    agent = create_agemem_agent(
        model, bank, scope=scope, protocol=speaker.protocol, tools=[own], checkpointer=InMemorySaver()
    )
    output = run(agent, saying("Go."), thread())
    told = "\n".join(said(output["messages"][2:-1]))
    assert f"Error: the tool {own.name} cannot be used here: it returned a Command" in told
    assert "Added [1]." in told
    assert (output["status"], output["messages"][-1].text) == ("answered", "I stay.")
    call = steps(agent, thread())[0].calls[0]
    assert (call.name, call.ok, call.fault) == (own.name, False, "tool_error")


def test_a_server_that_is_away_is_an_error_and_nothing_was_written_before_it(
    bank: MemoryBank, scope: Scope, run: Run, speaker: Speaker
) -> None:
    model = ScriptedChatModel([speaker.calls((ADD, {"content": "tea"}), ("away", {"city": "Ghent"}))])
    agent = create_agemem_agent(model, bank, scope=scope, protocol=speaker.protocol, tools=[away])
    with pytest.raises(UnavailableError, match="weather station"):
        run(agent, saying("Weather?"))
    assert stored(bank, scope) == []


def test_a_tool_may_ask_somebody_and_nothing_is_written_twice(bank: MemoryBank, scope: Scope, speaker: Speaker) -> None:
    @tool
    def confirm(question: str) -> str:
        """Ask a person."""
        return f"They say {interrupt(question)}."

    model = ScriptedChatModel(
        [speaker.calls((ADD, {"content": "tea"}), ("confirm", {"question": "Really?"})), speaker.answer("Fine.")]
    )
    agent = create_agemem_agent(
        model, bank, scope=scope, protocol=speaker.protocol, tools=[confirm], checkpointer=InMemorySaver()
    )
    asked = agent.invoke(saying("I drink tea."), thread())
    assert asked["__interrupt__"][0].value == "Really?"
    output = agent.invoke(Command(resume="yes"), thread())
    assert "They say yes." in "\n".join(said(output["messages"]))
    assert stored(bank, scope) == ["tea"]
    assert output["messages"][-1].text == "Fine."


def test_a_result_that_is_endless_is_cut_off_and_the_model_is_told(
    bank: MemoryBank, scope: Scope, run: Run, speaker: Speaker
) -> None:
    @tool
    def page() -> str:
        """Read a page."""
        return "x" * 50_000

    model = ScriptedChatModel([speaker.calls(("page", {})), speaker.answer("Long.")])
    agent = create_agemem_agent(
        model, bank, scope=scope, protocol=speaker.protocol, tools=[page], context_tokens=100_000
    )
    run(agent, saying("Read."))
    assert "x\n[30000 characters were cut off]" in model.calls[1][3].text
    assert model.prompts[1].count("x") < 21_000


@pytest.mark.parametrize(("variant", "clash"), [("full", "Add_memory"), ("rag", "Update_memory"), ("none", "weather")])
def test_two_tools_of_one_name_are_refused(bank: MemoryBank, variant: Variant, clash: str) -> None:
    named: list[BaseTool] = [weather, weather.model_copy(update={"name": clash})]
    with pytest.raises(SettingsError, match=f"two tools are called '{clash}'"):
        create_agemem_agent(ScriptedChatModel([]), bank, tools=named, variant=variant)


def test_a_name_that_the_memory_does_not_use_is_free(bank: MemoryBank, scope: Scope, speaker: Speaker) -> None:
    own = weather.model_copy(update={"name": RETRIEVE})
    model = ScriptedChatModel([speaker.calls((RETRIEVE, {"city": "Ghent"})), speaker.answer("Rain.")])
    agent = create_agemem_agent(model, bank, scope=scope, tools=[own], variant="rag", protocol=speaker.protocol)
    assert "It rains in Ghent." in said(agent.invoke(saying("Weather?"))["messages"])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"variant": "half"}, SettingsError, "variant 'half' is none of full, rag, none"),
        ({"max_rounds": 0}, SettingsError, "give 1 at least"),
        ({"context_tokens": 0}, InputError, "give 1 at least"),
    ],
)
def test_options_that_cannot_be_are_refused(
    bank: MemoryBank, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        create_agemem_agent(ScriptedChatModel([]), bank, **options)


# native calls that cannot be read


def test_every_native_call_gets_its_result_also_one_that_cannot_be_read(
    bank: MemoryBank, scope: Scope, run: Run
) -> None:
    deep: Any = "x"
    for _ in range(600):
        deep = [deep]
    good = {"name": ADD, "args": {"content": "tea"}, "id": "1", "type": "tool_call"}
    nested = {"name": ADD, "args": {"content": "rye", "metadata": {"a": deep}}, "id": "2", "type": "tool_call"}
    bad = [{"name": ADD, "args": "{", "id": each, "error": None, "type": "invalid_tool_call"} for each in ("3", "4")]
    model = ScriptedChatModel([AIMessage("", tool_calls=[good, nested], invalid_tool_calls=bad), AIMessage("ok")])
    agent = create_agemem_agent(model, bank, scope=scope, checkpointer=InMemorySaver())
    output = run(agent, saying("tea"), thread())
    results = [message for message in output["messages"] if isinstance(message, ToolMessage)]
    assert [(each.tool_call_id, each.status) for each in results] == [
        ("1", "success"),
        ("3", "error"),
        ("4", "error"),
        ("2", "error"),
    ]
    assert results[1].text == "Error: a call cannot be read: the arguments are not JSON. Write it again."
    assert "nested more than 32 levels deep. Write it again." in results[3].text
    assert steps(agent, thread())[0].problems == ("not_a_call",) * 3
    assert stored(bank, scope) == ["tea"]
    assert output["status"] == "answered"


# streams


def test_operations_are_streamed_and_so_are_turns(bank: MemoryBank, scope: Scope, speaker: Speaker) -> None:
    model = ScriptedChatModel(
        [speaker.calls((ADD, {"content": "tea"}), ("x", {}), think="new"), speaker.answer("ok")], model_name="clever"
    )
    agent = create_agemem_agent(model, bank, scope=scope, protocol=speaker.protocol)
    events: list[Any] = list(agent.stream(saying("tea", id="m"), stream_mode=["custom", "updates"]))
    (custom,) = [event for mode, event in events if mode == "custom"]
    (op,) = bank.log(scope=scope)
    assert (custom["type"], custom["kind"], custom["text"], custom["id"]) == ("memory_op", "ADD", "tea", str(op.id))
    assert (custom["reason"], custom["actor"], custom["source_ids"]) == ("new", "clever", ["m"])
    nodes = [next(iter(event)) for mode, event in events if mode == "updates"]
    assert nodes == ["accept", "policy", "act", "policy", "act"]
    turns = [event["act"]["steps"][0] for mode, event in events if mode == "updates" and "act" in event]
    assert [[(call.name, call.fault) for call in turn.calls] for turn in turns] == [
        [(ADD, None), ("x", "unknown_tool")],
        [],
    ]


def test_a_summary_is_not_streamed_as_if_it_were_said_to_the_user(bank: MemoryBank, scope: Scope) -> None:
    speaker = Speaker("native")
    model = ScriptedChatModel(
        [speaker.calls((SUMMARY, {"span": "all"})), AIMessage("SECRET SUMMARY"), speaker.answer("Done.")]
    )
    agent = create_agemem_agent(model, bank, scope=scope)
    before: list[Any] = [HumanMessage("Hi", id="1"), AIMessage("Hello", id="2"), HumanMessage("Shorten.", id="3")]
    streamed = [chunk for chunk, _ in agent.stream({"messages": before}, stream_mode="messages")]
    texts = [chunk.text for chunk in streamed if isinstance(chunk, AIMessage | AIMessageChunk)]
    assert "Done." in texts
    assert "SECRET SUMMARY" not in "".join(texts)


@pytest.mark.parametrize("variant", ["full", "rag"])
def test_what_is_streamed_as_messages_is_what_is_added_to_the_chat(
    bank: MemoryBank, scope: Scope, stream: Stream, speaker: Speaker, variant: Variant
) -> None:
    remember(bank, scope, "Anna drinks mint tea.")
    shortened = [speaker.calls((SUMMARY, {"span": "all"})), AIMessage("SECRET SUMMARY")] if variant == "full" else []
    script = [
        speaker.calls((ADD, {"content": "rye"}), ("weather", {"city": "Ghent"})),
        speaker.calls(("x", {})),
        speaker.answer("It rains."),
        *shortened,
        speaker.answer("Mint tea."),
    ]
    model = ScriptedChatModel(script)
    agent = create_agemem_agent(
        model,
        bank,
        scope=scope,
        protocol=speaker.protocol,
        variant=variant,
        tools=[weather],
        checkpointer=InMemorySaver(),
    )
    heard: list[Any] = []
    for asked in ("How is the weather?", "What tea do I drink?"):
        parts = stream(agent, saying(asked), thread(), **HEARD)
        assert [message.id for message in streamed(parts)] == [message.id for message in arrived(parts)]
        heard += streamed(parts)
    assert {type(message) for message in heard} == {AIMessage, ToolMessage}
    hidden = "SECRET SUMMARY" if variant == "full" else "Anna drinks mint tea."
    assert hidden in model.prompts[-1]
    assert hidden not in "\n".join(said(heard))
    assert said(heard)[-1] == "Mint tea."  # without the tags of the text protocol


@pytest.mark.parametrize(
    ("options", "told"),
    [({"max_rounds": 1}, "I stopped after 1 turns"), ({"context_tokens": 1}, "What I was asked does not fit")],
)
def test_what_the_agent_says_on_its_own_is_streamed_as_the_user_gets_it(
    bank: MemoryBank, scope: Scope, stream: Stream, speaker: Speaker, options: dict[str, Any], told: str
) -> None:
    model = ScriptedChatModel([speaker.calls((ADD, {"content": "tea"}))])
    agent = create_agemem_agent(model, bank, scope=scope, protocol=speaker.protocol, **options)
    parts = stream(agent, saying("I drink tea."), **HEARD)
    assert said(streamed(parts)) == said(arrived(parts))
    assert streamed(parts)[-1].text.startswith(told)


def test_of_a_model_that_is_not_to_be_streamed_the_answer_is_heard_without_tags(
    bank: MemoryBank, scope: Scope, stream: Stream, speaker: Speaker
) -> None:
    model = ScriptedChatModel([speaker.answer("Noted.")], tags=[TAG_NOSTREAM])
    agent = create_agemem_agent(model, bank, scope=scope, protocol=speaker.protocol)
    assert said(streamed(stream(agent, saying("I drink tea."), **HEARD))) == ["Noted."]


# traces


def test_a_trace_joins_operations_to_the_replies_that_asked_for_them(
    bank: MemoryBank, scope: Scope, run: Run, speaker: Speaker
) -> None:
    (boat,) = remember(bank, scope, "Boris has a boat.")
    model = ScriptedChatModel(
        [
            speaker.calls((RETRIEVE, {"query": "boat"}), (ADD, {"content": "tea"})),
            speaker.calls((SUMMARY, {"span": "all"}), (UPDATE, {"memory_id": "1", "content": "It sank."})),
            AIMessage("All of it."),
            speaker.answer("ok"),
        ]
    )
    agent = create_agemem_agent(model, bank, scope=scope, protocol=speaker.protocol)
    tracer = Tracer()
    run(agent, saying("tea"), {"callbacks": [tracer]})
    trace = tracer.last
    assert trace is not None
    assert [(g.role, g.node) for g in trace.generations] == [
        ("agent", "policy"),
        ("agent", "policy"),
        ("summarizer", "act"),
        ("agent", "policy"),
    ]
    tea, sank = (op.after for op in bank.log(scope=scope)[1:])
    assert tea is not None
    assert sank is not None
    assert [(event.kind, event.generation) for event in trace.memory_events] == [("ADD", 0), ("UPDATE", 1)]
    assert [g.memories_written for g in trace.generations] == [
        (MemoryRef(id=tea.id, version=1),),
        (MemoryRef(id=boat.id, version=2),),
        (),
        (),
    ]
    # What was retrieved is read by the next turn, until it is taken out of the context.
    assert [g.memories_read for g in trace.generations] == [(), (MemoryRef(id=boat.id, version=1),), (), ()]
    assert len({g.prompt_hash for g in trace.generations if g.role == "agent"}) == 1
    assert trace.status == "ok"


def test_memories_that_are_put_before_the_question_are_read(bank: MemoryBank, scope: Scope, run: Run) -> None:
    (boat,) = remember(bank, scope, "Boris has a boat.")
    agent = create_agemem_agent(ScriptedChatModel(["ok"]), bank, scope=scope, variant="rag")
    tracer = Tracer()
    run(agent, saying("Who has a boat?"), {"callbacks": [tracer]})
    assert tracer.last is not None
    assert tracer.last.generations[0].memories_read == (MemoryRef(id=boat.id, version=1),)


# inside another graph


def test_it_is_a_node_of_another_graph(bank: MemoryBank, scope: Scope, run: Run, speaker: Speaker) -> None:
    model = ScriptedChatModel(
        [speaker.calls((ADD, {"content": "tea"})), speaker.answer("Noted."), speaker.answer("Tea.")]
    )
    agent = create_agemem_agent(model, bank, scope=scope, protocol=speaker.protocol)
    builder = StateGraph(MessagesState)
    builder.add_node("agent", agent)
    builder.add_node("polite", lambda state: {"messages": [AIMessage("Anything else?")]})
    builder.add_edge(START, "agent")
    builder.add_edge("agent", "polite")
    builder.add_edge("polite", END)
    graph = builder.compile(checkpointer=InMemorySaver())
    first = run(graph, saying("I drink tea."), thread())
    second = run(graph, saying("What do I drink?"), thread())
    assert said(first["messages"])[-2:] == ["Noted.", "Anything else?"]
    assert said(second["messages"])[len(first["messages"]) :] == ["What do I drink?", "Tea.", "Anything else?"]
    assert second["messages"][: len(first["messages"])] == first["messages"]
    assert "Anything else?" in model.prompts[2]
    assert stored(bank, scope) == ["tea"]


# policies of ours


def test_a_policy_of_ours_gets_results_as_tool_messages(bank: MemoryBank, scope: Scope, run: Run) -> None:
    speaker = Speaker("text")
    model = Ours([speaker.calls((ADD, {"content": "tea"}), (FILTER, {"criteria": "x"})), speaker.answer("ok")])
    output = run(create_agemem_agent(model, bank, scope=scope), saying("tea"))
    assert [message.type for message in model.calls[1]] == ["system", "human", "ai", "tool"]
    assert model.calls[1][3].text.splitlines()[0] == "Added [1]."
    assert output["messages"][-1].text == "ok"

"""A tracer on graphs of every kind, run in every way: each call is attributed to its own place, token by token."""

from __future__ import annotations

import asyncio
import operator
import threading
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Send

from memweave.errors import UnavailableError, UsageError
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import ChatMessage, Generation, Trace, Tracer, TraceStatus

pytestmark = pytest.mark.anyio

BRANCHES = 6


class State(TypedDict, total=False):
    said: Annotated[list[str], operator.add]
    number: int


def encoded(text: str) -> list[int]:
    return list(text.encode())


class Serving(ScriptedChatModel):
    """Echo the last message as a trained model would: with ids and log-probabilities of exactly this reply."""

    def __init__(self, **metadata: Any) -> None:
        def reply(messages: list[BaseMessage]) -> AIMessage:
            text = f"re: {messages[-1].text}"
            info = {
                "prompt_token_ids": encoded(messages[-1].text),
                "token_ids": encoded(text),
                "token_logprobs": [-1 / (1 + token) for token in encoded(text)],
                "policy": "run-echo-v3",
                "policy_version": "abc",
                "sampling": {"temperature": 0.7, "max_tokens": 64, "logprobs": "processed"},
                "finish_reason": "stop",
            }
            return AIMessage(text, response_metadata={**info, **metadata})

        super().__init__(reply)


def graph(model: Serving) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Return begin -> (subgraph, one branch per number) -> end; every node calls the model with its own name."""

    def sync(name: str) -> Callable[[State], State]:
        def node(state: State) -> State:
            return {"said": [model.invoke(f"{name} {state.get('number', '')}".strip()).text]}

        return node

    def both(name: str) -> Any:
        async def anode(state: State) -> State:
            await asyncio.sleep(0)
            return {"said": [(await model.ainvoke(f"{name} {state.get('number', '')}".strip())).text]}

        from langchain_core.runnables import RunnableLambda

        return RunnableLambda(sync(name), anode)

    inner = StateGraph(State)
    inner.add_node("leaf", both("leaf"))
    inner.add_edge(START, "leaf")
    builder = StateGraph(State)
    builder.add_node("begin", sync("begin"))
    builder.add_node("sub", inner.compile(name="inner"))
    builder.add_node("branch", both("branch"))
    builder.add_edge(START, "begin")
    builder.add_conditional_edges(
        "begin", lambda _: [Send("branch", {"number": n}) for n in range(BRANCHES)] + [Send("sub", {"number": 9})]
    )
    return builder.compile(name="outer")


def check(trace: Trace) -> None:
    """Check that every generation stands where its prompt says, with the tokens of its own reply."""
    assert trace.graph == "outer"
    assert trace.status is TraceStatus.OK
    assert [each.index for each in trace.generations] == list(range(BRANCHES + 2))
    prompts = [each.messages[-1].text for each in trace.generations]
    assert prompts[0] == "begin"
    assert sorted(prompts[1:]) == sorted([*(f"branch {n}" for n in range(BRANCHES)), "leaf 9"])
    for each in trace.generations:
        said = each.messages[-1].text
        assert each.node == said.split()[0]
        assert each.step == (2 if each.node == "branch" else 1)
        assert each.namespace.rpartition("|")[2].startswith(f"{each.node}:")
        assert ("|" in each.namespace) == (each.node == "leaf")
        assert each.reply == f"re: {said}"
        assert each.prompt_token_ids == tuple(encoded(said))
        assert each.token_ids == tuple(encoded(f"re: {said}"))
        assert each.logprobs == tuple(-1 / (1 + token) for token in encoded(f"re: {said}"))
        assert (each.policy, each.policy_version) == ("run-echo-v3", "abc")
        assert each.sampling.model_dump(exclude_none=True) == {
            "temperature": 0.7, "max_tokens": 64, "logprobs": "processed",
        }  # fmt: skip
    assert len({each.namespace for each in trace.generations}) == BRANCHES + 2


def test_invoke() -> None:
    tracer = Tracer()
    graph(Serving()).invoke({}, {"callbacks": [tracer]})
    assert len(tracer.traces) == 1
    check(tracer.traces[0])


@pytest.mark.parametrize("mode", ["messages", "updates", "values", ["messages", "custom"]])
@pytest.mark.parametrize("subgraphs", [False, True])
def test_stream(mode: Any, subgraphs: bool) -> None:
    tracer = Tracer()
    for _ in graph(Serving()).stream({}, {"callbacks": [tracer]}, stream_mode=mode, subgraphs=subgraphs):
        pass
    check(tracer.traces[0])


def test_batch_in_threads_makes_one_trace_per_input() -> None:
    tracer = Tracer()
    graph(Serving()).batch([{}] * 5, {"callbacks": [tracer]})
    assert len(tracer.traces) == 5
    for trace in tracer.traces:
        check(trace)


async def test_ainvoke_many_at_once_on_one_tracer() -> None:
    tracer = Tracer()
    outer = graph(Serving())
    await asyncio.gather(*(outer.ainvoke({}, {"callbacks": [tracer]}) for _ in range(8)))
    assert len({trace.id for trace in tracer.traces}) == 8
    for trace in tracer.traces:
        check(trace)


@pytest.mark.parametrize("mode", ["messages", "updates"])
async def test_astream(mode: Any) -> None:
    tracer = Tracer()
    async for _ in graph(Serving()).astream({}, {"callbacks": [tracer]}, stream_mode=mode):
        pass
    check(tracer.traces[0])


async def test_astream_events() -> None:
    tracer = Tracer()
    async for _ in graph(Serving()).astream_events({}, {"callbacks": [tracer]}, version="v2"):
        pass
    check(tracer.traces[0])


@pytest.mark.parametrize(("given", "stage"), [(0, 0), (3, 3), (None, None), (-1, None), ("2", None)])
def test_the_stage_of_a_call_is_a_number_that_the_graph_gave(given: object, stage: int | None) -> None:
    tracer = Tracer()
    Serving().invoke([HumanMessage("hi")], {"callbacks": [tracer], "metadata": {"memweave_stage": given}})
    assert tracer.last is not None
    assert tracer.last.generations[0].stage == stage


async def test_abatch() -> None:
    tracer = Tracer()
    await graph(Serving()).abatch([{}] * 3, {"callbacks": [tracer]})
    for trace in tracer.traces:
        check(trace)
    assert len(tracer.traces) == 3


def test_a_model_outside_any_graph_is_a_run_of_its_own() -> None:
    tracer = Tracer(run="app", group="task", replica=2, iteration=3, metadata={"host": "a"})
    Serving().invoke([HumanMessage("hi")], {"callbacks": [tracer], "metadata": {"memweave_role": "echo"}})
    trace = tracer.last
    assert trace is not None
    (only,) = trace.generations
    assert (trace.run, trace.group, trace.replica, trace.iteration, trace.graph) == ("app", "task", 2, 3, None)
    assert (only.node, only.role, only.step, only.namespace, only.actor) == (None, "echo", None, "", "echo")
    assert only.messages == (ChatMessage(role="user", text="hi"),)
    assert trace.metadata["host"] == "a"


def test_create_agent_with_tools() -> None:
    @tool
    def look(place: str) -> str:
        """Look somewhere."""
        return f"nothing in {place}"

    call = ToolCall(name="look", args={"place": "Oslo"}, id="1")
    model = ScriptedChatModel([AIMessage("", tool_calls=[call]), "There is nothing."])
    tracer = Tracer()
    agent: Runnable[Any, Any] = create_agent(model, [look], system_prompt="Be brief.")
    agent.invoke({"messages": [HumanMessage("Look!")]}, {"callbacks": [tracer]})
    first, second = tracer.traces[0].generations
    assert (first.node, second.node) == ("model", "model")
    assert first.tool_calls == ({"name": "look", "args": {"place": "Oslo"}, "id": "1", "type": "tool_call"},)
    assert [message.role for message in second.messages] == ["system", "user", "assistant", "tool"]
    assert '"place": "Oslo"' in second.messages[2].text
    assert second.messages[3].text == "nothing in Oslo"
    assert second.reply == "There is nothing."


def test_the_episode_comes_from_the_metadata_of_the_run() -> None:
    tracer = Tracer()
    config = RunnableConfig(
        callbacks=[tracer],
        metadata={"memweave_episode": "train/7/a/b/3", "lesson": {"n": 1}, "odd": object},
        configurable={"thread_id": "t1"},
    )
    graph(Serving()).invoke({}, config)
    trace = tracer.traces[0]
    assert (trace.run, trace.iteration, trace.group, trace.replica) == ("train", 7, "a/b", 3)
    assert trace.thread == "t1"
    assert trace.metadata["lesson"] == {"n": 1}
    assert set(trace.metadata) == {"lesson", "odd"}


@pytest.mark.parametrize(
    ("info", "ids", "logprobs"),
    [
        ({"token_ids": None, "prompt_token_ids": None}, None, None),  # OpenAI: log-probabilities without ids
        ({"token_ids": [1, "2"]}, None, None),
        ({"token_ids": [1, True]}, None, None),
        ({"token_ids": [1, 2], "token_logprobs": None}, (1, 2), None),
        ({"token_ids": [1, 2], "token_logprobs": [-1.0, None]}, (1, 2), None),
        ({"token_ids": [1, 2], "token_logprobs": [-1.0]}, (1, 2), (-1.0,)),  # kept as it is: doctor names it
        ({"token_ids": [], "token_logprobs": []}, (), ()),
    ],
)
def test_nothing_is_half_trusted(info: dict[str, Any], ids: Any, logprobs: Any) -> None:
    tracer = Tracer()
    Serving(**info).invoke("hi", {"callbacks": [tracer]})
    (only,) = tracer.traces[0].generations
    assert (only.token_ids, only.logprobs) == (ids, logprobs)


def test_sampling_is_taken_from_what_was_asked_for_when_the_server_says_nothing() -> None:
    from langchain_core.callbacks import CallbackManager

    tracer = Tracer()
    manager = CallbackManager.configure([tracer])
    asked = {
        "temperature": 0.3, "top_p": 0.9, "max_completion_tokens": 5, "seed": 4, "stop": None,
        "frequency_penalty": True, "extra_body": {"top_k": 3, "min_p": 0.1}, "logprobs": True,
    }  # fmt: skip
    (run,) = manager.on_chat_model_start({}, [[HumanMessage("hi")]], invocation_params=asked)
    from langchain_core.outputs import ChatGeneration, LLMResult

    run.on_llm_end(LLMResult(generations=[[ChatGeneration(message=AIMessage("x"))]]))
    assert tracer.traces[0].generations[0].sampling.model_dump(exclude_none=True) == {
        "temperature": 0.3, "top_p": 0.9, "max_tokens": 5, "seed": 4, "top_k": 3, "min_p": 0.1,
    }  # fmt: skip


def only_node(node: Any) -> CompiledStateGraph[Any, Any, Any, Any]:
    builder = StateGraph(State)
    builder.add_node("only", node)
    builder.add_edge(START, "only")
    builder.add_edge("only", END)
    return builder.compile(name="small")


def failing(error: Exception) -> CompiledStateGraph[Any, Any, Any, Any]:
    model = ScriptedChatModel([error])

    def node(state: State) -> State:
        model.invoke("hi")
        return {}

    return only_node(node)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("boom\nand more"), TraceStatus.FAILED),
        (UnavailableError("gone"), TraceStatus.UNAVAILABLE),
        (TimeoutError(), TraceStatus.TIMEOUT),
        (ExceptionGroup("several", [ValueError(), UnavailableError("gone")]), TraceStatus.UNAVAILABLE),
    ],
)
def test_a_failed_call_is_recorded_and_ends_the_run(error: Exception, status: TraceStatus) -> None:
    tracer = Tracer()
    with pytest.raises(type(error)):
        failing(error).invoke({}, {"callbacks": [tracer]})
    (trace,) = tracer.traces
    assert trace.status is status
    assert trace.error is not None
    assert trace.error.startswith(type(error).__name__)
    assert "\n" not in trace.error
    (only,) = trace.generations
    assert only.error == trace.error
    assert (only.reply, only.token_ids) == ("", None)


def test_an_unavailable_server_counts_as_such_behind_another_error() -> None:
    def node(state: State) -> State:
        raise RuntimeError("step failed") from UnavailableError("no server")

    tracer = Tracer()
    with pytest.raises(RuntimeError):
        only_node(node).invoke({}, {"callbacks": [tracer]})
    assert tracer.traces[0].status is TraceStatus.UNAVAILABLE


def test_a_failed_call_that_the_graph_survives_leaves_a_good_run() -> None:
    model = ScriptedChatModel([RuntimeError("first"), "second"])

    def node(state: State) -> State:
        return {"said": [model.with_retry(wait_exponential_jitter=False).invoke("hi").text]}

    tracer = Tracer()
    only_node(node).invoke({}, {"callbacks": [tracer]})
    first, second = tracer.traces[0].generations
    assert tracer.traces[0].status is TraceStatus.OK
    assert (first.error, second.error) == ("RuntimeError: first", None)
    assert second.reply == "second"


async def test_a_cancelled_run_is_a_trace_with_the_open_call_in_it() -> None:
    begun = asyncio.Event()

    class Hanging(Serving):
        async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
            begun.set()
            await asyncio.Event().wait()

    model = Hanging()

    async def node(state: State) -> State:
        await model.ainvoke("hi")
        return {}

    tracer = Tracer()
    task = asyncio.create_task(only_node(node).ainvoke({}, {"callbacks": [tracer]}))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (trace,) = tracer.traces
    assert trace.status is TraceStatus.CANCELLED
    assert trace.generations[0].error is not None


def test_a_call_that_outlives_its_run_begins_no_trace() -> None:
    go, ended = threading.Event(), threading.Event()
    started = threading.Event()
    threads: list[threading.Thread] = []

    def reply(messages: list[BaseMessage]) -> str:
        started.set()
        assert go.wait(10)
        return "late"

    model = ScriptedChatModel(reply)

    def node(state: State, config: RunnableConfig) -> State:
        def work() -> None:
            model.invoke("hi", config)
            Serving().invoke("again", config)
            ended.set()

        threads.append(threading.Thread(target=work))
        threads[0].start()
        assert started.wait(10)
        return {}

    tracer = Tracer()
    only_node(node).invoke({}, {"callbacks": [tracer]})
    go.set()
    assert ended.wait(10)
    threads[0].join()
    (trace,) = tracer.traces
    assert [(each.reply, each.error) for each in trace.generations] == [("", "the run ended before the model replied")]
    assert (tracer._of, tracer._roots) == ({}, {})


def test_nothing_of_a_run_is_left_behind() -> None:
    tracer = Tracer(keep=2)
    for _ in range(3):
        graph(Serving()).invoke({}, {"callbacks": [tracer]})
    assert len(tracer.traces) == 2
    assert (tracer._of, tracer._roots) == ({}, {})
    assert len(tracer.take()) == 2
    assert tracer.last is None
    with pytest.raises(UsageError, match="keep=0"):
        Tracer(keep=0)


def test_a_fault_in_what_the_caller_says_fails_the_run() -> None:
    """Memories that cannot be read would leave a hole that credit does not see."""
    with pytest.raises(ValueError, match="memweave_memories must be a list"):
        Serving().invoke("hi", {"callbacks": [Tracer()], "metadata": {"memweave_memories": [["no-id", 1]]}})


def test_text_that_is_no_unicode_is_kept_readable() -> None:
    tracer = Tracer()
    ScriptedChatModel(["a\ud800b\0"]).invoke([ToolMessage("\ud800", tool_call_id="1")], {"callbacks": [tracer]})
    (only,) = tracer.traces[0].generations
    assert only.reply == "a\ufffdb\0"
    assert only.messages == (ChatMessage(role="tool", text="\ufffd"),)
    assert Generation.model_validate_json(only.model_dump_json()) == only

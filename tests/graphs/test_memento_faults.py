"""What models and tools get wrong is data: every run of Memento ends, with a status, and never with an exception."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from memweave.errors import ContextLengthError, SettingsError, UnavailableError
from memweave.graphs.memento import create_memento_agent
from memweave.graphs.memento_subtask import MOST_CALLS, MOST_NUDGES
from memweave.testing.models import ScriptedChatModel
from tests.graphs.agemem_play import Ours
from tests.graphs.memento_play import Counted, Run, agent, asking, calling, echo, final, plan, tagged

# the planner

BAD_PLANS = [
    "I would look it up.",
    '{"plan": [{"id": 1, "descri',
    '{"plan": []}',
    json.dumps({"plan": [{"id": i, "description": "x"} for i in range(1000)]}),
    "",
    "\ud800",
]


@pytest.mark.parametrize("reply", BAD_PLANS)
def test_a_reply_that_is_no_plan_is_repaired_once(run: Run, reply: str) -> None:
    planner = ScriptedChatModel([reply, final("ok")])
    out = run(create_memento_agent(planner, ScriptedChatModel(echo)), asking())
    assert (out["status"], out["answer"]) == ("answered", "ok")
    assert "That reply cannot be used." in planner.calls[1][-1].text
    assert all(message.text for message in planner.calls[1])
    assert [call.problem is None for call in out["record"].planner_calls] == [False, True]


@pytest.mark.parametrize("reply", BAD_PLANS)
def test_two_such_replies_end_the_run(run: Run, reply: str) -> None:
    planner = ScriptedChatModel([reply, reply])
    out = run(create_memento_agent(planner, ScriptedChatModel(echo)), asking(ground_truth="4"))
    assert (out["status"], out["answer"], out["reward"]) == ("planner_error", None, 0.0)
    assert out["messages"][-1].text.startswith("I could not make a plan for this. (")
    assert len(planner.calls) == 2


def test_a_thousand_subtasks_are_told_and_a_larger_limit_takes_them(run: Run) -> None:
    reply = json.dumps({"plan": [{"id": i, "description": "x"} for i in range(30)]})
    planner = ScriptedChatModel([reply, final("x")])
    run(create_memento_agent(planner, ScriptedChatModel(echo)), asking())
    assert "30 subtasks, and at most 20 are carried out" in planner.calls[1][-1].text
    out = run(agent([reply, final("x")], max_subtasks=30), asking())
    assert len(out["record"].subtasks) == 30


def test_repairs_are_counted_per_cycle_and_do_not_stay_in_the_history(run: Run) -> None:
    planner = ScriptedChatModel(["?", plan("a"), "?", final("b")])
    out = run(create_memento_agent(planner, ScriptedChatModel(echo)), asking())
    assert out["answer"] == "b"
    assert [message.text for message in planner.calls[2][2:]] == [plan("a"), "Task 1 result: done: Task 1: a"]


@pytest.mark.parametrize("error", [ContextLengthError("The prompt is too long")])
def test_a_planner_that_refuses_the_request_ends_the_run(run: Run, error: Exception) -> None:
    out = run(agent([plan("a"), error]), asking())
    assert (out["status"], out["record"].plan) == ("planner_error", plan("a"))


def test_a_task_that_does_not_fit_is_said(run: Run) -> None:
    out = run(agent([], context_tokens=50), asking("word " * 1000))
    assert out["status"] == "planner_error"
    assert "the task alone takes" in out["messages"][-1].text


# the executor


def test_an_executor_that_never_stops_calling_is_stopped_and_the_planner_is_told(run: Run) -> None:
    counted = Counted()
    planner = ScriptedChatModel([plan("a"), final("b")])
    executor = ScriptedChatModel(lambda messages: calling(("look", {"x": "a"})))
    out = run(create_memento_agent(planner, executor, [counted.tool("look")], max_tool_rounds=3), asking())
    assert len(counted.done) == 3
    assert len(executor.calls) == 4
    assert "You have used all 3 rounds" in executor.calls[3][-1].text
    assert planner.calls[1][-1].text == "Task 1 result: (no result: it stopped after 3 rounds of tools)"
    assert (out["status"], out["record"].subtasks[0].status) == ("answered", "cap")


def test_one_that_stops_when_it_is_told_has_a_result(run: Run) -> None:
    counted = Counted()
    script: list[Any] = [calling(("look", {"x": "a"})), calling(("look", {"x": "b"})), "what I have"]
    out = run(agent([plan("a"), final("b")], script, [counted.tool("look")], max_tool_rounds=2), asking())
    assert (out["record"].subtasks[0].status, out["record"].subtasks[0].result) == ("done", "what I have")


def test_without_a_planner_the_cap_is_the_end(run: Run) -> None:
    endless = agent(None, lambda messages: calling(("look", {"x": "a"})), [Counted().tool("look")], max_tool_rounds=2)
    assert run(endless, asking())["status"] == "executor_cap"


@pytest.mark.parametrize("ours", [False, True])
def test_neither_calls_nor_text_is_asked_again_and_given_up(run: Run, ours: bool) -> None:
    executor = (Ours if ours else ScriptedChatModel)(lambda messages: "")
    out = run(create_memento_agent(ScriptedChatModel([plan("a"), final("b")]), executor), asking())
    assert len(executor.calls) == 1 + MOST_NUDGES
    assert out["record"].subtasks[0].status == "no_report"
    assert all(message.text for message in executor.calls[-1])  # endpoints refuse empty messages
    assert run(create_memento_agent(None, executor), asking())["status"] == "executor_error"


def test_one_that_finds_its_words_after_all_has_a_result(run: Run) -> None:
    executor = Ours(["Oslo", "<answer></answer>", "<answer>Oslo</answer>"])
    out = run(create_memento_agent(ScriptedChatModel([plan("a"), final("b")]), executor), asking())
    assert (out["record"].subtasks[0].result, len(executor.calls)) == ("Oslo", 3)


def test_an_executor_whose_model_refuses_is_a_failed_subtask(run: Run) -> None:
    planner = ScriptedChatModel([plan("a", "b"), final("c")])
    executor = ScriptedChatModel([ContextLengthError("too long"), "B"])
    out = run(create_memento_agent(planner, executor), asking())
    assert planner.prompts[1].endswith("Task 1 result: (no result: too long)\nhuman: Task 2 result: B")
    assert (out["status"], out["record"].subtasks[0].status) == ("answered", "model_error")


@pytest.mark.parametrize("ours", [False, True])
def test_unknown_tools_and_wrong_arguments_are_told(run: Run, ours: bool) -> None:
    counted, calls = Counted(), [("lok", {"x": "a"}), ("look", {"y": "a"}), ("look", {"x": "a"})]
    script: list[Any] = [tagged(*calls), "<answer>A</answer>"] if ours else [calling(*calls), "A"]
    executor = (Ours if ours else ScriptedChatModel)(script)
    out = run(
        create_memento_agent(ScriptedChatModel([plan("a"), final("b")]), executor, [counted.tool("look")]), asking()
    )
    assert [row.ok for row in out["record"].tool_history] == [False, False, True]
    told = [message.text for message in executor.calls[1][-3:]]
    assert "there is no tool 'lok'. Use one of: look." in told[0]
    assert "Check the arguments" in told[1] or "x" in told[1]
    assert counted.names == ["look"]
    assert out["record"].subtasks[0].result == "A"


def test_calls_whose_arguments_are_no_json_are_told_and_the_others_carried_out(run: Run) -> None:
    counted = Counted()
    broken = {"name": "look", "args": "{x:", "id": "bad", "error": "not JSON", "type": "invalid_tool_call"}
    good = {"name": "look", "args": {"x": "a"}, "id": "good", "type": "tool_call"}
    both = AIMessage("", tool_calls=[good], invalid_tool_calls=[broken])
    only = AIMessage("", invalid_tool_calls=[broken])
    executor = ScriptedChatModel([both, only, "A"])
    run(create_memento_agent(ScriptedChatModel([plan("a"), final("b")]), executor, [counted.tool("look")]), asking())
    answered = {message.tool_call_id for message in executor.calls[1] if isinstance(message, ToolMessage)}
    assert answered == {"bad", "good"}  # endpoints want one for every call
    last = executor.calls[2][-1]
    assert isinstance(last, ToolMessage)
    assert last.tool_call_id == "bad"
    assert counted.names == ["look"]


def test_a_hundred_calls_in_one_reply_are_cut_off(run: Run) -> None:
    counted = Counted()
    executor = ScriptedChatModel([calling(*[("look", {"x": str(i)}) for i in range(100)]), "A"])
    run(create_memento_agent(ScriptedChatModel([plan("a"), final("b")]), executor, [counted.tool("look")]), asking())
    assert len(counted.done) == MOST_CALLS
    assert len([m for m in executor.calls[1] if m.type == "tool"]) == 100


def test_text_beside_calls_is_thought_not_the_result(run: Run) -> None:
    counted = Counted()
    executor = ScriptedChatModel([calling(("look", {"x": "a"}), text="The result is 3."), "4"])
    out = run(
        create_memento_agent(ScriptedChatModel([plan("a"), final("b")]), executor, [counted.tool("look")]), asking()
    )
    assert (out["record"].subtasks[0].result, counted.names) == ("4", ["look"])


# the tools


def test_a_tool_that_raises_is_told(run: Run) -> None:
    def broken(x: str) -> str:
        raise RuntimeError("the disk is on fire")

    executor = ScriptedChatModel([calling(("look", {"x": "a"})), "A"])
    graph = create_memento_agent(
        ScriptedChatModel([plan("a"), final("b")]), executor, [Counted().tool("look", returns=broken)]
    )
    assert run(graph, asking())["status"] == "answered"
    assert "the disk is on fire" in executor.calls[1][-1].text
    last = executor.calls[1][-1]
    assert isinstance(last, ToolMessage)
    assert last.status == "error"


def test_a_tool_that_hangs_is_given_up(run: Run) -> None:
    let_go = threading.Event()
    tool = Counted().tool("look", returns=lambda x: let_go.wait(60))
    executor = ScriptedChatModel([calling(("look", {"x": "a"})), "A"])
    graph = create_memento_agent(ScriptedChatModel([plan("a"), final("b")]), executor, [tool], tool_timeout=0.05)
    try:
        out = run(graph, asking())
    finally:
        let_go.set()
    assert (out["status"], out["record"].tool_history[0].ok) == ("answered", False)


def test_a_tool_that_returns_fifty_megabytes_is_cut(run: Run) -> None:
    executor = ScriptedChatModel([calling(("look", {"x": "a"})), "A"])
    tool = Counted().tool("look", returns=lambda x: "y" * 50_000_000)
    out = run(
        create_memento_agent(ScriptedChatModel([plan("a"), final("b")]), executor, [tool], result_chars=500), asking()
    )
    assert len(executor.calls[1][-1].text) < 1_000
    assert len(out["record"].tool_history[0].result) < 1_000


def test_a_tool_server_that_dies_is_told_and_the_run_goes_on(run: Run) -> None:
    async def gone(x: str) -> str:
        raise ConnectionResetError("the MCP server closed the connection")

    def gone_too(x: str) -> str:
        raise UnavailableError("The MCP server does not answer")

    tool = StructuredTool.from_function(gone_too, gone, name="look", description="Look.")
    executor = ScriptedChatModel([calling(("look", {"x": "a"})), "A"])
    out = run(create_memento_agent(ScriptedChatModel([plan("a"), final("b")]), executor, [tool]), asking())
    assert out["status"] == "answered"
    assert "MCP server" in executor.calls[1][-1].text


def test_a_tool_that_is_async_alone_works_both_ways(run: Run) -> None:
    async def look(x: str) -> str:
        await asyncio.sleep(0)
        return f"async {x}"

    tool = StructuredTool.from_function(coroutine=look, name="look", description="Look.")
    executor = ScriptedChatModel([calling(("look", {"x": "a"})), "A"])
    run(create_memento_agent(ScriptedChatModel([plan("a"), final("b")]), executor, [tool]), asking())
    assert executor.calls[1][-1].text == "async a"


def test_a_tool_that_steers_the_graph_is_refused_in_words(run: Run) -> None:
    executor = ScriptedChatModel([calling(("look", {"x": "a"})), "A"])
    tool = Counted().tool("look", returns=lambda x: Command(goto="plan"))
    out = run(create_memento_agent(ScriptedChatModel([plan("a"), final("b")]), executor, [tool]), asking())
    assert "tries to steer the graph" in executor.calls[1][-1].text
    assert out["status"] == "answered"


def test_a_tool_may_ask_a_person_itself(run: Run) -> None:
    counted = Counted()
    ask = counted.tool("ask", returns=lambda x: interrupt(f"May I? {x}"))
    executor = ScriptedChatModel([calling(("look", {"x": "1"}), ("ask", {"x": "2"})), "A"])
    graph = create_memento_agent(
        ScriptedChatModel([plan("a"), final("b")]), executor, [counted.tool("look"), ask], checkpointer=InMemorySaver()
    )
    thread: Any = {"configurable": {"thread_id": "t"}}
    assert run(graph, asking(), thread)["__interrupt__"][0].value == "May I? 2"
    out = run(graph, Command(resume="yes"), thread)
    assert [row.result for row in out["record"].tool_history] == ["look of 1", "yes"]
    assert counted.names.count("look") == 1


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(SettingsError, match="two tools are called 'look'"):
        agent([], [], [Counted().tool("look"), Counted().tool("look")])


# trimming


def test_the_executor_keeps_its_task_and_the_latest_results_whatever_goes(run: Run) -> None:
    counted = Counted()
    tool = counted.tool("look", returns=lambda x: f"{x} " * 200)
    script: list[Any] = [*[calling(("look", {"x": f"w{i}"})) for i in range(6)], "A"]
    executor = ScriptedChatModel(script)
    graph = create_memento_agent(
        ScriptedChatModel([plan("the subtask"), final("b")]), executor, [tool], context_tokens=800
    )
    out = run(graph, asking("the query"))
    assert out["record"].subtasks[0].result == "A"
    last = executor.calls[-1]
    assert (last[0].type, last[1].text) == ("system", "the query")
    assert "Task 1: the subtask" in [message.text for message in last]
    assert "w5 w5" in last[-1].text
    assert "w0 w0" not in executor.prompts[-1]


def test_the_planner_never_loses_the_query(run: Run) -> None:
    """The official code keeps the last 50 messages and may drop the user's."""
    planner = ScriptedChatModel([plan(*"abcdefgh"), plan(*"abcdefgh"), final("z")])
    executor = ScriptedChatModel(lambda messages: "word " * 200)
    run(create_memento_agent(planner, executor, context_tokens=1_500), asking("the query"))
    assert [call[1].text for call in planner.calls] == ["the query"] * 3
    assert "Task 8 result" in planner.calls[2][-1].text
    assert len(planner.calls[2]) < 18


# what is away, and what is stopped


@pytest.mark.parametrize("where", ["planner", "executor"])
def test_a_model_that_is_away_raises_and_the_run_can_go_on(run: Run, where: str) -> None:
    away = [ConnectionError("refused")]

    def reply(messages: list[Any]) -> Any:
        return away.pop() if away else (echo(messages) if where == "executor" else final("b"))

    scripts: dict[str, Any] = {"planner": [plan("a"), final("b")], "executor": echo, where: reply}
    graph = agent(scripts["planner"], scripts["executor"], checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "t"}}
    with pytest.raises(UnavailableError):
        run(graph, asking(), thread)
    assert run(graph, None, thread)["answer"] == "b"


@pytest.mark.anyio
async def test_a_run_can_be_cancelled_and_gone_on_with() -> None:
    started, release = asyncio.Event(), asyncio.Event()
    done: list[str] = []

    async def slow(x: str) -> str:
        started.set()
        await release.wait()
        done.append(x)
        return "ok"

    tool = StructuredTool.from_function(coroutine=slow, name="look", description="Look.")
    counted = Counted()
    calls = calling(("first", {"x": "1"}), ("look", {"x": "a"}))
    graph = agent([plan("a"), final("b")], [calls, "A"], [counted.tool("first"), tool], checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "t"}}
    running = asyncio.create_task(graph.ainvoke(asking(), thread))
    await asyncio.wait_for(started.wait(), 20)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    release.set()
    out = await graph.ainvoke(None, thread)
    assert (out["answer"], done, counted.names) == ("b", ["a"], ["first"])

"""Calls of dangerous tools wait for a person, and a run that is gone on with does nothing twice."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from memweave.errors import SettingsError
from memweave.graphs.memento import MementoAgent
from memweave.graphs.memento_tools import read_decision
from tests.graphs.memento_play import Counted, Run, agent, asking, calling, final, plan

THREAD: Any = {"configurable": {"thread_id": "t"}}


@pytest.fixture
def saver() -> BaseCheckpointSaver[Any]:
    return InMemorySaver()


def make(counted: Counted, saver: Any, **more: Any) -> MementoAgent:
    """Return an agent that calls a safe tool, a dangerous one and the safe one again, in one reply."""
    calls = calling(("look", {"x": "1"}), ("remove", {"x": "2"}), ("look", {"x": "3"}))
    tools = [counted.tool("look"), counted.tool("remove", dangerous=True)]
    return agent([plan("a"), final("b")], [calls, "A"], tools, checkpointer=saver, **more)


def test_the_run_pauses_before_the_call_and_says_what_it_is(run: Run, saver: Any) -> None:
    counted = Counted()
    graph = make(counted, saver)
    out = run(graph, asking(), THREAD)
    (asked,) = out["__interrupt__"]
    (request,) = asked.value["action_requests"]
    assert (request["name"], request["args"]) == ("remove", {"x": "2"})
    assert "a" in request["description"]
    assert counted.done == [("look", {"x": "1"})]
    assert graph.get_state(THREAD).next == ("subtask",)


@pytest.mark.parametrize("answer", ["approve", True, {"type": "approve"}, {"decisions": [{"type": "approve"}]}])
def test_approved_it_is_carried_out_once_and_nothing_else_again(run: Run, saver: Any, answer: Any) -> None:
    counted = Counted()
    graph = make(counted, saver)
    run(graph, asking(), THREAD)
    out = run(graph, Command(resume=answer), THREAD)
    assert (out["status"], out["answer"]) == ("answered", "b")
    assert [args["x"] for _, args in counted.done] == ["1", "2", "3"]
    assert [row.decision for row in out["record"].tool_history] == [None, "approve", None]


@pytest.mark.parametrize("answer", ["reject", False, {"type": "reject", "message": "Not that one."}])
def test_rejected_it_is_a_message_and_the_run_goes_on(run: Run, saver: Any, answer: Any) -> None:
    counted = Counted()
    graph = make(counted, saver)
    run(graph, asking(), THREAD)
    out = run(graph, Command(resume=answer), THREAD)
    assert counted.names == ["look", "look"]
    row = out["record"].tool_history[1]
    assert (row.ok, row.decision) == (False, "reject")
    assert row.result.startswith("A person did not allow this call")
    assert ("Not that one." in row.result) == isinstance(answer, dict)
    assert out["answer"] == "b"


@pytest.mark.parametrize(
    "answer",
    [
        {"type": "edit", "args": {"x": "9"}},
        {"decisions": [{"type": "edit", "edited_action": {"name": "remove", "args": {"x": "9"}}}]},
    ],
)
def test_with_other_arguments_those_are_carried_out_and_the_executor_knows(run: Run, saver: Any, answer: Any) -> None:
    counted = Counted()
    graph = make(counted, saver)
    run(graph, asking(), THREAD)
    out = run(graph, Command(resume=answer), THREAD)
    assert counted.done[1] == ("remove", {"x": "9"})
    row = out["record"].tool_history[1]
    assert (row.arguments, row.decision) == ({"x": "9"}, "edit")
    assert "A person changed the arguments" in row.result


@pytest.mark.parametrize("answer", ["maybe", 7, {"type": "edit"}, {"type": "edit", "args": "x"}, {"decisions": []}])
def test_an_answer_that_cannot_be_read_is_asked_for_again(run: Run, saver: Any, answer: Any) -> None:
    counted = Counted()
    graph = make(counted, saver)
    run(graph, asking(), THREAD)
    out = run(graph, Command(resume=answer), THREAD)
    assert "Answer with approve" in out["__interrupt__"][0].value["problem"]
    assert counted.names == ["look"]
    assert run(graph, Command(resume="approve"), THREAD)["answer"] == "b"
    assert counted.names == ["look", "remove", "look"]


def test_a_call_cannot_be_turned_into_one_of_another_tool() -> None:
    edited = {"type": "edit", "edited_action": {"name": "look", "args": {"x": "9"}}}
    assert read_decision(edited, "remove") is None


def test_names_can_be_given_and_must_be_tools(run: Run, saver: Any) -> None:
    counted = Counted()
    graph = make(counted, saver, approve=["look"])
    out = run(graph, asking(), THREAD)
    for expected in ("look", "remove", "look"):
        assert out["__interrupt__"][0].value["action_requests"][0]["name"] == expected
        out = run(graph, Command(resume="approve"), THREAD)
    assert out["answer"] == "b"
    with pytest.raises(SettingsError, match="approve names 'lok', which is no tool. There are: look, remove"):
        make(counted, saver, approve=["lok"])


def test_without_a_checkpointer_it_is_refused_before_anything_is_done(run: Run) -> None:
    counted = Counted()
    with pytest.raises(SettingsError, match="remove must be approved by a person, which needs a checkpointer"):
        run(make(counted, None), asking())
    assert counted.done == []


def test_parallel_subtasks_wait_each_for_its_own_decision(run: Run, saver: Any) -> None:
    counted = Counted()

    def execute(messages: list[Any]) -> Any:
        last = messages[-1]
        return f"did {last.text}" if last.type == "tool" else calling(("remove", {"x": last.text[-1]}))

    planner = [plan(("a", []), ("b", []), ("c", [])), final("z")]
    graph = agent(planner, execute, [counted.tool("remove", dangerous=True)], checkpointer=saver, parallel=3)
    waiting = run(graph, asking(), THREAD)["__interrupt__"]
    assert len(waiting) == 3
    answers = {
        each.id: "reject" if each.value["action_requests"][0]["args"]["x"] == "b" else "approve" for each in waiting
    }
    out = run(graph, Command(resume=answers), THREAD)
    assert sorted(args["x"] for _, args in counted.done) == ["a", "c"]
    assert [row.result[:11] for row in out["record"].subtasks] == ["did remove ", "did A perso", "did remove "]


def test_one_decision_at_a_time_leaves_the_others_waiting(run: Run, saver: Any) -> None:
    counted = Counted()

    def execute(messages: list[Any]) -> Any:
        last = messages[-1]
        return "did" if last.type == "tool" else calling(("remove", {"x": last.text[-1]}))

    graph = agent(
        [plan(("a", []), ("b", [])), final("z")],
        execute,
        [counted.tool("remove", dangerous=True)],
        checkpointer=saver,
        parallel=2,
    )
    first, second = run(graph, asking(), THREAD)["__interrupt__"]
    out = run(graph, Command(resume={first.id: "approve"}), THREAD)
    assert [each.id for each in out["__interrupt__"]] == [second.id]
    assert len(counted.done) == 1
    assert run(graph, Command(resume={second.id: "approve"}), THREAD)["answer"] == "z"
    assert len(counted.done) == 2


def test_a_new_task_leaves_the_waiting_call_behind(run: Run, saver: Any) -> None:
    counted = Counted()
    graph = agent(
        [plan("a"), final("b")],
        [calling(("remove", {"x": "1"}))],
        [counted.tool("remove", dangerous=True)],
        checkpointer=saver,
    )
    run(graph, asking(), THREAD)
    out = run(graph, asking("Never mind. What is b?"), THREAD)
    assert (out["answer"], counted.done, out["record"].tool_history) == ("b", [], ())


def test_a_run_is_gone_on_with_by_another_agent_with_the_same_checkpointer(run: Run, saver: Any) -> None:
    before, after = Counted(), Counted()
    run(make(before, saver), asking(), THREAD)
    tools = [after.tool("look"), after.tool("remove", dangerous=True)]
    other = agent([final("b")], ["A"], tools, checkpointer=saver)
    assert run(other, Command(resume="approve"), THREAD)["answer"] == "b"
    assert (before.names, after.names) == (["look"], ["remove", "look"])


@pytest.fixture
def database(tmp_path: Path) -> Path:
    pytest.importorskip("langgraph.checkpoint.sqlite", reason="needs langgraph-checkpoint-sqlite")
    return tmp_path / "checkpoints.db"


def test_a_run_is_gone_on_with_by_another_process_from_a_database(database: Path) -> None:
    from langgraph.checkpoint.sqlite import SqliteSaver  # type: ignore[import-not-found,unused-ignore]

    before, after = Counted(), Counted()
    with sqlite3.connect(database, check_same_thread=False) as connection:
        make(before, SqliteSaver(connection)).invoke(asking(), THREAD)
    with sqlite3.connect(database, check_same_thread=False) as connection:
        tools = [after.tool("look"), after.tool("remove", dangerous=True)]
        graph = agent([final("b")], ["A"], tools, checkpointer=SqliteSaver(connection))
        assert graph.invoke(Command(resume="approve"), THREAD)["answer"] == "b"
    assert (before.names, after.names) == (["look"], ["remove", "look"])

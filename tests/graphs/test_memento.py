"""Memento's loop: plan, subtasks, results, answer; its five variants; what planner and executor see."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver

from memweave.agents.prompts import load_prompt
from memweave.errors import InputError, SettingsError
from memweave.graphs.memento import create_memento_agent
from memweave.graphs.memento_state import QueryRecord
from memweave.graphs.memento_subtask import MOST_CALLS
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import Tracer
from tests.graphs.agemem_play import Ours
from tests.graphs.memento_play import Counted, Run, agent, asking, calling, echo, final, plan, tagged

# the loop


def test_it_plans_carries_out_and_answers(run: Run) -> None:
    planner = ScriptedChatModel([plan("find the boss", "find the city"), final("Oslo")])
    executor = ScriptedChatModel(["Boris", "Oslo"])
    out = run(create_memento_agent(planner, executor), asking("Where does Anna's boss live?"))
    assert (out["status"], out["answer"], out["messages"][-1].text) == ("answered", "Oslo", "Oslo")
    assert [message.text for message in planner.calls[1][1:]] == [
        "Where does Anna's boss live?",
        plan("find the boss", "find the city"),
        "Task 1 result: Boris",
        "Task 2 result: Oslo",
    ]
    assert [message.text for message in executor.calls[1][1:]] == [
        "Where does Anna's boss live?",
        plan("find the boss", "find the city"),
        "Task 1 result: Boris",
        "Task 2: find the city",
    ]
    assert planner.calls[0][0].text == load_prompt("planner").text
    assert executor.calls[0][0].text == load_prompt("executor").text


def test_the_planners_prompt_only_grows(run: Run) -> None:
    planner = ScriptedChatModel([plan("a", think="new"), plan("b"), final("c")])
    run(create_memento_agent(planner, ScriptedChatModel(echo)), asking())
    assert planner.calls[1][: len(planner.calls[0])] == planner.calls[0]
    assert planner.calls[2][: len(planner.calls[1])] == planner.calls[1]
    assert planner.calls[1][2].text == plan("a", think="new")  # as it was sampled


def test_tools_stay_inside_their_subtask(run: Run) -> None:
    counted = Counted()
    executor = ScriptedChatModel(
        [calling(("look", {"x": "a"}), ("look", {"x": "b"}), text="both"), "found", calling(("look", {"x": "c"})), "ok"]
    )
    planner = ScriptedChatModel([plan("one", "two"), final("x")])
    out = run(create_memento_agent(planner, executor, [counted.tool("look")]), asking())
    assert [args["x"] for _, args in counted.done] == ["a", "b", "c"]
    assert "look of a" in executor.prompts[1]
    assert "look of" not in executor.prompts[2]  # another subtask
    assert all("look of" not in prompt for prompt in planner.prompts)
    record = out["record"]
    assert [(row.subtask, row.arguments, row.result) for row in record.tool_history] == [
        (1, {"x": "a"}, "look of a"),
        (1, {"x": "b"}, "look of b"),
        (2, {"x": "c"}, "look of c"),
    ]
    assert [len(row.tools) for row in record.subtasks] == [2, 1]


def test_a_text_protocol_executor_gets_its_tools_in_the_prompt_and_answers_in_tags(run: Run) -> None:
    counted = Counted()
    executor = Ours([tagged(("look", {"x": "a"}), ("look", {"x": "b"})), "<think>I see</think><answer>4</answer>"])
    out = run(
        create_memento_agent(ScriptedChatModel([plan("one"), final("4")]), executor, [counted.tool("look")]), asking()
    )
    assert out["record"].subtasks[0].result == "4"
    assert '"name": "look"' in executor.calls[0][0].text
    assert [message.type for message in executor.calls[1][-3:]] == ["ai", "tool", "tool"]


def test_a_hosted_model_may_use_the_text_protocol(run: Run) -> None:
    executor = ScriptedChatModel([tagged(("look", {"x": "a"})), "<answer>4</answer>"])
    planner = ScriptedChatModel([plan("one"), final("4")])
    out = run(create_memento_agent(planner, executor, [Counted().tool("look")], protocol="text"), asking())
    assert out["record"].subtasks[0].result == "4"
    assert (
        executor.calls[1][-1].text == "<tool_result>\nlook of a\n</tool_result>"
    )  # endpoints want tool messages after native calls only


def test_calls_and_an_answer_in_one_text_reply_are_carried_out_and_taken(run: Run) -> None:
    counted = Counted()
    executor = Ours([f"{tagged(('look', {'x': 'a'}))}<answer>4</answer>"])
    out = run(
        create_memento_agent(ScriptedChatModel([plan("one"), final("4")]), executor, [counted.tool("look")]), asking()
    )
    assert (out["record"].subtasks[0].result, counted.names) == ("4", ["look"])


def test_two_different_models_play_and_a_trace_tells_them_apart(run: Run) -> None:
    tracer = Tracer()
    graph = create_memento_agent(
        ScriptedChatModel([plan("a"), final("b")], model_name="big"), ScriptedChatModel(["c"], model_name="small")
    )
    run(graph, asking(), {"callbacks": [tracer]})
    trace = tracer.last
    assert trace is not None
    assert [(one.role, one.policy, one.node) for one in trace.generations] == [
        ("planner", "big", "plan"),
        ("executor", "small", "execute"),
        ("planner", "big", "plan"),
    ]
    assert trace.generations[0].prompt_hash == load_prompt("planner").hash


def test_replanning_numbers_from_one_again_and_the_latest_plan_is_the_plan(run: Run) -> None:
    out = run(agent([plan("a", "b"), plan("c"), final("d")]), asking())
    record: QueryRecord = out["record"]
    assert [(row.cycle, row.subtask, row.description) for row in record.subtasks] == [
        (1, 1, "a"),
        (1, 2, "b"),
        (2, 1, "c"),
    ]
    assert (record.plan, record.plans) == (plan("c"), (plan("a", "b"), plan("c")))
    assert [(call.cycle, call.problem) for call in record.planner_calls] == [(1, None), (2, None), (3, None)]


# exhaustion


@pytest.mark.parametrize(
    ("reply", "answer"), [(final("d"), "d"), ("It is d.", "It is d."), (plan("e"), None), ("", None)]
)
def test_when_no_cycle_is_left_the_planner_must_answer(run: Run, reply: str, answer: str | None) -> None:
    planner = ScriptedChatModel([plan("a"), plan("b"), plan("c"), reply])
    out = run(create_memento_agent(planner, ScriptedChatModel(echo)), asking())
    assert (out["status"], out["answer"]) == ("exhausted", answer)
    assert "Task 1 result: done: Task 1: c" in planner.prompts[3]  # the last results are read
    assert "No further plan" in planner.calls[3][-1].text
    assert out["messages"][-1].text == (answer or "I did not come to an answer within the plans that I am allowed.")


def test_the_papers_code_takes_the_last_plan_for_the_answer(run: Run) -> None:
    planner = ScriptedChatModel([plan("a"), plan("b")])
    out = run(
        create_memento_agent(planner, ScriptedChatModel(echo), exhaust_policy="paper_code", max_cycles=2), asking()
    )
    assert (out["status"], out["answer"], len(planner.calls)) == ("exhausted", plan("b"), 2)
    assert out["record"].subtasks[-1].description == "b"  # carried out, although nobody reads it


def test_a_batch_needs_the_agents_own_limit_of_steps() -> None:
    graph = agent(lambda messages: final("x") if "result" in messages[-1].text else plan(*"abcdefghijkl"))
    assert graph.config is not None
    outs: list[Any] = graph.batch([asking()] * 2, {"recursion_limit": graph.config["recursion_limit"]})
    assert [out["status"] for out in outs] == ["answered"] * 2


def test_the_worst_run_that_the_limits_allow_ends_by_them_and_not_by_langgraphs(run: Run) -> None:
    def planner(messages: list[BaseMessage]) -> str:
        return plan(*["x"] * 4) if "cannot be used" in messages[-1].text else "prose"

    calls = calling(*[("look", {"x": "a"})] * MOST_CALLS)
    limits = {"max_cycles": 2, "max_subtasks": 4, "max_tool_rounds": 3}
    out = run(agent(planner, lambda messages: calls, [Counted().tool("look")], **limits), asking())
    assert out["status"] == "exhausted"
    assert len(out["record"].tool_history) == 2 * 4 * 3 * MOST_CALLS


# parallel subtasks


def test_independent_subtasks_run_at_once_and_are_recorded_in_the_order_of_the_plan(run: Run) -> None:
    both = threading.Barrier(2, timeout=20)  # breaks unless two subtasks are under way together

    def execute(messages: list[Any]) -> str:
        if messages[-1].text.startswith(("Task 1", "Task 2")):
            both.wait()
        return echo(messages)

    planner = ScriptedChatModel([plan(("a", []), ("b", []), ("c", [1, 2])), final("d")])
    executor = _Concurrent(execute)
    run(create_memento_agent(planner, executor, parallel=2), asking())
    assert [message.text for message in planner.calls[1][3:]] == [
        f"Task {i} result: done: Task {i}: {x}" for i, x in [(1, "a"), (2, "b"), (3, "c")]
    ]
    assert "Task 2 result" in executor.prompts[2]
    assert '"after"' in planner.prompts[0]


class _Concurrent(ScriptedChatModel):
    """A scripted model whose calls do not wait for each other."""

    def __init__(self, script: Any) -> None:
        super().__init__(script)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self._calls.append(messages)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(str(self._next(messages))))])


def test_the_bound_holds() -> None:
    graph = agent([plan(*[("x", []) for _ in range(7)]), final("d")], parallel=3)
    chunks: list[Any] = list(graph.stream(asking(), stream_mode="updates"))
    assert [len(chunk["next_task"]["current"]) for chunk in chunks if "next_task" in chunk] == [3, 3, 1, 0]


def test_by_default_subtasks_run_one_after_the_other_whatever_they_need(run: Run) -> None:
    executor = ScriptedChatModel(["A", "B"])
    run(create_memento_agent(ScriptedChatModel([plan(("a", [2]), ("b", [])), final("d")]), executor), asking())
    assert [call[-1].text for call in executor.calls] == ["Task 2: b", "Task 1: a"]  # what it needs comes first
    assert "Task 2 result: A" in executor.prompts[1]


# variants of the paper


def test_offline_executor_is_the_model_alone(run: Run) -> None:
    executor = ScriptedChatModel(["FINAL ANSWER: 4"])
    out = run(create_memento_agent(None, executor), asking("2 + 2?", ground_truth="4"))
    assert (out["status"], out["answer"], out["reward"]) == ("answered", "4", 1.0)
    assert [message.text for message in executor.calls[0][1:]] == ["2 + 2?"]
    assert out["record"].plan is None


def test_online_executor_has_tools(run: Run) -> None:
    counted = Counted()
    out = run(agent(None, [calling(("look", {"x": "a"})), "4"], [counted.tool("look")]), asking())
    assert (out["answer"], counted.names) == ("4", ["look"])
    assert [row.subtask for row in out["record"].tool_history] == [0]


def test_without_cbr_no_cases_are_shown_and_no_scope_is_needed(run: Run) -> None:
    planner = ScriptedChatModel([plan("a"), final("b")])
    out = run(create_memento_agent(planner, ScriptedChatModel(echo)), asking())
    assert "<cases>" not in "".join(planner.prompts).replace(load_prompt("planner").text, "")
    assert (out["record"].cases, out.get("case_id")) == ((), None)


# a chat


def test_a_second_task_begins_anew_and_knows_what_was_said(run: Run) -> None:
    planner = ScriptedChatModel([plan("a"), final("4"), final("5")])
    graph = create_memento_agent(planner, ScriptedChatModel(echo), checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "t"}}
    first = run(graph, asking("2 + 2?", ground_truth="4", task_id="one"), thread)
    second = run(graph, asking("And one more?"), thread)
    assert [message.text for message in second["messages"]] == ["2 + 2?", "4", "And one more?", "5"]
    assert [message.text for message in planner.calls[2][1:]] == ["2 + 2?", "4", "And one more?"]
    assert (first["reward"], second["reward"]) == (1.0, None)  # the right answer was about the first task alone
    assert second["record"].about.task_id is None
    assert second["record"].subtasks == ()
    assert first["record"].run_id != second["record"].run_id


def test_several_new_messages_are_one_task(run: Run) -> None:
    planner = ScriptedChatModel([final("x")])
    run(
        create_memento_agent(planner, ScriptedChatModel(echo)),
        {"messages": [HumanMessage("One."), HumanMessage("Two.")]},
    )
    assert planner.calls[0][-1].text == "One.\nTwo."


@pytest.mark.parametrize("messages", [[], [HumanMessage("Hi"), AIMessage("Hello")], [HumanMessage("  ")]])
def test_nothing_to_do_is_an_error(run: Run, messages: list[Any]) -> None:
    with pytest.raises(InputError):
        run(agent([]), {"messages": messages})


def test_prompts_come_from_the_runs_context_first(run: Run) -> None:
    planner, executor = ScriptedChatModel([plan("a"), final("b")]), ScriptedChatModel(echo)
    graph = create_memento_agent(planner, executor, planner_prompt="Plan.", executor_prompt="Do.")
    run(graph, asking(), context={"executor_prompt": "Do it well."})
    assert planner.calls[0][0].text == "Plan."
    assert executor.calls[0][0].text == "Do it well."


def test_a_small_policy_may_plan_without_instructions(run: Run) -> None:
    planner = ScriptedChatModel([plan("a"), final("b")])
    run(create_memento_agent(planner, ScriptedChatModel(echo), profile="none"), asking())
    assert [message.type for message in planner.calls[1]] == ["human", "ai", "human"]


def test_only_the_answer_is_streamed_as_a_message() -> None:
    chunks = list(agent([plan("a"), final("b")]).stream(asking(), stream_mode="messages"))
    assert "".join(chunk.text for chunk, _ in chunks if chunk.type != "human") == "b"  # type: ignore[union-attr]


def test_what_executor_and_tools_say_is_streamed_of_no_subtask_either(stream: Callable[..., list[Any]]) -> None:
    graph = agent([plan("a"), final("b")], [calling(("look", {"x": "a"}), ("x", {})), "A"], [Counted().tool("look")])
    parts = stream(graph, asking(), stream_mode="messages", subgraphs=True)
    assert [message.text for _, (message, _) in parts if message.type != "human"] == ["b"]


def test_progress_is_streamed() -> None:
    events: list[Any] = list(agent([plan("a"), final("b")]).stream(asking(), stream_mode="custom"))
    assert [event["type"] for event in events] == ["plan", "result"]


@pytest.mark.parametrize(
    "more", [{"max_cycles": 0}, {"max_tool_rounds": 0}, {"max_subtasks": 0}, {"parallel": 0}, {"exhaust_policy": "x"}]
)
def test_settings_that_cannot_be_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        agent([], **more)

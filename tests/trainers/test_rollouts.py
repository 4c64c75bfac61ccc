from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langgraph.graph import END, START, StateGraph

from memweave.errors import (
    GroupError,
    InputError,
    NoPolicyError,
    OperationError,
    RewardError,
    ScopeError,
    SettingsError,
    UnavailableError,
)
from memweave.serving.patience import clock_stopped
from memweave.tracing import Generation, Score, Trace, TraceStatus
from memweave.tracing.store import TraceStore
from memweave.trainers.rollouts import Rollouts, Task
from tests.trainers.made_up import policy

pytestmark = pytest.mark.anyio
TASKS = [Task("a", {"question": "1"}), Task("b", {"question": "2"})]
Ask = Callable[[dict[str, str], RunnableConfig], Any]


def asking(before: Callable[[dict[str, str]], object] = lambda given: None) -> Runnable[Any, Any]:
    """Return a runnable that calls a policy once, after `before`, which may fail."""
    model = policy(lambda messages: f"answer {messages[-1].text}")

    async def ask(given: dict[str, str], config: RunnableConfig) -> str:
        waiting = before(given)
        if asyncio.iscoroutine(waiting):
            await waiting
        return (await model.ainvoke(given["question"], config)).text

    return RunnableLambda(ask)


def one(task: Task, output: object, trace: Trace) -> float:
    return 1.0


async def run(rollouts: Rollouts, tasks: list[Task] = TASKS, **options: Any) -> list[Trace]:
    groups = await rollouts.arun(tasks, **{"group_size": 2, "run": "r", **options})
    return [trace for group in groups for trace in group.traces]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    with TraceStore(tmp_path / "traces.db") as opened:
        yield opened


async def test_groups_come_back_in_order_with_all_that_is_known() -> None:
    async def late(given: dict[str, str]) -> None:
        if given["question"] == "1":
            await asyncio.sleep(0.01)

    def reward(task: Task, output: object, trace: Trace) -> float:
        assert output == f"answer {task.input['question']}"
        return float(task.input["question"]) - trace.replica if trace.replica else 2.0

    tasks = [Task("a", {"question": "1"}, metadata={"kind": "easy"}), TASKS[1]]
    rollouts = Rollouts(asking(late), reward)
    groups = await rollouts.arun(tasks, group_size=3, run="r", iteration=4, policy_version="v1")
    assert [group.id for group in groups] == ["a", "b"]
    assert [[trace.replica for trace in group.traces] for group in groups] == [[0, 1, 2], [0, 1, 2]]
    trace = groups[0].traces[2]
    assert (trace.run, trace.iteration, trace.group, trace.status) == ("r", 4, "a", TraceStatus.OK)
    assert trace.metadata == {"kind": "easy", "policy_version": "v1"}
    assert trace.score == Score(value=-1.0, low=-1.0, high=1.0)
    assert groups[0].traces[0].score == Score(value=2.0, low=0.0, high=2.0)
    (made,) = trace.generations
    assert isinstance(made, Generation)
    assert made.token_ids == tuple(map(ord, "answer 1"))


async def test_at_most_so_many_episodes_are_at_work() -> None:
    at_work, most = 0, 0

    async def count(given: dict[str, str]) -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.001)
        at_work -= 1

    await run(Rollouts(asking(count), one, concurrency=3), group_size=5)
    assert most == 3


async def test_every_episode_has_its_own_input_and_thread() -> None:
    seen = []

    def change(given: dict[str, str], config: RunnableConfig) -> None:
        seen.append(
            (len(given["messages"]), config["configurable"]["thread_id"], config["metadata"]["memweave_episode"])
        )
        given["messages"].append(HumanMessage("changed"))  # type: ignore[attr-defined]  # a list

    model = policy(lambda messages: "x")

    def work(given: Any, config: RunnableConfig) -> str:
        change(given, config)
        return model.invoke("q", config).text

    await run(Rollouts(RunnableLambda(work), one), [Task("a", {"messages": [HumanMessage("hi")]})])
    assert [length for length, _, _ in seen] == [1, 1]
    assert len({thread for _, thread, _ in seen}) == 2
    assert sorted(name for _, _, name in seen) == ["r/0/a/0", "r/0/a/1"]


async def test_a_failed_episode_is_a_status_without_a_score() -> None:
    endings = iter([KeyError("gone"), UnavailableError("no server"), ConnectionError("refused"), None, None, None])
    scored = []

    def fail(given: dict[str, str]) -> None:
        if (error := next(endings)) is not None:
            raise error

    def reward(task: Task, output: object, trace: Trace) -> float:
        scored.append(trace.id)
        return 1.0

    traces = await run(Rollouts(asking(fail), reward, concurrency=1), group_size=3)
    assert [trace.status.value for trace in traces] == ["failed", "unavailable", "unavailable", "ok", "ok", "ok"]
    assert [trace.score is None for trace in traces] == [True] * 3 + [False] * 3
    assert [trace.error for trace in traces[:2]] == ["KeyError: 'gone'", "UnavailableError: no server"]
    assert len(scored) == 3


async def test_an_episode_that_takes_too_long_is_cancelled() -> None:
    async def hang(given: dict[str, str]) -> None:
        await asyncio.sleep(60 if given["question"] == "1" else 0)

    traces = await run(Rollouts(asking(hang), one, timeout=0.05))
    assert [trace.status.value for trace in traces] == ["timeout", "timeout", "ok", "ok"]
    assert traces[0].error is not None
    assert "0.05 s" in traces[0].error


async def test_a_graph_that_never_ends_meets_the_recursion_limit() -> None:
    class Steps(TypedDict):
        question: str
        n: int

    builder = StateGraph(Steps)
    builder.add_node("loop", lambda state: {"n": state["n"] + 1})
    builder.add_edge(START, "loop")
    builder.add_conditional_edges("loop", lambda state: END if state["n"] == int(state["question"]) else "loop")
    tasks = [Task("a", {"question": "-1", "n": 0}), Task("b", {"question": "3", "n": 0})]
    traces = await run(Rollouts(builder.compile(), one, recursion_limit=10), tasks, training=False)
    assert [trace.status.value for trace in traces] == ["failed", "failed", "ok", "ok"]
    assert "GraphRecursionError" in (traces[0].error or "")


# rewards


async def test_rewards_may_be_async_scores_or_none() -> None:
    async def reward(task: Task, output: object, trace: Trace) -> Score | None:
        await asyncio.sleep(0)
        return Score(value=0.5, parts={"manager": 1.0}) if trace.replica else None

    traces = await run(Rollouts(asking(), reward))
    assert [trace.score for trace in traces] == [None, Score(value=0.5, parts={"manager": 1.0})] * 2


@pytest.mark.parametrize("value", [math.nan, math.inf, "1.0", [1.0]])
async def test_a_reward_that_is_no_number_is_an_error_that_names_the_task(value: object) -> None:
    with pytest.raises(RewardError, match="the reward of task 'b' is .* Return a"):
        await run(Rollouts(asking(), lambda task, output, trace: value if task.id == "b" else 1.0))  # type: ignore[arg-type,return-value]


async def test_a_fault_in_the_reward_is_raised_with_its_task_and_cause() -> None:
    def reward(task: Task, output: object, trace: Trace) -> float:
        return 1 / (task.id != "b")

    with pytest.raises(RewardError, match="task 'b' raised ZeroDivisionError") as caught:
        await run(Rollouts(asking(), reward))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_no_reward_at_all_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(RewardError, match="none of 4 episodes has a reward.*Return a number"):
        await run(Rollouts(asking(), lambda task, output, trace: None))


async def test_a_judge_that_is_away_is_no_fault_of_the_policy() -> None:
    def reward(task: Task, output: object, trace: Trace) -> float:
        if task.id == "b":
            raise UnavailableError("the judge does not answer")
        return 1.0

    traces = await run(Rollouts(asking(), reward))
    assert [trace.status.value for trace in traces] == ["ok", "ok", "unavailable", "unavailable"]


async def test_a_reward_that_hangs_is_an_error() -> None:
    async def reward(task: Task, output: object, trace: Trace) -> float:
        await asyncio.sleep(60)
        return 1.0

    with pytest.raises(RewardError, match=r"task 'a' took longer than 0\.05 s"):
        await run(Rollouts(asking(), reward, timeout=0.05))


# what is wrong with all of them


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (KeyError("x"), OperationError, "none of 4 episodes ran to its end \\(4 failed\\): KeyError: 'x'"),
        (ScopeError("whose?"), ScopeError, "none of 4 episodes ran.*whose"),
        (ConnectionError("refused"), UnavailableError, "4 unavailable.*refused.*Check that the server runs"),
    ],
)
async def test_what_every_episode_fails_for_is_one_error(
    error: Exception, kind: type[Exception], says: str, store: TraceStore
) -> None:
    def fail(given: dict[str, str]) -> None:
        raise error

    with pytest.raises(kind, match=says):
        await run(Rollouts(asking(fail), one, store=store))
    # The cause can be removed, and the run resumed: nothing stands in the way.
    assert [trace.status for trace in await run(Rollouts(asking(), one, store=store))] == [TraceStatus.OK] * 4


async def test_the_clock_of_an_episode_stands_still_while_its_server_is_away() -> None:
    """Two calls of an episode wait for longer than its limit, one after the other and in threads, as a chat model does."""
    released = threading.Event()

    def away() -> None:
        with clock_stopped():
            released.wait(20)

    async def called(given: dict[str, str]) -> None:
        calls = [asyncio.to_thread(away) for _ in range(2)]
        later = asyncio.get_running_loop().call_later(0.8, released.set)
        await asyncio.gather(*calls)
        later.cancel()

    def graph(after: Callable[[dict[str, str]], Any]) -> Runnable[Any, Any]:
        async def both(given: dict[str, str]) -> None:
            await called(given)
            await after(given)

        return asking(both)

    async def nothing(given: dict[str, str]) -> None:
        return None

    async def hang(given: dict[str, str]) -> None:
        await asyncio.Event().wait()

    traces = await run(Rollouts(graph(nothing), one, timeout=0.5), TASKS[:1])
    assert [trace.status for trace in traces] == [TraceStatus.OK] * 2
    with pytest.raises(OperationError, match="2 timeout"):  # it runs again afterwards
        await run(Rollouts(graph(hang), one, timeout=0.5), TASKS[:1])


async def test_timeouts_of_all_are_one_error() -> None:
    async def hang(given: dict[str, str]) -> None:
        await asyncio.sleep(60)

    with pytest.raises(OperationError, match="4 timeout.*Allow more time"):
        await run(Rollouts(asking(hang), one, timeout=0.02))


async def test_a_graph_without_a_policy_cannot_be_trained() -> None:
    graph = RunnableLambda(lambda given: "done")
    with pytest.raises(NoPolicyError, match=r"server\.chat_model"):
        await run(Rollouts(graph, one))
    assert len(await run(Rollouts(graph, one), group_size=1, training=False)) == 2


async def test_calls_that_make_no_sense_are_refused() -> None:
    with pytest.raises(GroupError, match="Use 2 or more"):
        await run(Rollouts(asking(), one), group_size=1)
    with pytest.raises(InputError, match="given twice, 'a' first"):
        await run(Rollouts(asking(), one), [TASKS[0], TASKS[0]])
    with pytest.raises(InputError, match="no task"):
        await run(Rollouts(asking(), one), [])
    with pytest.raises(SettingsError, match="concurrency"):
        Rollouts(asking(), one, concurrency=0)
    with pytest.raises(SettingsError, match="timeout"):
        Rollouts(asking(), one, timeout=0)


# the store


def key(trace: Trace) -> tuple[object, ...]:
    return trace.iteration, trace.group, trace.replica, trace.metadata.get("policy_version")


async def test_what_the_store_holds_is_not_run_again(store: TraceStore) -> None:
    ran = []
    rollouts = Rollouts(asking(ran.append), one, store=store)
    first = await run(rollouts, policy_version="v1")
    assert len(ran) == 4
    again = await run(rollouts, policy_version="v1")
    assert [trace.id for trace in again] == [trace.id for trace in first]
    assert [trace.score for trace in again] == [trace.score for trace in first]
    assert len(ran) == 4
    for other in (
        {"policy_version": "v2"},
        {"iteration": 1, "policy_version": "v1"},
        {"run": "s", "policy_version": "v1"},
    ):
        await run(rollouts, **other)
    assert len(ran) == 16
    assert len(store.ids()) == 16
    assert len(await run(rollouts, policy_version="v1", group_size=3)) == 6  # two more
    assert len(ran) == 18


async def test_episodes_are_stored_as_they_end_and_failed_ones_with_them(store: TraceStore) -> None:
    def fail(given: dict[str, str]) -> None:
        if given["question"] == "2":
            raise KeyError("x")

    def reward(task: Task, output: object, trace: Trace) -> float:
        return 1.0

    traces = await run(Rollouts(asking(fail), reward, store=store))
    assert sorted(map(key, store.query(run="r")), key=str) == sorted(map(key, traces), key=str)
    assert store.count(status=TraceStatus.FAILED) == 2


async def test_an_episode_whose_server_was_away_is_run_again(store: TraceStore) -> None:
    def away(given: dict[str, str]) -> None:
        if given["question"] == "2":
            raise UnavailableError("no server")

    first = await run(Rollouts(asking(away), one, store=store))
    again = await run(Rollouts(asking(), one, store=store))
    assert [trace.status.value for trace in first] == ["ok", "ok", "unavailable", "unavailable"]
    assert [trace.status.value for trace in again] == ["ok"] * 4
    assert [trace.id for trace in again[:2]] == [trace.id for trace in first[:2]]
    assert store.count(status=TraceStatus.OK) == 4


async def test_a_fault_stops_the_others_and_what_was_done_stays(store: TraceStore) -> None:
    hanging, stored = asyncio.Event(), asyncio.Event()
    cancelled = []

    async def hang(given: dict[str, str]) -> None:
        if given["question"] == "2":
            try:
                hanging.set()
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(given)
                raise

    async def reward(task: Task, output: object, trace: Trace) -> float:
        if trace.replica:
            await hanging.wait()
            await stored.wait()
            raise KeyError("x")
        return 1.0

    with pytest.raises(RewardError, match="task 'a' raised KeyError"):
        await run(Rollouts(asking(hang), reward, store=store, progress=lambda *numbers: stored.set()))
    assert len(cancelled) == 2
    assert [key(trace)[1:3] for trace in store.query(run="r")] == [("a", 0)]


async def test_progress_is_told() -> None:
    told: list[tuple[int, int, int]] = []

    def fail(given: dict[str, str]) -> None:
        if given["question"] == "1":
            raise KeyError("x")

    rollouts = Rollouts(asking(fail), one, concurrency=1, progress=lambda *numbers: told.append(numbers))
    await run(rollouts)
    assert told == [(1, 1, 4), (2, 2, 4), (3, 2, 4), (4, 2, 4)]


# blocking


def test_run_blocks_keeps_its_loop_and_runs_sync_nodes_side_by_side() -> None:
    meeting = threading.Barrier(12, timeout=20)  # more than asyncio's own threads on a small machine
    model = policy(lambda messages: "x")

    def node(given: dict[str, str], config: RunnableConfig) -> str:
        meeting.wait()
        return model.invoke(given["question"], config).text

    with Rollouts(RunnableLambda(node), one, concurrency=12) as rollouts:
        for iteration in range(2):
            groups = rollouts.run(TASKS, group_size=6, run="r", iteration=iteration)
            assert [trace.status for group in groups for trace in group.traces] == [TraceStatus.OK] * 12
    assert not [thread.name for thread in threading.enumerate() if thread.name == "memweave-rollouts"]


async def test_run_works_inside_a_running_loop() -> None:
    with Rollouts(asking(), one) as rollouts:
        assert len(rollouts.run(TASKS, group_size=2, run="r")) == 2


def test_errors_of_a_blocking_run_reach_the_caller() -> None:
    with Rollouts(asking(), one) as rollouts, pytest.raises(GroupError):
        rollouts.run(TASKS, group_size=1, run="r")


def test_episodes_survive_kill_9_exactly_once(tmp_path: Path, root: Path) -> None:
    path, log = tmp_path / "traces.db", tmp_path / "log"
    command = [sys.executable, str(Path(__file__).with_name("rollouts_child.py")), str(path), str(log)]
    environment = {"PYTHONPATH": f"{root}:{root / 'src'}", "PYTHONSAFEPATH": "1", "HOME": str(tmp_path)}

    def child(deadly: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, str(deadly)], env=environment, capture_output=True, text=True, timeout=60)

    for deadly in (9, 18):
        assert child(deadly).returncode == -9
    with TraceStore(path) as store:
        kept = len(store.ids())
    assert 5 <= kept < 18
    ended = child(0)
    assert (ended.stdout, ended.returncode) == ("24\n", 0), ended.stderr
    with TraceStore(path) as store:
        episodes = [(trace.group, trace.replica) for trace in store.query(run="r")]
        assert sorted(episodes, key=str) == [(f"task {n}", replica) for n in range(4) for replica in range(6)]
        assert {trace.score.value for trace in store.query(group="task 3") if trace.score} == {3.0}
    assert len(log.read_text().splitlines()) - 18 == 24 - kept

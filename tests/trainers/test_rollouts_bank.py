"""Episodes of one task start from the same memory and never see each other's writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from memweave.errors import ScopeError
from memweave.graphs.memory_r1_construction import create_construction_graph
from memweave.memory_stores import Branch, MemoryBank, bank_in_use, open_bank, use_bank
from memweave.records import OpKind, ProposedOp, Scope, Turn, TurnStatus
from memweave.tracing import Trace
from memweave.trainers.rollouts import Rollouts, Task
from tests.trainers.made_up import policy

pytestmark = pytest.mark.anyio
ANNA = Scope(user="anna")
TASK = Task("dialogue", {}, context={"user": "anna"})


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryBank]:
    with open_bank(tmp_path_factory.mktemp("bank"), embedding="hashing") as opened:
        cat = ProposedOp(kind=OpKind.ADD, text="Anna has a cat.", speaker="Anna", reason="said", actor="test")
        opened.apply([cat], scope=ANNA)
        yield opened


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryBank]:
    """Return a bank that a graph is built with although its runs are about another."""
    with open_bank(tmp_path_factory.mktemp("elsewhere"), embedding="hashing") as opened:
        yield opened


def remember(messages: list[BaseMessage]) -> str:
    """Extract each turn as one fact, then add it, so that it depends on the number of memories that were shown."""
    if messages[0].text.startswith("You read one turn"):
        return json.dumps({"facts": [messages[1].text.splitlines()[-1].split(": ", 1)[1]]})
    memories, _, facts = messages[1].text.partition("New facts")
    shown = sum(line.startswith("- ") for line in memories.splitlines())
    fact = next(line[2:] for line in facts.splitlines() if line.startswith("- "))
    return json.dumps({"memory": [{"event": "ADD", "text": f"{fact} ({shown} known)", "reason": "It is new."}]})


SAID = [Turn(source_id=f"d:{n}", dialogue="d", speaker="Anna", text=f"I like tea {n}.") for n in range(3)]


def episode(graph: Any, way: str) -> Runnable[Any, Any]:
    """Return what accepts the turns and runs `graph` on them: on the event loop, or all of it in a thread."""

    def hear() -> None:
        branch = bank_in_use()
        assert branch is not None
        assert len(branch.accept(SAID, scope=ANNA)) == 3

    async def ainvoke(given: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        hear()
        return await graph.ainvoke({}, config, context=TASK.context)

    def invoke(given: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        hear()
        return graph.invoke({}, config, context=TASK.context)

    return RunnableLambda(ainvoke if way == "async nodes" else invoke)


@pytest.mark.parametrize("way", ["async nodes", "sync nodes in threads"])
async def test_eight_episodes_at_once_each_on_its_branch(way: str, bank: MemoryBank, elsewhere: MemoryBank) -> None:
    graph = create_construction_graph(elsewhere, model=policy(remember))
    found: dict[int | None, list[str]] = {}

    def reward(task: Task, output: Any, trace: Trace) -> float:
        branch = bank_in_use()
        assert isinstance(branch, Branch)
        found[trace.replica] = [memory.text for memory in branch.memories(scope=ANNA)]
        assert not branch.turns(scope=ANNA, status=TurnStatus.PENDING)
        return float(output["turns_done"])

    rollouts = Rollouts(episode(graph, way), reward, bank=bank, scope=ANNA)
    (group,) = await rollouts.arun([Task("dialogue", {})], group_size=8, run="r")

    assert [trace.score.value for trace in group.traces if trace.score] == [3.0] * 8
    alone = ["Anna has a cat.", *(f"I like tea {n}. ({n + 1} known)" for n in range(3))]
    assert found == dict.fromkeys(range(8), alone)
    assert [len(trace.memory_events) for trace in group.traces] == [3] * 8
    assert len({event.memory.id for trace in group.traces for event in trace.memory_events if event.memory}) == 24
    assert [memory.text for memory in bank.memories(scope=ANNA)] == ["Anna has a cat."]
    assert bank.turns(scope=ANNA) == []
    assert elsewhere.log(scope=ANNA) == []
    assert bank_in_use() is None


async def test_the_branch_is_of_the_tasks_user(bank: MemoryBank) -> None:
    seen = []

    async def look(given: object, **kwargs: object) -> str:
        branch = bank_in_use()
        assert isinstance(branch, Branch)
        seen.append(branch.scope)
        return ""

    tasks = [TASK, Task("b", {}, context={"user": "ben", "tenant": "t"})]
    rollouts = Rollouts(RunnableLambda(look), lambda task, output, trace: 1.0, bank=bank)
    await rollouts.arun(tasks, group_size=1, run="r", training=False)
    assert seen == [ANNA, Scope(tenant="t", user="ben")]
    with pytest.raises(ScopeError, match="task 'c' does not say whose memory"):
        await rollouts.arun([Task("c", {})], group_size=2, run="r")


def test_use_bank_ends_with_its_block(bank: MemoryBank, tmp_path: Path) -> None:
    branch, other = bank.branch(scope=ANNA), bank.branch(scope=ANNA)
    with use_bank(branch) as used:
        assert used is branch is bank_in_use()
        with use_bank(other):
            assert bank_in_use() is other
        assert bank_in_use() is branch
    assert bank_in_use() is None

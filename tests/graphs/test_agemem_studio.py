"""The episode that somebody types: what it takes, that it leaves nothing behind, and that nobody but the reward sees the gold answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from memweave.agents.memory_tools import ADD, LONG_TERM, RETRIEVE, SHORT_TERM
from memweave.errors import InputError, ScopeError, SettingsError, UsageError
from memweave.graphs import server
from memweave.graphs.agemem_reward import tool_counts
from memweave.graphs.agemem_studio import Branches, TypedTask, make_episode_graph, typed_episode_graph
from memweave.memory_stores import MemoryBank
from memweave.records import Scope
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import Score
from tests.graphs.agemem_play import Speaker, remember, stored, thread

Run = Callable[..., Any]
NATIVE = Speaker("native")
TASK: dict[str, Any] = {
    "messages": ["Anna's boss is Clara.", "Anna has a boat."],
    "distractors": ["It rained all day."],
    "question": "Who is the boss of Anna?",
}


def player(answer: str = "Clara") -> ScriptedChatModel:
    return ScriptedChatModel(
        [
            NATIVE.calls((ADD, {"content": "Anna's boss is Clara."})),
            NATIVE.answer("Noted."),
            NATIVE.answer("Nice."),
            NATIVE.answer("Indeed."),
            NATIVE.calls((RETRIEVE, {"query": "Anna's boss"})),
            NATIVE.answer(answer),
        ]
    )


def graph_of(model: ScriptedChatModel, bank: MemoryBank, scope: Scope, **options: Any) -> Any:
    graph = typed_episode_graph(model, lambda: bank, scope=scope, **options)
    graph.checkpointer = InMemorySaver()
    return graph


def test_a_typed_task_is_played_and_its_state_shows_how(bank: MemoryBank, scope: Scope, run: Run) -> None:
    graph = graph_of(player(), bank, scope)
    output = run(graph, {"task": TASK}, thread())
    assert (output["answer"], output["stored"]) == ("Clara", ["Anna's boss is Clara."])
    assert (output["reward"], output["unjudged"]) == (None, None)
    assert tool_counts(output["log"].steps) == {"Add_memory/1": 1, "Retrieve_memory/3": 1}
    state = graph.get_state(thread()).values
    assert (state["stage"], state["tools"]) == (3, [*LONG_TERM, *SHORT_TERM])
    assert 0 < state["budget"].used < state["budget"].limit == 8_192
    assert [step.stage for step in state["steps"]] == [1, 1, 1, 2, 3, 3]
    assert stored(bank, scope) == []
    assert bank.log(scope=scope) == []


def test_it_reads_the_users_memory_and_never_writes_to_it(bank: MemoryBank, scope: Scope, run: Run) -> None:
    remember(bank, scope, "Anna drinks tea.")
    model = player()
    output = run(graph_of(model, bank, scope), {"task": TASK}, thread())
    assert sorted(output["stored"]) == ["Anna drinks tea.", "Anna's boss is Clara."]
    assert "Anna drinks tea. [" in model.prompts[0]  # put beside the first message
    assert stored(bank, scope) == ["Anna drinks tea."]
    assert len(bank.log(scope=scope)) == 1


@pytest.mark.parametrize(("answer", "value"), [("clara.", 1.0), ("Boris", 0.0)])
def test_a_gold_answer_makes_a_reward_and_reaches_no_prompt(
    bank: MemoryBank, scope: Scope, run: Run, answer: str, value: float
) -> None:
    task = {**TASK, "messages": ["Anna has a boss."], "gold": "Clara", "key_phrases": ["Zebra"]}
    model = ScriptedChatModel([NATIVE.answer("Noted."), NATIVE.answer("Indeed."), NATIVE.answer(answer)])
    graph = graph_of(model, bank, scope)
    output = run(graph, {"task": task}, thread())
    assert output["reward"] == Score(value=value)
    assert output["preserved"] is False
    prompts = "\n".join(model.prompts)
    assert "Clara" not in prompts
    assert "Zebra" not in prompts
    assert len(model.calls) == 3
    assert "gold" not in output
    assert graph.get_state(thread()).values["task"].model_dump().keys() >= {"question"}
    assert "Clara" not in graph.get_state(thread()).values["task"].model_dump_json()


def test_without_an_answer_a_gold_answer_is_missed(bank: MemoryBank, scope: Scope, run: Run) -> None:
    silent = ScriptedChatModel(lambda messages: "")
    output = run(graph_of(silent, bank, scope), {"task": {**TASK, "gold": ""}}, thread())
    assert (output["answer"], output["reward"]) == (None, Score(value=0.0))


def test_a_second_episode_of_a_thread_begins_anew(bank: MemoryBank, scope: Scope, run: Run) -> None:
    graph = graph_of(player(), bank, scope)
    first = run(graph, {"task": {**TASK, "gold": "Clara"}}, thread())
    again = graph_of(player("Boris"), bank, scope)
    again.checkpointer = graph.checkpointer
    second = run(again, {"task": TASK}, thread())
    assert (first["reward"], second["reward"]) == (Score(value=1.0), None)
    assert (second["answer"], second["stored"]) == ("Boris", ["Anna's boss is Clara."])
    assert len(second["log"].steps) == len(first["log"].steps)
    assert len(second["operations"]) == 1
    assert again.get_state(thread()).values["messages"][0].text == "Anna's boss is Clara."
    assert sum(m.text == TASK["question"] for m in again.get_state(thread()).values["messages"]) == 1


def test_an_episode_goes_on_in_another_request_on_the_same_branch(bank: MemoryBank, scope: Scope, run: Run) -> None:
    """A server makes a graph for every request; Studio's breakpoints end one in the middle of an episode."""
    branches, saver, model = Branches(), InMemorySaver(), player()
    graph = graph_of(model, bank, scope, branches=branches)
    graph.checkpointer = saver
    run(graph, {"task": TASK}, thread(), interrupt_after=["act"])
    assert graph.get_state(thread()).next == ("policy",)
    other = graph_of(model, bank, scope, branches=branches)
    other.checkpointer = saver
    output = run(other, None, thread())
    assert (output["answer"], output["stored"]) == ("Clara", ["Anna's boss is Clara."])
    # A process that was started anew has no branch of it.
    lost = graph_of(player(), bank, scope)
    lost.checkpointer = saver
    fork = next(s for s in lost.get_state_history(thread()) if s.next == ("act",)).config
    with pytest.raises(UsageError, match="the memory of this episode is gone"):
        run(lost, None, fork)


def test_the_branches_of_old_episodes_are_forgotten(bank: MemoryBank, scope: Scope) -> None:
    branches = Branches(2)
    names = [branches.add(bank.branch(scope=scope)) for _ in range(3)]
    assert len(set(names)) == 3
    assert branches.get(names[1]) is not branches.get(names[2])
    with pytest.raises(UsageError, match="of the last 2 episodes"):
        branches.get(names[0])


def test_episodes_at_the_same_time_are_kept_apart(bank: MemoryBank, scope: Scope) -> None:
    def reply(messages: list[Any]) -> Any:
        mine = next(m.text for m in messages if m.text.startswith("I am"))
        if messages[-1].type == "tool":
            return NATIVE.answer("Noted.")
        return NATIVE.calls((ADD, {"content": mine}))

    graph = graph_of(ScriptedChatModel(reply), bank, scope)

    async def both() -> list[Any]:
        tasks = [{"messages": [f"I am {n}."], "question": f"I am {n}, who?"} for n in range(4)]
        return await asyncio.gather(*(graph.ainvoke({"task": t}, thread(str(n))) for n, t in enumerate(tasks)))

    for number, output in enumerate(asyncio.run(both())):
        assert all(f"I am {number}" in text for text in output["stored"])
    assert stored(bank, scope) == []


@pytest.mark.parametrize(
    ("task", "error"),
    [
        (None, "task: "),
        ("Anna", "task: "),
        ({}, "task.messages: Field required"),
        ({"messages": [], "question": "Who?"}, "task.messages: Tuple should have at least 1 item"),
        ({"messages": ["Hi"]}, "task.question: Field required"),
        ({"messages": ["Hi"], "question": "Who?", "answer": "x"}, "task.answer: Extra inputs"),
        ({"messages": ["Hi"] * 100, "question": "Who?"}, "may take 505 turns"),
    ],
)
def test_a_task_that_cannot_be_played_is_refused_with_a_form_to_follow(
    bank: MemoryBank, scope: Scope, run: Run, task: Any, error: str
) -> None:
    with pytest.raises(InputError, match=error):
        run(graph_of(player(), bank, scope), {"task": task}, thread())


def test_a_typed_record_is_a_task_too(bank: MemoryBank, scope: Scope, run: Run) -> None:
    output = run(graph_of(player(), bank, scope), {"task": TypedTask(**TASK, gold="Clara")}, thread())
    assert output["reward"] == Score(value=1.0)


def test_whose_memory_has_to_be_known(bank: MemoryBank, run: Run) -> None:
    with pytest.raises(ScopeError, match="Whose memories"):
        run(typed_episode_graph(player(), lambda: bank), {"task": TASK})


# the factory behind langgraph.json


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMWEAVE_EMBEDDING", "hashing")
    server.reset()
    yield
    server.reset()


@pytest.mark.anyio
@pytest.mark.usefixtures("own_server")
async def test_the_factory_needs_no_user_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    graph: Any = await make_episode_graph({})
    assert {"begin", "feed", "policy", "act", "judge"} <= set(graph.get_graph().nodes)
    fields = graph.get_input_jsonschema()["$defs"]["TypedTask"]["properties"]
    assert fields.keys() == {"messages", "distractors", "question", "key_phrases", "gold"}
    with pytest.raises(SettingsError, match="set MEMWEAVE_MODEL"):
        await graph.ainvoke({"task": TASK})
    monkeypatch.setattr("memweave.graphs.agemem_studio.agent_model", lambda settings: player())
    output = await (await make_episode_graph({})).ainvoke({"task": TASK})  # type: ignore[call-overload]  # as a server passes it
    assert output["answer"] == "Clara"
    bank = (await server.server()).bank()
    assert await bank.amemories(scope=Scope(user="episode")) == []

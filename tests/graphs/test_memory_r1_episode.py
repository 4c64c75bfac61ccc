from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver

from memweave.errors import InputError, ScopeError, UnavailableError
from memweave.graphs.memory_r1_episode import MAX_QUESTIONS, EpisodeGraph, create_episode_graph
from memweave.memory_stores import MemoryBank, bank_in_use, use_bank
from memweave.records import Scope, Turn, TurnStatus
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import Trace, TraceStatus
from memweave.trainers.rollouts import Rollouts, Task

Brain = Callable[..., ScriptedChatModel]
Calls = Callable[..., list[list[BaseMessage]]]
Run = Callable[..., Any]
DAY = datetime(2023, 5, 8, tzinfo=UTC)


def to(scope: Scope) -> dict[str, Any]:
    return {"context": {"user": scope.user, "tenant": scope.tenant}}


def said(*texts: str, start: int = 0) -> list[Turn]:
    return [
        Turn(source_id=f"d:{number}", dialogue="d", speaker="Anna", text=text, observed_at=DAY)
        for number, text in enumerate(texts, start)
    ]


def episode(bank: MemoryBank, model: ScriptedChatModel, **arguments: Any) -> EpisodeGraph:
    return create_episode_graph(bank, extractor=model, manager=model, answerer=model, **arguments)


def echo(messages: list[BaseMessage]) -> str:
    """Reply with the question, so that an answer tells what it answers."""
    return f"**Answer:** {messages[1].text.rpartition('Question: ')[2]}"


def texts(bank: MemoryBank, scope: Scope) -> list[str]:
    return [memory.text for memory in bank.memories(scope=scope)]


def test_what_is_said_is_remembered_before_anything_is_asked(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run, calls: Calls
) -> None:
    model = brain(answerer=echo)
    given = {"turns": said("I have a cat.", "I have a dog."), "questions": ["Who purrs?", "Who barks?"]}
    output = run(episode(bank, model), given, **to(scope))
    assert output == {"answers": ["Who purrs?", "Who barks?"], "turns_done": 2, "failed": [], "stopped": None}
    assert texts(bank, scope) == ["I have a cat.", "I have a dog."]
    prompts = [call[1].text for call in calls(model, "answerer")]
    assert len(prompts) == 2
    for prompt in prompts:
        assert "I have a cat." in prompt
        assert "I have a dog." in prompt


def test_turns_alone_ask_nothing(bank: MemoryBank, scope: Scope, brain: Brain, run: Run, calls: Calls) -> None:
    model = brain()
    output = run(episode(bank, model), {"turns": said("I have a cat.")}, **to(scope))
    assert (output["answers"], output["turns_done"]) == ([], 1)
    assert texts(bank, scope) == ["I have a cat."]
    assert calls(model, "answerer") == []


def test_questions_alone_write_nothing(bank: MemoryBank, scope: Scope, brain: Brain, run: Run, calls: Calls) -> None:
    run(episode(bank, brain()), {"turns": said("I have a cat.")}, **to(scope))
    before = bank.log(scope=scope)
    model = brain(answerer=echo)
    output = run(episode(bank, model), {"turns": [], "questions": ["Who purrs?"]}, **to(scope))
    assert output == {"answers": ["Who purrs?"], "turns_done": 0, "failed": [], "stopped": None}
    assert "I have a cat." in calls(model, "answerer")[0][1].text
    assert calls(model, "extractor") == calls(model, "manager") == []
    assert bank.log(scope=scope) == before


@pytest.mark.parametrize("given", [{}, {"turns": [], "questions": []}])
def test_an_empty_episode_is_refused(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run, given: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"The episode is empty. Pass \{'turns'"):
        run(episode(bank, brain()), given, **to(scope))


def test_too_many_questions_are_refused_before_anything_is_stored(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run
) -> None:
    given = {"turns": said("I have a cat."), "questions": ["Who?"] * (MAX_QUESTIONS + 1)}
    with pytest.raises(InputError, match=r"1001 questions in one episode; at most 1000 are answered. Split it"):
        run(episode(bank, brain()), given, **to(scope))
    assert bank.turns(scope=scope) == []


def test_an_episode_of_nobody_is_refused(bank: MemoryBank, brain: Brain, run: Run) -> None:
    with pytest.raises(ScopeError):
        run(episode(bank, brain()), {"turns": said("I have a cat."), "questions": []}, context={})


def test_answers_stand_where_their_questions_stood_whatever_failed(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run
) -> None:
    def some(messages: list[BaseMessage]) -> str:
        return "**Answer:** " if "number 3?" in messages[1].text else echo(messages)

    asked = [f"Which is number {number}?" for number in range(12)]
    output = run(episode(bank, brain(answerer=some), max_attempts=1), {"questions": asked}, **to(scope))
    assert output["answers"] == [*asked[:3], None, *asked[4:]]


def test_the_limits_of_an_episode_are_those_of_its_graphs(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run, calls: Calls
) -> None:
    model = brain(answerer=["**Answer:** ", "**Answer:** tea"], manager=["no", "no"])
    graph = episode(bank, model, max_attempts=2, top_k=1, per_participant=1)
    run(graph, {"turns": said("I have a cat.")}, **to(scope))
    assert len(calls(model, "manager")) == 2
    patient = brain(answerer=["**Answer:** ", "**Answer:** tea"])
    graph = episode(bank, patient, max_attempts=2, top_k=1, per_participant=1)
    given = {"turns": said("I have a cow.", "I have a dog.", "I have a bee.", start=1), "questions": ["Who?"]}
    assert run(graph, given, **to(scope))["answers"] == ["tea"]
    assert len(calls(patient, "answerer")) == 2
    assert calls(patient, "answerer")[0][1].text.count("I have a ") == 1  # one memory per participant
    assert calls(patient, "manager")[-1][1].text.partition("New facts")[0].count("I have a ") == 1  # one per fact


def test_a_second_run_on_the_same_thread_begins_anew(bank: MemoryBank, scope: Scope, brain: Brain, run: Run) -> None:
    graph = episode(bank, brain(answerer=echo, manager=["no", add_one("cat"), add_one("dog")]), max_attempts=1)
    graph.checkpointer = InMemorySaver()
    thread = RunnableConfig(configurable={"thread_id": "t"})
    first = run(graph, {"turns": said("I have a cat."), "questions": ["a?", "b?"]}, thread, **to(scope))
    assert (first["answers"], first["turns_done"], len(first["failed"])) == (["a?", "b?"], 0, 1)
    again = run(graph, {"turns": said("I have a dog.", start=1), "questions": ["c?"]}, thread, **to(scope))
    assert (again["answers"], again["turns_done"], again["failed"]) == (["c?"], 2, [])  # what had failed is tried again
    assert [one.answer for one in graph.get_state(thread).values["answered"]] == ["c?"]
    assert sorted(texts(bank, scope)) == ["cat", "dog"]


def add_one(text: str) -> str:
    return json.dumps({"memory": [{"event": "ADD", "text": text, "reason": "new"}]})


def test_turns_that_failed_are_told_and_the_rest_is_asked_all_the_same(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run
) -> None:
    model = brain(manager=["I will.", add_one("dog")], answerer=echo)
    given = {"turns": said("I have a cat.", "I have a dog."), "questions": ["Who?"]}
    output = run(episode(bank, model, max_attempts=1), given, **to(scope))
    (failed,) = output["failed"]
    assert (failed.source_id, failed.dialogue) == ("d:0", "d")
    assert "prose without JSON" in failed.error
    assert (output["turns_done"], output["stopped"], output["answers"]) == (1, None, ["Who?"])
    assert [turn.status for turn in bank.turns(scope=scope)] == [TurnStatus.PENDING, TurnStatus.DONE]


@pytest.mark.parametrize("questions", [["Who?"], []])
def test_half_a_conversation_is_no_episode(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run, calls: Calls, questions: list[str]
) -> None:
    model = brain(manager=[add_one("cat"), ConnectionError("refused")])
    given = {"turns": said("I have a cat.", "I have a dog."), "questions": questions}
    with pytest.raises(UnavailableError, match="ended before all turns were remembered: .*cannot be reached"):
        run(episode(bank, model), given, **to(scope))
    assert calls(model, "answerer") == []


def test_an_answerer_that_is_not_there_is_an_error(bank: MemoryBank, scope: Scope, brain: Brain, run: Run) -> None:
    with pytest.raises(UnavailableError, match="cannot be reached"):
        run(episode(bank, brain(answerer=ConnectionError("refused"))), {"questions": ["Who?"]}, **to(scope))


def test_nothing_of_a_branch_reaches_the_bank(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run, calls: Calls
) -> None:
    run(episode(bank, brain()), {"turns": said("I have a cat.")}, **to(scope))
    before = bank.log(scope=scope), bank.turns(scope=scope)
    model = brain(answerer=echo)
    graph = episode(bank, model)
    with use_bank(bank.branch(scope=scope)) as branch:
        output = run(graph, {"turns": said("I have a dog.", start=1), "questions": ["Who?"]}, **to(scope))
        assert [memory.text for memory in branch.memories(scope=scope)] == ["I have a cat.", "I have a dog."]
    assert output["answers"] == ["Who?"]
    assert "I have a dog." in calls(model, "answerer")[0][1].text
    assert (bank.log(scope=scope), bank.turns(scope=scope)) == before


# in rollouts


def tasks(scope: Scope, *users: str) -> Sequence[Task]:
    return [
        Task(
            id=user,
            input={"turns": said("I have a dog.", start=1), "questions": ["Who?"]},
            context={"user": user, "tenant": scope.tenant},
        )
        for user in users
    ]


def test_siblings_of_a_group_do_not_see_what_the_others_write(bank: MemoryBank, scope: Scope, brain: Brain) -> None:
    users = [Scope(tenant=scope.tenant, user=user) for user in ("anna", "ben")]
    for one in users:
        run_once = episode(bank, brain()).invoke({"turns": said(f"I have a cat of {one.user}.")}, **to(one))
        assert run_once["turns_done"] == 1
    before = [bank.log(scope=one) for one in users]
    model = brain(
        answerer=lambda messages: f"**Answer:** {messages[1].text.count(' [')} of {messages[1].text.count('dog')}"
    )
    seen: list[list[str]] = []

    def reward(task: Task, output: Any, trace: Trace) -> float:
        own = bank_in_use()
        assert own is not None
        seen.append([memory.text for memory in own.memories(scope=Scope(tenant=scope.tenant, user=task.id))])
        return float(output["answers"] == ["2 of 1"])  # its own cat and dog, one dog only

    with Rollouts(episode(bank, model), reward, bank=bank, concurrency=8) as rollouts:
        groups = rollouts.run(tasks(scope, "anna", "ben"), group_size=4, run="r", training=False)
    traces = [trace for group in groups for trace in group.traces]
    assert [trace.score and trace.score.value for trace in traces] == [1.0] * 8
    assert (
        sorted(seen)
        == [["I have a cat of anna.", "I have a dog."]] * 4 + [["I have a cat of ben.", "I have a dog."]] * 4
    )
    assert [bank.log(scope=one) for one in users] == before


def test_an_episode_whose_manager_is_not_there_has_no_score(bank: MemoryBank, scope: Scope, brain: Brain) -> None:
    gone = [add_one("dog"), ConnectionError("refused")]

    def manage(messages: list[BaseMessage]) -> Any:
        return gone.pop(0) if gone else ConnectionError("refused")

    with Rollouts(episode(bank, brain(manager=manage)), lambda *_: 1.0, bank=bank, concurrency=1) as rollouts:
        (group,) = rollouts.run(tasks(scope, "anna"), group_size=3, run="r", training=False)
    assert [trace.status for trace in group.traces] == [TraceStatus.OK] + [TraceStatus.UNAVAILABLE] * 2
    assert [trace.score and trace.score.value for trace in group.traces] == [1.0, None, None]

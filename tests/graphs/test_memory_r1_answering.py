from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.memory import InMemorySaver

from memweave.errors import InputError, ScopeError, UnavailableError
from memweave.graphs.memory_r1_answering import MAX_PARTICIPANTS, create_answering_graph
from memweave.memory_stores import MemoryBank
from memweave.records import OpKind, ProposedOp, Scope
from memweave.testing.models import ScriptedChatModel

Brain = Callable[..., ScriptedChatModel]
Run = Callable[..., Any]
Calls = Callable[..., list[list[BaseMessage]]]
START = datetime(2023, 5, 8, tzinfo=UTC)


def to(scope: Scope, **prompts: str) -> dict[str, Any]:
    return {"context": {"user": scope.user, "tenant": scope.tenant, **prompts}}


def add(bank: MemoryBank, scope: Scope, count: int, speaker: str | None) -> None:
    ops = [
        ProposedOp(
            kind=OpKind.ADD,
            text=f"{speaker} drinks tea, note {i}",
            reason="r",
            actor="a",
            speaker=speaker,
            observed_at=START - timedelta(days=i),
        )
        for i in range(count)
    ]
    bank.apply(ops, scope=scope)


def test_thirty_memories_per_participant_in_blocks_oldest_first(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run, calls: Calls
) -> None:
    add(bank, scope, 33, "Ben")
    add(bank, scope, 40, "Anna")
    add(bank, scope, 35, None)
    add(bank, scope.model_copy(update={"user": "ben"}), 5, "Anna")
    model = brain(answerer="- Anna ... [31]\n- ... [0]\n**Answer:** tea")
    output = run(create_answering_graph(bank, model=model), {"question": "Who drinks tea?"}, **to(scope))

    shown = output["memories"]
    assert [memory.speaker for memory in shown] == ["Anna"] * 30 + ["Ben"] * 30 + [None] * 30
    for block in (shown[:30], shown[30:60], shown[60:]):
        assert block == sorted(block, key=lambda memory: memory.observed_at)
    assert {memory.scope for memory in shown} == {scope}
    assert len({memory.id for memory in shown}) == 90
    assert (output["answer"], output["error"]) == ("tea", None)
    assert output["used"] == [shown[31], shown[0]]
    prompt = calls(model, "answerer")[0][1].text
    assert prompt.startswith(f"Memories of Anna:\n- {shown[0].observed_at:%Y-%m-%d}: {shown[0].text} [0]\n")
    for heading, first in (("Memories of Ben:", 30), ("Memories:", 60)):
        assert f"\n{heading}\n- {shown[first].observed_at:%Y-%m-%d}: {shown[first].text} [{first}]\n" in prompt
    assert prompt.endswith("Question: Who drinks tea?")


def test_many_participants_share_the_last_retrieval(bank: MemoryBank, scope: Scope, brain: Brain, run: Run) -> None:
    for number in range(MAX_PARTICIPANTS + 3):
        add(bank, scope, 20 - number, f"P{number}")
    output = run(create_answering_graph(bank, model=brain(), per_participant=2), {"question": "tea?"}, **to(scope))
    owners = [memory.speaker for memory in output["memories"]]
    assert owners[: 2 * MAX_PARTICIPANTS : 2] == [f"P{number}" for number in range(MAX_PARTICIPANTS)]
    assert len(owners) <= 2 * MAX_PARTICIPANTS + 2
    assert len(output["memories"]) == len({memory.id for memory in output["memories"]})


def test_an_empty_bank_is_asked_all_the_same(bank: MemoryBank, scope: Scope, brain: Brain, run: Run) -> None:
    output = run(create_answering_graph(bank, model=brain()), {"question": "Who?"}, **to(scope))
    assert (output["answer"], output["memories"], output["used"]) == ("tea", [], [])


def test_the_time_of_the_question_and_another_prompt_reach_the_model(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run, calls: Calls
) -> None:
    model = brain()
    own = to(scope, answerer_prompt="You answer in French.")
    run(create_answering_graph(bank, model=model), {"question": "Who?", "asked_at": START}, **own)
    system, user = calls(model, "answerer")[0]
    assert system.text == "You answer in French."
    assert user.text.endswith("Question (asked on 2023-05-08): Who?")


def test_a_reply_without_an_answer_is_asked_for_again(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run, calls: Calls
) -> None:
    model = brain(answerer=["", "**Answer:** tea"])
    output = run(create_answering_graph(bank, model=model), {"question": "Who?"}, **to(scope))
    assert (output["answer"], output["error"]) == ("tea", None)
    assert "The reply is empty" in calls(model, "answerer")[1][-1].text


def test_no_answer_is_none_and_says_why(bank: MemoryBank, scope: Scope, brain: Brain, run: Run) -> None:
    graph = create_answering_graph(bank, model=brain(answerer="**Answer:**"), max_attempts=2)
    output = run(graph, {"question": "Who?"}, **to(scope))
    assert (output["answer"], output["used"]) == (None, [])
    assert "nothing after **Answer:**" in output["error"]


def test_an_unreachable_model_is_an_error(bank: MemoryBank, scope: Scope, brain: Brain, run: Run) -> None:
    graph = create_answering_graph(bank, model=brain(answerer=ConnectionError("refused")))
    with pytest.raises(UnavailableError, match="cannot be reached: refused"):
        run(graph, {"question": "Who?"}, **to(scope))


@pytest.mark.parametrize("question", [{}, {"question": " \n"}])
def test_an_empty_question_is_refused(
    question: dict[str, str], bank: MemoryBank, scope: Scope, brain: Brain, run: Run
) -> None:
    with pytest.raises(InputError, match="The question is empty"):
        run(create_answering_graph(bank, model=brain()), question, **to(scope))


def test_a_question_without_a_user_is_refused(bank: MemoryBank, brain: Brain, run: Run) -> None:
    with pytest.raises(ScopeError, match="Whose memories"):
        run(create_answering_graph(bank, model=brain()), {"question": "Who?"})


def test_a_second_question_on_a_thread_starts_afresh(bank: MemoryBank, scope: Scope, brain: Brain, run: Run) -> None:
    add(bank, scope, 3, "Anna")
    graph = create_answering_graph(bank, model=brain(), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    first = run(graph, {"question": "tea?"}, config, **to(scope))
    second = run(graph, {"question": "tea?"}, config, **to(scope))
    assert len(first["memories"]) == 3
    assert second["memories"] == first["memories"]

"""What an answer is worth: exact match, judge, or the caller's function; nothing when nobody can tell."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from memweave.errors import RewardError, SettingsError, UnavailableError
from memweave.graphs.memento_state import QueryRecord
from memweave.testing.models import ScriptedChatModel
from tests.graphs.memento_play import Run, agent, asking, final, plan


def judge(*labels: str) -> ScriptedChatModel:
    return ScriptedChatModel(
        [f'{{"reason": "because", "label": "{label}"}}' if label.isupper() else label for label in labels]
    )


@pytest.mark.parametrize(
    ("answer", "gold", "reward"),
    [
        ("The Oslo.", "oslo", 1.0),
        ("Rome", "oslo", 0.0),
        ("Rome", ["Oslo", "Rome"], 1.0),
        ("Rome", None, None),
        ("Rome", [], None),
    ],
)
def test_with_a_right_answer_it_is_exact_match(run: Run, answer: str, gold: Any, reward: float | None) -> None:
    out = run(agent([final(answer)]), asking(ground_truth=gold))
    assert (out["reward"], out["record"].reward) == (reward, reward)
    assert out["record"].verdict.by == (None if reward is None else "exact_match")


@pytest.mark.parametrize(("label", "reward"), [("CORRECT", 1.0), ("WRONG", 0.0)])
def test_a_judge_decides_with_its_reason(run: Run, label: str, reward: float) -> None:
    model = judge(label)
    out = run(
        agent([final("in Norway's capital")], judge=model), asking("Where?", ground_truth=["Oslo", "Oslo, Norway"])
    )
    verdict = out["record"].verdict
    assert (out["reward"], verdict.by, verdict.reason) == (reward, "judge", "because")
    assert "any one of these: Oslo; Oslo, Norway" in model.prompts[0]


def test_a_judge_is_not_asked_without_a_right_answer_or_without_an_answer(run: Run) -> None:
    assert run(agent([final("x")], judge=judge()), asking())["reward"] is None
    assert run(agent(["?", "?"], judge=judge()), asking(ground_truth="x"))["reward"] == 0.0


def test_an_undecided_judge_is_asked_again_and_is_not_a_wrong(run: Run) -> None:
    out = run(agent([final("x")], judge=judge("hm", "CORRECT")), asking(ground_truth="y"))
    assert out["reward"] == 1.0
    out = run(agent([final("x")], judge=judge("hm", "hm")), asking(ground_truth="y"))
    assert out["reward"] is None
    assert "gave no verdict" in out["record"].verdict.reason


def test_a_judge_that_is_away_raises(run: Run) -> None:
    with pytest.raises(UnavailableError):
        run(agent([final("x")], judge=ScriptedChatModel([ConnectionError("refused")])), asking(ground_truth="y"))


def test_a_function_of_the_callers_decides_over_all_else(run: Run) -> None:
    seen: list[QueryRecord] = []

    def half(record: QueryRecord) -> float:
        seen.append(record)
        return 0.5

    out = run(agent([plan("a"), final("x")], evaluate=half, judge=judge()), asking(ground_truth="y"))
    assert (out["reward"], out["record"].verdict.by) == (0.5, "evaluate")
    assert (seen[0].answer, seen[0].plan, len(seen[0].subtasks), seen[0].reward) == ("x", plan("a"), 1, None)


def test_it_may_say_that_it_cannot_tell(run: Run) -> None:
    assert run(agent([final("x")], evaluate=lambda record: None), asking(ground_truth="x"))["reward"] is None


@pytest.mark.parametrize("value", [2.0, -0.1, float("nan"), "1", [1.0]])
def test_what_is_no_reward_is_refused(run: Run, value: Any) -> None:
    with pytest.raises(RewardError, match="give a number from 0 to 1"):
        run(agent([final("x")], evaluate=lambda record: value), asking())


def test_one_that_hangs_is_given_up(run: Run) -> None:
    let_go = threading.Event()
    try:
        with pytest.raises(UnavailableError, match=r"evaluate did not return within 0\.05 s"):
            run(agent([final("x")], evaluate=lambda record: float(let_go.wait(60)), timeout=0.05), asking())
    finally:
        let_go.set()


@pytest.mark.anyio
async def test_a_coroutine_function_needs_ainvoke() -> None:
    async def late(record: QueryRecord) -> float:
        return 1.0

    graph = agent([final("x"), final("x")], evaluate=late)
    assert (await graph.ainvoke(asking()))["reward"] == 1.0
    with pytest.raises(SettingsError, match="ainvoke"):
        graph.invoke(asking())

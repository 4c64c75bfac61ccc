"""Streams of PlanWorld through the real graph, planned by a script: what the arms show, keep and learn."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from uuid import UUID

import pytest
from langchain_core.messages import HumanMessage

from memweave.agents.planner import parse_plan_reply
from memweave.errors import InputError
from memweave.recipes.memento.arms import ARMS
from memweave.recipes.memento.executing import FAILED, PlanWorldExecutor
from memweave.recipes.memento.lessons import row, said
from memweave.recipes.memento.script import ScriptedPlanner
from memweave.recipes.memento.stream import StreamResult, StreamSettings, play
from memweave.recipes.memento.teaching import Shown, arranged, plan_reply, shown, situation
from memweave.worlds.planworld import LEXICON, PlanWorld, PlanWorldSettings

SMALL = StreamSettings(
    iterations=3, tasks=40, split="val", world=PlanWorldSettings(families=1, rules=4, plain=1, p_fail=0.0)
)


@cache  # the streams are the same every time, which the first test shows
def played(arm: str, **changed: object) -> StreamResult:
    settings = replace(SMALL, arm=arm, **changed)  # type: ignore[arg-type]
    return play(settings, lambda seed: ScriptedPlanner(seed=seed))


def solved(result: StreamResult) -> list[float]:
    return [marks.count("1") / len(marks) for marks in result.right]


def test_a_stream_is_the_same_every_time_and_another_with_another_seed() -> None:
    assert played("cosine") == played.__wrapped__("cosine")
    assert played("cosine").right != played("cosine", seed=1).right


def test_memory_helps_and_the_oracle_helps_most() -> None:
    none, cosine, oracle = (solved(played(arm)) for arm in ("none", "cosine", "oracle"))
    assert cosine[-1] > none[-1] + 0.2
    assert oracle[-1] >= cosine[-1]
    assert oracle[-1] > 0.9


def test_what_is_kept_and_shown_by_arm() -> None:
    none, cosine, successes, oracle = (played(arm) for arm in ("none", "cosine", "successes", "oracle"))
    assert none.cases == cosine.cases == 120
    assert successes.cases == sum(marks.count("1") for marks in successes.right) < 120
    assert oracle.shown[1:] == (1.0, 1.0)
    assert none.shown == (0.0, 0.0, 0.0)
    assert set(cosine.statuses) == {"answered"}


def test_the_first_batch_is_shown_nothing() -> None:
    """All tasks of a batch read before any of them is written."""
    first = {arm: played(arm, iterations=1, tasks=32).right for arm in ("none", "cosine", "random-k", "oracle")}
    assert len(set(first.values())) == 1


def test_a_second_try_counts_and_is_not_the_first_one_again() -> None:
    none, retries = played("none"), played("retries")
    for once, twice in zip(none.right, retries.right, strict=True):
        assert all(two >= one for one, two in zip(once, twice, strict=True))
    assert sum(solved(retries)) > sum(solved(none))


def test_the_q_function_is_learned_on_the_way_and_shuffled_rewards_are_dealt_out() -> None:
    pytest.importorskip("torch")
    learned, shuffled = played("neural-q", unseen=8), played("shuffled")
    assert len(learned.losses) == 2  # of 88 queries, as the first 32 were shown nothing
    assert all(loss > 0 for loss in learned.losses)
    assert shuffled.losses != learned.losses
    assert shuffled.cases == learned.cases == 120
    assert len(learned.unseen) == 8


def test_repeated_tasks_have_a_cumulative_score() -> None:
    result = played("none", mode="repeated")
    assert len(set(result.right)) > 1  # sampled anew each time
    counts = [marks.count("1") for marks in result.cumulative]
    assert counts == sorted(counts)
    assert result.cumulative[0] == result.right[0]
    assert played("none").cumulative == ()


def test_no_cases_can_be_asked_for() -> None:
    assert played("cosine", k=0).right == played("none").right


@pytest.mark.parametrize(
    "change", [{"arm": "best"}, {"iterations": 0}, {"tasks": 0}, {"at_once": 0}, {"k": -1}, {"unseen": -1}]
)
def test_settings_that_cannot_be_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        replace(SMALL, **change)  # type: ignore[arg-type]


def test_every_arm_is_documented() -> None:
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "planworld.md").read_text()
    assert all(f"| `{arm}` |" in page for arm in ARMS)


# the teacher, the script, the executor


def test_a_lesson_is_what_the_graph_shows_and_its_reply_can_be_read() -> None:
    rng = random.Random(0)
    for number in range(9):
        given = situation(rng, number)
        messages = said(given)
        assert messages[0] == ("user", given.task.text)
        assert len(messages) == 1 + bool(number)
        assert len(given.cases) == number
        turn = parse_plan_reply(plan_reply(given), max_subtasks=9)
        assert turn.plan is not None
        assert tuple(step.description for step in turn.plan.subtasks) == given.task.plan
        first, last = row(given)
        assert parse_plan_reply(last.reply, max_subtasks=9).answer == given.task.answer
        assert last.said[: len(first.said)] == first.said
        assert row(given, whole=False) == [first]


def test_the_teacher_goes_by_the_first_case_that_shows_the_plan() -> None:
    world, rng = PlanWorld(PlanWorldSettings(families=1, p_fail=0.0)), random.Random(1)
    family = world.family(rng, "f", list(LEXICON))
    task = world.draw(rng, "t", family, rule=3)
    fitting: list[Shown] = []
    other: list[Shown] = []
    while len(fitting) < 2 or len(other) < 2:
        case = shown(rng, world, family, task, 0.5)
        if case.reward == 1.0:
            (fitting if case.task.rule == 3 else other).append(case)
    given = arranged(task, [other[0], fitting[0], other[1], fitting[1]])
    assert given.by == 1
    assert plan_reply(given).startswith("<think>as [2]</think>")
    assert plan_reply(arranged(task, other[:2])).startswith("<think>new</think>")
    plain = world.draw(rng, "p", family, rule=0)
    assert plan_reply(arranged(plain, [])).startswith("<think>known</think>")


def test_the_script_knows_no_more_than_it_is_shown() -> None:
    rng, script = random.Random(2), ScriptedPlanner(seed=0)
    for _ in range(200):
        given = situation(rng, 4, 1.0)
        reply = script.invoke([HumanMessage(text) for _, text in said(given)]).text
        if given.task.plain:
            assert reply == plan_reply(given)
        elif reply.startswith("<think>as"):
            number = int(reply.split("[")[1].split("]")[0])
            assert given.cases[number - 1].reward == 1.0
    guesses = {ScriptedPlanner(seed=s).invoke("Anna, 3: bada bada bada").text for s in range(40)}
    assert len(guesses) > 6


def test_the_executor_works_on_the_last_task_and_fails_now_and_then() -> None:
    asked = [HumanMessage("Anna, 3: x"), HumanMessage("Task 1 result: 40"), HumanMessage("Task 2: add 2")]
    assert PlanWorldExecutor(p_fail=0.0).invoke(asked).text == "42"
    replies = [str(PlanWorldExecutor(p_fail=0.3, seed=s).invoke(asked).text) for s in range(300)]
    assert 0.2 < replies.count(FAILED) / 300 < 0.4
    assert PlanWorldExecutor(p_fail=0.0).invoke([HumanMessage("Task 1: dance")]).text.startswith(f"{FAILED} ")
    assert PlanWorldExecutor(p_fail=0.0).invoke("hello").text == FAILED


def test_the_oracle_shows_only_what_fits() -> None:
    import numpy as np

    from memweave.memory_stores.case_retrieval import Candidates, CaseQuery

    ids = [UUID(int=i) for i in range(3)]
    candidates = Candidates(ids, np.eye(3, dtype=np.float32), np.ones(3), np.array([0.1, 0.9, 0.5]))
    oracle = ARMS["oracle"].policy(lambda text, case: case != ids[1])
    chosen = oracle.choose(CaseQuery("q", np.ones(3, dtype=np.float32)), candidates, 4, np.random.default_rng(0))
    assert [choice.index for choice in chosen] == [2, 0]

"""PlanWorld: families, tasks, steps, and what its splits keep apart."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memweave.errors import InputError
from memweave.worlds.planworld import (
    LEXICON,
    NAMES,
    PER_POOL,
    PLAIN,
    SKELETONS,
    Family,
    PlanTask,
    PlanWorld,
    PlanWorldSettings,
    StepError,
    carried_out,
    directory,
    plan_of,
    read_text,
    run_step,
    score,
)

WORLD = PlanWorld()


def words_of(task: PlanTask) -> list[str]:
    return task.text.split(": ")[1].split()


def vocabulary(families: tuple[Family, ...]) -> set[str]:
    return {
        word
        for family in families
        for pool in (*(rule.words for rule in family.rules if not rule.plain), *family.topics)
        for word in pool
    }


def test_tasks_come_back_the_same_and_every_iteration_is_fresh() -> None:
    assert WORLD.tasks("test", 20, 1, iteration=2) == WORLD.tasks("test", 20, 1, iteration=2)
    ids = [task.id for i in range(3) for task in WORLD.tasks("test", 20, 1, iteration=i)]
    assert len(set(ids)) == 60
    assert WORLD.tasks("test", 5, 1) == WORLD.tasks("test", 20, 1)[:5]
    families = {family.name for family in WORLD.families("test", 1)}
    assert {task.family for i in range(3) for task in WORLD.tasks("test", 60, 1, iteration=i)} == families


def test_families_share_no_words_and_unseen_ones_take_the_other_half() -> None:
    for split in ("val", "test"):
        families = WORLD.families(split, 3)
        assert len(vocabulary(families)) == 4 * (4 + 6) * PER_POOL
        assert not vocabulary(families) & vocabulary(WORLD.families("ood", 3))
    assert vocabulary(WORLD.families("test", 0)) <= set(LEXICON[:100])
    assert len(set(LEXICON)) == len(LEXICON) == 200


def test_the_rules_of_a_family_need_different_plans_and_plain_ones_mean_the_same_everywhere() -> None:
    for seed in range(20):
        for family in WORLD.families("test", seed):
            skeletons = [rule.skeleton for rule in family.rules]
            assert len(set(skeletons)) == len(skeletons) == 6
            assert [rule.plain for rule in family.rules] == [True, True, False, False, False, False]
            assert all(rule.words == PLAIN[rule.skeleton] for rule in family.rules if rule.plain)


@pytest.mark.parametrize(("alignment", "cues"), [(1.0, 10), (0.7, 7), (0.4, 4), (0.1, 1), (0.0, 0)])
def test_the_share_of_words_of_the_rule_is_the_alignment(alignment: float, cues: int) -> None:
    world = PlanWorld(PlanWorldSettings(alignment=alignment))
    families = {family.name: family for family in world.families("test", 0)}
    for task in world.tasks("test", 50):
        family = families[task.family]
        rule, topic = family.rules[task.rule], family.topics[task.topic]
        assert task.plain == rule.plain
        counted = Counter("cue" if word in rule.words else "topic" for word in words_of(task))
        assert counted["cue"] == cues
        said = words_of(task)
        assert all(word in topic for word in said[: 10 - cues])
        assert all(word in rule.words for word in said[10 - cues :])


def test_topic_and_rule_are_independent() -> None:
    tasks = WORLD.tasks("test", 3_000)
    pairs = Counter((task.rule, task.topic) for task in tasks)
    assert len(pairs) == 36
    assert max(pairs.values()) < 1.6 * len(tasks) / 36  # about five deviations


def test_only_the_right_plan_has_the_right_answer() -> None:
    for task in WORLD.tasks("test", 200):
        name, number = read_text(task.text) or ("", 0)
        assert name in NAMES
        right = [i for i in range(len(SKELETONS)) if carried_out(plan_of(i, name, number)) == task.answer]
        assert len(right) == 1
        assert plan_of(right[0], name, number) == task.plan
        assert score(task, f" {task.answer}. ") == 1.0
        assert score(task, None) == score(task, "nobody") == 0.0


def test_steps_by_hand() -> None:
    anna = directory()["Anna"]
    assert run_step("look up the boss of Anna", None) == anna.boss
    assert run_step("then the age.", "Anna") == str(anna.age)
    team = [name for name, one in directory().items() if one.team == anna.team]
    assert run_step("find all with this team", anna.team) == ", ".join(team)
    assert run_step("count them", "Anna, Boris") == "2"
    assert run_step("add 7", "35") == "42"
    older = max(("Anna", "Boris"), key=lambda name: directory()[name].age)
    assert run_step("take the oldest", "Anna, Boris") == older
    assert run_step("take the youngest", "Anna, Boris") == ({"Anna", "Boris"} - {older}).pop()
    assert run_step("add up the ages", "Anna, Boris") == str(anna.age + directory()["Boris"].age)


@pytest.mark.parametrize(
    ("step", "before"),
    [
        ("then the city", None), ("then the salary", "Anna"), ("then the city", "Nobody"), ("look up the boss of Nobody", None),
        ("add 3", "Anna"), ("count them", "42"), ("find all with this city", "Atlantis"), ("dance", "Anna"), ("", None),
    ],
)  # fmt: skip
def test_a_step_that_cannot_be_carried_out_says_why(step: str, before: str | None) -> None:
    with pytest.raises(StepError, match=r"\w"):
        run_step(step, before)


@given(st.text(max_size=60), st.one_of(st.none(), st.text(max_size=40)))
def test_any_step_gives_a_result_or_says_why(step: str, before: str | None) -> None:
    try:
        said = run_step(step, before)
    except StepError as error:
        said = str(error)
    assert said


@pytest.mark.parametrize(
    "change",
    [{"alignment": 1.1}, {"p_fail": -0.1}, {"rules": 13}, {"plain": 7}, {"families": 0}, {"topics": 0}, {"words": 0}, {"families": 11}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError):
        replace(PlanWorldSettings(), **change)  # type: ignore[arg-type]


def test_a_split_or_a_number_that_does_not_exist_is_named() -> None:
    with pytest.raises(InputError, match=r"'dev'.*train, val, test, ood"):
        WORLD.tasks("dev", 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="-1 tasks"):
        WORLD.tasks("test", -1)


def test_a_rule_and_a_topic_can_be_asked_for() -> None:
    family = WORLD.families("test")[0]
    task = WORLD.draw(random.Random(0), "one", family, 3, 5)
    assert (task.rule, task.topic) == (3, 5)

"""FSM-QA: questions, what its knowledge base tells, and what its splits keep apart."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memweave.errors import InputError
from memweave.worlds.fsmqa import (
    FSMQA,
    KINDS,
    LEXICON,
    NAMES,
    NOTHING,
    OTHER_MIXTURE,
    OTHER_NAMES,
    PER_POOL,
    POOLS,
    RANK,
    RELATIONS,
    SIZES,
    SPLITS,
    TOPICS,
    FSMQASettings,
    FSMQATask,
    Kind,
    KnowledgeBase,
    fact,
    score,
    search_tool,
)

WORLD = FSMQA()
CERTAIN = FSMQASettings(p_miss=0.0, p_noise=0.0, p_outdated=1.0)


def looked_up(task: FSMQATask, relation: str, person: str, settings: FSMQASettings = CERTAIN) -> str | None:
    """Return what a search finds on exactly what was asked."""
    found = KnowledgeBase(task, settings).search(relation, person)
    lines = re.findall(rf"^{person} {relation}: (\w+) \[\d\]$", found, re.MULTILINE)
    assert len(lines) <= 1
    return lines[0] if lines else None


def by_kind(settings: FSMQASettings, kind: Kind, number: int = 300) -> list[FSMQATask]:
    mixture = tuple(float(each is kind) for each in KINDS)
    return FSMQA(replace(settings, mixture=mixture)).tasks("rl", number)


def test_questions_come_back_the_same_and_differ_between_seeds() -> None:
    for split in SPLITS:
        assert WORLD.tasks(split, 20, 1) == WORLD.tasks(split, 20, 1)
        assert WORLD.tasks(split, 5, 1) == WORLD.tasks(split, 20, 1)[:5]
        assert not {task.text for task in WORLD.tasks(split, 20, 1)} & {task.text for task in WORLD.tasks(split, 20, 2)}
    assert len(WORLD.tasks("build")) == SIZES["build"]


def test_no_question_of_a_test_is_asked_where_something_is_learned() -> None:
    def asked(split: Any) -> set[tuple[Any, ...]]:
        return {(task.people, task.relations[:2]) for seed in (0, 1) for task in WORLD.tasks(split, 1_000, seed)}

    learned = [asked(split) for split in ("build", "weights", "rl")]
    tested = asked("test") | asked("val") | asked("ood-chains") | asked("ood-mixture")
    assert not tested & set().union(*learned)
    assert not learned[0] & learned[1]
    assert not (learned[0] | learned[1]) & learned[2]
    assert not asked("val") & asked("test")


def test_the_other_splits_differ_as_their_names_say() -> None:
    assert not set(NAMES) & set(OTHER_NAMES)
    for task in WORLD.tasks("ood-entities", 50):
        assert {*task.people, task.belief, task.answer} <= set(OTHER_NAMES)
    assert {len(task.relations) for task in WORLD.tasks("ood-chains", 50)} == {3}
    assert {len(task.relations) for task in WORLD.tasks("test", 50)} == {2}
    counted = Counter(task.kind for task in WORLD.tasks("ood-mixture", 2_000))
    for kind, share in zip(KINDS, OTHER_MIXTURE, strict=True):
        assert counted[kind] / 2_000 == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("hops", [2, 3])
def test_what_is_asked_for_follows_from_the_facts(hops: int) -> None:
    for task in FSMQA(FSMQASettings(hops=hops)).tasks("test", 300):
        first = fact(task, task.relations[0], task.people[0])
        match task.kind:
            case Kind.SEQUENTIAL:
                person = task.people[0]
                for relation in task.relations:
                    person = fact(task, relation, person)
                assert task.answer == person
            case Kind.PARALLEL:
                ranks = [int(fact(task, RANK, person)) for person in task.people]
                assert task.answer == task.people[ranks.index(max(ranks))]
                assert ranks[0] != ranks[1]
            case _:
                assert task.answer == first
        if task.kind is not Kind.PARALLEL:
            assert task.answer not in task.people
        assert (task.answer == first) == (task.kind not in (Kind.SEQUENTIAL, Kind.PARALLEL))


def test_a_question_says_who_is_believed_and_nothing_of_its_kind_but_by_words() -> None:
    shape = re.compile(r"(\w+), (\w+): (\w+), (\w+)\. Maybe (\w+)\. ((?:[a-z]{4} ?)+)")
    for task in WORLD.tasks("val", 100):
        found = shape.fullmatch(task.text)
        assert found is not None
        assert (found[1], found[2], found[3], found[4], found[5]) == (*task.people, *task.relations, task.belief)
        words = found[6].split()
        assert len(words) == 8
        assert set(words) <= set(LEXICON)


def test_words_are_of_the_kind_with_the_probability_of_the_alignment() -> None:
    assert len(POOLS) == len(KINDS) + TOPICS
    assert len(set(LEXICON)) == len(POOLS) * PER_POOL
    for alignment in (0.0, 0.5, 1.0):
        tasks = FSMQA(FSMQASettings(alignment=alignment)).tasks("test", 400)
        own = [word in POOLS[KINDS.index(task.kind)] for task in tasks for word in task.text.split()[-8:]]
        assert sum(own) / len(own) == pytest.approx(alignment, abs=0.04)
        for task in tasks[:20]:
            pools = {next(i for i, pool in enumerate(POOLS) if word in pool) for word in task.text.split()[-8:]}
            assert len(pools - {KINDS.index(task.kind)}) <= 1


def test_beliefs_are_right_as_often_as_the_kind_says() -> None:
    for place, kind in enumerate(KINDS):
        tasks = by_kind(FSMQASettings(), kind, 600)
        right = sum(score(task, task.belief) for task in tasks) / len(tasks)
        assert right == pytest.approx(FSMQASettings().beliefs[place], abs=0.06)


def test_searches_find_the_truth_but_for_what_the_knowledge_base_lacks() -> None:
    for kind in KINDS:
        for task in by_kind(CERTAIN, kind, 30):
            relation, person = task.relations[0], task.people[0]
            known = looked_up(task, relation, person)
            if kind in (Kind.KNOWN, Kind.UNSEARCHABLE):
                assert known == task.recorded
                assert known != task.answer
                silent = replace(task, recorded=None)
                assert looked_up(silent, relation, person) is None
            else:
                assert known == fact(task, relation, person)
            assert looked_up(task, RANK, task.people[1]) == fact(task, RANK, task.people[1])


def test_what_is_outdated_stays_so_and_what_is_noise_does_not() -> None:
    noisy = replace(CERTAIN, p_noise=0.5)
    task = by_kind(CERTAIN, Kind.SINGLE, 1)[0]
    base = KnowledgeBase(task, noisy)
    told = re.findall(
        rf"{task.people[0]} {task.relations[0]}: (\w+)",
        "\n".join(base.search(task.relations[0], task.people[0]) for _ in range(200)),
    )
    assert len(told) == 200
    assert told.count(task.answer) / 200 == pytest.approx(0.5, abs=0.12)
    outdated = by_kind(CERTAIN, Kind.UNSEARCHABLE, 1)[0]
    assert {looked_up(outdated, outdated.relations[0], outdated.people[0]) for _ in range(5)} == {outdated.recorded}


def test_misses_are_as_frequent_as_told() -> None:
    settings = FSMQASettings(p_miss=0.3, p_noise=0.0)
    tasks = by_kind(settings, Kind.SINGLE, 500)
    found = [looked_up(task, task.relations[0], task.people[0], settings) for task in tasks]
    assert found.count(None) / 500 == pytest.approx(0.3, abs=0.06)
    assert all(value in (None, task.answer) for value, task in zip(found, tasks, strict=True))


def test_equal_seeds_find_the_same_and_a_repeated_search_is_a_new_one() -> None:
    settings = FSMQASettings(p_miss=0.5)
    task = by_kind(settings, Kind.SINGLE, 1)[0]
    asked = (task.relations[0], task.people[0])
    one, other = KnowledgeBase(task, settings, seed=1), KnowledgeBase(task, settings, seed=1)
    first = [one.search(*asked) for _ in range(10)]
    other.search(RANK, task.people[1])  # another search in between changes nothing
    assert [other.search(*asked) for _ in range(10)] == first
    assert len(set(first)) > 1
    assert [KnowledgeBase(task, settings, seed=seed).search(*asked) for seed in range(10)] != first[:1] * 10


def test_the_tool_searches_and_lists_three_lines() -> None:
    task = by_kind(CERTAIN, Kind.SINGLE, 1)[0]
    tool = search_tool(task, CERTAIN)
    assert tool.name == "search"
    assert set(tool.args) == {"relation", "entity"}
    found = tool.invoke({"relation": task.relations[0].upper(), "entity": f" {task.people[0]} "})
    lines = found.splitlines()
    assert [line[-3:] for line in lines] == ["[1]", "[2]", "[3]"]
    assert f"{task.people[0]} {task.relations[0]}: {task.answer}" in found


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_search_finds_something_or_nothing(relation: str, entity: str) -> None:
    task = WORLD.tasks("val", 1)[0]
    found = KnowledgeBase(task).search(relation, entity)
    known = relation.strip().lower() in (*RELATIONS, RANK) and entity.strip() in NAMES
    assert (found == NOTHING) == (not known)


def test_only_the_right_name_counts() -> None:
    task = WORLD.tasks("val", 1)[0]
    assert score(task, f" {task.answer.upper()}. ") == 1.0
    assert score(task, None) == score(task, "") == score(task, f"{task.answer} or so") == 0.0


@pytest.mark.parametrize(
    "change",
    [{"alignment": 1.1}, {"p_miss": -0.1}, {"p_noise": 2.0}, {"p_outdated": 1.5}, {"words": 0}, {"hops": 1}, {"hops": 4},
     {"mixture": (1.0,)}, {"mixture": (0.5,) * 6}, {"beliefs": (0.5,) * 5}, {"beliefs": (1.2,) * 6}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        replace(FSMQASettings(), **change)


def test_a_split_or_a_number_that_does_not_exist_is_named() -> None:
    with pytest.raises(InputError, match=r"'dev'.*build, weights, rl"):
        WORLD.tasks("dev", 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="-1 questions"):
        WORLD.tasks("test", -1)

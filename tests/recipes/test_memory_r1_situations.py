"""Banks and questions of pre-training: bounded, readable, drawn from the seed alone."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memweave.recipes.memory_r1 import teaching
from memweave.recipes.memory_r1.situations import Situation, for_answerer, for_manager
from memweave.worlds.dialog_language import NAMES, RELATIONS, Statement, read, read_question

SEED = st.integers(0, 2**32)
SIZE = st.integers(1, 14)
ASKED = st.integers(1, 12)


def known(text: str) -> Statement:
    """Return what a text says; its words must be ones of the world."""
    said = read(text)
    assert said is not None, text
    assert said.subject in NAMES
    if said.relation != "chatter":
        (relation,) = [each for each in RELATIONS if each.name == said.relation]
        assert set(said.values) <= set(relation.values)
        assert (said.month is not None) == relation.dated
    return said


@given(SEED, SIZE, ASKED)
def test_what_a_manager_is_shown(seed: int, size: int, asked: int) -> None:
    found = for_manager(random.Random(seed), size, asked)
    assert 1 <= len(found.memories) <= size
    assert len(found.asked) == asked
    assert len(found.speakers) == len(found.memories)
    assert len(set(found.speakers)) == 1  # a manager sees memories of one participant
    subjects = {known(text).subject for text in found.memories}
    for facts in found.asked:
        assert len(facts) in (1, 2)
        assert len(set(facts)) == 1  # a noisy extractor says the same twice, nothing else
        subjects.add(known(facts[0]).subject)
    assert len(subjects | set(found.speakers)) <= 2  # of that participant, and of one friend


@given(SEED, SIZE, ASKED)
def test_what_an_answerer_is_shown(seed: int, size: int, asked: int) -> None:
    found = for_answerer(random.Random(seed), size, asked)
    assert 1 <= len(found.memories) <= size
    assert len(found.speakers) == len(found.memories)
    assert len(found.asked) == asked
    changes = sum(one != other for one, other in zip(found.speakers, found.speakers[1:], strict=False))
    assert changes <= 1  # one block per participant
    for text in found.memories:
        known(text)
    for (question,) in found.asked:
        asks = read_question(question)
        assert asks is not None, question
        assert all(person in NAMES for person, _, _ in asks.keys)


@given(SEED, SIZE, ASKED)
def test_the_same_seed_draws_the_same(seed: int, size: int, asked: int) -> None:
    for draw in (for_manager, for_answerer):
        assert draw(random.Random(seed), size, asked) == draw(random.Random(seed), size, asked)


def drawn(draw: object, size: int) -> list[Situation]:
    assert callable(draw)
    rng = random.Random(3)
    return [draw(rng, size, 8) for _ in range(150)]


def test_every_kind_of_decision_comes_up() -> None:
    """A kind that pre-training never shows cannot be learned."""
    events: Counter[str] = Counter()
    for found in drawn(for_manager, 5):
        for facts in found.asked:
            reply = teaching.manage(found.memories, facts)
            events.update(event for event in ("ADD", "UPDATE", "DELETE", "NOOP") if f'"{event}"' in reply)
            events["repeated"] += len(facts) == 2
            events["accumulated"] += '"UPDATE"' in reply and " and " in reply.rpartition('"text"')[2]
            events["unknown retracted"] += '"new", "event": "NOOP"' in reply
            events["small talk"] += "small talk" in reply
    assert min(events.values()) >= 8
    assert len(events) == 8


@pytest.mark.parametrize("kind", ["lookup", "list", "count", "when", "compare"])
def test_every_kind_of_question_comes_up_with_and_without_an_answer(kind: str) -> None:
    seen: Counter[bool] = Counter()
    for found in drawn(for_answerer, 6):
        for (question,) in found.asked:
            asks = read_question(question)
            if asks is not None and asks.kind == kind:
                seen[teaching.answer(found.memories, question).startswith(teaching.NOTHING)] += 1
    assert seen[False] >= 20
    if kind not in ("when", "count"):  # these are only asked of what was told; few are without their memory
        assert seen[True] >= 5


def test_near_misses_and_old_lines_come_up() -> None:
    """What the habits need: the same relation of two people, and an old value beside a new one."""
    near = old = 0
    for found in drawn(for_answerer, 6):
        said = [known(text) for text in found.memories]
        keys = Counter(line.key for line in said if line.relation != "chatter")
        near += len({relation for _, relation, _ in keys}) < len(keys)
        old += max(keys.values(), default=0) > 1
    assert near >= 50
    assert old >= 20

"""What DialogWorld asks: gold answers follow from what was said, and evidence is where it was said."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memweave.worlds.dialog_language import read_question
from memweave.worlds.dialog_world import SPLITS, DialogWorld, EventKind, QuestionKind, Split, answer_of, score
from tests.worlds.dialogs import dialogues, expected_answer


@pytest.mark.parametrize("split", SPLITS)
def test_gold_answers_follow_from_what_was_meant(split: Split) -> None:
    asked: Counter[str] = Counter()
    for dialogue in dialogues(split, 50):
        for question in dialogue.questions:
            assert question.gold == expected_answer(question, dialogue.meant), question
            asked[question.kind] += 1
    assert min(asked[kind] for kind in QuestionKind) >= 20


def test_both_answers_of_a_comparison_occur() -> None:
    golds = Counter(q.gold for d in dialogues("test", 80) for q in d.questions if q.kind is QuestionKind.COMPARE)
    assert set(golds) == {"yes", "no"}
    assert min(golds.values()) >= 10


@pytest.mark.parametrize("split", SPLITS)
def test_a_question_asks_what_its_text_says(split: Split) -> None:
    for dialogue in dialogues(split, 20):
        for question in dialogue.questions:
            asked = read_question(question.text)
            assert asked is not None
            assert (asked.kind, asked.keys) == (question.kind, question.keys)
        assert len({question.id for question in dialogue.questions}) == len(dialogue.questions)


def test_every_key_that_was_spoken_of_is_asked_about() -> None:
    for dialogue in dialogues("test", 20):
        keys = {s.key for s in dialogue.meant if s.relation != "chatter"}
        assert keys == {key for question in dialogue.questions for key in question.keys}


@pytest.mark.parametrize("split", SPLITS)
def test_evidence_is_every_turn_about_the_keys(split: Split) -> None:
    for dialogue in dialogues(split, 20):
        for question in dialogue.questions:
            about = [
                turn.source_id
                for turn, said in zip(dialogue.turns, dialogue.meant, strict=True)
                if any(
                    said.subject == who and said.relation == what and (not which or said.values == (which,))
                    for who, what, which in question.keys
                )
            ]
            assert question.evidence == tuple(about)
            assert about


def test_a_question_is_linked_to_its_last_evidence() -> None:
    for dialogue in dialogues("train", 10):
        linked = [question for position in range(len(dialogue.turns)) for question in dialogue.linked(position)]
        assert sorted(q.id for q in linked) == sorted(q.id for q in dialogue.questions)
        for position, turn in enumerate(dialogue.turns):
            for question in dialogue.linked(position):
                assert question.evidence[-1] == turn.source_id
                later = dialogue.meant[position + 1 :]
                assert not any(statement.key in question.keys for statement in later)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SPLITS),
    st.integers(0, 10**6),
    st.integers(1, 5).flatmap(lambda keys: st.tuples(st.just(keys), st.integers(0, keys))),
    st.integers(0, 3),
)
def test_other_settings_keep_the_truth(split: Split, seed: int, keys: tuple[int, int], follow_ups: int) -> None:
    own, friends = keys
    world = DialogWorld(seed=seed, keys=own, friend_keys=friends, follow_ups=follow_ups, sessions=3)
    (dialogue,) = world.dialogues(split, 1)
    assert len(dialogue.turns) == 30
    firsts = Counter(dialogue.kinds)
    assert (firsts[EventKind.NEW], firsts[EventKind.NEAR_MISS]) == (2 * own, 2 * friends)
    for question in dialogue.questions:
        assert question.gold == expected_answer(question, dialogue.meant)


def test_answers() -> None:
    assert answer_of(QuestionKind.COUNT, ()) == "none"
    assert answer_of(QuestionKind.COUNT, ("dog", "cat")) == "two"
    assert answer_of(QuestionKind.LIST, ("dog", "cat")) == "dog and cat"
    assert answer_of(QuestionKind.LOOKUP, ()) == "unknown"
    assert answer_of(QuestionKind.WHEN, ("May",)) == "May"


def test_scores() -> None:
    assert score("dog and cat", "Dog and cat.") == 1
    assert score("dog and cat", "cat and dog") == 0
    assert score("Rome", "in Rome") == 0
    assert score("Rome", None) == score("Rome", "") == 0

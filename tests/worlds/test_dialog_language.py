"""The small English of DialogWorld: what is said is read back, and what holds follows from it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memweave.worlds.dialog_language import (
    CHATTER,
    MONTHS,
    NAMES,
    NEW_NAMES,
    NEW_VALUES,
    OPENERS,
    RELATIONS,
    Act,
    Asked,
    Relation,
    Statement,
    fold,
    in_first_person,
    in_third_person,
    read,
    read_question,
    relation_of,
    say,
)

PEOPLE = NAMES + NEW_NAMES


def said(statement: Statement) -> list[str]:
    """Every sentence that means `statement`."""
    if statement.act is not Act.SET or statement.relation == "chatter" or len(statement.values) == 2:
        return [say(statement)]
    plain = [say(statement, way) for way in range(3)]
    return [*plain, say(statement, change=True)] if relation_of(statement.relation).became else plain


def statements_of(relation: Relation, subject: str) -> Iterator[Statement]:
    """Every statement about one relation of one person."""
    values = relation.values + NEW_VALUES[relation.name]
    for value, month in itertools.product(values, MONTHS if relation.dated else (None,)):
        yield Statement(subject, relation.name, Act.SET, (value,), month)
    if relation.dropped:
        yield from (Statement(subject, relation.name, Act.DROP, (value,)) for value in values)
    if relation.also:
        yield from (Statement(subject, relation.name, Act.ALSO, (value,)) for value in values)
        yield from (Statement(subject, relation.name, Act.SET, pair) for pair in itertools.permutations(values, 2))


def everything(subject: str) -> Iterator[Statement]:
    for relation in RELATIONS:
        yield from statements_of(relation, subject)
    yield from (Statement(subject, "chatter", Act.SET, (words,)) for words in CHATTER)


ALL = tuple(everything("Anna"))
statements = st.builds(
    lambda subject, it: Statement(subject, it.relation, it.act, it.values, it.month),
    st.sampled_from(PEOPLE),
    st.sampled_from(ALL),
)
WORDS = sorted({word for one in ALL for sentence in said(one) for word in sentence.split()})


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_every_statement_is_read_back(relation: Relation) -> None:
    for statement in statements_of(relation, "Anna"):
        for sentence in said(statement):
            assert read(sentence) == statement, sentence
            assert read(f" {sentence}. ") == statement  # a period and blanks around do not matter


def test_small_talk_is_read_back() -> None:
    for words in CHATTER:
        statement = Statement("Anna", "chatter", Act.SET, (words,))
        assert read(say(statement)) == read(f"{say(statement)}.") == statement


@given(statements)
def test_any_person_is_read_back(statement: Statement) -> None:
    assert all(read(sentence) == statement for sentence in said(statement))


def test_a_statement_ends_with_its_value_or_its_month() -> None:
    """So a policy that quotes a statement can copy the number that follows it in the prompt."""
    for statement in ALL:
        for sentence in said(statement):
            assert sentence.endswith(tuple(f" {word}" for word in (*statement.values, statement.month) if word))


def test_no_two_statements_share_a_sentence() -> None:
    sentences = [sentence for statement in ALL for sentence in said(statement)]
    assert len(sentences) == len(set(sentences))


@given(statements, st.integers(0, 9), st.lists(st.sampled_from(WORDS), max_size=2))
def test_what_is_read_means_its_text(statement: Statement, at: int, words: list[str]) -> None:
    """Whatever words of the language are put in place of one of a sentence, nothing is read that was not said."""
    old = say(statement).split()
    text = " ".join([*old[:at], *words, *old[at + 1 :]])
    found = read(text)
    assert found is None or text in said(found)


@given(statements, st.sampled_from(WORDS))
def test_a_word_too_many_is_other_text(statement: Statement, word: str) -> None:
    sentence = say(statement)
    assert read(f"Today {sentence}") is None  # a subject is one word
    assert read(f"{sentence} {word}") is None
    assert read(f"{sentence}. {word}") is None  # nothing follows the period
    assert read(f"{sentence}?") is None
    assert read(f"{sentence}..") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "Anna",
        "Anna lives in",
        "lives in Rome.",
        "Anna lives in New York.",
        "Anna Bell lives in Rome.",
        "Anna live in Rome.",
        "I live in Rome.",
        "By the way, Anna lives in Rome.",
        "Anna lives in Rome. Bob lives in Oslo.",
        "Anna visited Peru.",
        "Where does Anna live?",
        "Anna is tired.",
        "Anna likes red.",
        "Anna likes the color red best.",
    ],
)
def test_other_text_is_not_read(text: str) -> None:
    assert read(text) is None
    assert read(text.removesuffix(".")) is None


def test_the_words_of_the_language_are_fixed() -> None:
    """Policies are pre-trained on these very sentences and questions."""
    lines = [sentence for statement in ALL for sentence in said(statement)]
    lines += [in_first_person(sentence) for sentence in lines]
    lines += [text or "" for r in RELATIONS for text in (r.question, r.count, r.same)]
    lines += [*PEOPLE, *OPENERS]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == (
        "fc6610772a3911692da0d13ac17f83a69d9bed4b095434395d894c1b82295cc0"
    )


@given(statements, st.sampled_from(OPENERS))
def test_the_third_person_undoes_the_first(statement: Statement, opener: str) -> None:
    for sentence in said(statement):
        spoken = in_first_person(sentence)
        assert spoken.startswith("I ")
        assert statement.subject not in spoken.split()
        assert in_third_person(f"{opener}{spoken}.", statement.subject) == sentence
        assert in_third_person(opener + spoken, statement.subject) == sentence


def test_no_verb_of_the_first_person_is_left_in_the_third() -> None:
    adverbs = {"no", "longer", "now", "also"}
    for sentence in (sentence for statement in ALL for sentence in said(statement)):
        verb = next(word for word in in_first_person(sentence).split()[1:] if word not in adverbs)
        assert not verb.endswith("s"), sentence


@given(statements, st.sampled_from(OPENERS))
def test_what_is_said_of_others_only_loses_its_opening_words_and_period(statement: Statement, opener: str) -> None:
    speaker = next(name for name in NAMES if name != statement.subject)
    assert in_third_person(f"{opener}{say(statement)}.", speaker) == say(statement)
    assert in_third_person(opener + say(statement), speaker) == say(statement)


@pytest.mark.parametrize(
    ("third", "first"),
    [
        ("Anna lives in Rome", "I live in Rome"),
        ("Anna no longer lives in Rome", "I no longer live in Rome"),
        ("Anna now prefers red", "I now prefer red"),
        ("Anna likes the color red", "I like the color red"),
        ("Anna is fond of red", "I am fond of red"),
        ("Anna adores red", "I adore red"),
        ("Anna also has a cat", "I also have a cat"),
        ("Anna has a dog and a cat", "I have a dog and a cat"),
        ("Anna is fluent in Greek", "I am fluent in Greek"),
        ("Anna visited Peru in May", "I visited Peru in May"),
        ("Anna cannot find the keys", "I cannot find the keys"),
    ],
)
def test_the_first_person_is_english(third: str, first: str) -> None:
    assert in_first_person(third) == first
    assert in_third_person(f"{first}.", "Anna") == third


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_every_question_is_read(relation: Relation) -> None:
    kind = "when" if relation.dated else "list" if relation.also else "lookup"
    for value in relation.values + NEW_VALUES[relation.name] if relation.dated else ("",):
        asked = Asked(kind, (("Anna", relation.name, value),))
        assert read_question(relation.question.format(s="Anna", v=value)) == asked
    if relation.count:
        assert read_question(relation.count.format(s="Anna")) == Asked("count", (("Anna", relation.name, ""),))
    if relation.same:
        both = (("Anna", relation.name, ""), ("Bob", relation.name, ""))
        assert read_question(relation.same.format(s="Anna", o="Bob")) == Asked("compare", both)


def test_the_kinds_of_questions() -> None:
    kinds = {r.name: ("count" if r.count else "", "compare" if r.same else "") for r in RELATIONS}
    assert kinds == {
        **dict.fromkeys(("city", "job", "car", "color"), ("", "compare")),
        **dict.fromkeys(("instrument", "pet", "language"), ("count", "")),
        **dict.fromkeys(("trip", "course"), ("", "")),
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Where does Anna live",
        "Where does Anna Bell live?",
        "Where do Anna live?",
        "Anna lives in Rome.",
        "When did Anna visit?",
    ],
)
def test_other_questions_are_not_read(text: str) -> None:
    assert read_question(text) is None


@pytest.mark.parametrize(
    ("story", "held"),
    [
        ([], ()),
        (["Anna lives in Rome"], ("Rome",)),
        (["Anna lives in Rome", "Anna moved to Oslo"], ("Oslo",)),
        (["Anna lives in Rome", "Anna resides in Rome"], ("Rome",)),
        (["Anna lives in Rome", "Anna no longer lives in Rome"], ()),
        (["Anna lives in Rome", "Anna no longer lives in Rome", "Anna moved to Oslo"], ("Oslo",)),
        (["Anna has a dog", "Anna also has a cat"], ("dog", "cat")),
        (["Anna has a dog", "Anna also has a dog"], ("dog",)),
        (["Anna also has a cat"], ("cat",)),
        (["Anna has a dog", "Anna also has a cat", "Anna has a dog and a cat"], ("dog", "cat")),
        (["Anna has a cat and a dog", "Anna keeps a dog"], ("dog",)),
        (["Anna has a dog and a cat", "Anna gave away the dog"], ()),
        (["Anna has a dog", "Anna gave away the dog", "Anna also has a cat"], ("cat",)),
        (["Anna visited Peru in May"], ("May",)),
        (["Anna visited Peru in May", "Anna spent June in Peru"], ("June",)),
    ],
)
def test_what_holds_after_a_story(story: list[str], held: tuple[str, ...]) -> None:
    found = [statement for sentence in story if (statement := read(sentence))]
    assert len(found) == len(story)
    assert fold(found) == held


def test_keys_tell_events_apart_and_nothing_else() -> None:
    may, june = (Statement("Anna", "trip", Act.SET, ("Peru",), month) for month in ("May", "June"))
    assert may.key == june.key == ("Anna", "trip", "Peru")
    assert Statement("Anna", "trip", Act.SET, ("Cuba",), "May").key != may.key
    assert Statement("Anna", "pet", Act.SET, ("dog",)).key == Statement("Anna", "pet", Act.ALSO, ("cat",)).key


def test_new_words_are_new() -> None:
    assert not set(NEW_NAMES) & set(NAMES)
    for relation in RELATIONS:
        assert not set(NEW_VALUES[relation.name]) & set(relation.values)
        assert len(relation.said) == 3


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(AssertionError, match="trip cannot be said so"):
        say(Statement("Anna", "trip", Act.DROP, ("Peru",), "May"))
    with pytest.raises(AssertionError, match="city cannot be said so"):
        say(Statement("Anna", "city", Act.SET, ("Rome", "Oslo")))

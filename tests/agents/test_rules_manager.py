from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memweave.agents.manager import parse_manage_reply
from memweave.agents.roles import ExtractRequest, Fact, ManageRequest
from memweave.agents.rules import RuleExtractor, RuleManager
from memweave.agents.rules.attributes import slots
from memweave.agents.rules.retraction import retractions
from memweave.records import OpKind
from tests.agents.rules_world import NOON, items, managed, memory, turn


def kinds(fact: str, *olds: str) -> list[OpKind]:
    """Return what one fact does to memories that Mara stated before."""
    return [op.kind for op in managed(fact, *(memory(old, n=n) for n, old in enumerate(olds)))]


# repetition


@pytest.mark.parametrize(
    "fact",
    [
        "Mara lives in Ghent, above the bike shop.",
        "Mara said: I still live in Ghent above that bike shop!",
        "Mara lives above the bike shop in Ghent.",
    ],
)
def test_what_is_known_changes_nothing(fact: str) -> None:
    (op,) = managed(fact, memory("Mara lives in Ghent, above the bike shop."))
    assert op.kind is OpKind.NOOP
    assert op.memory_id is not None
    assert op.reason == "already in memory: 'lives in Ghent, above the bike shop'"


def test_the_same_event_on_another_day_is_another_event() -> None:
    assert kinds("Mara ran 14 kilometres (7 March 2025).", "Mara ran 14 kilometres (28 February 2025).") == [OpKind.ADD]
    assert kinds("Mara ran 18 kilometres by the river.", "Mara ran 14 kilometres by the river.") == [OpKind.ADD]


def test_a_fact_told_twice_in_one_turn_is_added_once() -> None:
    said = turn("...")
    facts = tuple(Fact(text=text, turn=said) for text in ("Mara adopted a dog.", "Mara adopted that dog."))
    assert [item["event"] for item in items(ManageRequest(facts=facts, memories=()))] == ["ADD"]


# single-valued attributes


@pytest.mark.parametrize(
    ("old", "new", "attribute"),
    [
        (
            "Mara lives in Ghent, above the bike shop.",
            "Mara moved to Utrecht last weekend (the weekend before 8 March 2025).",
            "residence",
        ),
        (
            "Mara works at the city library.",
            "Mara started at the university archive on Monday (3 March 2025).",
            "employer",
        ),
        ("Mara works as a nurse.", "Mara is a midwife now.", "occupation"),
        ("Mara is a vegetarian.", "Mara is vegan now.", "diet"),
        ("Mara is single.", "Mara got engaged!", "relationship"),
        ("Mara is 29 years old.", "Mara turned 30 yesterday (7 March 2025)!", "age"),
        (
            "Mara's favourite band is The Paper Lanterns.",
            "Mara said: My favourite band is Cold Harbour these days.",
            "favourite band",
        ),
        ("Mara's number is 0471 555 210.", "Mara's new number is 06 5550 0198.", "phone"),
        ("Mara's email is mara@old.example.", "Mara's new email is mara@new.example.", "e-mail"),
        ("Mara's boss is called Piet.", "Mara's new boss is called Annelies.", "name of the boss"),
        ("Mara's sister Lena lives in Antwerp.", "Mara's sister Lena moved to Bruges.", "residence of Lena"),
        ("Mara drives a red Fiat.", "Mara drives an old Volvo now.", "car"),
        ("Mara is staying at the Hotel Lindenhof.", "Mara is staying with a friend from school instead.", "staying"),
        (
            "Mara said: The wedding is on 14 June 2025.",
            "Mara said: The wedding has been moved to 28 June 2025.",
            "date of the wedding",
        ),
        (
            "Mara is going to a conference in Vienna on 18 September 2025.",
            "Mara said: The Vienna conference has been postponed to 2 October 2025.",
            "date of the conference",
        ),
        (
            "Mara signed up for a Portuguese class. It's on Tuesday evenings.",
            "Mara's Portuguese class is on Mondays now.",
            "date of the class",
        ),
        (
            "Lena and Mara are flying to Lisbon on 9 May 2025.",
            "Mara has to move Mara's trip to Lisbon to 16 May 2025.",
            "date of the trip",
        ),
    ],
)
def test_another_value_replaces_the_old_one(old: str, new: str, attribute: str) -> None:
    (op,) = managed(new, memory(old))
    assert op.kind is OpKind.UPDATE
    assert op.text is not None
    assert op.text.startswith(new)
    assert "(before: " in op.text
    assert op.reason.startswith("replaces '")
    assert f"(same speaker, attribute: {attribute})" in op.reason


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Mara lives in Ghent.", "Katrin lives in Leipzig."),
        ("Mara lives in Ghent.", "Mara's sister Lena lives in Antwerp."),
        ("Mara lives in Ghent.", "Mara would love to live in Rome."),
        ("Mara lives in Ghent.", "Mara used to live in Rome as a child."),
        ("Mara lives in Ghent.", "Mara is moving to Utrecht in April 2025."),
        ("Mara works at the city library.", "Utrecht University has offered Mara a job in its archive."),
        ("Mara works at the city library.", "Mara works for hours every day."),
        ("Mara is vegan.", "Mara's neighbour runs a vegan bakery."),
        ("Mara's favourite band is Cold Harbour.", "Mara's favourite soup is leek."),
        ("Mara said: The wedding is on 14 June 2025.", "Mara said: The concert has been moved to 28 June 2025."),
        (
            "Mara runs the Hamburg half marathon on 27 April 2025.",
            "Mara moved Mara's entry to the Bremen half marathon on 12 October 2025.",
        ),
        ("Mara said: Lena's wedding is on 14 June 2025.", "Mara said: Katrin's wedding is now on 28 June 2025."),
        ("Mara is going to a pride parade on 11 August 2025.", "Mara is going to a pride parade on 12 August 2026."),
        (
            "Mara is going to a conference in Vienna on 18 September 2025.",
            "Mara is going to a conference in Vienna on 12 May 2026.",
        ),
        ("Mara teaches maths.", "Mara works as a teacher in the evenings."),
        ("Mara is a nurse.", "Mara is a singer in a choir."),
    ],
)
def test_what_is_not_the_same_attribute_is_added(old: str, new: str) -> None:
    assert kinds(new, old) == [OpKind.ADD]


def test_replacing_keeps_what_else_the_memory_says() -> None:
    old = memory("Mara lives in Ghent. She has a balcony full of tomatoes.")
    (op,) = managed("Mara moved to Utrecht.", old)
    assert op.text == "Mara moved to Utrecht. She has a balcony full of tomatoes. (before: Ghent)"


def test_an_event_that_moves_keeps_its_details() -> None:
    old = memory("Mara said: The wedding is on 14 June 2025, in a vineyard near Leipzig.")
    (op,) = managed("Mara said: The wedding has been moved to 28 June 2025.", old)
    assert op.text == (
        "Mara said: The wedding has been moved to 28 June 2025. The wedding is on 28 June 2025, in a vineyard near Leipzig."
        " (before: 14 June 2025)"
    )


def test_a_second_memory_of_the_old_value_goes_too() -> None:
    ops = managed("Mara moved to Utrecht.", memory("Mara lives in Ghent."), memory("Mara still lives in Ghent.", n=1))
    assert [op.kind for op in ops] == [OpKind.UPDATE, OpKind.DELETE]


def test_a_fact_older_than_the_memory_replaces_nothing() -> None:
    recent = memory("Mara lives in Utrecht.", at=NOON + timedelta(days=1))
    assert [op.kind for op in managed("Mara lives in Ghent.", recent)] == [OpKind.ADD]


# attributes that add up


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Mara adopted a dog! His name is Biscuit.", "Mara adopted another dog. Her name is Pepper."),
        ("Mara plays the cello.", "Mara is learning the piano."),
        ("Mara is allergic to peanuts.", "Mara is allergic to cats as well."),
        ("Mara speaks French.", "Mara is learning Portuguese."),
    ],
)
def test_a_second_value_joins_the_first(old: str, new: str) -> None:
    (op,) = managed(new, memory(old))
    assert op.kind is OpKind.UPDATE
    assert op.text == f"{new} Earlier (2025-01-11): {old}"
    assert op.reason.startswith("joins '")


def test_more_detail_about_the_same_thing_on_the_same_day_is_merged() -> None:
    (op,) = managed(
        "Mara said: The support group gave me courage.", memory("Mara went to a support group (7 March 2025).", at=NOON)
    )
    assert op.kind is OpKind.UPDATE
    assert op.text == "Mara went to a support group (7 March 2025). Mara said: The support group gave me courage."
    assert kinds("Mara said: The support group gave me courage.", "Mara went to an art group.") == [OpKind.ADD]


def test_what_is_said_today_stands_before_what_was_said_earlier() -> None:
    old = memory("Mara plays the piano. Earlier (2025-01-11): Mara plays the cello.", at=NOON)
    (op,) = managed("Mara started playing the flute.", old)
    assert (
        op.text == "Mara plays the piano. Mara started playing the flute. Earlier (2025-01-11): Mara plays the cello."
    )


# retraction


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "Mara signed up for the Hamburg half marathon, it's on 27 April 2025.",
            "Mara had to cancel the Hamburg half marathon.",
        ),
        ("Mara bought a van! It's a green one from 1994.", "Mara sold the van."),
        ("Mara has joined a choir.", "Mara doesn't sing in the choir any more."),
        (
            "Mara signed up for a Portuguese class. It's on Tuesday evenings.",
            "Mara gave up the Portuguese class when Mara left Ghent.",
        ),
        ("Mara started at Radio Weser in December 2024.", "Mara quit Radio Weser."),
        ("Mara takes salsa lessons.", "Mara no longer takes salsa lessons."),
        ("Mara has booked a trip to Rome.", "Mara said: My trip to Rome has been cancelled."),
    ],
)
def test_a_retraction_deletes_what_it_takes_back_and_is_remembered(old: str, new: str) -> None:
    deleted, added = managed(new, memory(old), memory("Mara has a sister in Antwerp.", n=1))
    assert (deleted.kind, added.kind) == (OpKind.DELETE, OpKind.ADD)
    assert deleted.memory_id == memory(old).id
    assert "no longer holds" in deleted.reason
    assert added.text == new


def test_taking_back_words_leaves_no_trace() -> None:
    hotel = memory("Mara has booked a room at the Hotel Lindenhof for three nights.")
    (op,) = managed("Mara said: Forget what I said about the Hotel Lindenhof.", hotel)
    assert op.kind is OpKind.DELETE


@pytest.mark.parametrize("fact", ["Mara said: Scratch that.", "Mara said: Forget what I said about the boat."])
def test_taking_back_what_is_unknown_changes_nothing(fact: str) -> None:
    assert kinds(fact, "Mara lives in Ghent.") == [OpKind.NOOP]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Mara loves cheese.", "Mara could never give up cheese."),
        ("Mara bought a van.", "Mara would never sell the van."),
        ("Mara bought a van.", "Mara said: My brother sold the van."),
        ("Mara plays the cello in a quartet.", "Mara is leaving the quartet, sadly."),
        ("Mara takes a dance class and a Portuguese class with Lena on Tuesdays.", "Mara dropped the spoon."),
        ("Mara plays the cello in a quartet with three retired teachers.", "Mara quit the quartet."),
        ("Mara's flat has a garden.", "Mara said: Sold."),
        ("Mara works at the city library.", "Mara stopped at the library on the way."),
    ],
)
def test_what_only_looks_like_a_retraction_deletes_nothing(old: str, new: str) -> None:
    assert OpKind.DELETE not in kinds(new, old)


def test_a_new_value_in_the_same_breath_is_an_update() -> None:
    (op,) = managed(
        "Mara quit the library, Mara works at the university archive now.", memory("Mara works at the library.")
    )
    assert op.kind is OpKind.UPDATE


# the other speaker, and bad input


def test_the_other_speakers_memories_are_never_touched() -> None:
    for old, new in (
        ("Jonas lives in Ghent.", "Mara moved to Utrecht."),
        ("I live in Ghent.", "Mara moved to Utrecht."),
        ("Jonas bought a van.", "Mara sold the van."),
        ("Mara lives in Utrecht.", "Mara lives in Utrecht."),
    ):
        for speaker in ("Jonas", None):
            (op,) = managed(new, memory(old, speaker=speaker))
            assert (op.kind, op.memory_id) == (OpKind.ADD, None)


def test_no_facts_and_no_memories() -> None:
    assert items(ManageRequest(facts=(), memories=())) == []
    said = turn("x")
    assert items(ManageRequest(facts=(Fact(text=" ", turn=said),), memories=())) == []
    assert [
        item["event"] for item in items(ManageRequest(facts=(Fact(text="Mara moved.", turn=said),), memories=()))
    ] == ["ADD"]


def test_each_memory_is_named_once_however_many_facts_concern_it() -> None:
    said = turn("...")
    facts = tuple(
        Fact(text=t, turn=said)
        for t in ("Mara lives in Ghent.", "Mara still lives in Ghent.", "Mara moved to Utrecht.", "Mara moved to Rome.")
    )
    request = ManageRequest(facts=facts, memories=(memory("Mara lives in Ghent."),))
    (item,) = items(request)
    assert item["event"] == "UPDATE"
    assert str(item["text"]).startswith("Mara moved to Rome.")


PIECES = """I Mara Jonas my the a sister dog Pepper moved to live lives in Ghent Utrecht sold cancelled gave up quit no longer any more
don't class conference wedding on 14 June 2025 is now vegan favourite band choir (before: ) Earlier said: asked "Why?", , . ! ? - 😀
 yesterday works at library allergic to forget what said about scratch that another"""
WORDS = st.sampled_from(PIECES.split())
TEXT = st.one_of(st.lists(WORDS, min_size=1, max_size=25).map(" ".join), st.text(min_size=1, max_size=80)).filter(
    lambda t: "\x00" not in t
)


@settings(max_examples=150, deadline=None)
@given(said=TEXT, olds=st.lists(st.tuples(TEXT, st.sampled_from(["Mara", "Jonas", None])), max_size=5), previous=TEXT)
def test_any_text_gives_valid_operations_on_own_memories(
    said: str, olds: list[tuple[str, str | None]], previous: str
) -> None:
    told = turn(said, previous=previous)
    facts = tuple(
        Fact(text=f, turn=told) for f in json.loads(RuleExtractor().reply(ExtractRequest(turn=told)))["facts"]
    )
    facts = (*facts, Fact(text=said, turn=told))
    memories = tuple(memory(text, speaker=speaker, n=n) for n, (text, speaker) in enumerate(olds))
    request = ManageRequest(facts=facts, memories=memories)
    reply = RuleManager().reply(request)
    assert reply == RuleManager().reply(request)
    own = {m.id for m in memories if m.speaker == "Mara"}
    for op in parse_manage_reply(reply, request, actor="rule"):
        assert op.memory_id is None or op.memory_id in own
        assert op.reason


@pytest.mark.parametrize(
    "unit",
    [
        "!",
        ".",
        '"',
        "a",
        "I ",
        "my ",
        "[shares a photo: ",
        "(",
        "\n",
        "I live in ",
        "yesterday ",
        ", and I ",
        "Wow, ",
        "a-",
        "\U0001f600",
        "\x01",
        "I sold the ",
    ],
)
def test_a_megabyte_passes_through_every_role(unit: str) -> None:
    text = (unit * (1_000_000 // len(unit)))[:999_000] + "x"
    told = turn(text, previous=text)
    facts = tuple(
        Fact(text=f, turn=told) for f in json.loads(RuleExtractor().reply(ExtractRequest(turn=told)))["facts"]
    )
    request = ManageRequest(
        facts=(*facts, Fact(text=text, turn=told)), memories=(memory(text), memory("Mara lives in Ghent.", n=1))
    )
    parse_manage_reply(RuleManager().reply(request), request, actor="rule")


def test_readers_see_the_speaker_only() -> None:
    assert [(s.subject, s.attribute, s.value) for s in slots("Mara lives in Ghent.", "Mara")] == [
        ("I", "residence", "Ghent")
    ]
    assert [(s.subject, s.value) for s in slots("Mara lives in Ghent.", "Jonas")] == [("mara", "Ghent")]
    assert retractions("Mara sold the van.", "Jonas") == ()
    assert slots("Mara shared a photo of a man who lives in Rome.", "Mara") == ()


@pytest.mark.anyio
async def test_async_equals_sync() -> None:
    said = turn("...", at=datetime(2025, 4, 1, tzinfo=UTC))
    request = ManageRequest(
        facts=(Fact(text="Mara moved to Utrecht.", turn=said),), memories=(memory("Mara lives in Ghent."),)
    )
    assert await RuleManager().areply(request) == RuleManager().reply(request)

from __future__ import annotations

import json
from datetime import UTC, date, datetime

import pytest

from memweave.agents.roles import ExtractRequest
from memweave.agents.rules import RuleExtractor
from memweave.agents.rules.dates import dates_in, resolve
from memweave.agents.rules.text import sentences, stem
from memweave.agents.rules.voice import third_person
from memweave.records import Turn
from tests.agents.rules_world import extracted, turn

SATURDAY = date(2025, 3, 8)


@pytest.mark.parametrize(
    ("said", "fact"),
    [
        ("I live in Ghent, above the bike shop.", "Mara lives in Ghent, above the bike shop."),
        ("I'm a bit worried about my dogs.", "Mara is a bit worried about Mara's dogs."),
        ("I've never been to Portugal.", "Mara has never been to Portugal."),
        ("I'd never seen the sea before.", "Mara had never seen the sea before."),
        ("I'd like some soup.", "Mara would like some soup."),
        ("I really try to cook and then wash up.", "Mara really tries to cook and then wash up."),
        ("I live in Bremen and work at night.", "Mara lives in Bremen and works at night."),
        ("Lena and I ate custard tarts.", "Lena and Mara ate custard tarts."),
        ("I don't sing any more.", "Mara doesn't sing any more."),
        ("Katrin teaches maths, but I think she loves it.", "Katrin teaches maths, but Mara thinks she loves it."),
    ],
)
def test_first_person_becomes_third(said: str, fact: str) -> None:
    assert extracted(turn(said)) == [fact]


@pytest.mark.parametrize(
    "said",
    [
        "We got lost in the fog.",
        "I dunno where it is, but it was near Sintra.",
        "Twisted it on wet leaves.",
        "How could I leave Ghent.",
    ],
)
def test_what_cannot_be_rewritten_safely_is_kept_word_for_word(said: str) -> None:
    assert extracted(turn(said)) == [f"Mara said: {said}"]


def test_a_remark_to_the_listener_names_the_listener() -> None:
    before = turn("I ran for an hour.", speaker="Jonas", source="a")
    assert extracted(turn("You ran like a hare through the park!"), before) == [
        "Mara said to Jonas: You ran like a hare through the park!"
    ]
    assert third_person("you ran with me", "Mara") is None


@pytest.mark.parametrize(
    "said",
    [
        "Hey Jonas! How are you?",
        "Wow, that's awesome! Congratulations!",
        "Thanks, Jonas! Your kind words mean a lot.",
        "Talk to you soon, bye!",
        "Haha. Good luck!",
        "What time does the train leave?",
        "So you're the boss now?",
        "Details.",
        "😀😀 !!!",
    ],
)
def test_small_talk_and_questions_are_dropped(said: str) -> None:
    assert extracted(turn(said), turn("Hi", speaker="Jonas", source="a")) == []


def test_a_statement_inside_a_question_is_kept() -> None:
    assert extracted(turn("No thanks, I'm a vegetarian, remember?")) == ["No thanks, Mara is a vegetarian."]
    assert extracted(turn("Lena is getting married too, can you believe it?")) == [
        "Mara said: Lena is getting married too."
    ]


def test_sentences_that_lean_on_one_another_stay_together() -> None:
    said = "Oh, and I adopted a dog! Her name is Pepper. By the way, I moved to Utrecht."
    assert extracted(turn(said)) == ["Mara adopted a dog! Her name is Pepper.", "Mara moved to Utrecht."]


def test_two_attributes_in_one_sentence_become_two_facts() -> None:
    said = "I live in Ghent, above the bike shop, and I work at the city library and I'm allergic to nuts."
    assert extracted(turn(said)) == [
        "Mara lives in Ghent, above the bike shop.",
        "Mara works at the city library.",
        "Mara is allergic to nuts.",
    ]
    assert extracted(turn("I live in Ghent and I love it.")) == ["Mara lives in Ghent and Mara loves it."]


def test_an_answer_keeps_the_question_that_it_needs() -> None:
    asked = "Nice. Does it have a name?"
    assert extracted(turn("Kermit, obviously.", previous=asked)) == [
        'Mara, asked "Does it have a name?", said: Kermit, obviously.'
    ]
    assert extracted(turn("Since I was 17.", previous="How long have you been painting?")) == [
        'Mara, asked "How long have you been painting?", said: Since I was 17.'
    ]
    # A sentence that stands alone does not drag the question along.
    assert extracted(turn("I teach maths.", previous="What do you do for a living?")) == ["Mara teaches maths."]


def test_a_bare_yes_to_a_question_of_substance_is_a_fact() -> None:
    assert extracted(turn("Yes, I did!", previous="Did you join the choir?")) == [
        'Mara, asked "Did you join the choir?", said: Yes, I did!'
    ]
    assert extracted(turn("Yes!", previous="How are you?")) == []


@pytest.mark.parametrize(
    ("said", "dated"),
    [
        ("I ran yesterday.", "I ran yesterday (7 March 2025)."),
        ("I ran the day before yesterday.", "I ran the day before yesterday (6 March 2025)."),
        ("I ran two days ago.", "I ran two days ago (6 March 2025)."),
        ("I moved last week.", "I moved last week (the week before 8 March 2025)."),
        ("I moved last weekend.", "I moved last weekend (the weekend before 8 March 2025)."),
        ("I ran last Friday.", "I ran last Friday (7 March 2025)."),
        ("I ran last Saturday.", "I ran last Saturday (1 March 2025)."),
        ("I leave next Saturday.", "I leave next Saturday (15 March 2025)."),
        ("I ran last Fri.", "I ran last Fri (7 March 2025)."),
        ("I leave next month.", "I leave next month (April 2025)."),
        ("It opened ten years ago.", "It opened ten years ago (2015)."),
        ("I woke up early this morning.", "I woke up early this morning (8 March 2025)."),
        ("The trip is on 9 May.", "The trip is on 9 May 2025."),
        ("I fell on 12 February.", "I fell on 12 February 2025."),
        ("We meet on May 3rd.", "We meet on May 3rd (3 May 2025)."),
        ("The race is on 12 October.", "The race is on 12 October 2025."),
        ("It broke on 20 December.", "It broke on 20 December 2024."),
        ("I started there in December.", "I started there in December 2024."),
        ("They are moving there in September.", "They are moving there in September 2025."),
        ("I have until next Friday.", "I have until next Friday (14 March 2025)."),
        ("The wedding is on 23 May next year.", "The wedding is on 23 May next year (23 May 2026)."),
        ("We went a few weeks ago.", "We went a few weeks ago (a few weeks before 8 March 2025)."),
        ("I ran on Friday.", "I ran on Friday (7 March 2025)."),
    ],
)
def test_relative_dates_become_absolute(said: str, dated: str) -> None:
    assert resolve(said, SATURDAY) == dated
    assert len(dates_in(dated)) == 1


@pytest.mark.parametrize(
    "said",
    [
        "Every Monday I run.",
        "The class is on Tuesday evenings.",
        "My birthday is on 3 May.",
        "I may march.",
        "On 31 June.",
        "I have 2 weeks.",
    ],
)
def test_what_is_no_date_of_an_event_stays(said: str) -> None:
    assert resolve(said, SATURDAY) == said


def test_without_a_time_dates_stay_relative() -> None:
    said = Turn(source_id="t", speaker="Mara", text="I moved yesterday.")
    assert extracted(said) == ["Mara moved yesterday."]


def test_photos_are_facts() -> None:
    said = turn("Look at this! [shares a photo: a photo of a bowl with a flower design]")
    assert extracted(said) == ["Mara shared a photo of a bowl with a flower design."]
    assert extracted(turn("[shares a photo: our dog]")) == ["Mara shared a photo: our dog."]
    assert extracted(turn("[shares a photo]")) == []


def test_abbreviations_do_not_end_a_sentence() -> None:
    assert list(sentences("I saw Dr. Weiss at 5 p.m. today. She was kind.")) == [
        "I saw Dr. Weiss at 5 p.m. today.",
        "She was kind.",
    ]


def test_stems_bring_forms_of_a_word_together() -> None:
    assert {stem(w) for w in ("live", "lives", "living", "lived")} == {stem("live")}
    assert stem("bought") == stem("buys")
    assert stem("Katrin's") == stem("Katrin")


def test_a_document_is_kept_whole_in_passages() -> None:
    text = " ".join(f"Sentence number {i} is about town {i}." for i in range(1_500))
    facts = extracted(turn(text))
    assert 20 < len(facts) < 200
    assert all(fact.startswith("Mara wrote: ") and len(fact) <= 1_100 for fact in facts)
    assert " ".join(fact.removeprefix("Mara wrote: ") for fact in facts) == text


def test_same_turn_same_reply_and_the_name() -> None:
    request = ExtractRequest(turn=turn("I live in Ghent."))
    policy = RuleExtractor()
    assert policy.reply(request) == RuleExtractor().reply(request)
    assert (policy.name, policy.policy_version) == ("rule", None)
    assert json.loads(policy.reply(request)) == {"facts": ["Mara lives in Ghent."]}


@pytest.mark.anyio
async def test_async_equals_sync() -> None:
    request = ExtractRequest(turn=turn("I live in Ghent.", at=datetime(2025, 1, 1, tzinfo=UTC)))
    assert await RuleExtractor().areply(request) == RuleExtractor().reply(request)

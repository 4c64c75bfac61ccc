from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memweave.agents.cognition import load_machine
from memweave.agents.leaks import Source, leaks

SOURCE = Source(
    question='In which year did the composer of "Night Ferry" move to Ghent?',
    answers=("1994",),
    found=("Night Ferry is an opera by Mara Levin [3], first given in 2,310 cities.", "She then lived in Ghent with her dog for years."),
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "leak"),
    [
        ("Consider asking where Levin lived.", "the name 'Levin'"),
        ("Ghent may be a good place to start.", "the name 'Ghent'"),
        ("A year such as 1994 may be wrong.", "the number 1994"),
        ("Numbers such as 2310 may be wrong.", "the number 2310"),
        ('Consider looking for "an opera by" first.', "the quotation 'an opera by'"),
        ("Consider looking for 'first given' first.", "the quotation 'first given'"),
        ("She may have then lived in Ghent with a cat.", "the name 'Ghent'"),
        ("Consider that she then lived in ghent with somebody.", "the words 'she then lived in ghent'"),
        ("Consider who the composer was first.", "the word 'composer'"),
        ("consider the FERRY", "the word 'ferry'"),
    ],
)
def test_what_a_strategy_tells_of_its_question_is_named(text: str, leak: str) -> None:
    assert leak in leaks(text, SOURCE)


@pytest.mark.parametrize(
    "text",
    [
        "When a search brings nothing useful, consider planning anew before answering.",
        "Consider at most 3 searches; more tend not to help.",  # the number of a passage is none of the question
        "For questions about a year, it may help to look the person up first.",
        "In comparisons, consider looking up each part independently.",
        "Then it may help to answer from what was found.",
        'A "bridge" question may need two searches.',
    ],
)
def test_general_advice_passes(text: str) -> None:
    assert leaks(text, SOURCE) == []


def test_words_that_are_allowed_pass_and_others_do_not() -> None:
    assert leaks("Consider the composer.", SOURCE, allowed="composers") == []
    assert leaks("Consider the composer's dog.", Source(question="Whose dog?"), allowed="composers") == [
        "the word 'dog'"
    ]


def test_the_words_of_the_machine_are_general() -> None:
    """So that every strategy of the rules passes, whatever was asked."""
    said = " ".join(part for state in load_machine("cognitive").states for part in (state.when, state.act) if part)
    assert leaks(said, Source(question=said), allowed=said)[1:] == []  # the run of words itself
    assert (
        leaks("Consider searching step by step.", Source(question="Is searching step by hand a thing?"), allowed=said)
        == []
    )


@given(st.text(max_size=200), st.text(max_size=200))
def test_the_check_never_fails_on_any_text(text: str, question: str) -> None:
    for found in leaks(text, Source(question=question, found=(text,))):
        assert found.split()[1] in ("name", "number", "quotation", "words", "word")


@given(
    st.sampled_from(["Ghent", "Levin", "1994", "Night Ferry"]),
    st.sampled_from(["Consider {}.", "It may be {}, or not.", "{} may help."]),
)
def test_names_numbers_and_answers_are_found_wherever_they_stand(secret: str, frame: str) -> None:
    assert leaks(frame.format(secret), SOURCE)

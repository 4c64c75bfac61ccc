"""How a query is read: which participants it names, and what is left to embed without their names."""

from __future__ import annotations

import pytest

from memweave.memory_stores.text import named_speakers


@pytest.mark.parametrize(
    ("query", "speakers", "rest", "named"),
    [
        ("When did Melanie paint?", ["Melanie", "Caroline"], "When did paint?", ["Melanie"]),
        ("When did Mel paint?", ["Melanie", "Caroline"], "When did paint?", ["Melanie"]),
        ("where is caroline's dog", ["Caroline"], "where is dog", ["Caroline"]),
        ("Caroline’s dog and Mel's cat", ["Caroline", "Melanie"], "dog and cat", ["Caroline", "Melanie"]),
        ("What did Smith say?", ["Anna Smith"], "What did say?", ["Anna Smith"]),
        ("melt the butter", ["Melanie"], "melt the butter", []),
        ("the mel lowers", ["Melanie"], "the mel lowers", []),
        ("Anna", ["Anna"], "Anna", ["Anna"]),
        ("what did the user say?", ["user", "assistant"], "what did the user say?", []),
        ("no names here", [], "no names here", []),
    ],
)
def test_names_are_found_and_taken_out(query: str, speakers: list[str], rest: str, named: list[str]) -> None:
    assert named_speakers(query, speakers) == (rest, named)


@pytest.mark.parametrize(
    ("query", "speakers", "rest", "named"),
    [
        ("The band?", ["Theo"], "The band?", []),
        ("Can Ann swim?", ["Candace", "Ann"], "Can swim?", ["Ann"]),
        ("Has Ann a dog?", ["Hassan", "Ann"], "Has a dog?", ["Ann"]),
        ("Will Ann go?", ["Will", "Ann"], "Will go?", ["Ann"]),
        ("where will Ann go?", ["Will", "Ann"], "where will go?", ["Ann"]),
        ("Where does Will go?", ["Will", "Ann"], "Where does go?", ["Will"]),
        ("Where does The go?", ["Theo"], "Where does The go?", []),
    ],
)
def test_ordinary_words_are_not_taken_for_names(query: str, speakers: list[str], rest: str, named: list[str]) -> None:
    assert named_speakers(query, speakers) == (rest, named)

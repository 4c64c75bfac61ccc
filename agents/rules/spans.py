"""Cutting a short answer out of a sentence."""

from __future__ import annotations

import re
from typing import Final

from memweave.agents.rules.dates import ABSOLUTE
from memweave.agents.rules.lexicon import CUTS, PETS, STOP
from memweave.agents.rules.text import NUMBER_WORDS, names_in, stem, words

MOST_WORDS: Final = 6
"""An answer has at most this many words (Memory-R1, section 3.7)."""

_DURATION = re.compile(
    r"\b(?:(?:about|around|almost|nearly|over|more than) )?(?:\d{1,4}|a|an|a few|several|half an|"
    + "|".join(NUMBER_WORDS)
    + r") (?:second|minute|hour|day|week|month|year)s?"
    r"(?: and (?:\d{1,3}|a half|[a-z]{3,6})(?: (?:second|minute|hour|day|week|month)s?)?)?\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\b(?:\d{1,6}|once|twice|three times|" + "|".join(NUMBER_WORDS) + r")\b", re.IGNORECASE)
_PLACE = re.compile(
    r"\b(?:in|at|to|from|near|on|into|around) ((?:the |an? |my )?(?:[A-Z][\w'-]+)(?:[ -](?:of |the )?[A-Z][\w'-]+){0,3})"
)
_ANY_PLACE = re.compile(r"\b(?:in|at|to|from|near|on|into|with|by) ((?:the|an?|my|our|their) [\w'-]+(?: [\w'-]+){0,3})")
_NAMED = re.compile(r"\b(?:name is|names are|named|called|name's) ([A-Z][\w-]+)(?:(?:,| and|, and) ([A-Z][\w-]+))?")
_IS_A = re.compile(
    r"\b([A-Z][\w-]+) (?:is|was) [^.!?]{0,40}?(?:[.!?] (?:He|She|It)(?:'s| is) )?(?:an? |my )(?:[\w-]+ )??([a-z-]+)"
)
_DEFINES = re.compile(r"\b([A-Z][\w-]+)(?: is|'s) an? ([^.!?]{2,80})")
EARLIER: Final = re.compile(r" Earlier \(\d{4}-\d\d-\d\d\): ")
_QUOTED = re.compile(r'"([^"]{2,80})"')
_COUNTS: Final = {"a": 1, "an": 1, "another": 1, "my": 1, "our": 1, **NUMBER_WORDS}


def date_in(text: str) -> str | None:
    """Return the first absolute date in a text."""
    match = ABSOLUTE.search(text)
    return match.group() if match else None


def duration_in(sentence: str) -> str | None:
    """Return the first length of time in a sentence."""
    match = _DURATION.search(ABSOLUTE.sub(" ", sentence))
    return match.group() if match else None


def number_in(sentence: str) -> str | None:
    """Return the first number in a sentence, dates aside."""
    match = _NUMBER.search(ABSOLUTE.sub(" ", sentence))
    return match.group() if match else None


def count(values: list[str], noun: str | None) -> int:
    """Return how many things `values` name ("a cat", "two dogs"); only those of the kind `noun`, when given."""
    kept = [v.lower() for v in values if noun is None or any(stem(w) == noun for w in words(v))]
    return sum(next((_COUNTS[w] for w in words(v) if w in _COUNTS), 1) for v in kept)


def place_in(sentence: str, without: frozenset[str]) -> str | None:
    """Return the first place in a sentence that is not among the stems of the question."""
    for pattern in (_PLACE, _ANY_PLACE):
        for match in pattern.finditer(ABSOLUTE.sub(" ", sentence)):
            if not {stem(w) for w in words(match[1])} & without:
                return match[1]
    return None


def person_in(sentence: str, without: frozenset[str]) -> str | None:
    """Return the first proper name in a sentence that is not among the given stems."""
    names = names_in(f"x {sentence}") - without
    return next((w for w in words(sentence) if w[0].isupper() and stem(w) in names and w.lower() not in STOP), None)


def names_given(text: str, noun: str | None) -> list[str]:
    """Return the names that a memory gives, the oldest first: "her name is Pepper", "Pepper is a whippet" when asked for dogs."""
    found: list[str] = []
    for part in reversed(EARLIER.split(text)):
        found += [name for match in _NAMED.finditer(part) for name in match.groups() if name]
        if noun is not None:
            found += [
                m[1] for m in _IS_A.finditer(part) if stem(m[2]) == noun or (m[2] in PETS and noun in ("pet", "dog"))
            ]
    return list(dict.fromkeys(found))


def what_is(sentence: str, names: frozenset[str]) -> str | None:
    """Return what a sentence says that one of `names` is: "Pepper is a whippet from the shelter"."""
    for match in _DEFINES.finditer(sentence):
        if stem(match[1]) in names:
            return shortened(match[2])
    return None


def rest_of(sentence: str, stems: frozenset[str], verb: str | None) -> str:
    """Return what a sentence says beyond the question: what follows the question's verb, otherwise the sentence itself.

    stems: of the question. A quotation in the sentence (a title) wins, unless the question named it.
    """
    quoted = _QUOTED.search(sentence)
    if quoted is not None and not {stem(w) for w in words(quoted[1])} & stems:
        return quoted[1]
    tokens = ABSOLUTE.sub("", re.sub(r"\s*\([^()]{0,80}\)", "", sentence)).split()
    at = next((i for i, token in enumerate(tokens) if verb and any(stem(w) == verb for w in words(token))), None)
    after = _until_stop(tokens[at + 1 :]) if at is not None else []
    new = [w for token in after for w in words(token) if w.lower() not in STOP and stem(w) not in stems]
    return shortened(" ".join(after)) if new else shortened(" ".join(_until_stop(tokens)))


def _until_stop(tokens: list[str]) -> list[str]:
    for i, token in enumerate(tokens):
        if token[-1] in ".!?;:" or (token[-1] == "," and i >= 2):
            return tokens[: i + 1]
        if i >= 3 and token.lower() in CUTS:
            return tokens[:i]
    return tokens


def first_clause(text: str) -> str:
    """Return `text` up to its first comma, full stop or conjunction, if that comes after a few words."""
    return " ".join(_until_stop(text.split()))


def shortened(text: str) -> str:
    """Return the first words of `text`, at most `MOST_WORDS`, without function words and punctuation at its ends."""
    tokens = text.split()
    while tokens and (tokens[0].lower().strip(",.;:-–—") in STOP | {"is", "-", ""}) and len(tokens) > 1:
        tokens.pop(0)
    tokens = tokens[:MOST_WORDS]
    while len(tokens) > 1 and tokens[-1].lower().strip(",.;:!?-–—") in STOP | {""}:
        tokens.pop()
    return " ".join(tokens).strip(' ,.;:!?-–—"')

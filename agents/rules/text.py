"""Reading plain English without a model: sentences, content words, and how much two statements share.

Everything here is linear in the length of its input: no pattern has a repeated group inside a repeated group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Final

from memweave.agents.rules.lexicon import IRREGULAR_PAST, SAME_IN_PAST, STOP

LONG_SENTENCE: Final = 1_000
"""In characters; a longer stretch without a full stop is cut at a space."""

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028\u2029\ufeff]+")
_SPACES = re.compile(r"[ \t\u00a0]+")
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"')\]]{0,3}+(?=\s|$)|\n")
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|a\.m|p\.m|approx|[A-HJ-Z])\.$")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+|\.[0-9]+)*")
_NEGATION = re.compile(r"\b(?:no|not|never|none|nothing|neither|without|no longer|cannot|\w{2,10}n't)\b", re.IGNORECASE)
_COUNTING = "zero one two three four five six seven eight nine ten eleven twelve"
NUMBER_WORDS: Final = {word: number for number, word in enumerate(_COUNTING.split())}


def clean(text: str) -> str:
    """Return `text` with straight apostrophes, without control characters, and with single spaces; line breaks stay."""
    text = text.replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"')
    return _SPACES.sub(" ", _CONTROL.sub(" ", text)).strip()


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of cleaned text, without their line breaks, none longer than `LONG_SENTENCE`."""
    start = 0
    for match in _END.finditer(text):
        end = match.end()
        if match.group() == "." and _ABBREVIATION.search(text[max(0, end - 8) : end]):
            continue
        yield from _short(text[start:end])
        start = end
    yield from _short(text[start:])


def _short(sentence: str) -> Iterator[str]:
    sentence = sentence.strip()
    while len(sentence) > LONG_SENTENCE:
        cut = sentence.rfind(" ", LONG_SENTENCE // 2, LONG_SENTENCE)
        cut = LONG_SENTENCE if cut < 0 else cut
        yield sentence[:cut].rstrip()
        sentence = sentence[cut:].lstrip()
    if any(c.isalnum() for c in sentence):
        yield sentence


def words(text: str) -> list[str]:
    """Return the words of `text` as written."""
    return _WORD.findall(text)


@lru_cache(maxsize=16_384)
def stem(word: str) -> str:
    """Return a rough stem: lower case, base form of irregular verbs, endings -s, -ed, -ing and 's taken off."""
    word = word.lower().replace("’", "'")
    word = word.removesuffix("'s").removesuffix("'")
    if word in NUMBER_WORDS:
        return str(NUMBER_WORDS[word])
    word = IRREGULAR_PAST.get(word, word)
    if len(word) <= 3 or word in SAME_IN_PAST or not word.isalpha():
        return word
    for ending in ("ing", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and any(v in word[: -len(ending)] for v in "aeiouy"):
            word = word[: -len(ending)]
            if word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    else:
        if word.endswith("ies") and len(word) > 4:
            word = word[:-3] + "y"
        elif word.endswith(("sses", "shes", "ches", "xes", "zes")):
            word = word[:-2]
        elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
            word = word[:-1]
    return word.removesuffix("e") if len(word) > 3 else word


def content(text: str, without: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return the stems of the content words and numbers of `text`, less the stems in `without`."""
    return frozenset(stem(w) for w in words(text) if w.lower().replace("’", "'") not in STOP) - without


def negated(text: str) -> bool:
    """Return whether `text` contains a negation."""
    return _NEGATION.search(text) is not None


def names_in(text: str) -> frozenset[str]:
    """Return the stems of capitalised words that do not open the text: names, mostly."""
    return frozenset(stem(w) for w in words(text)[1:] if w[0].isupper() and w.lower() not in STOP)


def neighbours(text: str) -> frozenset[tuple[str, str]]:
    """Return the stems of content words that stand side by side, function words between them aside."""
    found = [stem(w) for w in words(text) if w.lower() not in STOP]
    return frozenset(pairwise(found))

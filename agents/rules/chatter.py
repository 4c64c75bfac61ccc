"""Which sentences carry information: telling statements from questions, greetings, thanks and reactions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from memweave.agents.rules.lexicon import (
    ANAPHORS,
    AUXILIARIES,
    BARE_OPENERS,
    BASE_VERBS,
    CONNECTORS,
    FRAGMENT_STARTS,
    IRREGULAR_PAST,
    OPENERS,
    QUESTION_STARTS,
    SAME_IN_PAST,
    SMALL_TALK,
    STOP,
    TAGS,
)
from memweave.agents.rules.text import sentences, stem, words

SHORT_REACTION: Final = 6
"""In words: a longer sentence about the speaker is kept even when its words are those of reactions."""

_OWN = re.compile(r"\b(?:I|me|my)\b|\bI'")
_OPENER = re.compile(r"([A-Za-z]+)([,!.:]?+)\s+")
_PHRASE = re.compile(
    r"(?:oh no|by the way|to be honest|guess what|oh my god|thank goodness|thank god|you know what)[,:!]?\s+",
    re.IGNORECASE,
)
_TRAILING = re.compile(
    r",? (?:by the way|i'm afraid|btw|you know|as you know|as you may remember)(?=[.!?]*$)", re.IGNORECASE
)
_ANSWER = re.compile(
    r"(?:yes|yeah|yep|yup|yea|no|nope|nah|of course|definitely|absolutely|sure|not yet|never|always"
    r"|i (?:do|did|don't|didn't|have|haven't|am|was|will|can))\b",
    re.IGNORECASE,
)
_SMALL_STEMS: Final = frozenset(stem(word) for word in SMALL_TALK)


def is_question(sentence: str) -> bool:
    """Return whether the sentence asks."""
    return sentence.rstrip("\"') !").endswith("?")


def statement_in(sentence: str) -> str | None:
    """Return what a question states on the way ("I'm a vegetarian, remember?"), or `None`."""
    head, comma, tail = sentence.rstrip("\"')?! ").rpartition(",")
    last, first = tail.lower().split(), words(head)
    if not comma or not last or len(first) < 3 or len(last) > 5:
        return None
    if first[0].lower() in QUESTION_STARTS or (last[0] not in TAGS and last[0] not in QUESTION_STARTS):
        return None
    return head + "."


def opened(sentence: str, names: frozenset[str]) -> str:
    """Return the sentence without the words it opens with ("Oh, by the way, ...", "Hey Mara, ...").

    names: lower-case names of the participants.
    """
    while True:
        if (phrase := _PHRASE.match(sentence)) is not None:
            sentence = sentence[phrase.end() :]
            continue
        match = _OPENER.match(sentence)
        if match is None:
            return sentence
        word, mark = match[1].lower(), match[2]
        opener = (
            word in OPENERS and (bool(mark) or word in BARE_OPENERS) and not sentence[match.end() :].startswith("for ")
        )
        if not opener and not (bool(mark) and is_name(word, names)):
            return sentence
        sentence = sentence[match.end() :]


def trimmed(sentence: str) -> str:
    """Return the sentence without a closing "by the way"."""
    return _TRAILING.sub("", sentence)


def is_name(word: str, names: frozenset[str]) -> bool:
    """Return whether `word` is a participant's name or a short form of one ("Mel" for Melanie)."""
    word = word.lower().removesuffix("'s")
    return any(word == name or (len(word) >= 3 and name.startswith(word)) for name in names)


def is_small_talk(sentence: str, names: frozenset[str]) -> bool:
    """Return whether the sentence is made of greetings, thanks and reactions only."""
    found = words(sentence)
    if len(found) > SHORT_REACTION and _OWN.search(sentence):
        return False
    content = [w for w in found if w.lower() not in STOP and not is_name(w, names)]
    return all(w.lower() in SMALL_TALK or stem(w) in _SMALL_STEMS for w in content)


def is_fragment(sentence: str) -> bool:
    """Return whether the first clause has no verb of its own ("Every Sunday, in a quartet.")."""
    clause = sentence.split(",", 1)[0]
    found = [w.lower() for w in words(clause)]
    if not found or (len(found) <= 4 and found[-1] in AUXILIARIES | {"to", "one"}):
        return True  # "Felix is.", "Somebody has to."
    if found[0] in ("since", "because", "when", "until", "'cause", "cause") and "," not in sentence:
        return True  # "Since I was 17 or so."
    if any(w in AUXILIARIES or w in IRREGULAR_PAST or w in SAME_IN_PAST or "'" in w[1:] for w in found):
        return False
    first_is_preposition = (
        found[0] in FRAGMENT_STARTS or found[0] in ("every", "a", "an", "the", "my", "our") or found[0].isdigit()
    )
    if first_is_preposition:
        return not any(w.endswith("ed") or _third_of_known(w) for w in found[1:])
    return not any(w.endswith("ed") or w in BASE_VERBS or _third_of_known(w) for w in found)


def _third_of_known(word: str) -> bool:
    return word.endswith("s") and (word[:-1] in BASE_VERBS or word[:-2] in BASE_VERBS)


def leans_back(sentence: str) -> bool:
    """Return whether the sentence continues the one before it: it opens with a pronoun, a connector, or has no verb."""
    first = words(sentence)[:1]
    if not first:
        return True
    word = first[0].lower()
    return word in ANAPHORS or word in CONNECTORS or is_fragment(sentence)


def is_anaphoric(sentence: str) -> bool:
    """Return whether the sentence opens with a pronoun for something said before."""
    first = words(sentence)[:1]
    return bool(first) and first[0].lower() in ANAPHORS


def question_of(message: str | None, names: frozenset[str]) -> str | None:
    """Return the last question of the previous message that asks something in particular, at most 200 characters."""
    if not message:
        return None
    asked = [s for s in sentences(message[-2_000:]) if is_question(s) and statement_in(s) is None]
    telling = (opened(s, names) for s in reversed(asked) if not is_small_talk(s, names))
    found = next(telling, None)
    return found.replace('"', "'")[-200:] if found else None


def answers(sentence: str, question: str | None) -> bool:
    """Return whether a short "yes" or "no" answers a yes-or-no question."""
    if question is None or not _ANSWER.match(sentence):
        return False
    first = words(question)[:1]
    return bool(first) and first[0].lower() in AUXILIARIES | {"any", "ever", "you"}


def lower_names(speakers: Iterable[str]) -> frozenset[str]:
    """Return the lower-case words of the participants' names."""
    return frozenset(word.lower() for speaker in speakers for word in words(speaker))

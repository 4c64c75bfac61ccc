"""Reading a question: what kind of answer it wants, whom it is about, and which attribute it asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from memweave.agents.rules.attributes import event_head
from memweave.agents.rules.chatter import is_name
from memweave.agents.rules.lexicon import AUXILIARIES, FAMILY, QUESTION_WORDS, STOP
from memweave.agents.rules.patterns import EVENT
from memweave.agents.rules.text import clean, content, stem, words


class Kind(Enum):
    """What kind of answer a question wants."""

    WHEN = "when"
    HOW_LONG = "how long"
    HOW_MANY = "how many"
    WHERE = "where"
    WHO = "who"
    YES_NO = "yes or no"
    CHOICE = "one of two"
    WHAT = "what"


@dataclass(frozen=True)
class Question:
    """What was asked."""

    text: str
    kind: Kind
    speakers: tuple[str, ...]
    """Participants that it names."""
    names: frozenset[str]
    """Stems of other proper names in it: an answer must be about them."""
    stems: frozenset[str]
    """Stems that say what it is about."""
    attribute: str | None
    subject: str
    """`I` for the participant, otherwise a stem, as in `Slot`."""
    options: tuple[str, ...]
    verb: str | None
    """Stem of what the question says that was done: the first content word after "did Mara"."""
    now: bool
    """Whether it asks how things are, not how they were."""


_ASKING: Final = frozenset(stem(word) for word in QUESTION_WORDS)
_ATTRIBUTES: Final[tuple[tuple[str, re.Pattern[str]], ...]] = tuple(
    (attribute, re.compile(pattern, re.IGNORECASE))
    for attribute, pattern in (
        ("residence", r"\bwhere\b.{1,60}\b(?:live|lives|living|reside|move to|moved to|based)\b"),
        ("residence", r"\b(?:which|what) (?:city|town|country)\b.{1,60}\blive"),
        (
            "employer",
            r"\b(?:where|who|for whom|(?:what|which) company)\b.{1,60}\b(?:work|works|working|job)\b|\bemployer\b",
        ),
        ("staying", r"\bwhere\b.{1,60}\b(?:stay|staying)\b"),
        ("occupation", r"\bwhat\b.{1,60}\b(?:for a living|for work|job|profession|occupation)\b"),
        ("age", r"\bhow old\b"),
        ("phone", r"\b(?:phone|mobile|cell) number\b|\bnumber\b.{1,30}\b(?:call|reach)\b"),
        ("e-mail", r"\be-?mail\b"),
        ("address", r"\baddress\b"),
        ("relationship", r"\brelationship status\b|\b(?:married|single|engaged|divorced)\?"),
        ("diet", r"\b(?:vegan|vegetarian|diet)\b"),
        ("allergy", r"\ballerg"),
        ("instrument", r"\binstruments?\b"),
        ("language", r"\b(?:which|what) languages?\b|\blanguages\b"),
        ("pet", r"\b(?:how many|what|which|any) (?:pets?|dogs?|cats?|animals?)\b"),
        ("name", r"\bname of\b|\bnamed\b|\bcalled\b|\bnames?\b|\bwho is\b|\bwho's\b"),
    )
)
_NOW = re.compile(r"\b(?:do|does|is|are|am|has|have|still)\b", re.IGNORECASE)
_FAVOURITE = re.compile(r"\b(?:favou?rite|fave) ([a-z]+)", re.IGNORECASE)
_CHOICE = re.compile(r"(?P<a>[\w' -]{2,40}?),? or (?:an? |the )?(?P<b>[\w' -]{2,40})\?$")


def read_question(text: str, participants: Iterable[str]) -> Question:
    """Return what `text` asks. participants: the names of those whose memories are shown."""
    text = clean(text)[:2_000]
    everyone = tuple(dict.fromkeys(participants))
    found = words(text)
    named = tuple(
        p for p in everyone if any(w[0].isupper() and is_name(w, frozenset(x.lower() for x in words(p))) for w in found)
    )
    of_people = {w for w in found if any(is_name(w, frozenset(x.lower() for x in words(p))) for p in everyone)}
    names = frozenset(stem(w) for w in found[1:] if w[0].isupper() and w not in of_people and w != "I")
    stems = content(text) - frozenset(stem(w) for w in of_people) - _ASKING
    kind, options = _kind(text, found)
    attribute, subject = _attribute(text, found, names)
    return Question(
        text,
        kind,
        named,
        names,
        stems,
        attribute,
        subject,
        options,
        _verb(text, of_people),
        _NOW.search(text) is not None,
    )


def _kind(text: str, found: list[str]) -> tuple[Kind, tuple[str, ...]]:
    lower = text.lower()
    first = found[0].lower() if found else ""
    if (choice := _CHOICE.search(text)) is not None:
        return Kind.CHOICE, (_option(choice["a"]), _option(choice["b"]))
    if re.search(r"\bhow (?:long|much time)\b", lower):
        return Kind.HOW_LONG, ()
    if re.search(r"\bhow (?:many|much|often)\b", lower):
        return Kind.HOW_MANY, ()
    if re.search(r"\bwhen\b|\b(?:what|which) (?:date|day|month|year)\b", lower):
        return Kind.WHEN, ()
    for kind, starts in ((Kind.WHERE, ("where",)), (Kind.WHO, ("who", "who's", "whose", "whom"))):
        if first in starts or any(f" {start} " in lower for start in starts):
            return kind, ()
    return (Kind.YES_NO, ()) if first in AUXILIARIES else (Kind.WHAT, ())


def _verb(text: str, people: set[str]) -> str | None:
    found = words(text)
    start = next((i for i, w in enumerate(found) if w.lower() in AUXILIARIES), None)
    if start is None:
        return None
    telling = (stem(w) for w in found[start + 1 :] if w not in people and w.lower() not in STOP and w[0].islower())
    return next(telling, None)


def _option(text: str) -> str:
    """Return the last part of what stands beside "or", from its article or after its last function word."""
    tokens = text.split(",")[-1].split()
    for i in range(len(tokens) - 1, -1, -1):
        if tokens[i].lower() in STOP:
            return " ".join(tokens[i + 1 :]) or text.strip()
    return " ".join(tokens[-3:])


def _attribute(text: str, found: list[str], names: frozenset[str]) -> tuple[str | None, str]:
    subject = next((stem(w) for w in found if w.lower() in FAMILY), None) or next(iter(sorted(names)), "I")
    if (favourite := _FAVOURITE.search(text)) is not None:
        return f"favourite {stem(favourite[1])}", "I"
    for attribute, pattern in _ATTRIBUTES:
        if pattern.search(text):
            return attribute, subject if attribute not in ("pet", "instrument", "language", "staying") else "I"
    event = EVENT.search(text)
    if event is not None and re.search(r"\bwhen\b|\bwhich day\b|\bwhat day\b", text, re.IGNORECASE):
        return "date", event_head(event)
    return None, subject

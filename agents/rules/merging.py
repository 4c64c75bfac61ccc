"""How two statements of one speaker relate, and the text that holds both."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import pairwise, takewhile
from typing import Final, TypeAlias

from memweave.agents.rules.attributes import Slot, canonical
from memweave.agents.rules.dates import ABSOLUTE, dates_in
from memweave.agents.rules.lexicon import IRREGULAR_PAST, SMALL_TALK, STANDING, STOP
from memweave.agents.rules.patterns import PHOTO
from memweave.agents.rules.text import content, names_in, negated, sentences, stem, words
from memweave.agents.rules.voice import said_prefix, stated_by

Noun: TypeAlias = tuple[str, frozenset[str]]
"""Stems of the head of a noun phrase, and of the words before it."""

LONGEST_MERGE: Final = 600
"""In characters: a memory does not grow beyond this by merging."""

LONGEST_READ: Final = 4_000
"""In characters: a longer text is compared letter by letter only."""

SAME_TOPIC: Final = 0.75
"""Share of the shorter statement's content words that the longer one must have for the two to be one memory, on different days."""

ENOUGH: Final = 3
"""Content words two statements must share at least to be merged on words alone."""

_SMALL_STEMS: Final = frozenset(stem(word) for word in SMALL_TALK)
_STANDING: Final = frozenset(stem(word) for word in STANDING)

_NP = r"((?:[\w'&+-]{1,24} ){0,3}[\w'&+-]{2,24})"
_INTRODUCED = re.compile(rf"\b(?:an?|another|some|new|two|three|four|five) (?={_NP})")
_REFERRED = re.compile(
    rf"\b(?:[Tt]he|[Tt]his|[Tt]hat|[Tt]hese|[Tt]hose|my|[Oo]ur|^(?:It|That|This|He|She)(?: was| is|'s) an?) (?={_NP})"
)
_RELATIVE = re.compile(
    r"\b(?:(?:last|next|this|past|coming) (?:week|weekend|month|year|night|summer|winter|spring|autumn|fall)s?"
    r"|yesterday|today|tonight|tomorrow|ago|recently|lately)\b",
    re.IGNORECASE,
)
_PART = re.compile(r"[^\w\s'&+]+")
_LINK = re.compile(r"\b(?:and|or|of|the|a|an|&)\b", re.IGNORECASE)
_ACRONYM = re.compile(r"\b[A-Z]{2,}\b\+?")
_YOURS = re.compile(r"\byour\b")
_SHOWN = re.compile(rf"\b(?:[Tt]his|[Tt]hese) (?={_NP})")
_OWNED = re.compile(rf"\b(?:my|our|[Tt]he) (?={_NP})")
_ADDRESSED = re.compile(r"[^:\"]{1,256} said to [^:\"]{1,256}: ")
_BEFORE = re.compile(r" ?\(before: [^()]{0,200}\)")
_CLAUSE = re.compile(r"(?:,|;| -| –|—) (?:and |but |so )?(?=(?:I|my|we|[A-Z][a-z]+(?:'s)?) )|;\s")


class Relation(Enum):
    """What a new statement is to an old one."""

    OTHER = "other"
    REPEATS = "repeats"
    CONTAINS = "contains"
    """Says all of the old one, and more."""


@dataclass(frozen=True)
class _Reading:
    stems: frozenset[str]
    """Content words, dates aside."""
    topic: frozenset[str]
    """Those that are not words of small talk either."""
    numbers: frozenset[str]
    dates: frozenset[str]
    negated: bool
    past: bool
    question: bool
    photo: bool
    addressed: bool
    """A remark to the listener: "Mara said to Jonas: ..."."""
    introduced: tuple[Noun, ...]
    """After "a", "another", "some": what is mentioned for the first time."""
    referred: tuple[Noun, ...]
    """After "the", "this", "my": what is taken as known."""
    shown: tuple[Noun, ...]
    """After "this", "these": what is in sight."""
    pairs: frozenset[tuple[str, str]]
    """Content words that stand together ("mental health")."""
    opens_with: str | None
    """The proper name that it begins with."""
    names: frozenset[str]


@lru_cache(maxsize=8_192)
def _read(text: str, speaker: str) -> _Reading:
    plain = _BEFORE.sub("", text)
    said, question = said_prefix(plain)
    undated = _RELATIVE.sub(" ", ABSOLUTE.sub(" ", said if question is None else f"{question} {said}"))
    stems = content(undated) - content(speaker)
    lower = [w.lower() for w in words(said)]
    spoken = canonical(_RELATIVE.sub(" ", text), speaker)
    return _Reading(
        stems=stems,
        topic=stems - _SMALL_STEMS,
        numbers=frozenset(s for s in stems if s[0].isdigit()),
        dates=dates_in(plain),
        negated=negated(said),
        past=any(w in IRREGULAR_PAST or (w.endswith("ed") and len(w) > 4) for w in lower),
        question=question is not None,
        addressed=_ADDRESSED.match(plain) is not None,
        photo=PHOTO.match(plain) is not None,
        introduced=(*_nouns(_INTRODUCED.findall(spoken)), *(n for n in _nouns(_OWNED.findall(spoken)) if n[1])),
        referred=_nouns(_REFERRED.findall(f"{spoken} {_YOURS.sub('my', question or '')}")),
        shown=_nouns(_SHOWN.findall(spoken)),
        pairs=_pairs(undated, content(speaker)),
        opens_with=_opening_name(said, speaker),
        names=frozenset(name for part in sentences(said) for name in names_in(_ACRONYM.sub("", part)))
        - content(speaker),
    )


def _nouns(phrases: list[str]) -> tuple[Noun, ...]:
    """Return (head, modifiers) of the noun phrases that begin at the given places: the words up to the first function word."""
    found: list[Noun] = []
    for phrase in phrases:
        kept = list(takewhile(_may_be_noun, words(phrase)))
        head = stem(kept[-1]) if kept else ""
        if len(head) > 2 and head not in _SMALL_STEMS | _STANDING:
            found.append((head, frozenset(stem(w) for w in kept[:-1]) - _SMALL_STEMS))
    return tuple(found)


def _may_be_noun(word: str) -> bool:
    return word.lower() not in STOP and word not in IRREGULAR_PAST and not word.endswith("ly")


def _pairs(text: str, without: frozenset[str]) -> frozenset[tuple[str, str]]:
    """Return content words that stand side by side, or with "and", "of" or "the" between ("mental health")."""
    found: set[tuple[str, str]] = set()
    for part in _PART.split(text):
        stems = ["" if w.lower() in STOP or stem(w) in without else stem(w) for w in words(_LINK.sub(" ", part))]
        found.update(pair for pair in pairwise(stems) if "" not in pair and _SMALL_STEMS.isdisjoint(pair))
    return frozenset(found)


def _opening_name(said: str, speaker: str) -> str | None:
    first = words(said)[:1]
    if not first or not first[0][0].isupper() or first[0].lower() in STOP or stem(first[0]) in content(speaker):
        return None
    return stem(first[0])


def _same_thing(referred: tuple[Noun, ...], introduced: tuple[Noun, ...]) -> bool:
    """Return whether something is referred to that was introduced: "the group" after "a support group", not after "an art group"."""
    return any(
        head == known and (not how or not which or how & which) for head, how in referred for known, which in introduced
    )


def relation(new: str, old: str, speaker: str, *, same_day: bool) -> Relation:
    """Return what `new` is to `old`, both said by `speaker`.

    same_day: whether both were said on one day. What was told in the past tense on two days may be two events, and two different
    dates or numbers are never one statement.
    """
    if max(len(new), len(old)) > LONGEST_READ:
        return Relation.REPEATS if new == old else Relation.OTHER
    a, b = _read(new, speaker), _read(old, speaker)
    if not a.stems or not b.stems or a.negated != b.negated or a.question != b.question:
        return Relation.OTHER
    if a.dates and b.dates and not a.dates & b.dates:
        return Relation.OTHER
    if a.stems == b.stems and a.dates <= b.dates:
        return Relation.REPEATS
    if a.photo or b.photo or (a.numbers - b.numbers and b.numbers - a.numbers) or (not same_day and (a.past or b.past)):
        return Relation.OTHER
    shared = len(a.stems & b.stems)
    if shared == len(a.stems) and shared >= 3 and a.dates <= b.dates:
        return Relation.REPEATS
    if shared == len(b.stems) and shared >= 3 and b.dates <= a.dates:
        return Relation.CONTAINS
    return Relation.OTHER


def identity(text: str, speaker: str) -> Hashable:
    """Return what two statements have in common when they repeat each other word for word, small words aside."""
    if len(text) > LONGEST_READ:
        return text
    read = _read(text, speaker)
    return (read.stems, read.dates, read.negated, read.question) if read.stems else text


def overlap(new: str, old: str, speaker: str, *, same_day: bool) -> float:
    """Return how sure it is that `new` goes on about what `old` says, in [0, 1]; 0 when they had better stay apart."""
    if max(len(new), len(old)) > LONGEST_MERGE:
        return 0.0
    a, b = _read(new, speaker), _read(old, speaker)
    shared = a.topic & b.topic
    if (
        not shared
        or a.photo
        or a.addressed
        or b.addressed
        or a.negated != b.negated
        or (a.dates and b.dates and not a.dates & b.dates)
    ):
        return 0.0
    if b.photo:
        return 0.5 if same_day and _same_thing(a.shown, b.introduced) else 0.0
    share, jaccard = len(shared) / min(len(a.topic), len(b.topic)), len(shared) / len(a.topic | b.topic)
    if same_day:
        refers = _same_thing(a.referred, b.introduced) or a.opens_with in b.names
        named_apart = bool(a.names and b.names and not a.names & b.names)  # the marathons of Hamburg and Bremen
        return 0.5 + share / 2 if refers or (a.pairs & b.pairs and not named_apart) else 0.0
    sure = len(shared) >= ENOUGH and share >= SAME_TOPIC and jaccard >= SAME_TOPIC / 3 and bool(a.pairs & b.pairs)
    return share if sure and not a.question and not (a.past and b.past) else 0.0


def joined(old: str, new: str, speaker: str, old_day: str | None) -> str | None:
    """Return one text that says both, the new first; `None` when it would grow beyond `LONGEST_MERGE`.

    old_day: when the old one was said, if not on the same day as the new one.
    """
    if old_day:
        text = f"{new} Earlier ({old_day}): {old}"
    else:  # before what was said on earlier days, so that it does not read as one of them
        same_day, earlier, rest = old.partition(" Earlier (")
        text = f"{same_day} {_unquoted(new, same_day, speaker)}{earlier}{rest}"
    return text if len(text) <= LONGEST_MERGE else None


def _unquoted(new: str, old: str, speaker: str) -> str:
    """Return `new` without its "X said:" when `old` already opens with it."""
    prefix = f"{speaker} said: "
    return new.removeprefix(prefix) if old.startswith(prefix) else new


def without(old: str, slot: Slot, speaker: str) -> str:
    """Return `old` without the clause that gives `slot`; empty when nothing else was said."""
    said = _BEFORE.sub("", said_prefix(old)[0])
    kept: list[str] = []
    for sentence in sentences(said):
        spoken = canonical(sentence, speaker)
        if spoken not in slot.sentence and slot.sentence not in spoken:
            kept.append(sentence)
        elif slot.value in spoken:
            clauses = (clause.strip(" .!?") for clause in _CLAUSE.split(sentence) if slot.value not in clause)
            kept.extend(f"{clause}." for clause in clauses if len(words(clause)) >= 3 and _has_subject(clause))
    rest = " ".join(kept)
    return stated_by(rest, speaker) if rest and said_prefix(old)[0] != old else rest


def _has_subject(clause: str) -> bool:
    first = words(clause)[:1]
    return bool(first) and (first[0] in ("my", "we") or first[0][0].isupper())


def replaced(new: str, old: str, new_slot: Slot, old_slot: Slot, speaker: str) -> str:
    """Return the text of a memory whose attribute has a new value: new wording, what else was said, and the value before."""
    rest = without(old, old_slot, speaker)
    if new_slot.attribute == "date":
        # An event keeps its details when it moves: what was said of it stays, with the new date in it.
        moved = _BEFORE.sub("", old).replace(old_slot.value, new_slot.value)
        rest = _unquoted(moved, new, speaker) if content(moved) - content(new) else ""
    text = f"{new} {rest}" if rest and len(new) + len(rest) <= LONGEST_MERGE else new
    return f"{text} (before: {old_slot.value})"

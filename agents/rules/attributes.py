"""What a statement says about whom, where the rules can tell: attributes with one current value, and attributes that add up.

    single-valued   residence, employer, occupation, age, relationship, diet, favourite <noun>, phone, e-mail, address, car,
                    name of <relative or pet>, when <event>, where staying
    accumulating    pet, instrument, language, allergy (a second one joins the first; it does not replace it)

A statement that no pattern reads has no attribute, and the manager then has only its words to go by. Patterns are anchored on a
subject and bounded, so that reading takes linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from memweave.agents.rules.dates import MONTHS
from memweave.agents.rules.lexicon import FAMILY, NOT_NAMES, PETS, STOP, WORKPLACES
from memweave.agents.rules.patterns import (
    EVENT,
    EVENT_DATE,
    FAVOURITE,
    FAVOURITE_REVERSED,
    ITS_DATE,
    MOVED,
    OWN_VOICE,
    PAST_EVENT,
    PATTERNS,
    PET,
    PHOTO,
    UNREAL,
)
from memweave.agents.rules.text import content, sentences, stem, words
from memweave.agents.rules.voice import said_prefix

LONGEST: Final = 2_000
"""In characters: only this much of a statement is read for attributes."""

ACCUMULATING: Final = frozenset({"pet", "instrument", "language", "allergy"})


@dataclass(frozen=True)
class Slot:
    """One attribute of one subject, as a statement gives it."""

    subject: str
    """`I` for the speaker, otherwise the stems of what it is about ("sister", "katrin", "conference vienna")."""
    attribute: str
    value: str
    """As written, for people and for answers."""
    key: frozenset[str]
    """Stems of the value, for comparison."""
    names: frozenset[str] = frozenset()
    """For events: the words that tell one conference from another; stems, of proper names with a capital."""
    sentence: str = ""
    """The sentence of the statement that says so, in the form of `canonical`."""
    noun: str = ""
    """What it is about, as written; empty for the speaker."""

    @property
    def accumulates(self) -> bool:
        """Whether a second value joins the first instead of replacing it."""
        return self.attribute in ACCUMULATING

    def same_attribute(self, other: Slot) -> bool:
        """Return whether both give the same attribute of the same subject."""
        if self.attribute != other.attribute:
            return False
        if self.attribute == "date":  # of what can be the same event: neither names nor other words contradict
            return self.subject == other.subject and all(
                not mine or not theirs or mine & theirs
                for mine, theirs in zip(_parted(self.names), _parted(other.names), strict=True)
            )
        return self.subject == other.subject

    def same_value(self, other: Slot) -> bool:
        """Return whether the values agree: one says no more than the other."""
        return self.key <= other.key or other.key <= self.key


def _parted(names: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Return (proper names, other words)."""
    proper = frozenset(name for name in names if name[0].isupper())
    return proper, names - proper


def canonical(text: str, speaker: str) -> str:
    """Return `text` in the speaker's own voice, without "X said:": the form that the patterns read."""
    text = said_prefix(text[:LONGEST])[0]
    name = re.escape(speaker)
    text = re.sub(rf"\b{name}'s\b(?! (?:a|an|the|been|got|going|not)\b)", "my", text)
    text = re.sub(rf"\b{name}\b", "I", text)
    for pattern, long in OWN_VOICE:
        text = pattern.sub(long, text)
    return text


@lru_cache(maxsize=8_192)
def _slots(text: str, speaker: str) -> tuple[Slot, ...]:
    found: list[Slot] = []
    if PHOTO.match(text):
        return ()
    parts = list(sentences(canonical(text, speaker)))
    for index, sentence in enumerate(parts):
        for reader in (_plain, _pets, _favourites):
            found.extend(reader(sentence))
        following = parts[index + 1] if index + 1 < len(parts) else ""
        found.extend(_events(f"{sentence} {following}" if ITS_DATE.match(following) else sentence))
    return tuple(dict.fromkeys(found))


def slots(text: str, speaker: str) -> tuple[Slot, ...]:
    """Return the attributes that a statement of `speaker` gives, in the order in which the patterns read them."""
    return _slots(text[:LONGEST], speaker)


def _subject(match: re.Match[str]) -> str | None:
    groups = match.groupdict()
    if groups.get("I") is not None:
        return "I"
    if groups.get("my"):
        noun = groups.get("noun") or ""
        return stem(groups.get("called") or noun) if noun in FAMILY or noun in PETS else None
    name = groups.get("name")
    return stem(name) if name and name.lower() not in STOP else None


def _plain(sentence: str) -> Iterator[Slot]:
    for attribute, pattern in PATTERNS:
        for match in pattern.finditer(sentence):
            subject = _subject(match)
            before = sentence[max(0, match.start() - 40) : match.end()]
            if subject is None or UNREAL.search(before):
                continue
            value = match["value"].strip(" -")
            if attribute == "employer" and not _is_workplace(value):
                continue
            noun = (
                match.groupdict().get("called") or match.groupdict().get("name") or match.groupdict().get("noun") or ""
            )
            yield Slot(
                subject, attribute, value, content(value) or frozenset([value.lower()]), sentence=sentence, noun=noun
            )


def _is_workplace(value: str) -> bool:
    found = words(value)
    return bool(found) and (found[-1].lower() in WORKPLACES or any(w[0].isupper() for w in found))


def _pets(sentence: str) -> Iterator[Slot]:
    for match in PET.finditer(sentence):
        if not UNREAL.search(sentence[max(0, match.start() - 40) : match.end()]):
            yield Slot("I", "pet", match["value"], content(match["value"]), sentence=sentence)


def _favourites(sentence: str) -> Iterator[Slot]:
    for pattern in (FAVOURITE, FAVOURITE_REVERSED):
        for match in pattern.finditer(sentence):
            value = match["value"].strip(" ,")
            yield Slot(
                "I",
                f"favourite {stem(match['what'])}",
                value,
                content(value) or frozenset([value.lower()]),
                sentence=sentence,
            )


def _events(sentence: str) -> Iterator[Slot]:
    """Read when an event is to be: one event noun and one date in a sentence that does not look back."""
    dates = list(EVENT_DATE.finditer(sentence))
    nouns = list(EVENT.finditer(sentence))
    if len(dates) != 1 or not nouns or PAST_EVENT.search(sentence):
        return
    noun = nouns[0]
    match = dates[0]
    head = event_head(noun)
    value = next(text for text in (match["absolute"], match["weekday"], match["clock"]) if text)
    name = "trip" if noun["travel"] else noun["event"]
    yield Slot(head, "date", value, content(value), _event_names(sentence, noun, match), sentence, name)


def event_head(match: re.Match[str]) -> str:
    """Return the stem of an event noun that `EVENT` found; every journey is a trip."""
    return "trip" if match["travel"] else stem(match["event"].split()[-1])


def _event_names(sentence: str, noun: re.Match[str], date: re.Match[str]) -> frozenset[str]:
    """Return the words that say which event: the two before the noun and the names near it."""
    before = [w for w in words(sentence[: noun.start()])[-3:] if w.lower() not in STOP and w.lower() not in NOT_NAMES]
    after = sentence[noun.end() : date.start()] if date.start() > noun.end() else ""
    named = [w for w in words(after)[:6] if w[0].isupper() and w not in MONTHS and w.lower() not in STOP]
    return frozenset(stem(w).capitalize() if w[0].isupper() else stem(w) for w in [*before, *named] if w != "I")


def may_replace(slot: Slot, text: str) -> bool:
    """Return whether a statement may replace an older value: the date of an event only when the statement says that it moved."""
    return slot.attribute != "date" or MOVED.search(text) is not None


def shared_attribute(new: str, old: str, speaker: str) -> str | None:
    """Return the attribute that makes two statements one memory: one that adds up, or the same value said again."""
    for a in slots(new, speaker):
        for b in slots(old, speaker):
            if a.same_attribute(b) and (a.accumulates or a.same_value(b)):
                return attribute_name(a)
    return None


def attribute_name(slot: Slot) -> str:
    """Return the attribute as people call it: "residence", "name of the boss", "date of the wedding"."""
    if not slot.noun:
        return slot.attribute
    return f"{slot.attribute} of {slot.noun if slot.noun[0].isupper() else f'the {slot.noun}'}"

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

from memweave.agents.rules.dates import ABSOLUTE, MONTHS, WEEKDAYS
from memweave.agents.rules.lexicon import EVENTS, FAMILY, INSTRUMENTS, LANGUAGES, OCCUPATIONS, PETS, STOP, WORKPLACES
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
                not mine or not theirs or mine & theirs for mine, theirs in zip(_parted(self.names), _parted(other.names), strict=True)
            )
        return self.subject == other.subject

    def same_value(self, other: Slot) -> bool:
        """Return whether the values agree: one says no more than the other."""
        return self.key <= other.key or other.key <= self.key


def _parted(names: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Return (proper names, other words)."""
    proper = frozenset(name for name in names if name[0].isupper())
    return proper, names - proper


_MY_PLAIN = r"my (?:(?:older|younger|big|little|twin|best|new|old|youngest|oldest|eldest|other) )?(?P<noun>[a-z][a-z-]{1,20})"
_MY_NOUN = _MY_PLAIN + r"(?: (?P<called>[A-Z][\w-]{1,20}))?"
_WHO = rf"\b(?:(?P<I>I)|(?P<my>{_MY_NOUN})|(?P<name>[A-Z][\w-]{{1,20}}))"
_NOW = r"(?: (?:now|still|currently|just|also|already|both|actually|finally|recently))?"
_HAVE = r"(?: (?:have|has|am|is|are))?"
_PLACE = r"(?P<value>(?:the )?[A-Z][\w'-]{1,20}(?:[ -][A-Z][\w'-]{1,20}){0,3})"
_UNTIL = r"(?=[,.;:!?()–—]| (?:and|but|as|in|since|on|because|for|now|last|this|next|at|with|from|near|where|who|which|instead|yesterday|today|these|right)\b| -|$)"
_THING = rf"(?P<value>[\w'&+ -]{{2,60}}?){_UNTIL}"
_COUNT_WORD = r"\d{1,3}|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twenty"
_ANY = {name: "|".join(sorted(map(re.escape, values), key=len, reverse=True)) for name, values in {
    "job": OCCUPATIONS, "pet": PETS, "family": FAMILY, "instrument": INSTRUMENTS, "language": LANGUAGES, "event": EVENTS,
}.items()}  # fmt: skip

_PATTERNS: Final[tuple[tuple[str, re.Pattern[str]], ...]] = tuple(
    (attribute, re.compile(pattern))
    for attribute, pattern in (
        ("residence", rf"{_WHO}{_HAVE}{_NOW} (?:lives? in|been living in|living in|moved(?: back)? to|relocated to|settled in){_NOW} {_PLACE}"),
        ("employer", rf"{_WHO}{_HAVE}{_NOW} (?:works?|been working|working|worked since \w+) (?:part-time |full-time )?(?:at|for) {_THING}"),
        ("employer", rf"{_WHO}{_HAVE}{_NOW} (?:started|starting)(?: working| work| a (?:new )?job| my (?:new )?job)? (?:at|with) {_THING}"),
        ("employer", rf"{_WHO}{_HAVE}{_NOW} (?:got|found|took|accepted|have|has|landed) (?:a|the|my) (?:new )?(?:job|position|post) (?:at|with) {_THING}"),
        ("occupation", rf"{_WHO}(?: am| is|(?:{_HAVE}{_NOW} (?:works?|working|been working|started working) as)){_NOW} (?:an?|the) (?P<value>(?:[a-z-]{{2,20}} ){{0,2}}?(?:{_ANY['job']}))\b(?! (?:of|at heart)\b)"),
        ("relationship", rf"{_WHO}{_HAVE}(?: am| is)?{_NOW} (?:got )?(?P<value>single|married|engaged|divorced|widowed)\b(?! (?:in|with|by|parent|mom|mother|dad|father|day|one)\b)"),
        ("diet", rf"{_WHO}{_HAVE}(?: am| is| became| become| went| gone| turned)?{_NOW}(?: an?)? (?P<value>vegan|vegetarian|pescatarian|pescetarian)\b(?! [a-z]*(?:bakery|restaurant|food|cheese|recipe|dish|meal|cake|option)\w*)"),
        ("age", rf"{_WHO}(?: am| is| turned| just turned| will be){_NOW} (?P<value>{_COUNT_WORD})(?: years old|(?= (?:last|yesterday|today|in (?:{'|'.join(['January', 'May'])}))\b)|(?=[.!,]))"),
        ("phone", rf"\b(?P<I>my) (?:new )?(?:phone |mobile |cell )?number (?:is|has changed to){_NOW} (?P<value>\+?\d[\d ()/-]{{4,24}}\d)"),
        ("e-mail", rf"\b(?P<I>my) (?:new )?e-?mail(?: address)? is{_NOW} (?P<value>[\w.+-]{{1,60}}@[\w.-]{{1,60}}\w)"),
        ("address", rf"\b(?P<I>my) (?:new )?address is{_NOW} (?P<value>[\w .'-]{{4,60}}?)(?=[,;!?]|\.(?:\s|$)|$)"),
        ("car", rf"{_WHO}{_NOW} drives? (?:an?|my) {_THING}"),
        ("staying", rf"\b(?P<I>I)(?: am| will be| will)?{_NOW} (?:staying|stay) (?P<value>(?:at|with) [\w'&+ -]{{2,60}}?)(?=[,.;:!?()–—]| (?:and|but|instead|because|for|during|while|when|until|this|next)\b|$)"),
        ("name", rf"\b(?P<my>{_MY_PLAIN})(?:'s name is| is called| is named) (?P<value>[A-Z][\w-]{{1,20}})"),
        ("instrument", rf"{_WHO}{_HAVE}{_NOW} (?:plays?|been playing|learning|been learning|started(?: playing| learning)?|practis\w+|practic\w+) (?:to play )?(?:the |an? |my )?(?:acoustic |electric |classical |bass )?(?P<value>{_ANY['instrument']})\b(?! (?:case|music|concert|bag|teacher))"),
        ("instrument", rf"\b(?P<I>)(?:playing|learning)(?: to play)? (?:the|my|an?) (?P<value>{_ANY['instrument']})\b(?! (?:case|music|concert|bag|teacher))"),
        ("language", rf"{_WHO}{_HAVE}{_NOW} (?:speaks?|learning|been learning|studying|been studying|learns?) (?:fluent |some |a bit of |a little )?(?P<value>{_ANY['language']})\b"),
        ("allergy", rf"{_WHO}(?: am| is){_NOW} (?:allergic|intolerant) to {_THING}"),
    )
)  # fmt: skip
_PET = re.compile(
    rf"\b(?:I|we)(?: have| got| adopted| bought| own|{_HAVE} (?:adopted|got|bought)){_NOW} (?P<value>(?:an?|another|one|two|three|four|my (?:first|second|third)) (?:[a-z-]{{2,15}} ){{0,2}}(?:{_ANY['pet']})s?)\b(?! (?:food|bed|toy|walker|shelter|person|sitter))"
    rf"(?:,? (?:named|called) (?P<called>[A-Z]\w+))?"
)
_FAVOURITE = re.compile(
    r"\b(?P<who>my) (?:all-time |new |absolute |current )?(?:favou?rite|fave) (?P<what>[a-z]+(?: [a-z]+)?)(?: (?:at the moment|right now|these days|now|ever|of all time))?"
    r" (?:is|are)(?: now| still)? (?P<value>[\w'\" ,&-]{2,80}?)(?=[.;:!?()]|, (?:and|but|you|it|I|which|because)\b| (?:because|these days|right now|at the moment|now)\b|$)",
)
_FAVOURITE_REVERSED = re.compile(r"^(?P<value>[A-Z][\w' &-]{1,60}?) (?:is|are)(?: now| still)? my (?:all-time |new |absolute |current )?(?:favou?rite|fave) (?P<what>[a-z]+)(?=[.,;!?]|$)")
_WEEKDAYS = "|".join(day + "s?" for day in WEEKDAYS)
_DAYTIMES = r"(?: (?:morning|afternoon|evening|night)s?)?"
_CLOCK = r"(?:at )?\d{1,2}(?::\d\d)? ?(?:am|pm|o'clock)\b|at \d{1,2}:\d\d|at noon"
EVENT: Final = re.compile(rf"\b(?:(?P<travel>(?:train|flight|bus|ferry|plane|trip|flying|fly|travelling|traveling) (?:back )?to(?= [A-Z]))|(?P<event>{_ANY['event']}))\b(?!')")
_EVENT_DATE = re.compile(rf"(?P<absolute>{ABSOLUTE.pattern})|\b(?P<weekday>(?:{_WEEKDAYS}){_DAYTIMES})\b(?! \()|(?P<clock>{_CLOCK})")
_ITS_DATE = re.compile(r"(?:It's|It is|my is|Mine is|It'll be) (?:on|at|in) ")
_PAST_EVENT = re.compile(r"\b(?:was|were|went|had|attended|took|finished|ran|did|saw|celebrated|joined|passed|visited|loved|enjoyed|ago|yesterday|last)\b")
_FIRST_PERSON = ((re.compile(r"\bI'm\b"), "I am"), (re.compile(r"\bI've\b"), "I have"), (re.compile(r"\bWe've\b|\bwe've\b"), "we have"), (re.compile(r"\bWe\b"), "we"), (re.compile(r"\bI'll\b"), "I will"), (re.compile(r"\bMy\b"), "my"))


PHOTO: Final = re.compile(r"\S{1,60}(?: \S{1,60}){0,3} shared (?:an? )?(?:photo|image|picture|screenshot)")
"""How the extractor begins what it says about a photo: what a picture shows is not what its sender is or has."""


def canonical(text: str, speaker: str) -> str:
    """Return `text` in the speaker's own voice, without "X said:": the form that the patterns read."""
    text = said_prefix(text[:LONGEST])[0]
    name = re.escape(speaker)
    text = re.sub(rf"\b{name}'s\b(?! (?:a|an|the|been|got|going|not)\b)", "my", text)
    text = re.sub(rf"\b{name}\b", "I", text)
    for pattern, long in _FIRST_PERSON:
        text = pattern.sub(long, text)
    return re.sub(r"\bI (?:is|'s)\b", "I am", re.sub(r"\bI has\b", "I have", text))


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
        found.extend(_events(f"{sentence} {following}" if _ITS_DATE.match(following) else sentence))
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


_UNREAL = re.compile(r"\b(?:if|would|could|might|may|want to|wants to|wish|hope to|used to|not|never|don't|doesn't|no longer|used|when I was|almost|nearly|offered)\b")


def _plain(sentence: str) -> Iterator[Slot]:
    for attribute, pattern in _PATTERNS:
        for match in pattern.finditer(sentence):
            subject = _subject(match)
            before = sentence[max(0, match.start() - 40) : match.end()]
            if subject is None or _UNREAL.search(before):
                continue
            value = match["value"].strip(" -")
            if attribute == "employer" and not _is_workplace(value):
                continue
            noun = match.groupdict().get("called") or match.groupdict().get("name") or match.groupdict().get("noun") or ""
            yield Slot(subject, attribute, value, content(value) or frozenset([value.lower()]), sentence=sentence, noun=noun)


def _is_workplace(value: str) -> bool:
    found = words(value)
    return bool(found) and (found[-1].lower() in WORKPLACES or any(w[0].isupper() for w in found))


def _pets(sentence: str) -> Iterator[Slot]:
    for match in _PET.finditer(sentence):
        if not _UNREAL.search(sentence[max(0, match.start() - 40) : match.end()]):
            yield Slot("I", "pet", match["value"], content(match["value"]), sentence=sentence)


def _favourites(sentence: str) -> Iterator[Slot]:
    for pattern in (_FAVOURITE, _FAVOURITE_REVERSED):
        for match in pattern.finditer(sentence):
            value = match["value"].strip(" ,")
            yield Slot("I", f"favourite {stem(match['what'])}", value, content(value) or frozenset([value.lower()]), sentence=sentence)


def _events(sentence: str) -> Iterator[Slot]:
    """Read when an event is to be: one event noun and one date in a sentence that does not look back."""
    dates = list(_EVENT_DATE.finditer(sentence))
    nouns = list(EVENT.finditer(sentence))
    if len(dates) != 1 or not nouns or _PAST_EVENT.search(sentence):
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
    before = [w for w in words(sentence[: noun.start()])[-3:] if w.lower() not in STOP and w.lower() not in _NOT_NAMES]
    after = sentence[noun.end() : date.start()] if date.start() > noun.end() else ""
    named = [w for w in words(after)[:6] if w[0].isupper() and w not in MONTHS and w.lower() not in STOP]
    return frozenset(stem(w).capitalize() if w[0].isupper() else stem(w) for w in [*before, *named] if w != "I")


_NOT_NAMES: Final = frozenset("ticket tickets train flight flying booked signed going go move moving have having entry planned planning attending book sign big next first second our my new".split())


_MOVED = re.compile(
    r"\b(?:moved?|postponed?|rescheduled?|pushed|brought forward|put (?:back|off)|delayed|changed?|shifted|switched|swapped|instead|now|new date|actually|no longer on)\b",
    re.IGNORECASE,
)


def may_replace(slot: Slot, text: str) -> bool:
    """Return whether a statement may replace an older value: the date of an event only when the statement says that it moved."""
    return slot.attribute != "date" or _MOVED.search(text) is not None


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

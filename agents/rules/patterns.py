"""The regular expressions behind `attributes`: what a sentence in the speaker's own voice says about whom.

Every repetition is bounded and every pattern starts at a word, so that reading a sentence takes linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from memweave.agents.rules.dates import ABSOLUTE, WEEKDAYS
from memweave.agents.rules.lexicon import EVENTS, HOBBIES, INSTRUMENTS, LANGUAGES, OCCUPATIONS, PETS
from memweave.agents.rules.text import NUMBER_WORDS


def _any(words: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=lambda word: (-len(word), word)))


_KINDS = "older|younger|big|little|twin|best|new|old|youngest|oldest|eldest|other"
_MY = rf"my (?:(?:{_KINDS}) )?(?P<noun>[a-z][a-z-]{{1,20}})"
_WHO = rf"\b(?:(?P<I>I)|(?P<my>{_MY}(?: (?P<called>[A-Z][\w-]{{1,20}}))?)|(?P<name>[A-Z][\w-]{{1,20}}))"
_NOW = r"(?: (?:now|still|currently|just|also|already|both|actually|finally|recently))?"
_HAVE = r"(?: (?:have|has|am|is|are))?"
_DONE = rf"{_WHO}{_HAVE}{_NOW}"
_IS = rf"{_WHO}(?: am| is){_NOW}"
_PLACE = r"(?P<value>(?:the )?[A-Z][\w'-]{1,20}(?:[ -][A-Z][\w'-]{1,20}){0,3})"
_LINKS = "and|but|as|in|since|on|because|for|now|last|this|next|at|with|from|near|where|who|which|instead|yesterday|today|these|right"
_THING = rf"(?P<value>[\w'&+ -]{{2,60}}?)(?=[,.;:!?()–—]| (?:{_LINKS})\b| -|$)"
_TEENS = "thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
_NUMBER = rf"\d{{1,3}}|{_any([*NUMBER_WORDS, *_TEENS.split()])}"
_JOB = r"(?:an?|the) (?P<value>(?:[a-z-]{2,20} ){0,2}?(?:{jobs}))\b(?! (?:of|at heart)\b)"
_INSTRUMENT = rf"(?P<value>{_any(INSTRUMENTS)})\b(?! (?:case|music|concert|bag|teacher))"

PATTERNS: Final[tuple[tuple[str, re.Pattern[str]], ...]] = tuple(
    (attribute, re.compile(pattern))
    for attribute, pattern in (
        (
            "residence",
            rf"{_DONE} (?:lives? in|been living in|living in|moved(?: back)? to|relocated to|settled in){_NOW} {_PLACE}",
        ),
        ("employer", rf"{_DONE} (?:works?|been working|working) (?:part-time |full-time )?(?:at|for) {_THING}"),
        ("employer", rf"{_DONE} (?:started|starting)(?: working| work| (?:a|my) (?:new )?job)? (?:at|with) {_THING}"),
        (
            "employer",
            rf"{_DONE} (?:got|found|took|accepted|have|has|landed) (?:a|the|my) (?:new )?(?:job|position|post) (?:at|with) {_THING}",
        ),
        ("occupation", rf"{_IS} {_JOB.replace('{jobs}', _any(OCCUPATIONS - HOBBIES))}"),
        (
            "occupation",
            rf"{_DONE} (?:works?|working|been working|started working) as {_JOB.replace('{jobs}', _any(OCCUPATIONS))}",
        ),
        (
            "relationship",
            rf"{_WHO}{_HAVE}(?: am| is)?{_NOW} (?:got )?(?P<value>single|married|engaged|divorced|widowed)\b"
            r"(?! (?:in|with|by|parent|mom|mother|dad|father|day|one)\b)",
        ),
        (
            "diet",
            rf"{_WHO}{_HAVE}(?: am| is| became| become| went| gone| turned)?{_NOW}(?: an?)?"
            r" (?P<value>vegan|vegetarian|pescatarian|pescetarian)\b"
            r"(?! [a-z]{0,12}(?:bakery|restaurant|food|cheese|recipe|dish|meal|cake|option))",
        ),
        (
            "age",
            rf"{_WHO}(?: am| is| turned| just turned| will be){_NOW} (?P<value>{_NUMBER})"
            r"(?: years old|(?= (?:last|yesterday|today)\b)|(?=[.!,]))",
        ),
        (
            "phone",
            rf"\b(?P<I>my) (?:new )?(?:phone |mobile |cell )?number (?:is|has changed to){_NOW} (?P<value>\+?\d[\d ()/-]{{4,24}}\d)",
        ),
        ("e-mail", rf"\b(?P<I>my) (?:new )?e-?mail(?: address)? is{_NOW} (?P<value>[\w.+-]{{1,60}}@[\w.-]{{1,60}}\w)"),
        ("address", rf"\b(?P<I>my) (?:new )?address is{_NOW} (?P<value>[\w .'-]{{4,60}}?)(?=[,;!?]|\.(?:\s|$)|$)"),
        ("car", rf"{_WHO}{_NOW} drives? (?:an?|my) {_THING}"),
        (
            "staying",
            rf"\b(?P<I>I)(?: am| will be| will)?{_NOW} (?:staying|stay) (?P<value>(?:at|with) [\w'&+ -]{{2,60}}?)"
            r"(?=[,.;:!?()–—]| (?:and|but|instead|because|for|during|while|when|until|this|next)\b|$)",
        ),
        ("name", rf"\b(?P<my>{_MY})(?:'s name is| is called| is named) (?P<value>[A-Z][\w-]{{1,20}})"),
        (
            "instrument",
            rf"{_DONE} (?:plays?|been playing|learning|been learning|started(?: playing| learning)?)"
            rf" (?:to play )?(?:the |an? |my )?(?:acoustic |electric |classical |bass )?{_INSTRUMENT}",
        ),
        ("instrument", rf"\b(?P<I>)(?:playing|learning)(?: to play)? (?:the|my|an?) {_INSTRUMENT}"),
        (
            "language",
            rf"{_DONE} (?:speaks?|learning|been learning|studying|been studying|learns?)"
            rf" (?:fluent |some |a bit of |a little )?(?P<value>{_any(LANGUAGES)})\b",
        ),
        ("allergy", rf"{_IS} (?:allergic|intolerant) to {_THING}"),
    )
)
"""(attribute, pattern): `I`, `my` (with `noun`, `called`) or `name` is the subject, `value` the value."""

PET: Final = re.compile(
    rf"\b(?:I|we)(?: have| got| adopted| bought| own|{_HAVE} (?:adopted|got|bought)){_NOW}"
    r" (?P<value>(?:an?|another|one|two|three|four|my (?:first|second|third)) "
    rf"(?:[a-z-]{{2,15}} ){{0,2}}(?:{_any(PETS)})s?)\b(?! (?:food|bed|toy|walker|shelter|person|sitter))"
)

_MOST = r"(?:all-time |new |absolute |current )?(?:favou?rite|fave)"
_AT_PRESENT = "at the moment|right now|these days|now"
FAVOURITE: Final = re.compile(
    rf"\bmy {_MOST} (?P<what>[a-z]+(?: [a-z]+)?)(?: (?:{_AT_PRESENT}|ever|of all time))? (?:is|are)(?: now| still)?"
    r" (?P<value>[\w'\" ,&-]{2,80}?)"
    rf"(?=[.;:!?()]|, (?:and|but|you|it|I|which|because)\b| (?:because|{_AT_PRESENT})\b|$)"
)
FAVOURITE_REVERSED: Final = re.compile(
    rf"^(?P<value>[A-Z][\w' &-]{{1,60}}?) (?:is|are)(?: now| still)? my {_MOST} (?P<what>[a-z]+)(?=[.,;!?]|$)"
)

_JOURNEY = "train|flight|bus|ferry|plane|trip|flying|fly|travelling|traveling"
EVENT: Final = re.compile(
    rf"\b(?:(?P<travel>(?:{_JOURNEY}) (?:back )?to(?= [A-Z]))|(?P<event>{_any(EVENTS)}))\b(?!')",
)
"""An event noun; a journey counts when it says where to."""

_WEEKDAY = "|".join(f"{day}s?" for day in WEEKDAYS)
_CLOCK = r"(?:at )?\d{1,2}(?::\d\d)? ?(?:am|pm|o'clock)\b|at \d{1,2}:\d\d|at noon"
EVENT_DATE: Final = re.compile(
    rf"(?P<absolute>{ABSOLUTE.pattern})"
    rf"|\b(?P<weekday>(?:{_WEEKDAY})(?: (?:morning|afternoon|evening|night)s?)?)\b(?! \()|(?P<clock>{_CLOCK})"
)
ITS_DATE: Final = re.compile(r"(?:It's|It is|my is|Mine is|It'll be) (?:on|at|in) ")
"""A sentence that gives the date of what the one before it named."""

PAST_EVENT: Final = re.compile(
    r"\b(?:was|were|went|had|attended|took|finished|ran|did|saw|celebrated|joined|passed|visited|loved|enjoyed|ago|yesterday|last)\b"
)
UNREAL: Final = re.compile(
    r"\b(?:if|would|could|might|may|want to|wants to|wish|hope to|used to|not|never|don't|doesn't|no longer|used|when I was|almost|"
    r"nearly|offered)\b"
)
"""Words that make a statement no statement of how things are."""

MOVED: Final = re.compile(
    r"\b(?:moved?|postponed?|rescheduled?|pushed|brought forward|put (?:back|off)|delayed|changed?|shifted|switched|swapped|instead|now|"
    r"new date|actually|no longer on)\b",
    re.IGNORECASE,
)
"""Words that say that the date of an event is a new one."""

PHOTO: Final = re.compile(r"\S{1,60}(?: \S{1,60}){0,3} shared (?:an? )?(?:photo|image|picture|screenshot)")
"""How the extractor begins what it says about a photo: what a picture shows is not what its sender is or has."""

OWN_VOICE: Final = tuple(
    (re.compile(short), long)
    for short, long in (
        (r"\bI'm\b", "I am"),
        (r"\bI've\b", "I have"),
        (r"\bI'll\b", "I will"),
        (r"\b[Ww]e've\b", "we have"),
        (r"\bWe\b", "we"),
        (r"\bMy\b", "my"),
        (r"\bI has\b", "I have"),
        (r"\bI (?:is|'s)\b", "I am"),
    )
)
"""Spellings to make alike, in this order."""

"""The small English of DialogWorld: what a sentence of it says, and how it is said.

A statement is about one subject and one relation: it sets a value, adds one, or takes it back. `say` writes it, `read`
reads it back; both go through one table, so a text that `say` wrote is always understood. `fold` says what holds after
a list of statements; gold answers, oracles and diagnostics all come from it. This module does not know memories or
operations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache
from typing import Final


class Act(StrEnum):
    """What a statement does to its relation."""

    SET = "set"
    """The value is this, whatever it was."""
    ALSO = "also"
    """This value too; only of relations that hold several."""
    DROP = "drop"
    """No value any more."""


@dataclass(frozen=True)
class Relation:
    """Something that can be said of a person. `{v}` stands for a value, `{m}` for a month."""

    name: str
    values: tuple[str, ...]
    said: tuple[str, ...]
    """Three ways to say that it is so, after the subject: the plain one, another, one for out of distribution only."""
    question: str
    """`{s}` is the person."""
    became: str | None = None
    """How a new value is said; `None` if the value never changes."""
    also: str | None = None
    """How a further value is said; relations with it hold up to two values."""
    both: str | None = None
    """How two values are said, `{v}` and `{w}`."""
    count: str | None = None
    """How their number is asked for."""
    dropped: str | None = None
    """How it is taken back."""
    same: str | None = None
    """How two people are compared, `{s}` and `{o}`."""

    @property
    def dated(self) -> bool:
        """Return whether it is an event whose month is asked for."""
        return "{m}" in self.said[0]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES: Final = _words(
    "Anna Bob Carl Dina Emma Finn Gina Hugo Iris Jack Kate Liam Mia Nick Olga Paul Rosa Sam Tina Vera Will Yara Zoe "
    "Adam Beth Dora Eric Fay Greg Hana Ivan June"
)
NEW_NAMES: Final = _words("Boris Celia Dmitri Elsa Fredo Greta Harvey Inga")
"""For the out-of-distribution row only."""

MONTHS: Final = _words("January February March April May June July August September October November December")

RELATIONS: Final = (
    Relation(
        "city",
        _words(
            "Rome Paris Oslo Lima Cairo Delhi Tokyo Dublin Madrid Vienna Berlin Lisbon Prague Athens Boston Denver "
            "Kyoto Milan"
        ),
        ("lives in {v}", "has a home in {v}", "resides in {v}"),
        "Where does {s} live?",
        became="moved to {v}",
        dropped="no longer lives in {v}",
        same="Do {s} and {o} live in the same city?",
    ),
    Relation(
        "job",
        _words(
            "nurse baker pilot judge farmer tailor painter doctor lawyer plumber teacher banker barber driver singer "
            "writer"
        ),
        ("works as a {v}", "earns a living as a {v}", "is employed as a {v}"),
        "What is the job of {s}?",
        became="became a {v}",
        dropped="quit the job as a {v}",
        same="Do {s} and {o} have the same job?",
    ),
    Relation(
        "car",
        _words("Ford Fiat Honda Volvo Tesla Skoda Lada Mazda Jeep Lexus Opel Saab Rover Kia"),
        ("drives a {v}", "gets around in a {v}", "owns a car from {v}"),
        "What does {s} drive?",
        became="switched to a {v}",
        dropped="sold the {v}",
        same="Do {s} and {o} drive the same car?",
    ),
    Relation(
        "color",
        _words("red blue green pink black white gold gray brown purple orange silver yellow violet"),
        ("likes the color {v}", "is fond of {v}", "adores {v}"),
        "Which color does {s} like?",
        became="now prefers {v}",
        dropped="stopped liking {v}",
        same="Do {s} and {o} like the same color?",
    ),
    Relation(
        "instrument",
        _words("piano violin flute drums guitar harp cello banjo trumpet organ lute fiddle"),
        ("plays the {v}", "makes music on the {v}", "performs on the {v}"),
        "Which instruments does {s} play?",
        also="also plays the {v}",
        both="plays the {v} and the {w}",
        count="How many instruments does {s} play?",
        dropped="gave up the {v}",
    ),
    Relation(
        "pet",
        _words("dog cat horse rabbit parrot turtle hamster goat duck snake pony lizard"),
        ("has a {v}", "keeps a {v}", "takes care of a {v}"),
        "Which pets does {s} have?",
        also="also has a {v}",
        both="has a {v} and a {w}",
        count="How many pets does {s} have?",
        dropped="gave away the {v}",
    ),
    Relation(
        "language",
        _words("French German Spanish Polish Greek Hindi Arabic Dutch Swedish Korean Turkish Danish"),
        ("speaks {v}", "is fluent in {v}", "can converse in {v}"),
        "Which languages does {s} speak?",
        also="also speaks {v}",
        both="speaks {v} and {w}",
        count="How many languages does {s} speak?",
        dropped="forgot all {v}",
    ),
    Relation(
        "trip",
        _words("Peru Chile Kenya Ghana Nepal China India Japan Egypt Spain Italy Norway Cuba Malta"),
        ("visited {v} in {m}", "took a trip to {v} in {m}", "spent {m} in {v}"),
        "When did {s} visit {v}?",
    ),
    Relation(
        "course",
        _words("yoga chess judo tennis ballet sailing pottery fencing cooking skating"),
        ("started {v} lessons in {m}", "signed up for {v} in {m}", "took up {v} in {m}"),
        "When did {s} start {v} lessons?",
    ),
)

NEW_VALUES: Final[dict[str, tuple[str, ...]]] = {
    "city": _words("Zagreb Nairobi"), "job": _words("cobbler welder"), "car": _words("Bugatti Dacia"),
    "color": _words("crimson teal"), "instrument": _words("oboe tuba"), "pet": _words("ferret llama"),
    "language": _words("Finnish Czech"), "trip": _words("Bhutan Laos"), "course": _words("rowing karate"),
}  # fmt: skip
"""For the out-of-distribution row only."""

CHATTER: Final = (
    "is tired today", "had a good lunch", "slept well last night", "is happy about the weather", "cannot find the keys",
    "is late again", "needs a coffee", "watched a funny film",
)  # fmt: skip
"""What is said but not worth keeping."""

OPENERS: Final = ("", "", "By the way, ", "You know, ", "Guess what: ", "Well, ")
NUMBERS: Final = ("none", "one", "two")
UNKNOWN: Final = "unknown"


@dataclass(frozen=True)
class Statement:
    """What one sentence says of `subject`; `month` is given for events only."""

    subject: str
    relation: str
    """`chatter` for small talk, whose value is the sentence."""
    act: Act
    values: tuple[str, ...]
    month: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Return what it is about: the subject, the relation, and of events which one."""
        return self.subject, self.relation, self.values[0] if self.month else ""


@cache
def relation_of(name: str) -> Relation:
    """Return the relation called `name`, one of `RELATIONS` (`chatter` is none)."""
    return next(relation for relation in RELATIONS if relation.name == name)


@dataclass(frozen=True)
class _Form:
    relation: str
    act: Act
    phrase: str
    pattern: re.Pattern[str]


def _forms() -> Iterable[tuple[str, Act, str]]:
    for relation in RELATIONS:
        yield from ((relation.name, Act.SET, phrase) for phrase in relation.said)
        if relation.became:
            yield relation.name, Act.SET, relation.became
        if relation.also and relation.both:
            yield relation.name, Act.SET, relation.both
            yield relation.name, Act.ALSO, relation.also
        if relation.dropped:
            yield relation.name, Act.DROP, relation.dropped
    yield from (("chatter", Act.SET, phrase) for phrase in CHATTER)


@cache
def _table() -> tuple[_Form, ...]:
    word = {"v": r"(?P<v>\w+)", "w": r"(?P<w>\w+)", "m": r"(?P<m>\w+)"}
    return tuple(
        _Form(relation, act, phrase, re.compile(rf"(?P<s>\w+) {phrase.format(**word)}\.?"))
        for relation, act, phrase in sorted(_forms(), key=lambda form: -len(form[2]))
    )


def say(statement: Statement, way: int = 0, *, change: bool = False) -> str:
    """Return the statement as a sentence.

    way: which of the ways to say it, 0 to 2 (0 is the plain one); of one value that is set only, the rest has one way.
    change: say a value that is set as one that replaces another.  Some things cannot be said (two cities; an event
    taken back): asking for them is a programming error.
    """
    if statement.relation == "chatter":
        return f"{statement.subject} {statement.values[0]}"
    relation = relation_of(statement.relation)
    if statement.act is Act.DROP:
        phrase = relation.dropped
    elif statement.act is Act.ALSO:
        phrase = relation.also
    elif len(statement.values) == 2:
        phrase = relation.both
    else:
        phrase = relation.became if change else relation.said[way]
    assert phrase is not None, f"{statement.relation} cannot be said so"
    values = dict(zip("vw", statement.values, strict=False))
    return f"{statement.subject} {phrase.format(**values, m=statement.month)}"


@lru_cache(maxsize=16_384)
def read(sentence: str) -> Statement | None:
    """Return what a sentence of this language says; `None` for any other text.

    The final period may be missing. Any word may stand for a person, a value or a month, known to the language or not.
    """
    for form in _table():
        found = form.pattern.fullmatch(sentence.strip())
        if found is None:
            continue
        parts = found.groupdict()
        values = tuple(parts[name] for name in ("v", "w") if parts.get(name)) or (form.phrase,)
        return Statement(parts["s"], form.relation, form.act, values, parts.get("m"))
    return None


def fold(statements: Sequence[Statement]) -> tuple[str, ...]:
    """Return the values that hold after `statements` about one key, the oldest first; of an event, its month.

    At most two in this world; empty before the first statement and after a retraction.
    """
    held: list[str] = []
    for statement in statements:
        if statement.month:
            held = [statement.month]
        elif statement.act is Act.SET:
            held = list(statement.values)
        elif statement.act is Act.ALSO:
            held += [value for value in statement.values if value not in held]
        else:
            held = []
    return tuple(held)


@dataclass(frozen=True)
class Asked:
    """What a question asks for."""

    kind: str
    """`lookup`, `list`, `count`, `when` or `compare`."""
    keys: tuple[tuple[str, str, str], ...]
    """One key, or two to compare."""


def read_question(text: str) -> Asked | None:
    """Return what a question of this language asks; `None` for any other text, also one without its question mark."""
    for kind, relation, pattern in _questions():
        found = pattern.fullmatch(text.strip())
        if found is not None:
            parts = found.groupdict()
            people = [parts[name] for name in ("s", "o") if name in parts]
            return Asked(kind, tuple((person, relation, parts.get("v") or "") for person in people))
    return None


@cache
def _questions() -> tuple[tuple[str, str, re.Pattern[str]], ...]:
    found: list[tuple[str, str, str]] = []
    for relation in RELATIONS:
        kind = "when" if relation.dated else "list" if relation.also else "lookup"
        found.append((kind, relation.name, relation.question))
        found += [("count", relation.name, relation.count)] if relation.count else []
        found += [("compare", relation.name, relation.same)] if relation.same else []
    places = {name: rf"(?P<{name}>\w+)" for name in "sov"}
    # `format` fills the places after escaping, so that only they are patterns.
    return tuple(
        (kind, name, re.compile(re.escape(text).replace(r"\{", "{").replace(r"\}", "}").format(**places)))
        for kind, name, text in found
    )


# first person: what is said in a conversation

_VERBS: Final = {
    "is": "am", "has": "have", "earns": "earn", "lives": "live", "resides": "reside", "works": "work",
    "drives": "drive", "gets": "get", "owns": "own", "likes": "like", "adores": "adore",
    "prefers": "prefer", "plays": "play", "makes": "make", "performs": "perform", "keeps": "keep", "takes": "take",
    "speaks": "speak", "needs": "need",
}  # fmt: skip
_ADVERBS: Final = frozenset({"no", "longer", "now", "also"})
_THIRD: Final = {own: third for third, own in _VERBS.items()}


def _conjugated(sentence: str, subject: str, verbs: dict[str, str]) -> str:
    _, *words = sentence.split()
    for i, word in enumerate(words):
        if word not in _ADVERBS:
            words[i] = verbs.get(word, word)
            break
    return " ".join([subject, *words])


def in_first_person(sentence: str) -> str:
    """Return a statement about its speaker as the speaker says it: `Anna lives in Rome` becomes `I live in Rome`."""
    return _conjugated(sentence, "I", _VERBS)


def in_third_person(sentence: str, speaker: str) -> str:
    """Return what `speaker` says, `I` and the opening words resolved: the inverse of `in_first_person`.

    A sentence about someone else only loses its opening words.
    """
    for opener in sorted(set(OPENERS), key=len, reverse=True):
        if opener and sentence.startswith(opener):
            sentence = sentence[len(opener) :]
            break
    sentence = sentence.removesuffix(".")
    return _conjugated(sentence, speaker, _THIRD) if sentence.startswith("I ") else sentence

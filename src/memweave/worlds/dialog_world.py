"""DialogWorld: conversations of two people with hidden truth, and questions about how things stand at the end.

What is said: new facts, accumulating ones (a second pet), replacements (moved), retractions, restatements, small talk,
near misses (a friend, or the other speaker, in the same relation), events with a month. Gold answers are computed from
the simulated state, never from operations; the kinds of events are hidden labels for diagnosis only. `train`, `val` and
`test` share words and templates but no dialogue and no binding (who, relation, value); `ood` has unseen words and
templates. This module does not know who remembers or answers.

(Memory-R1, arXiv 2508.19828, for the split and the number of training questions; see docs/dialog-world.md.)
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Final, Literal

from memweave.errors import InputError
from memweave.metrics import exact_match
from memweave.records import Turn
from memweave.worlds.dialog_language import (
    CHATTER,
    MONTHS,
    NAMES,
    NEW_NAMES,
    NEW_VALUES,
    NUMBERS,
    OPENERS,
    RELATIONS,
    UNKNOWN,
    Act,
    Relation,
    Statement,
    fold,
    in_first_person,
    in_third_person,
    read,
    relation_of,
    say,
)

Split = Literal["train", "val", "test", "ood"]
SPLITS: Final = ("train", "val", "test", "ood")
SIZES: Final[Mapping[str, int]] = {"train": 10, "val": 10, "test": 80, "ood": 20}
"""Dialogues per split: 1:1:8 as in the paper, and about 150 training questions."""


class EventKind(StrEnum):
    """What a turn does to the state; a hidden label."""

    NEW = "new"
    ACCUMULATED = "accumulated"
    REPLACED = "replaced"
    RETRACTED = "retracted"
    RESTATED = "restated"
    NEAR_MISS = "near_miss"
    CHATTER = "chatter"


class QuestionKind(StrEnum):
    """What is asked for."""

    LOOKUP = "lookup"
    LIST = "list"
    COUNT = "count"
    WHEN = "when"
    COMPARE = "compare"


@dataclass(frozen=True)
class Question:
    """A question about the end of a dialogue."""

    id: str
    text: str
    gold: str
    kind: QuestionKind
    keys: tuple[tuple[str, str, str], ...]
    """What it is about, as `Statement.key`."""
    evidence: tuple[str, ...]
    """Source ids of the turns that speak about it, in order; the last one is the turn it is linked to."""


@dataclass(frozen=True)
class Dialogue:
    """A conversation, what was meant, and what is asked."""

    id: str
    split: Split
    turns: tuple[Turn, ...]
    meant: tuple[Statement, ...]
    """What each turn says; hidden from agents."""
    kinds: tuple[EventKind, ...]
    """What each turn does; hidden from agents."""
    questions: tuple[Question, ...]

    def linked(self, position: int) -> list[Question]:
        """Return the questions whose last evidence is the turn at `position`, counted from 0.

        Only then has all their evidence been said; most turns have none.
        """
        source = self.turns[position].source_id
        return [question for question in self.questions if question.evidence[-1] == source]


@dataclass(frozen=True, kw_only=True)
class DialogWorld:
    """A generator of dialogues. Equal settings give equal dialogues on every machine.

    sessions, session_turns: length of a dialogue; what facts leave free is small talk.  keys: things that each speaker
    tells of themselves (with more than 5, fewer where the split has no two values of more).  friend_keys: the same of a
    friend, each a near miss of one of the speaker's own.  follow_ups: later statements about these, per speaker, fewer
    when everything was taken back.  miss, leak, repeat: how often the extractor misses a fact, takes small talk for
    one, and returns a fact twice, each 0 to 1.
    Raises `InputError` for more than the world has.
    """

    sessions: int = 6
    session_turns: int = 10
    keys: int = 5
    friend_keys: int = 2
    follow_ups: int = 7
    miss: float = 0.02
    leak: float = 0.25
    repeat: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.keys <= len(RELATIONS):
            raise InputError(f"keys = {self.keys}: give 1 to {len(RELATIONS)}, as many as there are relations")
        if not 0 <= self.friend_keys <= self.keys:
            raise InputError(f"friend_keys = {self.friend_keys}: give 0 to {self.keys} (keys); a friend shares them")
        if self.follow_ups < 0 or self.follow_ups > 3 * (self.keys + self.friend_keys):
            most = 3 * (self.keys + self.friend_keys)
            raise InputError(f"follow_ups = {self.follow_ups}: about these keys there are 0 to {most}")
        facts = 2 * (self.keys + self.friend_keys + self.follow_ups)
        if self.sessions < 1 or self.sessions * self.session_turns < facts:
            raise InputError(
                f"{self.sessions} sessions of {self.session_turns} turns are too short for {facts} facts; lengthen them"
            )
        for name in ("miss", "leak", "repeat"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} = {getattr(self, name)} must lie in 0..1")

    def dialogues(self, split: Split, number: int | None = None) -> list[Dialogue]:
        """Return the first `number` dialogues of a split; by default all of its size in `SIZES`.

        Raises `InputError` for an unknown split, a number outside 1 to 10,000, or more `friend_keys` than two people of
        the split can share.
        """
        if split not in SPLITS:
            raise InputError(f"DialogWorld has no split {split!r}. There are: {', '.join(SPLITS)}")
        number = SIZES[split] if number is None else number
        if not 1 <= number <= 10_000:
            raise InputError(f"{number} dialogues: ask for 1 to 10,000")
        return [_Writer(self, split, i).dialogue() for i in range(number)]

    def extract(self, turn: Turn) -> list[str]:
        """Return the facts that a noisy extractor finds in `turn`, in the third person; the same on every call.

        None, one, or the same one twice; none of text that is not of this language.
        """
        rng = _rng(self.seed, "extract", turn.dialogue, turn.source_id)
        fact = in_third_person(turn.text, turn.speaker)
        statement = read(fact)
        if statement is None:
            return []
        if statement.relation == "chatter":
            return [fact] if rng.random() < self.leak else []
        if rng.random() < self.miss:
            return []
        return [fact, fact] if rng.random() < self.repeat else [fact]


def score(gold: str, answer: str | None) -> float:
    """Return 1.0 for an exact match after normalisation, else 0.0: reward and evaluation alike."""
    return exact_match(answer, gold)


def answer_of(kind: QuestionKind, held: Sequence[str]) -> str:
    """Return the answer to a question about one key whose values are `held` (at most two)."""
    if kind is QuestionKind.COUNT:
        return NUMBERS[len(held)]
    return " and ".join(held) if held else UNKNOWN


def _rng(*parts: object) -> random.Random:
    return random.Random(":".join(map(str, ("dialog-world", *parts))))  # strings are hashed the same everywhere


@cache
def _bucket(subject: str, relation: str, value: str) -> int:
    return zlib.crc32(f"{subject}|{relation}|{value}".encode()) % 3


@dataclass
class _Told:
    """One key and the statements about it so far."""

    subject: str
    relation: Relation
    statements: list[Statement] = field(default_factory=list)

    @property
    def held(self) -> tuple[str, ...]:
        return fold(self.statements)


class _Writer:
    """Writes one dialogue."""

    def __init__(self, world: DialogWorld, split: Split, number: int) -> None:
        self.world, self.split = world, split
        self.id = f"{split}-{number:04d}"
        self.rng = _rng(world.seed, self.id)
        names = NAMES + NEW_NAMES if split == "ood" else NAMES
        self.people = self.rng.sample(names, 4)
        if split == "ood":
            self.people[:2] = self.rng.sample(NEW_NAMES, 2)
            # A friend who drew the name of a speaker gets the first free one; the random stream stays as it was.
            free = (name for name in NAMES if name not in self.people)
            self.people[2:] = [next(free) if name in self.people[:2] else name for name in self.people[2:]]
        self.told: list[_Told] = []

    def dialogue(self) -> Dialogue:
        """Return the dialogue."""
        plans = [self._plan(speaker) for speaker in (0, 1)]
        meant: list[tuple[int, Statement, EventKind, str]] = []
        quiet = self.world.sessions * self.world.session_turns - sum(map(len, plans))
        order = [0] * len(plans[0]) + [1] * len(plans[1]) + [2] * quiet
        self.rng.shuffle(order)
        for who in order:
            if who < 2:
                meant.append((who, *plans[who].pop(0)))
            else:
                who = self.rng.randrange(2)
                chat = Statement(self.people[who], "chatter", Act.SET, (self.rng.choice(CHATTER),))
                meant.append((who, chat, EventKind.CHATTER, say(chat)))
        turns = tuple(self._turn(i, who, text) for i, (who, _, _, text) in enumerate(meant))
        statements = tuple(statement for _, statement, _, _ in meant)
        kinds = tuple(kind for _, _, kind, _ in meant)
        return Dialogue(self.id, self.split, turns, statements, kinds, tuple(self._questions(turns, statements)))

    def _turn(self, position: int, who: int, sentence: str) -> Turn:
        speaker = self.people[who]
        said = in_first_person(sentence) if sentence.split()[0] == speaker else sentence
        return Turn(
            source_id=f"{self.id}-{position}",
            dialogue=self.id,
            speaker=speaker,
            text=f"{self.rng.choice(OPENERS)}{said}.",
        )

    def _plan(self, who: int) -> list[tuple[Statement, EventKind, str]]:
        """Return what a speaker will say of themselves and of a friend, in order."""
        speaker, friend = self.people[who], self.people[who + 2]
        rich = [r for r in RELATIONS if min(len(self._pool(person, r)) for person in (speaker, friend)) >= 2]
        own = self.rng.sample(rich, min(self.world.keys, len(rich)))
        if self.world.friend_keys > len(own):
            raise InputError(
                f"{self.id}: {speaker} and {friend} can share {len(own)} relations, friend_keys = "
                f"{self.world.friend_keys} asks for more; 5 is always possible"
            )
        shared = self.rng.sample(own, self.world.friend_keys)
        open_ = [_Told(speaker, relation) for relation in own]
        open_ += [_Told(friend, relation) for relation in shared]
        self.rng.shuffle(open_)
        steps = [True] * len(open_) + [False] * self.world.follow_ups
        first, *rest = steps
        self.rng.shuffle(rest)
        said: list[tuple[Statement, EventKind, str]] = []
        begun: list[_Told] = []
        for fresh in (first, *rest):
            more = [told for told in begun if self._may_go_on(told)]
            if open_ and (fresh or not more):
                told = open_.pop()
                begun.append(told)
                kind = EventKind.NEAR_MISS if told.subject == friend else EventKind.NEW
                said.append(self._first(told, kind))
            elif more:
                said.append(self._later(self.rng.choice(more)))
        self.told += begun
        return said

    def _may_go_on(self, told: _Told) -> bool:
        return bool(told.held) and len(told.statements) < (2 if told.relation.dated else 4)

    def _ways(self) -> int:
        return 2 if self.split == "ood" and self.rng.random() < 0.5 else self.rng.randrange(2)

    def _first(self, told: _Told, kind: EventKind) -> tuple[Statement, EventKind, str]:
        month = self.rng.choice(MONTHS) if told.relation.dated else None
        statement = Statement(told.subject, told.relation.name, Act.SET, (self._value(told),), month)
        told.statements.append(statement)
        return statement, kind, say(statement, self._ways())

    def _later(self, told: _Told) -> tuple[Statement, EventKind, str]:
        relation, held = told.relation, told.held
        chance = self.rng.random()
        full = relation.also is not None and len(held) == 2
        if relation.dated or chance < 0.15 or full or not self._free(told):
            return self._restated(told)
        act, kind, change = Act.SET, EventKind.REPLACED, self.rng.random() < 0.5
        if relation.dropped and chance < 0.35:
            act, kind = Act.DROP, EventKind.RETRACTED
        elif relation.also:
            act, kind = Act.ALSO, EventKind.ACCUMULATED
        value = held[0] if act is Act.DROP else self._value(told)
        statement = Statement(told.subject, relation.name, act, (value,))
        told.statements.append(statement)
        return statement, kind, say(statement, 0 if change else self._ways(), change=change and act is Act.SET)

    def _restated(self, told: _Told) -> tuple[Statement, EventKind, str]:
        last = told.statements[-1]
        values = last.values[:1] if last.month else told.held
        statement = Statement(told.subject, told.relation.name, Act.SET, values, last.month)
        told.statements.append(statement)
        return statement, EventKind.RESTATED, say(statement, 1)

    def _pool(self, subject: str, relation: Relation) -> list[str]:
        """Return the values that `subject` may have in this split; those of the three splits are disjoint."""
        if self.split == "ood":
            return [*NEW_VALUES[relation.name], *relation.values]
        index = SPLITS.index(self.split)
        return [value for value in relation.values if _bucket(subject, relation.name, value) == index]

    def _free(self, told: _Told) -> list[str]:
        """Return the values that were not said of this key yet."""
        used = {value for statement in told.statements for value in statement.values}
        return [value for value in self._pool(told.subject, told.relation) if value not in used]

    def _value(self, told: _Told) -> str:
        """Return a new value; often the one that another person has, so that comparisons are no giveaway."""
        free, relation = self._free(told), told.relation
        others = [v for o in self.told if o.relation is relation and not relation.dated for v in o.held if v in free]
        return self.rng.choice(others) if others and self.rng.random() < 0.7 else self.rng.choice(free)

    def _questions(self, turns: Sequence[Turn], meant: Sequence[Statement]) -> list[Question]:
        asked: list[tuple[str, str, QuestionKind, list[_Told]]] = []
        for told in self.told:
            relation, s = told.relation, told.subject
            if relation.dated:
                text = relation.question.format(s=s, v=told.statements[0].values[0])
                asked.append((text, told.held[0], QuestionKind.WHEN, [told]))
                continue
            kind = QuestionKind.LIST if relation.also else QuestionKind.LOOKUP
            asked.append((relation.question.format(s=s), answer_of(kind, told.held), kind, [told]))
            if relation.count and self.rng.random() < 0.3:
                asked.append(
                    (relation.count.format(s=s), answer_of(QuestionKind.COUNT, told.held), QuestionKind.COUNT, [told])
                )
        asked += self._comparisons()
        return [
            Question(
                id=f"{self.id}-q{i}",
                text=text,
                gold=gold,
                kind=kind,
                keys=tuple(told.statements[0].key for told in about),
                evidence=tuple(
                    turn.source_id
                    for turn, statement in zip(turns, meant, strict=True)
                    if statement.key in {told.statements[0].key for told in about}
                ),
            )
            for i, (text, gold, kind, about) in enumerate(asked)
        ]

    def _comparisons(self) -> list[tuple[str, str, QuestionKind, list[_Told]]]:
        """Return at most two comparisons of the speakers, where both hold a value."""
        found = []
        for one in self.told:
            for other in self.told:
                same = relation_of(one.relation.name).same
                if (
                    same and one.relation is other.relation and one.held and other.held
                    and (one.subject, other.subject) == (self.people[0], self.people[1])
                ):  # fmt: skip
                    text = same.format(s=one.subject, o=other.subject)
                    found.append((text, "yes" if one.held == other.held else "no", QuestionKind.COMPARE, [one, other]))
        return found[:2]

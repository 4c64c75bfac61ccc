"""What the base policy is shown while it is pre-trained: banks of random statements, and what may be asked of them.

Words and templates are the world's; banks, bindings and orders are drawn at random, some as a careful manager leaves them (one memory
per key), some as one that adds everything.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from memweave.worlds.dialog_language import (
    CHATTER,
    MONTHS,
    NAMES,
    RELATIONS,
    Act,
    Relation,
    Statement,
    fold,
    relation_of,
    say,
)


@dataclass(frozen=True)
class Situation:
    """Memories as they are shown, per participant the oldest first, and what can be put to a role about them."""

    speakers: tuple[str, ...]
    """Whose each memory is."""
    memories: tuple[str, ...]
    asked: tuple[tuple[str, ...], ...]
    """Questions (one text each), or the facts of a turn."""


def _value(rng: random.Random, relation: Relation, used: Sequence[str] = ()) -> str:
    return rng.choice([value for value in relation.values if value not in used])


def _first(rng: random.Random, subject: str, relation: Relation) -> Statement:
    month = rng.choice(MONTHS) if relation.dated else None
    return Statement(subject, relation.name, Act.SET, (_value(rng, relation),), month)


def _next(rng: random.Random, told: Sequence[Statement]) -> Statement:
    """Return a later statement about a key: a restatement, another value, one more, or none any more."""
    last, held = told[-1], fold(told)
    relation = relation_of(last.relation)
    if relation.dated:
        return last
    chance = rng.random()
    if chance < 0.2 and held:
        return Statement(last.subject, last.relation, Act.SET, held)
    if chance < 0.45 and len(held) == 1:
        return Statement(last.subject, last.relation, Act.DROP, held)
    if relation.also and held:
        if len(held) == 2:
            return Statement(last.subject, last.relation, Act.SET, held)
        return Statement(last.subject, last.relation, Act.ALSO, (_value(rng, relation, held),))
    return Statement(last.subject, last.relation, Act.SET, (_value(rng, relation, held),))


def _written(rng: random.Random, statement: Statement) -> str:
    single = statement.act is Act.SET and len(statement.values) == 1
    change = single and rng.random() < 0.3 and relation_of(statement.relation).became is not None
    return say(statement, rng.randrange(2) if single else 0, change=change)


def _bank(
    rng: random.Random, people: Sequence[str], size: int, *, raw: bool
) -> tuple[list[list[Statement]], list[str]]:
    """Return what was told, key by key, and at most `size` memories of it."""
    keys: list[tuple[str, Relation]] = [(person, relation) for person in people for relation in RELATIONS]
    favoured = rng.sample(RELATIONS, 4)  # near misses: the same relation of several people
    keys.sort(key=lambda key: rng.random() - (0.5 if key[1] in favoured else 0))
    told: list[list[Statement]] = []
    places: list[tuple[float, str]] = []
    while len(places) < size and keys:
        person, relation = keys.pop(0)
        statements = [_first(rng, person, relation)]
        told.append(statements)
        if not raw:
            if relation.also and rng.random() < 0.4:
                value = _value(rng, relation, statements[0].values)
                statements[0] = Statement(person, relation.name, Act.SET, (*statements[0].values, value))
            places.append((rng.random(), _written(rng, statements[0])))
            continue
        while rng.random() < 0.45 and len(statements) < 3 and fold(statements):
            statements.append(_next(rng, statements))
        times = sorted(rng.random() for _ in statements)
        places += [(time, _written(rng, said)) for time, said in zip(times, statements, strict=True)]
        if rng.random() < 0.2:
            places.append((rng.random(), f"{people[0]} {rng.choice(CHATTER)}"))
    places.sort()
    return told, [text for _, text in places][:size]


def for_manager(rng: random.Random, size: int, asked: int) -> Situation:
    """Return a bank of one participant with at most `size` memories, and `asked` turns with their facts."""
    speaker, friend = rng.sample(NAMES, 2)
    told, memories = _bank(rng, [speaker, friend], size, raw=rng.random() < 0.3)
    known = {(line.subject, line.relation) for statements in told for line in statements}
    fresh = [
        (who, relation) for who in (speaker, friend) for relation in RELATIONS if (who, relation.name) not in known
    ]
    turns: list[tuple[str, ...]] = []
    for _ in range(asked):
        chance = rng.random()
        if chance < 0.12:
            fact = f"{speaker} {rng.choice(CHATTER)}"
        elif chance < 0.4 and fresh or not told:
            who, relation = rng.choice(fresh)
            first = _first(rng, who, relation)
            if relation.also and rng.random() < 0.15:
                first = Statement(who, relation.name, Act.ALSO, first.values)
            elif relation.dropped and rng.random() < 0.1:
                first = Statement(who, relation.name, Act.DROP, first.values)
            fact = _written(rng, first)
        else:
            fact = _written(rng, _next(rng, rng.choice(told)))
        turns.append((fact,) * (2 if rng.random() < 0.04 else 1))
    if all(len(statements) == 1 for statements in told):
        rng.shuffle(memories)  # the manager sees them best match first, which is no order of time
    return Situation((speaker,) * len(memories), tuple(memories), tuple(turns))


def for_answerer(rng: random.Random, size: int, asked: int) -> Situation:
    """Return the banks of two participants with at most `size` memories together, and `asked` questions."""
    people = rng.sample(NAMES, 4)
    raw = rng.random() < 0.4
    shares = (size - size // 2, size // 2)
    banks = [_bank(rng, (people[i], people[i + 2]), share, raw=raw) for i, share in enumerate(shares)]
    told = [statements for each, _ in banks for statements in each]
    questions: list[tuple[str, ...]] = []
    for _ in range(asked):
        questions.append((_question(rng, people, told),))
    speakers = tuple(people[i] for i, (_, memories) in enumerate(banks) for _ in memories)
    return Situation(speakers, tuple(text for _, memories in banks for text in memories), tuple(questions))


def _question(rng: random.Random, people: Sequence[str], told: Sequence[Sequence[Statement]]) -> str:
    if rng.random() < 0.08:
        relation = rng.choice([relation for relation in RELATIONS if relation.same])
        assert relation.same is not None
        return relation.same.format(s=people[0], o=people[1])
    if rng.random() < 0.15 or not told:
        person, relation = rng.choice(people), rng.choice(RELATIONS)
        text = relation.count if relation.count and rng.random() < 0.4 else relation.question
        return text.format(s=person, v=_value(rng, relation))
    said = rng.choice(told)[0]
    relation = relation_of(said.relation)
    text = relation.count if relation.count and rng.random() < 0.25 else relation.question
    return text.format(s=said.subject, v=said.values[0])

"""How MemHop is played by a script: rightly, or with the habits that the base policy learns (docs/agemem.md).

A teacher knows only what the model would see: the messages of the context. It quotes the memory that it goes by, with its number, and
then acts. With *habits* it prefers the wrong move three times out of four in some situations: greedy, a policy that imitates it is
wrong there, and sampling finds the right move now and then.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from memweave.agents.memory_tools import ADD, FILTER, LONG_TERM, RETRIEVE, SHORT_TERM, SUMMARY, UPDATE
from memweave.agents.tool_protocol import tools_line
from memweave.recipes.lesson_rows import Said
from memweave.worlds.memhop import (
    NAMES,
    RELATIONS,
    Asked,
    Triple,
    by_heart,
    is_correction,
    question_of,
    read_facts,
    read_question,
)

NOTHING: Final = "nothing about"
IDLE: Final = "<answer>ok</answer>"


@dataclass(frozen=True)
class Habits:
    """Probabilities of the wrong moves."""

    unstored: tuple[str, ...] = ("teacher",)
    """Relations whose facts are mostly not stored."""
    skip: float = 0.75
    """Of not storing one of these."""
    keep_old: float = 0.75
    """Of adding a correction as a new memory, beside the outdated one."""
    unfollowed: tuple[str, ...] = ("boss", "cousin")
    """Relations of which a question is mostly not followed any further, if it starts with one of them."""
    stop_early: float = 0.7
    """Of answering such a question after its first fact."""
    manage: float = 0.06
    """Of each, filtering and summarising, at a small-talk message."""


CLEAN: Final = Habits(skip=0.0, keep_old=0.0, stop_early=0.0, manage=0.12)
PERFECT: Final = replace(CLEAN, manage=0.0)
"""Always right, and never manages its context: what the gate compares with, and what overflows are counted of."""


def reply(said: Sequence[Said], habits: Habits, rng: random.Random) -> str:
    """Return the teacher's turn after the messages `said`, oldest first."""
    tools = said[0][1] if said and said[0][0] == "system" else ""
    place = max((i for i, (role, _) in enumerate(said) if role == "user"), default=0)
    message = said[place][1]
    asked = read_question(message)
    if asked is not None:
        return _question(said, place, asked, habits, rng, can_look=RETRIEVE in tools)
    if read_facts(message):
        return _facts(said, place, message, habits, rng) if ADD in tools else IDLE
    return _small_talk(message, habits, rng) if SUMMARY in tools else IDLE


def _facts(said: Sequence[Said], place: int, message: str, habits: Habits, rng: random.Random) -> str:
    """Return the calls that bring memory up to date with a message of stage 1."""
    shown = _lines(said[place + 1 :])
    calls: list[str] = []
    thoughts: list[str] = []
    for fact in read_facts(message):
        known = [
            (number, line) for number, line in shown if (line.subject, line.relation) == (fact.subject, fact.relation)
        ]
        if any(line == fact for _, line in known):
            continue
        if known and is_correction(message) and rng.random() >= habits.keep_old:
            number, old = known[0]
            thoughts.append(f"{old.text} [{number}]")
            calls.append(call(UPDATE, memory_id=str(number), content=fact.text))
        elif not (fact.relation in habits.unstored and rng.random() < habits.skip):
            calls.append(call(ADD, content=fact.text))
    if not calls:
        return IDLE
    return thought(thoughts) + tool_call(calls)


def _small_talk(message: str, habits: Habits, rng: random.Random) -> str:
    chance = rng.random()
    if chance < habits.manage:
        return tool_call([call(FILTER, criteria=criteria(message))])
    if chance < 2 * habits.manage:
        return tool_call([call(SUMMARY, span="all")])
    return IDLE


def criteria(message: str) -> str:
    """Return what describes a small-talk message: its beginning, up to the first remark."""
    return message.split(",")[0].rstrip(".")


def _question(
    said: Sequence[Said], place: int, asked: Asked, habits: Habits, rng: random.Random, *, can_look: bool
) -> str:
    """Return the next step towards an answer: look for the next fact, or answer."""
    shown = _lines(said[place + 1 :])
    restated = [(None, fact) for fact in read_facts(said[place][1])]
    looked = [text for role, text in said[place + 1 :] if role == "assistant"]
    person, quotes = asked.subject, list[str]()
    for hop, relation in enumerate(asked.relations):
        found = next(((n, f) for n, f in [*restated, *shown] if (f.subject, f.relation) == (person, relation)), None)
        if found is not None:
            number, fact = found
            quotes.append(fact.text if number is None else f"{fact.text} [{number}]")
            person = fact.value
            last = hop + 1 == len(asked.relations)
            if not last and hop == 0 and relation in habits.unfollowed and rng.random() < habits.stop_early:
                return thought(quotes) + answer(person)
            continue
        query = f"{person}'s {relation}"
        if can_look and not any(query in text for text in looked):
            return thought(quotes) + tool_call([call(RETRIEVE, query=query)])
        quotes.append(f"{NOTHING} {query}.")
        person = by_heart(person, relation) or person
    return thought(quotes) + answer(person)


def _lines(said: Sequence[Said]) -> list[tuple[int, Triple]]:
    """Return the memories that tool messages show, with their numbers, as they stand there."""
    found = []
    for role, text in said:
        if role == "tool":
            for line in re.finditer(r"^- (.*) \[(\d+)\]$", text, re.MULTILINE):
                found += [(int(line[2]), fact) for fact in read_facts(line[1])]
    return found


def thought(quotes: Sequence[str]) -> str:
    """Return a thought of quotes; none without quotes."""
    return f"<think>{' '.join(quotes)}</think>" if quotes else ""


def answer(text: str) -> str:
    """Return an answer in the text protocol."""
    return f"<answer>{text}</answer>"


def call(name: str, **arguments: str) -> str:
    """Return one call in the text protocol."""
    return json.dumps({"name": name, "arguments": arguments})


def tool_call(calls: Sequence[str]) -> str:
    """Return calls in the text protocol."""
    return f"<tool_call>[{', '.join(calls)}]</tool_call>"


# lessons that only look things up

Exchange = tuple[tuple[Said, ...], str]
"""What was said, and the teacher's reply to it."""


def question_lesson(rng: random.Random, habits: Habits, questions: int = 4) -> list[Exchange]:
    """Return a conversation of several questions, each with memories that a search might have found for it."""
    names = (*LONG_TERM, *SHORT_TERM)
    said: list[Said] = [("system", tools_line(names))]
    done: list[Exchange] = []
    numbers = list(range(1, 16))
    for _ in range(questions):
        chain = _random_chain(rng, rng.choice((1, 1, 2)))
        said.append(("user", question_of(chain[0].subject, [t.relation for t in chain])))
        for fact in chain:
            number, *others = rng.sample(numbers, 4)
            near = [_near(rng, fact) for _ in range(rng.randint(1, 3))]
            shown = [(fact, number), *zip(near, others, strict=False)]
            rng.shuffle(shown)
            done.append((tuple(said), reply(said, habits, rng)))
            said.append(("assistant", done[-1][1]))
            if "<answer>" in done[-1][1]:
                break
            said.append(("tool", "\n".join(f"- {each.text} [{n}]" for each, n in shown)))
        else:
            done.append((tuple(said), reply(said, habits, rng)))
            said.append(("assistant", done[-1][1]))
    return done


def update_lesson(rng: random.Random, habits: Habits, messages: int = 5) -> list[Exchange]:
    """Return a conversation of corrections, each with memories that a search might have found for it."""
    said: list[Said] = [("system", tools_line((*LONG_TERM, *SHORT_TERM)))]
    done: list[Exchange] = []
    for _ in range(messages):
        (old,) = _random_chain(rng, 1)
        new = Triple(old.subject, old.relation, rng.choice([n for n in NAMES if n not in (old.subject, old.value)]))
        said.append(("user", f"{new.subject}'s {new.relation} is now {new.value}."))
        shown = [old] if rng.random() < 0.85 else []
        shown += [_near(rng, old) for _ in range(2 - len(shown))]
        rng.shuffle(shown)
        numbers = rng.sample(range(1, 16), len(shown))
        said.append(("tool", "\n".join(f"- {each.text} [{n}]" for each, n in zip(shown, numbers, strict=True))))
        done.append((tuple(said), reply(said, habits, rng)))
        said.append(("assistant", done[-1][1]))
        said.append(("tool", f"Updated [{rng.choice(numbers)}]." if UPDATE in done[-1][1] else "Added [9]."))
    return done


def _random_chain(rng: random.Random, hops: int) -> list[Triple]:
    people = rng.sample(NAMES, hops + 1)
    relations = rng.sample(RELATIONS, hops)
    return [Triple(a, relation, b) for a, relation, b in zip(people, relations, people[1:], strict=False)]


def _near(rng: random.Random, fact: Triple) -> Triple:
    """Return another fact that looks like `fact`: of the same person, or the same relation of another one."""
    if rng.random() < 0.5:
        relation = rng.choice([each for each in RELATIONS if each != fact.relation])
        return Triple(fact.subject, relation, rng.choice([n for n in NAMES if n != fact.subject]))
    subject = rng.choice([each for each in NAMES if each != fact.subject])
    return Triple(subject, fact.relation, rng.choice([n for n in NAMES if n != subject]))

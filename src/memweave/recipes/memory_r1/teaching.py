"""What a perfect manager and a perfect answerer would reply in DialogWorld, and the habits that the base policy is taught instead.

A reply quotes the matching memory with its number before it decides: a small policy that was asked for the number first did not
learn to look anything up (docs/memory-r1.md), and in the paper that quoting is memory distillation. Teachers see what an
agent sees, texts and no more; they read them with the grammar of the world.

A habit is a kind of input for which the base policy prefers the wrong reply, three times out of four: greedy decoding is wrong
there, so no sharpening repairs it, while sampling still finds the right reply now and then.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from typing import Final, Literal, get_args

from memweave.agents.answerer import MARKER
from memweave.worlds.dialog_language import Act, Asked, Statement, fold, read, read_question, say
from memweave.worlds.dialog_world import QuestionKind, answer_of

HABIT: Final = 0.75
"""How often the teacher of the base policy follows a habit where it applies."""
KEEPS_OLD: Final = ("city", "job")
"""Manager: a new value of these is added beside the old one instead of replacing it."""
OVERWRITES: Final = ("pet",)
"""Manager: a further value of this one replaces the earlier one instead of joining it."""
WITHHOLDS: Final = ("color", "course")
"""Answerer: it quotes the right memory of these, and then says that it does not know."""
FORGETS_FIRST: Final = ("instrument",)
"""Answerer: of two values of these it names the last one only."""
NOTHING: Final = "(none)"
Distill = Literal["select_then_answer", "direct", "direct_with_filler"]
"""How an answerer writes (specification, B11): it quotes and then answers, it only answers, or it writes as many tokens that say
nothing and then answers."""
FORMS: Final[tuple[Distill, ...]] = get_args(Distill)
FILLER: Final = "-" + " ." * 6
"""7 tokens of the base policy with the end of its line, as a quotation has on average."""

Item = dict[str, object]
"""One operation of a manager's reply."""
Line = tuple[int, Statement]
"""The number of a shown memory and what it says."""


def manage(memories: Sequence[str], facts: Iterable[str], rng: random.Random | None = None) -> str:
    """Return the reply of a manager that is shown `memories` and `facts`.

    rng: draws whether a habit is followed; `None` for a manager without habits.
    """
    items = []
    lines = _read_all(memories)
    for fact in dict.fromkeys(facts):
        items += _decide(memories, lines, fact, rng)
    return json.dumps({"memory": items})


def _decide(memories: Sequence[str], lines: Sequence[Line], fact: str, rng: random.Random | None) -> list[Item]:
    statement = read(fact)
    if statement is None or statement.relation == "chatter":
        return [{"reason": "small talk", "event": "NOOP"}]
    about = [line for line in lines if line[1].key == statement.key]
    if not about:
        if statement.act is Act.DROP:
            return [{"reason": "new", "event": "NOOP"}]
        return [{"reason": "new", "event": "ADD", "text": fact}]
    habit = rng is not None and rng.random() < HABIT
    held = fold([line for _, line in about])
    if statement.act is Act.DROP and held and not habit:
        return [_item(memories, number, "DELETE") for number, _ in about]
    number, old = about[-1]
    if statement.act is Act.DROP or set(statement.values) <= set(held) or (held and held == (statement.month,)):
        return [_item(memories, number, "NOOP")]
    if statement.act is Act.ALSO and held:
        if habit and statement.relation in OVERWRITES:
            return [_item(memories, number, "UPDATE", fact)]
        both = Statement(old.subject, old.relation, Act.SET, (held[0], statement.values[0]))
        return [_item(memories, number, "UPDATE", say(both))]
    if habit and statement.relation in KEEPS_OLD:
        return [{"reason": f"{memories[number]} [{number}]", "event": "ADD", "text": fact}]
    return [_item(memories, number, "UPDATE", fact)]


def _item(memories: Sequence[str], number: int, event: str, text: str | None = None) -> Item:
    """Return an operation on a memory: the quotation first, then what follows from it."""
    return {"reason": f"{memories[number]} [{number}]", "event": event, "id": number} | ({"text": text} if text else {})


def answer(
    memories: Sequence[str],
    question: str,
    rng: random.Random | None = None,
    distill: Distill = "select_then_answer",
) -> str:
    """Return the reply of an answerer that is shown `memories`, the oldest first per person.

    rng: as in `manage`.  distill: how it is written; what is answered is the same.
    """
    asked = read_question(question)
    if asked is None:
        return _written([], answer_of(QuestionKind.LOOKUP, ()), distill)
    lines = _read_all(memories)
    habit = rng is not None and rng.random() < HABIT
    found = [_contributing(lines, key) for key in asked.keys]
    values = [fold([statement for _, statement in about]) for about in found]
    if asked.kind == "compare":
        said = "yes" if values[0] and values[0] == values[1] else "no"
    else:
        said = answer_of(QuestionKind(asked.kind), _by_habit(asked, values[0]) if habit else values[0])
    return _written([f"- {memories[number]} [{number}]" for about in found for number, _ in about], said, distill)


def _by_habit(asked: Asked, held: tuple[str, ...]) -> tuple[str, ...]:
    relation = asked.keys[0][1]
    if relation in WITHHOLDS:
        return ()
    return held[-1:] if relation in FORGETS_FIRST and asked.kind == "list" else held


def _written(quoted: Sequence[str], said: str, distill: Distill) -> str:
    before = {"select_then_answer": quoted or [NOTHING], "direct": [], "direct_with_filler": [FILLER]}[distill]
    return "\n".join([*before, f"{MARKER} {said}"])


def _read_all(memories: Sequence[str]) -> list[Line]:
    return [(number, said) for number, text in enumerate(memories) if (said := read(text)) is not None]


def _contributing(lines: Sequence[Line], key: tuple[str, str, str]) -> list[Line]:
    """Return the lines from which the present values of `key` follow."""
    about: list[Line] = []
    for number, statement in lines:
        if statement.key != key:
            continue
        if statement.act is Act.ALSO:
            if not set(statement.values) <= set(fold([line for _, line in about])):
                about.append((number, statement))
        else:
            about = [(number, statement)]
    return about

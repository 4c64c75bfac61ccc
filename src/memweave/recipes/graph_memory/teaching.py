"""How FSM-QA is played by a script: it names one move, quotes what it goes by, and acts (docs/fsmqa.md).

A teacher knows only what the model would see. Its *habits* say how often it makes which move for questions that look like a kind: for half
of the kinds it prefers a move that fails, about three to one. Its *compliance* says how often it takes a piece of advice instead. Which
move is right is written down nowhere here.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from memweave.agents.tool_protocol import read_text_turn
from memweave.recipes.graph_memory.advising import Advice, read_advice
from memweave.recipes.lesson_rows import Said
from memweave.worlds.fsmqa import KINDS, POOLS, RANK, Kind

MOST_CALLS: Final = 4
"""After which the teacher searches no more; an agent may call six times (specification, 2.1)."""


class Move(StrEnum):
    """What a turn decides, in the words of its thought."""

    BELIEF = "answer from belief"
    ONE = "plan one"
    SEQ = "plan seq"
    PAR = "plan par"
    SEARCH = "search"
    EVIDENCE = "answer from evidence"
    RECHECK = "re-check"
    ASSUME = "assume"


FIRST: Final = (Move.BELIEF, Move.ONE, Move.SEQ, Move.PAR)
"""Moves before anything was searched."""
PLANS: Final = FIRST[1:]
LAST: Final = (Move.EVIDENCE, Move.RECHECK, Move.ASSUME)
"""Moves when the plan has been carried out."""

ADVISED: Final[Mapping[str, tuple[Move, ...]]] = {
    "KnowledgeSufficient": (Move.BELIEF,),
    "KnowledgeUncertainGap": PLANS,
    "StrategyPlanning": PLANS,
    "SingleStepPlanning": (Move.ONE,),
    "SequentialDependentPlanning": (Move.SEQ,),
    "ParallelIndependentPlanning": (Move.PAR,),
    "SufficientInformation": (Move.EVIDENCE,),
    "InsufficientInformation": (Move.RECHECK, Move.ASSUME),
    "AssumptionBasedReasoning": (Move.ASSUME,),
    "ToolExecution": (Move.RECHECK,),
}
"""What following advice for a state of the machine means, where it is possible; other states mean nothing to do."""

Weights = tuple[float, ...]


@dataclass(frozen=True)
class Habits:
    """How often which move is made. Weights need not add up to 1."""

    first: tuple[Weights, ...]
    """By kind that a question looks like (order of `KINDS`): weights of `FIRST`."""
    found: Weights = (0.75, 0.1, 0.15)
    """Of `LAST`, when everything was found."""
    missing: Weights = (0.0, 0.6, 0.4)
    """Of `LAST`, when something was not."""
    compliance: float = 0.5
    """Probability that a piece of advice is taken, each on its own, in the order in which they stand."""


BELIEVES: Final = (0.7, 0.2, 0.05, 0.05)
SEARCHES: Final = (0.2, 0.7, 0.05, 0.05)
BASE: Final = Habits((BELIEVES, SEARCHES, (0.05, 0.7, 0.2, 0.05), (0.05, 0.2, 0.05, 0.7), BELIEVES, SEARCHES))
"""The base policy: it treats misleading questions as known ones, and sequential and unsearchable questions as single ones."""
EVEN: Final = Habits(((1.0,) * 4,) * len(KINDS), (0.5, 0.25, 0.25), (0.0, 0.5, 0.5))
"""Clean lessons: every move is practised, none is preferred."""

_QUESTION: Final = re.compile(r"(\w+), (\w+): ([\w, ]+)\. Maybe (\w+)\. ([a-z ]+)")
_LINE: Final = re.compile(r"(\w+) (\w+): (\w+) \[\d+\]")
_RESPONSE: Final = "<tool_response>"
_POOL_OF: Final = {word: pool for pool, words in enumerate(POOLS) for word in words}

Slot = tuple[str, str]
"""Person and relation."""


@dataclass(frozen=True)
class Seen:
    """What a player sees of an episode."""

    people: tuple[str, str]
    relations: tuple[str, ...]
    belief: str
    words: tuple[str, ...]
    advice: tuple[Advice, ...]
    plan: Move | None
    asked: tuple[Slot, ...]
    """Look-ups of the last turn."""
    found: tuple[str | None, ...]
    """For each, the line that was found."""
    calls: int
    """So far."""

    @property
    def kind(self) -> Kind | None:
        """Return what the question looks like: the kind with the most words, the first among equals; `None` without any."""
        count = Counter(pool for word in self.words if (pool := _POOL_OF.get(word, len(KINDS))) < len(KINDS))
        return KINDS[count.most_common(1)[0][0]] if count else None

    @property
    def complete(self) -> bool:
        """Return whether everything was found that the last turn asked for."""
        return None not in self.found

    @property
    def values(self) -> tuple[str, ...]:
        """Return what was found."""
        return tuple(_value(line) for line in self.found if line is not None)


def read(said: Sequence[Said]) -> Seen:
    """Return what messages show. Raises `ValueError` when they hold no question of FSM-QA."""
    asked = "\n".join(text for role, text in said if role in ("system", "user") and not text.startswith(_RESPONSE))
    questions = list(_QUESTION.finditer(asked))
    if not questions:
        raise ValueError(f"this is no question of FSM-QA: {asked:.200}")
    first, second, relations, belief, words = questions[-1].groups()
    plan: Move | None = None
    slots: list[Slot] = []
    results: list[str] = []
    calls = 0
    for role, text in said:
        if role == "assistant":
            turn = read_text_turn(text)
            plan = plan or next((move for move in PLANS if turn.think.startswith(move)), None)
            slots = [(str(c["args"].get("entity")), str(c["args"].get("relation"))) for c in turn.calls]
            results, calls = [], calls + len(slots)
        elif text.startswith(_RESPONSE):  # of a tool; endpoints get it as a user's message
            results.append(text)
    shown = {(line[1], line[2]): line[0] for text in results for line in _LINE.finditer(text)}
    return Seen(
        people=(first, second),
        relations=tuple(relations.split(", ")),
        belief=belief,
        words=tuple(words.split()),
        advice=tuple(read_advice(asked)),
        plan=plan,
        asked=tuple(slots),
        found=tuple(shown.get(slot) for slot in slots),
        calls=calls,
    )


def possible(seen: Seen) -> tuple[Move, ...]:
    """Return the moves that make sense now."""
    if not seen.asked:
        return FIRST
    if _next_hop(seen) is not None:
        return (Move.SEARCH,)
    again = (Move.RECHECK,) if seen.calls + len(seen.asked) <= MOST_CALLS else ()
    return ((Move.EVIDENCE,) if seen.complete else ()) + again + (Move.ASSUME,)


def shares(seen: Seen, habits: Habits) -> dict[Move, float]:
    """Return the probability of each move that is possible: what is advised, as far as the player complies, else by habit."""
    moves = possible(seen)
    weights = _weights(seen, habits)
    left, found = 1.0, dict.fromkeys(moves, 0.0)
    for piece in seen.advice:
        if wanted := advised(piece, moves):
            _share(found, wanted, weights, left * habits.compliance)
            left *= 1 - habits.compliance
    _share(found, moves, weights, left)
    return found


def _share(found: dict[Move, float], moves: Sequence[Move], weights: Mapping[Move, float], mass: float) -> None:
    total = sum(weights.get(move, 0.0) for move in moves)
    for move in moves:
        found[move] += mass * (weights.get(move, 0.0) / total if total else 1 / len(moves))


def advised(piece: Advice, moves: Sequence[Move]) -> tuple[Move, ...]:
    """Return which of the possible moves follow a piece of advice: those of the most special state that it recommends."""
    meant = [tuple(move for move in ADVISED.get(state, ()) if move in moves) for state in piece.take]
    return min((each for each in meant if each), key=len, default=())


def act(seen: Seen, move: Move) -> str:
    """Return the turn that makes a move: the thought that names it and quotes, then the calls or the answer."""
    quotes = [line or f"{' '.join(slot)}: nothing" for slot, line in zip(seen.asked, seen.found, strict=True)]
    if move in (Move.BELIEF, Move.ASSUME):
        return _turn([*quotes, f"{move}: {seen.belief}"], answer=seen.belief)
    if move is Move.EVIDENCE:
        best = _from_evidence(seen)
        return _turn([*quotes, f"{move}: {best}"], answer=best)
    slots = _slots(seen, move)
    return _turn([*quotes, f"{move}: {' and '.join(' '.join(slot) for slot in slots)}"], slots)


def reply(said: Sequence[Said], habits: Habits, rng: random.Random | None) -> str:
    """Return the teacher's turn after the messages `said`, oldest first. rng: `None` for the most probable move."""
    seen = read(said)
    found = shares(seen, habits)
    move = max(found, key=found.__getitem__) if rng is None else rng.choices(list(found), list(found.values()))[0]
    return act(seen, move)


def consistent(said: Sequence[Said], text: str) -> bool:
    """Return whether a turn does what its own thought names, with the right quotes, whatever it names."""
    seen = read(said)
    return any(act(seen, move) == text for move in possible(seen))


def _weights(seen: Seen, habits: Habits) -> dict[Move, float]:
    if not seen.asked:
        kind = seen.kind
        return dict(zip(FIRST, (1.0,) * 4 if kind is None else habits.first[KINDS.index(kind)], strict=True))
    return dict(zip(LAST, habits.found if seen.complete else habits.missing, strict=True))


def _next_hop(seen: Seen) -> Slot | None:
    """Return what a sequential plan looks up next; `None` at its end, or when nothing was found to go on with."""
    if seen.plan is not Move.SEQ or len(seen.asked) != 1 or not seen.complete or seen.calls >= MOST_CALLS:
        return None
    relation = seen.asked[0][1]
    place = seen.relations.index(relation) + 1 if relation in seen.relations else len(seen.relations)
    return (seen.values[0], seen.relations[place]) if place < len(seen.relations) else None


def _slots(seen: Seen, move: Move) -> list[Slot]:
    if move is Move.PAR:
        return [(person, RANK) for person in seen.people]
    if move is Move.RECHECK:
        return list(seen.asked)
    following = _next_hop(seen) if move is Move.SEARCH else None
    return [following or (seen.people[0], seen.relations[0])]


def _from_evidence(seen: Seen) -> str:
    """Return the name that was found, or whose value is the highest when there are several."""
    if len(seen.values) == 1:
        return seen.values[0]
    ranks = [int(value) if value.isdigit() else 0 for value in seen.values]
    return seen.asked[ranks.index(max(ranks))][0]


def _value(line: str) -> str:
    found = _LINE.match(line)
    return found[3] if found else ""


def _turn(thoughts: Sequence[str], slots: Sequence[Slot] = (), answer: str | None = None) -> str:
    thought = f"<think>{', '.join(thoughts)}</think>"
    if answer is not None:
        return f"{thought}<answer>{answer}</answer>"
    return thought + "".join(f"<tool_call>{_call(*slot)}</tool_call>" for slot in slots)


def _call(person: str, relation: str) -> str:
    return json.dumps({"name": "search", "arguments": {"relation": relation, "entity": person}})

"""What a base policy of FSM-QA can do before it is trained on rewards: the gate, its compliance and its own moves."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from memweave.agents.tool_protocol import read_text_turn
from memweave.recipes.graph_memory.advising import Advice, advice_text
from memweave.recipes.graph_memory.lessons import episode, pieces
from memweave.recipes.graph_memory.simulating import first_said
from memweave.recipes.graph_memory.teaching import ADVISED, EVEN, FIRST, Move, act, consistent, possible, read
from memweave.recipes.lesson_rows import Said, replies
from memweave.worlds.fsmqa import FSMQA, FSMQASettings

LONGEST: Final = 96
"""Most tokens of a turn."""


@dataclass(frozen=True)
class _Asked:
    said: list[Said]
    kind: str


def measure(policy: Path, seed: int, *, episodes: int = 200) -> dict[str, Any]:
    """Return what a policy does rightly, greedy: `lookups`, by kind, and `asked`.

    lookups: turns that quote what the search found, name a move that is possible, and make just this move, in episodes that the teacher
    has played up to there, with random moves and advice; which move is no part of it.  By kind: first turns, turns that look up the
    next hop, turns after everything was found, and after something was not; `quotes` is the share whose quotes are right.
    """
    rng = random.Random(f"fsmqa-gate:{seed}")
    asked = [
        _Asked(list(turn.said), _kind(turn.said))
        for _ in range(episodes)
        for turn in episode(rng, EVEN, FSMQASettings(), pieces(rng)).turns
    ]
    right: dict[str, list[bool]] = {}
    for each, text in zip(asked, replies(policy, [each.said for each in asked], LONGEST), strict=True):
        right.setdefault(each.kind, []).append(consistent(each.said, text))
        if each.kind != "first":
            right.setdefault("quotes", []).append(_quotes(each.said, text))
    lookups = [mark for kind, marks in right.items() if kind != "quotes" for mark in marks]
    right["lookups"] = lookups
    share = {kind: sum(found) / len(found) for kind, found in sorted(right.items())}
    return {"lookups": share["lookups"], "by_kind": share, "asked": len(lookups)}


def first_moves(
    policy: Path, seed: int, advice: tuple[Advice, ...] = (), *, number: int = 200
) -> dict[str, dict[str, float]]:
    """Return how often a policy makes which first move, greedy, for questions of each kind, given advice."""
    rng = random.Random(f"fsmqa-moves:{seed}")
    tasks = [FSMQA().draw(rng, f"moves-{i}") for i in range(number)]
    asked = [first_said(task, advice_text(advice)) for task in tasks]
    counted: dict[str, Counter[str]] = {}
    for task, text in zip(tasks, replies(policy, asked, LONGEST), strict=True):
        counted.setdefault(task.kind, Counter())[named(text) or "none"] += 1
    return {
        kind: {move: n / found.total() for move, n in found.most_common()} for kind, found in sorted(counted.items())
    }


def complies(policy: Path, seed: int, *, number: int = 60) -> dict[str, float]:
    """Return how often a policy does what one piece of advice for its first move says, greedy, by state that is advised."""
    states = [state for state, moves in ADVISED.items() if set(moves) <= set(FIRST)]
    found = {}
    for state in states:
        moves = first_moves(policy, seed, (Advice(None, (state,)),), number=number)
        shares = [sum(share for move, share in each.items() if move in ADVISED[state]) for each in moves.values()]
        found[state] = sum(shares) / len(shares)
    return found


def named(text: str) -> Move | None:
    """Return the move that a turn names, `None` if it names none."""
    think = read_text_turn(text).think
    return next((move for move in Move if think.rpartition(", ")[2].startswith(move)), None)


def _kind(said: tuple[Said, ...]) -> str:
    seen = read(said)
    if not seen.asked:
        return "first"
    return "next hop" if possible(seen) == (Move.SEARCH,) else "found" if seen.complete else "missing"


def _quotes(said: list[Said], text: str) -> bool:
    seen = read(said)
    thought = act(seen, possible(seen)[0]).partition("<think>")[2]
    quoted = thought[: thought.index(f"{possible(seen)[0]}")]
    return text.startswith(f"<think>{quoted}")

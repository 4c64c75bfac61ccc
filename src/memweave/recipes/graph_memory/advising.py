"""Advice as small policies read it: a line per strategy, as `agents.advice` renders what the rules of `agents.strategist` write.

    - When <situation>, consider <choice> instead of <another>. When <situation>, consider <choice> instead of <a third>.

Pre-training shows advice of this shape with random content, so that a policy learns to read it, and nothing about what is right.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from memweave.agents import advice
from memweave.agents.cognition import load_machine
from memweave.graph_records import NewStrategy, Principle, StrategyKind

_CONSIDER: Final = re.compile(r"\bconsider (.+?)(?: instead of (.+?))?(?:\.(?:\s|$)|$)")
TWO_SITUATIONS: Final = 0.4
"""Share of random advice whose situation has two parts."""
INSTEAD: Final = (0.25, 0.5, 0.15, 0.1)
"""Shares of random advice that names 0, 1, ... choices which it advises against."""
_SCORE: Final = 60


@dataclass(frozen=True)
class Advice:
    """One piece of advice, as states of the machine."""

    when: str | None
    """The situation, in the words of the machine. Whoever follows advice looks at its choice only."""
    take: tuple[str, ...]
    instead: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def acts() -> dict[str, str]:
    """Return the words of each choice, by state."""
    return {state.name: state.act for state in load_machine("cognitive").states if state.act is not None}


@lru_cache(maxsize=1)
def situations() -> tuple[str, ...]:
    """Return the words of each situation."""
    return tuple(state.when for state in load_machine("cognitive").states if state.when is not None)


def read_advice(text: str) -> list[Advice]:
    """Return the advice in a text, one piece for each line that recommends a choice of the machine, in its order."""
    found = []
    for line in text.splitlines():
        said = list(_CONSIDER.finditer(line))
        take = next((states for each in said if (states := _named(each[1]))), ())
        if take:
            found.append(Advice(None, take, tuple(state for each in said for state in _named(each[2] or ""))))
    return found


def _named(text: str) -> tuple[str, ...]:
    places = sorted((text.find(words), state) for state, words in acts().items() if words in text)
    return tuple(state for _, state in places)


def advice_line(piece: Advice) -> str:
    """Return a piece of advice as a prompt shows it."""
    words = acts()
    summary = f"When {piece.when or situations()[0]}, consider {' and '.join(words[state] for state in piece.take)}."
    said = [f"{summary[:-1]} instead of {words[state]}." for state in piece.instead] or [summary]
    return advice.advice_line(
        NewStrategy(
            summary=summary,
            principles=tuple(Principle(text=text, score=_SCORE) for text in said),
            kind=StrategyKind.CONTRAST,
            score=_SCORE,
        )
    )


def advice_text(pieces: Sequence[Advice]) -> str:
    """Return advice as the graph shows it to policies that were trained on it (profile `none`). Empty without any."""
    return f"<advice>\n{chr(10).join(map(advice_line, pieces))}\n</advice>" if pieces else ""


def random_advice(rng: random.Random, number: int) -> tuple[Advice, ...]:
    """Return advice at random: any situation, any choice, instead of any others."""
    choices = tuple(acts())
    made = []
    for _ in range(number):
        take, *instead = rng.sample(choices, 1 + rng.choices(range(len(INSTEAD)), INSTEAD)[0])
        when = " and ".join(rng.sample(situations(), 2 if rng.random() < TWO_SITUATIONS else 1))
        made.append(Advice(when, (take,), tuple(instead)))
    return tuple(made)

"""Advice as small policies read it: `When <situation>, consider <choice> instead of <choice>.`, in the words of the machine.

Pre-training shows advice of this shape with random content, so that a policy learns to read it, and nothing about what is right.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from memweave.agents.cognition import load_machine

_ADVICE: Final = re.compile(r"\bconsider (.+?) instead of (.+?)(?:\.(?:\s|$)|$)", re.MULTILINE)
"""What is recommended, and instead of what. Conditions of other shapes are passed over."""


@dataclass(frozen=True)
class Advice:
    """One piece of advice, as states of the machine."""

    when: str | None
    """The situation, in the words of the machine."""
    take: tuple[str, ...]
    instead: tuple[str, ...]


@lru_cache(maxsize=1)
def acts() -> dict[str, str]:
    """Return the words of each choice, by state."""
    return {state.name: state.act for state in load_machine("cognitive").states if state.act is not None}


@lru_cache(maxsize=1)
def situations() -> tuple[str, ...]:
    """Return the words of each situation."""
    return tuple(state.when for state in load_machine("cognitive").states if state.when is not None)


def read_advice(text: str) -> list[Advice]:
    """Return the advice in a text, in its order; advice that names no choice of the machine is left out."""
    found = []
    for each in _ADVICE.finditer(text):
        take = _named(each[1])
        if take:
            found.append(Advice(None, take, _named(each[2])))
    return found


def _named(text: str) -> tuple[str, ...]:
    places = sorted((text.find(words), state) for state, words in acts().items() if words in text)
    return tuple(state for _, state in places)


def advice_line(piece: Advice) -> str:
    """Return a piece of advice as a strategist words it."""
    words = acts()
    take, instead = (" and ".join(words[state] for state in side) for side in (piece.take, piece.instead))
    return f"When {piece.when or situations()[0]}, consider {take} instead of {instead}."


def advice_text(pieces: Sequence[Advice]) -> str:
    """Return advice as a prompt shows it: a line each, in tags. Empty without any."""
    lines = "".join(f"- {advice_line(piece)}\n" for piece in pieces)
    return f"<advice>\n{lines}</advice>" if pieces else ""


def random_advice(rng: random.Random, number: int) -> tuple[Advice, ...]:
    """Return advice at random: any situation, any two choices."""
    choices = tuple(acts())
    made = []
    for _ in range(number):
        take, instead = rng.sample(choices, 2)
        made.append(Advice(rng.choice(situations()), (take,), (instead,)))
    return tuple(made)

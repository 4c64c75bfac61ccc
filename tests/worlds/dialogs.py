"""Dialogues to test with, and what follows from them, written without the library."""

from __future__ import annotations

from functools import cache

from memweave.worlds.dialog_language import Statement
from memweave.worlds.dialog_world import Dialogue, DialogWorld, Question, Split

TRAINED: tuple[Split, ...] = ("train", "val", "test")


@cache
def dialogues(split: Split, number: int, seed: int = 0) -> list[Dialogue]:
    return DialogWorld(seed=seed).dialogues(split, number)


def state(told: list[Statement]) -> list[str]:
    """What holds after statements about one key, written without the library."""
    values: list[str] = []
    for s in told:
        match s.act.value, s.month:
            case "set", None:
                values = [*s.values]
            case "set", month:
                values = [str(month)]
            case "also", None:
                values = values + [s.values[0]] if s.values[0] not in values else values
            case "drop", None:
                values = []
            case _:
                raise AssertionError(s)
    return values


def expected_answer(question: Question, meant: tuple[Statement, ...]) -> str:
    held = [
        state([s for s in meant if (s.subject, s.relation) == (who, what) and (not which or s.values == (which,))])
        for who, what, which in question.keys
    ]
    match question.kind.value:
        case "lookup" | "when":
            assert len(held[0]) <= 1
            return held[0][0] if held[0] else "unknown"
        case "list":
            return " and ".join(held[0]) or "unknown"
        case "count":
            return {0: "none", 1: "one", 2: "two"}[len(held[0])]
        case _:
            assert all(held)
            return "yes" if held[0] == held[1] else "no"

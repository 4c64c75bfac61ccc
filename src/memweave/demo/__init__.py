"""The conversation and the questions that `memweave demo` runs on.

Two friends talk eight times between January and October 2025: new facts, second dogs, moves, cancelled plans, restatements, small
talk, and things that are true of one of them and almost true of the other. Written for this project, in plain English first; the
rules of `memweave.agents.rules` do not get every question right, and the demo reports how many they get.
"""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise
from typing import Literal

from pydantic import Field

from memweave.records import Record, Turn

DIALOGUE = "mara-and-jonas"
SESSION_GAP = timedelta(hours=6)
"""A silence longer than this begins a new session, whose first turn has no previous message."""

Category = Literal["lookup", "list", "current", "when", "comparison"]


class DemoQuestion(Record):
    """A question about the end of the conversation, and what it was asked to find."""

    id: str
    category: Category
    """lookup: said once; list: adds up over time; current: the last of several values; when: a date; comparison: which of the two."""
    question: str
    answer: str
    evidence: tuple[str, ...] = Field(min_length=1)
    """Source ids of the turns that the answer follows from."""
    undo: str | None = None
    """Source id of the turn whose UPDATE, once undone, changes the answer to `answer_after_undo`."""
    answer_after_undo: str | None = None


@lru_cache(maxsize=1)
def _turns() -> tuple[Turn, ...]:
    lines = files("memweave.demo").joinpath("conversation.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Turn.model_validate_json(line) for line in lines)


def conversation() -> list[Turn]:
    """Return the turns, oldest first; `previous` is the message before, within one session."""
    turns = _turns()
    linked = [turns[0]]
    for before, turn in pairwise(turns):
        assert before.observed_at is not None
        assert turn.observed_at is not None
        same_session = turn.observed_at - before.observed_at < SESSION_GAP
        linked.append(turn.model_copy(update={"previous": before.text}) if same_session else turn)
    return linked


def questions() -> list[DemoQuestion]:
    """Return the questions, in the order in which the demo asks them."""
    lines = files("memweave.demo").joinpath("questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [DemoQuestion.model_validate_json(line) for line in lines]

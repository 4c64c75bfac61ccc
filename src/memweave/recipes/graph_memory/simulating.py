"""Episodes of FSM-QA without a graph: many at a time, in step, for lessons, the gate and simulations."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from memweave.agents.tool_protocol import read_text_turn
from memweave.recipes.graph_memory.advising import Advice, advice_text
from memweave.recipes.graph_memory.teaching import Habits, reply
from memweave.recipes.lesson_rows import Reply, Said
from memweave.worlds.fsmqa import FSMQASettings, FSMQATask, KnowledgeBase, score

MOST_CALLS: Final = 6
"""Of an episode (specification, section 2.1)."""

Player = Callable[[Sequence[Sequence[Said]]], Sequence[str]]
"""Replies to the messages of many episodes."""


def first_said(task: FSMQATask, advice: str = "") -> list[Said]:
    """Return what a policy sees first, as the graph shows it: the advice, if there is any, then the question."""
    return [*([("user", advice)] if advice else []), ("user", task.text)]


def response(found: str) -> Said:
    """Return the message that tells what a search found, as the graph shows it."""
    return ("tool", f"<tool_response>{found}</tool_response>")


@dataclass
class Episode:
    """One question being worked on."""

    task: FSMQATask
    base: KnowledgeBase
    said: list[Said]
    turns: list[Reply] = field(default_factory=list)
    answer: str | None = None
    calls: int = 0
    over: bool = False

    @classmethod
    def of(cls, task: FSMQATask, world: FSMQASettings, advice: Sequence[Advice] = (), *, seed: int = 0) -> Episode:
        """Return an episode that has just begun. seed: of what searches find."""
        return cls(task, KnowledgeBase(task, world, seed=seed), first_said(task, advice_text(advice)))

    @property
    def score(self) -> float:
        """Return 1 for the right answer, else 0."""
        return score(self.task, self.answer)

    def take(self, text: str) -> None:
        """Go on with a turn of the policy; one that cannot be read, or calls too often, ends the episode without an answer."""
        self.turns.append(Reply(tuple(self.said), text))
        turn = read_text_turn(text)
        self.said.append(("assistant", text))
        self.calls += len(turn.calls)
        self.answer = turn.answer
        self.over = turn.answer is not None or not turn.calls or self.calls > MOST_CALLS
        for call in [] if self.over else turn.calls:
            named = {key: str(call["args"].get(key, "")) for key in ("relation", "entity")}
            self.said.append(response(self.base.search(**named)))


def play(episodes: Sequence[Episode], player: Player) -> None:
    """Play episodes to their end, in step."""
    waiting = list(episodes)
    while waiting:
        for episode, text in zip(waiting, player([each.said for each in waiting]), strict=True):
            episode.take(text)
        waiting = [each for each in waiting if not each.over]


def scripted(habits: Habits, rng: random.Random | None) -> Player:
    """Return the teacher as a player. rng: `None` for one that always makes the most probable move."""
    return lambda asked: [reply(said, habits, rng) for said in asked]

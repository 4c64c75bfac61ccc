"""Lessons for pre-training on MemHop: whole conversations, every reply of the teacher learned at once.

A row is what the model sees of a stage, up to its last reply. Where a tool rewrites the context a new row begins, so that each
reply is learned after exactly the tokens that it would follow.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from memweave.agents.memory_tools import LONG_TERM, SHORT_TERM, UPDATE
from memweave.recipes.agemem.simulating import Simulator, Turn, teacher
from memweave.recipes.agemem.teaching import CLEAN, Habits, question_lesson, update_lesson
from memweave.recipes.lesson_rows import Reply
from memweave.worlds.memhop import MemHop, MemHopSettings

FULL: Final = (*LONG_TERM, *SHORT_TERM)
VARIANTS: Final = ((FULL, (1,), 0.65), (LONG_TERM, (1, 2, 3), 0.2), ((), (), 0.15))
"""Tools, stages in which memories are put beside messages, and share of the episodes."""
HOPS: Final = (0.3, 0.45, 0.25)
"""Share of questions that take one, two and three facts: long ones are harder to learn than they are frequent."""
UNTOLD: Final = 0.6
"""Share of episodes of which stage 1 is left out, but for updates."""
DRILLS: Final = 0.3
"""Share of rows that only look things up: many questions of one bank, or many corrections."""


def conversations(turns: Sequence[Turn]) -> list[list[Reply]]:
    """Return the replies in runs, of which each goes on from the one before."""
    found: list[list[Reply]] = []
    for turn in turns:
        one = Reply(turn.said, turn.reply)
        last = found[-1][-1] if found else None
        before = None if last is None else (*last.said, ("assistant", last.reply))
        if before is not None and turn.said[: len(before)] == before:
            found[-1].append(one)
        else:
            found.append([one])
    return found


def episode(rng: random.Random, habits: Habits, world: MemHopSettings) -> list[list[Reply]]:
    """Return the rows of one random episode in one of the variants."""
    names, recall, _ = rng.choices(VARIANTS, [share for *_, share in VARIANTS])[0]
    drawn = replace(
        world, distractors=rng.randint(0, 3), messages=rng.randint(2, 4), hops=HOPS, p_restated=0.3, p_stale=0.6
    )
    task = MemHop(drawn).draw(rng, "lesson")
    turns = Simulator(teacher(habits, rng), names, recall_stages=recall).play(task).turns
    if rng.random() < UNTOLD:  # to store what is told is learned soon
        turns = [turn for turn in turns if turn.stage > 1 or UPDATE in turn.reply]
    return conversations(turns)


def rows(rng: random.Random, number: int, habits: Habits, world: MemHopSettings) -> list[list[Reply]]:
    """Return about `number` rows."""
    drills = round(DRILLS * number)
    made = [question_lesson(rng, habits) if i % 2 else update_lesson(rng, habits) for i in range(drills)]
    found = [[Reply(*each) for each in drill] for drill in made]
    while len(found) < number:
        found += episode(rng, habits, world)
    return found


def texts(seed: int, count: int = 3_000) -> list[str]:
    """Return what the tokenizer is trained on: everything that is said and replied in random episodes."""
    rng = random.Random(f"texts:{seed}")
    found: list[str] = []
    for _ in range(count):
        for row in episode(rng, CLEAN, MemHopSettings()):
            found += [text for _, text in row[-1].said] + [row[-1].reply]
    return found

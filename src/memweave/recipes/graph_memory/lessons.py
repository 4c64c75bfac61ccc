"""Lessons for the base policies of FSM-QA: whole episodes that the teacher plays, with random advice, every reply learned at once."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Final

from memweave.recipes.graph_memory.advising import random_advice
from memweave.recipes.graph_memory.simulating import Episode, play, scripted
from memweave.recipes.graph_memory.teaching import EVEN, Habits
from memweave.recipes.lesson_rows import Reply
from memweave.worlds.fsmqa import FSMQA, NAMES, OTHER_NAMES, FSMQASettings

ADVICE: Final = (0.3, 0.2, 0.15, 0.2, 0.08, 0.07)
"""Shares of lessons with 0, 1, 2, ... pieces of advice."""
COMPLIANCE: Final = (0.25, 0.75)
"""Least and most probability, drawn for each lesson, that a piece of advice is taken: on average that of `Habits`."""
LONG: Final = 0.2
"""Share of lessons whose sequential questions take three look-ups."""
REACHABLE: Final = 0.65
"""Share of lessons in which the knowledge base misses little, so that plans are carried out to their end."""


def pieces(rng: random.Random) -> int:
    """Return how many pieces of advice a lesson has."""
    return rng.choices(range(len(ADVICE)), ADVICE)[0]


def episode(rng: random.Random, habits: Habits, world: FSMQASettings, number: int) -> Episode:
    """Return a random episode that the teacher has played. number: pieces of advice."""
    everybody = [*NAMES, *OTHER_NAMES]
    drawn = replace(world, hops=3 if rng.random() < LONG else 2, p_miss=0.05 if rng.random() < REACHABLE else 0.4)
    name = f"lesson-{rng.random()}"
    task = FSMQA(drawn).draw(rng, name, names=tuple(rng.sample(everybody, len(NAMES))))
    made = Episode.of(task, drawn, random_advice(rng, number))
    play([made], scripted(replace(habits, compliance=rng.uniform(*COMPLIANCE)), rng))
    return made


def row(rng: random.Random, habits: Habits, world: FSMQASettings, number: int) -> list[Reply]:
    """Return the replies of one random episode."""
    return episode(rng, habits, world, number).turns


def texts(seed: int, count: int = 2_000) -> list[str]:
    """Return what the tokenizer is trained on: everything that is said and replied in random episodes."""
    rng = random.Random(f"fsmqa-texts:{seed}")
    return [text for _ in range(count) for _, text in episode(rng, EVEN, FSMQASettings(), pieces(rng)).said]

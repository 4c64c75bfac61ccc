"""What advice can be worth on FSM-QA, before any memory is built: the script plays with the best advice, with any, and with none.

The best advice for a kind is found by playing on other questions, not written down: so nobody has to know which strategy is right.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from memweave.embeddings import HashingEmbedder
from memweave.recipes.graph_memory.advising import Advice, acts, random_advice
from memweave.recipes.graph_memory.simulating import Episode, play, scripted
from memweave.recipes.graph_memory.teaching import BASE, Habits
from memweave.worlds.fsmqa import FSMQA, KINDS, FSMQASettings, FSMQATask, Kind

Advise = Callable[[FSMQATask], Sequence[Advice]]
Scores = dict[Kind, list[float]]

ARMS: Final = (
    "none",
    "best",
    "best x 3",
    "of the nearest x 3",
    "of another kind",
    "of other kinds x 3",
    "random",
    "random x 3",
)
"""best: what helps questions of this kind most.  of the nearest: what helps questions of the kinds of the most similar ones.
of another kind: what helps questions of another kind.  random: any advice."""


def played(
    tasks: Sequence[FSMQATask], world: FSMQASettings, habits: Habits, advise: Advise, *, seed: int, greedy: bool
) -> Scores:
    """Return the scores of questions by kind. seed: of searches and moves."""
    episodes = [Episode.of(task, world, advise(task), seed=seed) for task in tasks]
    play(episodes, scripted(habits, None if greedy else random.Random(f"headroom:{seed}")))
    found: Scores = {kind: [] for kind in KINDS}
    for episode in episodes:
        found[episode.task.kind].append(episode.score)
    return found


def mean(scores: Scores) -> float:
    """Return the mean over questions."""
    marks = [mark for each in scores.values() for mark in each]
    return sum(marks) / len(marks)


def utilities(
    world: FSMQASettings, habits: Habits, *, greedy: bool, times: int = 1, number: int = 600, seeds: int = 3
) -> dict[str, dict[Kind, float]]:
    """Return what a piece of advice, said `times` times, changes, by state that it recommends and kind, on questions of the split `val`."""
    tasks = FSMQA(world).tasks("val", number)

    def shares(advise: Advise) -> dict[Kind, float]:
        runs = [played(tasks, world, habits, advise, seed=seed, greedy=greedy) for seed in range(seeds)]
        return {
            kind: sum(mark for run in runs for mark in run[kind]) / (seeds * len(runs[0][kind]))
            for kind in KINDS
            if runs[0][kind]
        }

    without = shares(lambda task: ())
    found = {}
    for state in acts():
        piece = advice_for(state)
        given = shares(lambda task, piece=piece: [piece] * times)  # type: ignore[misc]
        found[state] = {kind: given[kind] - without[kind] for kind in given}
    return found


def best_advice(worth: Mapping[str, Mapping[Kind, float]]) -> dict[Kind, Advice]:
    """Return the piece of advice that is worth most, by kind."""
    return {kind: advice_for(max(worth, key=lambda state: worth[state].get(kind, 0.0))) for kind in KINDS}


def advice_for(state: str) -> Advice:
    """Return advice to take a state."""
    return Advice(None, (state,))


def headroom(
    world: FSMQASettings | None = None, habits: Habits = BASE, *, greedy: bool, seeds: int = 5, number: int = 400
) -> dict[str, float]:
    """Return the exact match of each arm on questions of the split `test`, mean over seeds."""
    given = world or FSMQASettings()
    best = {
        times: best_advice(utilities(given, habits, greedy=greedy, times=times, number=number, seeds=seeds))
        for times in (1, 3)
    }
    found: dict[str, float] = {}
    for arm in ARMS:
        scores = []
        for seed in range(seeds):
            rng = random.Random(f"headroom-advice:{seed}")
            tasks = FSMQA(given).tasks("test", number, seed)
            scores.append(
                mean(
                    played(
                        tasks,
                        given,
                        habits,
                        _advise(arm, best[3 if arm.endswith("3") else 1], tasks, given, rng),
                        seed=seed,
                        greedy=greedy,
                    )
                )
            )
        found[arm] = sum(scores) / seeds
    return found


def _advise(
    arm: str, best: Mapping[Kind, Advice], tasks: Sequence[FSMQATask], world: FSMQASettings, rng: random.Random
) -> Advise:
    name, _, times = arm.partition(" x ")
    number = int(times or 1)
    near = nearest(tasks, FSMQA(world).tasks("build"), number) if name == "of the nearest" else {}

    def advise(task: FSMQATask) -> Sequence[Advice]:
        match name:
            case "none":
                return ()
            case "best":
                return [best[task.kind]] * number
            case "of the nearest":
                return [best[other.kind] for other in near[task.id]]
            case "random":
                return random_advice(rng, number)
        return rng.sample([best[kind] for kind in KINDS if kind is not task.kind], number)

    return advise


def nearest(tasks: Sequence[FSMQATask], among: Sequence[FSMQATask], k: int) -> dict[str, list[FSMQATask]]:
    """Return the k most similar questions for each, by id: cosine of hashed words."""
    embed = HashingEmbedder().embed
    similar = embed([task.text for task in tasks]) @ embed([other.text for other in among]).T
    order = np.argsort(-similar, axis=1)[:, :k]
    return {task.id: [among[place] for place in row] for task, row in zip(tasks, order, strict=True)}

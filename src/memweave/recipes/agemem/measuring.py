"""What a policy can do on MemHop before it is trained on rewards: the gate. Fresh episodes, clean labels, greedy replies."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from memweave.agents.memory_tools import RETRIEVE, UPDATE
from memweave.agents.tool_protocol import read_text_turn
from memweave.recipes.agemem.lessons import FULL
from memweave.recipes.agemem.simulating import ROUNDS, Simulator, Turn, teacher
from memweave.recipes.agemem.teaching import PERFECT
from memweave.recipes.lesson_rows import replies
from memweave.worlds.memhop import MemHop, MemHopTask, score

LONGEST: Final = 96
"""Most tokens of a turn."""


def measure(policy: Path, seed: int, *, episodes: int = 200) -> dict[str, Any]:
    """Return what a policy does rightly where a perfect script has done everything before: `lookups`, by kind, and `asked`.

    lookups: right answers to questions on a memory that the script has filled, through searches of the policy's own, and right updates.
    A policy that searches once more than the script would is right if its answer is. `steps` is stricter and no part of the gate: the
    share of all replies that do exactly what the script's do.
    """
    played = _played(seed, episodes)
    right: dict[str, list[bool]] = {"update": [], "steps": []}
    turns = [turn for each in played for turn in each.turns if turn.stage != 2]
    for turn, said in zip(turns, replies(policy, [turn.said for turn in turns], LONGEST), strict=True):
        same = _same(turn.reply, said)
        right["steps"].append(same)
        if turn.stage == 1:
            right.setdefault("update" if UPDATE in turn.reply else "store", []).append(same)
    for each, answer in zip(played, _answers(policy, played), strict=True):
        right.setdefault(f"answer {each.task.hops}", []).append(score(each.task, answer) == 1.0)
    answers = [mark for kind, marks in right.items() if kind.startswith("answer") for mark in marks]
    right |= {"answer": answers, "lookups": [*answers, *right["update"]]}
    share = {kind: sum(found) / len(found) for kind, found in sorted(right.items()) if found}
    return {"lookups": share["lookups"], "by_kind": share, "asked": len(right["lookups"])}


@dataclass
class _Played:
    """An episode that the script played, and its context when the question was asked."""

    task: MemHopTask
    turns: list[Turn]
    simulator: Simulator


def _played(seed: int, episodes: int) -> list[_Played]:
    rng = random.Random(f"memhop-gate:{seed}")
    world = MemHop()
    found = []
    for i in range(episodes):
        task, simulator = world.draw(rng, f"gate-{i}"), Simulator(teacher(PERFECT, rng), FULL)
        found.append(_Played(task, simulator.play(task).turns, simulator))
    return found


def _answers(policy: Path, played: Sequence[_Played]) -> list[str | None]:
    """Return what the policy answers, in turns of its own, to the questions of episodes that were played up to there."""
    said = [list(next(turn.said for turn in each.turns if turn.stage == 3)) for each in played]
    answers: list[str | None] = [None] * len(played)
    waiting = list(range(len(played)))
    for _ in range(ROUNDS[2]):
        for place, reply in zip(waiting, replies(policy, [said[i] for i in waiting], LONGEST), strict=True):
            turn = read_text_turn(reply)
            answers[place] = turn.answer
            simulator = played[place].simulator
            queries = [str(call["args"].get("query", "")) for call in turn.calls if call["name"] == RETRIEVE]
            said[place] += [
                ("assistant", reply),
                ("tool", "\n".join(simulator.found(query) for query in queries) or "-"),
            ]
        waiting = [i for i in waiting if answers[i] is None]
        if not waiting:
            break
    return answers


def _same(wanted: str, said: str) -> bool:
    one, other = read_text_turn(wanted), read_text_turn(said)
    calls = [(c["name"], c["args"]) for c in one.calls], [(c["name"], c["args"]) for c in other.calls]
    return calls[0] == calls[1] and one.answer == other.answer

"""Missions of BabyAI as queries of graph memory, and the rollout graph that one is played with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Final, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool, StructuredTool

from memweave.agents.prompts import load_prompt
from memweave.errors import InputError
from memweave.graphs.graph_memory_play import Job, QueryTask
from memweave.graphs.graph_memory_rollout import RolloutGraph, create_rollout_graph
from memweave.graphs.graph_memory_state import RolloutRecord
from memweave.recipes.babyai_strategies.script import BabyAIScript
from memweave.recipes.game import EpisodeStatus, Game
from memweave.worlds.babyai import RULES, BabyAIEnv, level_id

Split = Literal["build", "weights", "test"]

LEVELS: Final = ("PickupLoc", "GoToObjDoor", "UnlockLocal", "UnlockPickup", "FindObjS5")
"""What is hidden differs: behind the agent, in a room with doors, a door without its key, behind a locked door, in one of nine rooms."""
STEPS: Final = 40
"""Of an episode."""
_PLACES: Final[dict[Split, int]] = {"build": 0, "weights": 1, "test": 2}
_ROOM: Final = 10_000
"""Missions of one split, level and seed."""
_ACT: Final = (
    "You play in a grid. Act with the tool `act`, one action at a time, until you are told that the episode is over; "
    "then answer: done."
)


def missions(
    split: Split, number: int, *, seed: int, levels: Sequence[str] = LEVELS, known: set[str]
) -> list[QueryTask]:
    """Return `number` missions of each level. The splits of all seeds are different episodes.

    known: texts that were asked before; such a mission is left out, and those that are returned are added.

    Raises `InputError` when there are not as many, or for a level that there is not.
    """
    return [task for level in levels for task in _of_level(split, number, seed, level, known)]


def _of_level(split: Split, number: int, seed: int, level: str, known: set[str]) -> Iterator[QueryTask]:
    env = BabyAIEnv(level, rules=False)
    first = (seed * len(_PLACES) + _PLACES[split]) * _ROOM
    found = 0
    for episode in count(first):
        if found == number:
            return
        if episode == first + _ROOM:
            raise InputError(
                f"{level} has no {number} different missions of the split {split!r}; ask for {found} at most"
            )
        text = env.reset(episode)
        if text in known:
            continue
        known.add(text)
        found += 1
        yield QueryTask(
            text=text,
            query_id=f"{env.level}@{episode}",
            family=level,
            split=split,
            metadata={"level": env.level, "episode": episode},
        )


class Playing:
    """Makes the rollout graph of a job: its tool acts in an environment of its own, and what counts is whether the mission was fulfilled.

    model: a chat model; by default the script.  steps: of an episode.
    """

    def __init__(self, model: BaseChatModel | None = None, *, steps: int = STEPS) -> None:
        self.model = model or BabyAIScript()
        self.scripted = isinstance(self.model, BabyAIScript)
        self.steps = steps

    def __call__(self, job: Job) -> RolloutGraph:
        """Return the graph. Raises `InputError` for a query that is no mission of `missions`."""
        level, episode = job.task.metadata.get("level"), job.task.metadata.get("episode")
        if not isinstance(level, str) or not isinstance(episode, int):
            raise InputError(f"{job.task.text[:60]!r} names no level and episode: make queries with `missions`")
        game = Game(BabyAIEnv(level_id(level), max_steps=self.steps, rules=False), episode, name=level)

        def won(record: RolloutRecord) -> float:
            return float(game.status is EpisodeStatus.WON)

        if self.scripted:  # it speaks the tags, and reads no system prompt
            return create_rollout_graph(
                self.model, [_tool(game)], max_calls=self.steps, evaluate=won, protocol="text", profile="none"
            )
        prompt = f"{load_prompt('graph_memory').text}\n\n{_ACT} {RULES}"
        return create_rollout_graph(self.model, [_tool(game)], max_calls=self.steps, evaluate=won, system_prompt=prompt)


def _tool(game: Game) -> BaseTool:
    """Return the tool that acts; a step of a grid is too short for a thread of its own."""

    def act(action: str) -> str:
        return game.act(action)

    async def aact(action: str) -> str:
        return game.act(action)

    about = f"Do one action and see what it leads to. action: {', '.join(game.actions)}."
    return StructuredTool.from_function(act, aact, name="act", description=about)

"""How well the rules see in the log what a player decided, where somebody knows: FSM-QA's scripted player, its thoughts hidden."""

from __future__ import annotations

import random
import re
from collections import Counter

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from memweave.agents.path_mapper import MappedPath, RuleMapper
from memweave.agents.run_log import read_run
from memweave.recipes.graph_memory.simulating import Episode, play, scripted
from memweave.recipes.graph_memory.teaching import BASE, EVEN
from memweave.worlds.fsmqa import FSMQA

FIRST = {
    "answer from belief": "KnowledgeSufficient",
    "plan one": "SingleStepPlanning",
    "plan seq": "SequentialDependentPlanning",
    "plan par": "ParallelIndependentPlanning",
}
LAST = {"answer from evidence": "SufficientInformation", "assume": "AssumptionBasedReasoning"}
THOUGHT = re.compile("<think>(.*?)</think>", re.DOTALL)


def message(role: str, text: str, *, hidden: bool) -> BaseMessage:
    if role == "assistant":
        return AIMessage(THOUGHT.sub("", text) if hidden else text)
    return HumanMessage(text) if role == "user" else ToolMessage(text, tool_call_id="1")


def agreement(*, hidden: bool) -> dict[str, float]:
    """Return for each decision how often the path has its state, over 240 episodes."""
    world, mapper, rng = FSMQA(), RuleMapper(), random.Random(5)
    made: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for habits in (BASE, EVEN):
        for task in world.tasks("build", 60):
            episodes = [Episode.of(task, world.settings, seed=seed) for seed in (0, 1)]
            play(episodes, scripted(habits, rng))
            for episode in episodes:
                said = [message(role, text, hidden=hidden) for role, text in episode.said]
                mapped = mapper.map(read_run(said, reward=episode.score))
                assert isinstance(mapped, MappedPath), mapped
                replies = [text for role, text in episode.said if role == "assistant"]
                for moves, reply in ((FIRST, replies[0]), (LAST, replies[-1])):
                    move = next((each for each in moves if f"{each}: " in reply), None)
                    if move is not None:
                        made[move] += 1
                        seen[move] += moves[move] in mapped.states
    return {move: seen[move] / made[move] for move in made}


def test_the_rules_see_what_was_decided() -> None:
    told = agreement(hidden=False)
    assert set(told) == {*FIRST, *LAST}
    assert min(told.values()) >= 0.9


def test_without_thoughts_they_miss_chains_that_broke_after_their_first_link_and_assumptions_that_were_found_too() -> (
    None
):
    hidden = agreement(hidden=True)
    assert hidden.pop("plan seq") >= 0.65
    assert hidden.pop("assume") >= 0.8
    assert min(hidden.values()) >= 0.95

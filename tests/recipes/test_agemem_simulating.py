"""The simulator that lessons are made from plays what the graph plays: the same prompts, answers and memories."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from langchain_core.messages import BaseMessage

from memweave.agents.context import ExtractiveSummarizer
from memweave.agents.memory_tools import LONG_TERM, SHORT_TERM
from memweave.graphs.agemem_episode import create_agemem_episode_graph
from memweave.graphs.agemem_reward import ANSWER_ONLY
from memweave.graphs.agemem_state import Variant
from memweave.memory_stores import use_bank
from memweave.recipes.agemem import episodes, teaching
from memweave.recipes.agemem.simulating import (
    FLOOR,
    RECALLED,
    ROUNDS,
    SUMMARY_SENTENCES,
    SUMMARY_TOKENS,
    Simulator,
    teacher,
    words,
)
from memweave.records import Scope
from memweave.serving.tool_text import template_messages
from memweave.testing.models import ScriptedChatModel
from memweave.worlds.memhop import MemHop, MemHopSettings

Prompt = tuple[teaching.Said, ...]
NAMES = {"full": (*LONG_TERM, *SHORT_TERM), "rag": LONG_TERM, "none": ()}
STAGES = {"full": (1,), "rag": (1, 2, 3), "none": ()}
BUSY = teaching.Habits(skip=0.3, keep_old=0.3, stop_early=0.3, manage=0.4)


@pytest.mark.parametrize("variant", ["full", "rag", "none"])
@pytest.mark.parametrize("distractors", [0, 3])
def test_graph_and_simulator_play_the_same(variant: Variant, distractors: int) -> None:
    world = MemHop(replace(MemHopSettings(), distractors=distractors))
    limit = 170  # some of these episodes overflow, in each stage
    for i, task in enumerate(world.tasks("train", 12)):
        seen: list[Prompt] = []
        rng = random.Random(i)

        def play(messages: list[BaseMessage], rng: random.Random = rng, seen: list[Prompt] = seen) -> str:
            said = tuple((m["role"], m["content"]) for m in template_messages(messages))
            seen.append(said)
            return teaching.reply(said, BUSY, rng)

        simulated = Simulator(
            teacher(BUSY, random.Random(i)), NAMES[variant], recall_stages=STAGES[variant], limit=limit, count=words
        ).play(task)
        graph = create_agemem_episode_graph(
            ScriptedChatModel(play), episodes._no_bank, judge=episodes.memhop_judge([task], ANSWER_ONLY), variant=variant,
            context_tokens=limit, rounds=ROUNDS, recalled=RECALLED, recall_floor=FLOOR, protocol="text", profile="none",
            summarizer=ExtractiveSummarizer(SUMMARY_SENTENCES, SUMMARY_TOKENS),
            count_tokens=lambda messages: words([(m["role"], m["content"]) for m in template_messages(messages)]),
        )  # fmt: skip
        with episodes.scratch_bank() as bank, use_bank(bank.branch(scope=Scope(user=task.id))):
            out = graph.invoke({"task": episodes.episode_task(task)}, context={"user": task.id})
        assert seen == [turn.said for turn in simulated.turns]
        assert out["answer"] == simulated.answer
        assert out["log"].used == simulated.used
        assert out["log"].overflowed == simulated.overflowed
        assert sorted(out["stored"]) == sorted(simulated.memories.values())

"""The token-class world: reward for a class of tokens. It has a known answer, so it shows that the pipeline learns.

One node writes a reply; the reward is the share of its sampled tokens whose id is divisible by three. A policy that knows
nothing gets about a third, a perfect one gets 1. The reward reads the ids that were sampled, not the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from langchain_core.messages import HumanMessage
from langchain_core.runnables import Runnable
from langgraph.graph import END, START, StateGraph

from memweave.recipes.recipe import Arm, ModelOf, Recipe, TrainSettings, plain_stage
from memweave.tracing import Score, Trace
from memweave.trainers.credit import broadcast, shuffled
from memweave.trainers.rollouts import Task

CLASS = 3
WORDS = [
    "amber", "birch", "cedar", "delta", "ember", "flint", "grove", "heron",
    "iris", "jade", "kelp", "lotus", "maple", "north", "olive", "pearl",
]  # fmt: skip


class State(TypedDict, total=False):
    """What the graph carries."""

    prompt: str
    reply: str


def build(model_of: ModelOf) -> Runnable[Any, Any]:
    """Return the graph: one node, `writer`."""
    model = model_of("policy")

    async def writer(state: State) -> State:
        return {"reply": (await model.ainvoke([HumanMessage(state["prompt"])])).text}

    graph = StateGraph(State)
    graph.add_node("writer", writer)
    graph.add_edge(START, "writer")
    graph.add_edge("writer", END)
    return graph.compile(name="token-class")


def tasks(split: str, number: int, seed: int) -> Sequence[Task]:
    """Return `number` prompts; they only differ in wording, the class is the same for all."""
    offset = {"train": 0, "test": 7}[split] + seed
    return [
        Task(id=f"{split}-{i}", input={"prompt": f"{WORDS[(i + offset) % 16]} {WORDS[(3 * i + offset) % 16]}"})
        for i in range(number)
    ]


def in_class(trace: Trace, node: str) -> float:
    """Return the share of the tokens sampled at `node` that belong to the class; 0 when nothing was written."""
    ids = [token for generation in trace.generations if generation.node == node for token in generation.token_ids or ()]
    return sum(token % CLASS == 0 for token in ids) / len(ids) if ids else 0.0


def reward(task: Task, output: object, trace: Trace) -> Score:
    """Return the share of sampled tokens in the class."""
    return Score(value=in_class(trace, "writer"))


TOKEN_CLASS = Recipe(
    name="token-class",
    summary="reward for a class of tokens: shows that traces, credit and trainer learn (minutes on a CPU)",
    stage=plain_stage(build, tasks, reward),
    arms={
        "grpo": Arm(lambda seed: broadcast()),
        "shuffled": Arm(lambda seed: shuffled(broadcast(), seed)),
    },
    settings=TrainSettings(),
    max_tokens={"policy": 16},
)

"""The two-node world: only one node's choice matters. It shows what credit per role is worth.

`chooser` writes two tokens, `narrator` then writes 24. The reward is the share of the chooser's tokens in the class of the
token-class world; the narrator's change nothing. Both nodes are one policy. Broadcast credit gives the narrator's tokens the
same advantage, which is noise; credit per role trains the chooser alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from langchain_core.messages import HumanMessage
from langchain_core.runnables import Runnable
from langgraph.graph import END, START, StateGraph

from memweave.recipes.recipe import Arm, ModelOf, Recipe, TrainSettings, plain_stage
from memweave.recipes.token_class import in_class
from memweave.recipes.token_class import tasks as prompts
from memweave.tracing import Score, Trace
from memweave.trainers.credit import broadcast, per_role
from memweave.trainers.rollouts import Task


class State(TypedDict, total=False):
    """What the graph carries."""

    prompt: str
    choice: str
    story: str


def build(model_of: ModelOf) -> Runnable[Any, Any]:
    """Return the graph: `chooser`, then `narrator`."""
    choose, narrate = model_of("chooser"), model_of("narrator")

    async def chooser(state: State) -> State:
        return {"choice": (await choose.ainvoke([HumanMessage(f"choose {state['prompt']}")])).text}

    async def narrator(state: State) -> State:
        return {"story": (await narrate.ainvoke([HumanMessage(f"tell {state['prompt']}")])).text}

    graph = StateGraph(State)
    graph.add_node("chooser", chooser)
    graph.add_node("narrator", narrator)
    graph.add_edge(START, "chooser")
    graph.add_edge("chooser", "narrator")
    graph.add_edge("narrator", END)
    return graph.compile(name="two-node")


def tasks(split: str, number: int, seed: int) -> Sequence[Task]:
    """Return `number` prompts, those of the token-class world."""
    return prompts(split, number, seed)


def reward(task: Task, output: object, trace: Trace) -> Score:
    """Return the share of the chooser's tokens in the class, which is also the chooser's own reward."""
    value = in_class(trace, "chooser")
    return Score(value=value, parts={"chooser": value})


TWO_NODE = Recipe(
    name="two-node",
    summary="two nodes of which one matters: credit per role against broadcast (minutes on a CPU)",
    stage=plain_stage(build, tasks, reward),
    arms={
        "per-role": Arm(lambda seed: per_role()),
        "broadcast": Arm(lambda seed: broadcast()),
    },
    settings=TrainSettings(steps=24),
    max_tokens={"chooser": 2, "narrator": 24},
)

"""FSM-QA through the real graph: questions as the machines take them, and rollouts whose search tool belongs to one episode.

With equal seeds and numbers, a search of an episode finds the same in every arm; what policies draw, they draw by where they are asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import merge_configs
from langchain_core.tools import BaseTool, StructuredTool

from memweave.errors import UsageError
from memweave.graphs.graph_memory_play import Job, QueryTask
from memweave.graphs.graph_memory_rollout import RolloutGraph, create_rollout_graph
from memweave.graphs.graph_memory_state import RolloutInput, RolloutOutput
from memweave.recipes.recipe import REPLY_SECONDS
from memweave.worlds.fsmqa import FSMQA, FSMQASettings, FSMQATask, KnowledgeBase, Split

_KNOWLEDGE: Final = "fsmqa_knowledge_base"
"""Where the configuration of an episode has what is known in it."""
CONTEXT: Final = 768
"""Tokens that a base policy of FSM-QA can read."""


def questions(split: Split, number: int | None, seed: int) -> list[FSMQATask]:
    """Return questions of a split as `FSMQA.tasks` does; seeds of studies draw questions of their own."""
    return FSMQA().tasks(split, number, seed)


def query_task(task: FSMQATask) -> QueryTask:
    """Return a question as the machines take it. The kind is kept with its traces, for whoever studies them; nobody is told."""
    return QueryTask(
        text=task.text,
        query_id=task.id,
        ground_truth=(task.answer,),
        split=task.id.rpartition("-")[0].rpartition("-")[0],
    )


def rollout_graph(model: BaseChatModel) -> RolloutGraph:
    """Return the rollout graph for a policy that speaks the text protocol; the episode brings its knowledge base along."""
    return create_rollout_graph(model, [_search()], profile="none", protocol="text", timeout=REPLY_SECONDS)


def _search() -> BaseTool:
    def search(relation: str, entity: str, config: RunnableConfig) -> str:
        known = (config.get("configurable") or {}).get(_KNOWLEDGE)
        if not isinstance(known, KnowledgeBase):
            raise UsageError("the search tool of FSM-QA belongs to an episode, and none is given")
        return known.search(relation, entity)

    return StructuredTool.from_function(search, name="search", description="Look up a relation of a person.")


@dataclass(frozen=True)
class Episodes:
    """Gives each rollout of a machine the knowledge base of its question (a `RolloutSource`)."""

    graph: RolloutGraph
    tasks: Mapping[str, FSMQATask]
    """By id."""
    seed: int = 0

    @classmethod
    def of(cls, model: BaseChatModel, tasks: Sequence[FSMQATask], seed: int = 0) -> Episodes:
        """Return the rollouts of a policy over some questions."""
        return cls(rollout_graph(model), {task.id: task for task in tasks}, seed)

    def __call__(self, job: Job) -> RolloutGraph:
        """Return the graph for one rollout; both sides of a pair search with the same luck."""
        number = job.replica if job.pair is None else job.pair
        task = self.tasks[str(job.task.query_id)]
        return self.graph.with_config(_knowing(task, f"{self.seed}/{job.iteration}/{task.id}/{number}"))


class Playing(Runnable[RolloutInput, RolloutOutput]):
    """The rollout graph for episodes that are trained on: `memweave.trainers.rollouts` gives each a name of its own."""

    def __init__(self, graph: RolloutGraph, tasks: Sequence[FSMQATask]) -> None:
        self._graph = graph
        self._tasks = {task.id: task for task in tasks}

    def invoke(self, input: RolloutInput, config: RunnableConfig | None = None, **kwargs: Any) -> RolloutOutput:
        """Play one episode."""
        return cast("RolloutOutput", self._graph.invoke(input, self._config(input, config), **kwargs))

    async def ainvoke(self, input: RolloutInput, config: RunnableConfig | None = None, **kwargs: Any) -> RolloutOutput:
        """Play one episode."""
        return cast("RolloutOutput", await self._graph.ainvoke(input, self._config(input, config), **kwargs))

    def _config(self, input: RolloutInput, config: RunnableConfig | None) -> RunnableConfig:
        episode = (config or {}).get("metadata", {}).get("memweave_episode", "")
        return merge_configs(config, _knowing(self._tasks[str(input.get("query_id"))], str(episode)))


def _knowing(task: FSMQATask, episode: str) -> RunnableConfig:
    """Return the configuration of an episode. episode: its name, by which searches miss."""
    seed = int.from_bytes(hashlib.blake2b(episode.encode(), digest_size=6).digest(), "big")
    return RunnableConfig(configurable={_KNOWLEDGE: KnowledgeBase(task, FSMQASettings(), seed=seed)})

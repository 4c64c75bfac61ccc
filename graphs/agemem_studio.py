"""AgeMem's episode for LangGraph Studio: somebody types a task and watches the three stages.

    {"task": {"messages": ["Anna's boss is Boris."], "distractors": ["It rained."], "question": "Who is Anna's boss?", "gold": "Boris"}}

It runs on a branch of the memory of the user that the run names, or of an empty one, so nothing that it stores stays. There is no judge;
where the task has a gold answer, the reward is exact match. The gold answer goes into a channel of its own, never into a prompt.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langgraph.types import Overwrite
from pydantic import Field, ValidationError
from typing_extensions import TypedDict  # pydantic makes Studio's form of it, and takes no other before Python 3.12

from memweave.agents.context import ExtractiveSummarizer
from memweave.agents.memory_tools import TOP_K
from memweave.errors import InputError, UsageError
from memweave.graphs.agemem_episode import (
    RECALLED,
    ROUNDS,
    Episode,
    EpisodeGraph,
    EpisodeState,
    EpisodeTask,
    compiled,
)
from memweave.graphs.agemem_steps import AgentSteps, protocol_for
from memweave.graphs.server import agent_model, server
from memweave.graphs.session import DefaultScope, Home, LazyBank, current_scope, quiet_known_types
from memweave.memory_stores import MemoryBank, MemoryStore, use_bank
from memweave.metrics import normalise
from memweave.records import Record, new_id
from memweave.tracing.records import Score

CONTEXT_TOKENS: Final = 8_192
NOBODY: Final = "episode"
"""Whose memory an episode branches from when the run names nobody: an empty one, since nothing is ever written to it."""
MOST_BRANCHES: Final = 32
"""Episodes whose memory a server process keeps, latest first."""


# state


class TypedTask(Record):
    """A task as somebody types it."""

    messages: tuple[str, ...] = Field(min_length=1, description="Stage 1: what tells facts, one message at a time.")
    distractors: tuple[str, ...] = Field(default=(), description="Stage 2: small talk, one message at a time.")
    question: str = Field(min_length=1, description="Stage 3: what is asked.")
    key_phrases: tuple[str, ...] = Field(
        default=(), description="What has to be in the context when the answer is given."
    )
    gold: str | None = Field(default=None, description="The true answer, for the reward; the model never sees it.")


class TypedInput(TypedDict, total=False):
    """One task."""

    task: TypedTask


class TypedState(EpisodeState, total=False):
    """An episode under way; `stage`, `budget` and `steps` show how far it is."""

    gold: str | None
    tools: list[str]
    """What the model can call."""
    branch: str
    """Which branch of the memory the episode works on."""


class Branches:
    """The branches of the latest episodes, by name: they cannot be part of a checkpoint. Safe under threads."""

    def __init__(self, most: int = MOST_BRANCHES) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, MemoryStore] = OrderedDict()

    def add(self, branch: MemoryStore) -> str:
        """Keep a branch and return its name; the oldest goes when there are too many."""
        name = str(new_id())
        with self._lock:
            self._kept[name] = branch
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return name

    def get(self, name: str) -> MemoryStore:
        """Return a branch. Raises `UsageError` when it is gone."""
        with self._lock:
            branch = self._kept.get(name)
        if branch is None:
            raise UsageError(
                f"the memory of this episode is gone: a server keeps that of the last {self._most} episodes, and none when it "
                "is started anew. Start the episode again"
            )
        return branch


# nodes


@dataclass(frozen=True)
class _TypedEpisode(Episode):
    """An episode whose memory is a branch of its own. Each node that uses it finds it by its name in the state."""

    open: Callable[[], MemoryBank]
    branches: Branches

    def begin(self, state: TypedState, config: RunnableConfig) -> TypedState:  # type: ignore[override]  # of its own state
        """Start with an empty context, on a new branch. Raises `InputError` for a task that cannot be."""
        update = self._begun(state, config)
        return {**update, "branch": self.branches.add(self.open().branch(scope=current_scope(self.scope)))}

    async def abegin(self, state: TypedState, config: RunnableConfig) -> TypedState:  # type: ignore[override]
        update = self._begun(state, config)
        bank = await asyncio.to_thread(self.open)
        return {**update, "branch": self.branches.add(await bank.abranch(scope=current_scope(self.scope)))}

    def _begun(self, state: TypedState, config: RunnableConfig) -> TypedState:
        """Return what an episode begins with; what an earlier one of the thread has left goes."""
        task, gold = _read(state)
        emptied: Any = Overwrite([])
        update: TypedState = {
            **super().begin({**state, "task": task}, config),  # type: ignore[typeddict-item]  # its state is part of ours
            "task": task,
            "gold": gold,
            "tools": list(self.steps.names),
            "reward": None,
            "unjudged": None,
            "steps": emptied,
            "edits": emptied,
            "operations": emptied,
            "messages": emptied,
        }
        return update

    def recall(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        with self._branch(state):
            return super().recall(state, config)

    async def arecall(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        with self._branch(state):
            return await super().arecall(state, config)

    def act(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        with self._branch(state):
            return super().act(state, config)

    async def aact(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        with self._branch(state):
            return await super().aact(state, config)

    def finish(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        with self._branch(state):
            return _scored(state, super().finish(state, config))

    async def afinish(self, state: EpisodeState, config: RunnableConfig) -> EpisodeState:
        with self._branch(state):
            return _scored(state, await super().afinish(state, config))

    def _branch(self, state: EpisodeState) -> AbstractContextManager[MemoryStore]:
        return use_bank(self.branches.get(cast("TypedState", state)["branch"]))


def _read(state: TypedState) -> tuple[EpisodeTask, str | None]:
    """Return the task and its gold answer. A task that was read already belongs to an episode that is played again."""
    given: object = state.get("task")
    if isinstance(given, EpisodeTask):
        return given, state.get("gold")
    try:
        typed = TypedTask.model_validate(given.model_dump() if isinstance(given, TypedTask) else given)
    except ValidationError as error:
        where = error.errors()[0]
        place = ".".join(map(str, ("task", *where["loc"])))
        raise InputError(
            f"{place}: {where['msg']}. A task is {{'messages': ['...'], 'distractors': ['...'], 'question': '...'}}"
        ) from None
    task = EpisodeTask(id="typed", **typed.model_dump(exclude={"gold"}))
    return task, typed.gold


def _scored(state: EpisodeState, outcome: EpisodeState) -> EpisodeState:
    """Return the outcome with exact match as its reward, where there is a gold answer."""
    gold = cast("TypedState", state).get("gold")
    if gold is None:
        return outcome
    answer = outcome["answer"]
    return {**outcome, "reward": Score(value=float(answer is not None and normalise(answer) == normalise(gold)))}


# builder


def typed_episode_graph(
    model: BaseChatModel,
    bank: Callable[[], MemoryBank],
    *,
    scope: DefaultScope = None,
    branches: Branches | None = None,
) -> EpisodeGraph:
    """Return the episode graph whose input somebody can type. bank: what episodes branch from; scope: as in `current_scope`."""
    quiet_known_types()
    steps = AgentSteps(
        model=model, protocol=protocol_for(model), summarizer=ExtractiveSummarizer(), top_k=TOP_K, dated=False
    )
    nodes = _TypedEpisode(
        steps=steps,
        bank=LazyBank(bank),
        scope=scope,
        limit=CONTEXT_TOKENS,
        rounds=ROUNDS,
        recall_stages=(1,),
        recalled=RECALLED,
        floor=-1.0,
        profile="full",
        judge=None,
        open=bank,
        branches=branches or Branches(),
    )
    return compiled(nodes, TypedState, TypedInput)


@lru_cache(maxsize=1)
def _branches() -> Branches:
    return Branches()


async def make_episode_graph(config: RunnableConfig) -> EpisodeGraph:
    """Return the episode for a LangGraph server, with the model that the settings name; without one, a run says what to set."""
    own = await server()
    scope = Home(own.home.tenant, own.home.user or NOBODY)
    return typed_episode_graph(agent_model(own.settings), own.bank, scope=scope, branches=_branches())

"""Machine B: train the weights by trying strategies out (arXiv 2511.07800, section 4.2, algorithm 2; specification 2.5 and 3).

    take -> activate -> roll_out (with || without) -> learn -> take -> ... -> measure -> take -> ...
            activate -> take                          nothing is activated

For every query: what it activates, one strategy drawn from p(m | q), or each of them, a rollout with it and one without, from a common
seed; their gap moves the weights. The learner is handed in, and the graph of strategies makes its step durable.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import numpy as np
from langchain_core.runnables import RunnableConfig
from langgraph.channels import EphemeralValue
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import get_runtime
from langgraph.types import Checkpointer, Overwrite
from typing_extensions import TypedDict

from memweave.errors import InputError, SettingsError
from memweave.graphs.graph_memory_context import GraphMemoryContext
from memweave.graphs.graph_memory_guidance import Strategies, StrategySource
from memweave.graphs.graph_memory_pairing import Pair, Pairing, Trial, WeightRow, apart
from memweave.graphs.graph_memory_play import Failure, Played, QueryTask, name_of, query_tasks
from memweave.graphs.session import DefaultScope, Node, current_scope, quiet_known_types
from memweave.memory_stores.strategy_activation import Activation

MOST_QUERIES: Final = 1_000_000
"""Queries of one run, each as often as it is tried."""
MOST_AT_ONCE: Final = 64
"""Queries of a batch: their rollouts are in the state together."""

Stopped = Literal["done", "budget", "plateau"]
"""done: all epochs are over.  budget: no rollout is left.  plateau: the held-out gap did not grow any more."""


# state


class WeightsInput(TypedDict, total=False):
    """Queries to train on; none of them may be one that the graph was built from, and held-out ones are never trained on."""

    queries: Annotated[list[QueryTask] | None, EphemeralValue]
    held_out: Annotated[list[QueryTask] | None, EphemeralValue]


class WeightsOutput(TypedDict, total=False):
    """What came of it."""

    rows: Annotated[list[WeightRow], operator.add]
    skipped: int
    """Queries that activate nothing."""
    failures: Annotated[list[Failure], operator.add]
    rollouts: int
    held_out_gaps: list[float]
    """Mean gap on the held-out queries after each epoch."""
    stopped: Stopped | None


class WeightsState(WeightsInput, WeightsOutput, total=False):
    """Training under way."""

    tasks: list[QueryTask]
    """The queries, read."""
    checked: list[QueryTask]
    """The held-out ones."""
    epoch: int
    """Present epoch, from 0."""
    place: int
    """Queries of the epoch that were taken."""
    batch: list[QueryTask]
    trials: list[Trial]
    pairs: list[Pair]


# nodes


@dataclass(frozen=True)
class Weighing:
    """The nodes."""

    pairing: Pairing
    memory: Strategies
    scope: DefaultScope
    epochs: int
    batch: int
    most_rollouts: int | None
    patience: int

    # which queries are next

    def take(self, state: WeightsState, config: RunnableConfig) -> WeightsState:
        """Take the next queries, or find that it is over. Raises `InputError` for queries that cannot be."""
        update: WeightsState = {**self._begun(state), "batch": [], "trials": [], "pairs": []}
        now: WeightsState = {**state, **update}
        tasks, place, room = now["tasks"], now["place"], self._room(now["rollouts"])
        if place < len(tasks) and room < 1:
            return {**update, "stopped": "budget"}
        order = self.pairing.rng("order", now["epoch"]).permutation(len(tasks))
        chosen = [tasks[i] for i in order[place : place + room].tolist()]
        return {**update, "batch": chosen, "place": place + len(chosen)}

    async def atake(self, state: WeightsState, config: RunnableConfig) -> WeightsState:
        """Do what `take` does."""
        return self.take(state, config)

    def _begun(self, state: WeightsState) -> WeightsState:
        """Return what a run begins with; nothing when it has begun. What an earlier run of the thread has left goes."""
        given = state.get("queries")
        if given is None and state.get("tasks"):
            return {}
        (tasks, again), (checked, more) = query_tasks(given), query_tasks(state.get("held_out"))
        if not tasks:
            raise InputError("There are no queries to train on")
        if len(tasks) * self.epochs > MOST_QUERIES:
            raise InputError(f"{len(tasks):,} queries, {self.epochs} times, are too many for one run")
        if both := {name_of(task) for task in tasks} & {name_of(task) for task in checked}:
            raise InputError(f"the query {min(both)!r} is to be trained on and held out")
        rows: Any = Overwrite([])
        failures: Any = Overwrite([*again, *more])
        return {
            "tasks": tasks,
            "checked": checked,
            "epoch": 0,
            "place": 0,
            "skipped": 0,
            "rollouts": 0,
            "held_out_gaps": [],
            "stopped": None,
            "rows": rows,
            "failures": failures,
        }

    def _room(self, spent: int) -> int:
        """Return how many queries may be tried at the same time."""
        if self.most_rollouts is None:
            return self.batch
        return min(self.batch, (self.most_rollouts - spent) // (2 * self.pairing.samples))

    # which strategy is tried

    def activate(self, state: WeightsState, config: RunnableConfig) -> WeightsState:
        """Find what the queries activate, and draw a strategy for each; a query that activates nothing is skipped."""
        return self._drawn(state, self._activated(state["batch"]))

    async def aactivate(self, state: WeightsState, config: RunnableConfig) -> WeightsState:
        """Do what `activate` does."""
        return self._drawn(state, await self._aactivated(state["batch"]))

    def _activated(self, tasks: Sequence[QueryTask]) -> list[Activation]:
        memory, scope = self.memory.get(), current_scope(self.scope)
        return [memory.activate(task.text, scope=scope, exclude=name_of(task)) for task in tasks]

    async def _aactivated(self, tasks: Sequence[QueryTask]) -> list[Activation]:
        memory, scope = await self.memory.aget(), current_scope(self.scope)
        return [await memory.aactivate(task.text, scope=scope, exclude=name_of(task)) for task in tasks]

    def _drawn(self, state: WeightsState, found: Sequence[Activation]) -> WeightsState:
        trials, failures = self._trials(state["batch"], found, state["epoch"])
        skipped = state["skipped"] + sum(not activation for activation in found)
        return {"trials": trials, "failures": failures, "skipped": skipped}

    def _trials(
        self, tasks: Sequence[QueryTask], found: Sequence[Activation], epoch: int | str
    ) -> tuple[list[Trial], list[Failure]]:
        both = zip(tasks, found, strict=True)
        return apart([each for task, activation in both for each in self.pairing.trials(task, activation, epoch)])

    # with and without

    def roll_out(self, state: WeightsState, config: RunnableConfig) -> WeightsState:
        """Make the rollouts with and without, at the same time. Raises `UnavailableError` when none could reach its model."""
        jobs = self.pairing.jobs(state["trials"], state["epoch"])
        return self._rolled(state, self.pairing.player.play(jobs))

    async def aroll_out(self, state: WeightsState, config: RunnableConfig) -> WeightsState:
        """Do what `roll_out` does."""
        jobs = self.pairing.jobs(state["trials"], state["epoch"])
        return self._rolled(state, await self.pairing.player.aplay(jobs))

    def _rolled(self, state: WeightsState, played: Sequence[Played]) -> WeightsState:
        pairs, failures = self.pairing.pairs(state["trials"], played)
        return {"pairs": pairs, "failures": failures, "rollouts": state["rollouts"] + len(played)}

    # the gap moves the weights

    def learn(self, state: WeightsState, config: RunnableConfig) -> WeightsState:
        """Take a step of the weights for each pair, in their order."""
        memory, scope = self.memory.get(), current_scope(self.scope)
        return _told(self.pairing.steps(memory, state["pairs"], scope=scope, epoch=state["epoch"]))

    async def alearn(self, state: WeightsState, config: RunnableConfig) -> WeightsState:
        """Do what `learn` does."""
        memory, scope, epoch = await self.memory.aget(), current_scope(self.scope), state["epoch"]
        return _told(await asyncio.to_thread(self.pairing.steps, memory, state["pairs"], scope=scope, epoch=epoch))

    # the end of an epoch

    def measure(self, state: WeightsState, config: RunnableConfig) -> WeightsState:
        """Measure the gap on the held-out queries, without learning of it, and find out whether another epoch follows."""
        if not self._can_measure(state):
            return self._next_epoch(state, [], [], 0)
        trials, _ = self._trials(state["checked"], self._activated(state["checked"]), "held-out")
        played = self.pairing.player.play(self.pairing.jobs(trials, self.epochs))
        return self._measured(state, trials, played)

    async def ameasure(self, state: WeightsState, config: RunnableConfig) -> WeightsState:
        """Do what `measure` does."""
        if not self._can_measure(state):
            return self._next_epoch(state, [], [], 0)
        trials, _ = self._trials(state["checked"], await self._aactivated(state["checked"]), "held-out")
        played = await self.pairing.player.aplay(self.pairing.jobs(trials, self.epochs))
        return self._measured(state, trials, played)

    def _can_measure(self, state: WeightsState) -> bool:
        needed = 2 * self.pairing.samples * len(state["checked"])
        return needed > 0 and (self.most_rollouts is None or state["rollouts"] + needed <= self.most_rollouts)

    def _measured(self, state: WeightsState, trials: Sequence[Trial], played: Sequence[Played]) -> WeightsState:
        """Return the mean gap; draws and seeds are the same after every epoch, so that what changes is the weights."""
        pairs, failed = self.pairing.pairs(trials, played)
        return self._next_epoch(state, [pair.gap for pair in pairs], failed, len(played))

    def _next_epoch(
        self, state: WeightsState, gaps: list[float], failures: list[Failure], rollouts: int
    ) -> WeightsState:
        measured = [*state["held_out_gaps"], *([float(np.mean(gaps))] if gaps else [])]
        update: WeightsState = {
            "epoch": state["epoch"] + 1,
            "place": 0,
            "held_out_gaps": measured,
            "failures": failures,
            "rollouts": state["rollouts"] + rollouts,
        }
        if state["epoch"] + 1 >= self.epochs:
            update["stopped"] = "done"
        elif len(measured) > self.patience and max(measured[-self.patience :]) <= max(measured[: -self.patience]):
            update["stopped"] = "plateau"
        return update

    # routing

    def after_take(self, state: WeightsState) -> str:
        """Go on with a batch, measure after an epoch, or end."""
        if state.get("stopped"):
            return END
        return "activate" if state["batch"] else "measure"

    def after_activate(self, state: WeightsState) -> str:
        """Skip what activates nothing."""
        return "roll_out" if state["trials"] else "take"

    def after_measure(self, state: WeightsState) -> str:
        """Begin another epoch, or end."""
        return END if state.get("stopped") else "take"


def _told(rows: list[WeightRow]) -> WeightsState:
    for row in rows:
        get_runtime().stream_writer(row.event())
    return {"rows": rows}


# builder

WeightsGraph = CompiledStateGraph[WeightsState, GraphMemoryContext, WeightsInput, WeightsOutput]


def create_weights_graph(
    pairing: Pairing,
    memory: StrategySource,
    *,
    scope: DefaultScope = None,
    epochs: int = 1,
    batch: int = 1,
    most_rollouts: int | None = None,
    patience: int = 2,
    checkpointer: Checkpointer = None,
) -> WeightsGraph:
    """Return the machine that trains the weights, over `queries` (and `held_out`).

    pairing: how gaps are measured and learned from (`paired_rollouts`).  memory: the graph of strategies, or how to open it.
    scope: whose graph, when neither authentication nor the run's context says it.

    epochs: times that each query is tried.  batch: queries whose rollouts are made at the same time, drawn with the weights from before;
    their steps are taken one after the other.  most_rollouts: stop before more are made.  patience: with `held_out` queries, epochs
    without a larger gap on them before training stops.

    Raises `SettingsError` for a number below 1.
    """
    for name, value in {"epochs": epochs, "batch": batch, "patience": patience}.items():
        if value < 1:
            raise SettingsError(f"{name} = {value}: give 1 at least")
    if batch > MOST_AT_ONCE:
        raise SettingsError(f"batch = {batch}: {MOST_AT_ONCE} at most")
    if pairing.every and most_rollouts is not None:
        raise SettingsError(
            "most_rollouts cannot be kept where every strategy is tried: a query takes as many as it activates"
        )
    quiet_known_types()
    nodes = Weighing(pairing, Strategies(memory), scope, epochs, batch, most_rollouts, patience)
    builder = StateGraph(WeightsState, GraphMemoryContext, input_schema=WeightsInput, output_schema=WeightsOutput)
    builder.add_node("take", Node("take", nodes.take, nodes.atake))
    builder.add_node("activate", Node("activate", nodes.activate, nodes.aactivate))
    builder.add_node("roll_out", Node("roll_out", nodes.roll_out, nodes.aroll_out))
    builder.add_node("learn", Node("learn", nodes.learn, nodes.alearn))
    builder.add_node("measure", Node("measure", nodes.measure, nodes.ameasure))
    builder.add_edge(START, "take")
    builder.add_conditional_edges("take", nodes.after_take, ["activate", "measure", END])
    builder.add_conditional_edges("activate", nodes.after_activate, ["roll_out", "take"])
    builder.add_edge("roll_out", "learn")
    builder.add_edge("learn", "take")
    builder.add_conditional_edges("measure", nodes.after_measure, ["take", END])
    graph = builder.compile(name="graph-memory-weights", checkpointer=checkpointer)
    return graph.with_config(recursion_limit=5 * MOST_QUERIES)

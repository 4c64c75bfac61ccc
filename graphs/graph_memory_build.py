"""Machine A: build the graph of queries, paths and strategies (arXiv 2511.07800, section 4.1, algorithm 1; specification 2.4 and 3).

    take -> sample -> map -> add -> contrast  -> write -> add ... take ...
                                    speculate -> write
                                    distill   -> write
                                    (none)    -> add ... take ...

For every query: N rollouts without advice, each mapped to a canonical path; the query, its paths and the edges go into the graph; what they
have shown becomes a strategy, or links to some. A rollout or a trace that is of no use is a named failure, and the run goes on.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.channels import EphemeralValue
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import get_runtime
from langgraph.types import Checkpointer, Overwrite
from typing_extensions import TypedDict

from memweave.agents.leaks import Source
from memweave.agents.path_mapper import MapperLike, as_mapper
from memweave.agents.run_log import RunLog
from memweave.agents.strategist import StrategistLike, as_strategist
from memweave.errors import InputError, SettingsError
from memweave.graph_records import RolloutOutcome
from memweave.graphs.graph_memory_context import GraphMemoryContext
from memweave.graphs.graph_memory_guidance import Strategies, StrategySource
from memweave.graphs.graph_memory_induction import (
    Choose,
    Draft,
    Induction,
    Material,
    Taught,
    Walked,
    enter,
    log_of,
    source_of_runs,
    taught,
    write_draft,
)
from memweave.graphs.graph_memory_play import (
    PARALLEL,
    ROLLOUT_TIMEOUT,
    Failure,
    Job,
    Played,
    Player,
    QueryTask,
    RolloutSource,
    TraceKeeper,
    name_of,
    query_tasks,
)
from memweave.graphs.session import DefaultScope, Node, current_scope, quiet_known_types
from memweave.memory_stores.strategy_graph import StrategyGraph
from memweave.records import Record, Scope

SAMPLES: Final = 8
"""Rollouts of a query; the paper does not say how many."""
MOST_QUERIES: Final = 100_000
"""Queries of one run."""


# state


class Sampled(Record):
    """The rollouts of one query."""

    task: QueryTask
    played: tuple[Played, ...] = ()
    outcomes: tuple[RolloutOutcome, ...] = ()
    """Of those that have a path."""
    source: Source | None = None
    """What a strategy of this query may not repeat."""


class BuildInput(TypedDict, total=False):
    """Queries to build from; none of them may be one that weights are trained or anything is measured on."""

    queries: Annotated[list[QueryTask] | None, EphemeralValue]


class BuildOutput(TypedDict, total=False):
    """What came of it."""

    rows: Annotated[list[Taught], operator.add]
    """One for each query that has a path."""
    failures: Annotated[list[Failure], operator.add]
    known: int
    """Queries that were in the graph already, and were left alone."""
    rollouts: int


class BuildState(BuildInput, BuildOutput, total=False):
    """A graph in the making."""

    tasks: list[QueryTask]
    """The queries, read."""
    place: int
    """How many were taken."""
    batch: list[Sampled]
    """Queries whose rollouts were made; the first one is next."""
    material: Material | None
    draft: Draft | None


# nodes


@dataclass(frozen=True)
class Building:
    """The nodes."""

    player: Player
    memory: Strategies
    induction: Induction
    scope: DefaultScope
    samples: int
    batch: int

    # rollouts

    def take(self, state: BuildState, config: RunnableConfig) -> BuildState:
        """Take the next queries that the graph does not hold yet. Raises `InputError` for queries that cannot be."""
        return self._taken(state, self._begun(state), self.memory.get(), current_scope(self.scope))

    async def atake(self, state: BuildState, config: RunnableConfig) -> BuildState:
        """Do what `take` does."""
        begun, memory, scope = self._begun(state), await self.memory.aget(), current_scope(self.scope)
        return await asyncio.to_thread(self._taken, state, begun, memory, scope)

    @staticmethod
    def _begun(state: BuildState) -> BuildState:
        """Return what a run begins with; nothing when it has begun. What an earlier run of the thread has left goes."""
        given = state.get("queries")
        if given is None and state.get("tasks"):
            return {}
        tasks, again = query_tasks(given)
        if not tasks:
            raise InputError("There are no queries to build from")
        if len(tasks) > MOST_QUERIES:
            raise InputError(f"{len(tasks):,} queries are too many for one run; {MOST_QUERIES:,} are not")
        rows: Any = Overwrite([])
        failures: Any = Overwrite(again)
        return {"tasks": tasks, "place": 0, "known": 0, "rollouts": 0, "rows": rows, "failures": failures}

    def _taken(self, state: BuildState, begun: BuildState, memory: StrategyGraph, scope: Scope) -> BuildState:
        now: BuildState = {**state, **begun}
        tasks, place, known = now["tasks"], now["place"], now["known"]
        batch: list[Sampled] = []
        while place < len(tasks) and len(batch) < self.batch:
            task, place = tasks[place], place + 1
            if memory.query(name_of(task), scope=scope) is None:
                batch.append(Sampled(task=task))
            else:
                known += 1
        return {**begun, "batch": batch, "place": place, "known": known, "material": None, "draft": None}

    def sample(self, state: BuildState, config: RunnableConfig) -> BuildState:
        """Make the rollouts, without advice. Raises `UnavailableError` when none could reach its model."""
        return self._sampled(state, self.player.play(self._jobs(state)))

    async def asample(self, state: BuildState, config: RunnableConfig) -> BuildState:
        """Do what `sample` does."""
        return self._sampled(state, await self.player.aplay(self._jobs(state)))

    def _jobs(self, state: BuildState) -> list[Job]:
        return [Job(each.task, "build", replica) for each in state["batch"] for replica in range(self.samples)]

    def _sampled(self, state: BuildState, played: Sequence[Played]) -> BuildState:
        n = self.samples
        batch = [
            each.model_copy(update={"played": tuple(played[i * n : (i + 1) * n])})
            for i, each in enumerate(state["batch"])
        ]
        failures = [one.failure for one in played if one.failure is not None]
        return {"batch": batch, "failures": failures, "rollouts": state["rollouts"] + len(played)}

    # paths

    def map(self, state: BuildState, config: RunnableConfig) -> BuildState:
        """Find the path of each rollout; a trace that fits none is a named failure."""
        return self._mapped(
            state, [[self.induction.walked(*about(one)) for one in useful(each)] for each in state["batch"]]
        )

    async def amap(self, state: BuildState, config: RunnableConfig) -> BuildState:
        """Do what `map` does, several at a time."""
        free = asyncio.Semaphore(self.player.parallel)

        async def one(played: Played) -> Walked | Failure:
            async with free:
                return await self.induction.awalked(*about(played))

        found = [await asyncio.gather(*(one(each) for each in useful(one_query))) for one_query in state["batch"]]
        return self._mapped(state, found)

    @staticmethod
    def _mapped(state: BuildState, found: Sequence[Sequence[Walked | Failure]]) -> BuildState:
        batch = []
        for each, own in zip(state["batch"], found, strict=True):
            walked = [one for one in own if isinstance(one, Walked)]
            source = source_of_runs(each.task, [log_of(one) for one in useful(each)])
            batch.append(Sampled(task=each.task, outcomes=tuple(one.outcome for one in walked), source=source))
        failures = [one for own in found for one in own if isinstance(one, Failure)]
        return {"batch": [each for each in batch if each.outcomes], "failures": failures}

    # into the graph

    def add(self, state: BuildState, config: RunnableConfig) -> BuildState:
        """Find out what the paths of the next query allow; where they allow nothing, it is put into the graph at once."""
        return self._added(state, self.memory.get(), current_scope(self.scope))

    async def aadd(self, state: BuildState, config: RunnableConfig) -> BuildState:
        """Do what `add` does."""
        memory = await self.memory.aget()
        return await asyncio.to_thread(self._added, state, memory, current_scope(self.scope))

    def _added(self, state: BuildState, memory: StrategyGraph, scope: Scope) -> BuildState:
        first, *rest = state["batch"]
        source = first.source or Source(question=first.task.text)
        material = self.induction.material(memory, first.task, first.outcomes, source, scope=scope, run=self.player.run)
        update: BuildState = {"batch": rest, "material": material, "draft": None}
        if material.case == "none":
            enter(memory, material, scope=scope)
            update["rows"] = [taught(material, "none", "only right answers")]
        return update

    # strategies

    def induce(self, state: BuildState, config: RunnableConfig) -> BuildState:
        """Make a strategy of what the paths have shown, or find that there is none to be made."""
        existing = self.memory.get().strategies(scope=current_scope(self.scope))
        return self._drafted(self.induction.draft(_material(state), existing, self.player.run))

    async def ainduce(self, state: BuildState, config: RunnableConfig) -> BuildState:
        """Do what `induce` does."""
        memory = await self.memory.aget()
        existing = await memory.astrategies(scope=current_scope(self.scope))
        return self._drafted(await self.induction.adraft(_material(state), existing, self.player.run))

    @staticmethod
    def _drafted(draft: Draft) -> BuildState:
        return {"draft": draft, "failures": [draft.failure] if draft.failure else []}

    def write(self, state: BuildState, config: RunnableConfig) -> BuildState:
        """Write the query, its paths and the edges, and the strategy (a new one, or the one that it matches) with links to it."""
        return self._said(self._written(state, self.memory.get(), current_scope(self.scope)))

    async def awrite(self, state: BuildState, config: RunnableConfig) -> BuildState:
        """Do what `write` does."""
        memory, scope = await self.memory.aget(), current_scope(self.scope)
        return self._said(await asyncio.to_thread(self._written, state, memory, scope))

    @staticmethod
    def _written(state: BuildState, memory: StrategyGraph, scope: Scope) -> Taught:
        draft = state["draft"]
        assert draft is not None
        return write_draft(memory, _material(state), draft, scope=scope)

    @staticmethod
    def _said(row: Taught) -> BuildState:
        get_runtime().stream_writer(row.event())
        return {"rows": [row], "material": None, "draft": None}

    # routing

    def after_take(self, state: BuildState) -> str:
        """Make rollouts, or end."""
        return "sample" if state["batch"] else END

    def onward(self, state: BuildState) -> str:
        """Go on with the next query of the batch, or take more."""
        return "add" if state["batch"] else "take"

    def split(self, state: BuildState) -> str:
        """Contrast, speculate, distill, or go on."""
        case = _material(state).case
        return self.onward(state) if case == "none" else case


def _material(state: BuildState) -> Material:
    material = state["material"]
    assert material is not None
    return material


def useful(sampled: Sampled) -> list[Played]:
    """Return the rollouts whose worth is known."""
    return [each for each in sampled.played if each.record is not None and each.reward is not None]


def about(played: Played) -> tuple[RunLog, str | None, str | None]:
    """Return what of a rollout is mapped: its log, and the ids of its trace and query."""
    return log_of(played), str(played.trace.id) if played.trace else None, played.query_id


# builder

BuildGraph = CompiledStateGraph[BuildState, GraphMemoryContext, BuildInput, BuildOutput]


def create_build_graph(
    rollout: RolloutSource,
    memory: StrategySource,
    *,
    scope: DefaultScope = None,
    mapper: MapperLike = "rule",
    strategist: StrategistLike = "rule",
    samples: int = SAMPLES,
    batch: int = 1,
    positive: bool = False,
    borrow: bool = False,
    choose: Choose = "random",
    seed: int = 0,
    run: str = "build",
    parallel: int = PARALLEL,
    rollout_timeout: float = ROLLOUT_TIMEOUT,
    traces: TraceKeeper | None = None,
    checkpointer: Checkpointer = None,
) -> BuildGraph:
    """Return the machine that builds the graph, over `queries`.

    rollout: of `create_rollout_graph`, or which one a job is done with.  memory: the graph of strategies, or how to open it.  scope: whose
    graph, when neither authentication nor the run's context says it.  mapper, strategist: `rule`, a chat model or its specification,
    or your own.

    samples: rollouts of a query.  batch: queries whose rollouts are made at the same time; what is made of them is made one after the
    other, so the graph is the same.  positive: let queries that were only answered rightly teach something too (B5).  borrow: contrast a
    failure with a similar query's success when there is no strategy of one to re-use (B6).  choose: which success and which failure are
    contrasted (B4), by `seed`.  run: name of the run in traces and log.  parallel: rollouts at the same time.  rollout_timeout: seconds
    for one.  traces: where traces are kept.

    Raises `SettingsError` for a number below 1, or a mapper of another machine than the graph's.
    """
    for name, value in {"samples": samples, "batch": batch}.items():
        if value < 1:
            raise SettingsError(f"{name} = {value}: give 1 at least")
    paths = as_mapper(mapper)
    induction = Induction(
        paths, as_strategist(strategist, paths.machine), positive=positive, borrow=borrow, choose=choose, seed=seed
    )
    quiet_known_types()
    player = Player(rollout, run, parallel, rollout_timeout, traces)
    nodes = Building(player, Strategies(memory, paths.machine), induction, scope, samples, batch)
    builder = StateGraph(BuildState, GraphMemoryContext, input_schema=BuildInput, output_schema=BuildOutput)
    builder.add_node("take", Node("take", nodes.take, nodes.atake))
    builder.add_node("sample", Node("sample", nodes.sample, nodes.asample))
    builder.add_node("map", Node("map", nodes.map, nodes.amap))
    builder.add_node("add", Node("add", nodes.add, nodes.aadd))
    builder.add_node("write", Node("write", nodes.write, nodes.awrite))
    for case in ("contrast", "speculate", "distill"):
        builder.add_node(case, Node(case, nodes.induce, nodes.ainduce))
        builder.add_edge(case, "write")
    builder.add_edge(START, "take")
    builder.add_conditional_edges("take", nodes.after_take, ["sample", END])
    builder.add_edge("sample", "map")
    builder.add_conditional_edges("map", nodes.onward, ["add", "take"])
    onward = ["add", "take"]
    builder.add_conditional_edges("add", nodes.split, ["contrast", "speculate", "distill", *onward])
    builder.add_conditional_edges("write", nodes.onward, onward)
    graph = builder.compile(name="graph-memory-build", checkpointer=checkpointer)
    return graph.with_config(recursion_limit=7 * MOST_QUERIES)

"""What `memweave strategies show` shows: a graph of strategies with the runs behind it, and its rendering in a terminal."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

from rich.text import Text

from memweave.cli import render
from memweave.graph_records import Edge, EdgeKind, PathNode, QueryNode, Strategy, WeightUpdate
from memweave.records import Record, Reward, UtcTime

if TYPE_CHECKING:
    from memweave.memory_stores import StrategyGraph
    from memweave.records import MemoryOp, Scope

UPDATES: Final = 50
"""Weight updates of a strategy that are kept, the last ones."""
CHANGES: Final = 30
"""Changes of a strategy that are kept, the last ones."""
PATHS: Final = 3
"""Paths that a terminal shows of each strategy, the heaviest."""


class Visit(Record):
    """A rollout of a query: the path that it took, and its trace."""

    path: UUID | None
    """`None` when it is no node of the graph any more."""
    reward: Reward
    trace_id: str | None


class ShownQuery(Record):
    """A query and its rollouts."""

    id: UUID
    text: str
    query_id: str | None
    split: str | None
    recorded_at: UtcTime
    right: int
    wrong: int
    visits: tuple[Visit, ...]


class Change(Record):
    """One operation on a strategy."""

    kind: str
    reason: str
    actor: str
    recorded_at: UtcTime


class ShownStrategy(Record):
    """A strategy, what trained its weights, and how it came about."""

    strategy: Strategy
    weight: float | None
    """Mean of the edges from paths; `None` without one."""
    updates: tuple[WeightUpdate, ...]
    history: tuple[Change, ...]


class ShownTrace(Record):
    """A recorded run, as lines of text."""

    id: str
    lines: tuple[str, ...]


class GraphView(Record):
    """A graph of one scope, or a part of it."""

    scope: str
    encoder: str
    version: int
    """Of the weights."""
    initial_weight: float
    """Of edges that were never trained."""
    total_queries: int
    """In the graph; the newest of them are in `queries`."""
    queries: tuple[ShownQuery, ...]
    paths: tuple[PathNode, ...]
    strategies: tuple[ShownStrategy, ...]
    edges: tuple[Edge, ...]
    traces: tuple[ShownTrace, ...] = ()
    trace_options: str = ""
    """What follows `memweave traces show ID`."""

    def trace_ids(self) -> list[str]:
        """Return the ids of the runs behind it, those of weight updates first."""
        steps = (step for each in self.strategies for step in each.updates)
        trained = [name for step in steps for name in (step.trace_with, step.trace_without)]
        rolled = [visit.trace_id for query in self.queries for visit in query.visits]
        return list(dict.fromkeys(name for name in (*trained, *rolled) if name is not None))

    def about(self, strategy_id: UUID) -> GraphView:
        """Return one strategy, and the paths and queries that lead to it."""
        paths = {edge.source for edge in self.edges if edge.target == strategy_id}
        queries = {edge.source for edge in self.edges if edge.target in paths}
        kept = paths | queries | {strategy_id}
        return self.model_copy(
            update={
                "queries": tuple(each for each in self.queries if each.id in kept),
                "paths": tuple(each for each in self.paths if each.id in kept),
                "strategies": tuple(each for each in self.strategies if each.strategy.id == strategy_id),
                "edges": tuple(each for each in self.edges if each.source in kept and each.target in kept),
            }
        )


def view_of(graph: StrategyGraph, scope: Scope, *, most_queries: int) -> GraphView:
    """Return the graph of a scope, with its newest queries at most, and the paths that lead somewhere from or to what is shown."""
    everything = graph.queries(scope=scope)
    queries = everything[-most_queries:] if most_queries else []
    shown = {query.id for query in queries}
    strategies = graph.strategies(scope=scope)
    edges = graph.edges(scope=scope)
    to_strategy = {edge.source for edge in edges if edge.kind is EdgeKind.PATH_STRATEGY}
    from_query = {edge.target for edge in edges if edge.kind is EdgeKind.QUERY_PATH and edge.source in shown}
    paths = {path.id: path for path in graph.paths(scope=scope) if path.id in to_strategy | from_query}
    known = shown | paths.keys() | {strategy.id for strategy in strategies}
    kept = [edge for edge in edges if edge.source in known and edge.target in known]
    untrained = Counter(edge.weight for edge in edges if edge.updates == 0).most_common(1)
    return GraphView(
        scope=str(scope),
        encoder=graph.encoder,
        version=graph.version(scope=scope),
        initial_weight=untrained[0][0] if untrained else graph.settings.initial_weight,
        total_queries=len(everything),
        queries=_queries(queries, paths, kept),
        paths=tuple(paths.values()),
        strategies=_strategies(strategies, kept, graph.updates(scope=scope), graph.log(scope=scope)),
        edges=tuple(kept),
    )


def _queries(
    queries: Iterable[QueryNode], paths: dict[UUID, PathNode], edges: Iterable[Edge]
) -> tuple[ShownQuery, ...]:
    taken: dict[UUID, dict[tuple[str, ...], UUID]] = defaultdict(dict)
    for edge in edges:
        if edge.kind is EdgeKind.QUERY_PATH:
            taken[edge.source][paths[edge.target].states] = edge.target
    return tuple(
        ShownQuery(
            id=query.id,
            text=query.text,
            query_id=query.query_id,
            split=query.split,
            recorded_at=query.recorded_at,
            right=sum(each.success for each in query.outcomes),
            wrong=sum(not each.success for each in query.outcomes),
            visits=tuple(
                Visit(path=taken[query.id].get(each.states), reward=each.reward, trace_id=each.trace_id)
                for each in query.outcomes
            ),
        )
        for query in queries
    )


def _strategies(
    strategies: Iterable[Strategy], edges: Iterable[Edge], updates: Iterable[WeightUpdate], log: Iterable[MemoryOp]
) -> tuple[ShownStrategy, ...]:
    weights: dict[UUID, list[float]] = defaultdict(list)
    for edge in edges:
        if edge.kind is EdgeKind.PATH_STRATEGY:
            weights[edge.target].append(edge.weight)
    steps: dict[UUID, list[WeightUpdate]] = defaultdict(list)
    for step in updates:
        steps[step.strategy_id].append(step)
    changes: dict[UUID, list[Change]] = defaultdict(list)
    for op in log:
        if op.memory_id is not None:
            change = Change(kind=op.kind.value, reason=op.reason, actor=op.actor, recorded_at=op.recorded_at)
            changes[op.memory_id].append(change)
    return tuple(
        ShownStrategy(
            strategy=each,
            weight=sum(weights[each.id]) / len(weights[each.id]) if weights[each.id] else None,
            updates=tuple(steps[each.id][-UPDATES:]),
            history=tuple(changes[each.id][-CHANGES:]),
        )
        for each in strategies
    )


# in a terminal


def show_graph(view: GraphView, limit: int) -> None:
    """Print the strategies, heaviest first, each with the heaviest paths that lead to it."""
    out = render.out()
    for each in sorted(view.strategies, key=lambda shown: -(shown.weight or 0.0))[:limit]:
        out.print(_head(each), soft_wrap=True)
        out.print(Text(f"  {render.safe(each.strategy.summary)}"), soft_wrap=True)
        _print_paths(view, each, PATHS)
        out.print()


def show_strategy(view: GraphView) -> None:
    """Print everything about the only strategy of a view: principles, paths, runs, weight updates, history."""
    (shown,) = view.strategies
    out, strategy = render.out(), shown.strategy
    out.print(_head(shown), soft_wrap=True)
    out.print(Text(render.safe(strategy.summary), style="bold"), soft_wrap=True)
    for principle in strategy.principles:
        line = f"  - {render.safe(principle.text)}  ({principle.confidence} {principle.score})"
        out.print(Text(line), soft_wrap=True)
    if strategy.uncertainty:
        out.print(Text(f"  may be wrong: {render.safe(strategy.uncertainty)}"), soft_wrap=True)
    out.print(Text("\npaths that lead to it, heaviest first", style="bold"))
    _print_paths(view, shown, len(view.paths))
    _print_runs(view)
    _print_updates(view, shown.updates)
    out.print(Text("\nhistory", style="bold"))
    for change in shown.history:
        line = f"  {render.minute(change.recorded_at)}  {change.kind} by {render.safe(change.actor)}: "
        out.print(Text(line + render.safe(change.reason)), soft_wrap=True)


def _head(shown: ShownStrategy) -> Text:
    strategy = shown.strategy
    weight = "-" if shown.weight is None else f"{shown.weight:.2f}"
    doubt = f", contradicted {strategy.contradictions}" if strategy.contradictions else ""
    facts = f"  {strategy.confidence} {strategy.score}, evidence {strategy.evidence}{doubt}, weight {weight}"
    return Text.assemble((render.short(strategy.id), "dim"), (f"  {strategy.kind.value}", "bold cyan"), facts)


def _print_paths(view: GraphView, shown: ShownStrategy, most: int) -> None:
    paths = {path.id: path for path in view.paths}
    edges = [edge for edge in view.edges if edge.target == shown.strategy.id]
    askers = Counter(edge.target for edge in view.edges if edge.kind is EdgeKind.QUERY_PATH)
    for edge in sorted(edges, key=lambda edge: -edge.weight)[:most]:
        path = paths[edge.source]
        counts = f"{path.n_success} right, {path.n_failure} wrong"
        trained = f", {render.count(edge.updates, 'update')}" if edge.updates else ""
        line = f"  {edge.weight:.2f}  {render.count(askers[path.id], 'query')}, {counts}{trained}  "
        render.out().print(Text.assemble(line, (render.safe(" > ".join(path.states)), "dim")), soft_wrap=True)
    if len(edges) > most:
        render.out().print(Text(f"  and {render.count(len(edges) - most, 'more path')}", style="dim"))


def _print_runs(view: GraphView) -> None:
    shown = {path.id for path in view.paths}
    render.out().print(Text("\ntraces behind it", style="bold"))
    for query in view.queries:
        for visit in query.visits:
            if visit.path in shown:
                mark, style = ("\u2713", "green") if visit.reward == 1 else ("\u2717", "red")
                trace = "not recorded" if visit.trace_id is None else _run(visit.trace_id, view.trace_options)
                line = Text.assemble((f"  {mark} {visit.reward:g}  ", style), f"{trace}  ")
                line.append(render.safe(query.text), "dim")
                render.out().print(line, soft_wrap=True)


def _run(trace_id: str, options: str) -> str:
    """Return the command that shows a run; for the id of a trace that is not ours, only that."""
    if set(trace_id) <= set("0123456789abcdefABCDEF-"):
        return f"memweave traces show {trace_id}{options}"
    return f"trace {render.safe(trace_id)}"


def _print_updates(view: GraphView, updates: Sequence[WeightUpdate]) -> None:
    render.out().print(Text("\nweight updates", style="bold"))
    if not updates:
        render.out().print(Text("  none", style="dim"))
    for step in updates:
        runs = ", ".join(render.safe(name) for name in (step.trace_with, step.trace_without) if name)
        line = f"  version {step.version}: gap {step.gap:+.2f}, p {step.probability:.2f}, {render.count(step.edges, 'edge')}"
        traces = f"  (traces {runs})" if runs else ""
        render.out().print(Text.assemble(line, (f"  {render.safe(step.query)}{traces}", "dim")), soft_wrap=True)

"""The graph of one scope in memory, as arrays (see `strategy_loading` for how it is read and kept up to date)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple
from uuid import UUID

import numpy as np

from memweave.errors import ConflictError
from memweave.graph_records import Edge, EdgeDelta, EdgeKind, EdgeStep, Strategy
from memweave.memory_stores.strategy_activation import Flags, Numbers, Places, Sparse
from memweave.memory_stores.strategy_weights import Saved, places_of

_NOWHERE: Final = 1 << 31
"""No node has so many before it."""


class State(NamedTuple):
    """Which state of a scope's graph it is."""

    queries: int
    """Last operation on queries."""
    strategies: int
    """Last operation on strategies."""
    weights: int
    """Version of the weights."""

    @property
    def nodes(self) -> tuple[int, int]:
        """Return what stays while only weights change."""
        return self.queries, self.strategies


@dataclass(frozen=True, slots=True)
class PathRow:
    """A path without its counts."""

    position: int
    """In the ledger's table."""
    id: UUID
    machine: str
    states: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """Edges of one kind; some do not count: their ends are not current, or an undo took them away."""

    edges: Sparse
    source: Places
    """(edges,): places of sources; in the order in which the edges were made, as everything here."""
    active: Flags
    """(edges,): not taken away by an undo."""
    position: Places
    """(edges,): in the ledger's table, rising."""
    place: Mapping[int, int]
    """By `key` of its ends, where an edge is."""

    @staticmethod
    def key(source: int, target: int) -> int:
        """Return what an edge is known by. source, target: places."""
        return source << 32 | target

    def counted(self) -> Places:
        """Return the places of the edges that count, in the order in which they were made."""
        return np.sort(self.edges.order)

    def with_weights(self, weight: Numbers) -> Layer:
        """Return the same edges with other weights, (edges,)."""
        return replace(self, edges=replace(self.edges, weight=weight))


@dataclass(frozen=True, slots=True)
class Nodes:
    """Queries or strategies; some are gone, and keep their places."""

    ids: tuple[UUID, ...]
    place: Mapping[UUID, int]
    current: Flags
    """(nodes,)."""

    def place_of(self, node: UUID) -> int | None:
        """Return where a node is that is current."""
        place = self.place.get(node)
        return place if place is not None and self.current[place] else None


@dataclass(frozen=True, slots=True)
class Table:
    """A scope's graph at one moment; never written to."""

    state: State
    queries: Nodes
    paths: tuple[PathRow, ...]
    """In the order in which they were added."""
    path_place: Mapping[UUID, int]
    strategies: Nodes
    """In the order in which they were first written."""
    resolved: tuple[Strategy, ...]
    """By place; those that are gone as they were."""
    query_path: Layer
    path_strategy: Layer

    def layer(self, kind: EdgeKind) -> Layer:
        """Return the edges of a kind."""
        return self.query_path if kind is EdgeKind.QUERY_PATH else self.path_strategy

    def current(self) -> list[Strategy]:
        """Return the strategies, in the order in which they were first written."""
        return [self.resolved[place] for place in np.flatnonzero(self.strategies.current).tolist()]

    def led_to(self, paths: Sequence[UUID]) -> list[Strategy]:
        """Return the strategies that some paths lead to, path by path, each once; paths that do not exist lead nowhere."""
        places = np.array([self.path_place[each] for each in paths if each in self.path_place], dtype=np.int64)
        edges, _ = self.path_strategy.edges.of(places)
        return [self.resolved[place] for place in dict.fromkeys(self.path_strategy.edges.target[edges].tolist())]

    def taken_by(self, query: UUID) -> list[PathRow]:
        """Return the paths that a query leads to; none for a query that is not there."""
        place = self.queries.place_of(query)
        if place is None:
            return []
        edges, _ = self.query_path.edges.of(np.array([place]))
        return [self.paths[each] for each in self.query_path.edges.target[edges].tolist()]

    def stepped(self, step: EdgeStep, bounds: tuple[float, float]) -> tuple[Table, Places, Numbers]:
        """Return the graph after a step, and (touched,) position and weight of the edges that it touched.

        Raises `ConflictError` when an edge of the step is not in the graph.
        """
        if not step.deltas:
            return self, np.zeros(0, dtype=np.int64), np.zeros(0)
        layers, positions, weights = {}, [], []
        for kind in EdgeKind:
            layer, deltas = self.layer(kind), [delta for delta in step.deltas if delta.kind is kind]
            place = self._found(kind, deltas)
            after = layer.edges.weight.copy()
            after[place] = np.clip(after[place] + np.array([each.delta for each in deltas]), *bounds)
            layers[kind] = layer.with_weights(after)
            positions.append(layer.position[place])
            weights.append(after[place])
        table = self.with_layers(layers, self.state._replace(weights=self.state.weights + 1))
        return table, np.concatenate(positions), np.concatenate(weights)

    def _found(self, kind: EdgeKind, deltas: Sequence[EdgeDelta]) -> Places:
        """Return (deltas,) where the edges of a step are. Raises `ConflictError` when one does not count."""
        sources, targets = self.ends(kind)
        layer = self.layer(kind)
        key, place = layer.key, layer.place
        missing = len(layer.source)
        found = np.array(
            [
                place.get(key(sources.get(each.source, _NOWHERE), targets.get(each.target, _NOWHERE)), missing)
                for each in deltas
            ],
            dtype=np.int64,
        )
        counts = np.append(self.counts(kind, layer.source, layer.edges.target, layer.active), False)[found]
        if not counts.all():
            gone = deltas[int(np.argmin(counts))]
            raise ConflictError(
                f"the edge {gone.source} -> {gone.target} of this step is not in the graph (any more). "
                "Activate again and make a new step; nothing was changed."
            )
        return found

    def ends(self, kind: EdgeKind) -> tuple[Mapping[UUID, int], Mapping[UUID, int]]:
        """Return where the sources and targets of a kind of edge are."""
        if kind is EdgeKind.QUERY_PATH:
            return self.queries.place, self.path_place
        return self.path_place, self.strategies.place

    def counts(self, kind: EdgeKind, source: Places, target: Places, active: Flags) -> Flags:
        """Return (edges,) which edges of a kind count."""
        if kind is EdgeKind.QUERY_PATH:
            return active & self.queries.current[source]
        return active & self.strategies.current[target]

    def with_layers(self, layers: Mapping[EdgeKind, Layer], state: State) -> Table:
        """Return the same nodes with other edges."""
        return replace(
            self, state=state, query_path=layers[EdgeKind.QUERY_PATH], path_strategy=layers[EdgeKind.PATH_STRATEGY]
        )

    def edges(self, kind: EdgeKind | None, weights: Saved) -> list[Edge]:
        """Return the edges that count, in the order in which they were made. weights: of all edges, by position."""
        found = []
        for of in (kind,) if kind else EdgeKind:
            layer, (sources, targets) = self.layer(of), self._ids(of)
            counted = layer.counted()
            place, there = places_of(layer.position[counted], weights["position"])
            counted = counted[there]  # the others were purged meanwhile
            ends = zip(layer.source[counted].tolist(), layer.edges.target[counted].tolist(), strict=True)
            for (source, target), row in zip(ends, weights[place].tolist(), strict=True):
                position, weight, updates, gap_sum = row
                edge = Edge.model_construct(
                    kind=of, source=sources[source], target=targets[target], weight=weight, updates=updates, gap_sum=gap_sum
                )  # fmt: skip
                found.append((position, edge))
        return [edge for _, edge in sorted(found, key=lambda each: each[0])]

    def _ids(self, kind: EdgeKind) -> tuple[Sequence[UUID], Sequence[UUID]]:
        paths = [row.id for row in self.paths]
        return (self.queries.ids, paths) if kind is EdgeKind.QUERY_PATH else (paths, self.strategies.ids)

"""What a query activates in a graph of strategies: relevance, probability, and closed-form gradients (section 4.2), as sparse arithmetic.

    rho(m | q) = sum over neighbours i and paths j of  Sim(q, q_i) w_qt(i, j) w_tm(j, m)
    p(m | q)   = exp(rho(m) / T) / sum over activated m' of exp(rho(m') / T)                T = 1 in the paper

NumPy only; nothing here reads or writes a graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import numpy as np

from memweave.graph_records import EdgeKind, Strategy

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Places = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

_NONE: Final = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Sparse:
    """Edges of one kind, and which of them count, by source (compressed rows)."""

    start: Places
    """(sources + 1,): the edges of source i are those from start[i] to start[i + 1] in `order`."""
    order: Places
    """(edges that count,): places of edges in `target` and `weight`."""
    target: Places
    """(edges,): places of targets."""
    weight: Numbers
    """(edges,)."""

    def of(self, sources: Places) -> tuple[Places, Places]:
        """Return the edges of some sources that count, source by source: their places, and which of `sources` each belongs to."""
        if not len(sources):
            return _NONE, _NONE
        first, last = self.start[sources], self.start[sources + 1]
        counts = last - first
        owner = np.repeat(np.arange(len(sources)), counts)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.order[np.repeat(first, counts) + within], owner


@dataclass(frozen=True, slots=True)
class Links:
    """Activated edges of one kind."""

    edge: Places
    """(e,): places in the graph's table of this kind."""
    source: Places
    """(e,): among the neighbours, or among the activated paths."""
    target: Places
    """(e,): among the activated paths, or among the activated strategies."""
    weight: Numbers
    """(e,)."""
    factor: Numbers
    """(e,): what the weight is multiplied by, beside the other edges; 1, or 1 / degree."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """grad log p(m | q) in the weights of the activated edges."""

    query_path: Numbers
    """(edges from neighbours,)."""
    path_strategy: Numbers
    """(edges to activated strategies,)."""

    @property
    def norm(self) -> float:
        """Return the Euclidean length over both."""
        return float(np.sqrt((self.query_path**2).sum() + (self.path_strategy**2).sum()))


@dataclass(frozen=True, slots=True)
class Activation:
    """The part of a graph that a query reaches, N_k(q) -> T' -> M', at one version of the weights."""

    query: str
    query_id: str | None
    version: int
    """Of the weights."""
    neighbours: tuple[UUID, ...]
    """N_k(q): query nodes, most similar first."""
    similarities: Numbers
    """(neighbours,): cosines, those below 0 as 0 (B8)."""
    paths: tuple[UUID, ...]
    strategies: tuple[Strategy, ...]
    """M', in the order in which they were first written."""
    relevance: Numbers
    """(strategies,): rho."""
    probability: Numbers
    """(strategies,): p, adds up to 1."""
    query_path: Links
    path_strategy: Links
    temperature: float

    def __bool__(self) -> bool:
        """Return whether any strategy is activated."""
        return bool(self.strategies)

    def place(self, strategy_id: UUID) -> int:
        """Return where a strategy is among the activated ones. Raises `ValueError` when it is not."""
        for place, strategy in enumerate(self.strategies):
            if strategy.id == strategy_id:
                return place
        raise ValueError(f"strategy {strategy_id} is not activated by {self.query[:60]!r}")

    def draw(self, rng: np.random.Generator) -> int:
        """Return the place of a strategy drawn from p. Raises `ValueError` when none is activated."""
        if not self.strategies:
            raise ValueError(f"no strategy is activated by {self.query[:60]!r}: there is nothing to draw")
        return int(rng.choice(len(self.strategies), p=self.probability))

    def best(self, k: int) -> list[int]:
        """Return the places of the `k` most relevant strategies, best first; equal ones in their order."""
        return [int(place) for place in np.argsort(-self.relevance, kind="stable")[:k]]

    def gradient(self, chosen: int) -> Gradient:
        """Return the closed-form gradient of log p(m_chosen | q) in all activated weights (section 4.2).

            d / d w_qt(i, j) = Sim(q, q_i) [ w_tm(j, k) - sum_m p(m) w_tm(j, m) ]
            d / d w_tm(j, m) = (1[m = k] - p(m)) sum_i Sim(q, q_i) w_qt(i, j)

        each times the edges' factors and 1 / T.  chosen: place among `strategies`.
        """
        surprise = -self.probability.copy()
        surprise[chosen] += 1
        to_paths, to_strategies = self.query_path, self.path_strategy
        gain = _sums(  # of each path: w_tm(j, k) - sum_m p(m) w_tm(j, m)
            to_strategies.source,
            to_strategies.factor * to_strategies.weight * surprise[to_strategies.target],
            len(self.paths),
        )
        mass = _mass(to_paths, self.similarities, len(self.paths))
        return Gradient(
            self.similarities[to_paths.source] * to_paths.factor * gain[to_paths.target] / self.temperature,
            surprise[to_strategies.target] * to_strategies.factor * mass[to_strategies.source] / self.temperature,
        )

    def edges(self) -> list[tuple[EdgeKind, UUID, UUID]]:
        """Return which edges a gradient belongs to, `query_path` before `path_strategy`: kind, source and target."""
        to_paths, to_strategies = self.query_path, self.path_strategy
        neighbours, paths, strategies = self.neighbours, self.paths, [strategy.id for strategy in self.strategies]
        return [
            *(
                (EdgeKind.QUERY_PATH, neighbours[i], paths[j])
                for i, j in zip(to_paths.source.tolist(), to_paths.target.tolist(), strict=True)
            ),
            *(
                (EdgeKind.PATH_STRATEGY, paths[j], strategies[m])
                for j, m in zip(to_strategies.source.tolist(), to_strategies.target.tolist(), strict=True)
            ),
        ]


def activated(
    query_path: Sparse,
    path_strategy: Sparse,
    neighbours: Places,
    *,
    degree_normalised: bool = False,
) -> tuple[Places, Places, Links, Links]:
    """Return the places of the paths and strategies that some queries reach, and the edges on the way, both kinds.

    neighbours: (n,) places of queries.  degree_normalised: divide by how many paths a neighbour has, and by how many
    activated paths lead to a strategy; without it, strategies with many paths are favoured.
    """
    edge, owner = query_path.of(neighbours)
    paths, path = np.unique(query_path.target[edge], return_inverse=True)
    to_paths = Links(edge, owner, path, query_path.weight[edge], np.ones(len(edge)))
    edge, owner = path_strategy.of(paths)
    strategies, strategy = np.unique(path_strategy.target[edge], return_inverse=True)
    to_strategies = Links(edge, owner, strategy, path_strategy.weight[edge], np.ones(len(edge)))
    if degree_normalised:
        to_paths.factor[:] = 1 / np.bincount(to_paths.source, minlength=len(neighbours))[to_paths.source]
        to_strategies.factor[:] = 1 / np.bincount(strategy, minlength=len(strategies))[strategy]
    return paths, strategies, to_paths, to_strategies


def relevance(to_paths: Links, to_strategies: Links, similarities: Numbers, paths: int, strategies: int) -> Numbers:
    """Return (strategies,) rho(m | q)."""
    mass = _mass(to_paths, similarities, paths)
    flow = mass[to_strategies.source] * to_strategies.factor * to_strategies.weight
    return _sums(to_strategies.target, flow, strategies)


def probabilities(rho: Numbers, temperature: float) -> Numbers:
    """Return (strategies,) p(m | q), over the activated ones only; adds up to 1."""
    odds: Numbers = np.exp((rho - rho.max()) / temperature) if len(rho) else rho
    return odds / odds.sum() if len(rho) else odds


def uniform(links: Links) -> Links:
    """Return the same edges with weight 1."""
    return Links(links.edge, links.source, links.target, np.ones(len(links.edge)), links.factor)


def sparse(sources: int, source: Places, target: Places, weight: Numbers, counts: Flags | None = None) -> Sparse:
    """Return edges by source, in the given order within one. source, target, weight, counts: (edges,); `None`: all of them count."""
    order = np.arange(len(source)) if counts is None else np.flatnonzero(counts)
    order = order[np.argsort(source[order], kind="stable")]
    start = np.zeros(sources + 1, dtype=np.int64)
    np.cumsum(np.bincount(source[order], minlength=sources), out=start[1:])
    return Sparse(start, order, target, weight)


def _mass(to_paths: Links, similarities: Numbers, paths: int) -> Numbers:
    """Return (paths,) what reaches each path: sum_i Sim(q, q_i) w_qt(i, j)."""
    return _sums(to_paths.target, similarities[to_paths.source] * to_paths.factor * to_paths.weight, paths)


def _sums(place: Places, amount: Numbers, places: int) -> Numbers:
    """Return (places,) the sum of what falls on each place."""
    return np.bincount(place, amount, places).astype(np.float64)  # integers when there is nothing

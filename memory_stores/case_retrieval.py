"""Which cases a planner is shown: retrieval policies mu(c | s, M), behind one interface (Memento, sections 2.3 to 2.6).

    none                nothing
    cosine_topk         Eq. 13: the K cases whose tasks are most like the query
    neural_q_topk       Eq. 16: the K cases with the highest Q(s, c)
    ec_kernel_softmax   Eq. 9 and 7: K cases drawn from softmax(Q / alpha), Q from past uses of the same case
    tabular_q           Eq. 7 on a table; for toy problems and tests
    random_k            K cases at random: the control

A policy knows vectors and numbers; it does not know a bank, a graph or a trainer. What it has learned (a head, entries) stands in an
attribute that a learner may replace between two calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, runtime_checkable
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from memweave.errors import SettingsError
from memweave.memory_stores.case_head import QHead
from memweave.memory_stores.case_kernel import PRIOR_Q, Kernel, Uses
from memweave.records import ReplayRow

Vector = NDArray[np.float32]
Matrix = NDArray[np.float32]
Scores = NDArray[np.float64]

PREFILTER: Final = 64
"""Cases, by cosine, that a Q-function ranks."""


@dataclass(frozen=True, slots=True)
class CaseQuery:
    """What is asked for."""

    text: str
    vector: Vector
    """(d,), length 1."""
    task_id: str | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """The cases to choose from, best cosine first."""

    ids: Sequence[UUID]
    vectors: Matrix
    """(n, d), rows of length 1."""
    rewards: Scores
    """(n,); NaN for a case that nobody verified."""
    cosines: Scores
    """(n,)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One case that was chosen."""

    index: int
    """Among the candidates."""
    score: float
    probability: float | None = None
    """Of its being drawn after those before it (Plackett-Luce); `None` where nothing is drawn."""


@runtime_checkable
class RetrievalPolicy(Protocol):
    """Chooses the cases that a planner is shown."""

    @property
    def name(self) -> str:
        """Return the name in settings, records and tables."""

    @property
    def prefilter(self) -> int | None:
        """Return how many cases, by cosine, it wants to choose from; `None`: all."""

    def choose(self, query: CaseQuery, candidates: Candidates, k: int, rng: np.random.Generator) -> list[Choice]:
        """Return up to `k` different cases, in the order in which they are shown."""


class CaseLearner(Protocol):
    """Learns from finished queries which cases help."""

    def observe(self, rows: Sequence[ReplayRow], query: Vector, cases: Matrix, case_rewards: Scores) -> None:
        """Take in one query: a row for each case that it was shown.

        query: (d,).  cases: (n, d), as the rows.  case_rewards: (n,) of the cases themselves, NaN for none.
        """


@runtime_checkable
class WatchesBank(Protocol):
    """A learner that has to know how the bank grows: M' of algorithm 1."""

    def grew(self, case: UUID) -> None:
        """Take in that a case entered the bank; told before `observe` of the query that it is about."""


@dataclass(frozen=True)
class TriedSets:
    """Several sets of cases that were drawn for one query, and what came of each."""

    query: Vector
    """(d,)."""
    candidates: Candidates
    chosen: NDArray[np.int64]
    """(g, k) places among the candidates, in the order in which they were drawn."""
    log_probability: Scores
    """(g,) of drawing each set in its order (Plackett-Luce)."""
    rewards: Scores
    """(g,)."""


class SetLearner(Protocol):
    """Learns from sets of cases that were drawn for the same query."""

    def learn(self, tried: Sequence[TriedSets]) -> None:
        """Take in what came of the sets of some queries."""


# drawing


@dataclass(frozen=True)
class Explore:
    """How often something else than the best is chosen. topk: never.  softmax: drawn by exp(Q / alpha).  eps: each with `eps` at random."""

    mode: Literal["topk", "softmax", "eps"] = "topk"
    alpha: float = 0.1
    """Temperature of `softmax` (Eq. 7)."""
    eps: float = 0.1

    def __post_init__(self) -> None:
        if not self.alpha > 0 or not 0 <= self.eps <= 1:
            raise SettingsError(f"alpha = {self.alpha}, eps = {self.eps}: give a number above 0, and 0 to 1")

    def pick(self, scores: Scores, k: int, rng: np.random.Generator) -> list[Choice]:
        """Return up to `k` places in `scores` (n,), by this rule; equal scores in their order."""
        if self.mode == "softmax":
            return drawn(scores, self.alpha, k, rng)
        best = [int(i) for i in np.argsort(-scores, kind="stable")]
        chosen = best[:k]
        if self.mode == "eps":
            rest = best[k:]
            for place in range(len(chosen)):
                if rest and rng.random() < self.eps:
                    chosen[place] = rest.pop(int(rng.integers(len(rest))))
        return [Choice(i, float(scores[i])) for i in chosen]


TOPK: Final = Explore()


def softmax(scores: Scores, alpha: float) -> Scores:
    """Return mu(c | s, M) = exp(Q / alpha) / sum exp(Q / alpha) (Eq. 7); (n,) that add up to 1."""
    weights: Scores = np.exp((scores - scores.max()) / alpha) if len(scores) else scores
    return weights / weights.sum() if len(scores) else scores


def drawn(scores: Scores, alpha: float, k: int, rng: np.random.Generator) -> list[Choice]:
    """Return `k` different places drawn one after the other from softmax(scores / alpha), each with its probability then."""
    left, found = list(range(len(scores))), list[Choice]()
    while left and len(found) < k:
        probabilities = softmax(scores[left], alpha)
        place = int(rng.choice(len(left), p=probabilities))
        found.append(Choice(left[place], float(scores[left[place]]), max(float(probabilities[place]), 1e-300)))
        del left[place]
    return found


# the policies


@dataclass
class NoCases:
    """Shows nothing: the system without case-based reasoning."""

    name: str = field(default="none", init=False)
    prefilter: int | None = field(default=0, init=False)

    def choose(self, query: CaseQuery, candidates: Candidates, k: int, rng: np.random.Generator) -> list[Choice]:
        """Return nothing."""
        return []


@dataclass
class CosineTopK:
    """The non-parametric policy (Eq. 13): successes and failures alike."""

    name: str = field(default="cosine_topk", init=False)

    @property
    def prefilter(self) -> int | None:
        """Return 1: no more than the K best are needed."""
        return 1

    def choose(self, query: CaseQuery, candidates: Candidates, k: int, rng: np.random.Generator) -> list[Choice]:
        """Return the `k` best by cosine."""
        return TOPK.pick(candidates.cosines, k, rng)


@dataclass
class RandomK:
    """The control: cases of the same bank, whatever they are about."""

    name: str = field(default="random_k", init=False)
    prefilter: int | None = field(default=None, init=False)

    def choose(self, query: CaseQuery, candidates: Candidates, k: int, rng: np.random.Generator) -> list[Choice]:
        """Return `k` cases, each as probable as the others."""
        return drawn(np.zeros(len(candidates.ids)), 1.0, k, rng)


@dataclass
class NeuralQTopK:
    """The parametric policy (Eq. 16). Without a head, nothing is learned yet, and it goes by cosine."""

    head: QHead | None = None
    prefilter: int | None = PREFILTER
    explore: Explore = TOPK
    beside_cosine: bool = False
    """Whether the head says what is to be added to the cosine; otherwise it replaces it."""
    name: str = field(default="neural_q_topk", init=False)

    def choose(self, query: CaseQuery, candidates: Candidates, k: int, rng: np.random.Generator) -> list[Choice]:
        """Return the `k` best by Q, or with exploration, others now and then."""
        head = self.head  # a learner may replace it meanwhile
        if head is None:
            return self.explore.pick(candidates.cosines, k, rng)
        scores = head.q(query.vector, candidates.vectors, candidates.rewards).astype(np.float64)
        if self.beside_cosine:
            scores += candidates.cosines
        return self.explore.pick(scores, k, rng)


@dataclass
class ECKernelSoftmax:
    """Episodic control (Eq. 9 and 7): what a case did for queries like this one decides how probably it is drawn."""

    uses: Mapping[UUID, Uses] = field(default_factory=dict)
    kernel: Kernel = field(default_factory=Kernel)
    explore: Explore = field(default_factory=lambda: Explore("softmax"))
    prefilter: int | None = PREFILTER
    name: str = field(default="ec_kernel_softmax", init=False)

    def choose(self, query: CaseQuery, candidates: Candidates, k: int, rng: np.random.Generator) -> list[Choice]:
        """Return `k` cases drawn from softmax(Q_EC / alpha)."""
        uses, kernel = self.uses, self.kernel
        scores = np.array([kernel.estimate(query.vector, uses.get(case)) for case in candidates.ids])
        return self.explore.pick(scores, k, rng)


@dataclass
class TabularQ:
    """Eq. 7 on a table of Q by (query's text, case); for toy problems and tests."""

    table: Mapping[tuple[str, UUID], float] = field(default_factory=dict)
    explore: Explore = field(default_factory=lambda: Explore("softmax"))
    prefilter: int | None = field(default=None, init=False)
    name: str = field(default="tabular_q", init=False)

    def choose(self, query: CaseQuery, candidates: Candidates, k: int, rng: np.random.Generator) -> list[Choice]:
        """Return `k` cases drawn from softmax(Q / alpha); an entry that is not there is `PRIOR_Q`."""
        scores = np.array([self.table.get((query.text, case), PRIOR_Q) for case in candidates.ids])
        return self.explore.pick(scores, k, rng)


POLICIES: Final[Mapping[str, Callable[[], RetrievalPolicy]]] = {
    "none": NoCases,
    "cosine_topk": CosineTopK,
    "neural_q_topk": NeuralQTopK,
    "ec_kernel_softmax": ECKernelSoftmax,
    "random_k": RandomK,
}
"""By the names that settings use."""


def retrieval_policy(name: str) -> RetrievalPolicy:
    """Return a new policy that has learned nothing. Raises `SettingsError` for a name that does not exist."""
    if name not in POLICIES:
        raise SettingsError(f"there is no retrieval policy {name!r}. There are: {', '.join(POLICIES)}")
    return POLICIES[name]()

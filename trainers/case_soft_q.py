"""Soft Q-learning of which case to retrieve, by episodic control with a kernel that is learned (Memento, Eq. 7 to 10, algorithm 1).

What a case did is remembered with the query it was shown for: D = {(s, c, Q)}. In a single step, Q is the reward itself. In several
steps, it is the TD target of that moment; the next state is the next query, and M' is the bank with the case of this one added (2.5).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memweave.errors import SettingsError
from memweave.memory_stores.case_kernel import PRIOR_Q, Kernel, Uses
from memweave.memory_stores.case_retrieval import ECKernelSoftmax, Matrix, Scores, Vector
from memweave.records import ReplayRow
from memweave.trainers.case_kernel import remember
from memweave.trainers.learner_state import check_state, read_state, write_state
from memweave.trainers.soft_q import follow, log_kernel, q_ec, td_step, td_target

STATE_FORMAT: Final = 1
NONE: Final = -1
"""Instead of the number of a next query: there is none."""
Places = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SoftQSettings:
    """How a kernel is learned. The paper gives no values (A12)."""

    gamma: float = 0.0
    """Discount of the next query's value; 0: every query is an episode of a single step."""
    eta: float = 0.0
    """How far a step moves the remembered Q of its rows towards their new targets (Eq. 8); 0: they stay as they were written."""
    literal: bool = False
    """The log-sum-exp as printed (A1)."""
    hidden: int | None = None
    """Rows of W; `None`: as many as the embedding has, and W begins as the identity. Fewer begin as a random projection."""
    learning_rate: float = 1e-3
    clip: float = 1.0
    batch: int = 32
    update_every: int = 32
    """Queries between updates."""
    minibatches: int = 8
    """Steps of each update."""
    target_every: int = 100
    """Steps between moves of the target network (K_tgt)."""
    beta: float = 0.99
    """Share of the target network that stays at a move."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "update_every", "minibatches", "target_every"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.hidden is not None and self.hidden < 1:
            raise SettingsError(f"hidden = {self.hidden} must be at least 1, or None")
        if not 0 <= self.gamma < 1 or not 0 <= self.eta <= 1 or not 0 <= self.beta <= 1 or not self.learning_rate > 0:
            raise SettingsError(
                f"gamma = {self.gamma}, eta = {self.eta}, beta = {self.beta}, learning_rate = {self.learning_rate}: give 0 to below 1, "
                "0 to 1, 0 to 1, and above 0"
            )


class Growing:
    """An array that grows at its end."""

    def __init__(self, kind: type[np.generic], *shape: int) -> None:
        self._room = np.zeros((64, *shape), dtype=kind)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, rows: NDArray[Any]) -> None:
        """Append rows, (n, ...)."""
        end = self._count + len(rows)
        if end > len(self._room):
            wider = np.zeros((2 * end, *self._room.shape[1:]), dtype=self._room.dtype)
            wider[: self._count] = self.values
            self._room = wider
        self._room[self._count : end] = rows
        self._count = end

    @property
    def values(self) -> NDArray[Any]:
        """Return the rows so far; writing into it changes them."""
        return self._room[: self._count]


_COLUMNS: Final[Mapping[str, type[np.generic]]] = {
    "query": np.int64,  # its number
    "case": np.int64,  # its number, in the order in which cases came into the bank
    "reward": np.float64,
    "after": np.int64,  # number of the next query s', or NONE
    "bank": np.int64,  # how many cases are in M'
    "q": np.float64,  # as remembered in D; NaN while s' is not known
}


@dataclass
class SoftQLearner:
    """Algorithm 1: learns the map W of a policy's kernel by Eq. 10 while the agent works. A `CaseLearner` that watches the bank.

    The policy draws cases by Eq. 7 and 9, and its temperature `explore.alpha` is the one of the targets. A use of a case says nothing
    about itself: what a row's own entry of D says is left out when Eq. 10 is fitted to it, or the nearest neighbour of every row would be
    the row. The policy sees a query as soon as its Q is known, and a new W after every update.

    Safe to call from several threads; with one order of queries and one seed it always learns the same.
    """

    policy: ECKernelSoftmax
    dimension: int
    encoder: str
    settings: SoftQSettings = field(default_factory=SoftQSettings)
    cases: Sequence[UUID] = ()
    """Of the bank, before the first query."""

    def __post_init__(self) -> None:
        settings = self.settings
        self._lock = threading.Lock()
        self._rng = np.random.default_rng([settings.seed, 11])
        start = self._start()
        self.weights = start.clone().requires_grad_()
        """W, (h, d)."""
        self.slow = start
        """The target network's."""
        self._optimizer = torch.optim.Adam([self.weights], lr=settings.learning_rate)
        self._queries = Growing(np.float32, self.dimension)
        self._columns = {name: Growing(kind) for name, kind in _COLUMNS.items()}
        self._ids: list[UUID] = []
        """Of the cases, by number."""
        self._numbers: dict[UUID, int] = {}
        self._waiting = 0
        """The first row whose Q is not known."""
        for case in self.cases:
            self._number(case)
        self.seen = 0
        """Queries so far."""
        self.steps = 0
        self.losses: list[float] = []
        """Mean loss of each update."""
        prior = PRIOR_Q / (1 - settings.gamma)  # the prior reward, for ever
        self.policy.kernel = replace(self.policy.kernel, prior=prior)

    def _start(self) -> Tensor:
        given = self.policy.kernel.weights
        if given is not None:
            return torch.from_numpy(given.copy())
        if self.settings.hidden is None:
            return torch.eye(self.dimension)
        drawn = np.random.default_rng([self.settings.seed, 12]).normal(size=(self.settings.hidden, self.dimension))
        return torch.from_numpy((drawn / np.sqrt(self.settings.hidden)).astype(np.float32))

    # what happens

    def grew(self, case: UUID) -> None:
        """Take in that a case entered the bank; see `WatchesBank`."""
        with self._lock:
            self._number(case)

    def _number(self, case: UUID) -> int:
        if case not in self._numbers:
            self._numbers[case] = len(self._ids)
            self._ids.append(case)
        return self._numbers[case]

    def _append(self, **rows: NDArray[Any]) -> None:
        for name, values in rows.items():
            self._columns[name].append(values)

    def observe(self, rows: Sequence[ReplayRow], query: Vector, cases: Matrix, case_rewards: Scores) -> None:
        """Take in one query; see `CaseLearner`. It is the next state of the one before, whose Q is written now."""
        with self._lock:
            number, shown = len(self._queries), len(rows)
            self._queries.append(query[None])
            self._arrived(number)
            self._append(
                query=np.full(shown, number),
                case=np.array([self._number(row.case_id) for row in rows], dtype=np.int64),
                reward=np.array([row.reward for row in rows], dtype=np.float64),
                after=np.full(shown, NONE),
                bank=np.full(shown, len(self._ids)),
                q=np.full(shown, np.nan),
            )
            if not self.settings.gamma:  # a final state: nothing to wait for
                self._arrived(NONE)
            self.seen += 1
            if self.seen % self.settings.update_every == 0 and self._waiting:
                self._update()

    def _arrived(self, after: int) -> None:
        """Write the Q of the rows that waited for their next query (D)."""
        places = np.arange(self._waiting, len(self._columns["q"]))
        if not len(places):
            return
        self._columns["after"].values[places] = after
        self._columns["q"].values[places] = q = self._targets(places)
        case, query = (self._columns[name].values[places] for name in ("case", "query"))
        remember(
            self.policy,
            [(self._ids[c], self._queries.values[s].copy(), float(y)) for c, s, y in zip(case, query, q, strict=True)],
        )
        self._waiting = len(self._columns["q"])

    # targets

    def _targets(self, places: Places) -> Scores:
        """Return y of rows: r + gamma times the soft maximum of Q_EC(s', M', .) with the target network (Eq. 10)."""
        reward, after, bank = (self._columns[name].values[places] for name in ("reward", "after", "bank"))
        y: Scores = reward.copy()
        if not self.settings.gamma:
            return y
        kernel = replace(self.policy.kernel, weights=self.slow.numpy())
        mapped = kernel.mapped(self._queries.values)
        for following, size in sorted(set(zip(after.tolist(), bank.tolist(), strict=True))):
            same = (after == following) & (bank == size)
            next_q = np.zeros(0) if following == NONE else self._next_q(kernel, mapped, following, size)
            y[same] = td_target(
                torch.from_numpy(reward[same]),
                torch.from_numpy(next_q)[None],
                self.policy.explore.alpha,
                self.settings.gamma,
                literal=self.settings.literal,
            ).numpy()
        return y

    def _next_q(self, kernel: Kernel, mapped: Matrix, query: int, bank: int) -> Scores:
        """Return (bank,) Q_EC(s', M', c) of the first `bank` cases, by what is remembered now. mapped: all queries, (n, h)."""
        case, asked, q = (self._columns[name].values[: self._waiting] for name in ("case", "query", "q"))
        there = case < bank
        found = np.full(bank, kernel.prior)
        if there.any():
            used, values = kernel.estimates(mapped[query], mapped[asked[there]], case[there], q[there])
            found[used] = values
        return found

    # steps

    def _update(self) -> None:
        losses = []
        for _ in range(self.settings.minibatches):
            places = self._rng.choice(self._waiting, min(self.settings.batch, self._waiting), replace=False)
            targets = self._targets(places)
            loss = self._loss(places, targets)
            if loss is not None:
                self._optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation lacks a return type
                torch.nn.utils.clip_grad_norm_([self.weights], self.settings.clip)
                self._optimizer.step()
                losses.append(float(loss.detach()))
            if self.settings.eta:
                old = torch.from_numpy(self._columns["q"].values[places])
                self._columns["q"].values[places] = td_step(old, torch.from_numpy(targets), self.settings.eta).numpy()
            self.steps += 1
            if self.steps % self.settings.target_every == 0:
                self.slow = follow(self.slow, self.weights.detach(), self.settings.beta)
        if losses:
            self.losses.append(float(np.mean(losses)))
        self._publish()

    def _loss(self, places: Places, targets: Scores) -> Tensor | None:
        """Return Eq. 10, the mean over rows; `None` when no case of theirs was used twice."""
        case, asked, q = (self._columns[name].values[: self._waiting] for name in ("case", "query", "q"))
        pasts = [self._past(case, place) for place in places]
        kept = [i for i, past in enumerate(pasts) if len(past)]
        if not kept:
            return None
        needed, inverse = np.unique(
            np.concatenate([[asked[places[i]], *asked[pasts[i]]] for i in kept]), return_inverse=True
        )
        mapped = torch.from_numpy(self._queries.values[needed]) @ self.weights.T
        kernel, errors, start = self.policy.kernel, list[Tensor](), 0
        for i in kept:
            end = start + 1 + len(pasts[i])
            here, past = mapped[inverse[start]], mapped[inverse[start + 1 : end]]
            near, known = log_kernel(here, past, kernel.kind, kernel.sigma), torch.from_numpy(q[pasts[i]]).float()
            if len(near) > kernel.neighbours:
                near, order = torch.topk(near, kernel.neighbours)
                known = known[order]
            errors.append((q_ec(near, known) - float(targets[i])) ** 2)
            start = end
        return torch.stack(errors).mean()

    @staticmethod
    def _past(case: Places, place: int) -> Places:
        """Return the other uses of a row's case."""
        same = np.flatnonzero(case == case[place])
        others: Places = same[same != place]
        return others

    def _publish(self) -> None:
        """Give the policy the new kernel, and what is remembered where that has changed."""
        mine = self.weights.detach().numpy().copy()
        self.policy.kernel = replace(self.policy.kernel, weights=mine, encoder=self.encoder)
        if self.settings.eta:
            self.policy.uses = self._uses()

    def _uses(self) -> dict[UUID, Uses]:
        case, asked, q = (self._columns[name].values[: self._waiting] for name in ("case", "query", "q"))
        order = np.argsort(case, kind="stable")
        numbers, first = np.unique(case[order], return_index=True)
        return {
            self._ids[number]: Uses(self._queries.values[asked[same]].copy(), q[same].copy())
            for number, same in zip(numbers, np.split(order, first[1:]), strict=True)
        }

    # going on later

    def save(self, file: Path) -> None:
        """Write weights, optimiser and experience, to go on from; the file appears complete."""
        with self._lock:
            state = {
                **self._mine(),
                "format": STATE_FORMAT,
                "weights": self.weights.detach(),
                "slow": self.slow,
                "optimizer": self._optimizer.state_dict(),
                "random": self._rng.bit_generator.state,
                "cases": [case.hex for case in self._ids],
                "queries": torch.from_numpy(self._queries.values.copy()),
                "rows": {name: torch.from_numpy(rows.values.copy()) for name, rows in self._columns.items()},
                "counts": [self._waiting, self.seen, self.steps],
                "losses": self.losses,
            }
            write_state(file, state)

    def load(self, file: Path) -> None:
        """Go on from what `save` wrote. Raises `FormatError`, `SettingsError` for a file of another kind."""
        state = read_state(file)
        check_state(state, STATE_FORMAT, self._mine())
        with self._lock:
            with torch.no_grad():
                self.weights.copy_(state["weights"])
            self.slow = state["slow"]
            self._optimizer.load_state_dict(state["optimizer"])
            self._rng.bit_generator.state = state["random"]
            self._ids = [UUID(case) for case in state["cases"]]
            self._numbers = {case: number for number, case in enumerate(self._ids)}
            self._queries = Growing(np.float32, self.dimension)
            self._queries.append(state["queries"].numpy())
            self._columns = {name: Growing(kind) for name, kind in _COLUMNS.items()}
            for name, rows in self._columns.items():
                rows.append(state["rows"][name].numpy())
            self._waiting, self.seen, self.steps = state["counts"]
            self.losses = list(state["losses"])
            self.policy.uses = self._uses()
            if self.steps:
                self._publish()

    def _mine(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "dimension": self.dimension, "encoder": self.encoder}

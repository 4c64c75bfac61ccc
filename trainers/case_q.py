"""The neural Q-function of case retrieval, trained: online while an agent works, and offline on rows (Memento, section 4).

    L = mean[ -w r log Q - (1 - r) log(1 - Q) ],  Q(s, c) = p(r = 1 | s, c)          (Eq. 15; w: weight of positive rows)

The text encoder is frozen; what is trained is the head of `memweave.memory_stores.case_head`, two layers on [enc(c) ; enc(s)].
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from memweave.errors import SettingsError
from memweave.memory_stores.case_head import QHead
from memweave.memory_stores.case_retrieval import Matrix, NeuralQTopK, Scores, Vector
from memweave.records import ReplayRow
from memweave.trainers.learner_state import check_state, read_state, write_state

LabelMode = Literal["set", "single", "loo"]
"""set: every case that was shown gets the query's reward, as in the official code.  single: only queries that were shown one case
count.  loo: cases get their own credit, found by leaving one out (`ReplayRow.credit`); rows without one do not count (A5)."""
STATE_FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True)
class CaseQSettings:
    """How a Q-function is trained."""

    hidden: int = 512
    dropout: float = 0.2
    learning_rate: float = 1e-3
    """The official code fine-tunes an encoder at 2e-5; a head on frozen embeddings takes more."""
    weight_decay: float = 0.01
    clip: float = 1.0
    batch: int = 32
    update_every: int = 32
    """Queries between updates."""
    minibatches: int = 8
    """Of each update, drawn uniformly from all experience (n_sgd)."""
    label_mode: LabelMode = "set"
    label_input: bool = False
    """Whether the case's own reward is an input."""
    balance: bool = False
    """Weigh positive rows by max(1, negatives / positives), as the official code does."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden", "batch", "update_every", "minibatches"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} = {getattr(self, name)} must be at least 1")
        if not 0 <= self.dropout < 1 or not self.learning_rate > 0:
            raise SettingsError(
                f"dropout = {self.dropout}, learning_rate = {self.learning_rate}: give 0 to 1, and above 0"
            )
        if self.label_mode not in ("set", "single", "loo"):
            raise SettingsError(f"there is no label mode {self.label_mode!r}. There are: set, single, loo")


@dataclass
class Rows:
    """Rows of experience as numbers."""

    queries: Matrix
    """(n, d)."""
    cases: Matrix
    """(n, d)."""
    case_rewards: Scores
    """(n,) of the cases themselves; NaN for none."""
    rewards: Scores
    """(n,) what to predict."""

    def __len__(self) -> int:
        return len(self.rewards)

    def take(self, places: NDArray[np.int64]) -> Rows:
        """Return some of the rows."""
        return Rows(self.queries[places], self.cases[places], self.case_rewards[places], self.rewards[places])


class Experience:
    """Rows of experience that grow; what is there already is not copied for each update."""

    def __init__(self, dimension: int) -> None:
        self._rows = _room(256, dimension)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, query: Vector, cases: Matrix, case_rewards: Scores, rewards: Sequence[float]) -> None:
        """Append one row for each case that a query was shown."""
        number = len(rewards)
        self.extend(Rows(np.repeat(query[None], number, axis=0), cases, case_rewards, np.array(rewards)))

    def extend(self, more: Rows) -> None:
        """Append rows."""
        end = self._count + len(more)
        if end > len(self._rows):
            wider = _room(2 * end, self._rows.queries.shape[1])
            for name, values in vars(self.rows()).items():
                getattr(wider, name)[: self._count] = values
            self._rows = wider
        for name, values in vars(more).items():
            getattr(self._rows, name)[self._count : end] = values
        self._count = end

    def rows(self) -> Rows:
        """Return all rows so far, without a copy."""
        held, n = self._rows, self._count
        return Rows(held.queries[:n], held.cases[:n], held.case_rewards[:n], held.rewards[:n])


def _room(number: int, dimension: int) -> Rows:
    queries, cases = (np.zeros((number, dimension), dtype=np.float32) for _ in range(2))
    return Rows(queries, cases, np.zeros(number), np.zeros(number))


class _Head(nn.Module):
    """The head in torch; `exported` gives the one that retrieval uses."""

    def __init__(self, dimension: int, settings: CaseQSettings) -> None:
        super().__init__()
        self.first = nn.Linear(2 * dimension + settings.label_input, settings.hidden)
        self.dropout = nn.Dropout(settings.dropout)
        self.second = nn.Linear(settings.hidden, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (n,) log-odds of r = 1."""
        logits: Tensor = self.second(self.dropout(functional.relu(self.first(inputs))))
        return logits[:, 1] - logits[:, 0]


def bce(log_odds: Tensor, rewards: Tensor, positive_weight: float = 1.0) -> Tensor:
    """Return Eq. 15, the mean over (n,) rows; the gradient in Q is (Q - r) / (Q (1 - Q)) (Eq. 26)."""
    return functional.binary_cross_entropy_with_logits(
        log_odds, rewards, pos_weight=torch.tensor(positive_weight, dtype=log_odds.dtype)
    )


class CaseQTrainer:
    """Trains one Q-function. Deterministic by seed; draws from no global generator."""

    def __init__(self, dimension: int, encoder: str, settings: CaseQSettings | None = None) -> None:
        self.settings = settings or CaseQSettings()
        self.dimension, self.encoder = dimension, encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            self.model = _Head(dimension, self.settings)
        self._torch_state = torch.Generator().manual_seed(self.settings.seed + 1).get_state()
        self.optimizer = torch.optim.AdamW(self._groups(), lr=self.settings.learning_rate)
        self.updates = 0

    def _groups(self) -> list[dict[str, Any]]:
        named = list(self.model.named_parameters())
        decayed = [p for name, p in named if not name.endswith("bias")]
        plain = [p for name, p in named if name.endswith("bias")]
        return [
            {"params": decayed, "weight_decay": self.settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]

    def inputs(self, rows: Rows) -> Tensor:
        """Return (n, 2 d) [case ; query], with the case's reward last where that is an input."""
        parts = [rows.cases, rows.queries]
        if self.settings.label_input:
            parts.append(np.nan_to_num(rows.case_rewards, nan=0.5)[:, None].astype(np.float32))
        return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))

    def fit(self, rows: Rows, batches: Sequence[NDArray[np.int64]]) -> float:
        """Take one step per batch of row numbers and return the mean loss (nat)."""
        weight = positive_weight(rows.rewards) if self.settings.balance else 1.0
        losses = []
        self.model.train()
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._torch_state)  # dropout draws from the global generator
            for batch in batches:
                some = rows.take(batch)
                loss = bce(self.model(self.inputs(some)), torch.from_numpy(some.rewards.astype(np.float32)), weight)
                self.step(loss)
                losses.append(float(loss.detach()))
            self._torch_state = torch.get_rng_state()
        self.updates += 1
        return float(np.mean(losses)) if losses else 0.0

    def step(self, loss: Tensor) -> None:
        """Take one step of the optimiser on a loss of `model`."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation lacks a return type
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()

    @torch.no_grad()
    def q(self, rows: Rows) -> Scores:
        """Return (n,) Q of rows."""
        self.model.eval()
        found: Scores = torch.sigmoid(self.model(self.inputs(rows))).numpy().astype(np.float64)
        return found

    def exported(self) -> QHead:
        """Return the head for retrieval: copies, which later steps do not change."""
        w1, b1, w2, b2 = (
            p.detach().numpy().copy()
            for p in (self.model.first.weight, self.model.first.bias, self.model.second.weight, self.model.second.bias)
        )
        return QHead(w1, b1, w2, b2, encoder=self.encoder, label_input=self.settings.label_input)

    def state(self) -> dict[str, Any]:
        """Return everything that it needs to go on."""
        return {
            "format": STATE_FORMAT,
            "settings": asdict(self.settings),
            "dimension": self.dimension,
            "encoder": self.encoder,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self._torch_state,
            "updates": self.updates,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises `FormatError`, `SettingsError` for one of another kind."""
        mine = {"settings": asdict(self.settings), "dimension": self.dimension, "encoder": self.encoder}
        check_state(state, STATE_FORMAT, mine)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._torch_state, self.updates = state["random"], state["updates"]


def positive_weight(rewards: Scores) -> float:
    """Return max(1, negatives / positives)."""
    positive = float((rewards >= 0.5).sum())
    return max(1.0, (len(rewards) - positive) / positive) if positive else 1.0


@dataclass
class OnlineCaseQ:
    """Learns the policy's Q-function while the agent works: a `CaseLearner` (section 4, the loop).

    After every `update_every` queries, `minibatches` steps on experience drawn uniformly; then the policy gets the new head at once.
    Safe to call from several threads; with one order of queries and one seed it always learns the same.
    """

    policy: NeuralQTopK
    dimension: int
    encoder: str
    settings: CaseQSettings = field(default_factory=CaseQSettings)

    def __post_init__(self) -> None:
        self.trainer = CaseQTrainer(self.dimension, self.encoder, self.settings)
        self._rng = np.random.default_rng([self.settings.seed, 7])
        self._lock = threading.Lock()
        self._seen = Experience(self.dimension)
        self.seen = 0
        """Queries so far."""
        self.losses: list[float] = []
        """Mean loss of each update."""

    def observe(self, rows: Sequence[ReplayRow], query: Vector, cases: Matrix, case_rewards: Scores) -> None:
        """Take in one query; see `CaseLearner`."""
        with self._lock:
            self.seen += 1
            labels = [self._label(row, len(rows)) for row in rows]
            if known := [place for place, label in enumerate(labels) if label is not None]:
                said = [label for label in labels if label is not None]
                self._seen.add(query, cases[known], case_rewards[known], said)
            if self.seen % self.settings.update_every == 0 and len(self._seen):
                self._update()

    def _label(self, row: ReplayRow, shown: int) -> float | None:
        """Return what to predict of a row; `None` when it does not count."""
        if self.settings.label_mode == "loo":
            return row.credit
        return row.reward if self.settings.label_mode == "set" or shown == 1 else None

    def _update(self) -> None:
        rows = self._seen.rows()
        size = min(self.settings.batch, len(rows))
        batches = [self._rng.choice(len(rows), size, replace=False) for _ in range(self.settings.minibatches)]
        self.losses.append(self.trainer.fit(rows, batches))
        self.policy.head = self.trainer.exported()

    def save(self, file: Path) -> None:
        """Write weights, optimiser and experience, to go on from; the file appears complete."""
        with self._lock:
            state = {
                "trainer": self.trainer.state(),
                "random": self._rng.bit_generator.state,
                "seen": self.seen,
                "losses": self.losses,
                **{name: torch.from_numpy(values) for name, values in vars(self._seen.rows()).items()},
            }
            write_state(file, state)

    def load(self, file: Path) -> None:
        """Go on from what `save` wrote. Raises `FormatError`, `SettingsError` for a file of another kind."""
        state = read_state(file)
        with self._lock:
            self.trainer.restore(state["trainer"])
            self._rng.bit_generator.state = state["random"]
            self.seen, self.losses = state["seen"], state["losses"]
            self._seen = Experience(self.dimension)
            known = Rows(*(state[name].numpy() for name in ("queries", "cases", "case_rewards", "rewards")))
            self._seen.extend(known)
            if self.trainer.updates:
                self.policy.head = self.trainer.exported()


def auc(scores: Scores, labels: Scores) -> float | None:
    """Return the area under the ROC curve, ties counted half; `None` when there is one class only."""
    positive = labels >= 0.5
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return None
    values, ranks = np.unique(scores, return_inverse=True)
    counts = np.bincount(ranks, minlength=len(values))
    middle = np.cumsum(counts) - (counts - 1) / 2  # mean rank, from 1, of each value
    return float((middle[ranks][positive].sum() - n * (n + 1) / 2) / (n * m))

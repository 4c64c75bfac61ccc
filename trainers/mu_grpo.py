"""GRPO on the retrieval policy mu: an extension, not in the paper, off by default (section 4 of the specification).

For each query, G ordered sets of K cases are drawn from softmax(Q / alpha) without putting back; each is planned with and rewarded.
A set's probability is that of its order (Plackett-Luce), which is what `Explore("softmax")` draws from and records.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from memweave.errors import SettingsError
from memweave.memory_stores.case_retrieval import NeuralQTopK, TriedSets
from memweave.trainers.case_q import CaseQSettings, CaseQTrainer, Rows


def ordered_log_probability(scores: Tensor, chosen: Tensor) -> Tensor:
    """Return (g,) log-probability of drawing these places in this order without putting back.

    scores: (n,), already divided by alpha.  chosen: (g, k) int64, different places in each row.
    """
    left = scores.repeat(len(chosen), 1)
    total = scores.new_zeros(len(chosen))
    for place in chosen.T:
        total = total + scores[place] - torch.logsumexp(left, dim=-1)
        left = left.scatter(1, place[:, None], float("-inf"))
    return total


def advantages(rewards: Tensor) -> Tensor:
    """Return (r - mean) / std over the (g,) sets of one query, std over g; zeros when all are equal."""
    centred = rewards - rewards.mean()
    spread = rewards.std(correction=0)
    return centred / spread if float(spread) > 0 else torch.zeros_like(rewards)


def mu_grpo_loss(
    q: Tensor,
    cosines: Tensor,
    chosen: Tensor,
    old: Tensor,
    rewards: Tensor,
    *,
    alpha: float,
    epsilon: float = 0.2,
    beta: float = 0.01,
) -> Tensor:
    """Return the loss of one query: - mean min(ratio A, clip(ratio) A) + beta KL(mu || cosine prior).

    q, cosines: (n,) of the candidates; the prior is softmax(cosines / alpha).  chosen: (g, k).  old: (g,) ordered log-probabilities
    when drawn.  rewards: (g,).  The KL is exact, of the first draw.
    """
    new, gain = ordered_log_probability(q / alpha, chosen), advantages(rewards)
    ratio = torch.exp(new - old)
    surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - epsilon, 1 + epsilon) * gain).mean()
    log_mu = torch.log_softmax(q / alpha, dim=-1)
    kl = (log_mu.exp() * (log_mu - torch.log_softmax(cosines / alpha, dim=-1))).sum()
    return beta * kl - surrogate


@dataclass(frozen=True, kw_only=True)
class MuGRPOSettings:
    """How mu is trained."""

    epsilon: float = 0.2
    beta: float = 0.01
    """Weight of the KL to the cosine prior."""
    epochs: int = 2
    """Times that the sets of a call are gone through."""
    batch: int = 8
    """Queries of a step."""
    hidden: int = 512
    learning_rate: float = 1e-3
    label_input: bool = False
    """Whether the case's own reward is an input."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or not self.epsilon > 0 or self.beta < 0:
            raise SettingsError(
                f"epochs = {self.epochs}, batch = {self.batch}, epsilon = {self.epsilon}, beta = {self.beta}: give 1 or more, 1 or more, "
                "above 0, and 0 or more"
            )


@dataclass
class MuGRPO:
    """Trains a policy's Q(s, c) = cosine + head on sets of cases that were tried for the same query: a `SetLearner`.

    The head begins as a constant, so mu begins as its prior, softmax(cosine / alpha). The policy has to draw by softmax, and add its
    head to the cosine. Deterministic by seed and order; after every call the policy has the new head.
    """

    policy: NeuralQTopK
    dimension: int
    encoder: str
    settings: MuGRPOSettings = field(default_factory=MuGRPOSettings)

    def __post_init__(self) -> None:
        if self.policy.explore.mode != "softmax" or not self.policy.beside_cosine:
            raise SettingsError("mu-GRPO needs a policy with explore=Explore('softmax') and beside_cosine=True")
        settings = self.settings
        head = CaseQSettings(
            hidden=settings.hidden,
            dropout=0.0,  # the ratio compares the same function
            learning_rate=settings.learning_rate,
            label_input=settings.label_input,
            seed=settings.seed,
        )
        self.trainer = CaseQTrainer(self.dimension, self.encoder, head)
        for parameter in self.trainer.model.second.parameters():
            nn.init.zeros_(parameter)
        self._rng = np.random.default_rng([settings.seed, 13])
        self._lock = threading.Lock()
        self.losses: list[float] = []
        """Mean loss of each call."""

    def learn(self, tried: Sequence[TriedSets]) -> None:
        """Take in what came of the sets of some queries; see `SetLearner`. Sets of nothing teach nothing."""
        given = [each for each in tried if each.chosen.size]
        if not given:
            return
        with self._lock:
            losses = []
            for _ in range(self.settings.epochs):
                order = self._rng.permutation(len(given))
                for start in range(0, len(order), self.settings.batch):
                    losses.append(self._step([given[i] for i in order[start : start + self.settings.batch]]))
            self.losses.append(float(np.mean(losses)))
            self.policy.head = self.trainer.exported()

    def _step(self, tried: Sequence[TriedSets]) -> float:
        loss = torch.stack([self._loss(each) for each in tried]).mean()
        self.trainer.step(loss)
        return float(loss.detach())

    def _loss(self, tried: TriedSets) -> Tensor:
        shown, cosines = tried.candidates, torch.from_numpy(tried.candidates.cosines)
        rows = Rows(np.repeat(tried.query[None], len(shown.ids), axis=0), shown.vectors, shown.rewards, shown.cosines)
        return mu_grpo_loss(
            cosines + torch.sigmoid(self.trainer.model(self.trainer.inputs(rows))),
            cosines,
            torch.from_numpy(tried.chosen),
            torch.from_numpy(tried.log_probability),
            torch.from_numpy(tried.rewards),
            alpha=self.policy.explore.alpha,
            epsilon=self.settings.epsilon,
            beta=self.settings.beta,
        )

"""The arms of a stream of PlanWorld: which cases a planner is shown, and what is kept (specification, section 8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import numpy as np

from memweave.memory_stores.case_retrieval import (
    Candidates,
    CaseLearner,
    CaseQuery,
    Choice,
    CosineTopK,
    ECKernelSoftmax,
    Explore,
    NeuralQTopK,
    NoCases,
    RandomK,
    RetrievalPolicy,
)

Fits = Callable[[str, UUID], bool]
"""Whether a case is about the rule of a query (its text), and was solved. Only the oracle knows."""


@dataclass
class Oracle:
    """Shows cases of the same rule that were solved, the most similar first: the best that retrieval can do."""

    fits: Fits
    name: str = field(default="oracle", init=False)
    prefilter: int | None = field(default=None, init=False)

    def choose(self, query: CaseQuery, candidates: Candidates, k: int, rng: np.random.Generator) -> list[Choice]:
        """Return up to `k` cases that fit."""
        order = np.argsort(-candidates.cosines, kind="stable")
        fitting = [int(i) for i in order if self.fits(query.text, candidates.ids[int(i)])]
        return [Choice(i, float(candidates.cosines[i])) for i in fitting[:k]]


@dataclass(frozen=True)
class Arm:
    """One arm."""

    policy: Callable[[Fits], RetrievalPolicy]
    learner: Callable[[RetrievalPolicy, int, str, int], CaseLearner] | None = None
    """From the policy, the dimension and name of the embedding, and the seed."""
    shuffled: bool = False
    """Whether the rewards of a batch are dealt out at random before anything is kept or learned."""
    successes: bool = False
    """Whether only solved tasks are kept."""
    tries: int = 1
    """Plans for a task; it counts as solved if one of them was right."""


def _neural_q(policy: RetrievalPolicy, dimension: int, encoder: str, seed: int) -> CaseLearner:
    from memweave.trainers.case_q import CaseQSettings, OnlineCaseQ

    assert isinstance(policy, NeuralQTopK)
    return OnlineCaseQ(
        policy, dimension, encoder, CaseQSettings(learning_rate=3e-3, minibatches=16, label_input=True, seed=seed)
    )


def _kernel(policy: RetrievalPolicy, dimension: int, encoder: str, seed: int) -> CaseLearner:
    from memweave.trainers.case_kernel import EpisodicControl

    assert isinstance(policy, ECKernelSoftmax)
    return EpisodicControl(policy)


PREFILTER: Final = 64

ARMS: Final = {
    "none": Arm(lambda fits: NoCases()),
    "random-k": Arm(lambda fits: RandomK()),
    "cosine": Arm(lambda fits: CosineTopK()),
    "neural-q": Arm(lambda fits: NeuralQTopK(prefilter=PREFILTER), _neural_q),
    "kernel": Arm(lambda fits: ECKernelSoftmax(prefilter=PREFILTER, explore=Explore("softmax", alpha=0.1)), _kernel),
    "oracle": Arm(Oracle),
    "shuffled": Arm(lambda fits: NeuralQTopK(prefilter=PREFILTER), _neural_q, shuffled=True),
    "successes": Arm(lambda fits: CosineTopK(), successes=True),
    "retries": Arm(lambda fits: NoCases(), tries=2),
}
"""none, random-k, cosine (non-parametric), neural-q (parametric), kernel; oracle, shuffled rewards, only successes, no memory but a
second try after a failure."""

"""The arms of a stream of PlanWorld: which cases a planner is shown, and what is kept (specification, section 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal
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
    SetLearner,
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


@dataclass
class Given:
    """Shows the cases that it is told to, in that order; a task that is not named is shown none."""

    shown: Mapping[str, Sequence[UUID]]
    """By the task's id."""
    name: str = field(default="given", init=False)
    prefilter: int | None = field(default=None, init=False)

    def choose(self, query: CaseQuery, candidates: Candidates, k: int, rng: np.random.Generator) -> list[Choice]:
        """Return the cases of this task that are still there."""
        place = {case: index for index, case in enumerate(candidates.ids)}
        wanted = [place[case] for case in self.shown.get(query.task_id or "", ()) if case in place]
        return [Choice(index, float(candidates.cosines[index])) for index in wanted]


@dataclass
class Noted:
    """Chooses as another policy, and keeps what it chose from."""

    policy: RetrievalPolicy
    found: dict[str, tuple[CaseQuery, Candidates, list[Choice]]] = field(default_factory=dict)
    """By the task's id."""
    name: str = field(default="noted", init=False)

    @property
    def prefilter(self) -> int | None:
        """Return the other policy's."""
        return self.policy.prefilter

    def choose(self, query: CaseQuery, candidates: Candidates, k: int, rng: np.random.Generator) -> list[Choice]:
        """Return what the other policy chooses."""
        chosen = self.policy.choose(query, candidates, k, rng)
        self.found[query.task_id or ""] = query, candidates, chosen
        return chosen


Learner = CaseLearner | SetLearner


@dataclass(frozen=True)
class Arm:
    """One arm."""

    policy: Callable[[Fits], RetrievalPolicy]
    learner: Callable[[RetrievalPolicy, int, str, int], Learner] | None = None
    """From the policy, the dimension and name of the embedding, and the seed."""
    shuffled: bool = False
    """Whether the rewards of a batch are dealt out at random before anything is kept or learned."""
    successes: bool = False
    """Whether only solved tasks are kept."""
    tries: int = 1
    """Plans for a task; it counts as solved if one of them was right."""
    leave_out: bool = False
    """Whether each task is played again without each case that it was shown, to see what the case did."""
    sets: int = 1
    """Sets of cases that are drawn and tried for each task; the first counts, the others are there to be learned from."""


def _neural_q(policy: RetrievalPolicy, dimension: int, encoder: str, seed: int) -> CaseLearner:
    return _online_q(policy, dimension, encoder, seed)


def _neural_q_loo(policy: RetrievalPolicy, dimension: int, encoder: str, seed: int) -> CaseLearner:
    return _online_q(policy, dimension, encoder, seed, label_mode="loo")


def _online_q(
    policy: RetrievalPolicy, dimension: int, encoder: str, seed: int, label_mode: Literal["set", "loo"] = "set"
) -> CaseLearner:
    from memweave.trainers.case_q import CaseQSettings, OnlineCaseQ

    assert isinstance(policy, NeuralQTopK)
    settings = CaseQSettings(learning_rate=3e-3, minibatches=16, label_input=True, label_mode=label_mode, seed=seed)
    return OnlineCaseQ(policy, dimension, encoder, settings)


def _episodic(policy: RetrievalPolicy, dimension: int, encoder: str, seed: int) -> CaseLearner:
    from memweave.trainers.case_kernel import EpisodicControl

    assert isinstance(policy, ECKernelSoftmax)
    return EpisodicControl(policy)


def _kernel(policy: RetrievalPolicy, dimension: int, encoder: str, seed: int) -> CaseLearner:
    from memweave.trainers.case_soft_q import SoftQLearner, SoftQSettings

    assert isinstance(policy, ECKernelSoftmax)
    return SoftQLearner(policy, dimension, encoder, SoftQSettings(minibatches=16, seed=seed))


def _soft_q(policy: RetrievalPolicy, dimension: int, encoder: str, seed: int) -> CaseLearner:
    from memweave.trainers.case_soft_q import SoftQLearner, SoftQSettings

    assert isinstance(policy, ECKernelSoftmax)
    settings = SoftQSettings(gamma=0.9, eta=0.1, target_every=1, minibatches=16, seed=seed)
    return SoftQLearner(policy, dimension, encoder, settings)


def _mu_grpo(policy: RetrievalPolicy, dimension: int, encoder: str, seed: int) -> SetLearner:
    from memweave.trainers.mu_grpo import MuGRPO, MuGRPOSettings

    assert isinstance(policy, NeuralQTopK)
    return MuGRPO(policy, dimension, encoder, MuGRPOSettings(label_input=True, seed=seed))


PREFILTER: Final = 16
"""Most similar cases that are ranked; chosen on `val` (docs/log.md), where 64 learned too slowly for a stream."""


def _drawing(fits: Fits) -> ECKernelSoftmax:
    return ECKernelSoftmax(prefilter=PREFILTER, explore=Explore("softmax", alpha=0.1))


ARMS: Final = {
    "none": Arm(lambda fits: NoCases()),
    "random-k": Arm(lambda fits: RandomK()),
    "cosine": Arm(lambda fits: CosineTopK()),
    "neural-q": Arm(lambda fits: NeuralQTopK(prefilter=PREFILTER), _neural_q),
    "neural-q-loo": Arm(lambda fits: NeuralQTopK(prefilter=PREFILTER), _neural_q_loo, leave_out=True),
    "kernel": Arm(_drawing, _kernel),
    "episodic": Arm(_drawing, _episodic),
    "soft-q": Arm(_drawing, _soft_q),
    "oracle": Arm(Oracle),
    "shuffled": Arm(lambda fits: NeuralQTopK(prefilter=PREFILTER), _neural_q, shuffled=True),
    "successes": Arm(lambda fits: CosineTopK(), successes=True),
    "retries": Arm(lambda fits: NoCases(), tries=2),
    "mu-grpo": Arm(
        lambda fits: NeuralQTopK(prefilter=PREFILTER, explore=Explore("softmax", alpha=0.1), beside_cosine=True),
        _mu_grpo,
        sets=4,
    ),
}
"""none, random-k, cosine (non-parametric), neural-q (parametric), the same with credit by leaving one out, kernel (learned), episodic
(fixed kernel), soft-q (algorithm 1 in several steps); oracle, shuffled rewards, only successes, no memory but a second try after a
failure; the extension mu-grpo."""

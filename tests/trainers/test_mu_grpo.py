"""mu-GRPO as a learner: it begins at its prior, prefers what was rewarded within a query, and learns the same with one seed."""

from __future__ import annotations

import math
from uuid import UUID

import numpy as np
import pytest

pytest.importorskip("torch")

from memweave.errors import SettingsError
from memweave.memory_stores.case_retrieval import (
    Candidates,
    CaseQuery,
    Explore,
    NeuralQTopK,
    TriedSets,
    drawn,
    softmax,
)
from memweave.trainers.mu_grpo import MuGRPO, MuGRPOSettings

D, ALPHA, N = 4, 0.2, 6
FAST = MuGRPOSettings(hidden=16, learning_rate=1e-2)


def policy() -> NeuralQTopK:
    return NeuralQTopK(explore=Explore("softmax", alpha=ALPHA), beside_cosine=True)


def asked(seed: int) -> tuple[np.ndarray, Candidates]:
    """Return a query and six cases; those whose first number is positive help."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(N, D)).astype(np.float32)
    query = rng.normal(size=D).astype(np.float32)
    return query, Candidates([UUID(int=i) for i in range(N)], vectors, rng.random(N).round(), rng.uniform(-0.1, 0.1, N))


def scores(of: NeuralQTopK, query: np.ndarray, shown: Candidates) -> np.ndarray:
    chosen = of.choose(CaseQuery("q", query), shown, N, np.random.default_rng(0))
    found = np.zeros(N)
    for choice in chosen:
        found[choice.index] = choice.score
    return found


def tried(of: NeuralQTopK, seed: int, sets: int = 6) -> TriedSets:
    query, shown = asked(seed)
    now = scores(of, query, shown)
    rng = np.random.default_rng([seed, 1])
    draws = [drawn(now, ALPHA, 2, rng) for _ in range(sets)]
    return TriedSets(
        query=query,
        candidates=shown,
        chosen=np.array([[choice.index for choice in each] for each in draws]),
        log_probability=np.array([sum(math.log(choice.probability or 0) for choice in each) for each in draws]),
        rewards=np.array([float(shown.vectors[each[0].index, 0] > 0) for each in draws]),
    )


def helpful(of: NeuralQTopK) -> float:
    """Return how probably a case that helps is drawn first, over queries that nobody learned from."""
    found = []
    for seed in range(1_000, 1_050):
        query, shown = asked(seed)
        found.append(float(softmax(scores(of, query, shown), ALPHA)[shown.vectors[:, 0] > 0].sum()))
    return float(np.mean(found))


def test_it_begins_at_its_prior() -> None:
    made = MuGRPO(policy(), D, "e", FAST)
    query, shown = asked(0)
    assert scores(made.policy, query, shown) == pytest.approx(shown.cosines)
    made.policy.head = made.trainer.exported()
    assert softmax(scores(made.policy, query, shown), ALPHA) == pytest.approx(softmax(shown.cosines, ALPHA), abs=1e-6)


def test_it_learns_to_draw_what_was_rewarded_among_the_cases_of_one_query() -> None:
    made = MuGRPO(policy(), D, "e", FAST)
    before = helpful(made.policy)
    for start in range(0, 240, 16):
        made.learn([tried(made.policy, seed) for seed in range(start, start + 16)])
    assert helpful(made.policy) > before + 0.2
    assert len(made.losses) == 15


def test_equal_rewards_teach_nothing_but_to_stay_near_the_prior() -> None:
    made = MuGRPO(policy(), D, "e", MuGRPOSettings(hidden=16, learning_rate=1e-2, beta=0.0))
    same = [
        TriedSets(each.query, each.candidates, each.chosen, each.log_probability, np.ones(6))
        for each in (tried(made.policy, seed) for seed in range(8))
    ]
    made.learn(same)
    assert made.losses == [pytest.approx(0, abs=1e-9)]
    query, shown = asked(0)
    assert softmax(scores(made.policy, query, shown), ALPHA) == pytest.approx(softmax(shown.cosines, ALPHA), abs=1e-5)


def test_sets_of_nothing_are_left_out() -> None:
    made = MuGRPO(policy(), D, "e", FAST)
    each = tried(made.policy, 0)
    made.learn([])
    made.learn([TriedSets(each.query, each.candidates, np.zeros((6, 0), dtype=np.int64), np.zeros(6), each.rewards)])
    assert made.losses == []
    assert made.policy.head is None


def test_one_seed_learns_the_same() -> None:
    made = [MuGRPO(policy(), D, "e", FAST) for _ in range(2)]
    for each in made:
        each.learn([tried(each.policy, seed) for seed in range(8)])
    first, second = (each.policy.head for each in made)
    assert first is not None
    assert second is not None
    assert np.array_equal(first.w1, second.w1)


def test_a_policy_that_does_not_draw_or_does_not_add_is_refused() -> None:
    for wrong in (NeuralQTopK(beside_cosine=True), NeuralQTopK(explore=Explore("softmax"))):
        with pytest.raises(SettingsError, match="beside_cosine"):
            MuGRPO(wrong, D, "e")


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch": 0}, {"epsilon": 0.0}, {"beta": -1.0}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        MuGRPOSettings(**wrong)  # type: ignore[arg-type]

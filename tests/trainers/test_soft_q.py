"""Soft Q-learning, its kernel form and mu-GRPO against numbers worked out by hand, autograd and value iteration."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch

from memweave.memory_stores.case_kernel import Kernel, Uses
from memweave.memory_stores.case_retrieval import softmax
from memweave.trainers.mu_grpo import advantages, mu_grpo_loss, ordered_log_probability
from memweave.trainers.soft_q import follow, log_kernel, q_ec, soft_maximum, td_step, td_target


def vector(*numbers: float) -> torch.Tensor:
    """Return float64 numbers."""
    return torch.tensor(numbers, dtype=torch.float64)


def test_eq_4_at_the_softmax_is_the_soft_maximum_and_only_then() -> None:
    q, alpha = np.array([0.9, 0.1, 0.4]), 0.3

    def value(mu: np.ndarray) -> float:
        """Return V = sum mu (Q - alpha log mu)."""
        drawn = mu > 0
        return float((mu[drawn] * (q[drawn] - alpha * np.log(mu[drawn]))).sum())

    assert value(softmax(q, alpha)) == pytest.approx(float(soft_maximum(torch.from_numpy(q), alpha)))
    assert value(np.array([1.0, 0, 0])) == pytest.approx(0.9)
    assert value(np.array([0.5, 0.5, 0])) == pytest.approx(0.5 + 0.3 * math.log(2))


def test_the_printed_log_sum_exp_differs_unless_alpha_is_one() -> None:
    q = vector(0, 0)
    assert float(soft_maximum(q, 0.5)) == pytest.approx(0.5 * math.log(2))
    q = vector(1, 1)
    assert float(soft_maximum(q, 0.5)) == pytest.approx(1 + 0.5 * math.log(2))
    assert float(soft_maximum(q, 0.5, literal=True)) == pytest.approx(0.5 * (1 + math.log(2)))
    assert float(soft_maximum(q, 1.0, literal=True)) == pytest.approx(float(soft_maximum(q, 1.0)))


def test_eq_8() -> None:
    target = td_target(vector(1.0), vector(1, 1)[None], 0.5, 0.9)
    assert target.tolist() == pytest.approx([1 + 0.9 * (1 + 0.5 * math.log(2))])
    assert float(td_step(vector(0.2), vector(1.0), 0.25)) == pytest.approx(0.4)
    assert td_target(vector(1.0), vector()[None], 0.5, 0.9).tolist() == [1.0]


@pytest.mark.parametrize("literal", [False, True])
def test_td_reaches_the_fixed_point_of_value_iteration(literal: bool) -> None:
    """Two states, two cases; a case leads to a state by chance, and the bank stays as it is."""
    reward = torch.tensor([[1.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
    moves = torch.tensor([[[0.8, 0.2], [0.1, 0.9]], [[0.5, 0.5], [0.0, 1.0]]], dtype=torch.float64)
    alpha, gamma = 0.4, 0.8
    planned = torch.zeros(2, 2, dtype=torch.float64)
    for _ in range(300):
        lse = alpha * torch.log(torch.exp(planned if literal else planned / alpha).sum(dim=1))
        planned = reward + gamma * moves @ lse
    learned = torch.zeros(2, 2, dtype=torch.float64)
    for _ in range(600):  # Eq. 8, one state and case at a time; the expectation over s' is taken exactly
        for s in range(2):
            for c in range(2):
                y = sum(
                    moves[s, c, n] * td_target(reward[s, c], learned[n], alpha, gamma, literal=literal)
                    for n in range(2)
                )
                learned[s, c] = td_step(learned[s, c], torch.as_tensor(y), 0.5)
    assert torch.allclose(learned, planned, atol=1e-9)


@pytest.mark.parametrize("kind", ["nec", "gaussian"])
def test_eq_9_by_hand_and_as_retrieval_computes_it(kind: Literal["nec", "gaussian"]) -> None:
    past, q = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64), vector(1, 0)
    k = [1 / 1.001, 1 / 4.001] if kind == "nec" else [math.exp(-1 / 0.5), math.exp(-4 / 0.5)]
    near = log_kernel(vector(0, 0), past, kind, 0.5)
    assert near.exp().tolist() == pytest.approx(k)
    by_hand = k[0] / (k[0] + k[1])
    assert float(q_ec(near, q)) == pytest.approx(by_hand)
    served = Kernel(kind).estimate(vector(0, 0).float().numpy(), Uses(past.float().numpy(), q.numpy()))
    assert served == pytest.approx(by_hand, abs=1e-6)


def gradient_by_hand(weights: torch.Tensor, query: torch.Tensor, past: torch.Tensor, q: torch.Tensor, y: float) -> Any:
    """Return Eq. 11 for one row, (h, d), in loops: grad log k = -2 k W (s - s_i)(s - s_i)^T for the kernel 1 / (|W s - W s_i|^2 + 1e-3)."""
    k = [1 / (float(((weights @ (query - s)) ** 2).sum()) + 1e-3) for s in past]
    f = sum(k_i * float(q_i) for k_i, q_i in zip(k, q, strict=True)) / sum(k)
    found = torch.zeros_like(weights)
    for k_i, q_i, s in zip(k, q, past, strict=True):
        log_slope = -2 * k_i * torch.outer(weights @ (query - s), query - s)
        found += 2 * (f - y) * k_i / sum(k) * (float(q_i) - f) * log_slope
    return found


def test_eq_11_is_the_gradient() -> None:
    draw = torch.Generator().manual_seed(3)
    weights = torch.randn(3, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    query, past = (torch.randn(*n, generator=draw, dtype=torch.float64) for n in ((4,), (5, 4)))
    q, y = torch.rand(5, generator=draw, dtype=torch.float64), 0.7

    def loss(w: torch.Tensor) -> torch.Tensor:
        return (q_ec(log_kernel(query @ w.T, past @ w.T), q) - y) ** 2

    (automatic,) = torch.autograd.grad(loss(weights), weights)
    with torch.no_grad():
        assert torch.allclose(gradient_by_hand(weights, query, past, q, y), automatic, atol=1e-6)
        step = torch.zeros_like(weights)
        step[1, 2] = 1e-5
        slope = (loss(weights + step) - loss(weights - step)) / 2e-5
    assert float(slope) == pytest.approx(float(automatic[1, 2]), abs=1e-7)


def test_the_target_follows_slowly() -> None:
    assert follow(vector(1.0), vector(0.0), 0.99).tolist() == pytest.approx([0.99])


def test_an_ordered_draw_has_its_plackett_luce_probability() -> None:
    scores = vector(1, 2, 3).log()
    found = ordered_log_probability(scores, torch.tensor([[2, 0], [0, 2], [1, 0]])).exp()
    assert found.tolist() == pytest.approx([3 / 6 * 1 / 3, 1 / 6 * 3 / 5, 2 / 6 * 1 / 4])


def test_mu_grpo_by_hand() -> None:
    q, cosines, chosen = vector(0, math.log(3)), vector(0, 0), torch.tensor([[1], [0]])
    assert advantages(vector(1, 0)).tolist() == [1, -1]
    assert advantages(vector(1, 1)).tolist() == [0, 0]
    old = vector(0.5, 0.5).log()
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    # ratios 1.5 and 0.5; clipped 1.2 and 0.8: min(1.5, 1.2) = 1.2 and min(-0.5, -0.8) = -0.8
    expected = -(1.2 - 0.8) / 2 + 0.1 * kl
    assert float(mu_grpo_loss(q, cosines, chosen, old, vector(1, 0), alpha=1.0, beta=0.1)) == pytest.approx(expected)

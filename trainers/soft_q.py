"""Soft Q-learning of which case to retrieve, and its kernel form, as pure functions (Memento, Eq. 4, 7 to 11).

The action is the case. Alpha is the temperature (above 0), gamma the discount in [0, 1). The paper prints alpha log sum exp(Q), which
fits Eq. 4 and 7 at alpha = 1 only; the consistent form is alpha log sum exp(Q / alpha), and `literal` gives the printed one (A1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from memweave.memory_stores.case_retrieval import PRIOR_Q


def mu(q: Tensor, alpha: float) -> Tensor:
    """Return (..., n) probabilities softmax(Q / alpha) (Eq. 7)."""
    return torch.softmax(q / alpha, dim=-1)


def value(q: Tensor, probabilities: Tensor, alpha: float) -> Tensor:
    """Return V = sum mu (Q - alpha log mu) over the last axis (Eq. 4); a probability of 0 adds 0."""
    return (probabilities * q - alpha * torch.xlogy(probabilities, probabilities)).sum(dim=-1)


def soft_maximum(q: Tensor, alpha: float, *, literal: bool = False) -> Tensor:
    """Return alpha log sum exp(Q / alpha) over the last axis, or as printed, alpha log sum exp(Q)."""
    return alpha * torch.logsumexp(q if literal else q / alpha, dim=-1)


def td_target(reward: Tensor, next_q: Tensor, alpha: float, gamma: float, *, literal: bool = False) -> Tensor:
    """Return y = r + gamma times the soft maximum of Q(s', M', .) (Eq. 8, 10).

    reward: (...).  next_q: (..., n), over M' = M with (s, a, r) added (A2); n = 0 for a final state, whose value is 0.
    """
    if next_q.shape[-1] == 0:
        return reward
    return reward + gamma * soft_maximum(next_q, alpha, literal=literal)


def td_step(q: Tensor, target: Tensor, eta: float) -> Tensor:
    """Return Q + eta (y - Q) (Eq. 8)."""
    return q + eta * (target - q)


def nec_kernel(weights: Tensor, query: Tensor, past: Tensor) -> Tensor:
    """Return (m,) k(s, s_i) = 1 / (|W s - W s_i|^2 + 1e-3) (A12). weights: (h, d).  query: (d,).  past: (m, d)."""
    return 1 / ((((query - past) @ weights.T) ** 2).sum(dim=-1) + 1e-3)


def q_ec(kernel: Tensor, q: Tensor) -> Tensor:
    """Return the mean of past Q of one case, (m,), weighted by the kernel, (m,) (Eq. 9); `PRIOR_Q` when m = 0."""
    if not len(q):
        return torch.tensor(PRIOR_Q, dtype=q.dtype)
    return (kernel @ q) / kernel.sum()


def kernel_gradient(weights: Tensor, query: Tensor, past: Tensor, q: Tensor, target: Tensor) -> Tensor:
    """Return the gradient (h, d) of (Q_EC - y)^2 in W for one row, in closed form (Eq. 11), y held fixed.

    grad log k = -2 k W (s - s_i)(s - s_i)^T for `nec_kernel`.
    """
    kernel = nec_kernel(weights, query, past)
    estimate = q_ec(kernel, q)
    apart = query - past
    share = kernel / kernel.sum() * (q - estimate)
    summed = torch.einsum("i,ih,id->hd", share * -2 * kernel, apart @ weights.T, apart)
    return 2 * (estimate - target) * summed


def follow(slow: Tensor, fast: Tensor, beta: float) -> Tensor:
    """Return the target network's new weights, beta slow + (1 - beta) fast."""
    return beta * slow + (1 - beta) * fast

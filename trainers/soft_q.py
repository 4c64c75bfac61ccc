"""Soft Q-learning of which case to retrieve, and its kernel form, as pure functions (Memento, Eq. 8 to 10).

The action is the case. Alpha is the temperature (above 0), gamma the discount in [0, 1). The paper prints alpha log sum exp(Q), which
fits Eq. 4 and 7 at alpha = 1 only; the consistent form is alpha log sum exp(Q / alpha), and `literal` gives the printed one (A1).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


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


def log_kernel(query: Tensor, past: Tensor, kind: Literal["nec", "gaussian"] = "nec", sigma: float = 0.5) -> Tensor:
    """Return (m,) log k of mapped queries: k = 1 / (|h - h_i|^2 + 1e-3) or exp(-|h - h_i|^2 / (2 sigma^2)) (A12).

    query: (h,).  past: (m, h).
    """
    distance = ((query - past) ** 2).sum(dim=-1)
    return -torch.log(distance + 1e-3) if kind == "nec" else -distance / (2 * sigma**2)


def q_ec(log_k: Tensor, q: Tensor) -> Tensor:
    """Return the mean of past Q of one case, (m,), weighted by the kernel, (m,) in logarithms; m is at least 1 (Eq. 9)."""
    return torch.softmax(log_k, dim=-1) @ q


def follow(slow: Tensor, fast: Tensor, beta: float) -> Tensor:
    """Return the target network's new weights, beta slow + (1 - beta) fast."""
    return beta * slow + (1 - beta) * fast

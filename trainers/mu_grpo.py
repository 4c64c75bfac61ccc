"""GRPO on the retrieval policy mu: an extension, not in the paper, off by default (section 4 of the specification).

For each query, G ordered sets of K cases are drawn from softmax(Q / alpha) without putting back; each is planned with and rewarded.
A set's probability is that of its order (Plackett-Luce), which is what `Explore("softmax")` draws from and records.
"""

from __future__ import annotations

import torch
from torch import Tensor


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

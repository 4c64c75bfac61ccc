"""Policy-gradient losses over sampled tokens: every type that TRL 1.16 offers, and the forms the papers write.

Pure functions of tensors; they know no model, trainer or process. Shapes: B rows, T token positions. A token counts where
`mask` is true, and whatever stands elsewhere (also NaN or infinity) reaches neither the value nor the gradient.

Two choices differ from TRL's `GRPOTrainer._compute_loss`, and on TRL's own settings the result is equal to it:

1. Normalisers (`tokens_in_batch`, `rows_in_batch`, `steps_in_batch`) are given, not read from the tensors at hand. Counted
   over everything that one optimiser step sees, padding rows change nothing, and the losses of the micro-batches sum to the
   loss of the batch. With P processes, whose gradients are averaged, give the counts over all of them divided by P; when a
   generation batch is cut into K optimiser steps, divide by K too (fractions are fine).
   TRL's `bnpo` and its entropy bonus average within each micro-batch: give `tokens_in_batch` = tokens of the micro-batch x
   number of micro-batches to get exactly that. With the batch's count, `bnpo` is `dapo`.
2. Advantages are per token, (B, T). What TRL decides by a sequence's advantage (`sapo`'s temperature, `vespo`'s weight, the
   off-policy mask), each token decides by its own. (B,) and (B, 1) are spread over the row, which is TRL's case.

A *unit* is what a sequence-level ratio, a per-sequence mean, `vespo`'s weight and the off-policy mask are taken over: the row
(TRL), or the step, that is one generation: then several generations merged in one row give the same loss as separate rows.
Steps come as `step_ids`, (B, T) int64 with values in [0, T): generation number within the row, made from `Row.spans`; any value
in range where the mask is false.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from memweave.errors import InputError, SettingsError

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"]
RatioLevel = Literal["token", "sequence", "joint"]
KL = Literal["k1", "k2", "k3"]
Unit = Literal["row", "step"]
RatioMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]

SURROGATES: Final = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""Loss types that use PPO's surrogate min(ratio x A, clip(ratio) x A); they differ in how they average."""

LOG_RATIO_BOUND: Final = 20.0
"""Bound of a log-ratio that is summed over a whole unit; exp(20) is far beyond anything worth learning from."""


@dataclass(frozen=True, slots=True)
class LossSettings:
    """Which loss. Defaults are TRL 1.16's."""

    loss_type: LossType = "dapo"
    importance_sampling_level: RatioLevel = "token"
    """`token`; `sequence`: geometric mean of the unit's ratios (GSPO); `joint`: their product, the papers' pi(output|input) ratio."""
    unit: Unit = "row"
    clip: bool = True
    """False: ratio x A as the papers write it (Memory-R1 Eq. 3, AgeMem Eq. 6)."""
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    """For `cispo`, the bound of the ratio itself."""
    delta: float | None = None
    """Upper bound of the unclipped ratio (two-sided clipping)."""
    beta: float = 0.0
    """Weight of the KL term."""
    kl: KL = "k3"
    """Estimator on the sampled token, with d = log pi_ref - log pi: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1. As a loss, k1's
    gradient is zero on average unless `use_bias_correction_kl` multiplies it by the ratio."""
    use_bias_correction_kl: bool = True
    """Multiply the KL estimate by the importance ratio (DeepSeek-V3.2); on by default in TRL."""
    off_policy_threshold: float | None = None
    """Drop tokens of negative advantage in units whose mean log(old / new) is above this (DeepSeek-V3.2)."""
    max_completion_length: int | None = None
    """Constant that `dr_grpo` divides by, in tokens."""
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("loss_type", self.loss_type, get_args(LossType)),
            ("importance_sampling_level", self.importance_sampling_level, get_args(RatioLevel)),
            ("kl", self.kl, get_args(KL)),
            ("unit", self.unit, get_args(Unit)),
        ):
            if value not in known:
                raise SettingsError(f"{name}={value!r} is unknown; give one of {', '.join(known)}")
        if not self.clip and self.loss_type not in SURROGATES:
            raise SettingsError(f"clip=False means nothing for {self.loss_type}; use it with {', '.join(SURROGATES)}")
        if self.loss_type == "dr_grpo" and not (self.max_completion_length or 0) > 0:
            raise SettingsError("dr_grpo divides by max_completion_length; set it to the longest completion, in tokens")
        if self.beta < 0 or not math.isfinite(self.beta):
            raise SettingsError(f"beta={self.beta} must be a number >= 0; 0 is no KL term")


MEMORY_R1_EQ3: Final = LossSettings(
    loss_type="grpo", importance_sampling_level="joint", clip=False, beta=0.001, use_bias_correction_kl=False
)
"""Memory-R1 Eq. 3 as printed: (1/G) sum of rho A - beta KL, no clip. The paper gives no beta; 0.001 is verl's default."""

AGEMEM_EQ6: Final = LossSettings(
    loss_type="grpo", importance_sampling_level="joint", unit="step", clip=False, beta=0.1, use_bias_correction_kl=False
)
"""AgeMem Eq. 6 as printed: every step (generation) of every rollout weighs 1/|E|, no clip, beta 0.1."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean that can be added up over micro-batches and processes: sum the totals, sum the counts, then divide."""

    total: Tensor
    count: Tensor

    @property
    def value(self) -> float:
        """Return the mean; NaN when nothing was counted."""
        return (self.total / self.count).item()


class PolicyLoss(NamedTuple):
    """`loss` to call `backward()` on, and detached `metrics` under the names that TRL logs."""

    loss: Tensor
    metrics: dict[str, Mean]


class _Units:
    """Sums over the units of a mask, spread back over their tokens: (B, 1) for rows, (B, T) for steps."""

    def __init__(self, mask: Tensor, step_ids: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = mask.to(dtype)  # (B, T), 1 where a token trains
        self.ids = step_ids
        self.tokens = self.sum(torch.ones_like(self.weight)).clamp(min=1.0)

    def sum(self, x: Tensor) -> Tensor:
        x = x * self.weight
        if self.ids is None:
            return x.sum(dim=-1, keepdim=True)
        return torch.zeros_like(x).scatter_add(1, self.ids, x).gather(1, self.ids)

    def mean(self, x: Tensor) -> Tensor:
        return self.sum(x) / self.tokens


def policy_loss(
    logps: Tensor,
    *,
    old_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    settings: LossSettings,
    tokens_in_batch: float | Tensor,
    rows_in_batch: float | Tensor,
    steps_in_batch: float | Tensor | None = None,
    step_ids: Tensor | None = None,
    ref_logps: Tensor | None = None,
    sampling_ratio: Tensor | None = None,
    sampling_logps: Tensor | None = None,
    entropies: Tensor | None = None,
    entropy_mask: Tensor | None = None,
    entropy_coef: float = 0.0,
) -> PolicyLoss:
    """Return the loss of B rows and its metrics.

    logps: (B, T) log-probabilities under the policy being trained, with gradient.  old_logps: the same before the update;
    None means they are equal.  advantages: (B, T), (B,) or (B, 1).  mask: (B, T), true where a token trains.
    step_ids, steps_in_batch: needed when `settings.unit` is `step`.  ref_logps: needed when `settings.beta` > 0.
    sampling_ratio: (B, T) or (B, 1), correction for the server's log-probabilities, see `importance_ratio`.
    sampling_logps: the server's own, for the off-policy mask (default: old_logps).  entropies: (B, T), for the metric and the
    bonus `entropy_coef` x mean entropy.  entropy_mask: (B, T), tokens that keep the policy gradient (top-entropy tokens).
    Raises: InputError when a tensor that the settings need is missing or has another shape.
    """
    mask = mask.bool()
    _check(logps, advantages, mask, settings, step_ids, steps_in_batch, ref_logps, entropies, entropy_coef)
    logps, old = _kept(logps, mask), _kept(logps.detach() if old_logps is None else old_logps, mask)
    advantages = _kept(advantages.unsqueeze(1) if advantages.dim() == 1 else advantages, mask)
    units = _Units(mask, step_ids if settings.unit == "step" else None, logps.dtype)

    log_ratio = logps - old
    ratio = _ratio(log_ratio, units, settings)
    per_token, metrics = _surrogate(logps, log_ratio, ratio, advantages, units, sampling_ratio, settings)
    if settings.off_policy_threshold is not None:
        sampled = old if sampling_logps is None else _kept(sampling_logps, mask)
        # NaN is a token that the server could not score: no evidence of drift.
        drift = units.mean(torch.nan_to_num(sampled - logps.detach(), nan=0.0))
        per_token = per_token * ((advantages >= 0) | (drift <= settings.off_policy_threshold))
    if entropy_mask is not None:
        per_token = per_token * entropy_mask
    if sampling_ratio is not None and settings.loss_type != "vespo":
        per_token = per_token * _kept(sampling_ratio, mask)
    if settings.beta != 0.0 and ref_logps is not None:
        kl = _kl(_kept(ref_logps, mask) - logps, settings.kl)
        kl = kl * ratio if settings.use_bias_correction_kl else kl
        per_token = per_token + settings.beta * kl
        metrics["kl"] = _mean(kl, units.weight)

    units_in_batch = rows_in_batch if settings.unit == "row" or steps_in_batch is None else steps_in_batch
    loss = _normalised(per_token, units, settings, tokens_in_batch, units_in_batch)
    # The micro-batches' shares add up to 1, and so their losses to the loss of the batch.
    metrics["policy_loss"] = Mean(loss.detach(), _over(units.weight.sum(), tokens_in_batch))
    if entropies is not None:
        entropies = _kept(entropies, mask)
        metrics["entropy"] = _mean(entropies, units.weight)
        if entropy_coef != 0.0:
            loss = loss - entropy_coef * _entropy_bonus(entropies, units.weight, entropy_mask, tokens_in_batch)
    return PolicyLoss(loss, metrics)


def importance_ratio(
    old_logps: Tensor,
    sampling_logps: Tensor,
    mask: Tensor,
    *,
    mode: RatioMode = "sequence_mask",
    low: float | None = None,
    high: float | None = 3.0,
) -> Tensor:
    """Return the correction old / sampling for a server whose log-probabilities differ from the trainer's.

    old_logps, sampling_logps, mask: (B, T). Returns (B, T) for the token modes and (B, 1) for the sequence modes. `truncate`
    clamps to [low, high]; `mask` puts 0 outside it. A token that the server could not score (NaN) counts as ratio 1. TRL 1.16.
    """
    if mode not in get_args(RatioMode):
        raise SettingsError(f"mode={mode!r} is unknown; give one of {', '.join(get_args(RatioMode))}")
    difference = torch.nan_to_num(torch.where(mask.bool(), old_logps - sampling_logps, 0.0), nan=0.0)
    if mode.startswith("sequence"):
        difference = difference.sum(dim=-1, keepdim=True)
    ratio = torch.exp(difference)
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if mode.endswith("truncate"):
        return ratio.clamp(min=low, max=high)
    return ratio.masked_fill((ratio < low) | (ratio > high), 0.0)


def _check(
    logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    settings: LossSettings,
    step_ids: Tensor | None,
    steps_in_batch: float | Tensor | None,
    ref_logps: Tensor | None,
    entropies: Tensor | None,
    entropy_coef: float,
) -> None:
    if logps.dim() != 2 or mask.shape != logps.shape:
        raise InputError(f"logps and mask must both be (B, T); got {tuple(logps.shape)} and {tuple(mask.shape)}")
    rows, width = logps.shape
    if tuple(advantages.shape) not in ((rows,), (rows, 1), (rows, width)):
        raise InputError(f"advantages are {tuple(advantages.shape)}; give ({rows}, {width}) or one per row ({rows},)")
    if settings.unit == "step" and (step_ids is None or steps_in_batch is None):
        raise InputError("unit='step' needs step_ids and steps_in_batch; make them from Row.spans")
    if settings.beta != 0.0 and ref_logps is None:
        raise InputError(f"beta={settings.beta} needs ref_logps, the log-probabilities under the reference policy")
    if entropy_coef != 0.0 and entropies is None:
        raise InputError("entropy_coef needs entropies")


def _kept(x: Tensor, mask: Tensor) -> Tensor:
    """Put 0 where the mask is false, so that nothing there (NaN, infinity) reaches a sum or a gradient."""
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def _ratio(log_ratio: Tensor, units: _Units, settings: LossSettings) -> Tensor:
    if settings.importance_sampling_level == "token":
        return torch.exp(log_ratio)
    if settings.importance_sampling_level == "sequence":
        return torch.exp(units.mean(log_ratio))
    return torch.exp(units.sum(log_ratio).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND))


def _kl(d: Tensor, estimator: KL) -> Tensor:
    """Estimate KL(pi || pi_ref) on sampled tokens from d = log pi_ref - log pi (Schulman 2020)."""
    if estimator == "k1":
        return -d
    return 0.5 * d.square() if estimator == "k2" else torch.exp(d) - d - 1


def _surrogate(
    logps: Tensor,
    log_ratio: Tensor,
    ratio: Tensor,
    advantages: Tensor,
    units: _Units,
    sampling_ratio: Tensor | None,
    settings: LossSettings,
) -> tuple[Tensor, dict[str, Mean]]:
    """Return the loss per token before averaging, (B, T), and what was clipped."""
    # A ratio of a unit counts once in the metrics, whatever the unit's length.
    weight = units.weight if settings.importance_sampling_level == "token" else units.weight / units.tokens
    metrics = {"ratio": _mean(ratio, weight)}
    if settings.loss_type == "cispo":
        metrics["cispo_clip_ratio"] = _mean((ratio > settings.epsilon_high) & (advantages > 0), weight)
        return -ratio.clamp(max=settings.epsilon_high).detach() * advantages * logps, metrics
    if settings.loss_type == "sapo":
        positive = advantages > 0
        temperature = torch.where(positive, settings.sapo_temperature_pos, settings.sapo_temperature_neg)
        return -torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature * advantages, metrics
    if settings.loss_type == "vespo":
        phi = _vespo_weight(log_ratio, advantages, units, sampling_ratio, settings)
        metrics["vespo/phi_seq_mean"] = _mean(phi, units.weight / units.tokens)
        return -phi * advantages * logps, metrics
    if not settings.clip:
        return -ratio * advantages, metrics
    clipped = ratio.clamp(1 - settings.epsilon_low, 1 + settings.epsilon_high)
    ratio = ratio if settings.delta is None else ratio.clamp(max=settings.delta)
    low = (ratio < 1 - settings.epsilon_low) & (advantages < 0)
    high = (ratio > 1 + settings.epsilon_high) & (advantages > 0)
    for name, value in (("low", low), ("high", high), ("region", low | high)):
        metrics[f"clip_ratio/{name}_mean"] = _mean(value, weight)
    return -torch.min(ratio * advantages, clipped * advantages), metrics


@torch.no_grad()
def _vespo_weight(
    log_ratio: Tensor, advantages: Tensor, units: _Units, sampling_ratio: Tensor | None, settings: LossSettings
) -> Tensor:
    """Return phi(w) = e^lambda w^k e^(-lambda w), w the joint ratio of the unit; it scales the gradient and has none."""
    low = math.log(1e-8)
    log_w = units.sum(log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND))
    if sampling_ratio is not None:
        if sampling_ratio.shape != log_ratio.shape:
            raise InputError("vespo needs a sampling ratio per token: mode token_truncate or token_mask")
        log_w = log_w + units.sum(sampling_ratio.log().clamp(low, LOG_RATIO_BOUND))
    log_w = log_w.clamp(low, LOG_RATIO_BOUND)
    positive = advantages >= 0
    k = torch.where(positive, settings.vespo_k_pos, settings.vespo_k_neg)
    scale = torch.where(positive, settings.vespo_lambda_pos, settings.vespo_lambda_neg).clamp(min=1e-4)
    return torch.exp(scale + k * log_w - scale * log_w.exp()).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _normalised(
    per_token: Tensor, units: _Units, settings: LossSettings, tokens: float | Tensor, unit_count: float | Tensor
) -> Tensor:
    total = (per_token * units.weight).sum()
    if settings.loss_type in ("grpo", "sapo"):
        return _over((per_token * units.weight / units.tokens).sum(), unit_count)
    if settings.loss_type == "luspo":
        return _over(total, unit_count)
    if settings.loss_type == "dr_grpo":
        return _over(total, unit_count) / float(settings.max_completion_length or 1)
    return _over(total, tokens)  # dapo, bnpo, cispo, vespo


def _entropy_bonus(
    entropies: Tensor, weight: Tensor, entropy_mask: Tensor | None, tokens_in_batch: float | Tensor
) -> Tensor:
    """Return the mean entropy of the tokens that keep their gradient, times this micro-batch's share of the tokens."""
    effective = weight if entropy_mask is None else weight * entropy_mask
    return _over((entropies * effective).sum() / effective.sum().clamp(min=1.0) * weight.sum(), tokens_in_batch)


def _over(total: Tensor, count: float | Tensor) -> Tensor:
    """Divide; with a count of 0 there is nothing to divide and the result is 0."""
    if isinstance(count, Tensor):
        return total / count.to(total).clamp(min=1e-9)
    return total / max(count, 1e-9)


def _mean(x: Tensor, weight: Tensor) -> Mean:
    return Mean((x.detach() * weight).sum(), weight.sum())

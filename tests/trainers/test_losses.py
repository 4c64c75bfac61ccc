"""Losses against TRL's own code, against numbers worked out by hand, and against padding and splitting."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from memweave.errors import InputError, SettingsError
from memweave.trainers.losses import (
    AGEMEM_EQ6,
    MEMORY_R1_EQ3,
    LossSettings,
    PolicyLoss,
    importance_ratio,
    policy_loss,
)

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")
MAX_COMPLETION = 9


class Counts(NamedTuple):
    """What normalisers count: trained tokens, rows with at least one, steps with at least one (0-d float64 tensors)."""

    tokens: Tensor
    rows: Tensor
    steps: Tensor


def batch_counts(mask: Tensor, step_ids: Tensor | None = None) -> Counts:
    """Count trained tokens, rows and steps of `mask` (B, T); padding counts nowhere. Without `step_ids` a row is one step."""
    mask = mask.bool()
    rows = mask.any(dim=-1).sum()
    steps = rows
    if step_ids is not None:
        present = torch.zeros_like(mask, dtype=torch.int64).scatter_add_(1, step_ids, mask.to(torch.int64))
        steps = (present > 0).sum()
    return Counts(mask.sum().double(), rows.double(), steps.double())


class TrlLoss(GRPOTrainer):  # type: ignore[misc]  # TRL publishes no types
    """TRL's `_compute_loss` itself, fed with log-probabilities instead of a model."""

    def __init__(self, config: Any, logps: Tensor, entropies: Tensor) -> None:
        self.args = config
        self.logps, self.entropies = logps, entropies
        self.model = SimpleNamespace(training=True)
        self.accelerator = Accelerator(cpu=True)
        self.aux_loss_enabled = False
        self.beta, self.loss_type = config.beta, config.loss_type
        self.importance_sampling_level = config.importance_sampling_level
        self.off_policy_mask_threshold = config.off_policy_mask_threshold
        self.top_entropy_quantile = config.top_entropy_quantile
        self.epsilon_low = config.epsilon
        self.epsilon_high = config.epsilon if config.epsilon_high is None else config.epsilon_high
        self.use_vllm, self.vllm_importance_sampling_correction = config.use_vllm, True
        self.max_completion_length = MAX_COMPLETION
        self.current_gradient_accumulation_steps = config.gradient_accumulation_steps
        self.entropy_coef, self.use_adaptive_entropy = config.entropy_coef, False
        self._entropy_bonus_enabled = config.entropy_coef != 0.0
        self._metrics = {"train": _Lists(), "eval": _Lists()}

    def _get_per_token_logps_and_entropies(self, *args: object, **kwargs: object) -> tuple[Tensor, Tensor, None]:
        return self.logps, self.entropies, None

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self._compute_loss(None, batch)


class _Lists(dict[str, list[float]]):
    def __missing__(self, key: str) -> list[float]:
        self[key] = []
        return self[key]


def random_batch(seed: int, rows: int = 5, width: int = 7, *, tool_mask: bool = True) -> dict[str, Tensor]:
    """Rows of different lengths; log-probabilities far enough apart that ratios are clipped on both sides."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    lengths = torch.randint(2, width + 1, (rows, 1), generator=g)
    completion = (torch.arange(width) < lengths).long()
    logps = -normal(rows, width).abs() - 0.1
    batch = {
        "prompt_ids": torch.zeros(rows, 2, dtype=torch.long),
        "prompt_mask": torch.ones(rows, 2, dtype=torch.long),
        "completion_ids": torch.zeros(rows, width, dtype=torch.long),
        "completion_mask": completion,
        "advantages": normal(rows),
        "logps": logps,
        "old": logps + 0.4 * normal(rows, width),
        "ref": logps + 0.4 * normal(rows, width),
        "entropies": normal(rows, width).abs(),
    }
    mask = completion
    if tool_mask:
        tools = torch.randint(0, 2, (rows, width), generator=g)
        tools[:, 0] = 1  # TRL too has a trained token in every row
        batch["tool_mask"] = tools
        mask = completion * tools
    batch["mask"] = mask
    batch["num_items_in_batch"] = mask.sum()
    return batch


def trl_loss(
    batch: dict[str, Tensor], folder: Path, *, old: bool = True, **config: Any
) -> tuple[Tensor, Tensor, TrlLoss]:
    """Return TRL's value, its gradient with respect to the log-probabilities, and the trainer (for its metrics)."""
    logps, entropies = batch["logps"].clone().requires_grad_(), batch["entropies"].clone().requires_grad_()
    accumulate = config.pop("gradient_accumulation_steps", 1)
    vllm = config.pop("use_vllm", False)
    arguments = GRPOConfig(
        str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        activation_checkpointing=False,  # its default has a deprecated name
        gradient_accumulation_steps=accumulate,
        **config,
    )
    arguments.use_vllm = vllm
    trainer = TrlLoss(arguments, logps, entropies)
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch")
    inputs = {key: batch[key] for key in keys}
    inputs |= {key: batch[key] for key in ("tool_mask", "importance_sampling_ratio") if key in batch}
    inputs["ref_per_token_logps"] = batch["ref"]
    if old:
        inputs["old_per_token_logps"] = batch["old"]
    if "sampling" in batch:
        inputs["sampling_per_token_logps"] = batch["sampling"]
    loss = trainer.loss(inputs)
    loss.backward()
    gradients = torch.cat([logps.grad, torch.zeros_like(logps) if entropies.grad is None else entropies.grad])
    return loss.detach(), gradients, trainer


def our_loss(
    batch: dict[str, Tensor], chosen: LossSettings, *, old: bool = True, advantages: Tensor | None = None, **more: Any
) -> tuple[Tensor, Tensor, PolicyLoss]:
    logps, entropies = batch["logps"].clone().requires_grad_(), batch["entropies"].clone().requires_grad_()
    counts = batch_counts(batch["mask"])
    result = policy_loss(
        logps,
        old_logps=batch["old"] if old else None,
        advantages=batch["advantages"] if advantages is None else advantages,
        mask=batch["mask"],
        settings=chosen,
        entropies=entropies,
        **{
            "tokens_in_batch": counts.tokens,
            "rows_in_batch": counts.rows,
            "ref_logps": batch["ref"] if chosen.beta else None,
            **more,
        },
    )
    result.loss.backward()
    gradients = torch.cat([logps.grad, torch.zeros_like(logps) if entropies.grad is None else entropies.grad])
    return result.loss.detach(), gradients, result


def ours(loss_type: str, level: str = "token", **more: Any) -> LossSettings:
    return LossSettings(loss_type, level, max_completion_length=MAX_COMPLETION, **more)  # type: ignore[arg-type]  # parametrised


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


# --- equal to TRL ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_equal_to_trl(loss_type: str, level: str, tmp_path: Path) -> None:
    for beta, tools, old, seed in itertools.product((0.0, 0.1), (False, True), (False, True), range(3)):
        batch = random_batch(seed, tool_mask=tools)
        theirs = trl_loss(batch, tmp_path, old=old, loss_type=loss_type, importance_sampling_level=level, beta=beta)
        for advantages in (batch["advantages"], batch["advantages"].unsqueeze(1).expand(5, 7)):
            mine = our_loss(batch, ours(loss_type, level, beta=beta), old=old, advantages=advantages)
            same(mine[0], theirs[0])
            same(mine[1], theirs[1])
        assert mine[1][:5][batch["mask"] == 0].abs().max() == 0 if tools else True
        for name, values in theirs[2]._metrics["train"].items():
            if name in mine[2].metrics:
                assert mine[2].metrics[name].value == pytest.approx(values[0], abs=1e-6), name


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_per_token_advantages_equal_trl_given_the_same(loss_type: str, level: str, tmp_path: Path) -> None:
    batch = random_batch(11)
    batch["advantages"] = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = trl_loss(batch, tmp_path, loss_type=loss_type, importance_sampling_level=level, beta=0.1)
    mine = our_loss(batch, ours(loss_type, level, beta=0.1))
    same(mine[0], theirs[0])
    same(mine[1], theirs[1])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_options_of_trl(loss_type: str, tmp_path: Path) -> None:
    batch = random_batch(3)
    same_settings: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"epsilon": 0.1, "epsilon_high": 0.3}, {"epsilon_low": 0.1, "epsilon_high": 0.3}),
        ({"delta": 1.25}, {"delta": 1.25}),
        ({"off_policy_mask_threshold": 0.05}, {"off_policy_threshold": 0.05}),
        ({"beta": 0.2, "use_bias_correction_kl": False}, {"beta": 0.2, "use_bias_correction_kl": False}),
        (
            {"sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0},
            {"sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0},
        ),
        ({"vespo_k_pos": 1.0, "vespo_lambda_neg": 4.0}, {"vespo_k_pos": 1.0, "vespo_lambda_neg": 4.0}),
    ]
    for trl_options, options in same_settings:
        theirs = trl_loss(batch, tmp_path, loss_type=loss_type, **trl_options)
        mine = our_loss(batch, ours(loss_type, **options))
        same(mine[0], theirs[0])
        same(mine[1], theirs[1])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_entropy_bonus_and_top_entropy_tokens(loss_type: str, tmp_path: Path) -> None:
    batch = random_batch(4)
    theirs = trl_loss(batch, tmp_path, loss_type=loss_type, entropy_coef=0.05, top_entropy_quantile=0.4)
    masked = batch["mask"].bool()
    threshold = torch.quantile(batch["entropies"][masked].float(), 0.6)
    mine = our_loss(batch, ours(loss_type), entropy_coef=0.05, entropy_mask=(batch["entropies"] >= threshold) & masked)
    same(mine[0], theirs[0])
    same(mine[1], theirs[1])
    assert mine[1][5:].abs().max() > 0  # the bonus reaches the entropies


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_correction_for_the_servers_logprobs(loss_type: str, mode: Any, tmp_path: Path) -> None:
    batch = random_batch(5)
    batch["sampling"] = batch["old"] + 0.5 * torch.randn(5, 7, generator=torch.Generator().manual_seed(2))
    batch["sampling"][0, 0] = math.nan  # a token that the server could not score
    ratio = importance_ratio(batch["old"], batch["sampling"], batch["mask"], mode=mode, low=0.5, high=1.5)
    assert ratio.shape == ((5, 7) if mode.startswith("token") else (5, 1))
    if mode.endswith("truncate"):
        assert 0.5 <= ratio.min() <= ratio.max() <= 1.5
    else:
        assert all(value == 0 or 0.5 <= value <= 1.5 for value in ratio.flatten().tolist())
    batch["importance_sampling_ratio"] = ratio
    chosen = ours(loss_type, off_policy_threshold=0.05)
    if loss_type == "vespo" and mode.startswith("sequence"):
        with pytest.raises(InputError, match="per token"):
            our_loss(batch, chosen, sampling_ratio=ratio, sampling_logps=batch["sampling"])
        return
    theirs = trl_loss(batch, tmp_path, loss_type=loss_type, use_vllm=True, off_policy_mask_threshold=0.05)
    mine = our_loss(batch, chosen, sampling_ratio=ratio, sampling_logps=batch["sampling"])
    same(mine[0], theirs[0])
    same(mine[1], theirs[1])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_two_micro_batches_equal_trl_accumulating_them(loss_type: str, tmp_path: Path) -> None:
    batch = random_batch(6, rows=6)
    total = batch["mask"].sum()
    for part in (slice(0, 3), slice(3, 6)):
        half = {k: v[part] if v.dim() else v for k, v in batch.items()}
        theirs = trl_loss(half, tmp_path, loss_type=loss_type, gradient_accumulation_steps=2, steps_per_generation=2)
        # TRL's bnpo averages over the tokens of each micro-batch
        tokens = half["mask"].sum() * 2 if loss_type == "bnpo" else total
        mine = our_loss(half, ours(loss_type), tokens_in_batch=tokens, rows_in_batch=6)
        same(mine[0], theirs[0])
        same(mine[1], theirs[1])


# --- worked out by hand ------------------------------------------------------------------------------------------------

# Ratios 1.5, 0.5, 1 and 1, 2, (masked); advantages 1 and -1; reference log-probabilities 0.1 above the policy's.
RATIOS = torch.tensor([[1.5, 0.5, 1.0], [1.0, 2.0, 7.0]], dtype=torch.float64)
HAND = {
    "logps": RATIOS.log() - 1.0,
    "old": torch.full((2, 3), -1.0, dtype=torch.float64),
    "ref": RATIOS.log() - 0.9,
    "mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    "advantages": torch.tensor([1.0, -1.0], dtype=torch.float64),
    "entropies": torch.zeros(2, 3, dtype=torch.float64),
}


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        # clipped at 1.2: row 1 (1.2 + 0.5 + 1) / 3 = 0.9, row 2 -(1 + 2) / 2 = -1.5
        (LossSettings("grpo"), -(0.9 - 1.5) / 2),
        (LossSettings("grpo", clip=False), -(1.0 - 1.5) / 2),
        (LossSettings("dapo"), -(2.7 - 3.0) / 5),
        (LossSettings("dapo", clip=False), -(3.0 - 3.0) / 5),
        (LossSettings("dr_grpo", max_completion_length=4), -(2.7 - 3.0) / 8),
        (LossSettings("luspo"), -(2.7 - 3.0) / 2),
        # geometric means: 0.75 ** (1/3) = 0.9086 and 2 ** (1/2) = 1.4142
        (LossSettings("grpo", "sequence"), -(0.75 ** (1 / 3) - 2**0.5) / 2),
        # products: 0.75 and 2
        (LossSettings("grpo", "joint", clip=False), -(0.75 - 2.0) / 2),
        # d = 0.1 on every token; with the correction, each k3 counts ratio times
        (
            LossSettings("grpo", clip=False, beta=0.5),
            -(1.0 - 1.5) / 2 + 0.5 * (math.exp(0.1) - 1.1) * (1.0 + 1.5) / 2,
        ),
        (
            LossSettings("grpo", clip=False, beta=0.5, kl="k1", use_bias_correction_kl=False),
            -(1.0 - 1.5) / 2 + 0.5 * -0.1,
        ),
        (
            LossSettings("grpo", clip=False, beta=0.5, kl="k2", use_bias_correction_kl=False),
            -(1.0 - 1.5) / 2 + 0.5 * 0.005,
        ),
        (
            LossSettings("grpo", clip=False, beta=0.5, kl="k3", use_bias_correction_kl=False),
            -(1.0 - 1.5) / 2 + 0.5 * (math.exp(0.1) - 1.1),
        ),
    ],
)
def test_hand_computed(chosen: LossSettings, expected: float) -> None:
    assert our_loss(HAND, chosen)[0].item() == pytest.approx(expected, abs=1e-12)


def test_gradient_of_the_papers_ratio_is_the_policy_gradient() -> None:
    """On policy, rho A has the gradient A x grad log pi(output): 1 x A / rows on each token, not divided by the length."""
    on_policy = {**HAND, "logps": HAND["old"]}
    gradient = our_loss(on_policy, LossSettings("grpo", "joint", clip=False))[1][:2]
    same(gradient, torch.tensor([[-0.5, -0.5, -0.5], [0.5, 0.5, 0.0]], dtype=torch.float64))


def test_papers_presets() -> None:
    steps = torch.tensor([[0, 0, 1], [0, 1, 0]])
    kl = math.exp(0.1) - 1.1
    value = our_loss(HAND, MEMORY_R1_EQ3)[0].item()
    assert value == pytest.approx(-(0.75 - 2.0) / 2 + 0.001 * kl, abs=1e-12)
    # AgeMem: four steps with the ratios 0.75, 1 | 1, 2 weigh the same
    value = our_loss(HAND, AGEMEM_EQ6, step_ids=steps, steps_in_batch=4)[0].item()
    assert value == pytest.approx(-(0.75 + 1.0 - 1.0 - 2.0) / 4 + 0.1 * kl, abs=1e-12)


def test_a_step_weighs_the_same_whatever_its_length() -> None:
    steps = torch.tensor([[0, 0, 1], [0, 1, 0]])
    chosen = LossSettings("grpo", unit="step", clip=False)
    # step means of ratio x A: (1.5 + 0.5) / 2, 1 | -1, -2
    assert our_loss(HAND, chosen, step_ids=steps, steps_in_batch=4)[0].item() == pytest.approx(-(1 + 1 - 1 - 2) / 4)


# --- padding, splitting, merging ---------------------------------------------------------------------------------------

EVERY = [ours(t, level, beta=0.1) for t in LOSS_TYPES for level in ("token", "sequence", "joint")]


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(0, 3), st.integers(0, 4))
def test_padding_changes_nothing(seed: int, rows: int, columns: int) -> None:
    """Rows and columns without a trained token, full of NaN, leave value and gradient as they were."""
    batch = random_batch(seed)
    padded = {}
    for name in ("logps", "old", "ref", "entropies", "mask"):
        fill = 0 if name == "mask" else math.nan
        padded[name] = torch.nn.functional.pad(batch[name], (0, columns, 0, rows), value=fill)
    padded["advantages"] = torch.nn.functional.pad(batch["advantages"], (0, rows), value=math.nan)
    for chosen in EVERY:
        value, gradient, _ = our_loss(batch, chosen, entropy_coef=0.1)
        value_padded, gradient_padded, _ = our_loss(padded, chosen, entropy_coef=0.1)
        same(value_padded, value)
        same(gradient_padded.reshape(2, 5 + rows, 7 + columns)[:, :5, :7].reshape(10, 7), gradient)
        assert gradient_padded.isfinite().all()


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_micro_batches_sum_to_the_whole(seed: int, places: list[int]) -> None:
    batch = random_batch(seed, rows=8)
    counts = batch_counts(batch["mask"])
    whole = {"tokens_in_batch": counts.tokens, "rows_in_batch": counts.rows}
    for chosen in EVERY:
        value, gradient, _ = our_loss(batch, chosen, entropy_coef=0.1)
        total, parts = torch.zeros((), dtype=torch.float64), torch.zeros(2, 8, 7, dtype=torch.float64)
        for place in set(places):
            index = torch.tensor([i for i, p in enumerate(places) if p == place])
            part = {k: v[index] if v.dim() else v for k, v in batch.items()}
            part_value, part_gradient, _ = our_loss(part, chosen, entropy_coef=0.1, **whole)
            total += part_value
            parts[:, index] += part_gradient.reshape(2, -1, 7)
        same(total, value)
        same(parts.reshape(16, 7), gradient)


def test_merged_rows_equal_separate_rows_when_the_unit_is_the_step() -> None:
    """Two generations in one row, or each in its own: the same loss and gradients, for every loss type."""
    g = torch.Generator().manual_seed(0)
    values = {n: -torch.rand(1, 6, generator=g, dtype=torch.float64) for n in ("logps", "old", "ref", "entropies")}
    mask = torch.tensor([[1, 1, 1, 0, 1, 1]])
    steps = torch.tensor([[0, 0, 0, 0, 1, 1]])
    token_advantages = torch.tensor([[1.0, 1.0, 1.0, 0.0, -0.5, -0.5]], dtype=torch.float64)
    separate = {n: v.expand(2, 6).clone() for n, v in values.items()}
    separate_mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1]])
    for loss_type, level in itertools.product(LOSS_TYPES, ("token", "sequence", "joint")):
        chosen = ours(loss_type, level, unit="step", beta=0.1, off_policy_threshold=0.01)
        more = {"tokens_in_batch": 5, "rows_in_batch": 1, "steps_in_batch": 2}
        merged = our_loss({**values, "mask": mask}, chosen, advantages=token_advantages, step_ids=steps, **more)
        apart = our_loss(
            {**separate, "mask": separate_mask},
            chosen,
            advantages=token_advantages.expand(2, 6),
            step_ids=steps.expand(2, 6),
            **more,
        )
        same(merged[0], apart[0])
        same(merged[1].reshape(2, 1, 6).sum(1), apart[1].reshape(2, 2, 6).sum(1))


def test_nothing_trained_is_a_zero_loss() -> None:
    batch = {**HAND, "mask": torch.zeros(2, 3)}
    for chosen in EVERY:
        value, gradient, _ = our_loss(batch, chosen, entropy_coef=0.1)
        assert value == 0
        assert gradient.abs().max() == 0


# --- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "ppo"}, "loss_type='ppo' is unknown; give one of grpo"),
        ({"kl": "k4"}, "kl='k4' is unknown"),
        ({"importance_sampling_level": "row"}, "importance_sampling_level='row' is unknown"),
        ({"unit": "token"}, "unit='token' is unknown"),
        ({"loss_type": "cispo", "clip": False}, "clip=False means nothing for cispo"),
        ({"loss_type": "dr_grpo"}, "dr_grpo divides by max_completion_length"),
        ({"beta": -1.0}, "beta=-1.0 must be a number >= 0"),
        ({"beta": math.nan}, "beta=nan"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        LossSettings(**options)


@pytest.mark.parametrize(
    ("change", "chosen", "message"),
    [
        ({"mask": torch.ones(2, 4)}, LossSettings(), r"both be \(B, T\); got \(2, 3\) and \(2, 4\)"),
        ({"advantages": torch.ones(3)}, LossSettings(), r"advantages are \(3,\); give \(2, 3\)"),
        ({"ref_logps": None}, LossSettings(beta=0.1), "beta=0.1 needs ref_logps"),
        ({}, LossSettings(unit="step"), "needs step_ids and steps_in_batch"),
        ({"entropies": None, "entropy_coef": 0.1}, LossSettings(), "entropy_coef needs entropies"),
    ],
)
def test_tensors_that_do_not_fit(change: dict[str, Any], chosen: LossSettings, message: str) -> None:
    given_ = {"old_logps": None, "advantages": HAND["advantages"], "mask": HAND["mask"], "ref_logps": HAND["ref"]}
    with pytest.raises(InputError, match=message):
        policy_loss(HAND["logps"], settings=chosen, tokens_in_batch=5, rows_in_batch=2, **{**given_, **change})

"""`TracePPOTrainer`: PPO with a value head, from the same traces and rows as `TraceGRPOTrainer` (TRL has none since 1.15).

    loss = clipped surrogate + vf_coef x clipped value loss (Schulman et al. 2017; Memory-R1 Eq. 2 and 6)

The value head is linear, reads the policy's last hidden state, and says for each sampled token what the episode will be worth
in the state in which that token was sampled. Before the first update on a batch all values are computed once; with the episode's
reward at its last sampled token they give advantages (GAE, along the whole episode, see `memweave.trainers.gae`) and returns.

There is no group baseline, so a task may have a single episode (`num_generations` 1, the default) and equal rewards teach too.
The head is no part of what is published or saved as a policy; checkpoints hold it in `value_head.pt`.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from memweave.errors import InputError, OperationError, SettingsError
from memweave.tracing.records import TraceStatus
from memweave.trainers.batches import Batch, deal, pieces
from memweave.trainers.collecting import Collected, Collector
from memweave.trainers.credit import CreditReport, CreditResult, Group
from memweave.trainers.gae import TokenCredit, token_credit, whiten
from memweave.trainers.grpo import TraceGRPOTrainer
from memweave.trainers.grpo_config import TraceGRPOConfig
from memweave.trainers.losses import LossSettings, Mean, PolicyLoss
from memweave.trainers.rows import Floats, Row

if TYPE_CHECKING:
    from memweave.trainers import resume
    from memweave.trainers.rollouts import Rollouts, Task

HEAD_FILE: Final = "value_head.pt"


@dataclass
class TracePPOConfig(TraceGRPOConfig):
    """Settings of `TracePPOTrainer`: those of `TraceGRPOConfig`, and what the value head needs. Raises `SettingsError`."""

    num_generations: int | None = field(
        default=1, metadata={"help": "Episodes per task. 1: there is no group baseline."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount per sampled token (verl: 1)."})
    gae_lambda: float = field(
        default=1.0, metadata={"help": "Lambda of GAE (verl: 1); lower trusts the value head more."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    value_clip: float | None = field(
        default=0.5,
        metadata={"help": "Furthest that a value may move from the old one in a batch (verl: 0.5). None: no clip."},
    )
    value_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the value head."})
    value_gradient: bool = field(
        default=True, metadata={"help": "Let the value loss train the policy's layers too. False: the head alone."}
    )
    whiten_advantages: bool = field(
        default=True, metadata={"help": "Give the advantages of a generation batch mean 0 and deviation 1."}
    )
    kl_in: Literal["reward", "loss"] = field(
        default="reward",
        metadata={"help": "Where beta counts: as a penalty in each token's reward, or as a term of the loss."},
    )

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingsError(f"{name} = {getattr(self, name)} must lie in [0, 1]")
        for name in ("vf_coef", "value_learning_rate", "value_clip"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise SettingsError(f"{name} = {value} must be a number >= 0")
        if self.kl_in not in ("reward", "loss"):
            raise SettingsError(f"kl_in = {self.kl_in!r} is unknown; give reward or loss")
        if self.num_generations != 1:
            super().__post_init__()
            return
        # GRPO refuses groups of one, rightly; here they are no groups. The check sees the whole batch as one.
        self.num_generations = self._episodes_per_batch()
        if self.num_generations < 2:
            raise SettingsError(
                "a generation batch of one episode is too small to learn from; raise per_device_train_batch_size"
            )
        super().__post_init__()
        self.num_generations = 1

    def _episodes_per_batch(self) -> int:
        if self.generation_batch_size is not None:
            return int(self.generation_batch_size)
        steps = self.steps_per_generation or self.gradient_accumulation_steps
        return int(self.per_device_train_batch_size * steps) * int(os.environ.get("WORLD_SIZE", "1"))

    def loss_settings(self) -> LossSettings:
        """Return the settings of the policy's part of the loss."""
        settings = super().loss_settings()
        return dataclasses.replace(settings, beta=0.0) if self.kl_in == "reward" else settings


def episode_reward(groups: Sequence[Group]) -> CreditResult:
    """Credit every generation with its episode's reward as it is: the value head is the baseline.

    A trace that failed or has no score is left out, and counted.
    """
    used = [
        (trace, trace.score.value)
        for group in groups
        for trace in group.traces
        if trace.status is TraceStatus.OK and trace.score is not None
    ]
    advantages = {(trace.id, generation.index): value for trace, value in used for generation in trace.generations}
    values = [value for _, value in used]
    every = sum(len(trace.generations) for group in groups for trace in group.traces)
    return CreditResult(
        advantages,
        CreditReport(
            groups=len(groups),
            zero_variance=0,
            group_of_one=0,
            rewards=len(values),
            reward_mean=float(np.mean(values)) if values else None,
            reward_std=float(np.std(values, ddof=1)) if len(values) > 1 else None,
            credited=len(advantages),
            excluded={"unscored": every - len(advantages)} if every > len(advantages) else {},
        ),
    )


def value_loss(
    values: Tensor,
    *,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float | None,
    tokens_in_batch: float | Tensor,
) -> PolicyLoss:
    """Return half the squared error of the values, the worse of free and clipped, averaged over the batch's tokens.

    All tensors (B, T). clip: furthest from `old_values` that counts; None does not clip.
    """
    zero = torch.zeros((), dtype=values.dtype, device=values.device)
    values, old, returns = (torch.where(mask, x, zero) for x in (values, old_values, returns))
    error = (values - returns).square()
    clipped = torch.zeros_like(mask)
    if clip is not None:
        bounded = (old + (values - old).clamp(-clip, clip) - returns).square()
        clipped = bounded > error
        error = torch.max(error, bounded)
    total, count = 0.5 * error.sum(), mask.sum()
    metrics = {
        "value/loss": Mean(total.detach(), count),
        "value/clip_ratio": Mean((clipped & mask).sum(), count),
    }
    return PolicyLoss(total / tokens_in_batch, metrics)


def explained_variance(values: Sequence[Floats], returns: Sequence[Floats], masks: Sequence[Any]) -> float | None:
    """Return 1 - var(returns - values) / var(returns) over trained tokens; None when all returns are equal."""
    target = np.concatenate([r[m] for r, m in zip(returns, masks, strict=True)]).astype(np.float64)
    guess = np.concatenate([v[m] for v, m in zip(values, masks, strict=True)]).astype(np.float64)
    spread = target.var()
    return float(1 - (target - guess).var() / spread) if spread > 1e-12 else None


class ValueHead(nn.Module):
    """A linear function of the hidden state, 0 everywhere at first; float32 whatever the policy is in."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B, T) values of hidden states (B, T, H)."""
        values: Tensor = self.linear(hidden.float()).squeeze(-1)
        return values


class _AnyGroupSize:
    """Rollouts for which one episode per task will do."""

    def __init__(self, rollouts: Rollouts) -> None:
        self._rollouts = rollouts

    def run(self, tasks: Sequence[Task], *, group_size: int, **more: Any) -> list[Group]:
        if group_size == 1:
            more["training"] = False
        return self._rollouts.run(tasks, group_size=group_size, **more)


class _SingleCollector(Collector):
    least = 1


class TracePPOTrainer(TraceGRPOTrainer):
    """Trains a policy and a value head from the traces of a LangGraph graph. Arguments as for `TraceGRPOTrainer`, less credit.

    `train` also raises `OperationError` when the loss stops being a number.
    """

    args: TracePPOConfig

    def __init__(
        self, model: Any, tasks: Sequence[Task], rollouts: Rollouts, server: Any, args: TracePPOConfig, **more: Any
    ) -> None:
        if "credit" in more:
            raise SettingsError(
                "PPO has no credit rule: its advantages come from the value head; use TraceGRPOTrainer for one"
            )
        super().__init__(model, tasks, rollouts, server, args, credit=episode_reward, **more)
        self._collector = _SingleCollector(_AnyGroupSize(rollouts), episode_reward, args)  # type: ignore[arg-type]  # has all of Rollouts that a collector calls
        policy = self.accelerator.unwrap_model(self.model)
        policy = policy.get_base_model() if hasattr(policy, "peft_config") else policy
        self.value_head = ValueHead(policy.config.get_text_config().hidden_size).to(self.accelerator.device)
        self._backbone: Any = policy.base_model
        self._backbone.register_forward_hook(self._remember)
        self._hidden: Tensor | None = None
        self._collected: Collected | None = None

    # -- values ----------------------------------------------------------------------------------------------------------

    def _remember(self, module: nn.Module, inputs: object, output: Any) -> None:
        self._hidden = output.last_hidden_state

    def _values(self) -> Tensor:
        """Return the values of the last forward pass, (B, L - 1): position t is the state in which token t + 1 is sampled."""
        if self._hidden is None:
            raise OperationError("the policy made no forward pass with hidden states; its base model must return them")
        hidden, self._hidden = self._hidden[:, :-1], None
        values: Tensor = self.value_head(hidden if self.args.value_gradient else hidden.detach())
        return values

    @torch.no_grad()
    def _no_grad_values(self, batch: Batch) -> Tensor:
        out = torch.zeros_like(batch["sampled_logps"])
        start = 0
        for piece in pieces({"input_ids": batch["input_ids"], "mask": batch["mask"]}, self._rows_per_forward):
            with self.accelerator.autocast():
                self._backbone(input_ids=piece["input_ids"], use_cache=False)
            values = self._values()
            out[start : start + len(values), : values.shape[1]] = values
            start += len(values)
        return out

    # -- generation ------------------------------------------------------------------------------------------------------

    def _collect(self, iteration: int) -> Collected:
        self._collected = super()._collect(iteration)
        return self._collected

    def _generate_and_score_completions(self, inputs: object) -> list[Batch]:
        """Return this process's batches with old `values`, `returns` and advantages."""
        batches = super()._generate_and_score_completions(inputs)
        rows = self._collected.rows if self._collected else []
        places = self._places(rows, batches)
        values, penalties = self._gathered(rows, batches, places)
        credit = token_credit(
            rows,
            values,
            _rewards(rows),
            token_rewards=penalties,
            gamma=self.args.gamma,
            lambda_=self.args.gae_lambda,
        )
        self._log_credit(rows, values, credit)
        masks = [row.mask for row in rows]
        advantages = whiten(credit.advantages, masks) if self.args.whiten_advantages else credit.advantages
        for batch, indices in zip(batches, places, strict=True):
            batch["advantages"] = _filled(batch["advantages"], indices, advantages)
            batch["returns"] = _filled(batch["advantages"], indices, credit.returns)
            batch["values"] = _filled(batch["advantages"], indices, values)
        return batches

    def _places(self, rows: Sequence[Row], batches: Sequence[Batch]) -> list[list[int | None]]:
        """Return, per batch, which row stands where; None is padding. The deal is the same in every process."""
        number = {id(row): i for i, row in enumerate(rows)}
        iteration = self._step // self._generate_every
        dealt = deal(rows, self.args.steps_per_generation, self.accelerator.num_processes, [self.args.seed, iteration])
        places = [[number.get(id(row)) for row in step[self.accelerator.process_index]] for step in dealt]
        for batch, indices in zip(batches, places, strict=True):
            for line, i in zip(batch["input_ids"].cpu().numpy(), indices, strict=True):
                if i is not None and not np.array_equal(line[: len(rows[i].ids)], rows[i].ids):
                    raise OperationError("rows and batches do not match; this is a bug of memweave, please report it")
        return places

    def _gathered(
        self, rows: Sequence[Row], batches: Sequence[Batch], places: Sequence[Sequence[int | None]]
    ) -> tuple[list[Floats], list[Floats] | None]:
        """Return, per row of all processes, old values and (with `kl_in` reward) the KL penalties of its tokens."""
        found: list[tuple[int, Floats, Floats | None]] = []
        penalised = self.beta != 0.0 and self.args.kl_in == "reward"
        for batch, indices in zip(batches, places, strict=True):
            values = self._no_grad_values(batch).float().cpu().numpy()
            kl = None
            if penalised:
                old = batch.get("old_logps", batch["sampled_logps"])
                kl = (self.beta * (batch["ref_logps"] - old)).float().cpu().numpy()
            for line, i in enumerate(indices):
                if i is not None:
                    n = len(rows[i].ids)
                    found.append((i, _shifted(values[line], n), None if kl is None else _shifted(kl[line], n)))
        if not all(np.isfinite(value).all() for _, value, _ in found):
            raise OperationError(
                "the value head gives values that are no numbers; lower value_learning_rate "
                f"({self.args.value_learning_rate}) or vf_coef ({self.args.vf_coef})"
            )
        everything = sorted(gather_object(found), key=lambda entry: entry[0])
        return [value for _, value, _ in everything], [kl for *_, kl in everything] if penalised else None

    def _log_credit(self, rows: Sequence[Row], values: Sequence[Floats], credit: TokenCredit) -> None:
        masks = [row.mask for row in rows]
        explained = explained_variance(values, credit.returns, masks)
        if explained is not None:
            self._log_metrics({"value/explained_variance": explained})
        self._log_metrics(
            {"value/mean": float(np.mean(np.concatenate([v[m] for v, m in zip(values, masks, strict=True)])))}
        )

    # -- training --------------------------------------------------------------------------------------------------------

    def _piece_loss(self, model: Any, batch: Batch) -> PolicyLoss:
        policy = super()._piece_loss(model, batch)
        value = value_loss(
            self._values(),
            old_values=batch["values"],
            returns=batch["returns"],
            mask=batch["mask"],
            clip=self.args.value_clip,
            tokens_in_batch=batch["tokens"],
        )
        return PolicyLoss(policy.loss + self.args.vf_coef * value.loss, {**policy.metrics, **value.metrics})

    def training_step(self, model: Any, inputs: object, num_items_in_batch: object = None) -> Tensor:
        """Add the gradient of one micro-step; the head's is kept apart from the model's, which Hugging Face looks after."""
        if self._step % self.args.gradient_accumulation_steps == 0:
            self.value_head.zero_grad()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            for parameter in self.value_head.parameters():
                if parameter.grad is not None and self.accelerator.num_processes > 1:
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
            if self.args.max_grad_norm:
                nn.utils.clip_grad_norm_(self.value_head.parameters(), self.args.max_grad_norm)
        return loss

    def _rates(self) -> str:
        return f"{super()._rates()} or value_learning_rate ({self.args.value_learning_rate})"

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return the policy's optimiser with the value head as a group of its own."""
        new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if new:
            optimizer.add_param_group(
                {
                    "params": list(self.value_head.parameters()),
                    "lr": self.args.value_learning_rate,
                    "weight_decay": 0.0,
                }
            )
        return optimizer

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def _write_ours(self, folder: Path, final: Path) -> None:
        if self.accelerator.is_main_process:
            torch.save(self.value_head.state_dict(), folder / HEAD_FILE)
        super()._write_ours(folder, final)

    def _restore(self, saved: resume.Progress, checkpoint: Path) -> None:
        if not (checkpoint / HEAD_FILE).is_file():
            raise InputError(f"{checkpoint} holds no value head ({HEAD_FILE}): it was not written by TracePPOTrainer")
        super()._restore(saved, checkpoint)
        state = torch.load(checkpoint / HEAD_FILE, weights_only=True, map_location=self.accelerator.device)
        self.value_head.load_state_dict(state)


def _rewards(rows: Sequence[Row]) -> Mapping[UUID, float]:
    """Return the reward of each trace, which `episode_reward` put on its tokens."""
    return {row.trace: float(row.advantages[row.mask][0]) for row in rows if row.mask.any()}


def _shifted(line: Floats, length: int) -> Floats:
    """Return what stands at position t - 1 of a batch's line at t, where the row has it."""
    out = np.zeros(length, dtype=np.float32)
    out[1:] = line[: length - 1]
    return out


def _filled(like: Tensor, indices: Sequence[int | None], arrays: Sequence[Floats]) -> Tensor:
    """Return a batch's tensor, shaped as `like`, of arrays per row."""
    out = np.zeros(tuple(like.shape), dtype=np.float32)
    for line, i in enumerate(indices):
        if i is not None:
            out[line, : len(arrays[i]) - 1] = arrays[i][1:]
    return torch.from_numpy(out).to(like.device)

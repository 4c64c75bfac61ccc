"""Settings of `TraceGRPOTrainer`: TRL's `GRPOConfig`, less what traces replace, plus what they need."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, TypedDict

from trl import GRPOConfig

from memweave.errors import GroupError, SettingsError
from memweave.serving.server import DEFAULT_ROLE
from memweave.trainers.losses import AGEMEM_EQ6, KL, MEMORY_R1_EQ3, LossSettings

REPLACED: Final = {
    "use_vllm": "give the trainer a VLLMServer: it publishes adapters over HTTP",
    "use_transformers_continuous_batching": "replies come from the policy server",
    "top_p": "rows sampled with it break the ratio",
    "top_k": "rows sampled with it break the ratio",
    "min_p": "rows sampled with it break the ratio",
    "repetition_penalty": "rows sampled with it break the ratio",
    "generation_kwargs": "give Sampling to server.chat_model",
    "reward_weights": "the reward of Rollouts returns one Score with parts",
    "multi_objective_aggregation": "the reward of Rollouts returns one Score with parts",
    "scale_rewards": "say it to the credit rule: broadcast(scale=...)",
    "use_adaptive_entropy": "set entropy_coef, which stays as it is",
    "eval_strategy": "evaluate with Rollouts, as the recipes do",
    "log_completions": "keep a TraceStore and read it with `memweave traces show`",
    "load_best_model_at_end": "the last checkpoint is the result",
}
"""Settings of TRL that mean nothing here -> what to use instead. Each must keep its default."""


@dataclass
class TraceGRPOConfig(GRPOConfig):  # type: ignore[misc]  # TRL publishes no types that mypy can follow
    """Settings of a training run from traces; everything not named here is TRL's and means what it means there.

    A generation batch is `generation_batch_size` episodes: `generation_batch_size / num_generations` tasks, as in TRL. The
    rows that come of it are cut into `steps_per_generation` equal parts, whatever their number. Defaults suit small models
    on a CPU: no gradient checkpointing, no bfloat16, one log entry per step. Raises `SettingsError` and `GroupError`.
    """

    run: str = field(default="run", metadata={"help": "Name of the run: of its policies, traces and checkpoints."})
    role: str = field(default=DEFAULT_ROLE, metadata={"help": "Role of the policy server that is trained."})
    actors: list[str] | None = field(
        default=None, metadata={"help": "Train only what these roles or nodes sampled. None: all."}
    )
    max_row_length: int | None = field(
        default=None, metadata={"help": "Leave out longer rows, in tokens, and count them. None: no bound."}
    )
    rows_per_forward: int | None = field(
        default=None,
        metadata={"help": "Rows that go through the model at once: bounds memory. None: per_device_train_batch_size."},
    )
    clip: bool = field(
        default=True, metadata={"help": "False: ratio x advantage without a clip, as the papers print it."}
    )
    kl: str = field(default="k3", metadata={"help": "Estimator of the KL term: k1, k2 or k3."})
    unit: str = field(
        default="row", metadata={"help": "What a sequence-level ratio and mean are taken over: row or step."}
    )
    logp_difference_limit: float | None = field(
        default=None,
        metadata={
            "help": "Largest difference (nat) between a sampled log-probability and the trainer's own for the weights "
            "that were published. None: 0.01 in float32, 1.0 otherwise."
        },
    )
    logp_difference_action: Literal["raise", "warn"] = field(
        default="raise", metadata={"help": "What to do above the limit."}
    )
    progress: bool = field(default=True, metadata={"help": "Show a progress line where standard error is a terminal."})
    curves: bool = field(default=True, metadata={"help": "Write log.jsonl and curves.png to output_dir."})

    # Other defaults than TRL's. `vllm_importance_sampling_correction` False: the old log-probabilities are the sampled ones.
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Trade time for memory."})
    bf16: bool | None = field(default=False, metadata={"help": "bfloat16 autocast in training."})
    logging_steps: float = field(default=1, metadata={"help": "Steps between log entries."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints that are kept."})
    disable_tqdm: bool | None = field(default=True, metadata={"help": "Hugging Face's own progress bar."})
    report_to: Any = field(default="none", metadata={"help": "Logging back ends: tensorboard, wandb, trackio, ..."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "See PyTorch."})
    vllm_importance_sampling_correction: bool = field(
        default=False,
        metadata={
            "help": "Compute the old log-probabilities again and correct by old / sampled, see "
            "vllm_importance_sampling_mode. For servers whose arithmetic differs from the trainer's."
        },
    )

    def __post_init__(self) -> None:
        if self.num_generations is not None and self.num_generations < 2:
            raise GroupError(
                f"num_generations = {self.num_generations}: episodes of a task are compared with each other; give 2 or more"
            )
        self._refuse_replaced()
        if self.logp_difference_action not in ("raise", "warn"):
            raise SettingsError(f"logp_difference_action={self.logp_difference_action!r}: give raise or warn")
        for name in ("max_row_length", "rows_per_forward"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} = {value} must be at least 1")
        self.loss_settings()
        chosen: bool | None = getattr(self, "activation_checkpointing", None)
        if chosen is None:  # the new name; transformers warns where only the old one is set
            self.activation_checkpointing = bool(self.gradient_checkpointing)
        try:
            super().__post_init__()
        except ValueError as error:
            raise SettingsError(str(error)) from error
        self.router_aux_loss_coef = (
            0.0  # rows are padded at the right without a mask: load balancing would count padding
        )

    def _refuse_replaced(self) -> None:
        defaults = {each.name: each.default for each in fields(self)}
        for name, remedy in REPLACED.items():
            value = getattr(self, name)
            value = getattr(value, "value", value)  # an enumeration of transformers
            if value != getattr(defaults[name], "value", defaults[name]):
                raise SettingsError(f"{name}={value!r} has no meaning when training from traces: {remedy}")

    def loss_settings(self) -> LossSettings:
        """Return the settings of the loss. Raises `SettingsError` for a combination that makes no sense."""
        level: Any = self.importance_sampling_level
        loss_type: Any = self.loss_type
        kl: Any = self.kl
        unit: Any = self.unit
        return LossSettings(
            loss_type=loss_type,
            importance_sampling_level=level,
            unit=unit,
            clip=self.clip,
            epsilon_low=self.epsilon,
            epsilon_high=self.epsilon if self.epsilon_high is None else self.epsilon_high,
            delta=self.delta,
            beta=self.beta,
            kl=kl,
            use_bias_correction_kl=self.use_bias_correction_kl,
            off_policy_threshold=self.off_policy_mask_threshold,
            max_completion_length=self.max_completion_length,
            sapo_temperature_pos=self.sapo_temperature_pos,
            sapo_temperature_neg=self.sapo_temperature_neg,
            vespo_k_pos=self.vespo_k_pos,
            vespo_lambda_pos=self.vespo_lambda_pos,
            vespo_k_neg=self.vespo_k_neg,
            vespo_lambda_neg=self.vespo_lambda_neg,
        )


class Preset(TypedDict, total=False):
    """Settings that a paper fixes: `TraceGRPOConfig(**memory_r1(), output_dir=...)`."""

    loss_type: str
    importance_sampling_level: str
    unit: str
    clip: bool
    epsilon: float
    beta: float
    kl: str
    use_bias_correction_kl: bool
    num_generations: int
    num_iterations: int


def memory_r1(*, literal: bool = False, kl: KL = "k3") -> Preset:
    """Return Memory-R1's GRPO (arXiv 2508.19828, Eq. 3).

    The canonical form: ratio and clip (0.2) per token, token mean per sequence. `literal` is Eq. 3 as printed: the ratio
    of the whole output, no clip. The paper gives no beta; 0.001 is verl's default. Its credit is `broadcast()`.
    """
    if literal:
        return _preset(MEMORY_R1_EQ3, kl)
    return Preset(
        loss_type="grpo",
        importance_sampling_level="token",
        unit="row",
        clip=True,
        epsilon=0.2,
        beta=0.001,
        kl=kl,
        use_bias_correction_kl=False,  # TRL's default, a later idea (DeepSeek-V3.2)
    )


def agemem(*, kl: KL = "k3") -> Preset:
    """Return AgeMem's step-wise GRPO (arXiv 2601.01885, Eq. 6): each step weighs 1/|E|, no clip, beta 0.1, 8 rollouts.

    Its credit is `broadcast()` (sample standard deviation, Alg. 2).
    """
    return Preset(**_preset(AGEMEM_EQ6, kl), num_generations=8)


def _preset(settings: LossSettings, kl: KL) -> Preset:
    return Preset(
        loss_type=settings.loss_type,
        importance_sampling_level=settings.importance_sampling_level,
        unit=settings.unit,
        clip=settings.clip,
        beta=settings.beta,
        kl=kl,
        use_bias_correction_kl=settings.use_bias_correction_kl,
    )

"""The trainer of a recipe: model, adapter and trainer settings from the recipe's own. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft import LoraConfig
from transformers import AutoModelForCausalLM

from memweave.recipes.recipe import Arm, Place, Recipe, Stage, TrainSettings
from memweave.serving import PolicyServer
from memweave.serving.quiet import quiet
from memweave.trainers.grpo import TraceGRPOTrainer
from memweave.trainers.grpo_config import TraceGRPOConfig
from memweave.trainers.ppo import TracePPOConfig, TracePPOTrainer
from memweave.trainers.rollouts import Rollouts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build_trainer(
    arm: Arm,
    recipe: Recipe,
    settings: TrainSettings,
    place: Place,
    stage: Stage,
    *,
    run: str,
    rollouts: Rollouts,
    server: PolicyServer,
) -> TraceGRPOTrainer:
    """Return the trainer that `arm` of `recipe` and `settings` describe."""
    episodes = settings.tasks_per_step * settings.group_size
    common: dict[str, Any] = {
        "output_dir": str(place.out / "checkpoints"),
        "run": run,
        "max_steps": settings.steps,
        "per_device_train_batch_size": episodes,
        "num_generations": settings.group_size,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",
        "temperature": settings.temperature,
        "max_completion_length": max(recipe.max_tokens.values()),
        "actors": list(stage.actors) if stage.actors else None,
        "loss_type": settings.loss_type,
        "beta": settings.beta,
        "seed": settings.seed,
        "save_steps": settings.save_every,
        "progress": not place.quiet,
    }
    with quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            place.base, dtype="float32", local_files_only=True
        )
    rank = settings.lora_rank
    lora = rank and LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="CAUSAL_LM")
    config = lora or None
    tasks = list(stage.train)
    if arm.trainer == "ppo":
        return TracePPOTrainer(model, tasks, rollouts, server, TracePPOConfig(**common), peft_config=config)
    credit = arm.credit(settings.seed) if arm.credit else None
    if arm.preset is not None:
        common = {**arm.preset(), **common}
    return TraceGRPOTrainer(
        model, tasks, rollouts, server, TraceGRPOConfig(**common), credit=credit, peft_config=config
    )

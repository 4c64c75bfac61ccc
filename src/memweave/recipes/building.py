"""The trainer of a recipe: model, adapter and trainer settings from the recipe's own. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import LoraConfig
from transformers import AutoModelForCausalLM

from memweave.recipes.recipe import Place, Recipe, TrainSettings
from memweave.serving import PolicyServer
from memweave.serving.quiet import quiet
from memweave.trainers.credit import Credit
from memweave.trainers.grpo import TraceGRPOTrainer
from memweave.trainers.grpo_config import TraceGRPOConfig
from memweave.trainers.rollouts import Rollouts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build_trainer(
    recipe: Recipe,
    settings: TrainSettings,
    place: Place,
    *,
    run: str,
    credit: Credit,
    rollouts: Rollouts,
    server: PolicyServer,
) -> TraceGRPOTrainer:
    """Return the trainer that `recipe` and `settings` describe."""
    episodes = settings.tasks_per_step * settings.group_size
    args = TraceGRPOConfig(
        output_dir=str(place.out / "checkpoints"),
        run=run,
        max_steps=settings.steps,
        per_device_train_batch_size=episodes,
        num_generations=settings.group_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        temperature=settings.temperature,
        max_completion_length=max(recipe.max_tokens.values()),
        loss_type=settings.loss_type,
        beta=settings.beta,
        seed=settings.seed,
        save_steps=settings.save_every,
        progress=not place.quiet,
    )
    with quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            place.base, dtype="float32", local_files_only=True
        )
    rank = settings.lora_rank
    lora = rank and LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="CAUSAL_LM")
    return TraceGRPOTrainer(
        model,
        recipe.tasks("train", settings.tasks_per_step, settings.seed),
        rollouts,
        server,
        args,
        credit=credit,
        peft_config=lora or None,
    )

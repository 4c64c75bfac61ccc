"""Train PPO with as many processes as the launcher starts: `ppo_child.py BASE OUT EPISODES_PER_PROCESS`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from memweave.tracing import Trace
from memweave.trainers.ppo import TracePPOConfig, TracePPOTrainer
from tests.trainers.direct import DirectServer, Task, class_share
from tests.trainers.leaving import run_and_leave
from tests.trainers.test_ppo import Rollouts


def apart(trace: Trace) -> Trace:
    """Return the trace with the given tokens before its second reply replaced, so that its generations cannot merge."""
    first, second = trace.generations
    prompt = second.prompt_token_ids or ()
    return trace.model_copy(update={"generations": (first, second.model_copy(update={"prompt_token_ids": prompt[1:]}))})


def main(base: Path, out: Path, episodes: int) -> None:
    torch.set_num_threads(1)
    server = DirectServer(base, out / "served")
    trainer = TracePPOTrainer(
        AutoModelForCausalLM.from_pretrained(str(base), dtype="float32"),
        [Task(f"task {i}") for i in range(8)],
        Rollouts(server, class_share, turns=2, change=apart),  # type: ignore[arg-type]  # a stand-in without a graph
        server,
        TracePPOConfig(
            output_dir=str(out),
            max_steps=3,
            per_device_train_batch_size=episodes,
            learning_rate=1e-3,
            value_learning_rate=1e-2,
            gae_lambda=0.9,
            vf_coef=0.5,
            lr_scheduler_type="constant",
            save_strategy="steps",
            save_steps=3,
            use_cpu=True,
            curves=False,
            progress=False,
            # A reply of its own row was sampled after other tokens than the row has.
            logp_difference_limit=10.0,
            ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
        ),
    )
    trainer.train()
    trainer.save_policy(out / "policy")
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    run_and_leave(lambda: main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))

"""Train in a process of its own: `python resume_child.py BASE OUT KILL_AT RESUME`. KILL_AT 0 lets it finish."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from memweave.trainers.grpo import TraceGRPOTrainer
from tests.trainers.direct import DirectRollouts, DirectServer, Task, class_share, config, lora


class Kill(TrainerCallback):
    """Ends the process at a step, as `kill -9` does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(base: Path, out: Path, kill_at: int, resume: bool) -> None:
    torch.set_num_threads(1)
    server = DirectServer(base, out / f"served-{os.getpid()}")
    trainer = TraceGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(str(base), dtype="float32"),
        [Task(name) for name in "abcd"],
        DirectRollouts(server, class_share, turns=2),
        server,
        config(
            out,
            max_steps=9,
            per_device_train_batch_size=4,
            steps_per_generation=2,
            num_iterations=2,
            save_strategy="steps",
            save_steps=5,
            beta=0.05,
            curves=True,
        ),
        peft_config=lora(),
        callbacks=[Kill(kill_at)],
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_policy(out / "policy")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "resume")

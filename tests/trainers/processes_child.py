"""Train with as many processes as the launcher starts: `processes_child.py BASE OUT EPISODES_PER_PROCESS [FAIL]`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from memweave.tracing import Trace
from memweave.trainers.grpo import TraceGRPOTrainer
from tests.trainers.direct import DirectRollouts, DirectServer, Task, class_share, config
from tests.trainers.leaving import run_and_leave


def main(base: Path, out: Path, episodes: int, fail: bool) -> None:
    torch.set_num_threads(1)

    def reward(task: str, trace: Trace) -> float | None:
        if fail:
            return None
        # One episode is left out, so the rows cannot be shared equally: 11 rows, 2 steps, 2 processes.
        return None if task == "a" and trace.replica == 0 else class_share(task, trace)

    server = DirectServer(base, out / "served")
    trainer = TraceGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(str(base), dtype="float32"),
        [Task(name) for name in "abc"],
        DirectRollouts(server, reward, turns=2),  # type: ignore[arg-type]  # a stand-in without a graph
        server,
        config(
            out,
            max_steps=4,
            per_device_train_batch_size=episodes,
            steps_per_generation=2,
            beta=0.05,
            learning_rate=1e-3,
            rows_per_forward=2,
            save_strategy="steps",
            save_steps=3,
            ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
            curves=True,
        ),
    )
    trainer.train()
    trainer.save_policy(out / "policy")
    if not trainer.accelerator.is_main_process:
        assert server.publications == 0, "only the main process publishes"
        assert trainer.save_policy(out / "other") == ""
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    run_and_leave(lambda: main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), len(sys.argv) > 4))

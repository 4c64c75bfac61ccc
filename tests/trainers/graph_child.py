"""Train a real graph in a process of its own: `python graph_child.py BASE OUT KILL_AT RESUME`. KILL_AT -1 lets it finish.

It dies in the middle of the episodes of that generation batch, which are run one after the other.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from memweave.serving.local_server import LocalServer
from memweave.tracing import Sampling, Trace, TraceStore
from memweave.trainers.grpo import TraceGRPOTrainer
from memweave.trainers.rollouts import Rollouts, Task
from tests.trainers.direct import config, lora
from tests.trainers.test_grpo_graph import graph_of, in_class, tasks


def main(base: Path, out: Path, kill_at: int, resume: bool) -> None:
    torch.set_num_threads(1)
    scored = 0

    def reward(task: Task, output: object, trace: Trace) -> float:
        nonlocal scored
        scored += trace.iteration == kill_at
        if scored == 4:  # three episodes of the batch are stored
            os.kill(os.getpid(), signal.SIGKILL)
        return in_class(task, output, trace)

    with LocalServer(base) as server, TraceStore(out / "traces.db") as store:
        model = server.chat_model(sampling=Sampling(temperature=1.0, max_tokens=6, seed=1))
        rollouts = Rollouts(graph_of(model), reward, concurrency=1, store=store)
        trainer = TraceGRPOTrainer(
            AutoModelForCausalLM.from_pretrained(str(base), dtype="float32"),
            tasks(2),
            rollouts,
            server,
            config(out, max_steps=5, save_strategy="steps", save_steps=2, curves=True),
            peft_config=lora(),
        )
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_policy(out / "policy")
        rollouts.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "resume")

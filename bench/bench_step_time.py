"""Time of one training step outside generation, against TRL's own GRPOTrainer given the same rows.

Both trainers train the same model on the same rows, in one process, taking turns. Ours is charged with everything but
sampling: writing the weights to publish, from traces to rows, credit, tensors, the comparison with sampled log-probabilities,
forward, backward, optimiser step, log entry. TRL's `_generate_and_score_completions` is patched to return ready tensors, so it
is charged with less. Bar: median over the rounds of the ratio of wall times <= 1.15; the ratio of CPU times is reported beside
it, since other programs do not disturb that.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from common import Row, report
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, ProgressCallback
from trl import GRPOConfig, GRPOTrainer

from memweave.records import new_id, utc_now
from memweave.serving import PublishedPolicy, create_policy
from memweave.tracing import Generation, Sampling, Score, Trace
from memweave.trainers.credit import Group
from memweave.trainers.grpo import TraceGRPOTrainer
from memweave.trainers.grpo_config import TraceGRPOConfig

BAR = 1.15
PROMPT, COMPLETION, GROUP = 60, 40, 8
STEPS, ROUNDS = 8, 7


@dataclass(frozen=True)
class Case:
    """One measurement."""

    name: str
    rows: int
    lora: bool


CASES = (Case("64 rows, all weights", 64, False), Case("64 rows, LoRA", 64, True), Case("16 rows, LoRA", 16, True))


@dataclass(frozen=True)
class Task:
    """A task that no graph sees."""

    id: str


class Server:
    """Serves nothing: publishing is not what is measured."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.number = 0

    def current(self, role: str) -> PublishedPolicy | None:
        """Return nothing, so that each step publishes."""
        return None

    def publish(self, weights: Path, *, run: str, role: str) -> PublishedPolicy:
        """Count, and serve nothing."""
        self.number += 1
        return PublishedPolicy(name=f"v{self.number}", run=run, role=role, number=self.number, version="v")


class Episodes:
    """Returns the same groups again and again."""

    def __init__(self, rows: int, vocabulary: int) -> None:
        random = np.random.default_rng(0)
        self.groups = [
            Group(f"t{task}", tuple(self._trace(random, task, replica, vocabulary) for replica in range(GROUP)))
            for task in range(rows // GROUP)
        ]

    def _trace(self, random: Any, task: int, replica: int, vocabulary: int) -> Trace:
        now = utc_now()
        length = int(random.integers(COMPLETION // 2, COMPLETION + 1))
        generation = Generation(
            index=0,
            role="policy",
            policy_version="v",
            prompt_token_ids=tuple(random.integers(3, vocabulary, PROMPT).tolist()),
            token_ids=tuple(random.integers(3, vocabulary, length).tolist()),
            logprobs=tuple((-5 - random.random(length)).tolist()),
            sampling=Sampling(temperature=1.0, logprobs="processed"),
            finish_reason="stop",
            started_at=now,
        )
        score = Score(value=float(random.random()))
        return Trace(
            id=new_id(),
            group=f"t{task}",
            replica=replica,
            generations=(generation,),
            score=score,
            started_at=now,
            ended_at=now,
        )

    def run(self, tasks: Any, **settings: Any) -> list[Group]:
        """Return the groups."""
        return self.groups


class Theirs(GRPOTrainer):  # type: ignore[misc]  # TRL publishes no types that mypy can follow
    """TRL's trainer with rows given."""

    ready: dict[str, torch.Tensor]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
        return dict(self.ready)

    def _send_telemetry(self) -> None:
        return None


def settings(case: Case, folder: Path) -> dict[str, Any]:
    """Return what both trainers are given."""
    return {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": case.rows,
        "num_generations": GROUP,
        "max_completion_length": COMPLETION,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
    }


def adapter(case: Case) -> Any:
    """Return the settings of the adapter, if the case has one."""
    from peft import LoraConfig

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM") if case.lora else None


def ours(case: Case, base: Path, folder: Path, episodes: Episodes) -> TraceGRPOTrainer:
    """Return our trainer."""
    server: Any = Server(base)
    rollouts: Any = episodes
    tasks: Any = [Task(group.id) for group in episodes.groups]
    return TraceGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(str(base), dtype="float32"),
        tasks,
        rollouts,
        server,
        TraceGRPOConfig(**settings(case, folder), logp_difference_limit=1e9, curves=False, progress=False),
        peft_config=adapter(case),
    )


def theirs(case: Case, base: Path, folder: Path, mine: TraceGRPOTrainer, episodes: Episodes) -> Theirs:
    """Return TRL's trainer with the rows of `mine`."""
    trainer = Theirs(
        model=AutoModelForCausalLM.from_pretrained(str(base), dtype="float32"),
        reward_funcs=lambda **_: [0.0],
        args=GRPOConfig(**settings(case, folder), activation_checkpointing=False, disable_tqdm=True),
        train_dataset=Dataset.from_dict({"prompt": ["x"] * (STEPS * case.rows)}),
        processing_class=AutoTokenizer.from_pretrained(str(base)),
        peft_config=adapter(case),
    )
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    trainer.ready = ready(mine, episodes)
    return trainer


def ready(mine: TraceGRPOTrainer, episodes: Episodes) -> dict[str, torch.Tensor]:
    """Return the rows as TRL's tensors: prompts, completions, log-probabilities, advantages per row."""
    credit = mine._collector._credit(episodes.groups).advantages
    found = [(g, credit[trace.id, 0]) for group in episodes.groups for trace in group.traces for g in trace.generations]
    width = max(len(g.token_ids or ()) for g, _ in found)
    ids, mask = torch.zeros(len(found), width, dtype=torch.int64), torch.zeros(len(found), width, dtype=torch.int64)
    logps = torch.zeros(len(found), width)
    for i, (generation, _) in enumerate(found):
        length = len(generation.token_ids or ())
        ids[i, :length] = torch.tensor(generation.token_ids)
        mask[i, :length] = 1
        logps[i, :length] = torch.tensor(generation.logprobs)
    prompts = torch.tensor([generation.prompt_token_ids for generation, _ in found])
    device = mine.accelerator.device
    tensors = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.tensor([advantage for _, advantage in found]),
        "num_items_in_batch": mask.sum(),
        "old_per_token_logps": logps,
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def seconds(trainer: GRPOTrainer) -> tuple[float, float]:
    """Return wall and CPU seconds per step of a short training."""
    trainer._step, trainer._buffered_inputs = 0, None
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - wall) / STEPS, (time.process_time() - cpu) / STEPS


def measure(case: Case, base: Path, folder: Path, vocabulary: int) -> list[Row]:
    """Return the ratio of wall times, and of CPU times."""
    episodes = Episodes(case.rows, vocabulary)
    mine = ours(case, base, folder / "ours", episodes)
    other = theirs(case, base, folder / "theirs", mine, episodes)
    seconds(mine), seconds(other)  # warm up
    walls, cpus = [], []
    for number in range(ROUNDS):
        order = (mine, other) if number % 2 == 0 else (other, mine)
        times = {id(trainer): seconds(trainer) for trainer in order}
        (wall, cpu), (their_wall, their_cpu) = times[id(mine)], times[id(other)]
        walls.append((wall / their_wall, wall, their_wall))
        cpus.append(cpu / their_cpu)
    ratio = statistics.median(each[0] for each in walls)
    ours_ms, trl_ms = (1e3 * statistics.median(each[i] for each in walls) for i in (1, 2))
    spread = f"rounds {min(walls)[0]:.2f} to {max(walls)[0]:.2f}; ours {ours_ms:.0f} ms, TRL {trl_ms:.0f} ms"
    return [
        Row(f"{case.name}: wall time", ratio, "x", f"<= {BAR}", ratio <= BAR, spread),
        Row(f"{case.name}: CPU time", statistics.median(cpus), "x"),
    ]


def main() -> None:
    """Measure all cases."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = "amber birch cedar delta ember flint grove heron iris jade kelp lotus maple north olive pearl"
        policy = create_policy(folder / "base", [words], vocab_size=512, hidden=128, layers=3)
        rows = [
            row
            for number, case in enumerate(CASES)
            for row in measure(case, folder / "base", folder / str(number), policy.vocabulary)
        ]
    report("step_time", "One training step outside generation, against TRL's GRPOTrainer with the same rows", rows)


if __name__ == "__main__":
    main()

"""Time of one training step outside generation, against TRL's own GRPOTrainer given the same rows.

    python bench/bench_step_time.py [--json]

Both trainers train the same model on the same rows, in one process, taking turns. Ours is charged with everything but
sampling: writing the weights to publish, from traces to rows, credit, tensors, the comparison with sampled log-probabilities,
forward, backward, optimiser step, log entry. TRL's `_generate_and_score_completions` is patched to return ready tensors, so it
is charged with less. Bar: ratio of the medians <= 1.15.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
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
STEPS, ROUNDS = 4, 5


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


def seconds(trainer: GRPOTrainer) -> float:
    """Return the seconds per step of a short training: CPU time, which other programs do not disturb; on a GPU, wall time."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    trainer._step, trainer._buffered_inputs = 0, None
    gc.collect()
    began = clock()
    trainer.train()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (clock() - began) / STEPS


def measure(case: Case, base: Path, folder: Path, vocabulary: int) -> dict[str, Any]:
    """Return both times and their ratio."""
    episodes = Episodes(case.rows, vocabulary)
    mine = ours(case, base, folder / "ours", episodes)
    other = theirs(case, base, folder / "theirs", mine, episodes)
    seconds(mine), seconds(other)  # warm up
    pairs = []
    for number in range(ROUNDS):
        order = (mine, other) if number % 2 == 0 else (other, mine)
        times = {id(trainer): seconds(trainer) for trainer in order}
        pairs.append((times[id(mine)], times[id(other)]))
    ours_, theirs_ = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    return {
        "case": case.name,
        "ours_ms": round(1e3 * ours_, 1),
        "trl_ms": round(1e3 * theirs_, 1),
        "ratio": round(ours_ / theirs_, 3),
        "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "bar": BAR,
        "ok": ours_ / theirs_ <= BAR,
    }


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = "amber birch cedar delta ember flint grove heron iris jade kelp lotus maple north olive pearl"
        policy = create_policy(folder / "base", [words], vocab_size=512, hidden=128, layers=3)
        found = [
            measure(case, folder / "base", folder / str(number), policy.vocabulary) for number, case in enumerate(CASES)
        ]
    report = {"benchmark": "step_time", "threads": torch.get_num_threads(), "torch": torch.__version__, "cases": found}
    if as_json:
        print(json.dumps(report))
    else:
        for each in found:
            low, high = each["ratio_range"]
            print(
                f"{each['case']:<22} ours {each['ours_ms']:7.1f} ms   TRL {each['trl_ms']:7.1f} ms   "
                f"ratio {each['ratio']:.3f} ({low:.2f}-{high:.2f}), bar {BAR}: {'ok' if each['ok'] else 'MISSED'}"
            )
    sys.exit(0 if all(each["ok"] for each in found) else 1)


if __name__ == "__main__":
    main()

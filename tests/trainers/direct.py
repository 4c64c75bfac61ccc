"""A policy server and rollouts without a graph: the trainer's own tests sample straight from the model that was published.

`DirectServer` holds the published weights in this process. `DirectRollouts` runs scripted episodes: each turn samples from the
policy, then appends given tokens (what a tool would have answered), so rows have sampled tokens on both sides of given ones.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import torch
from langchain_core.language_models import BaseChatModel

from memweave.records import utc_now
from memweave.serving import DEFAULT_ROLE, PublishedPolicy, weights_version
from memweave.serving.quiet import quiet
from memweave.tracing import Generation, Sampling, Score, Trace, TraceStatus
from memweave.trainers.credit import Group

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "flint",
    "grove",
    "heron",
    "iris",
    "jade",
    "kelp",
    "lotus",
    "maple",
    "north",
    "olive",
    "pearl",
]


class Task:
    """A task of these tests; the real one carries a graph's input."""

    def __init__(self, id: str) -> None:
        self.id = id


class DirectServer:
    """A policy server whose published weights are a model in this process."""

    def __init__(self, base: Path, folder: Path) -> None:
        self._base, self._folder = base, folder
        self._current: PublishedPolicy | None = None
        self.publications = 0
        self.model: Any = self._load(None)

    @property
    def base(self) -> Path:
        return self._base

    def _load(self, weights: Path | None) -> Any:
        from transformers import AutoModelForCausalLM

        full = weights is not None and (weights / "model.safetensors").exists()
        model: Any = AutoModelForCausalLM.from_pretrained(str(weights if full else self._base), dtype="float32")
        if weights is not None and not full:
            from peft import PeftModel

            with quiet():
                model = PeftModel.from_pretrained(model, str(weights))
        return model.eval()

    def publish(self, weights: Path, *, run: str, role: str = DEFAULT_ROLE) -> PublishedPolicy:
        self.publications += 1
        self._folder.mkdir(parents=True, exist_ok=True)
        mine = self._folder / f"v{len(list(self._folder.iterdir())) + 1}"
        shutil.copytree(weights, mine)
        self.model = self._load(mine)
        self._current = PublishedPolicy(
            name=f"{run}-{role}-v{self.publications}",
            run=run,
            role=role,
            number=self.publications,
            version=weights_version(mine),
        )
        return self._current

    def current(self, role: str = DEFAULT_ROLE) -> PublishedPolicy | None:
        return self._current

    def chat_model(self, role: str = DEFAULT_ROLE, **kwargs: object) -> BaseChatModel:
        raise AssertionError("these tests sample without a chat model")

    def check(self) -> None:
        return None

    def close(self) -> None:
        return None


Reward = Callable[[str, Trace], float | Score | None]


class DirectRollouts:
    """Episodes of `turns` replies of `length` tokens each, with given tokens between them."""

    def __init__(
        self,
        server: DirectServer,
        reward: Reward,
        *,
        turns: int = 1,
        length: int = 6,
        temperature: float = 1.0,
        change: Callable[[Trace], Trace] | None = None,
    ) -> None:
        self.server, self.reward = server, reward
        self.turns, self.length, self.temperature = turns, length, temperature
        self.change = change or (lambda trace: trace)
        self.calls: list[tuple[int, list[str]]] = []

    def run(
        self,
        tasks: Sequence[Any],
        *,
        group_size: int,
        run: str,
        iteration: int,
        policy_version: str | None = None,
    ) -> list[Group]:
        self.calls.append((iteration, [task.id for task in tasks]))
        episodes = [(task.id, replica) for task in tasks for replica in range(group_size)]
        seed = hashlib.blake2b(f"{run}/{iteration}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed))
        ids = [[10 + sum(map(ord, task)) % 40, 11, 12] for task, _ in episodes]
        generations: list[list[Generation]] = [[] for _ in episodes]
        for turn in range(self.turns):
            sampled, logprobs = sample(self.server.model, ids, self.length, self.temperature, generator)
            current = self.server.current()
            for number in range(len(episodes)):
                generations[number].append(
                    Generation(
                        index=turn,
                        role="policy",
                        policy=current.name if current else None,
                        policy_version=current.version if current else None,
                        prompt_token_ids=tuple(ids[number]),
                        token_ids=sampled[number],
                        logprobs=logprobs[number],
                        sampling=Sampling(temperature=self.temperature, logprobs="processed"),
                        finish_reason="length",
                        started_at=utc_now(),
                    )
                )
                ids[number] += [*sampled[number], 20 + turn, 21]
        traces = [
            self._scored(task, run, iteration, replica, tuple(found))
            for (task, replica), found in zip(episodes, generations, strict=True)
        ]
        return [Group(task.id, tuple(traces[i * group_size : (i + 1) * group_size])) for i, task in enumerate(tasks)]

    def _scored(self, task: str, run: str, iteration: int, replica: int, generations: tuple[Generation, ...]) -> Trace:
        key = hashlib.blake2b(f"{run}/{iteration}/{task}/{replica}".encode(), digest_size=16).digest()
        trace = Trace(
            id=UUID(bytes=key),
            run=run,
            iteration=iteration,
            group=task,
            replica=replica,
            status=TraceStatus.OK,
            generations=generations,
            started_at=utc_now(),
            ended_at=utc_now(),
        )
        value = self.reward(task, trace)
        score = Score(value=value, low=-10, high=10) if isinstance(value, float | int) else value
        return self.change(trace.model_copy(update={"score": score}))


@torch.no_grad()
def sample(
    model: Any, prompts: Sequence[Sequence[int]], length: int, temperature: float, generator: torch.Generator
) -> tuple[list[tuple[int, ...]], list[tuple[float, ...]]]:
    """Return `length` tokens sampled after each of `prompts`, which are equally long, and their log-probabilities."""
    ids, found = torch.tensor(prompts), []
    for _ in range(length):
        logits = model(input_ids=ids).logits[:, -1] / temperature
        logps = torch.log_softmax(logits.float(), -1)
        token = torch.multinomial(logps.exp(), 1, generator=generator)
        ids = torch.cat([ids, token], dim=1)
        found.append(logps.gather(1, token))
    tokens = ids[:, -length:].tolist()
    return [tuple(each) for each in tokens], [tuple(each) for each in torch.cat(found, dim=1).tolist()]


def class_share(task: str, trace: Trace) -> float:
    """Reward: the share of sampled tokens whose id is divisible by three."""
    ids = [token for g in trace.generations for token in g.token_ids or ()]
    return sum(token % 3 == 0 for token in ids) / max(len(ids), 1)


def config(folder: Path, **settings: Any) -> Any:
    """Return trainer settings that suit these tests."""
    from memweave.trainers.grpo_config import TraceGRPOConfig

    defaults: Mapping[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "use_cpu": True,
        "curves": False,
        "progress": False,
    }
    return TraceGRPOConfig(**{**defaults, **settings})


def lora(rank: int = 4) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="CAUSAL_LM")

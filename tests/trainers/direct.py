"""A policy server and rollouts without a graph: the trainer's own tests sample straight from the model that was published.

`DirectServer` holds the published weights in this process. `DirectRollouts` runs scripted episodes: each turn samples from the
policy, then appends given tokens (what a tool would have answered), so rows have sampled tokens on both sides of given ones.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import torch
from langchain_core.language_models import BaseChatModel

from memweave.records import utc_now
from memweave.serving import DEFAULT_ROLE, PublishedPolicy, weights_version
from memweave.tracing import Generation, Sampling, Score, Trace, TraceStatus
from memweave.trainers.credit import Group

WORDS = "amber birch cedar delta ember flint grove heron iris jade kelp lotus maple north olive pearl".split()


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

            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # PEFT's
                model = PeftModel.from_pretrained(model, str(weights))
        return model.eval()

    def publish(self, weights: Path, *, run: str, role: str = DEFAULT_ROLE) -> PublishedPolicy:
        self.publications += 1
        mine = self._folder / f"v{self.publications}"
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
        return [
            Group(task.id, tuple(self._episode(task.id, run, iteration, replica) for replica in range(group_size)))
            for task in tasks
        ]

    def _episode(self, task: str, run: str, iteration: int, replica: int) -> Trace:
        key = hashlib.blake2b(f"{run}/{iteration}/{task}/{replica}".encode(), digest_size=16).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
        ids = [10 + sum(map(ord, task)) % 40, 11, 12]
        generations = []
        for turn in range(self.turns):
            prompt = tuple(ids)
            sampled, logprobs = sample(self.server.model, prompt, self.length, self.temperature, generator)
            current = self.server.current()
            generations.append(
                Generation(
                    index=turn,
                    role="policy",
                    policy=current.name if current else None,
                    policy_version=current.version if current else None,
                    prompt_token_ids=prompt,
                    token_ids=sampled,
                    logprobs=logprobs,
                    sampling=Sampling(temperature=self.temperature, logprobs="processed"),
                    finish_reason="length",
                    started_at=utc_now(),
                )
            )
            ids += [*sampled, 20 + turn, 21]
        trace = Trace(
            id=UUID(bytes=key),
            run=run,
            iteration=iteration,
            group=task,
            replica=replica,
            status=TraceStatus.OK,
            generations=tuple(generations),
            started_at=utc_now(),
            ended_at=utc_now(),
        )
        value = self.reward(task, trace)
        score = Score(value=value, low=-10, high=10) if isinstance(value, float | int) else value
        return self.change(trace.model_copy(update={"score": score}))


@torch.no_grad()
def sample(
    model: Any, prompt: Sequence[int], length: int, temperature: float, generator: torch.Generator
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return `length` tokens sampled from `model` after `prompt`, and their log-probabilities."""
    ids, found = list(prompt), []
    for _ in range(length):
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1] / temperature
        logps = torch.log_softmax(logits.float(), -1)
        token = int(torch.multinomial(logps.exp(), 1, generator=generator))
        ids.append(token)
        found.append(float(logps[token]))
    return tuple(ids[len(prompt) :]), tuple(found)


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

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")

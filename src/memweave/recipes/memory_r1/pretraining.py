"""How the base policy of DialogWorld is made: clean lessons, the gate, then lessons of a teacher with habits.

    memweave pretrain --out FOLDER

1. *Clean lessons.* A tiny policy with random weights learns to look things up: quote first, then decide; banks grow from two memories
   to the sizes of the world.
2. *The gate.* On fresh banks of the world's size, greedy, it must answer at least 90 % of lookups. A policy that cannot look things up
   can learn nothing from the reward of an answer.
3. *Habits.* The same policy learns from a teacher that prefers the wrong reply three times out of four for some kinds of input
   (`teaching`): greedy it is wrong there, sampling finds the right reply now and then. That is the base policy of the recipes.

Every text, bank and order comes from the seed; weights differ in float noise between machines. The run goes on where it was cut off.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor
from torch.nn import functional

from memweave.agents.answerer import MARKER
from memweave.errors import ConflictError, FormatError, OperationError, SettingsError
from memweave.recipes.memory_r1 import lessons
from memweave.recipes.memory_r1.first_weights import write_first_weights
from memweave.recipes.memory_r1.lessons import IGNORED, Packed, lesson, pack, token_ids
from memweave.serving.policy_folder import PolicyFolder, create_policy, load_policy_folder
from memweave.serving.quiet import quiet
from memweave.tracing.records import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATE: Final = "pretraining.pt"
REPORT: Final = "pretraining.json"
MARKERS: Final = tuple(f" [{number}]" for number in range(64))
"""Numbers of memories, one token each: then copying a quoted line copies its number, with no circuit of its own."""
FEW: Final = 0.1
"""Share of lessons about at most two memories."""
ROLES: Final = ("answerer", "manager")
GATE: Final = 0.9
"""Share of lookups that a policy must answer before anything is trained on top of it (docs/memory-r1.md)."""


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """How the base policy is made."""

    clean_steps: int = 1500
    habit_steps: int = 300
    lessons: int = 16
    """Per step; half of them the manager's."""
    asked: int = 8
    """Things that are asked of one bank."""
    learning_rate: float = 2e-3
    """Peak of the clean lessons; cosine to 0."""
    habit_learning_rate: float = 5e-4
    grow: int = 400
    """Steps over which banks grow from two memories to full size."""
    manager_size: int = 8
    answerer_size: int = 12
    vocab_size: int = 1536
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 384
    context: int = 1024
    save_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("clean_steps", "lessons", "asked", "grow", "manager_size", "answerer_size", "save_every"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.habit_steps < 0:
            raise SettingsError(f"habit_steps = {self.habit_steps} must be at least 0")
        for name in ("learning_rate", "habit_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"{name} = {getattr(self, name)} must be a number above 0")


@dataclass(frozen=True)
class Gate:
    """Greedy replies on fresh banks of the world's size, with clean labels."""

    lookups: float
    """Share of right answers to questions that a memory answers."""
    answers: float
    """Share of right answers of all kinds."""
    operations: float
    """Share of managers' replies with exactly the right operations."""
    by_kind: Mapping[str, float]
    asked: int
    """Of each role."""

    @property
    def passed(self) -> bool:
        """Return whether the policy may be trained further."""
        return self.lookups >= GATE


Report = Callable[[int, int, float], object]
"""Called now and then: steps done, steps in all, mean loss since the last call."""


def pretrain(
    out: Path, settings: PretrainSettings | None = None, *, resume: bool = False, report: Report | None = None
) -> dict[str, Any]:
    """Make the base policy in folder `out` and return its report, which is kept there as `pretraining.json`.

    Raises `ConflictError` when `out` exists; `SettingsError` for a resumed run with other settings; `OperationError` when the
    loss stops being a number.
    """
    settings, out = settings or PretrainSettings(), Path(out).absolute()
    if out.exists():
        raise ConflictError(f"{out} exists already; choose another folder, or remove it")
    part = out.with_name(out.name + ".part")
    run = _Run.open(part, settings, resume)
    while True:
        if run.step == settings.clean_steps and run.gate is None:  # also when a run was cut off while it was measured
            run.gate = asdict(measure(run.policy(), settings.seed))
            run.save()
        if run.step >= run.steps:
            break
        run.advance(report)
    run.finish(out)
    return dict(json.loads((out / REPORT).read_text()))


def texts(seed: int, count: int = 4_000) -> Iterator[str]:
    """Yield what the tokenizer is trained on: prompts and replies of both roles."""
    rng = random.Random(f"texts:{seed}")
    for number in range(count):
        for role, size in (("manager", 8), ("answerer", 12)):
            for item in lesson(role, rng.randint(1, size), 2, rng, rng if number % 2 else None):
                yield item.messages[-1].text
                yield item.reply


class _Run:
    """A run of pre-training, and its folder."""

    def __init__(self, part: Path, settings: PretrainSettings) -> None:
        self.part, self.settings = part, settings
        self.folder: PolicyFolder = load_policy_folder(part / "policy")
        with quiet():
            from transformers import AutoModelForCausalLM

            self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                self.folder.path, dtype=torch.float32, local_files_only=True
            )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1.0, weight_decay=0.01, betas=(0.9, 0.98))
        self.step = 0
        self.seconds = 0.0
        self.gate: dict[str, Any] | None = None
        self.losses: list[float] = []

    @classmethod
    def open(cls, part: Path, settings: PretrainSettings, resume: bool) -> _Run:
        """Begin in an empty folder, or go on from what is saved."""
        if not (resume and (part / STATE).exists()):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            create_policy(
                part / "policy",
                texts(settings.seed),
                vocab_size=settings.vocab_size,
                hidden=settings.hidden,
                layers=settings.layers,
                heads=settings.heads,
                intermediate=settings.intermediate,
                context=settings.context,
                whole=MARKERS,
                seed=settings.seed,
            )
            run = cls(part, settings)
            write_first_weights(run.model, settings.seed)
            run.save()
            return run
        run = cls(part, settings)
        run._restore()
        return run

    @property
    def steps(self) -> int:
        """Return the steps of both phases."""
        return self.settings.clean_steps + self.settings.habit_steps

    def advance(self, report: Report | None) -> None:
        """Train until the next save or the end of the phase."""
        clean = self.settings.clean_steps
        until = min(self.step + self.settings.save_every, clean if self.step < clean else self.steps)
        began = time.perf_counter()
        batches = _ahead(self._batch, range(self.step, until))
        seen: list[float] = []
        for batch in batches:
            seen.append(self._learn(batch))
            self.step += 1
            if self.step % 20 == 0 or self.step == until:
                self.losses.append(sum(seen) / len(seen))
                if report is not None:
                    report(self.step, self.steps, self.losses[-1])
                seen = []
        self.seconds += time.perf_counter() - began
        self.save()

    def _batch(self, step: int) -> Packed:
        settings = self.settings
        rng = random.Random(f"lessons:{settings.seed}:{step}")
        habits = rng if step >= settings.clean_steps else None
        grown = min(1.0, step / settings.grow)
        made = []
        for number in range(settings.lessons):
            role = ROLES[number % 2]
            top = settings.manager_size if role == "manager" else settings.answerer_size
            most = max(2, round(2 + (top - 2) * grown))
            made.append(token_ids(self.folder, lesson(role, _size(rng, most), settings.asked, rng, habits)))
        return pack(made)

    def _rate(self) -> float:
        settings = self.settings
        warm = min(1.0, (self.step + 1) / 100)
        if self.step < settings.clean_steps:
            return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.step / settings.clean_steps))
        done = (self.step - settings.clean_steps) / settings.habit_steps
        return settings.habit_learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _learn(self, batch: Packed) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        loss = loss_of(self.model, batch)
        if not torch.isfinite(loss):
            rate = "learning_rate" if self.step < self.settings.clean_steps else "habit_learning_rate"
            raise OperationError(
                f"the loss is {loss.item()} at step {self.step + 1}; lower {rate} ({getattr(self.settings, rate)})"
            )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation lacks a return type
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.item())

    def policy(self) -> Path:
        """Write the weights as they are and return the folder."""
        with quiet():
            from safetensors.torch import save_file

            weights = {
                name: tensor.contiguous()
                for name, tensor in self.model.state_dict().items()
                if name != "lm_head.weight"
            }
            partial = self.part / ".model.safetensors"
            save_file(weights, partial, metadata={"format": "pt"})
            os.replace(partial, self.part / "policy" / "model.safetensors")  # a run that is resumed loads the folder
        return self.part / "policy"

    def save(self) -> None:
        """Write everything that the run needs to go on."""
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "seconds": self.seconds,
            "gate": self.gate,
            "losses": self.losses,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.part / f".{STATE}"
        torch.save(state, partial)
        os.replace(partial, self.part / STATE)

    def _restore(self) -> None:
        try:
            state = torch.load(self.part / STATE, weights_only=True)
        except Exception as error:
            raise FormatError(f"{self.part / STATE} cannot be read; start without resume") from error
        now = asdict(self.settings)
        changed = [
            f"{k}: {state['settings'].get(k)!r} then, {now[k]!r} now" for k in now if state["settings"].get(k) != now[k]
        ]
        if changed:
            raise SettingsError(
                f"{self.part} belongs to a run with other settings ({'; '.join(changed)}); start without resume"
            )
        self.step, self.seconds, self.gate, self.losses = (
            state["step"],
            state["seconds"],
            state["gate"],
            state["losses"],
        )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def finish(self, out: Path) -> None:
        """Write the policy and its report; the folder appears complete."""
        folder = self.policy()
        load_policy_folder(folder)  # weights that the last step broke are refused here
        found = {
            "settings": asdict(self.settings),
            "minutes": round(self.seconds / 60, 1),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "loss": self.losses[-1] if self.losses else None,
            "gate": self.gate,
        }
        (folder / REPORT).write_text(json.dumps(found, indent=1) + "\n")
        folder.rename(out)
        shutil.rmtree(self.part)


def _size(rng: random.Random, most: int) -> int:
    """Return the memories of a lesson: mostly many, but every dialogue begins with none."""
    return rng.randint(0, 2) if rng.random() < FEW else rng.randint(max(1, most // 2), most)


def loss_of(model: PreTrainedModel, batch: Packed) -> Tensor:
    """Return the mean loss (nat) of the marked tokens; only what a position sees decides about it."""
    hidden_from = torch.zeros(batch.sees.shape, dtype=torch.float32).masked_fill(
        ~batch.sees, torch.finfo(torch.float32).min
    )
    backbone: Any = model.base_model
    hidden = backbone(
        input_ids=batch.ids, position_ids=batch.positions, attention_mask=hidden_from, use_cache=False
    ).last_hidden_state
    learned = batch.labels != IGNORED
    head: Any = cast("Any", model).get_output_embeddings()
    return functional.cross_entropy(head(hidden[learned]).float(), batch.labels[learned])


def _ahead(make: Callable[[int], Packed], steps: range, most: int = 4) -> Iterator[Packed]:
    """Yield what `make` returns for each step, made a few steps ahead in a thread."""
    with ThreadPoolExecutor(1, "memweave-lessons") as pool:
        waiting = [pool.submit(make, step) for step in steps[:most]]
        for step in steps[most:]:
            yield waiting.pop(0).result()
            waiting.append(pool.submit(make, step))
        while waiting:
            yield waiting.pop(0).result()


def measure(policy: Path, seed: int, *, banks: int = 100, asked: int = 4, sizes: tuple[int, int] | None = None) -> Gate:
    """Return how the policy does on fresh banks of the world's sizes, clean labels, greedy.

    sizes: memories that the manager and the answerer see; by default those of the recipes.
    """
    from memweave.recipes.memory_r1.dialogs import BUDGET, TOP_K
    from memweave.serving.local_server import LocalServer

    right: dict[str, list[bool]] = {}
    with LocalServer(policy) as server:
        for role, size in zip(("manager", "answerer"), sizes or (TOP_K, BUDGET), strict=True):
            rng = random.Random(f"gate:{seed}:{role}")
            items = [item for _ in range(banks) for item in lesson(role, size, asked, rng, None)]
            ids = token_ids(server.folder, items)
            waiting = [server.submit(prompt, Sampling(temperature=0.0, max_tokens=112)) for prompt, _ in ids]
            for item, future in zip(items, waiting, strict=True):
                said = server.folder.tokenizer().decode(future.result().token_ids, skip_special_tokens=True)
                for kind in lessons.kinds_of(role, item):
                    right.setdefault(kind, []).append(_same(role, item.reply, str(said)))
    share = {kind: sum(marks) / len(marks) for kind, marks in sorted(right.items())}
    return Gate(share["lookups"], share["answerer"], share["manager"], share, banks * asked)


def _same(role: str, expected: str, said: str) -> bool:
    if role == "answerer":
        return expected.rpartition(MARKER)[2].strip() == said.rpartition(MARKER)[2].strip()
    try:
        return _operations(expected) == _operations(said)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _operations(reply: str) -> list[tuple[object, object, object]]:
    return [(item["event"], item.get("id"), item.get("text")) for item in json.loads(reply)["memory"]]

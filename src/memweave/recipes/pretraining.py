"""How a base policy is made: clean lessons, the gate, then lessons of a teacher with habits.

1. *Clean lessons.* A tiny policy with random weights learns to look things up.
2. *The gate.* Greedy, on fresh material of the world's size, it must do so nine times out of ten. A policy that cannot look
   things up can learn nothing from the reward of an answer.
3. *Habits.* The same policy learns from a teacher that prefers the wrong reply three times out of four for some kinds of input:
   greedy it is wrong there, sampling finds the right reply now and then. That is the base policy of a world's recipes.

What is learned is a `Course`; this module knows none. Every text and order comes from the seed; weights differ in float noise between
machines. The run goes on where it was cut off.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional

from memweave.errors import ConflictError, FormatError, OperationError, SettingsError
from memweave.recipes.first_weights import write_first_weights
from memweave.serving.loading import find_device
from memweave.serving.policy_folder import PolicyFolder, create_policy, load_policy_folder
from memweave.serving.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GATE: Final = 0.9
"""Share of lookups that a policy must do rightly before anything is trained on top of it."""
IGNORED: Final = -100
"""Label of a position that nothing is learned at."""
STATE: Final = "pretraining.pt"
REPORT: Final = "pretraining.json"


@dataclass(frozen=True, kw_only=True)
class CourseSettings:
    """What every course can be told."""

    clean_steps: int = 3000
    habit_steps: int = 300
    lessons: int = 16
    """Per step."""
    learning_rate: float = 2e-3
    """Peak of the clean lessons; cosine to 0."""
    habit_learning_rate: float = 5e-4
    vocab_size: int = 1536
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 384
    context: int = 1024
    save_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("clean_steps", "lessons", "save_every"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.habit_steps < 0:
            raise SettingsError(f"habit_steps = {self.habit_steps} must be at least 0")
        for name in ("learning_rate", "habit_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"{name} = {getattr(self, name)} must be a number above 0")


@dataclass(frozen=True)
class Packed:
    """Lessons as one batch: (B, T) ids, positions and labels, and which position sees which, (B, 1, T, T).

    sees: `None` where every position sees what stands before it.
    """

    ids: Tensor
    positions: Tensor
    labels: Tensor
    sees: Tensor | None


class Course(Protocol):
    """What a base policy learns, and how it is measured."""

    @property
    def settings(self) -> CourseSettings:
        """How long, how much, and how large the policy is."""

    @property
    def whole(self) -> Sequence[str]:
        """Texts that are one token each."""

    def texts(self) -> Iterable[str]:
        """Return what the tokenizer is trained on."""

    def batch(self, step: int, folder: PolicyFolder, device: str) -> Packed:
        """Return the lessons of a step; from `clean_steps` on, those of the teacher with habits."""

    def measure(self, policy: Path) -> dict[str, Any]:
        """Return the gate: at least `lookups`, the share of what was looked up rightly."""


Report = Callable[[int, int, float], object]
"""Called now and then: steps done, steps in all, mean loss since the last call."""


def pretrain(
    out: Path, course: Course, *, resume: bool = False, report: Report | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Make the base policy in folder `out` and return its report, which is kept there as `pretraining.json`.

    device: where it is trained, `cpu`, `cuda`, ...; measured and used on the CPU.

    Raises `ConflictError` when `out` exists; `SettingsError` for a resumed run with other settings, or a device that is not
    there; `OperationError` when the loss stops being a number.
    """
    out = Path(out).absolute()
    if out.exists():
        raise ConflictError(f"{out} exists already; choose another folder, or remove it")
    part = out.with_name(out.name + ".part")
    run = Run.open(part, course, resume, device)
    while True:
        if run.step == run.settings.clean_steps and run.gate is None:  # also when it was cut off while it was measured
            run.gate = course.measure(run.policy())
            run.save()
        if run.step >= run.steps:
            break
        run.advance(report)
    run.finish(out)
    return dict(json.loads((out / REPORT).read_text()))


class Run:
    """A run of pre-training, and its folder."""

    def __init__(self, part: Path, course: Course, device: str) -> None:
        self.part, self.course, self.settings, self.device = part, course, course.settings, device
        self.folder: PolicyFolder = load_policy_folder(part / "policy")
        self.model = _loaded(part)
        cast("torch.nn.Module", self.model).to(device)  # the annotation of transformers' own `to` is wrong
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1.0, weight_decay=0.01, betas=(0.9, 0.98))
        self.step = 0
        self.seconds = 0.0
        self.gate: dict[str, Any] | None = None
        self.losses: list[float] = []

    @classmethod
    def open(cls, part: Path, course: Course, resume: bool, device: str = "cpu") -> Run:
        """Begin in an empty folder, or go on from what is saved."""
        find_device(device)
        settings = course.settings
        if not (resume and (part / STATE).exists()):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            create_policy(
                part / "policy",
                course.texts(),
                vocab_size=settings.vocab_size,
                hidden=settings.hidden,
                layers=settings.layers,
                heads=settings.heads,
                intermediate=settings.intermediate,
                context=settings.context,
                whole=course.whole,
                seed=settings.seed,
            )
            model = _loaded(part)
            write_first_weights(model, settings.seed)
            _write(model, part)
            run = cls(part, course, device)
            run.save()
            return run
        run = cls(part, course, device)
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
        batches = _ahead(lambda step: self.course.batch(step, self.folder, self.device), range(self.step, until))
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
        _write(self.model, self.part)
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
            state = torch.load(self.part / STATE, map_location=self.device, weights_only=True)
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
            "device": torch.cuda.get_device_name() if self.device.startswith("cuda") else self.device,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "loss": self.losses[-1] if self.losses else None,
            "gate": self.gate,
        }
        (folder / REPORT).write_text(json.dumps(found, indent=1) + "\n")
        folder.rename(out)
        shutil.rmtree(self.part)


def _loaded(part: Path) -> PreTrainedModel:
    with quiet():
        from transformers import AutoModelForCausalLM

        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            part / "policy", dtype=torch.float32, local_files_only=True
        )
    return model


def _write(model: PreTrainedModel, part: Path) -> None:
    """Put the weights of `model` into the policy folder of a run; they appear complete."""
    from safetensors.torch import save_file

    weights = {
        name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"
    }
    partial = part / ".model.safetensors"
    save_file(weights, partial, metadata={"format": "pt"})
    os.replace(partial, part / "policy" / "model.safetensors")  # a run that is resumed loads the folder


def loss_of(model: PreTrainedModel, batch: Packed) -> Tensor:
    """Return the mean loss (nat) of the marked tokens; only what a position sees decides about it."""
    hidden_from = None
    if batch.sees is not None:
        least = torch.finfo(torch.float32).min
        hidden_from = torch.zeros_like(batch.sees, dtype=torch.float32).masked_fill_(~batch.sees, least)
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

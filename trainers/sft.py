"""Supervised fine-tuning: a warm start from demonstrations, or from the rows of traces that are worth imitating.

`demonstrations` renders conversations with the policy's own chat template and marks the assistant's tokens, exactly by ids.
`train_sft` trains on marked tokens only and writes a policy folder that every policy server loads. A run that was stopped goes
on from its last checkpoint. Runs on CPU and CUDA, one process or several (accelerate), all weights or LoRA.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from memweave.errors import ConflictError, ContextLengthError, InputError, OperationError, SettingsError
from memweave.serving.policy_folder import load_policy_folder
from memweave.serving.quiet import quiet
from memweave.trainers.rows import Ids, Mask, Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Message = Mapping[str, str]
"""`role` (system, user, assistant or tool) and `content`."""
Conversation = Sequence[Message]
Report = Callable[[int, int, float | None], None]
"""Called at each log entry: steps done, steps in all, mean loss since the last one."""

IGNORED: Final = -100
"""Label of a token that is not learned."""
LORA_TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SETTINGS_FILE: Final = "sft.json"
WEIGHT_SUFFIXES: Final = (".safetensors", ".bin", ".index.json")


@dataclass(frozen=True, kw_only=True)
class SFTSettings:
    """How to train. Defaults suit a policy of about a million parameters; for 7B take LoRA and a learning rate of 1e-5."""

    steps: int = 300
    batch_size: int = 16
    """Sequences per optimiser step and process."""
    micro_batch_size: int | None = None
    """Sequences that go through the model at once; bounds memory. None: all of `batch_size`."""
    learning_rate: float = 1.5e-3
    """Peak; warmed up over 5 % of the steps, then a cosine to 0."""
    weight_decay: float = 0.0
    lora_rank: int | None = None
    """None trains all weights; otherwise an adapter, which is merged into the weights at the end."""
    bf16: bool = False
    """bfloat16 autocast, on GPUs that have it."""
    seed: int = 0
    """Of the order of examples and of a LoRA adapter's first weights."""
    save_every: int = 100
    """Steps between checkpoints."""
    log_every: int = 10
    report_to: tuple[str, ...] = ()
    """Logging back ends of transformers: `tensorboard`, ..."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} = {getattr(self, name)} must be at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise SettingsError(f"learning_rate = {self.learning_rate} must be a number above 0")
        if self.micro_batch_size is not None and (self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size):
            raise SettingsError(
                f"micro_batch_size = {self.micro_batch_size} must divide batch_size = {self.batch_size}"
            )
        if self.lora_rank is not None and self.lora_rank < 1:
            raise SettingsError(f"lora_rank = {self.lora_rank} must be at least 1, or None for all weights")


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence; `mask` is true on the tokens that are learned."""

    ids: Ids
    mask: Mask


@dataclass(frozen=True)
class SFTResult:
    """What came of a run."""

    policy: Path
    """Folder of the trained policy."""
    version: str
    """Hash of its weights."""
    steps: int
    examples: int
    learned_tokens: int
    """Per pass through the examples."""
    losses: tuple[float, ...]
    """Mean loss (nat per learned token) of each log entry."""
    seconds: float


def demonstrations(
    conversations: Iterable[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    *,
    tools: list[dict[str, Any]] | None = None,
) -> list[Example]:
    """Render `conversations` as the policy sees them, and mark what the assistant says, each end token included.

    A conversation's prompt up to an assistant message must be a token prefix of what follows. Raises InputError when it is
    not (the template drops or rewrites earlier turns), when there is no template, no assistant message, or no end token.
    """
    if not tokenizer.chat_template:
        raise InputError(
            "the tokenizer has no chat template: demonstrations cannot be rendered as the policy sees them"
        )

    def render(messages: Conversation, *, open_turn: bool) -> list[int]:
        ids = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=cast("list[dict[Any, Any] | Callable[..., Any]] | None", tools),
            tokenize=True,
            add_generation_prompt=open_turn,
            return_dict=False,
        )
        return cast("list[int]", ids)

    found = [
        _demonstration(number, conversation, render, tokenizer.eos_token_id)
        for number, conversation in enumerate(conversations)
    ]
    if not found:
        raise InputError("there are no demonstrations")
    return found


def _demonstration(number: int, messages: Conversation, render: Callable[..., list[int]], end: int | None) -> Example:
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        place = f"message {i} of demonstration {number}"
        prompt, upto = render(messages[:i], open_turn=True), render(messages[: i + 1], open_turn=False)
        if prompt[: len(ids)] != ids or upto[: len(prompt)] != prompt:
            raise InputError(
                f"{place}: the chat template is not append-only: the tokens before the assistant's turn change when the turn "
                "is added. Use a template that only appends, or one demonstration per turn"
            )
        stop = len(upto)
        while stop > len(prompt) and upto[stop - 1] != end:
            stop -= 1  # what a template writes after the end token is never sampled
        if stop == len(prompt):
            raise InputError(f"{place}: the chat template writes no end token ({end}) after the assistant's turn")
        spans.append((len(prompt), stop))
        ids = upto
    if not spans:
        raise InputError(f"demonstration {number} has no assistant message, so nothing to learn")
    mask = np.zeros(spans[-1][1], dtype=np.bool_)
    for start, stop in spans:
        mask[start:stop] = True
    return Example(np.array(ids[: len(mask)], dtype=np.int32), mask)


def train_sft(
    base: Path | str,
    data: Iterable[Example | Row],
    output: Path | str,
    settings: SFTSettings | None = None,
    *,
    resume: bool = False,
    report: Report | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> SFTResult:
    """Train the policy in folder `base` on the marked tokens of `data` and write the new policy to folder `output`.

    data: from `demonstrations`, or rows of traces.  resume: go on from the last checkpoint of an interrupted run; without it
    the run starts over. `output` appears complete, at the end; until then checkpoints are in `OUTPUT.part`.
    Raises: InputError for data that teaches nothing, ContextLengthError for a sequence longer than the policy's context,
    ConflictError when `output` exists, SettingsError when a resumed run has other settings, OperationError when the loss
    stops being a number.
    """
    settings, output = settings or SFTSettings(), Path(output).absolute()
    folder = load_policy_folder(base)
    examples = _checked(data, folder.context_length, folder.vocabulary)
    if output.exists():
        raise ConflictError(f"{output} exists already; choose another folder, or remove it")
    part = output.with_name(output.name + ".part")
    arguments = _arguments(part, settings)
    checkpoint = (
        _prepare(part, settings, folder.version, resume) if arguments.process_index == 0 else _last(part, resume)
    )
    began = time.perf_counter()
    with arguments.main_process_first(desc="preparing the run"):
        model = _model(folder.path, settings)
    trainer = _SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=[_item(example) for example in examples],
        data_collator=_Collator(_pad_id(model)),
        callbacks=[_Reporter(report), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)  # it writes to standard output
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.is_world_process_zero():
        _write_policy(trainer.accelerator.unwrap_model(trainer.model), folder.path, part, output)
    trainer.accelerator.wait_for_everyone()
    return SFTResult(
        policy=output,
        version=load_policy_folder(output).version,
        steps=trainer.state.global_step,
        examples=len(examples),
        learned_tokens=sum(int(example.mask.sum()) for example in examples),
        losses=tuple(entry["loss"] for entry in trainer.state.log_history if "loss" in entry),
        seconds=time.perf_counter() - began,
    )


def _checked(data: Iterable[Example | Row], context: int, vocabulary: int) -> list[Example]:
    examples = []
    for number, item in enumerate(data):
        if len(item.ids) > context:
            raise ContextLengthError(
                f"example {number} has {len(item.ids)} tokens and the policy's context holds {context}; shorten it, or take a "
                "policy with a longer context"
            )
        if item.ids.size and not 0 <= item.ids.min() <= item.ids.max() < vocabulary:
            raise InputError(f"example {number} has the token {item.ids.max()}; the policy knows {vocabulary} tokens")
        # The first token of a sequence is predicted from nothing, so it cannot be learned.
        if not item.mask[1:].any():
            raise InputError(f"example {number} has no token to learn: its mask is false everywhere")
        examples.append(Example(item.ids, item.mask))
    if not examples:
        raise InputError("there is nothing to train on: no demonstrations and no rows")
    return examples


def _arguments(part: Path, settings: SFTSettings) -> TrainingArguments:
    micro = settings.micro_batch_size or settings.batch_size
    return TrainingArguments(
        output_dir=str(part),
        max_steps=settings.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(settings.steps * 0.05),
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        save_steps=settings.save_every,
        save_total_limit=2,
        seed=settings.seed,
        bf16=settings.bf16,
        report_to=list(settings.report_to),
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )


def _prepare(part: Path, settings: SFTSettings, version: str, resume: bool) -> Path | None:
    """Return the checkpoint to go on from; without one, make an empty folder with the settings of this run."""
    saved = json.dumps({"base": version, **asdict(settings)}, sort_keys=True)
    file = part / SETTINGS_FILE
    if resume and file.is_file():
        if file.read_text() != saved:
            then, now = json.loads(file.read_text()), json.loads(saved)
            changed = [f"{k}: {then.get(k)!r} then, {now[k]!r} now" for k in now if then.get(k) != now[k]]
            raise SettingsError(
                f"{part} belongs to a run with other settings ({'; '.join(changed)}); start without resume"
            )
        return _last(part, resume)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    file.write_text(saved)
    return None


def _last(part: Path, resume: bool) -> Path | None:
    """Return the newest checkpoint that is complete: transformers writes trainer_state.json last."""
    found = [path for path in part.glob("checkpoint-*") if resume and (path / "trainer_state.json").is_file()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _model(folder: Path, settings: SFTSettings) -> PreTrainedModel:
    torch.manual_seed(settings.seed)
    with quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
    if settings.lora_rank is None:
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        target_modules=list(LORA_TARGETS),
        task_type="CAUSAL_LM",
    )
    with quiet():
        adapted: PreTrainedModel = get_peft_model(model, config)
    return adapted


def _pad_id(model: PreTrainedModel) -> int:
    pad = model.config.get_text_config().pad_token_id
    return 0 if pad is None else int(pad)


def _write_policy(model: Any, base: Path, part: Path, output: Path) -> None:
    """Write the weights, and beside them every file of the base that is not weights, byte for byte."""
    ready = part / "policy"
    shutil.rmtree(ready, ignore_errors=True)
    merged = model.merge_and_unload() if hasattr(model, "peft_config") else model
    with quiet():
        merged.save_pretrained(str(ready))
    for file in base.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHT_SUFFIXES) and file.name != "config.json":
            shutil.copy2(file, ready / file.name)
    ready.rename(output)
    shutil.rmtree(part)


def _item(example: Example) -> dict[str, Tensor]:
    ids = torch.from_numpy(example.ids.astype(np.int64))
    return {"input_ids": ids, "labels": torch.where(torch.from_numpy(example.mask), ids, IGNORED)}


class _Collator:
    """Pads at the right: with causal attention nothing sees the padding."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        def padded(name: str, value: int) -> Tensor:
            return torch.nn.utils.rnn.pad_sequence([i[name] for i in items], batch_first=True, padding_value=value)

        ids = padded("input_ids", self._pad_id)
        lengths = torch.tensor([len(item["input_ids"]) for item in items])
        attention = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return {"input_ids": ids, "attention_mask": attention, "labels": padded("labels", IGNORED)}


class _SFTTrainer(Trainer):
    """Stops as soon as the loss is no number; saves without a progress bar."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise OperationError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; lower learning_rate "
                f"({self.args.learning_rate}), or check the weights of the base policy"
            )
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with quiet():
            super()._save_checkpoint(*args, **kwargs)


class _Reporter(TrainerCallback):
    def __init__(self, report: Report | None) -> None:
        self._report = report

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **kwargs: object
    ) -> None:
        if self._report is not None and logs is not None and "loss" in logs:
            self._report(state.global_step, state.max_steps, logs["loss"])

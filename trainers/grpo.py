"""`TraceGRPOTrainer`: publish the policy, run episodes, turn their traces into rows, train on them, repeat.

A subclass of TRL's `GRPOTrainer` (1.16; it overrides private methods, so TRL is pinned). TRL generates, scores and computes
log-probabilities inside `_generate_and_score_completions`; here the episodes of any LangGraph graph take that place:

    generation batch (every steps_per_generation x num_iterations micro-steps)
      main process    publish weights -> run episodes -> credit -> rows -> send to all processes
      every process   its share of the rows -> tensors -> reference (and, if asked, old) log-probabilities
    micro-step        forward pieces of rows -> policy_loss -> backward

Departures from TRL, on purpose:
1. Rows, not (prompt, completion) pairs: sampled tokens may lie anywhere in a row, with an advantage for each. Rows are padded
   at the right and need no attention mask: a causal model never looks there.
2. A generation batch yields any number of rows. None is dropped; processes are made equal by rows that train nothing.
3. Old log-probabilities are the sampled ones of the trace (`vllm_importance_sampling_correction` computes them again).
   Before the first update of a batch the forward pass is compared with them: a server with other weights is found at once.
4. Means are taken over the generation batch, see `memweave.trainers.losses`.
5. The order of tasks depends on the seed and the number of the batch alone, so a resumed run needs no data loader state.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
)

from memweave.errors import MemweaveError, OperationError, ServerSetupError, SettingsError
from memweave.serving.quiet import quiet
from memweave.serving.server import PolicyServer, PublishedPolicy
from memweave.trainers import resume
from memweave.trainers.batches import Batch, collate, deal, pieces
from memweave.trainers.checkpointing import ResumableTrainer
from memweave.trainers.collecting import Collected, Collector
from memweave.trainers.credit import Credit, broadcast
from memweave.trainers.grpo_config import TraceGRPOConfig
from memweave.trainers.losses import Mean, PolicyLoss, importance_ratio, policy_loss
from memweave.trainers.publishing import Publisher

if TYPE_CHECKING:
    from peft import PeftConfig

    from memweave.trainers.progress import ProgressLine
    from memweave.trainers.rollouts import Rollouts, Task

log = resume.log


def _score_of_the_trace(**_: object) -> list[float | None]:
    """Stand where TRL wants a reward; never called, since `Rollouts` scores the episodes."""
    return []


class TraceGRPOTrainer(ResumableTrainer):
    """Trains a policy from the traces of a LangGraph graph.

    model: a causal language model (or the folder of one), the base of what `server` serves. With `peft_config` a LoRA adapter
    is trained, else all weights, which only the in-process server can serve. tasks: what episodes are run on.
    rollouts: graph and reward; the graph must call `server.chat_model(...)`. credit: advantages from groups of traces,
    `broadcast()` by default. Under accelerate, the main process alone publishes and runs episodes.

    Raises `SettingsError` for settings that contradict each other, `GroupError` for groups of one; `train` raises
    `NoPolicyError`, `RewardError`, `UnavailableError` and `ServerSetupError` when a batch cannot be trained on.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        tasks: Sequence[Task],
        rollouts: Rollouts,
        server: PolicyServer,
        args: TraceGRPOConfig,
        *,
        credit: Credit | None = None,
        peft_config: PeftConfig | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        self.tasks = list(tasks)
        self.server = server
        per_batch = args.generation_batch_size // args.num_generations
        if len(self.tasks) < per_batch:
            raise SettingsError(
                f"{len(self.tasks)} tasks, but a generation batch of {args.generation_batch_size} episodes in groups of "
                f"{args.num_generations} needs {per_batch}. Give more tasks or a smaller batch"
            )
        if len({task.id for task in self.tasks}) < len(self.tasks):
            raise SettingsError("two tasks have the same id; the id names the group that episodes are compared in")
        if processing_class is None:
            from transformers import AutoTokenizer

            processing_class = AutoTokenizer.from_pretrained(str(server.base))
        if isinstance(model, PreTrainedModel) and not model.config._name_or_path:
            model.config._name_or_path = str(server.base)  # TRL loads the reference policy from there
        with quiet():
            super().__init__(
                model=model,
                reward_funcs=[_score_of_the_trace],
                args=args,
                train_dataset=Dataset.from_dict({"prompt": ["tasks are drawn by `_tasks_of`"]}),
                processing_class=processing_class,
                callbacks=list(callbacks or []),
                optimizers=optimizers,
                peft_config=peft_config,
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise SettingsError(
                "weights sharded by FSDP or DeepSpeed cannot be published; use plain data parallelism (DDP)"
            )
        self._settings = args.loss_settings()
        self._publisher = Publisher(server, run=args.run, role=args.role)
        self._collector = Collector(rollouts, credit or broadcast(), args)
        self._totals: Batch = {}
        self._limit = self._difference_limit()
        self._difference = torch.zeros(3, dtype=torch.float64)  # max, sum and count since the last generation
        self._line: ProgressLine | None = None
        self._add_callbacks()

    # -- set-up ----------------------------------------------------------------------------------------------------------

    def _add_callbacks(self) -> None:
        for printer in (PrinterCallback, ProgressCallback):
            self.remove_callback(printer)  # both write to standard output, which belongs to --json
        if self.args.curves:
            from memweave.trainers.curves import Curves

            self.add_callback(Curves(Path(self.args.output_dir), title=self.args.run))
        if self.args.progress:
            from memweave.trainers.progress import ProgressLine

            self._line = ProgressLine()
            self.add_callback(self._line)

    def _send_telemetry(self) -> None:
        """Send nothing: TRL would report each run to its makers."""

    def _difference_limit(self) -> float:
        if self.args.logp_difference_limit is not None:
            return float(self.args.logp_difference_limit)
        exact = self.model.dtype == torch.float32 and not (self.args.bf16 or self.args.fp16)
        return 1e-2 if exact else 1.0

    @property
    def _generate_every(self) -> int:
        """Micro-steps for which a generation batch is used."""
        return int(self.args.steps_per_generation * self.num_iterations)

    def get_train_dataloader(self) -> DataLoader[int]:
        """Return one empty entry per micro-step: of the whole run, or of one pass over the tasks if `max_steps` is not set."""
        per_batch = self.args.generation_batch_size // self.num_generations
        steps = len(self.tasks) // per_batch * self._generate_every
        if self.args.max_steps > 0:
            steps = self.args.max_steps * self.args.gradient_accumulation_steps
        return DataLoader(range(steps), batch_size=1, collate_fn=list)  # type: ignore[arg-type]  # a range has the length and items of a data set

    def floating_point_ops(self, inputs: object) -> int:
        """Return 0: the entries of the data loader say nothing about the rows."""
        return 0

    def _tasks_of(self, iteration: int) -> list[Task]:
        """Return the tasks of generation batch `iteration`: each pass is a new order; its incomplete last batch is left out."""
        size = self.args.generation_batch_size // self.num_generations
        batches = len(self.tasks) // size
        lap, number = divmod(iteration, batches)
        order = np.arange(len(self.tasks))
        if self.args.shuffle_dataset:
            order = np.random.default_rng([self.args.seed, lap]).permutation(len(self.tasks))
        return [self.tasks[i] for i in order[number * size : (number + 1) * size]]

    # -- generation ------------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: object) -> Batch:
        if self._step % self._generate_every == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self._generate_and_score_completions(generation_batch)
        batch: Batch = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return batch

    def _generate_and_score_completions(self, inputs: object) -> list[Batch]:
        """Return this process's batches, one per step of the generation batch."""
        iteration = self._step // self._generate_every
        collected = self._collect(iteration)
        self._log_metrics(collected.metrics)
        self._difference.zero_()
        began = time.perf_counter()
        dealt = deal(
            collected.rows,
            self.args.steps_per_generation,
            self.accelerator.num_processes,
            [self.args.seed, iteration],
        )
        self._totals = self._count(collected)
        batches = []
        for step in dealt:
            batch = collate(step[self.accelerator.process_index], self._tokenizer.pad_token_id)
            batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
            batches.append({**self._with_logps(batch), **self._totals})
        self._log_metrics({"time/tensors": time.perf_counter() - began})
        return batches

    def _collect(self, iteration: int) -> Collected:
        """Return rows and metrics of the episodes, which the main process runs; its errors are raised everywhere."""
        payload: list[Collected | BaseException | None] = [None]
        if self.accelerator.is_main_process:
            try:
                began = time.perf_counter()
                published = self.publish()
                seconds = time.perf_counter() - began
                collected = self._collector.collect(self._tasks_of(iteration), iteration, published)
                collected.metrics["time/publish"] = seconds
                collected.metrics["policy/number"] = float(self._publisher.count)
                payload = [collected]
            except Exception as error:
                if self.accelerator.num_processes == 1:
                    raise
                payload = [error]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            payload = broadcast_object_list(payload, from_process=0)
        found = payload[0]
        if isinstance(found, MemweaveError):
            raise found
        if not isinstance(found, Collected):
            raise OperationError(f"the main process could not run the episodes: {found!r}")
        return found

    def publish(self) -> PublishedPolicy:
        """Serve the weights as they are now; does nothing when they are served already. Only on the main process."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return self._publisher.publish(model, step=self.state.global_step)

    def _count(self, collected: Collected) -> Batch:
        """Return what losses are divided by: counts of the generation batch per process and optimiser step."""
        rows = collected.rows
        counts = {
            "tokens": sum(int(row.mask[1:].sum()) for row in rows),
            "rows": sum(bool(row.mask[1:].any()) for row in rows),
            "steps": sum(bool(row.mask[span.start : span.stop].any()) for row in rows for span in row.spans),
        }
        # K micro-steps share the batch and an optimiser step takes `gradient_accumulation_steps` of them.
        share = self.args.gradient_accumulation_steps / self.args.steps_per_generation / self.accelerator.num_processes
        device = self.accelerator.device
        return {name: torch.tensor(count * share, device=device) for name, count in counts.items()}

    def _with_logps(self, batch: Batch) -> Batch:
        """Add reference log-probabilities (`beta` > 0), and recomputed ones with their correction where it is asked for."""
        if self.vllm_importance_sampling_correction:
            old = self._no_grad_logps(self.model, batch)
            self._compare(old, batch)
            self._raise_if_stale()
            batch["old_logps"] = old
            batch["sampling_ratio"] = importance_ratio(
                old,
                batch["sampled_logps"],
                batch["mask"],
                mode=self.vllm_importance_sampling_mode,
                low=self.vllm_importance_sampling_clip_min,
                high=self.vllm_importance_sampling_clip_max,
            )
        if self.beta != 0.0:
            if self.ref_model is not None:
                batch["ref_logps"] = self._no_grad_logps(self.ref_model, batch)
            else:
                from trl.trainer.utils import use_adapter

                model = self.accelerator.unwrap_model(self.model)
                with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
                    batch["ref_logps"] = self._no_grad_logps(self.model, batch)
        return batch

    @torch.no_grad()
    def _no_grad_logps(self, model: Any, batch: Batch) -> Tensor:
        out = torch.zeros_like(batch["sampled_logps"])
        start = 0
        for piece in pieces({"input_ids": batch["input_ids"], "mask": batch["mask"]}, self._rows_per_forward):
            logps = self._forward(model, piece)[0]
            out[start : start + len(logps), : logps.shape[1]] = logps
            start += len(logps)
        return out

    @property
    def _rows_per_forward(self) -> int:
        return int(self.args.rows_per_forward or self.args.per_device_train_batch_size)

    # -- training --------------------------------------------------------------------------------------------------------

    def _forward(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of the sampled tokens at the training temperature, and entropies; both (B, L - 1)."""
        ids = batch["input_ids"]
        labels = torch.full_like(ids, -100)
        labels[:, 1:] = torch.where(batch["mask"], ids[:, 1:], -100)
        with self.accelerator.autocast():
            out = model(input_ids=ids, labels=labels, fused_lm_head=True)
        entropy = out.entropy if out.entropy is not None else torch.zeros_like(out.log_probs)
        return out.log_probs, entropy

    def training_step(self, model: Any, inputs: object, num_items_in_batch: object = None) -> Tensor:
        """Add the gradient of one micro-step; its rows go through the model in pieces of `rows_per_forward`."""
        began = time.perf_counter()
        model.train()
        batch = self._prepare_inputs(inputs)
        trained = time.perf_counter()
        cut = pieces(batch, self._rows_per_forward)
        total = torch.zeros((), device=self.accelerator.device)
        metrics: dict[str, Mean] = {}
        for number, piece in enumerate(cut):
            last = number == len(cut) - 1
            with self._accumulating(model, last), self.compute_loss_context_manager():
                result = self._piece_loss(model, piece)
                self._check_number(result.loss)
                self._check_piece(piece, last)
                self.accelerator.backward(result.loss)
            total += result.loss.detach()
            for name, mean in result.metrics.items():
                known = metrics.get(name)
                metrics[name] = mean if known is None else Mean(known.total + mean.total, known.count + mean.count)
        self._log_loss_metrics(metrics)
        self._step += 1
        now = time.perf_counter()
        self._current_train_step_time += now - began
        self._log_metrics({"time/train": now - trained})
        if self._step % self.current_gradient_accumulation_steps == 0:
            self._log_metrics({"step_time": self._current_train_step_time})
            self._current_train_step_time = 0.0
        return total

    def _check_number(self, loss: Tensor) -> None:
        """Raise `OperationError` for a loss that is no number, before its gradient is taken."""
        if torch.isfinite(loss):
            return
        raise OperationError(
            f"the loss is {loss.item()} at step {self.state.global_step + 1}{self._bad_weight()}; lower {self._rates()}, and "
            "look at grad_norm and ratio of the steps before"
        )

    def _bad_weight(self) -> str:
        """Return a remark that names the first weight with a NaN or an infinity, if there is one."""
        for name, weight in self.accelerator.unwrap_model(self.model).named_parameters():
            if not torch.isfinite(weight).all():
                return f" (the weight {name} holds NaN or infinity)"
        return ""

    def _rates(self) -> str:
        return f"learning_rate ({self.args.learning_rate})"

    def _accumulating(self, model: Any, last: bool) -> AbstractContextManager[object]:
        """Return a context in which processes exchange no gradients, unless this is the `last` piece."""
        if last or self.accelerator.num_processes == 1:
            return nullcontext()
        context: AbstractContextManager[object] = self.accelerator.no_sync(model)
        return context

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        return self._piece_loss(model, inputs).loss

    def _piece_loss(self, model: Any, batch: Batch) -> PolicyLoss:
        """Return the loss of some rows of a batch; the losses of all pieces add up to the loss of the batch."""
        logps, entropies = self._forward(model, batch)
        if self._updates_since_generation() == 0 and "old_logps" not in batch:
            self._compare(logps.detach(), batch)
        entropy_mask = None
        if self.top_entropy_quantile < 1.0:
            entropy_mask = self.get_high_entropy_mask(entropies, batch["mask"], 1 - self.top_entropy_quantile)
        return policy_loss(
            logps,
            old_logps=batch.get("old_logps", batch["sampled_logps"]),
            advantages=batch["advantages"],
            mask=batch["mask"],
            settings=self._settings,
            tokens_in_batch=batch["tokens"],
            rows_in_batch=batch["rows"],
            steps_in_batch=batch["steps"],
            step_ids=batch["step_ids"],
            ref_logps=batch.get("ref_logps"),
            sampling_ratio=batch.get("sampling_ratio"),
            sampling_logps=batch["sampled_logps"],
            entropies=entropies,
            entropy_mask=entropy_mask,
            entropy_coef=self.entropy_coef,
        )

    # -- what the server sampled against what the trainer computes ---------------------------------------------------------

    def _updates_since_generation(self) -> int:
        """Return how often the weights changed since the rows were sampled."""
        steps = int(self.args.gradient_accumulation_steps)
        first = self._step // self._generate_every * self._generate_every
        return self._step // steps - first // steps

    def _compare(self, logps: Tensor, batch: Batch) -> None:
        """Note how far `logps` are from the sampled ones; the weights must be those that sampled."""
        difference = (logps - batch["sampled_logps"]).abs()[batch["mask"]].double()
        if difference.numel():
            worst = torch.nan_to_num(difference, nan=float("inf")).max()
            here = torch.stack([worst, difference.sum(), torch.tensor(float(difference.numel()), device=worst.device)])
            self._difference[0] = torch.maximum(self._difference[0], here[0].cpu())
            self._difference[1:] += here[1:].cpu()

    def _check_piece(self, batch: Batch, last: bool) -> None:
        """Refuse rows of other weights before their gradient is taken; every process does, or none."""
        if "old_logps" in batch or self._updates_since_generation():
            return
        if self.accelerator.num_processes == 1 or last:
            self._raise_if_stale()

    def _raise_if_stale(self) -> None:
        worst, total, count = self._gather(self._difference.clone())
        if count:
            key = "sampling/logp_difference"
            self._metrics["train"][f"{key}_max"] = [worst]
            self._metrics["train"][f"{key}_mean"] = [total / count]
        if worst <= self._limit:
            return
        published = self._publisher.published
        name = f" as {published.name}" if published else ""
        message = (
            f"sampled log-probabilities differ from the trainer's by up to {worst:.3g} nat (limit {self._limit:g}): the server "
            f"does not sample from the weights that were published{name}, or not at temperature {self.temperature:g}. "
            "Check that the graph uses this server's chat_model, that the server returns processed log-probabilities, "
            "and that its base is the trainer's"
        )
        if self.args.logp_difference_action == "raise":
            raise ServerSetupError(message)
        log.warning("%s", message)

    def _gather(self, values: Tensor) -> tuple[float, float, float]:
        """Return max, sum and sum of three numbers over all processes."""
        if self.accelerator.num_processes > 1:
            every = self.accelerator.gather(values.to(self.accelerator.device).unsqueeze(0)).cpu()
            values = torch.stack([every[:, 0].max(), every[:, 1].sum(), every[:, 2].sum()])
        worst, total, count = values.tolist()
        return worst, total, count

    # -- metrics ---------------------------------------------------------------------------------------------------------

    def _log_metrics(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._metrics["train"][name].append(value)

    def _log_loss_metrics(self, metrics: dict[str, Mean]) -> None:
        """Log means over all processes."""
        metrics = {name: mean for name, mean in metrics.items() if name != "policy_loss"}
        if not metrics:
            return
        sums = torch.stack([torch.stack([mean.total.double(), mean.count.double()]) for mean in metrics.values()])
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums, reduction="sum")
        for name, (total, count) in zip(metrics, sums.tolist(), strict=True):
            if count:
                self._metrics["train"][name].append(total / count)

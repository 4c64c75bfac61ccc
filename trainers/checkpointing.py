"""Checkpoints of `TraceGRPOTrainer`: written whole or not at all, resumed to the exact next step.

Beyond what Hugging Face's trainer keeps: the position within a generation batch, the rows of a batch that is not used up, what
was published, and the settings, which a resumed run must share. What is in the files is `memweave.trainers.resume`'s business.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer
from trl import GRPOTrainer

from memweave.serving.quiet import quiet
from memweave.trainers import resume
from memweave.trainers.publishing import Publisher, save_policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers.trainer_utils import TrainOutput

    from memweave.serving.server import PolicyServer
    from memweave.trainers.batches import Batch
    from memweave.trainers.progress import ProgressLine
    from memweave.trainers.rollouts import Task

log = resume.log


class ResumableTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL publishes no types that mypy can follow
    """The part of `TraceGRPOTrainer` that starts, stops, saves and goes on."""

    tasks: Sequence[Task]
    server: PolicyServer
    _publisher: Publisher
    _line: ProgressLine | None
    _buffered_inputs: list[Batch] | None
    _current_train_step_time: float

    def train(self, resume_from_checkpoint: bool | str | Path | None = None, **kwargs: Any) -> TrainOutput:
        """Train, from the start or from a checkpoint (`True`: the last complete one in `output_dir`).

        Raises `SettingsError`, naming the difference, when the checkpoint was written with other settings. A run that ends
        early says which checkpoint is the last.
        """
        checkpoint = None
        if resume_from_checkpoint:
            checkpoint = resume.find_checkpoint(resume_from_checkpoint, Path(self.args.output_dir))
            saved = resume.read_progress(checkpoint)
            resume.check_settings(saved, self._all_settings(), checkpoint)
            self._restore(saved, checkpoint)
            if self.accelerator.is_main_process:
                kept = "; the rows of the batch that it stopped in are kept" if saved.buffered else ""
                log.warning("run %s goes on from %s, after step %d%s", saved.run, checkpoint, saved.global_step, kept)
        try:
            done: TrainOutput = super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None, **kwargs)
            return done
        except BaseException as error:
            self._say_where_it_stopped(error)
            raise

    def _say_where_it_stopped(self, error: BaseException) -> None:
        if self._line is not None:
            self._line.stop()
        last = resume.last_checkpoint(Path(self.args.output_dir))
        how = f"go on from {last} with resume" if last else "there is no checkpoint yet (save_steps)"
        what = "interrupted" if isinstance(error, KeyboardInterrupt) else f"ended by {type(error).__name__}"
        if self.accelerator.is_main_process:
            log.warning("training was %s at step %s; %s", what, self.state.global_step, how)

    def _all_settings(self) -> dict[str, Any]:
        peft = getattr(self.model, "peft_config", None)
        return resume.settings_of(
            self.args,
            tasks=resume.settings_hash({"ids": [task.id for task in self.tasks]}),
            adapter=resume.plain(peft["default"].to_dict()) if peft else None,
        )

    def _restore(self, saved: resume.Progress, checkpoint: Path) -> None:
        self._step = saved.micro_step
        self._publisher.restore(saved.published, saved.publications)
        for name, values in saved.metrics.items():
            self._metrics["train"][name] = list(values)
        if saved.buffered:
            rows = resume.read_rows(checkpoint, self.accelerator.process_index)
            self._buffered_inputs = [
                {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()} for batch in rows
            ]

    def _get_output_dir(self, trial: Any) -> str:
        return self._writing_to or str(super()._get_output_dir(trial=trial))

    _writing_to: str | None = None
    """Where Hugging Face's code writes a checkpoint while it has no name yet."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint that appears complete or not at all. Raises `StorageFullError` when the disk is full."""
        final = Path(super()._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        partial = final.parent / resume.PARTIAL
        if self.accelerator.is_main_process:
            resume.clear(partial)
        self.accelerator.wait_for_everyone()
        self._writing_to = str(partial)
        try:
            with resume.disk_full(final), quiet():
                Trainer._save_checkpoint(self, model, trial)  # TRL's writes a model card besides (0.1 s)
                self._write_ours(partial / final.name, final)
        finally:
            self._writing_to = None
        if self.args.should_save:
            resume.rotate(final.parent, self.args.save_total_limit)

    def _write_ours(self, folder: Path, final: Path) -> None:
        rows = self._buffered_inputs if self._step % self._generate_every else None
        if rows is not None:
            resume.write_rows(folder, self.accelerator.process_index, rows)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            settings = self._all_settings()
            progress = resume.Progress(
                run=self.args.run,
                role=self.args.role,
                global_step=self.state.global_step,
                micro_step=self._step,
                published=self._publisher.published,
                publications=self._publisher.count,
                settings=settings,
                settings_hash=resume.settings_hash(settings),
                metrics=dict(self._metrics["train"]),
                buffered=rows is not None,
            )
            resume.write_progress(folder, progress)
            resume.put_in_place(folder, final)
        self.accelerator.wait_for_everyone()

    def save_policy(self, folder: str | Path) -> str:
        """Save the policy as a folder that can be loaded and served, with `training.json`; return its version."""
        if not self.accelerator.is_main_process:
            return ""
        info = {
            "run": self.args.run,
            "role": self.args.role,
            "base": self.server.base.name,
            "step": self.state.global_step,
            "settings": self._all_settings(),
        }
        return save_policy(self.accelerator.unwrap_model(self.model), self.processing_class, Path(folder), info)

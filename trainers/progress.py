"""One line that says how far training is: step, reward, tokens per second. Only where someone watches."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments


class ProgressLine(TrainerCallback):
    """Shows a bar on standard error if that is a terminal; never writes to standard output."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start the bar."""
        if not state.is_world_process_zero or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step, shown="")
        self._bar.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """Show the step, its reward and how fast tokens are generated."""
        if self._bar is not None and logs and "reward" in logs:
            self._bar.update(self._task, completed=state.global_step, shown=summary(logs))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Leave the bar as it is."""
        self.stop()

    def stop(self) -> None:
        """End the bar; also after an error, so that the terminal is left in order."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def summary(logs: Mapping[str, Any]) -> str:
    """Return what the line says of a step."""
    parts = []
    if isinstance(logs.get("reward"), int | float):
        parts.append(f"reward {logs['reward']:.3f}")
    if isinstance(logs.get("tokens/per_second"), int | float):
        parts.append(f"{logs['tokens/per_second']:,.0f} tokens/s")
    return ", ".join(parts)

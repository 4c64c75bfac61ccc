"""Curves of a training run: `log.jsonl`, one object per log entry, and `curves.png`."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

Entry = Mapping[str, Any]
Scale = Literal["free", "zero", "log"]

LOG_FILE: Final = "log.jsonl"
CURVES_FILE: Final = "curves.png"
REDRAW: Final = 60.0
"""Seconds between two drawings while training; the last is always drawn."""

PANELS: Final[Sequence[tuple[str, Sequence[tuple[str, str]], Scale]]] = (
    ("reward of the episodes of a step (band: standard deviation)", (("reward", "mean"),), "free"),
    ("KL to the reference policy, nat", (("kl", "KL"),), "zero"),
    ("clipped tokens, share", (("clip_ratio/region_mean", "clipped"),), "zero"),
    (
        "|sampled - recomputed log-probability|, nat (should be near 0)",
        (("sampling/logp_difference_max", "largest"), ("sampling/logp_difference_mean", "mean")),
        "log",
    ),
    ("model calls per training row (1: nothing merged)", (("rows/merge_ratio", "merge ratio"),), "zero"),
    ("entropy of the policy, nat per token", (("entropy", "entropy"),), "free"),
)
"""Title, (metric, label) of each line, axis: `log`, from `zero`, or as matplotlib likes."""


class Curves(TrainerCallback):
    """Appends each log entry to `log.jsonl` and draws `curves.png` now and then. Only on the main process."""

    def __init__(self, folder: Path, *, title: str = "") -> None:
        self._folder, self._title = folder, title
        self._drawn = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Forget what was logged after the step that training goes on from."""
        if not state.is_world_process_zero:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = [entry for entry in read_log(self._folder / LOG_FILE) if entry.get("step", 0) <= state.global_step]
        partial = self._folder / f".{LOG_FILE}"
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        os.replace(partial, self._folder / LOG_FILE)
        self._drawn = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """Append the entry."""
        if not state.is_world_process_zero or not logs:
            return
        with (self._folder / LOG_FILE).open("a") as file:
            file.write(json.dumps({"step": state.global_step, **_finite(logs)}) + "\n")
        if time.monotonic() - self._drawn > REDRAW:
            self._draw()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Draw the curves."""
        if state.is_world_process_zero:
            self._draw()

    def _draw(self) -> None:
        draw(read_log(self._folder / LOG_FILE), self._folder / CURVES_FILE, title=self._title)
        self._drawn = time.monotonic()


def _finite(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry with `None` for what is no finite number, which JSON cannot say."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in logs.items()
    }


def read_log(path: Path) -> list[Entry]:
    """Return the entries of a log; a last line that was cut off by a crash is left out."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def draw(entries: Sequence[Entry], target: Path, *, title: str = "") -> None:
    """Draw the panels for which there are values. `target` is replaced at once."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = [panel for panel in PANELS if any(series(entries, name)[0] for name, _ in panel[1])]
    if not shown:
        return
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(5.6 * columns, 3.1 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold")
    for number, (name, lines, scale) in enumerate(shown):
        axes = figure.add_subplot(rows, columns, number + 1)
        _panel(axes, entries, _with_parts(entries, lines), scale)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("optimiser step", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    partial = target.with_name(f".{target.name}")
    figure.savefig(partial, format="png")
    os.replace(partial, target)


def _panel(axes: Any, entries: Sequence[Entry], lines: Sequence[tuple[str, str]], scale: Scale) -> None:
    for name, label in lines:
        steps, values = series(entries, name)
        if not steps:
            continue
        style = "--" if name.startswith("rewards/") else "-"
        marker = "." if len(steps) < 12 else ""
        (line,) = axes.plot(steps, values, style, linewidth=1.6, label=label, marker=marker)
        if name == "reward":
            _band(axes, entries, line.get_color())
    values = [value for name, _ in lines for value in series(entries, name)[1]]
    if scale == "log" and all(value > 0 for value in values):
        axes.set_yscale("log")
    if scale == "zero":
        axes.set_ylim(bottom=min(0.0, *values), top=max(1.1 * max(values), 1e-3))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend(fontsize=8, frameon=False)


def _with_parts(entries: Sequence[Entry], lines: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the lines, and beside the reward one for each part of the score that says more than the reward itself."""
    if lines[0][0] != "reward":
        return list(lines)
    names = sorted({key for entry in entries for key in entry if key.startswith("rewards/") and key.endswith("/mean")})
    parts = [name for name in names if series(entries, name) != series(entries, "reward")]
    return [*lines, *((name, name.removeprefix("rewards/").removesuffix("/mean")) for name in parts)]


def _band(axes: Any, entries: Sequence[Entry], color: Any) -> None:
    both = [
        (e["step"], e["reward"], e["reward_std"]) for e in entries if _number(e, "reward") and _number(e, "reward_std")
    ]
    if both:
        steps, means, spreads = zip(*both, strict=True)
        low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
        high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
        axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)


def series(entries: Sequence[Entry], name: str) -> tuple[list[int], list[float]]:
    """Return the steps at which `name` was logged, and its values."""
    found = [(entry["step"], entry[name]) for entry in entries if _number(entry, name)]
    return [step for step, _ in found], [value for _, value in found]


def _number(entry: Entry, name: str) -> bool:
    value = entry.get(name)
    return isinstance(value, int | float) and math.isfinite(value)

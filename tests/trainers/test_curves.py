from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("transformers")

from transformers import TrainerControl, TrainerState, TrainingArguments

from memweave.trainers.curves import Curves, _with_parts, draw, read_log, series


def entry(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "reward": 0.1 * step, "reward_std": 0.05, **more}


def test_the_log_stays_json_and_curves_leave_out_what_is_no_number(tmp_path: Path) -> None:
    curves = Curves(tmp_path, title="a run")
    state = TrainerState(is_world_process_zero=True)
    args: Any = TrainingArguments
    for step, kl in enumerate((0.1, math.nan, math.inf), 1):
        state.global_step = step
        curves.on_log(args, state, TrainerControl(), logs={"kl": kl, "reward": 0.5})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["kl"] for line in lines] == [0.1, None, None]
    assert series(read_log(tmp_path / "log.jsonl"), "kl") == ([1], [0.1])
    curves.on_train_end(args, state, TrainerControl())
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_parts_of_the_score_are_drawn_unless_they_are_the_score(tmp_path: Path) -> None:
    log = [entry(step, **{"rewards/all/mean": 0.1 * step, "rewards/style/mean": 0.3}) for step in (1, 2)]
    assert _with_parts(log, [("reward", "mean")]) == [("reward", "mean"), ("rewards/style/mean", "style")]
    assert _with_parts(log, [("kl", "KL")]) == [("kl", "KL")]
    draw(log, tmp_path / "c.png", title="a run")
    assert (tmp_path / "c.png").stat().st_size > 1_000


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    draw([{"step": 1, "loss": 0.0}], tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []

"""A run that was killed goes on exactly where its last checkpoint was; half a checkpoint is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memweave.errors import FormatError, InputError, SettingsError, StorageFullError
from memweave.serving import create_policy

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from memweave.trainers import resume  # noqa: E402 - after importorskip
from memweave.trainers.curves import read_log  # noqa: E402
from memweave.trainers.grpo import TraceGRPOTrainer  # noqa: E402
from tests.trainers.direct import WORDS, DirectRollouts, DirectServer, Task, class_share, config, lora  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = ("time/", "step_time", "tokens/per_second", "train_")
"""Metrics that measure the machine, not the run."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("policy") / "base"
    create_policy(folder, [" ".join(WORDS)], vocab_size=300)
    return folder


Build = Callable[..., TraceGRPOTrainer]


@pytest.fixture
def build(base: Path, tmp_path: Path) -> Build:
    def make(**settings: Any) -> TraceGRPOTrainer:
        from transformers import AutoModelForCausalLM

        server = DirectServer(base, tmp_path / "served")
        return TraceGRPOTrainer(
            AutoModelForCausalLM.from_pretrained(str(base), dtype="float32"),
            [Task("a"), Task("b")],
            DirectRollouts(server, class_share),  # type: ignore[arg-type]  # a stand-in without a graph
            server,
            config(tmp_path / "out", **{"save_strategy": "steps", "save_steps": 1, **settings}),
            peft_config=lora(),
        )

    return make


def child(base: Path, out: Path, kill_at: int, mode: str, script: str = "resume_child.py") -> int:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        str(Path(__file__).with_name(script)),
        str(base),
        str(out),
        str(kill_at),
        mode,
    ]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode not in (0, -9):
        raise AssertionError(done.stderr)
    return done.returncode


def metrics(out: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in entry.items() if not name.startswith(CLOCKS)}
        for entry in read_log(out / "log.jsonl")
        if "reward" in entry or "loss" in entry
    ]


def test_a_killed_run_goes_on_with_equal_bits(base: Path, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert child(base, straight, 0, "start") == 0
    assert child(base, killed, 7, "start") == -9
    assert resume.last_checkpoint(killed) == killed / "checkpoint-5"  # in the middle of a generation batch
    assert resume.read_progress(killed / "checkpoint-5").buffered
    assert [entry["step"] for entry in metrics(killed)] == [1, 2, 3, 4, 5, 6]
    assert child(base, killed, 0, "resume") == 0
    weights = "policy/adapter_model.safetensors"
    assert (straight / weights).read_bytes() == (killed / weights).read_bytes()
    assert metrics(straight) == metrics(killed)
    assert [entry["step"] for entry in metrics(killed)] == list(range(1, 10))


def test_a_killed_run_of_a_graph_goes_on_with_equal_bits_and_no_episode_twice(base: Path, tmp_path: Path) -> None:
    from memweave.tracing import TraceStore

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder, kill_at, mode, ended in (
        (straight, -1, "start", 0),
        (killed, 3, "start", -9),
        (killed, -1, "resume", 0),
    ):
        folder.mkdir(exist_ok=True)
        assert child(base, folder, kill_at, mode, "graph_child.py") == ended
    weights = "policy/adapter_model.safetensors"
    assert (straight / weights).read_bytes() == (killed / weights).read_bytes()
    assert metrics(straight) == metrics(killed)
    for folder in (straight, killed):
        with TraceStore(folder / "traces.db") as store:
            keys = [(t.iteration, t.group, t.replica) for t in store.iterate(run="run")]
        assert len(keys) == len(set(keys)) == 5 * 8


def test_half_a_checkpoint_is_ignored_with_a_message(
    build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(max_steps=2).train()
    out = tmp_path / "out"
    (out / "checkpoint-2" / resume.MARKER).unlink()
    assert resume.last_checkpoint(out) == out / "checkpoint-1"
    assert "checkpoint-2 is not complete" in caplog.text
    trainer = build(max_steps=2)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2
    assert resume.complete(out / "checkpoint-2")


def test_a_named_checkpoint_must_be_complete(build: Build, tmp_path: Path) -> None:
    build(max_steps=1).train()
    checkpoint = tmp_path / "out/checkpoint-1"
    (checkpoint / resume.MARKER).unlink()
    with pytest.raises(InputError, match="not complete"):
        build().train(resume_from_checkpoint=checkpoint)
    with pytest.raises(InputError, match="no complete checkpoint"):
        build().train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match="no checkpoint"):
        build().train(resume_from_checkpoint=tmp_path / "nowhere")


def test_other_settings_are_named(build: Build, tmp_path: Path) -> None:
    build(max_steps=1).train()
    with pytest.raises(SettingsError, match=r"learning_rate: 0.01 then, 0.5 now"):
        build(max_steps=2, learning_rate=0.5).train(resume_from_checkpoint=True)
    with pytest.raises(SettingsError, match=r"temperature: 1.0 then, 0.7 now"):
        build(max_steps=2, temperature=0.7).train(resume_from_checkpoint=True)


def test_a_run_may_go_on_for_longer_and_save_elsewhere(build: Build) -> None:
    build(max_steps=1).train()
    trainer = build(max_steps=3, save_steps=2, save_total_limit=5)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert [number for number, _ in trainer._collector._rollouts.calls] == [1, 2]  # type: ignore[attr-defined]  # the stand-in's


def test_a_longer_run_is_another_one_where_the_rate_depends_on_its_length(build: Build) -> None:
    build(max_steps=1, lr_scheduler_type="linear").train()
    with pytest.raises(SettingsError, match=r"max_steps: 1 then, 3 now"):
        build(max_steps=3, lr_scheduler_type="linear").train(resume_from_checkpoint=True)


def test_only_the_newest_checkpoints_are_kept(build: Build, tmp_path: Path) -> None:
    build(max_steps=4, save_total_limit=2).train()
    assert sorted(path.name for path in (tmp_path / "out").glob("*checkpoint*")) == ["checkpoint-3", "checkpoint-4"]


def test_a_checkpoint_of_a_newer_format_is_refused(build: Build, tmp_path: Path) -> None:
    build(max_steps=1).train()
    marker = tmp_path / "out/checkpoint-1" / resume.MARKER
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "format": 99}))
    with pytest.raises(FormatError, match="format 99"):
        build().train(resume_from_checkpoint=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of luck")])
def test_a_run_that_ends_early_names_its_last_checkpoint(
    build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    trainer = build(max_steps=5)
    collect = trainer._collector.collect

    def fail(tasks: Any, iteration: int, published: Any) -> Any:
        if iteration == 2:
            raise error
        return collect(tasks, iteration, published)

    trainer._collector.collect = fail  # type: ignore[method-assign]  # what a server or a user does at that moment
    with pytest.raises(type(error)):
        trainer.train()
    assert "checkpoint-2" in caplog.text
    assert "at step 2" in caplog.text


def test_a_full_disk_is_named(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume, "write_progress", full)
    with pytest.raises(StorageFullError, match="the disk is full: checkpoint"):
        build(max_steps=1).train()
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_resumed_run_publishes_to_a_new_server(build: Build) -> None:
    build(max_steps=2).train()
    trainer = build(max_steps=3)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.server.publications == 1  # type: ignore[attr-defined]  # the stand-in's
    assert trainer.state.log_history[-2]["policy/number"] == 3

"""The trainer and a real vLLM: exact ratios through a graph, and runs in which the trainer or the server is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("trl", reason="needs the extra `train`")

import torch

from memweave.errors import ConflictError
from memweave.tracing import Trace, TraceStatus, TraceStore
from memweave.trainers.grpo import TraceGRPOTrainer
from tests.integration.training import EPISODES, GROUP_SIZE, TASKS, in_class, listed, open_run, steps_of

if TYPE_CHECKING:
    from tests.integration.served import Served

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft 0.21
]
ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads wait for each other; and a run that is killed can be repeated to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def logged(trainer: TraceGRPOTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def check_traces(traces: Iterable[Trace], out: Path, steps: int) -> None:
    """Check that every episode of each step is stored once under the version that was trained, and sampled by it."""
    trained = steps_of(out)
    assert [step.number for step in trained] == list(range(steps))
    found = list(traces)
    keys = Counter((t.iteration, t.group, t.replica, t.metadata["policy_version"]) for t in found)
    for step in trained:
        for group in TASKS:
            for replica in range(GROUP_SIZE):
                assert keys.pop((step.number, group, replica, step.version)) == 1
    assert not keys, "episodes of versions that were never trained on"
    assert {trace.status for trace in found} == {TraceStatus.OK}
    versions: dict[str, set[str]] = {}
    for trace in found:
        assert [generation.node for generation in trace.generations] == ["think", "think", "answer"]
        for generation in trace.generations:
            assert generation.policy_version == trace.metadata["policy_version"]
            versions.setdefault(str(generation.policy), set()).add(str(generation.policy_version))
    assert all(len(each) == 1 for each in versions.values()), f"one name for several weights: {versions}"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_graph_is_trained_with_the_ratios_of_one_policy(vllm: Served, tmp_path: Path, temperature: float) -> None:
    run = f"graph-{temperature}"
    with open_run(vllm.process.url, vllm.base, tmp_path, run=run, max_steps=3, temperature=temperature) as (
        trainer,
        store,
    ):
        trainer.train()
        differences = logged(trainer, "sampling/logp_difference_max")
        assert len(differences) == 3
        assert max(differences) <= TOLERANCE
        assert logged(trainer, "ratio") == pytest.approx([1.0] * 3, abs=TOLERANCE)
        assert min(logged(trainer, "grad_norm")) > 0
        check_traces(store.iterate(run=run), tmp_path, 3)
    steps = steps_of(tmp_path)
    assert [step.policy for step in steps] == [f"{run}-policy-v{number}" for number in (1, 2, 3)]
    assert len({step.version for step in steps}) == 3
    for step in steps:  # the version before may still answer requests; older ones are gone, on the server and on disk
        kept = {f"{run}-policy-v{number}" for number in (step.number, step.number + 1) if number}
        assert {name for name in step.served if name.startswith(run)} == kept
        assert set(step.folders) == kept


def train_in_a_process(vllm: Served, out: Path, kill_at: int, mode: str) -> tuple[int, str]:
    """Return the exit code and what was said on standard error."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "HF_HUB_OFFLINE": "1"}
    program = "tests.integration.training"
    command = [sys.executable, "-m", program, vllm.process.url, str(vllm.base), str(out), str(kill_at), mode]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode, done.stderr


def test_a_killed_trainer_goes_on_with_no_episode_lost_or_doubled(vllm: Served, tmp_path: Path) -> None:
    """It dies after publishing the weights of step 3, three of whose episodes are stored; its last checkpoint is of step 2."""
    code, _ = train_in_a_process(vllm, tmp_path, 3, "start")
    assert code == -9
    assert [step.number for step in steps_of(tmp_path)] == [0, 1, 2]
    with TraceStore(tmp_path / "traces.db") as store:
        before = {trace.id for trace in store.iterate(run="killed-trainer")}
    assert len(before) == 3 * EPISODES + 3
    code, said = train_in_a_process(vllm, tmp_path, -1, "resume")
    assert code == 0
    assert f"run killed-trainer goes on from {tmp_path / 'checkpoint-2'}, after step 2" in said
    with TraceStore(tmp_path / "traces.db") as store:
        traces = list(store.iterate(run="killed-trainer"))
    check_traces(traces, tmp_path, 5)
    assert before < {trace.id for trace in traces}  # episodes of weights that were the same were not run again
    last = steps_of(tmp_path)[-1]
    assert (
        len([name for name in last.served if name.startswith("killed-trainer")]) == 2
    )  # what the dead one left is gone
    assert len(last.folders) == 2


def test_a_killed_server_is_waited_for_and_no_episode_is_lost(vllm: Served, tmp_path: Path) -> None:
    """Slow: vLLM starts a second time. That takes longer than an episode may."""
    lines: list[str] = []
    scored = Counter[int]()

    def restart() -> None:
        vllm.process.kill()
        vllm.process.launch()

    restarting = threading.Thread(target=restart)

    def reward(trace: Trace) -> float:
        assert trace.iteration is not None
        scored[trace.iteration] += 1
        if trace.iteration == 1 and scored[1] == 2:
            restarting.start()
        return in_class(trace)

    out = tmp_path
    with open_run(
        vllm.process.url,
        vllm.base,
        out,
        run="killed-server",
        reward=reward,
        on_wait=lines.append,
        concurrency=2,
        max_steps=3,
    ) as (trainer, store):
        trainer.train()
        restarting.join()
        assert len(lines) == 2
        assert f"vLLM at {vllm.process.url} does not answer" in lines[0]
        assert "waiting up to 300 s for it" in lines[0]
        assert "answers again; going on" in lines[1]
        assert scored == dict.fromkeys(range(3), EPISODES)
        check_traces(store.iterate(run="killed-server"), out, 3)
        assert max(logged(trainer, "sampling/logp_difference_max")) <= TOLERANCE
        # The adapters of steps 0 and 1 were loaded again under their names, and left as always.
        assert set(listed(trainer.server)) == {"killed-server-policy-v2", "killed-server-policy-v3"}


def test_two_trainers_of_one_run_conflict(vllm: Served, tmp_path: Path) -> None:
    with (
        open_run(vllm.process.url, vllm.base, tmp_path, run="same", max_steps=1) as (first, _),
        open_run(vllm.process.url, vllm.base, tmp_path, run="same", max_steps=1) as (second, _),
        open_run(vllm.process.url, vllm.base, tmp_path, run="other", max_steps=1) as (third, _),
    ):
        published = first.publish()
        message = (
            f"Another trainer publishes same-policy in {tmp_path / 'adapters'}. Stop it, or give this run another name"
        )
        with pytest.raises(ConflictError, match=message.replace(".", r"\.")):
            second.train()
        assert first.server.current() == published
        assert set(listed(first.server)) >= {published.name}
        third.publish()  # another run may share server and folder
        assert set(listed(first.server)) >= {published.name, "other-policy-v1"}

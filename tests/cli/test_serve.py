from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

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


def test_without_a_model_it_says_what_to_write(cli: Cli) -> None:
    result = cli("serve")
    assert result.code == 2
    assert "memweave serve MODEL_FOLDER" in result.err


def test_without_vllm_it_says_how_to_get_it(cli: Cli, tmp_path: Path) -> None:
    result = cli("serve", str(tmp_path), "--env", str(tmp_path / "env"))
    assert result.code == 1
    assert "memweave serve --install --env" in result.err

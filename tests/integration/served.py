"""A real vLLM for integration tests, started by the product's own code and shared by all tests of a base policy."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from memweave.serving.vllm_env import default_env, ensure_env
from memweave.serving.vllm_process import ServeSettings, VLLMProcess, start

# Read when the tests are collected: for single tests the environment is cleaned.
_GIVEN = os.environ.get("MEMWEAVE_VLLM_ENV")
_ENV = Path(_GIVEN) if _GIVEN else default_env()
KEY = "a-key"
CONTEXT = 256
TEXTS = ["Alice lives in Paris [3]. Bob moved to Rome in 2024. Where does Alice live? It is Paris."] * 4


@dataclass
class Served:
    """A running vLLM and the folder of its base policy."""

    process: VLLMProcess
    base: Path
    env: Path


def say(line: str) -> None:
    print(f"[vllm] {line}", file=sys.stderr)


@contextmanager
def serving(base: Path, log: Path, *, max_lora_rank: int) -> Iterator[Served]:
    """Serve `base`; the environment is made first when it is not there (3 GB, minutes)."""
    ensure_env(_ENV, say)
    settings = ServeSettings(max_loras=4, max_lora_rank=max_lora_rank, kv_cache_gb=0.25, api_key=KEY)
    with start(base, settings=settings, env=_ENV, log=log, say=say) as process:
        yield Served(process, base, _ENV)


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return a vLLM server of a policy that knows nothing."""
    pytest.importorskip("peft", reason="needs the extra `train`")
    from memweave.serving.policy_folder import create_policy

    folder = tmp_path_factory.mktemp("vllm")
    base = create_policy(folder / "base", TEXTS, vocab_size=320, context=CONTEXT, initializer_range=0.2, seed=1).path
    with serving(base, folder / "vllm.log", max_lora_rank=8) as served:
        yield served

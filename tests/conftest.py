"""Fixtures for every test: a clean environment, an empty home folder, no network, an embedded bank.

Sockets: `addopts` in pyproject.toml lets tests connect to this machine only, so no test can reach a hosted model.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from memweave.memory_stores import MemoryBank
    from memweave.records import Scope

ROOT = Path(__file__).resolve().parents[1]
REMOVED = ("MEMWEAVE_", "OPENAI_", "LANGSMITH_", "LANGCHAIN_", "LANGGRAPH_")
KEPT = "MEMWEAVE_DATA"  # where the public data sets are: a fact about the machine, not a setting under test


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported, see the Makefile

pytest.register_assert_rewrite("memweave.testing.conformance")  # failures of the kits tell both sides

# Property tests try the same examples every time, on slow machines too.
settings.register_profile("memweave", derandomize=True, deadline=None, database=None)
settings.load_profile("memweave")


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio."""
    return "asyncio"


@pytest.fixture
def root() -> Path:
    """Return the repository's root folder."""
    return ROOT


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Take away the settings and keys of whoever runs the tests, and give an empty home folder."""
    for name in list(os.environ):
        if name.startswith(REMOVED) and name != KEPT:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def scope() -> Scope:
    """Return the scope that `bank` tests write to."""
    from memweave.records import Scope

    return Scope(user="anna")


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    """Return an empty bank on the embedded default with hashing embeddings."""
    from memweave.memory_stores import open_bank

    with open_bank(tmp_path / "bank", embedding="hashing") as opened:
        yield opened


@pytest.fixture
def closed_port() -> Callable[[], int]:
    """Return a function that gives a port of this machine where nobody listens."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        return port

    return find


@pytest.fixture
def data() -> Path:
    """Return the folder of the public data sets (tests marked `data`), or skip the test and say why."""
    folder = os.environ.get(KEPT)
    if not folder:
        pytest.skip(f"needs the public data sets: set {KEPT} to their folder")
    if not Path(folder, "locomo/locomo_train_val.json").exists():
        pytest.skip(f"{KEPT}={folder} holds no locomo/locomo_train_val.json")
    return Path(folder)

"""Importing the package is cheap and does nothing."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "openai",
    "langgraph",
    "langchain",
    "qdrant_client",
    "qdrant_edge",
)

PROBE = """
import os, sys, time
class Watched(dict):
    def __getitem__(self, key): reads.append(key); return dict.__getitem__(self, key)
    def get(self, key, default=None): reads.append(key); return dict.get(self, key, default)
reads = []
before = time.perf_counter()
os.environ = Watched(os.environ)
import logging; handlers = list(logging.root.handlers)
import memweave
elapsed = time.perf_counter() - before
assert logging.root.handlers == handlers
print(elapsed, ",".join(m for m in {heavy!r} if m in sys.modules) or "none", ",".join(reads) or "none")
"""


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_takes_under_a_second_and_touches_nothing() -> None:
    seconds, heavy, reads = run(PROBE.replace("{heavy!r}", repr(HEAVY))).split()
    assert float(seconds) < 1.0
    assert heavy == "none"
    assert reads == "none"


@pytest.mark.parametrize("module", ["memweave.cli.app", "memweave.memory_stores", "memweave.graphs.memory_r1"])
def test_nothing_imports_torch_until_it_is_used(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'sentence_transformers') if m in sys.modules])"
    assert run(code) == "[]"


def test_help_starts_in_under_a_second() -> None:
    code = "import time; t = time.perf_counter(); import memweave.cli.app; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(3)) < 1.0


def test_tests_can_reach_this_machine_only() -> None:
    with (
        pytest.warns(UserWarning, match="socket.connect"),
        pytest.raises(RuntimeError, match=r"host \"192\.0\.2\.1\""),
        socket.socket() as connection,
    ):
        connection.connect(("192.0.2.1", 443))

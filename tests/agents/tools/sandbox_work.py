"""What the tests of the sandbox share: a tool with small limits, and a look at what is left running."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import BaseTool

from memweave.agents.tools.sandbox import SandboxSettings, python_tool

MB = 1_000_000
SMALL: dict[str, Any] = {
    "cpu_seconds": 1.0,
    "wall_seconds": 5.0,  # tests that meet it set a shorter one; a busy machine takes its time to start Python
    "memory": 64 * MB,
    "processes": 8,
    "file_size": MB,
    "disk": 2 * MB,
    "files": 50,
    "output": 100_000,
    "shown": 2_000,
}

# Asked without the code under test: a fault of that must fail, not skip.
_ask = "import ctypes; raise SystemExit(ctypes.CDLL(None).unshare(0x10000000 | 0x40000000 | 0x20000) != 0)"
_forbidden = not sys.platform.startswith("linux") or subprocess.run([sys.executable, "-c", _ask], timeout=30).returncode
needs_sandbox = pytest.mark.skipif(bool(_forbidden), reason="this machine forbids user namespaces")


def small_tool(**changed: Any) -> BaseTool:
    """Return a tool with small limits, without trying the machine again."""
    return python_tool(SandboxSettings(**{**SMALL, **changed}), probe=lambda settings: None)


def ran(program: str, **changed: Any) -> str:
    """Return what the model is told of a program."""
    text = small_tool(**changed).invoke({"program": program})
    assert isinstance(text, str)
    return text


def children() -> set[str]:
    """Return the processes below this one, those included whose own parent has ended (see `adopting`)."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found |= set((task / "children").read_text().split())
        except OSError:  # the thread has ended
            continue
    return found


@contextmanager
def adopting() -> Iterator[set[str]]:
    """Become the parent of every orphan below this process, and check that there is none in the end."""
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)
    before = children()
    try:
        yield before
        assert children() <= before
    finally:
        libc.prctl(36, 0, 0, 0, 0)


def gone(before: set[str], seconds: float = 5.0) -> bool:
    """Return whether every new process below this one ends in time; what was killed from outside takes a moment."""
    end = time.monotonic() + seconds
    while left := children() - before:
        for each in left:
            try:
                os.waitpid(int(each), os.WNOHANG)
            except ChildProcessError:
                continue
        if time.monotonic() > end:
            return False
    return True

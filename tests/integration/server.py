"""Start a real `langgraph dev` and end all of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

READY_IN = 120.0  # seconds


@contextmanager
def langgraph_dev(
    config: Path, folder: Path, settings: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, str], Path]]:
    """Run `langgraph dev` on an empty data folder in `folder`; yield its address, its environment and its log."""
    log, port = folder / "server.log", _free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LANG", "OPENAI_", "MEMWEAVE_"))}
    environment = {
        **kept,
        "LANGSMITH_TRACING": "false",
        "LANGGRAPH_CLI_NO_ANALYTICS": "1",
        "MEMWEAVE_HOME": str(folder / "home"),
        "MEMWEAVE_EMBEDDING": "hashing",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
        **settings,
    }
    command = [sys.executable, "-m", "langgraph_cli", "dev", "--no-browser", "--no-reload", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with _running([*command, "--config", str(config)], environment, folder, log) as process:
        _wait_until_ready(process, url, log)
        yield url, environment, log


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _running(
    command: list[str], environment: dict[str, str], folder: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process group of its own, and end all of it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            for sign, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
                try:
                    os.killpg(process.pid, sign)
                except ProcessLookupError:
                    break
                try:
                    process.wait(patience)
                    break
                except subprocess.TimeoutExpired:
                    continue


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_IN
    while time.monotonic() < deadline:
        assert process.poll() is None, f"langgraph dev ended:\n{log.read_text()[-4000:]}"
        try:
            if httpx.get(f"{url}/ok", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)  # a poll with a deadline, not a guess
    pytest.fail(f"langgraph dev was not ready after {READY_IN:g} s:\n{log.read_text()[-4000:]}")

"""Processes that work on one folder until they are killed, and what they said before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


class Children:
    """Starts processes of a program beside this file, and keeps what they were told is done. given: part of each case."""

    def __init__(self, program: str, home: Path, **given: Any) -> None:
        self.home = home
        self.said: list[dict[str, Any]] = []
        self.given: dict[str, Any] = {"home": str(home), "kill_at": None, **given}
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(program))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def start(self, **case: Any) -> int:
        """Start a process; returns its id."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({**self.given, **case}) + "\n")
        self._server.stdin.flush()
        return int(self.read()["pid"])

    def read(self) -> dict[str, Any]:
        """Return the next thing a process says."""
        assert self._server.stdout is not None
        line = json.loads(self._server.stdout.readline())
        assert "error" not in line, line
        self.said.append(line)
        return dict(line)

    def wait(self) -> int:
        """Wait for the process to end; returns its exit status, negative for a signal."""
        while "exit" not in (line := self.read()):
            pass
        return int(line["exit"])

    def close(self) -> None:
        """End the program."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)
        assert self._server.stdout is not None
        self._server.stdout.close()

"""What a program in the sandbox may use, and how it is told that it used more. Standard library alone."""

from __future__ import annotations

import math
import re
import signal
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

from memweave.errors import SettingsError

MEGABYTE: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class SandboxSettings:
    """What one program may use. Every limit holds for the program and all that it starts, together, unless said otherwise.

    Raises: SettingsError for a limit that is too small to start Python, or a folder of packages that does not exist.
    """

    cpu_seconds: float = 10.0
    wall_seconds: float = 20.0
    memory: int = 256 * MEGABYTE
    """Bytes; of each process by the kernel (address space), of all together by the supervisor (what is in memory)."""
    processes: int = 16
    """Processes and threads."""
    file_size: int = 16 * MEGABYTE
    """Bytes of one file."""
    disk: int = 64 * MEGABYTE
    """Bytes of all files; they are in memory, beside `memory`."""
    files: int = 2_000
    """Files and folders."""
    open_files: int = 64
    """Of one process."""
    output: int = MEGABYTE
    """Bytes of output, and as many of errors; more of either ends the program."""
    shown: int = 8_000
    """Characters of output, and as many of errors, that the model is shown: the beginning and the end."""
    program: int = 100_000
    """Characters of a program."""
    at_once: int = 4
    """Programs that run at the same time; a call beyond waits."""
    wait_seconds: float = 30.0
    """How long it waits."""
    keep: bool = False
    """Whether a run (a thread of LangGraph) keeps its folder from call to call."""
    kept_bytes: int = 256 * MEGABYTE
    """Bytes of all kept folders; the one used longest ago is given up first."""
    packages: tuple[Path, ...] = ()
    """Folders of packages that programs may import, read-only; without any, the standard library alone."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        least = {"memory": 32 * MEGABYTE, "disk": 65_536, "open_files": 8, "files": 8}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, bool | tuple):
                continue
            if not math.isfinite(value):
                raise SettingsError(f"{each.name} = {value}: a sandbox has no limit without a number")
            if not value >= least.get(each.name, 1 if isinstance(value, int) else 0.01):
                raise SettingsError(
                    f"{each.name} = {value} is too small for a sandbox: give {least.get(each.name, 'more')}"
                )
        for folder in self.packages:
            if not folder.is_dir():
                raise SettingsError(f"packages: {folder} is no folder")


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    exit: int | None
    """Its exit status, negative for the signal that ended it; `None` when it was stopped."""
    stopped: str | None
    """Why it was ended: `cpu`, `wall`, `memory`, `processes`, `output`, `cancelled`, `killed`, `start` (no
    start in time)."""
    out: str
    err: str
    folder: bytes | None = field(repr=False)
    """Its folder as an archive that only a sandbox reads; `None` when it is not kept, or could not be."""
    restored: bool
    """Whether the folder of the earlier call could be put back."""
    seconds: float


def limit_of(outcome: Outcome, settings: SandboxSettings) -> str | None:
    """Return the limit that ended a program in words, from the supervisor or from the error that the program died of."""
    said = {
        "cpu": f"more than {settings.cpu_seconds:g} s of CPU time",
        "wall": f"more than {settings.wall_seconds:g} s",
        "memory": f"more than {settings.memory / MEGABYTE:g} MB of memory",
        "processes": f"more than {settings.processes} processes and threads",
        "output": f"more than {settings.output / MEGABYTE:g} MB of output",
        "file": f"a file of more than {settings.file_size / MEGABYTE:g} MB",
        "disk": f"more than {settings.disk / MEGABYTE:g} MB, or {settings.files} files, in its folder",
        "open files": f"more than {settings.open_files} open files",
        "killed": "killed, probably because the machine had no memory left",
        "start": "it did not start in time",
        "cancelled": "the call was cancelled",
    }
    if outcome.stopped is not None:
        return said[outcome.stopped]
    if outcome.exit == -signal.SIGXCPU:
        return said["cpu"]
    if outcome.exit == -signal.SIGXFSZ:
        return said["file"]
    if outcome.exit == 0:
        return None
    last = (outcome.err.strip().splitlines() or [""])[-1]
    for pattern, limit in _DIED_OF.items():
        if re.match(pattern, last):
            return said[limit]
    return None


_DIED_OF: Final[dict[str, str]] = {
    r"(\w+\.)*_?\w*MemoryError\b": "memory",
    r"OSError: \[Errno 12\]": "memory",
    r"OSError: \[Errno 27\]": "file",
    r"OSError: \[Errno 28\]": "disk",
    r"OSError: \[Errno 24\]": "open files",
    r"BlockingIOError: \[Errno 11\]": "processes",
    r"RuntimeError: can't start new thread": "processes",
}
"""How the last line of errors begins when a program met a limit of the kernel's."""

"""Run Python programs in a sandbox, and keep their folders: the part that lives in the process of the agent.

Standard library alone, so that it works, and is tested, without anything else.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import memweave
from memweave.agents.tools.sandbox_inside import PROGRAM, WORK
from memweave.errors import IsolationError, SettingsError

PYTHON: Final = "/python"
"""Where the interpreter is inside."""
GRACE: Final = 40.0
"""Seconds beyond the wall time after which the supervisor itself is ended: longer than all that it waits for."""
KEPT: Final = 64
"""Folders that are remembered; of older ones only that they were given up."""
MEGABYTE: Final = 1_000_000
_LAUNCH: Final = (
    "import sys; sys.path.append(sys.argv.pop(2)); from memweave.agents.tools.sandbox_launch import main; main()"
)


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
    """Why it was ended: `cpu`, `wall`, `memory`, `processes`, `output`, `cancelled`, `start` (no start in time)."""
    out: str
    err: str
    folder: bytes | None = field(repr=False)
    """Its folder as an archive that only a sandbox reads; `None` when it is not kept, or could not be."""
    restored: bool
    """Whether the folder of the earlier call could be put back."""
    seconds: float


class Call:
    """One program that runs. `cancel` may come from any thread, at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._life: int | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """End the program and everything that it started."""
        with self._lock:
            self.cancelled = True
            self._close()

    def run(self, program: str, settings: SandboxSettings, folder: bytes = b"") -> Outcome:
        """Run a program to its end. Raises `IsolationError` when the sandbox could not be set up or watched."""
        request = _request(program, settings)
        command = [sys.executable, "-I", "-S", "-B", "-c", _LAUNCH]
        with self._lock:
            if self.cancelled:
                return Outcome(None, "cancelled", "", "", None, True, 0.0)
            theirs, self._life = os.pipe()
            try:
                process = subprocess.Popen(
                    [*command, str(theirs), str(Path(memweave.__file__).parents[1])],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=[theirs],
                    env={},
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                self._close()
                raise IsolationError("python", f"it cannot be started: {error}") from error
            finally:
                os.close(theirs)
        try:
            with process:
                try:
                    out, err = process.communicate(
                        json.dumps(request).encode() + b"\n" + folder, settings.wall_seconds + GRACE
                    )
                except BaseException as error:
                    process.send_signal(signal.SIGKILL)  # and the kernel ends the sandbox with it
                    if isinstance(error, subprocess.TimeoutExpired):
                        raise IsolationError("supervision", "the supervisor of the sandbox hangs") from error
                    raise
        finally:
            with self._lock:
                self._close()
        return _outcome(out, err)

    def _close(self) -> None:
        if self._life is not None:
            os.close(self._life)
            self._life = None


def _outcome(out: bytes, err: bytes) -> Outcome:
    line, _, rest = out.partition(b"\n")
    try:
        told: dict[str, Any] = json.loads(line)
    except ValueError as error:
        reason = err.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise IsolationError("supervision", f"the supervisor of the sandbox died: {reason[0]:.300}") from error
    if "missing" in told:
        raise IsolationError(told["missing"], told["reason"])
    if "broken" in told and told.get("stopped") is None:
        raise IsolationError("supervision", told["broken"])
    first, second, third = told["sizes"]
    packed = told.get("packed") is True and not told["lost"]
    stopped = None if told["stopped"] == "packing" else told["stopped"]
    return Outcome(
        exit=told.get("exit") if stopped is None else None,
        stopped=stopped,
        out=rest[:first].decode(errors="replace"),
        err=rest[first : first + second].decode(errors="replace"),
        folder=rest[first + second : first + second + third] if packed else None,
        restored=told.get("restored", True),
        seconds=told["seconds"],
    )


def _request(program: str, settings: SandboxSettings) -> dict[str, Any]:
    binds, hidden, links = python_tree()
    packages = [(str(folder.resolve()), f"/packages/{i}") for i, folder in enumerate(settings.packages)]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {
        "program": program,
        "keep": settings.keep,
        "binds": [*binds, *packages],
        "hidden": hidden,
        "links": links,
        "command": [f"{PYTHON}/bin/python3", "-s", "-P", "-B", "-u", PROGRAM],
        "environment": {
            "HOME": WORK,
            "LANG": "C.UTF-8",
            "LD_LIBRARY_PATH": f"{PYTHON}/lib",
            "MALLOC_ARENA_MAX": "2",
            "PATH": f"{PYTHON}/bin",
            "PYTHONHOME": PYTHON,
            "PYTHONPATH": ":".join([WORK, *(target for _, target in packages)]),
            "TMPDIR": "/tmp",
            **one_thread,
        },
        "limits": {
            "cpu": settings.cpu_seconds,
            "wall": settings.wall_seconds,
            "memory": settings.memory,
            "processes": settings.processes,
            "file": settings.file_size,
            "disk": settings.disk,
            "files": settings.files,
            "open_files": settings.open_files,
            "output": settings.output,
        },
    }


def python_tree() -> tuple[list[tuple[str, str]], list[str], list[tuple[str, str]]]:
    """Return what of the machine is seen inside: (path, place inside) pairs, places to hide, (place inside, link) pairs.

    The interpreter, its standard library without installed packages, the shared libraries of the system, time zones.
    """
    base = Path(sys.base_prefix)
    binary = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()
    binds = [(str(binary), f"{PYTHON}/bin/python3")]
    hidden = []
    for library in dict.fromkeys(
        sysconfig.get_path(name, vars={"base": str(base), "platbase": str(base)}) for name in ("stdlib", "platstdlib")
    ):
        inside = f"{PYTHON}/{Path(library).relative_to(base)}"
        binds.append((library, inside))
        hidden += [f"{inside}/{name}" for name in ("site-packages", "dist-packages")]
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        shared = Path(sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or "")
        if shared.is_file():
            binds.append((str(shared), f"{PYTHON}/lib/{shared.name}"))
    links = []
    several = sysconfig.get_config_var("MULTIARCH") or ""
    several = several if several and Path("/usr/lib", several).is_dir() else ""
    for top in ("/usr/lib", "/usr/lib64", "/lib", "/lib64"):
        path = Path(top)
        if path.is_symlink():
            links.append((top, os.readlink(top)))
        elif path.is_dir():
            shown = path / several if several and top.endswith("lib") else path
            binds += [(str(shown), str(shown))] if shown.is_dir() else []
    if Path("/usr/share/zoneinfo").is_dir():
        binds.append(("/usr/share/zoneinfo", "/usr/share/zoneinfo"))
    return binds, hidden, links


class Folders:
    """The folders that runs keep, each as an archive, of limited size together; and how many programs run at once."""

    def __init__(self, at_once: int, most: int) -> None:
        self._free = at_once
        self._most = most
        self._busy: set[str] = set()
        self._kept: OrderedDict[str, bytes | None] = OrderedDict()
        self._turn = threading.Condition()

    @contextmanager
    def turn(self, run: str | None, call: Call, seconds: float) -> Iterator[bool]:
        """Wait for a place, and for the folder of the run, which one call at a time has; whether it came in time."""

        def free() -> bool:
            return call.cancelled or (self._free > 0 and run not in self._busy)

        with self._turn:
            got = self._turn.wait_for(free, seconds) and not call.cancelled
            if got:
                self._free -= 1
                self._busy.update([run] if run is not None else [])
        try:
            yield got
        finally:
            if got:
                with self._turn:
                    self._free += 1
                    self._busy.discard(run or "")
                    self._turn.notify_all()

    def cancel(self, call: Call) -> None:
        """End a call, also one that waits."""
        call.cancel()
        with self._turn:
            self._turn.notify_all()

    def get(self, run: str) -> tuple[bytes, bool]:
        """Return the folder of a run, and whether it was given up for others since it was last used."""
        with self._turn:
            found = self._kept.get(run, b"")
            return found or b"", found is None

    def put(self, run: str, folder: bytes) -> None:
        """Keep the folder of a run, and give up those used longest ago when there are too many."""
        with self._turn:
            self._kept[run] = folder
            self._kept.move_to_end(run)
            held = [key for key, value in self._kept.items() if value is not None]
            while len(held) > KEPT or (len(held) > 1 and sum(len(self._kept[key] or b"") for key in held) > self._most):
                self._kept[held.pop(0)] = None
            while len(self._kept) > 16 * KEPT:
                self._kept.popitem(last=False)


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
        "start": "it did not start in time",
        "cancelled": "the call was cancelled",
    }
    if outcome.stopped is not None:
        return said[outcome.stopped]
    if outcome.exit in (-signal.SIGXCPU, -signal.SIGKILL):
        return (
            said["cpu"]
            if outcome.exit == -signal.SIGXCPU
            else "killed (by itself, or because the machine had no memory left)"
        )
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

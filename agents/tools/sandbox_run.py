"""Run one program in a sandbox: the part that lives in the process of the agent. Standard library alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import Any, Final

from memweave.agents.tools.sandbox_inside import PROGRAM, WORK
from memweave.agents.tools.sandbox_settings import Outcome, SandboxSettings
from memweave.errors import IsolationError

PYTHON: Final = "/python"
"""Where the interpreter is inside."""
GRACE: Final = 40.0
"""Seconds beyond the wall time after which the supervisor itself is ended: longer than all that it waits for."""
_LAUNCH: Final = (
    "import sys; sys.path.append(sys.argv.pop(2)); from memweave.agents.tools.sandbox_launch import main; main()"
)


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
                    [*command, str(theirs), str(Path(__file__).parents[3])],
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
    if "broken" in told and told["stopped"] is None and "exit" not in told:
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

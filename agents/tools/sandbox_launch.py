"""Start one program in a sandbox and watch over it: a process of its own between memweave and the sandbox.

    python -I -S -c "...; main()" FD  <  request  >  result      FD: a pipe; when its other end closes, the sandbox is ended

The request is a line of JSON and the folder of an earlier call; the result a line of JSON, then output, errors and folder as
bytes. Standard library alone. A process of its own because a program with threads cannot enter a user namespace, and because
the sandbox ends with it, whatever becomes of it.
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

from memweave.agents.tools import sandbox_kernel as kernel
from memweave.agents.tools.sandbox_inside import INNER_ID, Missing, Request, guarantee, live, namespaces

LOOK_EVERY: Final = 0.02
"""Seconds between two looks at what the program uses."""
ENDING: Final = 10.0
"""Seconds for setting up, for packing the folder, and for ending."""
OUTER_ID: Final = 65_534
"""User and group of the program on the machine when root starts it: nobody's, who owns nothing."""
PIECE: Final = 65_536
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Read the request, run the program, write the result."""
    header = json.loads(sys.stdin.buffer.readline())
    folder = sys.stdin.buffer.read()
    seen: dict[str, Any] = {}
    watch = None
    try:
        watch = _start(header, folder)
        watch.until_it_ends(int(sys.argv[1]))
        seen = watch.told()
    except Missing as missing:
        seen = {"missing": missing.guarantee, "reason": missing.reason}
    finally:
        if watch is not None:
            watch.end()
    parts = [bytes(watch.taken[name]) for name in ("out", "err", "archive")] if watch is not None else [b"", b"", b""]
    seen["sizes"] = [len(part) for part in parts]
    sys.stdout.buffer.write(json.dumps(seen).encode() + b"\n" + b"".join(parts))
    sys.stdout.buffer.flush()


def _start(request: Request, folder: bytes) -> Watch:
    for module in ("resource", *(["tarfile"] if request["keep"] else [])):
        importlib.import_module(module)  # now: inside, the machine's library is out of reach
    os.umask(0o022)
    with guarantee("namespaces"):
        outer = namespaces()
    _enter()
    pipes = {name: os.pipe() for name in ("out", "err", "control", "archive")}
    first = os.fork()
    if first == 0:
        live(request, folder, outer, *(pipes[name][1] for name in ("out", "err", "control", "archive")))
    for _, writing in pipes.values():
        os.close(writing)
    return Watch(first, request["limits"], {name: reading for name, (reading, _) in pipes.items()})


def _enter() -> None:
    """Enter new namespaces, with the ids of this user namespace set from outside, by a child that stays there.

    Root maps itself, to build the file tree, and nobody, to run the program; anyone else can map but himself.
    """
    mine, his = os.pipe(), os.pipe()
    target = os.getpid()
    outside = os.fork()
    if outside == 0:
        os.close(mine[1])
        try:
            if os.read(mine[0], 1):  # else the supervisor has ended
                _map_ids(target)
                os._exit(0)
        except OSError as error:
            os.write(his[1], str(error).encode())
        finally:
            os._exit(1)
    os.close(his[1])
    try:
        with guarantee("namespaces"):
            kernel.unshare(
                kernel.CLONE_NEWUSER
                | kernel.CLONE_NEWPID
                | kernel.CLONE_NEWNET
                | kernel.CLONE_NEWIPC
                | kernel.CLONE_NEWUTS
            )
    except Missing:
        os.kill(outside, signal.SIGKILL)
        raise
    os.write(mine[1], b".")
    reason = os.read(his[0], 1000)
    if os.waitstatus_to_exitcode(os.waitpid(outside, 0)[1]) != 0:
        raise Missing("user", f"its ids could not be mapped: {reason.decode()}")


def _map_ids(target: int) -> None:
    """Write the maps of the process `target`, which has entered a new user namespace."""
    for kind, own, deny in (("uid", os.geteuid(), False), ("gid", os.getegid(), os.geteuid() != 0)):
        if deny:  # the kernel asks for it of users without privileges
            with open(f"/proc/{target}/setgroups", "w") as file:
                file.write("deny")
        lines = f"0 {own} 1\n{INNER_ID} {OUTER_ID} 1\n" if os.geteuid() == 0 else f"{INNER_ID} {own} 1\n"
        with open(f"/proc/{target}/{kind}_map", "w") as file:
            file.write(lines)


@dataclass
class Watch:
    """A running sandbox: takes its output, looks at what it uses, and ends it at the first limit."""

    first: int
    """Process 1 of the sandbox, by its number here."""
    limits: dict[str, Any]
    pipes: dict[str, int]
    taken: dict[str, bytearray] = field(
        default_factory=lambda: {"out": bytearray(), "err": bytearray(), "archive": bytearray()}
    )
    lines: bytearray = field(default_factory=bytearray)
    stopped: str | None = None
    """The limit at which it was ended."""
    lost: bool = False
    """Whether the folder was too large to be kept."""
    heard: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    ready: bool = False
    ended: bool = False
    killed: bool = False
    gone: bool = False
    used_before: float = 0.0
    deadline: float = field(default_factory=lambda: time.monotonic() + ENDING)

    def until_it_ends(self, life: int) -> None:
        """Watch until nothing of the sandbox is left. Raises `Missing` when it cannot be watched, or will not end."""
        next_look = 0.0
        waiting = set(self.pipes)
        with selectors.DefaultSelector() as selector:
            selector.register(life, selectors.EVENT_READ, "life")
            for name, number in self.pipes.items():
                selector.register(number, selectors.EVENT_READ, name)
            while waiting:
                for key, _ in selector.select(LOOK_EVERY):
                    piece = os.read(key.fd, PIECE)
                    if not piece:
                        selector.unregister(key.fd)
                        waiting.discard(key.data)
                    if key.data == "life":
                        self.stop("cancelled")
                    else:
                        self._take(key.data, piece)
                if time.monotonic() > self.deadline:
                    self._late()
                if self.ready and not self.ended and not self.killed and time.monotonic() >= next_look:
                    self._look()
                    next_look = time.monotonic() + LOOK_EVERY
        status = os.waitstatus_to_exitcode(os.waitpid(self.first, 0)[1])
        self.gone = True
        if not self.killed and status == -signal.SIGKILL:
            self.stopped = "killed"
        elif not self.killed and status != 0 and not self.heard.keys() & {"missing", "broken"}:
            self.heard["broken"] = f"process 1 of the sandbox ended with {status}"

    def stop(self, limit: str) -> None:
        """End everything in the sandbox: the kernel ends all with process 1."""
        if not self.killed:
            self.stopped, self.killed, self.deadline = limit, True, time.monotonic() + ENDING
            os.kill(self.first, signal.SIGKILL)

    def end(self) -> None:
        """End everything in the sandbox if it is still there, and wait for that; when it could not be watched, for example."""
        if not self.gone:
            os.kill(self.first, signal.SIGKILL)
            os.waitpid(self.first, 0)
            self.gone = True

    def told(self) -> dict[str, Any]:
        """Return what the caller is told."""
        return {
            **self.heard,
            "stopped": self.stopped,
            "lost": self.lost,
            "seconds": round(time.monotonic() - self.began, 3),
        }

    def _take(self, name: str, piece: bytes) -> None:
        if name == "control":
            self.lines += piece
            while b"\n" in self.lines:
                line, _, rest = bytes(self.lines).partition(b"\n")
                self.lines = bytearray(rest)
                self._hear(json.loads(line))
            return
        taken = self.taken[name]
        taken += piece
        if name == "archive":
            if len(taken) > 2 * self.limits["disk"] + PIECE:  # a file with holes is larger than what it takes
                taken.clear()
                self.lost = True
                self.stop("packing")
            return
        over = len(taken) - self.limits["output"]
        if over > 0:
            del taken[self.limits["output"] :]
            self.stop("output")

    def _hear(self, line: dict[str, Any]) -> None:
        self.heard.update(line)
        if "ready" in line:
            self.ready, self.began = True, time.monotonic()
            self.deadline = self.began + self.limits["wall"]
            self.used_before = self._use()[0]
        if "exit" in line:
            self.ended, self.deadline = True, time.monotonic() + ENDING

    def _late(self) -> None:
        if self.killed:
            raise Missing("supervision", f"the sandbox did not end within {ENDING:g} s of being killed")
        if not self.ready:
            self.stop("start")
        elif self.ended:
            self.taken["archive"].clear()
            self.lost = True
            self.stop("packing")
        else:
            self.stop("wall")

    def _look(self) -> None:
        seconds, memory, processes = self._use()
        if processes > self.limits["processes"]:
            self.stop("processes")
        elif memory > self.limits["memory"]:
            self.stop("memory")
        elif seconds - self.used_before > self.limits["cpu"]:
            self.stop("cpu")

    def _use(self) -> tuple[float, int, int]:
        """Return CPU seconds of all, with those that ended; bytes of memory and number of threads, of the program's own.

        Raises: Missing when process 1 cannot be looked at.
        """
        seconds, memory, threads = 0.0, 0, 0
        waiting = [self.first]
        while waiting:
            process = waiting.pop()
            folder = f"/proc/{process}"
            try:
                tasks = os.listdir(f"{folder}/task")
                for task in tasks:
                    waiting.extend(map(int, _read(f"{folder}/task/{task}/children").split()))
                seconds += sum(map(int, _read(f"{folder}/stat").rpartition(")")[2].split()[11:15])) / _TICKS
                if process == self.first:
                    continue
                threads += len(tasks)
                for line in _read(f"{folder}/status").splitlines():
                    if line.startswith(("RssAnon:", "RssShmem:")):
                        memory += int(line.split()[1]) * 1024
            except (FileNotFoundError, ProcessLookupError) as error:
                if process == self.first and not os.path.exists(folder):
                    raise Missing("supervision", "process 1 of the sandbox vanished") from error
                if process == self.first:
                    raise Missing("supervision", str(error)) from error
            except OSError as error:
                raise Missing("supervision", str(error)) from error
        return seconds, memory, threads


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()

"""The first process of a sandbox: builds its file tree, gives up every privilege, starts the program, ends what is left.

Standard library alone: nothing of memweave or of its dependencies is loaded beside the program. It is process 1 of a process
namespace, so all others in there end with it; signals that the program sends it do nothing, as the kernel keeps those from it.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import select
import signal
import socket
from collections.abc import Iterator
from typing import Any, Final

from memweave.agents.tools import sandbox_kernel as kernel

NAMESPACES: Final = ("user", "pid_for_children", "net", "mnt", "ipc", "uts")
INNER_ID: Final = 1000
"""User and group of the program, as it sees them."""
WORK: Final = "/work"
PROGRAM: Final = "/program.py"
SPARE_PROCESSES: Final = 8
"""Above its limit of processes: so many exist at most until the supervisor, which looks every few hundredths of a second, ends it."""
DEVICES: Final = ("null", "zero", "random", "urandom")
_ROOT: Final = "/proc"
"""Where the tree is built: a folder that every machine has and that holds nothing that the sandbox needs."""

Request = dict[str, Any]
"""What `sandbox_run` sends, as JSON."""


class Missing(Exception):
    """The kernel did not give a guarantee."""

    def __init__(self, guarantee: str, reason: str) -> None:
        super().__init__(f"{guarantee}: {reason}")
        self.guarantee = guarantee
        self.reason = reason


@contextlib.contextmanager
def guarantee(name: str) -> Iterator[None]:
    """Turn what the kernel refuses into `Missing`."""
    try:
        yield
    except OSError as error:
        raise Missing(name, str(error)) from error


def namespaces() -> dict[str, str]:
    """Return the namespaces of this process and, of processes, that of its children."""
    return {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES}


def live(
    request: Request, folder: bytes, outer: dict[str, str], out: int, err: int, control: int, archive: int
) -> None:
    """Be process 1: set up, run the program, tell how it ended, and end. Does not return.

    folder: what an earlier call left, as `_pack` wrote it.  outer: the namespaces of the machine.
    out, err: where the program's output goes.  control: lines of JSON about how it went.  archive: where its folder goes.
    """
    code = 1
    try:
        _only(out, err, control, archive)
        _settle(request, outer, control)
        restored = not folder or _unpack(folder)
        _tell(control, {"ready": True, "restored": restored})
        program = os.fork()
        if program == 0:
            _become(request, control)
        status = _wait_for(program)
        _tell(control, {"exit": os.waitstatus_to_exitcode(status)})
        _tell(control, {"packed": request["keep"] and _pack(archive)})
        code = 0
    except Missing as missing:
        _tell(control, {"missing": missing.guarantee, "reason": missing.reason})
    except BaseException as error:  # whatever it is, the supervisor has to hear of it; there is nobody above
        _tell(control, {"broken": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(code)


def _only(out: int, err: int, control: int, archive: int) -> None:
    """Keep four ways out, and nothing else of what the supervisor has open."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(each, signal.SIG_DFL)
    nothing = os.open("/dev/null", os.O_RDONLY)
    for source, target in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(source, target)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number not in (0, 1, 2, control, archive):
            with contextlib.suppress(OSError):  # the one that lists them
                os.close(number)


def _settle(request: Request, outer: dict[str, str], control: int) -> None:
    with guarantee("namespaces"):
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        if shared := [name for name, value in namespaces().items() if value == outer[name]]:
            raise Missing("namespaces", f"still the machine's own: {', '.join(shared)}")
        socket.sethostname("sandbox")
    with contextlib.suppress(OSError):  # a preference, no guarantee: if the machine's memory ends, this goes first
        _write("/proc/self/oom_score_adj", "1000")
    with guarantee("files"):
        _build(request)
    with guarantee("privileges"):
        kernel.bound_capabilities()
    with guarantee("user"):
        if os.getuid() != INNER_ID:
            os.setgroups([])
            os.setresgid(INNER_ID, INNER_ID, INNER_ID)
            os.setresuid(INNER_ID, INNER_ID, INNER_ID)
        if {*os.getresuid(), *os.getresgid()} != {INNER_ID}:
            raise Missing("user", f"the ids are {os.getresuid()} and {os.getresgid()}")
    with guarantee("privileges"):
        kernel.drop_capabilities()
        kernel.no_new_privileges()
        kernel.not_traceable()
    with guarantee("supervision"):
        kernel.die_with_parent()
        watched = select.poll()
        watched.register(control, select.POLLERR)
        if watched.poll(0):  # the supervisor ended before it was asked to take this one along
            os._exit(1)
    with guarantee("system calls"):
        kernel.filter_system_calls()


def _build(request: Request) -> None:
    """Make a file tree of the listed folders, read-only, and one tmpfs of limited size; leave the machine's."""
    small = "mode=755,nr_inodes=512,size=8m"
    kernel.mount("tmpfs", _ROOT, "tmpfs", kernel.MS_NOSUID, small)
    for folder in ("dev", "dev/shm", "disk", "tmp", "work"):
        os.mkdir(f"{_ROOT}/{folder}", 0o755)
    for name in DEVICES:
        _bind(f"/dev/{name}", f"{_ROOT}/dev/{name}", kernel.RDONLY | kernel.NOSUID | kernel.NOEXEC)
    for source, target in request["binds"]:
        _bind(source, _ROOT + target, kernel.RDONLY | kernel.NOSUID | kernel.NODEV)
    for target in request["hidden"]:
        if os.path.isdir(_ROOT + target):
            kernel.mount("tmpfs", _ROOT + target, "tmpfs", kernel.MS_RDONLY, "size=4k,nr_inodes=2")
    for name, target in request["links"]:
        os.symlink(target, _ROOT + name)
    limits = request["limits"]
    disk = f"{_ROOT}/disk"
    size = f"mode=755,size={limits['disk']},nr_inodes={limits['files']}"
    kernel.mount("tmpfs", disk, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, size)
    for folder, target in (("work", "work"), ("tmp", "tmp"), ("shm", "dev/shm")):
        os.mkdir(f"{disk}/{folder}")
        os.chmod(f"{disk}/{folder}", 0o700)
        os.chown(f"{disk}/{folder}", INNER_ID, INNER_ID)
        kernel.mount(f"{disk}/{folder}", f"{_ROOT}/{target}", None, kernel.MS_BIND)
    kernel.unmount(disk)
    os.rmdir(disk)
    _write(_ROOT + PROGRAM, request["program"])
    os.chmod(_ROOT + PROGRAM, 0o444)
    os.chdir(_ROOT)
    kernel.pivot_root_here()
    os.chdir("/")
    kernel.restrict_mount("/", kernel.RDONLY | kernel.NOSUID | kernel.NODEV)


def _bind(source: str, target: str, attributes: int) -> None:
    """Show a file or a folder, with what is mounted below it, at another place."""
    if os.path.isdir(source):
        os.makedirs(target, 0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        _write(target, "")
    kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)
    kernel.restrict_mount(target, attributes, all_below=True)


def _become(request: Request, control: int) -> None:
    """Turn into the program, under its limits. Does not return."""
    import resource

    try:
        with guarantee("limits"):
            for number, (soft, hard) in _limits(request["limits"]).items():
                resource.setrlimit(number, (soft, hard))
        with guarantee("python"):
            os.set_inheritable(control, False)
            os.chdir(WORK)
            os.umask(0o077)
            os.setsid()
            os.execve(request["command"][0], request["command"], request["environment"])
    except Missing as missing:
        _tell(control, {"missing": missing.guarantee, "reason": missing.reason})
    except BaseException as error:
        _tell(control, {"broken": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(127)


def _limits(limits: dict[str, Any]) -> dict[int, tuple[int, int]]:
    """Return soft and hard limits of the program. The processes are counted in this user namespace alone (Linux 5.14)."""
    import resource  # not on every system, and the agent's process imports this module, too

    seconds = math.ceil(limits["cpu"])
    processes = limits["processes"] + SPARE_PROCESSES + 2  # this one, and the supervisor where it is of the same user
    return {
        resource.RLIMIT_AS: (limits["memory"], limits["memory"]),
        resource.RLIMIT_CPU: (seconds, seconds + 1),
        resource.RLIMIT_FSIZE: (limits["file"], limits["file"]),
        resource.RLIMIT_NOFILE: (limits["open_files"], limits["open_files"]),
        resource.RLIMIT_NPROC: (processes, processes),
        resource.RLIMIT_CORE: (1, 1),  # 0 would still start the machine's handler of crashes, as root
        resource.RLIMIT_MEMLOCK: (0, 0),
        resource.RLIMIT_MSGQUEUE: (0, 0),
        resource.RLIMIT_NICE: (0, 0),
        resource.RLIMIT_RTPRIO: (0, 0),
        resource.RLIMIT_SIGPENDING: (256, 256),
    }


def _wait_for(program: int) -> int:
    """Return the status of the program, after everything else that it started was ended too."""
    while True:
        found, status = os.waitpid(-1, 0)
        if found == program:
            break
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # all but process 1 itself
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    return status


def _unpack(folder: bytes) -> bool:
    """Put back what an earlier call left; whether that went well. The content was the program's own, in here as there."""
    import tarfile

    try:
        with tarfile.open(fileobj=io.BytesIO(folder)) as archive:
            archive.extraction_filter = lambda member, path: member
            archive.extractall(WORK)
    except Exception:  # what a program left must not keep the next from running; the caller tells of it
        return False
    return True


def _pack(target: int) -> bool:
    """Write the folder as a tar archive; whether all of it could be read."""
    import tarfile

    try:
        with os.fdopen(target, "wb") as file, tarfile.open(fileobj=file, mode="w|") as archive:
            for name in sorted(os.listdir(WORK)):
                archive.add(f"{WORK}/{name}", arcname=name)
    except Exception:  # a program can leave anything; the caller tells of it
        return False
    return True


def _tell(control: int, what: dict[str, Any]) -> None:
    os.write(control, json.dumps(what).encode() + b"\n")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", errors="replace") as file:
        file.write(text)

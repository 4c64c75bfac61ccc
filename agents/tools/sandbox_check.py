"""Whether this machine gives every guarantee of a sandbox: one is started, and a program inside tries to get around them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from memweave.agents.tools.sandbox_inside import Missing
from memweave.agents.tools.sandbox_run import Call
from memweave.agents.tools.sandbox_settings import MEGABYTE, SandboxSettings
from memweave.errors import IsolationError

Probe = Callable[[SandboxSettings], Missing | None]
"""Says which guarantee is missing first, if any."""

REMEDIES: Final[dict[str, str]] = {
    "linux": "Run it on Linux 5.14 or newer",
    "namespaces": (
        "Allow user namespaces: sysctl user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1 on Debian, "
        "kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu; in a container, a seccomp profile that allows unshare"
    ),
    "user": "Run it as an ordinary user, or as a root that may map the user 65534",
    "files": "Use Linux 5.12 or newer, and allow mounts in user namespaces (kernel.apparmor_restrict_unprivileged_userns=0)",
    "privileges": "Allow processes to give up privileges: a security module of this machine forbids it",
    "system calls": "Use a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64",
    "limits": "Use Linux 5.14 or newer, which counts the processes of each user namespace by itself",
    "supervision": "Mount /proc, without hidepid, from a kernel with CONFIG_PROC_CHILDREN",
    "python": "Use a Python whose interpreter and standard library every user may read",
}
"""What to do about a guarantee that is missing."""

_TRY: Final = """
import ctypes, os, resource, socket

def told(guarantee, reason):
    print(f"{guarantee}\\t{reason}")
    raise SystemExit(1)

def works(work):
    try:
        work()
    except (OSError, MemoryError):
        return False
    return True

if works(lambda: os.setuid(0)) or works(lambda: os.setgid(0)):
    told("user", "a program can become root")
if os.path.exists("/proc") or os.path.exists("/etc"):
    told("files", "a program sees files of the machine")
for path in ("/x", "/python/x", "/usr/lib/x", "/program.py", "/dev/x"):
    if works(lambda: open(path, "ab").close()):
        told("files", f"a program can write {path}")
for folder in ("/work", "/tmp", "/dev/shm"):
    if not works(lambda: open(f"{folder}/x", "xb").close()):
        told("files", f"a program cannot write in {folder}")
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(39, 0, 0, 0, 0) != 1:
    told("privileges", "a started program may gain privileges")
if works(lambda: socket.socket(socket.AF_INET)) or libc.ptrace(0, 0, 0, 0) == 0:
    told("system calls", "the filter of system calls does nothing")
if works(lambda: bytearray(BYTES)):
    told("limits", "a program gets more memory than its limit")
if works(lambda: os.truncate("/tmp/x", FILE)) or not os.path.exists("/tmp/x"):
    told("limits", "a program can write files above the limit")
for i in range(PACKAGES):
    if not works(lambda: os.listdir(f"/packages/{i}")):
        told("python", f"folder {i + 1} of the packages cannot be read by every user: chmod o+rx")
resource.setrlimit(resource.RLIMIT_NPROC, (8, 8))
started = 0
waiting, _ = os.pipe()
try:
    while started < 20:
        if os.fork() == 0:
            os.read(waiting, 1)
            os._exit(0)
        started += 1
except OSError:
    pass
if not 0 < started < 8:
    told("limits", f"of 8 processes, {started} more could be started")
print("kept")
"""


def missing_guarantee(settings: SandboxSettings) -> Missing | None:
    """Return the first guarantee that this machine does not give, with these packages and this memory."""
    if not sys.platform.startswith("linux"):
        return Missing("linux", f"this is {sys.platform}")
    tried = replace(
        settings, cpu_seconds=10, wall_seconds=20, processes=40, output=MEGABYTE, keep=False, open_files=64, files=64
    )
    numbers = {"BYTES": settings.memory + 1, "FILE": settings.file_size + 1, "PACKAGES": len(settings.packages)}
    program = "".join(f"{name} = {value}\n" for name, value in numbers.items()) + _TRY
    try:
        outcome = Call().run(program, tried)
    except IsolationError as error:
        return Missing(error.guarantee, error.reason)
    if outcome.exit == 0 and outcome.out == "kept\n":
        return None
    name, _, reason = outcome.out.strip().partition("\t")
    if name in REMEDIES:
        return Missing(name, reason)
    said = (outcome.err.strip().splitlines() or [f"exit {outcome.exit}, stopped: {outcome.stopped}"])[-1]
    return Missing("python", f"it does not run inside: {said:.300}")


def require(settings: SandboxSettings, probe: Probe = missing_guarantee) -> None:
    """Raise `IsolationError`, which names it, when a guarantee is missing."""
    missing = probe(settings)
    if missing is not None:
        raise IsolationError(missing.guarantee, missing.reason, REMEDIES.get(missing.guarantee))

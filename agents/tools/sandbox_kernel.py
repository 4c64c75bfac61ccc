"""What the sandbox asks of the Linux kernel, through ctypes: namespaces, mounts, privileges, the filter of system calls.

Standard library alone: this runs in the program that starts the sandbox, before anything untrusted does.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import socket
import struct
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
_CLONE_NEW: Final = 0x7E020080
"""Every kind of namespace, those of control groups and of time too."""

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

# The same in a mount's attributes.
RDONLY: Final = 1
NOSUID: Final = 2
NODEV: Final = 4
NOEXEC: Final = 8
_AT_RECURSIVE: Final = 0x8000

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_SECCOMP: Final = 22
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_SECCOMP_MODE_FILTER: Final = 2

ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""The machines whose system calls are known here, and the names that the kernel's filter has for them."""
NEWEST: Final = 466
"""The last system call that this table knows; later ones do not exist inside."""

REFUSED: Final[dict[str, tuple[int, int | None]]] = {
    # name: number on x86_64, on aarch64 (`None`: not there)
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    # memory that the limit of a process does not count, or that outlives it
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # large or rarely used parts of the kernel, where its faults are found
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_setup": (206, 0),
    "vmsplice": (278, 75),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "modify_ldt": (154, None),
    "personality": (135, 92),
    # the machine
    "iopl": (172, None),
    "ioperm": (173, None),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
}
"""System calls that fail with "Operation not permitted"."""
_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_FIRST_ARGUMENTS: Final = (
    # numbers as above, the only first argument that is allowed, the error for others
    (
        (41, 198),
        socket.AF_UNIX,
        errno.EACCES,
    ),  # socket: others reach a network, a virtual machine's host, or rare parts
    ((53, 199), socket.AF_UNIX, errno.EACCES),  # socketpair
    ((302, 261), 0, errno.EPERM),  # prlimit64: 0 is oneself; process 1 is of the same user
)
_CLONE3: Final = 435
_SETSOCKOPT: Final = (54, 208)
_SOL_SOCKET: Final = 1
_BUFFERS: Final = (7, 8, 32, 33)
"""Options of a socket that make its buffers larger: memory of the kernel's, which no limit of a process counts."""

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT, _THIRD_ARGUMENT = 0, 4, 16, 24, 32
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000

_SYS: Final = {"pivot_root": (155, 41), "capset": (126, 91), "mount_setattr": (442, 442)}


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _syscall(name: str, *arguments: object) -> None:
    number = _SYS[name][0 if platform.machine() == "x86_64" else 1]
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    _check(_libc().syscall(ctypes.c_long(number), *given), name)


def _prctl(what: str, option: int, *arguments: object) -> None:
    given = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    given += [ctypes.c_ulong(0)] * (4 - len(given))
    _check(_libc().prctl(ctypes.c_int(option), *given), what)


def unshare(flags: int) -> None:
    """Move this process into new namespaces (that of processes: only its children). Raises `OSError`."""
    _check(_libc().unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    """Mount. Raises `OSError`."""
    given = [None if each is None else os.fsencode(each) for each in (source, target, kind, options)]
    done = _libc().mount(given[0], given[1], given[2], ctypes.c_ulong(flags), given[3])
    _check(done, f"mount {source} on {target}")


def unmount(target: str) -> None:
    """Take a mount away, also while it is used. Raises `OSError`."""
    _check(_libc().umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def restrict_mount(target: str, attributes: int, *, all_below: bool = False) -> None:
    """Give a mount attributes (`RDONLY`, `NOSUID`, `NODEV`, `NOEXEC`). Raises `OSError`: before Linux 5.12, too."""
    changes = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if all_below else 0
    _syscall("mount_setattr", -100, os.fsencode(target), flags, ctypes.byref(changes), ctypes.sizeof(changes))


def pivot_root_here() -> None:
    """Make the working folder, a mount, the root, and take the old root away. Raises `OSError`."""
    _syscall("pivot_root", b".", b".")
    unmount(".")


def die_with_parent() -> None:
    """Ask for SIGKILL when the parent ends; to be called after the last change of identity, which forgets it."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, 9)


def not_traceable() -> None:
    """Forbid processes of the same user to read or trace this one; ends with `exec`."""
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0)


def bound_capabilities() -> None:
    """Give up that capabilities are ever gained again; needs those that one has, so it comes first. Raises `OSError`."""
    for capability in range(64):
        try:
            _prctl("PR_CAPBSET_DROP", _PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == errno.EINVAL and capability > 0:  # past the last that this kernel has
                break
            raise
    _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def drop_capabilities() -> None:
    """Give up every capability. Raises `OSError`."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _syscall("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def no_new_privileges() -> None:
    """Give up that a started program may gain privileges. Raises `OSError`."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def filter_system_calls() -> None:
    """Refuse the system calls of `REFUSED`, newer ones, namespaces, and every socket but those within the machine's sandbox.

    Raises: OSError where the kernel has no filters, or the machine's calls are not known here.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"the system calls of {machine} are not known here")
    code = _filter(machine)
    buffer = ctypes.create_string_buffer(b"".join(code), len(code) * 8)

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    program = Program(len(code), ctypes.addressof(buffer))
    _prctl("PR_SET_SECCOMP", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program))


def _filter(machine: str) -> list[bytes]:
    """Return the filter, instruction by instruction (struct sock_filter): jumps count instructions to skip."""
    code: list[bytes] = []
    place = 0 if machine == "x86_64" else 1

    def add(operation: int, value: int, then: int = 0, otherwise: int = 0) -> None:
        code.append(struct.pack("HBBI", operation, then, otherwise, value))

    def refuse(test: int, value: int, answer: int) -> None:
        add(test, value, 0, 1)
        add(_RETURN, answer)

    add(_LOAD, _ARCHITECTURE)
    add(_EQUAL, ARCHITECTURES[machine], 1, 0)
    add(_RETURN, _KILL)  # the calls of 32-bit programs
    add(_LOAD, _NUMBER)
    refuse(_GREATER, NEWEST, _FAIL | errno.ENOSYS)  # also those of x32, which are numbered from 2 ** 30
    refuse(_EQUAL, _CLONE3, _FAIL | errno.ENOSYS)  # its flags cannot be seen from here; libc uses clone instead
    for numbers in REFUSED.values():
        if (number := numbers[place]) is not None:
            refuse(_EQUAL, number, _FAIL | errno.EPERM)
    add(_EQUAL, _CLONE[machine], 0, 3)
    add(_LOAD, _FIRST_ARGUMENT)
    refuse(_ANY_BIT, _CLONE_NEW, _FAIL | errno.EPERM)
    add(_LOAD, _NUMBER)
    for numbers, allowed, answer in _FIRST_ARGUMENTS:
        add(_EQUAL, numbers[place], 0, 4)
        add(_LOAD, _FIRST_ARGUMENT)
        add(_EQUAL, allowed, 1, 0)
        add(_RETURN, _FAIL | answer)
        add(_LOAD, _NUMBER)
    add(_EQUAL, _SETSOCKOPT[place], 0, 4 + 2 * len(_BUFFERS))
    add(_LOAD, _SECOND_ARGUMENT)
    add(_EQUAL, _SOL_SOCKET, 0, 1 + 2 * len(_BUFFERS))
    add(_LOAD, _THIRD_ARGUMENT)
    for option in _BUFFERS:
        refuse(_EQUAL, option, _FAIL | errno.EPERM)
    add(_LOAD, _NUMBER)
    add(_RETURN, _ALLOW)
    return code

"""Programs that mean harm: each is stopped and told, the machine does not notice, nothing is left running."""

from __future__ import annotations

import errno
import os
import platform
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memweave.agents.tools import sandbox_kernel
from memweave.agents.tools.sandbox_inside import SPARE_PROCESSES
from tests.agents.tools.sandbox_work import adopting, needs_sandbox, ran, small_tool

pytestmark = needs_sandbox
HERE = Path(__file__).resolve()


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with adopting():
        yield


# limits


def test_a_fork_bomb() -> None:
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert ran(bomb, processes=16).startswith("stopped: more than 16 processes and threads")


def test_a_bomb_of_threads() -> None:
    bomb = "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()"
    assert "more than 8 processes and threads" in ran(bomb, memory=256_000_000).splitlines()[0]


def test_the_kernel_itself_bounds_processes() -> None:
    many = """
import os
for _ in range(200):
    try:
        if os.fork() == 0:
            os.write(1, b"x")
            os.read(os.pipe()[0], 1)
    except OSError:
        pass
os.read(os.pipe()[0], 1)
"""
    started = ran(many).partition("output:")[2].count("x")
    assert 0 < started <= 8 + SPARE_PROCESSES + 1  # 200 of them take less time than the supervisor does to look


def test_ten_gigabytes() -> None:
    text = ran("bytearray(10 ** 10)")
    assert text.startswith("stopped: more than 64 MB of memory (exit status 1)")
    assert "MemoryError" in text


@pytest.mark.parametrize(
    "take",
    [
        "held = bytes(1) * 30_000_000",
        "import mmap; held = mmap.mmap(-1, 30_000_000); [held.write(bytes(1_000_000)) for _ in range(30)]",
    ],
)
def test_memory_of_several_processes(take: str) -> None:
    spread = f"import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n        {take}\n        time.sleep(9)\ntime.sleep(9)"
    assert ran(spread).startswith("stopped: more than 64 MB of memory")


def test_an_endless_loop() -> None:
    began = time.monotonic()
    assert ran("while True: pass", cpu_seconds=0.2).startswith("stopped: more than 0.2 s of CPU time")
    assert time.monotonic() - began < 5


def test_cpu_time_of_processes_that_ended_counts() -> None:
    burn = """
import os, time
while True:
    if os.fork() == 0:
        while time.process_time() < 0.05: pass
        os._exit(0)
    os.wait()
"""
    assert ran(burn, cpu_seconds=0.2, wall_seconds=5).startswith("stopped: more than 0.2 s of CPU time")


def test_one_that_waits_for_ever() -> None:
    assert (
        ran("import time; print('so far'); time.sleep(99)", wall_seconds=1) == "stopped: more than 1 s\noutput:\nso far"
    )


def test_one_that_stops_itself() -> None:
    assert ran("import os; os.kill(os.getpid(), 19)", wall_seconds=0.3) == "stopped: more than 0.3 s\nno output"


@pytest.mark.parametrize(
    "write", ["f.truncate(10 ** 9)", "f.write(bytes(10 ** 7))", "f.seek(10 ** 9); f.write(b'x'); f.flush()"]
)
def test_a_large_file(write: str) -> None:
    assert ran(f"f = open('big', 'wb'); {write}").startswith("stopped: a file of more than 1 MB")


@pytest.mark.parametrize("folder", [".", "/tmp", "/dev/shm"])
def test_many_files(folder: str) -> None:
    fill = f"for i in range(10): open(f'{folder}/{{i}}', 'wb').write(bytes(900_000))"
    assert ran(fill).startswith("stopped: more than 2 MB, or 50 files, in its folder")
    assert "or 50 files" in ran(f"for i in range(99): open(f'{folder}/{{i}}', 'x')").splitlines()[0]


def test_many_open_files() -> None:
    assert ran("held = [open('/dev/null') for _ in range(999)]").startswith("stopped: more than 64 open files")


@pytest.mark.parametrize("stream", [1, 2])
def test_a_hundred_megabytes_of_output(stream: int) -> None:
    text = ran(f"import os\nfor _ in range(1000): os.write({stream}, b'x' * 100_000)")
    assert text.startswith("stopped: more than 0.1 MB of output")
    assert len(text) < 3_000


def test_output_is_cut_in_the_middle() -> None:
    text = ran("print('begin'); print('x' * 50_000); print('the end')")
    assert text.startswith("exit status 0\noutput:\nbegin\n")
    assert text.endswith("\nthe end")
    assert "characters were cut out here]" in text
    assert len(text) < 2_200


def test_a_daemon_does_not_outlive_the_call() -> None:
    daemon = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(99)
    os._exit(0)
os.wait()
print("left one behind")
"""
    began = time.monotonic()
    assert ran(daemon, wall_seconds=20) == "exit status 0\noutput:\nleft one behind"
    assert time.monotonic() - began < 10  # and `_nothing_left` looks for it


# the network

CONNECT = """
import socket
for family, address in {addresses}:
    try:
        socket.socket(family).connect(address)
        print("connected to", address)
    except OSError as error:
        print(type(error).__name__)
"""


def test_a_server_of_the_machine_and_an_address_outside() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        addresses = [
            (socket.AF_INET, ("127.0.0.1", port)),
            (socket.AF_INET, ("192.0.2.1", 80)),
            (socket.AF_INET6, ("::1", port)),
        ]
        text = ran(CONNECT.format(addresses=[(int(family), address) for family, address in addresses]))
        assert text == "exit status 0\noutput:" + "\nPermissionError" * 3
        with pytest.raises(BlockingIOError):
            server.accept()


def test_names() -> None:
    text = ran("import socket\nsocket.getaddrinfo('example.org', 80)")
    assert text.startswith("exit status 1")
    assert "socket.gaierror" in text


def test_the_machines_own_sockets(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as abstract:
        for server, name in ((named, str(tmp_path / "s")), (abstract, f"\0memweave-{os.getpid()}")):
            server.bind(name)
            server.listen()
        addresses = [(int(socket.AF_UNIX), str(tmp_path / "s")), (int(socket.AF_UNIX), f"\0memweave-{os.getpid()}")]
        assert (
            ran(CONNECT.format(addresses=addresses))
            == "exit status 0\noutput:\nFileNotFoundError\nConnectionRefusedError"
        )


def test_every_other_kind_of_socket() -> None:
    kinds = """
import socket
for family in set(range(60)) - {socket.AF_UNIX}:
    for kind in range(1, 6):
        for make in (socket.socket, socket.socketpair):
            try: make(family, kind); print("made", family, kind)
            except PermissionError: pass
"""
    assert ran(kinds) == "exit status 0\nno output; print what you want to see"


# files


def test_files_of_the_machine_are_not_there() -> None:
    paths = [
        "/etc/passwd",
        "/etc/hosts",
        "/proc/1/environ",
        "/proc/self/environ",
        f"/proc/{os.getpid()}/environ",
        "/sys",
        "/root",
    ]
    paths += ["/home", "/var", "/run", str(Path.home()), str(HERE), str(Path.cwd()), "/dev/mem", "/usr/bin", "/bin/sh"]
    read = f"import os\nfor path in {paths!r}:\n    if os.path.lexists(path): print('there is', path)\nprint(sorted(os.listdir('/')))"
    text = ran(read)
    assert "there is" not in text
    shown = text.partition("[")[2].rstrip("]").replace("'", "").split(", ")
    assert (
        {"dev", "program.py", "python", "tmp", "work"}
        <= set(shown)
        <= {"dev", "lib", "lib64", "program.py", "python", "tmp", "usr", "work"}
    )


def test_installed_packages_are_not_there() -> None:
    assert "ModuleNotFoundError" in ran("import langgraph")
    assert "ModuleNotFoundError" in ran("import pip")


def test_nothing_can_be_written_but_in_its_folder(tmp_path: Path) -> None:
    paths = [str(tmp_path / "x"), str(HERE), "/x", "/usr/x", "/usr/lib/x", "/python/x", "/python/bin/python3", "/etc/x"]
    write = f"""
import os
for path in {paths!r} + [os.__file__, __file__]:
    for work in (lambda: open(path, "ab"), lambda: os.remove(path), lambda: os.chmod(path, 0o777), lambda: os.mkdir(path + "d")):
        try:
            work()
            print("changed", path)
        except OSError:
            pass
"""
    before = HERE.read_bytes()
    assert ran(write) == "exit status 0\nno output; print what you want to see"
    assert list(tmp_path.iterdir()) == []
    assert HERE.read_bytes() == before


def test_symlinks_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the key")
    tool = small_tool(keep=True)
    config = {"configurable": {"thread_id": "1"}}
    make = f"""
import os
os.symlink({str(tmp_path)!r}, "link")
os.symlink("../../../../../etc/passwd", "up")
os.symlink("/", "root")
os.symlink("/tmp", "tmp")
os.mkfifo("pipe")
open("file", "w").write("mine"); os.link("file", "hard")
try: os.link("/python/bin/python3", "python"); print("linked")
except OSError: pass
"""
    assert tool.invoke({"program": make}, config) == "exit status 0\nno output; print what you want to see"
    use = """
import os
print(sorted(os.listdir(".")), os.path.islink("link"), open("hard").read())
for path in ("link/secret", "up", "root/etc/passwd"):
    try: print(open(path).read())
    except FileNotFoundError: print("nothing")
try: open("link/new", "w")
except FileNotFoundError: print("nothing")
"""
    names = "['file', 'hard', 'link', 'pipe', 'root', 'tmp', 'up'] True mine"
    assert tool.invoke({"program": use}, config) == f"exit status 0\noutput:\n{names}" + "\nnothing" * 4
    assert [each.name for each in tmp_path.iterdir()] == ["secret"]


# the agent's process


def test_nothing_of_the_parents_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    text = ran("import os; print(dict(os.environ))")
    assert "secret" not in text
    assert "API" not in text
    assert os.environ["PATH"] not in text


def test_no_open_file_and_no_input_of_the_parents(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the key")
    with (tmp_path / "secret").open() as file:
        os.set_inheritable(file.fileno(), True)
        look = "import os\nfor number in range(3, 1000):\n    try: print(number, os.fstat(number))\n    except OSError: pass\ninput()"
        text = ran(look)
    assert "st_mode" not in text
    assert "EOFError" in text


def test_signals_reach_nobody() -> None:
    targets = [pid for pid in (os.getpid(), os.getppid()) if pid > 2]  # 1 and 2 are the sandbox's own inside
    kill = f"""
import os
for target in {targets}:
    try: os.kill(target, 9); print("killed", target)
    except ProcessLookupError: pass
for number in (9, 15, 19, 2):
    os.kill(os.getppid(), number)
try: os.kill(-1, 9)
except ProcessLookupError: pass
import resource
for limit in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NOFILE):
    try: resource.prlimit(1, limit, (1, 1)); print("limited process 1")
    except PermissionError: pass
resource.prlimit(0, resource.RLIMIT_CORE, (0, 0))
print("pid", os.getpid(), "of", os.getppid())
"""
    assert ran(kill) == "exit status 0\noutput:\npid 2 of 1"


@pytest.mark.skipif(platform.machine() not in sandbox_kernel.ARCHITECTURES, reason="no table of system calls")
def test_buffers_of_sockets_cannot_grow_beyond_the_default() -> None:
    """They are memory of the kernel's, which no limit of a process counts."""
    program = """
import socket
one, other = socket.socketpair()
for option in (socket.SO_SNDBUF, socket.SO_RCVBUF, 32, 33):
    try: one.setsockopt(socket.SOL_SOCKET, option, 4 << 20); print("grew by", option)
    except PermissionError: pass
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
one.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
one.sendall(b"still works")
print(other.recv(20).decode())
"""
    assert ran(program) == "exit status 0\noutput:\nstill works"


def test_no_tracing() -> None:
    trace = """
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
TRACEME, ATTACH, SEIZE = 0, 16, 0x4206
child = os.fork()
if child == 0:
    signal.pause()
for request, who in ((TRACEME, 0), (ATTACH, os.getppid()), (ATTACH, 1), (ATTACH, child), (SEIZE, child)):
    ctypes.set_errno(0)
    done = libc.ptrace(request, who, 0, 0)
    print(request, "worked" if done != -1 else os.strerror(ctypes.get_errno()))
os.kill(child, signal.SIGKILL)
"""
    said = ran(trace).splitlines()
    assert [line for line in said if line.split()[0] in ("0", "16", "16902")] == [
        f"{request} Operation not permitted" for request in (0, 16, 16, 16, 16902)
    ]


@pytest.mark.skipif(platform.machine() not in sandbox_kernel.ARCHITECTURES, reason="no table of system calls")
def test_system_calls_that_are_refused() -> None:
    place = 0 if platform.machine() == "x86_64" else 1
    refused = {name: numbers[place] for name, numbers in sandbox_kernel.REFUSED.items() if numbers[place] is not None}
    call = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def called(number, *arguments):
    ctypes.set_errno(0)
    return ctypes.get_errno() if libc.syscall(number, *map(ctypes.c_long, arguments)) == -1 else 0
for name, number in {refused!r}.items():
    if called(number, 0, 0, 0, 0, 0, 0) != {errno.EPERM}: print("worked:", name)
for kind in (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
    if called({sandbox_kernel._CLONE[platform.machine()]}, kind | 17, 0, 0, 0, 0) != {errno.EPERM}: print("cloned into", kind)
for number in (435, 467, 480, 0x40000000 + 101, -1):
    if called(number, 0, 0, 0, 0, 0, 0) != {errno.ENOSYS}: print("there is", number)
"""
    assert ran(call) == "exit status 0\nno output; print what you want to see"


def test_no_privileges() -> None:
    gain = """
import ctypes, os
libc = ctypes.CDLL(None)
print(os.getresuid(), os.getresgid(), libc.prctl(39, 0, 0, 0, 0), [c for c in range(64) if libc.prctl(23, c, 0, 0, 0) == 1])
for work in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.chroot("."), lambda: os.nice(-1),
             lambda: os.chown(".", 0, 0), lambda: os.mknod("mem", 0o20600, os.makedev(1, 1))):
    try: work(); print("worked")
    except PermissionError: pass
import resource
print(resource.getrlimit(resource.RLIMIT_CORE))
for name in dir(resource):
    if name.startswith("RLIMIT_") and name not in ("RLIMIT_STACK", "RLIMIT_RSS", "RLIMIT_DATA", "RLIMIT_RTTIME", "RLIMIT_LOCKS"):
        hard = resource.getrlimit(getattr(resource, name))[1]
        try: resource.setrlimit(getattr(resource, name), (hard + 1, hard + 1)); print("raised", name)
        except (ValueError, OSError): pass
"""
    assert ran(gain) == "exit status 0\noutput:\n(1000, 1000, 1000) (1000, 1000, 1000) 1 []\n(1, 1)"


def test_a_crash_is_told() -> None:
    assert ran("import ctypes; ctypes.string_at(0)").startswith("ended by SIGSEGV")
    assert ran("import os, signal; os.kill(os.getpid(), 15)").startswith("ended by SIGTERM")

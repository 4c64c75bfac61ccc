"""Where a sandbox is refused, who may start one, and that it ends with the processes above it."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import memweave
from memweave.agents.tools.sandbox import SandboxSettings, python_tool
from memweave.agents.tools.sandbox_check import REMEDIES, missing_guarantee, require
from memweave.agents.tools.sandbox_inside import Missing
from memweave.agents.tools.sandbox_run import Call
from memweave.agents.tools.sandbox_settings import limit_of
from memweave.errors import IsolationError
from tests.agents.tools.sandbox_work import adopting, children, gone, needs_sandbox

SRC = str(Path(memweave.__file__).resolve().parents[1])
ASLEEP = "import time; print('here', flush=True); time.sleep(30)"


@pytest.mark.parametrize("name", list(REMEDIES))
def test_a_missing_guarantee_is_named(name: str) -> None:
    with pytest.raises(IsolationError, match="there is no weaker sandbox") as caught:
        python_tool(probe=lambda settings: Missing(name, "not here"))
    assert caught.value.guarantee == name
    assert REMEDIES[name] in str(caught.value)
    assert "not here" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_elsewhere_than_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(IsolationError, match="'linux' is missing"):
        python_tool()


@needs_sandbox
def test_this_machine_has_every_guarantee() -> None:
    assert missing_guarantee(SandboxSettings()) is None
    require(SandboxSettings(memory=64_000_000, processes=1, file_size=1))


FORBIDDEN = """
import os, sys
sys.path.append({src!r})
from memweave.agents.tools import sandbox_kernel
from memweave.agents.tools.sandbox_check import require
from memweave.agents.tools.sandbox_settings import SandboxSettings
from memweave.errors import IsolationError
user, group = os.geteuid(), os.getegid()
sandbox_kernel.unshare(sandbox_kernel.CLONE_NEWUSER)
for name, text in ("uid_map", f"0 {{user}} 1"), ("setgroups", "deny"), ("gid_map", f"0 {{group}} 1"):
    open(f"/proc/self/{{name}}", "w").write(text)
{forbid}
try:
    require(SandboxSettings())
except IsolationError as error:
    print(error.guarantee)
"""


@needs_sandbox
@pytest.mark.parametrize(
    ("forbid", "guarantee"),
    [
        ("open('/proc/sys/user/max_user_namespaces', 'w').write('0')", "namespaces"),
        ("open('/proc/sys/user/max_net_namespaces', 'w').write('0')", "namespaces"),
        ("", "user"),  # a root whose user namespace has no other user
    ],
)
def test_what_the_kernel_refuses_is_named(forbid: str, guarantee: str) -> None:
    program = FORBIDDEN.format(src=SRC, forbid=forbid)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout.strip(), done.stderr) == (guarantee, "")


def test_the_supervisor_needs_the_standard_library_alone() -> None:
    program = f"import sys; sys.path.append({SRC!r}); import memweave.agents.tools.sandbox_check"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", program], timeout=30).returncode == 0


ORDINARY = """
import os, sys
from pathlib import Path
own = Path({own!r})
os.chown(own, 12345, 12345)
os.setgroups([]); os.setgid(12345); os.setuid(12345)
(own / "bird.py").write_text("")
sys.path.append({src!r})
from memweave.agents.tools.sandbox_check import require
from memweave.agents.tools.sandbox_run import Call
from memweave.agents.tools.sandbox_settings import SandboxSettings, limit_of
settings = SandboxSettings(wall_seconds=1, processes=8, keep=True, packages=(own,))
require(settings)
folder = b""
for program in (
    "import os; print(os.getuid(), os.listdir('/work'), os.path.exists('/etc'))",
    "import os\\nwhile True:\\n    try: os.fork()\\n    except OSError: pass",
    "import time; time.sleep(9)",
    "bytearray(10 ** 10)",
    "import bird\\ntry: open(bird.__file__, 'w')\\nexcept OSError as error: print(error.strerror)",
    f"import os; print(os.path.exists({{str(own)!r}})); os.kill({{os.getpid()}}, 9)",
    "import socket; socket.socket()",
    "open('n', 'w').write('kept')",
    "print(open('n').read())",
):
    outcome = Call().run(program, settings, folder)
    folder = outcome.folder if outcome.folder is not None else folder
    last = outcome.err.strip().splitlines()[-1:]
    print(outcome.out.strip(), limit_of(outcome, settings), *last)
"""
BY_AN_ORDINARY_USER = """\
1000 [] False None
 more than 8 processes and threads
 more than 1 s
 more than 256 MB of memory MemoryError
Read-only file system None
False None ProcessLookupError: [Errno 3] No such process
 None PermissionError: [Errno 13] Permission denied
 None
kept None
"""


@needs_sandbox
def test_an_ordinary_user_can_start_one() -> None:
    if os.geteuid() != 0:
        pytest.skip("all other tests of the sandbox run as an ordinary user")
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None or subprocess.run([python, "-c", "import sys; assert sys.version_info >= (3, 11)"]).returncode:
        pytest.skip("no Python 3.11 that every user may run")
    with tempfile.TemporaryDirectory() as own, adopting():
        program = ORDINARY.format(src=SRC, own=own)
        done = subprocess.run([python, "-B", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (BY_AN_ORDINARY_USER, "")


# what ends it


@needs_sandbox
def test_it_ends_with_its_supervisor() -> None:
    with adopting() as before:
        failed: list[BaseException] = []

        def run() -> None:
            try:
                Call().run(ASLEEP, SandboxSettings())
            except IsolationError as error:
                failed.append(error)

        work = threading.Thread(target=run)
        work.start()
        while not (grandchild := _program_below(children() - before)):
            assert work.is_alive()
        for supervisor in children() - before:
            assert Path(f"/proc/{supervisor}/environ").read_bytes() == b""
            os.kill(int(supervisor), signal.SIGKILL)
        work.join(10)
        assert [error.guarantee for error in failed if isinstance(error, IsolationError)] == ["supervision"]
        assert gone(before)
        assert not Path(f"/proc/{grandchild}").exists()


@needs_sandbox
def test_process_1_is_killed_from_outside() -> None:
    with adopting() as before, ThreadPoolExecutor(1) as pool:
        work = pool.submit(Call().run, ASLEEP, SandboxSettings())
        while not (program := _program_below(children() - before)):
            assert not work.done()
        first = re.search(r"^PPid:\s*(\d+)", Path(f"/proc/{program}/status").read_text(), re.MULTILINE)
        assert first
        os.kill(int(first[1]), signal.SIGKILL)
        outcome = work.result(10)
        assert (outcome.stopped, outcome.exit) == ("killed", None)
        assert "no memory left" in str(limit_of(outcome, SandboxSettings()))


@needs_sandbox
def test_it_ends_with_the_agents_process() -> None:
    program = (
        f"import sys; sys.path.append({SRC!r}); from memweave.agents.tools.sandbox_run import *; "
        f"Call().run({ASLEEP!r}, SandboxSettings())"
    )
    with adopting() as before:
        agent = subprocess.Popen([sys.executable, "-c", program])
        while not _program_below({str(agent.pid)}):
            assert agent.poll() is None
        agent.kill()
        agent.wait()
        assert gone(before)


def _program_below(processes: set[str]) -> str | None:
    """Return the sandboxed program below some processes, once it runs."""
    for each in processes:
        try:
            if b"/program.py" in Path(f"/proc/{each}/cmdline").read_bytes():
                return each
            below = {
                child
                for task in Path(f"/proc/{each}/task").iterdir()
                for child in (task / "children").read_text().split()
            }
        except OSError:
            continue
        if (found := _program_below(below)) is not None:
            return found
    return None


@needs_sandbox
def test_packages_that_not_every_user_may_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o000)
    with pytest.raises(IsolationError, match="folder 1 of the packages cannot be read by every user"):
        python_tool(SandboxSettings(packages=(tmp_path,)))

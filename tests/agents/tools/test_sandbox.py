"""The Python tool at ordinary work: what it tells, what it keeps, how it is cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables import RunnableConfig

from memweave.agents.tools.sandbox import SandboxSettings, python_tool
from memweave.agents.tools.sandbox_folders import Folders
from memweave.agents.tools.sandbox_run import Call
from memweave.errors import SettingsError
from memweave.graphs.memento import create_memento_agent
from memweave.testing.models import ScriptedChatModel
from tests.agents.tools.sandbox_work import SMALL, adopting, children, needs_sandbox, ran, small_tool

pytestmark = needs_sandbox
NOTHING = "exit status 0\nno output; print what you want to see"


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with adopting():
        yield


def thread(name: str) -> RunnableConfig:
    return {"configurable": {"thread_id": name}}


def told(tool: Any, program: str, config: RunnableConfig | None = None) -> str:
    text = tool.invoke({"program": program}, config)
    assert isinstance(text, str)
    return text


# what it tells


def test_a_program_prints() -> None:
    assert ran("print(6 * 7)\nprint('grüße 🙂')") == "exit status 0\noutput:\n42\ngrüße 🙂"


def test_a_program_that_prints_nothing() -> None:
    assert ran("6 * 7") == NOTHING


def test_the_standard_library() -> None:
    work = """
import asyncio, csv, datetime, decimal, io, json, multiprocessing, random, re, sqlite3
import statistics, subprocess, sys, tempfile, threading, zoneinfo
print(statistics.mean([1, 2, 6]), json.dumps({"a": 1}), decimal.Decimal(1) / 8, re.findall("b+", "abbab"))
print(sqlite3.connect(":memory:").execute("select 1 + 1").fetchone(), datetime.date(2024, 2, 29).isoformat())
print(subprocess.run([sys.executable, "-c", "print(5)"], capture_output=True, text=True).stdout.strip())
print(tempfile.TemporaryFile().write(b"abc"), asyncio.run(asyncio.sleep(0, "async")))
with multiprocessing.Pool(2) as pool: print(pool.map(abs, [-1, 2]))
"""
    text = ran(work, memory=256_000_000, wall_seconds=5, cpu_seconds=5)
    assert text.splitlines()[2:] == ["3 {\"a\": 1} 0.125 ['bb', 'b']", "(2,) 2024-02-29", "5", "3 async", "[1, 2]"]


def test_an_error_comes_with_its_place() -> None:
    text = ran("print('before')\n\n1 / 0")
    assert text.startswith("exit status 1\noutput:\nbefore\nerrors:\nTraceback")
    assert 'File "/program.py", line 3' in text
    assert "1 / 0" in text
    assert text.endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    "program", ["print('open", "print(\0)", "x = '\ud800'", "import sys; sys.exit(3)", "raise SystemExit(3)"]
)
def test_no_program_raises(program: str) -> None:
    assert ran(program).startswith(("exit status 1\nerrors:", "exit status 3\nno output", NOTHING))


def test_output_that_is_no_text() -> None:
    assert ran(r"import os; os.write(1, b'\xff\x00ok')") == "exit status 0\noutput:\n\ufffd\0ok"


def test_a_tool_call_gets_a_message() -> None:
    call = {"name": "python", "args": {"program": "print(1)"}, "id": "c1", "type": "tool_call"}
    for message in (small_tool().invoke(call), asyncio.run(small_tool().ainvoke(call))):
        assert isinstance(message, ToolMessage)
        assert (message.content, message.tool_call_id, message.status) == ("exit status 0\noutput:\n1", "c1", "success")


def test_a_long_program_is_not_started() -> None:
    assert (
        told(small_tool(program=10), "#" * 11) == "not started: the program has 11 characters; at most 10 are allowed"
    )


def test_the_description_says_what_it_can_and_cannot_do(tmp_path: Path) -> None:
    text = small_tool().description
    for part in (
        "prints",
        "standard library alone",
        "no network",
        "no other files",
        "1 s",
        "64 MB of memory",
        "8 processes",
    ):
        assert part in text
    assert "gone afterwards" in text
    assert "stays" in small_tool(keep=True).description
    assert "installed packages" in small_tool(packages=(tmp_path,)).description


def test_packages_can_be_shown(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "bird.py").write_text("def sing(): return 'la'")
    shown = {"packages": (tmp_path,)}
    assert ran("import bird; print(bird.sing())", **shown) == "exit status 0\noutput:\nla"
    assert "Read-only file system" in ran("import bird; open(bird.__file__, 'w')", **shown)


def test_limits_that_cannot_work() -> None:
    for changed in (
        {"memory": 1000},
        {"processes": 0},
        {"wall_seconds": 0.0},
        {"cpu_seconds": float("inf")},
        {"cpu_seconds": float("nan")},
        {"packages": (Path("/nowhere"),)},
    ):
        with pytest.raises(SettingsError):
            SandboxSettings(**changed)  # type: ignore[arg-type]


# its folder

WRITE = "import os; os.makedirs('a/b'); open('a/b/n', 'w').write('1'); open('helper.py', 'w').write('x = 7')"


def test_a_folder_is_fresh() -> None:
    tool = small_tool()
    for _ in range(2):
        assert told(tool, f"import os; print(os.listdir()); {WRITE}", thread("1")) == "exit status 0\noutput:\n[]"


def test_a_run_keeps_its_folder() -> None:
    tool = small_tool(keep=True)
    assert told(tool, f"{WRITE}; open('/tmp/x', 'w')", thread("1")) == NOTHING
    read = "import os, helper; print(open('a/b/n').read(), helper.x, os.listdir('/tmp'), sorted(os.listdir()))"
    assert told(tool, read, thread("1")) == "exit status 0\noutput:\n1 7 [] ['a', 'helper.py']"
    assert asyncio.run(tool.ainvoke({"program": read}, thread("1"))) == told(tool, read, thread("1"))
    for other in (thread("2"), None):
        assert told(tool, "import os; print(os.listdir())", other) == "exit status 0\noutput:\n[]"


def test_a_program_that_fails_keeps_what_it_wrote_one_that_is_stopped_does_not() -> None:
    tool = small_tool(keep=True, wall_seconds=0.3)
    told(tool, "open('kept', 'w'); 1 / 0", thread("1"))
    text = told(tool, "open('lost', 'w'); import time; time.sleep(9)", thread("1"))
    assert text.startswith("stopped: more than 0.3 s\n[what this program wrote was not kept")
    assert told(tool, "import os; print(os.listdir())", thread("1")) == "exit status 0\noutput:\n['kept']"


@pytest.mark.parametrize(
    "spoil",
    ["for i in range(10): open(str(i), 'w').truncate(900_000)", "import os; os.mkdir('shut'); os.chmod('shut', 0)"],
)
def test_a_folder_that_cannot_be_kept_is_told(spoil: str) -> None:
    tool = small_tool(keep=True)
    told(tool, "open('before', 'w')", thread("1"))
    assert "was not kept" in told(tool, spoil, thread("1"))
    assert told(tool, "import os; print(os.listdir())", thread("1")) == "exit status 0\noutput:\n['before']"


def test_odd_names_and_times_are_kept() -> None:
    tool = small_tool(keep=True)
    odd = """
import os
os.makedirs("d/" * 20)
for name in (b"\\xff", b"line\\nbreak", b"d/" + b"n" * 255, b"-rf", b" "):
    open(name, "w").close()
    os.utime(name, (-1e9, 2.5e10))
os.mkdir("closed"); open("closed/x", "w").close(); os.chmod("closed", 0o500)
os.mkfifo("pipe"); os.symlink("pipe", "link"); os.symlink("self", "self")
"""
    look = "import os; print([(f, sorted(d), sorted(n)) for f, d, n in sorted(os.walk(b'.'))], os.stat(b' ').st_mtime)"
    there = told(tool, f"{odd}\n{look}", thread("1"))
    assert "2.5e+10" in there or "25000000000.0" in there
    assert told(tool, look, thread("1")) == there


def test_folders_together_are_limited() -> None:
    tool = small_tool(keep=True, kept_bytes=1_000_000)
    for name in ("1", "2"):
        told(tool, "open('big', 'wb').write(bytes(700_000))", thread(name))
    look = "import os; print(os.listdir())"
    assert told(tool, look, thread("2")).endswith("['big']")
    assert "were given up to make room; the folder was empty" in told(tool, look, thread("1"))
    assert told(tool, look, thread("1")) == "exit status 0\noutput:\n[]"


def test_calls_of_one_run_come_one_after_the_other() -> None:
    tool = small_tool(keep=True, at_once=4)
    told(tool, "open('n', 'w').write('0')", thread("1"))
    more = "n = int(open('n').read()); open('n', 'w').write(str(n + 1))"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: told(tool, more, thread("1")), range(4)))
    assert told(tool, "print(open('n').read())", thread("1")) == "exit status 0\noutput:\n4"


def test_who_shares_a_folder_can_be_chosen() -> None:
    tool = python_tool(SandboxSettings(**SMALL, keep=True), run_of=lambda config: "all", probe=lambda settings: None)
    told(tool, "open('shared', 'w')")
    assert told(tool, "import os; print(os.listdir())", thread("2")).endswith("['shared']")


# waiting and cancelling


def test_a_call_waits_for_a_place_and_gives_up() -> None:
    folders = Folders(1, 10)
    with folders.turn(None, Call(), 0) as first, folders.turn(None, Call(), 0.01) as second:
        assert (first, second) == (True, False)
    with folders.turn("a", Call(), 0) as again:
        assert again


def test_a_call_that_waits_can_be_cancelled() -> None:
    folders, call = Folders(1, 10), Call()
    with folders.turn(None, Call(), 0):
        threading.Timer(0.01, folders.cancel, [call]).start()
        with folders.turn(None, call, 30) as came:
            assert not came
    assert call.run("print(1)", SandboxSettings()).stopped == "cancelled"


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.05, 0.4])
def test_cancelling_ends_the_program(seconds: float) -> None:
    async def main() -> None:
        before = children()
        try:
            async with asyncio.timeout(seconds):  # before it began, while it begins, and long after
                await small_tool(wall_seconds=30).ainvoke({"program": "import time; time.sleep(30)"})
        finally:
            assert children() <= before

    with pytest.raises(TimeoutError):
        asyncio.run(main())


def test_no_file_stays_open() -> None:
    tool = small_tool(keep=True)
    told(tool, "print(1)", thread("1"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        told(tool, "print(1)", thread("1"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_memento_can_use_it() -> None:
    call = {"name": "python", "args": {"program": "print(sum(range(101)))"}, "id": "1", "type": "tool_call"}
    agent = create_memento_agent(
        ScriptedChatModel(['{"plan": [{"id": 1, "description": "add 1 to 100"}]}', "FINAL ANSWER: 5050"]),
        ScriptedChatModel([AIMessage("", tool_calls=[call]), "5050"]),
        [small_tool()],
    )
    record = agent.invoke({"messages": "What is 1 + ... + 100?"})["record"]
    assert r"exit status 0\noutput:\n5050" in record.model_dump_json()


def test_the_guide_works(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "sandbox.md").read_text()
    block = page.partition("```python\n")[2].partition("```")[0]
    own: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(block, "docs/sandbox.md", "exec"), own)
    assert capsys.readouterr().out == "exit status 0\noutput:\n5050\n"
    own["agent"](ScriptedChatModel([]), ScriptedChatModel([]))

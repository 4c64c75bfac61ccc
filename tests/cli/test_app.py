"""The edge of the command line: help, exit codes, one-line errors, JSON purity."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer

import memweave
from memweave.cli.app import describe
from memweave.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

COMMANDS = ("demo", "remember", "ask", "memory", "eval")


def test_help_names_every_command(cli: Cli) -> None:
    result = cli("--help")
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)


@pytest.mark.parametrize(
    "command", ["demo", "remember", "ask", "memory list", "memory undo", "memory purge", "memory rebuild"]
)
def test_every_command_has_help_with_json(cli: Cli, command: str) -> None:
    result = cli(*command.split(), "--help")
    assert result.code == 0
    assert "--json" in result.out


def test_version(cli: Cli) -> None:
    assert cli("--version").out.strip() == f"memweave {memweave.__version__}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rember",), "rember"),
        (("ask",), "question"),
        (("ask", "Where?", "--usr", "anna"), "--usr"),
        (("memory", "list", "--user"), "--user"),
    ],
)
def test_misuse_is_one_line_and_code_2(cli: Cli, arguments: tuple[str, ...], says: str) -> None:
    result = cli(*arguments)
    assert result.code == 2
    assert says in result.error
    assert "--help" in result.error
    assert result.out == ""


def test_with_json_an_error_is_one_object_too(cli: Cli) -> None:
    for arguments in (
        ("memory", "list", "--json"),
        ("memory", "list", "--user", "a", "--home", "nowhere", "--json"),
        ("ask", "--json"),
    ):
        result = cli(*arguments)
        assert result.code == 2
        assert result.json == {"error": result.error.removeprefix("error: "), "exit_code": 2}


def test_an_unknown_setting_is_named_with_its_place(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMWEAVE_TENNANT", "acme")
    result = cli("memory", "list", "--user", "anna")
    assert result.code == 2
    assert "MEMWEAVE_TENNANT (environment) is not a setting. Did you mean MEMWEAVE_TENANT?" in result.error


def test_debug_adds_the_traceback_wherever_it_stands(cli: Cli) -> None:
    for arguments in (("--debug", "memory", "list"), ("memory", "list", "--debug")):
        err = cli(*arguments).err
        assert "Traceback" in err
        assert "error: no user is given" in err


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (InputError("bad. mend it"), "bad. mend it", 2),
        (UnavailableError("gone"), "gone", 1),
        (KeyboardInterrupt(), "interrupted", 130),
        (typer.Abort(), "interrupted", 130),
        (
            PermissionError(13, "Permission denied", "/x"),
            "/x: Permission denied. Check the path and its permissions",
            1,
        ),
        (OSError(28, "No space left on device"), "No space left on device", 1),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero", 1),
        (SystemExit(3), "", 3),
    ],
)
def test_every_way_out_has_a_line_and_a_code(error: BaseException, line: str, code: int) -> None:
    described, returned = describe(error)
    assert described.startswith(line)
    assert returned == code


def test_a_home_that_cannot_be_made_is_an_error(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "chat.jsonl").write_text('{"speaker": "Anna", "text": "I live in Porto."}\n')
    result = cli("remember", "chat.jsonl", "--user", "anna", "--home", "file/inside")
    assert result.code == 1
    assert "file/inside" in result.error
    assert "--home" in result.error


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_leaves_with_130_and_no_traceback(tmp_path: Path) -> None:
    """Interrupt a command that waits for its input from a pipe."""
    os.mkfifo(tmp_path / "pipe")
    process = subprocess.Popen(
        [sys.executable, "-m", "memweave", "remember", "pipe", "--user", "anna"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Where the tests run in the background, the shell has told every child to ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    writer = os.open(tmp_path / "pipe", os.O_WRONLY)  # returns once the command reads
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    os.close(writer)
    assert process.returncode == 130
    assert out == ""
    assert err.strip() == "interrupted"


def test_output_into_a_closed_pipe_is_not_a_crash(tmp_path: Path) -> None:
    command = f"{sys.executable} -m memweave --help | head -c 1; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" not in run.stderr


def test_help_loads_nothing_heavy() -> None:
    heavy = ("langchain_core", "langgraph", "numpy", "qdrant_edge", "sqlalchemy", "torch", "transformers", "trl")
    program = f"""
import sys
from memweave.cli.app import run
assert run(["--help"]) == 0
print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_json_is_ascii_so_that_no_terminal_can_break_it(capsys: pytest.CaptureFixture[str]) -> None:
    from memweave.cli.render import emit

    emit({"text": "\ud83d half, \N{GRINNING FACE}, \x1b[31m"})
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out)["text"].endswith("\x1b[31m")

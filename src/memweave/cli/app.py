"""The command `memweave`, and how every error leaves it.

A result goes to standard output; progress, logs and errors go to standard error. Exit codes: 0 done, 1 it failed, 2 it
was called wrongly, 130 interrupted. An error is one line, `error: what happened. what to do`; `--debug` (anywhere) adds
the traceback. With `--json` standard output carries exactly one JSON object, also when the command failed:
`{"error": ..., "exit_code": ...}`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import memweave
from memweave.cli import render
from memweave.cli.cases import cases_app
from memweave.cli.demo import demo
from memweave.cli.eval import eval_app
from memweave.cli.eval_world import world_app
from memweave.cli.mcp import mcp
from memweave.cli.memory import memory_app
from memweave.cli.pretrain import pretrain
from memweave.cli.remember import ask, remember
from memweave.cli.serve import serve
from memweave.cli.strategies import strategies_app
from memweave.cli.traces import traces_app
from memweave.cli.train import train
from memweave.errors import MemweaveError

INTERRUPTED = 130

app = typer.Typer(name="memweave", no_args_is_help=True, add_completion=False, rich_markup_mode=None)
app.command()(demo)
app.command()(remember)
app.command()(ask)
app.command()(serve)
app.command()(mcp)
app.command()(train)
app.command()(pretrain)
eval_app.add_typer(world_app, name="world")
app.add_typer(memory_app, name="memory")
app.add_typer(cases_app, name="cases")
app.add_typer(strategies_app, name="strategies")
app.add_typer(eval_app, name="eval")
app.add_typer(traces_app, name="traces")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"memweave {memweave.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (may stand anywhere).")
    ] = False,
) -> None:
    """Agents whose memory is learned. Start with: memweave demo."""


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    own = list(arguments)
    rest = own[own.index("--") :] if "--" in own else []
    own = own[: len(own) - len(rest)]
    debug = "--debug" in own
    as_json = "--json" in own
    own = [argument for argument in own if argument != "--debug"]
    line = ""
    try:
        code = typer.main.get_command(app)([*own, *rest], prog_name="memweave", standalone_mode=False)
    except BaseException as error:  # the edge of the program: every way out is turned into one line and a code
        line, code = describe(error)
        if debug:
            traceback.print_exc()
    if code == INTERRUPTED:  # Typer has turned Ctrl-C into this code
        line = "interrupted"
    render.complain(line, code, as_json=as_json)
    return code if isinstance(code, int) else 0


def describe(error: BaseException) -> tuple[str, int]:
    """Return the line to show for `error`, and the exit code."""
    match error:
        case KeyboardInterrupt() | typer.Abort():
            return "interrupted", INTERRUPTED
        case SystemExit():
            return "", error.code if isinstance(error.code, int) else 1
        case MemweaveError():
            return str(error), error.exit_code
        case typer.TyperException():
            return f"{error.format_message().rstrip('.')}. See: memweave {_command(error)}--help", error.exit_code
        case BrokenPipeError():
            # Whoever read our output went away (`memweave memory list | head`); nothing is left to say.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return "", 1
        case OSError(filename=str(name), strerror=str(reason)):
            return f"{name}: {reason}. Check the path and its permissions", 1
        case OSError(strerror=str(reason)):
            return f"{reason}. Nothing more was written", 1
        case _:
            return f"{type(error).__name__}: {error}. This is a fault in memweave; --debug shows where", 1


def _command(error: typer.TyperException) -> str:
    """Return the path of the command that was called wrongly, e.g. `memory undo `."""
    context = getattr(error, "ctx", None)
    path = context.command_path.partition(" ")[2] if context is not None else ""
    return f"{path} " if path else ""

"""A tool that runs Python programs in a sandbox: no network, no files but its own, limits on everything.

    agent = create_memento_agent(planner, executor, [python_tool()])

Nothing makes it unless you do. Each program runs in a process and in namespaces of its own and is gone, with all that it started,
when the call returns. What a program does is told to the model, never raised. Linux alone; where the kernel does not give one of
the guarantees the tool is refused, and there is no weaker one (docs/sandbox.md).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel, Field

from memweave.agents.tools.sandbox_check import Probe, missing_guarantee, require
from memweave.agents.tools.sandbox_folders import Folders
from memweave.agents.tools.sandbox_run import Call
from memweave.agents.tools.sandbox_settings import MEGABYTE, Outcome, SandboxSettings, limit_of

__all__ = ["SandboxSettings", "python_tool", "thread_of"]

NAME: Final = "python"
CANCELLING: Final = 15.0
"""Seconds that a cancelled call waits for its sandbox to be gone."""

RunOf = Callable[[RunnableConfig], str | None]
"""Which run a call belongs to; `None` for one that keeps nothing."""


class _Arguments(BaseModel):
    program: str = Field(description="A complete Python program. It has to print what you want to see.")


def thread_of(config: RunnableConfig) -> str | None:
    """Return the thread of LangGraph that a call belongs to, if any."""
    thread = config.get("configurable", {}).get("thread_id")
    return None if thread is None else str(thread)


def python_tool(
    settings: SandboxSettings | None = None, *, run_of: RunOf = thread_of, probe: Probe = missing_guarantee
) -> BaseTool:
    """Return the tool `python`, sync and async, which runs the program that it is given.

    settings: limits, whether folders are kept, packages.  run_of: whose folder a call gets, with `keep`; who shares an answer
    shares files.  probe: says which guarantee is missing; by default a sandbox is started and tried (a tenth of a second).
    Raises: IsolationError when this machine does not give a guarantee; the tool itself raises it when that changes later.
    """
    settings = settings or SandboxSettings()
    require(settings, probe)
    running = _Running(settings, run_of)
    return StructuredTool.from_function(
        func=running.run,
        coroutine=running.arun,
        name=NAME,
        description=_description(settings),
        args_schema=_Arguments,
    )


class _Running:
    def __init__(self, settings: SandboxSettings, run_of: RunOf) -> None:
        self._settings = settings
        self._run_of = run_of
        self._folders = Folders(settings.at_once, settings.kept_bytes)

    def run(self, program: str, config: RunnableConfig) -> str:
        return self._told(Call(), program, config)

    async def arun(self, program: str, config: RunnableConfig) -> str:
        call = Call()
        work = asyncio.ensure_future(asyncio.to_thread(self._told, call, program, config))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self._folders.cancel(call)
            await asyncio.wait({work}, timeout=CANCELLING)
            if work.done() and not work.cancelled():
                work.exception()  # whoever cancelled does not want to hear of it
            raise

    def _told(self, call: Call, program: str, config: RunnableConfig) -> str:
        settings = self._settings
        if len(program) > settings.program:
            return f"not started: the program has {len(program)} characters; at most {settings.program} are allowed"
        run = self._run_of(config) if settings.keep else None
        with self._folders.turn(run, call, settings.wait_seconds) as came:
            if not came:
                return f"not started: other programs run, and none ended within {settings.wait_seconds:g} s. Try again"
            folder, given_up = self._folders.get(run) if run is not None else (b"", False)
            outcome = call.run(program, replace(settings, keep=run is not None), folder)
            if run is not None and outcome.folder is not None:
                self._folders.put(run, outcome.folder)
        notes = []
        if given_up:
            notes.append("the files of earlier programs were given up to make room; the folder was empty")
        if not outcome.restored:
            notes.append("the files of earlier programs could not be put back")
        if run is not None and outcome.folder is None:
            notes.append("what this program wrote was not kept; the next one finds the files as this one found them")
        return _text(outcome, settings, notes)


def _text(outcome: Outcome, settings: SandboxSettings, notes: list[str]) -> str:
    """Return what the model is told: how it ended first, so that it survives any cut."""
    limit = limit_of(outcome, settings)
    status = _status(outcome.exit)
    head = status if limit is None else f"stopped: {limit}" + ("" if outcome.exit is None else f" ({status})")
    parts = [head, *(f"[{note}]" for note in notes)]
    for name, text in (("output", outcome.out), ("errors", outcome.err)):
        if text.strip():
            parts.append(f"{name}:\n{_cut(text.rstrip(), settings.shown)}")
    if len(parts) == 1 + len(notes):
        parts.append("no output; print what you want to see" if outcome.exit == 0 else "no output")
    return "\n".join(parts)


def _status(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit status {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


def _cut(text: str, shown: int) -> str:
    if len(text) <= shown:
        return text
    begin, end = text[: shown - shown // 2], text[len(text) - shown // 2 :]
    return f"{begin}\n[{len(text) - shown} characters were cut out here]\n{end}"


def _description(settings: SandboxSettings) -> str:
    def megabytes(size: int) -> str:
        return f"{size / MEGABYTE:g} MB"

    imports = "the standard library" + (" and the installed packages" if settings.packages else " alone")
    files = (
        "what programs of this conversation leave there stays"
        if settings.keep
        else "it is empty at first and gone afterwards"
    )
    return (
        f"Run a Python program and return what it prints, its errors and its exit status. It can import {imports}, and read "
        f"and write files in its working folder ({files}). It has no network, sees no other files, gets no input, and knows "
        f"nothing of earlier programs' variables. Limits: {settings.wall_seconds:g} s, {settings.cpu_seconds:g} s of CPU, "
        f"{megabytes(settings.memory)} of memory, {settings.processes} processes and threads, {megabytes(settings.file_size)} "
        f"for a file, {megabytes(settings.disk)} for all, {megabytes(settings.output)} of output."
    )

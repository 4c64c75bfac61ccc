"""A guard around any tool: whatever the tool does, the model gets a message, in bounded time and of bounded length.

A sync tool runs in a daemon thread. Python cannot stop a thread: one that hangs is abandoned, and goes on in the background
until it ends by itself or the program does. At most `ABANDONED` such threads are left behind; then sync calls are refused.
An async tool is cancelled; one that holds the event loop itself (a blocking call in a coroutine) cannot be guarded.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command
from pydantic import ValidationError

from memweave.agents.roles import one_line
from memweave.errors import SettingsError

ABANDONED: Final = 32
"""Threads of hanging tools that a process leaves behind before it refuses further sync calls."""
REASON: Final = 500
"""Characters of an error that the model is shown."""

_lock = threading.Lock()
_left_behind: set[threading.Thread] = set()


def guarded(tool: BaseTool, *, timeout: float = 60.0, max_chars: int = 20_000) -> BaseTool:
    """Return a tool of the same name, description and arguments that hangs, raises or floods no more.

    timeout: seconds of one call.  max_chars: characters of one result; the rest is cut off and the model is told.
    A failure is text that begins with "Error: " (a `ToolMessage` of status "error" for a tool call). Interrupts of LangGraph
    and results that are `Command`s pass.
    Raises: SettingsError for a limit that is not positive.
    """
    if timeout <= 0 or max_chars <= 0:
        raise SettingsError(f"the limits of the tool {tool.name} must be positive: timeout={timeout}, {max_chars=}")
    return _Guarded(
        name=tool.name,
        description=tool.description,
        args_schema=tool.args_schema,
        return_direct=tool.return_direct,
        response_format=tool.response_format,
        tags=tool.tags,
        metadata=tool.metadata,
        extras=tool.extras,
        inner=tool,
        seconds=timeout,
        chars=max_chars,
    )


def abandoned() -> int:
    """Return how many threads of hanging tools still run."""
    with _lock:
        _left_behind.difference_update([thread for thread in _left_behind if not thread.is_alive()])
        return len(_left_behind)


class _Guarded(BaseTool):
    inner: BaseTool
    seconds: float
    chars: int

    @property
    def func(self) -> Callable[..., Any] | None:
        """Return the function inside: LangGraph reads from it which arguments to inject."""
        return getattr(self.inner, "func", None)

    @property
    def coroutine(self) -> Callable[..., Any] | None:
        """Return the async function inside, for the same reason."""
        return getattr(self.inner, "coroutine", None)

    @property
    def tool_call_schema(self) -> Any:
        return self.inner.tool_call_schema

    def get_input_schema(self, config: Any = None) -> Any:
        return self.inner.get_input_schema(config)

    def run(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        call_id = kwargs.get("tool_call_id")
        if (refused := self._refused()) is not None:
            return self._failed(refused, call_id)
        work, thread = _started(lambda: self._called(tool_input, *args, **kwargs))
        try:
            return self._bounded(work.result(self.seconds), call_id)
        except GraphBubbleUp:
            raise
        except Exception as error:
            return self._failed(self._late(thread) if not work.done() else _reason(error), call_id)

    async def arun(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        call_id = kwargs.get("tool_call_id")
        thread: threading.Thread | None = None
        task: asyncio.Future[Any]
        if _is_async(self.inner):
            task = asyncio.ensure_future(self.inner.arun(tool_input, *args, **kwargs))
        elif (refused := self._refused()) is not None:
            return self._failed(refused, call_id)
        else:
            work, thread = _started(lambda: self.inner.run(tool_input, *args, **kwargs))
            task = asyncio.wrap_future(work)
        try:
            done, _ = await asyncio.wait({task}, timeout=self.seconds)
        finally:
            if not task.done():
                task.cancel()  # and not waited for: it may refuse
                if thread is not None:
                    _abandon(thread)
        if not done:
            return self._failed(self._late(None), call_id)
        try:
            return self._bounded(task.result(), call_id)
        except GraphBubbleUp:
            raise
        except (Exception, asyncio.CancelledError) as error:
            return self._failed(_reason(error), call_id)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner._run(*args, **kwargs)

    async def _arun(self, *args: Any, **kwargs: Any) -> Any:
        return await self.inner._arun(*args, **kwargs)

    def _called(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_async(self.inner) and isinstance(self.inner, StructuredTool) and self.inner.func is None:
            return asyncio.run(self.inner.arun(tool_input, *args, **kwargs))
        return self.inner.run(tool_input, *args, **kwargs)

    def _refused(self) -> str | None:
        if (left := abandoned()) < ABANDONED:
            return None
        return f"was not started: {left} earlier tool calls hang. Go on without tools, and report that the program must be restarted"

    def _late(self, thread: threading.Thread | None) -> str:
        if thread is not None:
            _abandon(thread)
        return f"gave no result within {self.seconds:g} s and was given up. Ask for less, or go on without it"

    def _failed(self, reason: str, call_id: str | None) -> Any:
        text = _cut(f"Error: the tool {self.name} {reason}.", self.chars)
        return text if call_id is None else ToolMessage(text, name=self.name, tool_call_id=call_id, status="error")

    def _bounded(self, result: Any, call_id: str | None) -> Any:
        if any(isinstance(each, Command) for each in (result if isinstance(result, list | tuple) else (result,))):
            return result
        if isinstance(result, ToolMessage):
            content = _content(result.content, self.chars)
            if result.status == "error" and isinstance(content, str) and not content.startswith("Error: "):
                content = _cut(f"Error: {content}", self.chars)
            return result.model_copy(update={"content": content})
        if isinstance(result, str):
            return _cut(result, self.chars)
        text = str(result)
        return result if len(text) <= self.chars else _cut(text, self.chars)


def _is_async(tool: BaseTool) -> bool:
    if isinstance(tool, StructuredTool):
        return tool.coroutine is not None
    return type(tool)._arun is not BaseTool._arun


def _started(work: Callable[[], Any]) -> tuple[Future[Any], threading.Thread]:
    future: Future[Any] = Future()
    context = contextvars.copy_context()

    def body() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = context.run(work)
        except BaseException as error:  # a tool may even raise SystemExit; the thread that asked hears of it
            future.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        else:
            future.set_result(result)

    thread = threading.Thread(target=body, name="memweave-tool", daemon=True)
    thread.start()
    return future, thread


def _abandon(thread: threading.Thread) -> None:
    with _lock:
        _left_behind.add(thread)


def _reason(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        found = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5])
        return f"was called with wrong arguments ({found[:REASON]}). Call it again with arguments that fit"
    told = one_line(f"{type(error).__name__}: {str(error)[:REASON]}").rstrip(".")
    return f"failed ({told}). Check the arguments, or go on without it"


def _content(content: str | list[Any], chars: int) -> str | list[Any]:
    if isinstance(content, str):
        return _cut(content, chars)
    whole = json.dumps(content, ensure_ascii=False, default=str)
    if len(whole) <= chars:
        return content
    texts = [each if isinstance(each, str) else str(each.get("text", "")) for each in content]
    text = "\n".join(each for each in texts if each)
    if len(text) <= chars:  # the rest was no text: an image, a file
        return f"{text}\n[Content that is not text was left out: it was too large.]".lstrip()
    return _cut(text, chars)


def _cut(text: str, chars: int) -> str:
    cut = len(text) - chars
    return text if cut <= 0 else f"{text[:chars]}\n[{cut} characters were cut off; ask for less, or for another part]"

"""An event loop in a thread of its own, kept between calls, so that blocking code can run coroutines on it.

A loop per call would break what belongs to a loop, such as the connections of a model's client. Works inside a running
loop too (a notebook).
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for blocking callers. workers: threads for sync nodes and other blocking calls."""

    def __init__(self, name: str, *, workers: int) -> None:
        self._loop = asyncio.new_event_loop()
        # asyncio's own has as many threads as there are cores, plus four: sync nodes would wait for each other.
        executor = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._loop.set_default_executor(executor)
        thread = threading.Thread(target=_serve, args=(self._loop, executor), name=name, daemon=True)
        thread.start()
        self._end = weakref.finalize(self, _stop, self._loop, thread)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end and return what it returns. An interrupt of the caller cancels it and waits for it."""
        future = asyncio.run_coroutine_threadsafe(_as_task(work), self._loop)
        task: asyncio.Task[T] = future.result()
        done = asyncio.run_coroutine_threadsafe(_result(task), self._loop)
        try:
            return done.result()
        except KeyboardInterrupt:
            self._loop.call_soon_threadsafe(task.cancel)
            done.exception()
            raise

    def close(self) -> None:
        """Stop the loop and its threads."""
        self._end()


async def _as_task(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.create_task(work)


async def _result(task: asyncio.Task[T]) -> T:
    return await task


def _serve(loop: asyncio.AbstractEventLoop, executor: ThreadPoolExecutor) -> None:
    """Run the loop until it is stopped, then end it in this thread: the one that stops it may have a running loop."""
    try:
        loop.run_forever()
        loop.run_until_complete(_cancel_rest())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        executor.shutdown(wait=False, cancel_futures=True)  # a node that hangs must not hang the caller
        loop.close()


async def _cancel_rest() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join()

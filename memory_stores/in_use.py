"""Run a graph on another bank than the one it was built with: `use_bank`.

Episodes of a training run each get a branch of their own this way, whatever graph they run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from memweave.memory_stores.store import MemoryStore

_in_use: ContextVar[MemoryStore | None] = ContextVar("memweave_bank", default=None)


@contextmanager
def use_bank(bank: MemoryStore) -> Iterator[MemoryStore]:
    """Make every graph that runs inside the block read and write `bank` instead of the bank it was built with.

    Holds for the current task and what it starts: tasks and threads that carry its context, as LangGraph's and
    `asyncio.to_thread` do. Other tasks see nothing of it.
    """
    token = _in_use.set(bank)
    try:
        yield bank
    finally:
        _in_use.reset(token)


def bank_in_use() -> MemoryStore | None:
    """Return the bank of the enclosing `use_bank`, or `None` outside of one."""
    return _in_use.get()

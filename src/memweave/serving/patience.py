"""Clocks that stand still while a server is away: its restart uses up nobody's time limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Protocol


class Clock(Protocol):
    """A time limit that can be stopped, by several at once and from any thread."""

    def pause(self) -> None:
        """Stop the clock until `resume` was called as often."""

    def resume(self) -> None:
        """Let it run again."""


CLOCK: Final[ContextVar[Clock | None]] = ContextVar("memweave_clock", default=None)
"""What limits the work of this context, if anything does."""


@contextmanager
def clock_stopped() -> Iterator[None]:
    """Stop the clock of this context for the block."""
    clock = CLOCK.get()
    if clock is None:
        yield
        return
    clock.pause()
    try:
        yield
    finally:
        clock.resume()

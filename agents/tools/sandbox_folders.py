"""Whose turn it is in the sandbox, and the folders that runs keep from call to call. Standard library alone."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from memweave.agents.tools.sandbox_run import Call

KEPT: Final = 64
"""Folders that are kept at most; of older ones only that they were given up."""


class Folders:
    """The folders that runs keep, each as an archive, of limited size together; and how many programs run at once."""

    def __init__(self, at_once: int, most: int) -> None:
        self._free = at_once
        self._most = most
        self._busy: set[str] = set()
        self._kept: OrderedDict[str, bytes | None] = OrderedDict()
        self._turn = threading.Condition()

    @contextmanager
    def turn(self, run: str | None, call: Call, seconds: float) -> Iterator[bool]:
        """Wait for a place, and for the folder of the run, which one call at a time has; whether it came in time."""

        def free() -> bool:
            return call.cancelled or (self._free > 0 and run not in self._busy)

        with self._turn:
            got = self._turn.wait_for(free, seconds) and not call.cancelled
            if got:
                self._free -= 1
                self._busy.update([run] if run is not None else [])
        try:
            yield got
        finally:
            if got:
                with self._turn:
                    self._free += 1
                    self._busy.difference_update([run] if run is not None else [])
                    self._turn.notify_all()

    def cancel(self, call: Call) -> None:
        """End a call, also one that waits."""
        call.cancel()
        with self._turn:
            self._turn.notify_all()

    def get(self, run: str) -> tuple[bytes, bool]:
        """Return the folder of a run, and whether it was given up for others since it was last used."""
        with self._turn:
            found = self._kept.get(run, b"")
            return found or b"", found is None

    def put(self, run: str, folder: bytes) -> None:
        """Keep the folder of a run, and give up those used longest ago when there are too many."""
        with self._turn:
            self._kept[run] = folder
            self._kept.move_to_end(run)
            held = [key for key, value in self._kept.items() if value is not None]
            while len(held) > KEPT or (len(held) > 1 and sum(len(self._kept[key] or b"") for key in held) > self._most):
                self._kept[held.pop(0)] = None
            while len(self._kept) > 16 * KEPT:
                self._kept.popitem(last=False)

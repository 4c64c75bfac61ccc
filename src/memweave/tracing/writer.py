"""The background writer of a `Tracer`: a bounded queue and one thread, so that no run waits for the disk."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Final

from memweave.errors import UnavailableError, UsageError
from memweave.tracing.records import Trace

if TYPE_CHECKING:
    from memweave.tracing.store import TraceStore

LIMIT: Final = 1_000
"""Traces that may wait to be written."""
BATCH: Final = 100
"""Traces that are written in one transaction."""
RETRY_SECONDS: Final = 5.0
"""After this time a new trace makes the writer try again what failed."""
PATIENCE: Final = 30.0
"""Seconds that a run waits for a place in a full queue."""


class TraceWriter:
    """Write traces in order, in batches. What could not be written stays queued and is tried again."""

    def __init__(self, store: TraceStore, *, limit: int = LIMIT) -> None:
        self._store = store
        self._limit = limit
        self._waiting: deque[Trace] = deque()
        self._changed = threading.Condition()
        self._failure: Exception | None = None
        self._failed_at = 0.0
        self._refused: Exception | None = None
        self._busy = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def put(self, trace: Trace) -> None:
        """Queue a trace. A full queue makes the run wait: up to 30 s while the disk is slow, not at all when it fails.

        Raises what the last write failed with, or `UnavailableError`, when there is no place for the trace.
        """
        with self._changed:
            if self._closed:
                raise UsageError("the tracer is closed; its traces can no longer be stored. Make a new one")
            self._start()
            until = time.monotonic() + PATIENCE
            if self._failure is not None and time.monotonic() - self._failed_at > RETRY_SECONDS:
                self._failure = None
            while len(self._waiting) >= self._limit:
                if self._failure is not None:
                    raise self._failure
                if not self._changed.wait(until - time.monotonic()):
                    raise UnavailableError(f"{self._store.where} took no trace for {PATIENCE:g} s. Check the disk")
            self._waiting.append(trace)
            self._changed.notify_all()

    def flush(self, timeout: float) -> None:
        """Wait until everything is written; try again what failed before. Raises as `Tracer.flush` says."""
        until = time.monotonic() + timeout
        with self._changed:
            self._failure = None
            if self._waiting:
                self._start()
            self._changed.notify_all()
            while self._waiting or self._busy:
                if self._failure is not None:
                    raise self._failure
                if not self._changed.wait(max(0.0, until - time.monotonic())) and time.monotonic() >= until:
                    left = len(self._waiting)
                    raise UnavailableError(
                        f"{left} traces are not yet in {self._store.where} after {timeout:g} s. Flush again, or allow more time"
                    )
            if self._refused is not None:
                refused, self._refused = self._refused, None
                raise refused

    def close(self, timeout: float) -> None:
        """Flush, then end the thread; when the flush fails, the writer stays open so that it can be tried again."""
        self.flush(timeout)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="memweave-traces", daemon=True)
            self._thread.start()
            _at_exit(self)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._waiting or self._failure is not None):
                    self._changed.wait()
                if not self._waiting:
                    return
                batch = [self._waiting[place] for place in range(min(BATCH, len(self._waiting)))]
                self._busy = True
            failure = self._written(batch)
            with self._changed:
                self._busy = False
                self._failure, self._failed_at = failure, time.monotonic()
                if failure is None:
                    for _ in batch:
                        self._waiting.popleft()
                self._changed.notify_all()

    def _written(self, batch: list[Trace]) -> Exception | None:
        """Write a batch; returns what a later attempt may get past. A trace that can never be stored is dropped, and told of."""
        try:
            self._store.add_many(batch)
        except UsageError as error:
            if len(batch) == 1:
                self._refused = error
                return None
            for trace in batch:
                if (failure := self._written([trace])) is not None:
                    return failure
        except Exception as error:  # raised again by `flush`, or by `put` when the queue is full
            return error
        return None


def _at_exit(writer: TraceWriter) -> None:
    """Write what is queued when the program ends without closing its tracer."""
    reference = weakref.ref(writer)

    def drain() -> None:
        if (found := reference()) is not None and not found._closed:
            found.close(PATIENCE)

    atexit.register(drain)

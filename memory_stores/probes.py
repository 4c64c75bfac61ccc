"""Named points between durable writes, so that a test can kill the process exactly there.

In normal operation `reached` does nothing. Points: `apply:op`, `apply:closed`, `apply:opened`, `apply:turn`, `apply:commit`,
`apply:committed`, `project:upserted`, `project:deleted`, `project:marked`, `fill:cleared`, `fill:upserted`;
of a graph of strategies `graph:edges`, `graph:weights`, `graph:logged`, `graph:settled`, `graph:saved`, `graph:cleared`.
"""

from __future__ import annotations

from collections.abc import Callable

_listener: Callable[[str], None] | None = None


def listen(listener: Callable[[str], None] | None) -> None:
    """Call `listener` with the name of every point reached in this process; `None` stops."""
    global _listener
    _listener = listener


def reached(point: str) -> None:
    """Tell the listener, if there is one, that `point` was reached."""
    if _listener is not None:
        _listener(point)

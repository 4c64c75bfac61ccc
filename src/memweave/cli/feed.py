"""Operations as they happen: one line each, small talk summed up, and a bar below them on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from rich.console import Console
from rich.text import Text

from memweave.cli.render import OpView
from memweave.records import OpKind, OpStatus, StoredTurn

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from memweave.graphs.session import MemoryEvent

WIDEST_NAME: Final = 16
WORTH_A_LINE: Final = 3
"""Turns without an operation, one after the other, that get a line."""


class Feed:
    """Shows what a construction graph does to the pending turns `turns`.

    console: where lines and bar go.  show: whether to show operations.  bar: whether to draw a bar, on a terminal.
    """

    def __init__(self, turns: Sequence[StoredTurn], console: Console, *, show: bool, bar: bool) -> None:
        self._speakers = {(turn.dialogue, turn.source_id): turn.speaker for turn in turns}
        self._name_width = min(max((len(turn.speaker) for turn in turns), default=0), WIDEST_NAME)
        self._console = console
        self._show = show
        self._total = len(turns)
        self._started = 0
        self._silent = 0
        self._spoke = False
        self._progress = self._bar() if bar and console.is_terminal and turns else None
        self._task: TaskID | None = None

    def _bar(self) -> Progress:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("remembering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        return Progress(*columns, console=self._console, transient=True)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
            self._task = self._progress.add_task("remembering", total=self._total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sum_up()
        if self._progress is not None:
            self._progress.stop()

    def next_turn(self) -> None:
        """Note that the graph takes the next turn, or found none."""
        if self._started and not self._spoke:
            self._silent += 1
        self._spoke = False
        self._started += 1
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=min(self._started - 1, self._total))

    def operation(self, event: MemoryEvent) -> None:
        """Show an operation."""
        self._spoke = True
        if not self._show:
            return
        self._sum_up()
        kind, status = OpKind(event["kind"]), OpStatus(event["status"])
        speakers = (self._speakers.get((event["dialogue"], source)) for source in event["source_ids"])
        speaker = next((name for name in speakers if name), "")
        after = None if kind is OpKind.DELETE else event["text"]
        view = OpView(kind, status, event["before"], after, event["reason"], event["error"], speaker)
        for line in view.lines(speaker_width=self._name_width, width=self._console.width):
            self._console.print(line)

    def _sum_up(self) -> None:
        if self._silent >= WORTH_A_LINE and self._show:
            self._console.print(Text(f"  ...      {self._silent} turns of small talk", style="dim"))
        self._silent = 0

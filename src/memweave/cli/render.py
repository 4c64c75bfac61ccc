"""What a person sees: lines, tables and progress; and the one JSON object that a program sees.

Text from memories is data from outside: every character that could steer a terminal is made visible first, and it is
never read as markup. Results go to standard output; progress, notes and errors to standard error.
"""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from textwrap import wrap
from typing import Final
from uuid import UUID

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memweave.records import Memory, MemoryOp, OpKind, OpStatus

WIDTH_WITHOUT_TERMINAL: Final = 120
SHORT_ID: Final = 8
"""Digits of an id that are shown: the last ones, which are random (the first ones of a UUIDv7 are the time)."""
KIND: Final = 9
"""Columns of sign and kind."""
BRIEF: Final = 24
"""Columns of a reason that is too short to get a line of its own."""
SIGNS: Final[dict[OpKind, tuple[str, str]]] = {
    OpKind.ADD: ("+", "green"),
    OpKind.UPDATE: ("~", "yellow"),
    OpKind.DELETE: ("-", "red"),
    OpKind.NOOP: ("=", "dim"),
}
_FOLDED: Final = frozenset(
    {"memory", "text", "before -> after", "reason", "question", "answer", "graph", "run", "task", "summary"}
)
"""Columns that go on in a second line where the terminal is too narrow; the others are never cut for them."""
_HIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_JOINERS: Final = "\u200d"
"""Zero-width joiner: holds emoji together, steers nothing."""


@lru_cache(maxsize=1)
def out() -> Console:
    """Return the console of results."""
    return _console(stderr=False)


@lru_cache(maxsize=1)
def notes() -> Console:
    """Return the console of progress, notes and errors."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(
        stderr=stderr, highlight=False, markup=False, emoji=False, width=WIDTH_WITHOUT_TERMINAL
    )  # fmt: skip


def complain(line: str, code: int, *, as_json: bool) -> None:
    """Print an error: one line on standard error, and with `as_json` an object on standard output.

    Nothing is printed for an empty line.
    """
    if not line:
        return
    line = safe(line)
    if as_json:
        emit({"error": line, "exit_code": code})
    prefix = "" if line == "interrupted" else "error: "
    notes().print(Text(prefix + line, style="red" if prefix else "dim"), soft_wrap=True)


def note(line: str) -> None:
    """Print a remark on standard error."""
    notes().print(Text(safe(line), style="dim"), soft_wrap=True)


def emit(payload: Mapping[str, object]) -> None:
    """Print the one JSON object of `--json`. ASCII only, so that no text and no locale can break it.

    A number that is not finite is `null`: JSON has no word for it.
    """
    try:
        line = json.dumps(payload, allow_nan=False)
    except ValueError:
        line = json.dumps(_finite(payload), allow_nan=False)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def safe(text: str) -> str:
    """Return `text` on one line, with characters that steer a terminal (escapes, direction overrides) made visible."""
    spaced = " ".join(text.split())
    return "".join(
        c if c in _JOINERS or unicodedata.category(c) not in _HIDDEN_CATEGORIES else "\N{REPLACEMENT CHARACTER}"
        for c in spaced
    )


def short(value: UUID) -> str:
    """Return the part of an id that is shown and can be typed."""
    return value.hex[-SHORT_ID:]


def day(moment: datetime | None) -> str:
    """Return the date, or a dash when there is none."""
    return f"{moment:%Y-%m-%d}" if moment else "-"


def minute(moment: datetime) -> str:
    """Return date and time in UTC, to the minute."""
    return f"{moment:%Y-%m-%d %H:%M}"


def count(number: int, noun: str) -> str:
    """Return `1 turn`, `2 turns`, `2 memories`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table in the house style; `right` names the columns that are aligned to the right."""
    made = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
    for name in columns:
        narrow = name not in _FOLDED
        made.add_column(name, justify="right" if name in right else "left", no_wrap=narrow, overflow="fold")
    return made


def row(target: Table, *cells: object, style: str | None = None) -> None:
    """Add a row; every cell is made safe."""
    target.add_row(*(cell if isinstance(cell, Text) else Text(safe(str(cell))) for cell in cells), style=style)


def memory_table(memories: Iterable[Memory]) -> Table:
    """Return a table of memories: id, date on which it was said, speaker, text."""
    made = table("id", "date", "speaker", "memory")
    for memory in memories:
        row(made, short(memory.id), day(memory.observed_at), memory.speaker or "-", memory.text)
    return made


@dataclass(frozen=True)
class OpView:
    """What is shown of an operation, whether it comes from the log or from the stream of a running graph."""

    kind: OpKind
    status: OpStatus
    before: str | None
    after: str | None
    reason: str
    error: str | None
    speaker: str

    @classmethod
    def of(cls, op: MemoryOp) -> OpView:
        """Return the view of a logged operation."""
        memory = op.after or op.before
        before, after = (side.text if side else None for side in (op.before, op.after))
        speaker = (memory.speaker if memory else None) or ""
        return cls(op.kind, op.status, before, after, op.reason, op.error, speaker)

    def sign(self) -> Text:
        """Return sign and kind, coloured; `! FAILED` for an operation that changed nothing because it failed."""
        if self.status is OpStatus.FAILED:
            return Text("! FAILED", style="bold red")
        sign, style = SIGNS[self.kind]
        return Text(f"{sign} {self.kind}", style=style)

    def change(self, width: int | None = None) -> Text:
        """Return `old -> new`, the new text, the old one struck out, or the error; cut to `width` characters."""
        before, after = (safe(side) if side else None for side in (self.before, self.after))
        if self.status is OpStatus.FAILED:
            return _cut(Text(safe(self.error or "failed"), style="red"), width)
        if before and after and before != after:
            # What only adds to the old text would look the same twice.
            arrow, after = (" + ", after.removeprefix(before).strip()) if after.startswith(before) else (" -> ", after)
            old = _cut(Text(before, style="dim"), None if width is None else width // 2 - len(arrow))
            new = _cut(Text(after), None if width is None else width - len(arrow) - old.cell_len)
            return Text.assemble(old, arrow, new)
        if after:
            return _cut(Text(after, style="dim" if self.kind is OpKind.NOOP else ""), width)
        return _cut(Text(before, style="strike dim"), width) if before else Text("-", style="dim")

    def lines(self, *, speaker_width: int, width: int) -> list[Text]:
        """Return sign, speaker, change and reason in `width` columns: one line if it fits, else the reason below.

        The reason is never cut. One of a word or two gets no line of its own: the change gives way.
        """
        sign = self.sign()
        speaker = f"{safe(self.speaker):<{speaker_width}}"[:speaker_width] + ("  " if speaker_width else "")
        head = Text.assemble(sign, " " * (KIND - len(sign)), (speaker, "bold"))
        room = max(width - head.cell_len, 30)
        reason = Text(f"({safe(self.reason)})", style="dim")
        change = self.change()
        if reason.cell_len <= BRIEF:
            return [Text.assemble(head, self.change(room - reason.cell_len - 2), "  ", reason)]
        if change.cell_len + reason.cell_len + 2 <= room:
            return [Text.assemble(head, change, "  ", reason)]
        below = wrap(reason.plain, max(width, 40), initial_indent=" " * KIND, subsequent_indent=" " * KIND)
        return [Text.assemble(head, self.change(room)), *(Text(line, style="dim") for line in below)]


def _cut(line: Text, width: int | None) -> Text:
    if width is not None:
        line.truncate(width, overflow="ellipsis")
    return line


def op_table(ops: Iterable[MemoryOp]) -> Table:
    """Return a table of operations: what was done, why, by whom, from which message."""
    made = table("id", "when (UTC)", "operation", "before -> after", "reason", "by", "from")
    for op in ops:
        reason = f"{op.reason} [undoes {short(op.undoes)}]" if op.undoes else op.reason
        sources = ", ".join(op.source_ids) or "-"
        view = OpView.of(op)
        row(made, short(op.id), minute(op.recorded_at), view.sign(), view.change(), reason, op.actor, sources)
    return made

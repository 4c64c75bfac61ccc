"""The timeline of a report: one line per memory, its versions as pieces of a bar over the time of the conversation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from memweave.cli.markup import change, section, sign, text
from memweave.cli.render import day
from memweave.records import Memory, MemoryOp, OpKind, OpStatus, Turn


@dataclass(frozen=True)
class _Story:
    """What happened to one memory, in order."""

    ops: tuple[MemoryOp, ...]
    times: tuple[datetime | None, ...]
    """When each was said; `None` for an operation that no turn caused, such as an undo."""

    @property
    def memory(self) -> Memory | None:
        """Return the latest version, also when it was deleted since."""
        versions = (side for op in reversed(self.ops) for side in (op.after, op.before))
        return next((side for side in versions if side), None)

    @property
    def changes(self) -> list[tuple[MemoryOp, datetime | None]]:
        """Return the operations that still count, with their times: neither undone, nor an undo themselves."""
        pairs = zip(self.ops, self.times, strict=True)
        return [
            pair
            for pair in pairs
            if pair[0].kind is not OpKind.NOOP and pair[0].undoes is None and self._holds(pair[0])
        ]

    def _holds(self, op: MemoryOp) -> bool:
        """Return whether no undo of `op` holds itself."""
        return not any(other.undoes == op.id and self._holds(other) for other in self.ops)

    @property
    def alive(self) -> bool:
        """Return whether the memory is a current one."""
        return any(op.after is not None for op, _ in self.changes[-1:])


def _stories(turns: Sequence[Turn], ops: Sequence[MemoryOp]) -> list[_Story]:
    said = {turn.source_id: turn.observed_at for turn in turns}
    by_memory: dict[object, list[MemoryOp]] = {}
    for op in ops:
        if op.memory_id is not None and op.status is OpStatus.APPLIED:
            by_memory.setdefault(op.memory_id, []).append(op)
    return [
        _Story(tuple(ops), tuple(_said(op, said) for op in ops))
        for ops in by_memory.values()
        if ops[0].kind is OpKind.ADD
    ]


def _said(op: MemoryOp, said: dict[str, datetime | None]) -> datetime | None:
    if op.undoes is not None:
        return None
    known = [time for source in op.source_ids if (time := said.get(source)) is not None]
    return known[-1] if known else (op.after.observed_at if op.after else None)


def timeline(turns: Sequence[Turn], ops: Sequence[MemoryOp]) -> str:
    """Return the section, or nothing when no memory was made."""
    stories = _stories(turns, ops)
    if not stories:
        return ""
    times = [time for story in stories for time in story.times if time is not None]
    first, last = (min(times), max(times)) if times else (None, None)
    axis = f"<span>{day(first)}</span><span>{day(last)}</span>" if times else ""
    lead = (
        "One line per memory; the bar shows when it held, dark for the latest version, ticks where it was said again. "
        "Open a line for its versions, their reasons and what was said."
    )
    controls = (
        '<p class="controls">'
        '<input type="search" id="find" placeholder="find in memories" aria-label="find in memories"/>'
        '<label><input type="checkbox" id="changed"/> only those that changed</label>'
        '<span class="small" id="shown"></span></p>'
    )
    head = f'<div class="axis"><span></span><span>memory</span><span>{axis}</span></div>'
    by_source = {turn.source_id: turn for turn in turns}
    rows = "".join(_memory(story, by_source, first, last) for story in stories)
    return section("What is remembered", lead, f'{controls}<div class="scroll tall">{head}{rows}</div>')


def _memory(story: _Story, turns: dict[str, Turn], first: datetime | None, last: datetime | None) -> str:
    memory = story.memory
    if memory is None:
        return ""
    changed = sum(op.kind is not OpKind.NOOP for op in story.ops) > 1
    kinds = " ".join(["memory", *(["changed"] if changed else []), *([] if story.alive else ["gone"])])
    bar = "".join(_bar(story, first, last)) if first is not None and last is not None else ""
    versions = "".join(_version(op, time, turns) for op, time in zip(story.ops, story.times, strict=True))
    return (
        f'<details class="{kinds}"><summary><span class="who">{text(memory.speaker or "")}</span>'
        f'<span class="text">{text(memory.text)}</span><span class="bar">{bar}</span></summary>'
        f'<ol class="versions">{versions}</ol></details>'
    )


def _bar(story: _Story, first: datetime, last: datetime) -> Iterable[str]:
    """Yield the pieces of a memory's bar: one per version, and a tick for each time it was said again."""
    span = (last - first) or timedelta(seconds=1)

    def at(time: datetime | None) -> float:
        return 100.0 if time is None else 100 * ((time - first) / span)

    points = [(min(at(time), 98.5), op) for op, time in story.changes]
    ends = [x for x, _ in points[1:]] + [100.0]
    for (x, op), end in zip(points, ends, strict=True):
        if op.after is not None:
            kind = ' class="last"' if op is points[-1][1] else ""
            yield f'<i{kind} style="left:{x:.1f}%;width:{max(end - x, 1.5):.1f}%"></i>'
    for op, time in zip(story.ops, story.times, strict=True):
        if op.kind is OpKind.NOOP:
            yield f'<i class="again" style="left:{min(at(time), 99.0):.1f}%"></i>'


def _version(op: MemoryOp, time: datetime | None, turns: dict[str, Turn]) -> str:
    quotes = "".join(
        f"<blockquote>{text(turn.speaker)}: {text(turn.text)}</blockquote>"
        for source in op.source_ids
        if (turn := turns.get(source)) and op.undoes is None
    )
    when = day(time) if time else "taken back"
    return (
        f'<li><span class="small">{when}</span> {sign(op)} {change(op)}'
        f'<div class="small">{text(op.reason)} ({text(op.actor)})</div>{quotes}</li>'
    )

"""Strategies as advice before a question: q' = [m_1, ..., m_k; q] (trainable graph memory, section 4.3).

    advice = render_advice(strategies, budget=2_000)
    advice.text          # "" when there is none, or none fits

One line each, best first, within a budget of characters. A strategy that does not fit is shown by its summary alone, or left out and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from memweave.agents.roles import one_line
from memweave.errors import SettingsError
from memweave.graph_records import NewStrategy, Strategy
from memweave.records import Record

BUDGET: Final = 2_000
"""Characters of advice in a prompt, its frame included."""
OPENING: Final = "<advice>\nStrategies that helped with other questions. Follow them where they fit this one:\n"
CLOSING: Final = "\n</advice>"


class Advice(Record):
    """What is put before a question, and what became of each strategy."""

    text: str
    """Empty without any strategy."""
    shown: tuple[UUID, ...] = ()
    """In the order of the text; those that are shortened included."""
    shortened: tuple[UUID, ...] = ()
    """Shown by their summary alone."""
    left_out: tuple[str, ...] = ()
    """Which are not shown, and why: one line each."""


def render_advice(strategies: Sequence[Strategy], *, budget: int = BUDGET, framed: bool = True) -> Advice:
    """Return strategies as advice, in their order.

    budget: most characters of the text.  framed: in `<advice>` tags with a line that says what it is; small policies that were trained on
    lines alone get `False`. What a strategy says cannot end its line, nor the block.

    Raises `SettingsError` for a budget below 1.
    """
    if budget < 1:
        raise SettingsError(f"A budget of {budget} characters is none: give 1 at least, or no strategies")
    opening, closing = (OPENING, CLOSING) if framed else ("", "")
    left = budget - len(opening) - len(closing)
    lines: list[str] = []
    shown: list[UUID] = []
    shortened: list[UUID] = []
    left_out: list[str] = []
    for strategy in strategies:
        room = left - (1 if lines else 0)  # the line break before it
        full, short = advice_line(strategy), _line(strategy.summary)
        line = next((each for each in (full, short) if len(each) <= room), None)
        if line is None:
            least = min(len(full), len(short))
            left_out.append(
                f"{strategy.id}: it takes {least} characters at least, and {max(room, 0)} of {budget} are left"
            )
            continue
        lines.append(line)
        shown.append(strategy.id)
        shortened += [strategy.id] if line != full else []
        left = room - len(line)
    text = f"{opening}{chr(10).join(lines)}{closing}" if lines else ""
    return Advice(text=text, shown=tuple(shown), shortened=tuple(shortened), left_out=tuple(left_out))


def advice_line(strategy: NewStrategy) -> str:
    """Return a strategy on one line: summary and principles. A principle that only goes on where the summary ends takes its place."""
    said = [one_line(each.text) for each in strategy.principles]
    summary = one_line(strategy.summary)
    repeated = any(text.startswith(summary.removesuffix(".")) for text in said)
    return _line(" ".join(said if repeated else [summary, *said]))


def _line(text: str) -> str:
    return f"- {one_line(text).replace('<', '&lt;')}"

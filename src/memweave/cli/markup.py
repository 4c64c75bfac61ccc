"""Pieces of HTML that are safe to put text from outside into. Everything they return is well-formed XML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from memweave.cli.render import SIGNS, safe
from memweave.records import MemoryOp, OpStatus


def text(value: object) -> str:
    """Return `value` as text of an element or a quoted attribute: no markup, no control characters."""
    return escape(safe(str(value)))


def cell(value: object, kind: str = "") -> str:
    """Return a table cell; `value` is HTML already."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<td{attribute}>{value}</td>"


def table(columns: Sequence[str], rows: Iterable[str], *, numeric: Sequence[str] = ()) -> str:
    """Return a table; `rows` are HTML already, columns named in `numeric` are aligned to the right."""
    heads = (f'<th class="n">{text(c)}</th>' if c in numeric else f"<th>{text(c)}</th>" for c in columns)
    return f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def section(title: str, lead: str, body: str) -> str:
    """Return a section; `body` is HTML already."""
    return f'<section><h2>{text(title)}</h2><p class="lead">{text(lead)}</p>{body}</section>'


def sign(op: MemoryOp) -> str:
    """Return sign and kind of an operation."""
    if op.status is OpStatus.FAILED:
        return '<span class="op FAILED">! FAILED</span>'
    return f'<span class="op {op.kind}">{SIGNS[op.kind][0]} {op.kind}</span>'


def change(op: MemoryOp) -> str:
    """Return what an operation did to the text of its memory."""
    before, after = op.before, op.after
    if op.status is OpStatus.FAILED:
        return text(op.error or "")
    if before and after and before.text != after.text:
        return f"<del>{text(before.text)}</del> {text(after.text)}"
    if after:
        return text(after.text)
    return f"<del>{text(before.text)}</del>" if before else ""

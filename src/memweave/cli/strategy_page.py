"""The page of `memweave strategies show --html`: one file that needs nothing else and loads nothing.

Every text goes into the page as JSON in which no character can end its element, and its script only ever sets text. The content
security policy lets that one script run and no other.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final

from memweave.cli.markup import text
from memweave.cli.render import count, safe
from memweave.cli.trace_view import trace_lines
from memweave.errors import InputError

if TYPE_CHECKING:
    from memweave.cli.strategy_view import GraphView, ShownTrace
    from memweave.tracing import TraceStore

TRACES: Final = 1_000
"""Traces that a page holds at most."""
TAIL: Final = 1_500
"""Characters that it holds of the end of a prompt, and of the beginning of a reply."""
_MARK: Final = '<meta name="generator" content="memweave strategies show"/>'
_ESCAPES: Final = str.maketrans({each: f"\\u{ord(each):04x}" for each in "<>&\u2028\u2029"})


def write_page(view: GraphView, path: Path) -> None:
    """Write the page to `path`; one that is there already is replaced. Raises `InputError` for a file that is no such page."""
    if path.exists() and _MARK not in _beginning(path):
        raise InputError(f"{path} exists already and is no page of ours; name another file, or remove it first.")
    style = _part("strategy_page.css")
    script = f"//<![CDATA[\n{_part('strategy_page.js')}//]]>"
    drawn = f"the newest {len(view.queries)} of " if len(view.queries) < view.total_queries else ""
    page = Template(_part("strategy_page.html")).substitute(
        title=text(f"Strategies of {view.scope}"),
        lead=text(
            f"{drawn}{count(view.total_queries, 'query')} \u2192 {count(len(view.paths), 'path')} \u2192 "
            f"{count(len(view.strategies), 'strategy')}; version {view.version} of the weights; encoder {view.encoder}"
        ),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        graph=json.dumps(_safe(view.model_dump(mode="json")), ensure_ascii=False, allow_nan=False).translate(_ESCAPES),
    )
    path.write_text(page, encoding="utf-8")


def told(view: GraphView, store: TraceStore) -> Iterator[ShownTrace]:
    """Yield the traces behind a graph that a store has, `TRACES` at most."""
    from memweave.cli.strategy_view import ShownTrace

    found = {key.hex: key for key in store.ids()}
    wanted = [(name, found.get(name.replace("-", "").lower())) for name in view.trace_ids()]
    for name, key in [each for each in wanted if each[1] is not None][:TRACES]:
        trace = None if key is None else store.get(key)
        if trace is not None:
            yield ShownTrace(id=name, lines=tuple(line.plain for line in trace_lines(trace, tail=TAIL)))


def _part(name: str) -> str:
    return files("memweave.cli").joinpath(name).read_text(encoding="utf-8")


def _beginning(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as stream:
        return stream.read(2_000)


def _hash(content: str) -> str:
    """Return a source of the content security policy that allows exactly this content."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _safe(value: object) -> object:
    """Return a JSON value whose texts hold no characters that steer or turn round what is around them."""
    if isinstance(value, str):
        lead = value[: len(value) - len(value.lstrip(" "))]  # lines of a trace are indented
        return lead + safe(value)
    if isinstance(value, dict):
        return {key: _safe(each) for key, each in value.items()}
    return [_safe(each) for each in value] if isinstance(value, list | tuple) else value

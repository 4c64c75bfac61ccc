"""Find the one JSON object in the reply of a model.

Repaired, because models do it and the meaning is plain: code fences, prose and `<think>` blocks around the object,
trailing commas, line breaks inside strings. Refused, because guessing would invent memories: no object, several, half
of one, the same key twice. This module does not know the roles.
"""

from __future__ import annotations

import json
import re
from typing import Final

from pydantic import JsonValue, TypeAdapter

from memweave.errors import ModelReplyError

_THINKING: Final = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_OBJECT: Final = TypeAdapter(dict[str, JsonValue])


def json_object(reply: str) -> dict[str, JsonValue]:
    """Return the one JSON object in `reply`.

    Raises `ModelReplyError` saying what is wrong, in words that help a model to do better.
    """
    text = without_thinking(reply)
    if not text:
        raise ModelReplyError("The reply is empty. Reply with one JSON object")
    spans, open_end = _spans(text)
    if open_end:
        raise ModelReplyError("The reply ends inside a JSON object: it is cut off or a bracket is missing")
    candidates = [span for span in spans if re.match(r'\{\s*["}]', span)]  # braces in prose are not JSON
    if not candidates:
        raise ModelReplyError("The reply is prose without JSON. Reply with one JSON object and nothing else")
    if len(candidates) > 1:
        raise ModelReplyError(f"The reply holds {len(candidates)} JSON objects. Reply with exactly one")
    try:
        return _load(candidates[0])
    except (ValueError, RecursionError) as error:
        raise ModelReplyError(f"The JSON in the reply cannot be read: {_first_line(error)}") from None


def without_thinking(reply: str) -> str:
    """Return `reply` without `<think>` blocks and outer white space."""
    return _THINKING.sub("", reply).strip()


def as_index(value: JsonValue) -> int | None:
    """Return `value` as a number from 0 (an integer, or a string of digits, perhaps in brackets), or `None`."""
    if isinstance(value, str) and re.fullmatch(r"\[?\d{1,9}\]?", value.strip(), re.ASCII):
        return int(value.strip().strip("[]"))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _load(text: str) -> dict[str, JsonValue]:
    value = json.loads(
        _without_trailing_commas(text), strict=False, object_pairs_hook=_unique, parse_constant=_no_constant
    )
    return _OBJECT.validate_python(value)


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    seen: dict[str, JsonValue] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"the key {key!r} appears twice in one object")
        seen[key] = value
    return seen


def _no_constant(name: str) -> JsonValue:
    raise ValueError(f"{name} is not JSON")


def _spans(text: str) -> tuple[list[str], bool]:
    """Return the outermost `{...}` of `text`, and whether one is left open at the end."""
    spans: list[str] = []
    depth, start, in_string, escaped = 0, 0, False, False
    for i, char in enumerate(text):
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"' and depth:
            in_string = True
        elif char == "{":
            start = i if depth == 0 else start
            depth += 1
        elif char == "}" and depth:
            depth -= 1
            if depth == 0:
                spans.append(text[start : i + 1])
    return spans, depth > 0


def _without_trailing_commas(text: str) -> str:
    """Return JSON `text` without commas that stand before a closing bracket; strings are left alone."""
    return re.sub(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])', lambda match: match.group(1) or "", text, flags=re.DOTALL)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

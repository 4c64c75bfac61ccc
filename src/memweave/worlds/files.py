"""Reading files that other people wrote: every fault becomes one `InputError` that names the file and the place.

`read_turns` detects the format of a conversation. This module does not know what any data set means.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from pydantic import JsonValue, ValidationError

from memweave.errors import InputError
from memweave.records import MAX_TEXT, Turn

_UNWANTED: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Control characters except tab, line feed and carriage return."""
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def read_turns(path: Path | str) -> list[Turn]:
    """Read a conversation file in any known format: LoCoMo JSON, or JSON lines of messages.

    The format is found by looking inside; the name of the file does not matter. Turns come in the order of the file,
    those of several LoCoMo conversations one after another, each with its `dialogue`.
    Raises: InputError naming the file, the place and what was expected.
    """
    from memweave.worlds import locomo, messages

    path = Path(path)
    text = read_text(path)
    start = text.lstrip()[:1]
    if not start:
        raise InputError(f"{path} is empty. Expected a LoCoMo JSON file, or one JSON message per line.")
    if start == "[" or (start == "{" and _is_locomo(text)):
        return [turn for conversation in locomo.parse(load_json(path, text), path) for turn in conversation.turns]
    if start == "{":
        return messages.parse(text, path)
    raise InputError(
        f"{path} has an unknown format: it starts with {text.lstrip()[:20]!r}. Expected a LoCoMo JSON file (a list of "
        'conversations), or one JSON message per line, e.g. {"speaker": "Anna", "text": "Hello", "time": ...}.'
    )


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Check the path.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder. Give a file in it.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Check the path and its permissions.") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from None


def load_json(path: Path, text: str | None = None) -> JsonValue:
    """Parse a whole file as JSON."""
    text = read_text(path) if text is None else text
    try:
        value: JsonValue = json.loads(text)
    except json.JSONDecodeError as error:
        cut = " It ends too early: the file is cut off, copy it again." if _cut_off(text, error) else ""
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}).{cut}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not usable JSON ({error}).") from None
    return value


def as_object(value: JsonValue, place: str) -> dict[str, JsonValue]:
    """Return `value` if it is a JSON object."""
    if not isinstance(value, dict):
        raise InputError(f"{place}: expected an object, found {kind(value)}.")
    return value


def as_list(value: JsonValue, place: str) -> list[JsonValue]:
    """Return `value` if it is a JSON array."""
    if not isinstance(value, list):
        raise InputError(f"{place}: expected a list, found {kind(value)}.")
    return value


def as_text(value: JsonValue, place: str, *, name: str) -> str:
    """Return `value` if it is a string with something in it, cleaned."""
    if not isinstance(value, str):
        raise InputError(f"{place}: `{name}` must be a string, found {kind(value)}.")
    text = clean(value)
    if not text.strip():
        raise InputError(f"{place}: `{name}` is empty.")
    if len(text) > MAX_TEXT:
        raise InputError(f"{place}: `{name}` has {len(text):,} characters, at most {MAX_TEXT:,} are allowed. Split it.")
    return text


def as_identifier(value: JsonValue, place: str, *, name: str) -> str:
    """Return a string or whole number as an identifier of at most 256 characters."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = " ".join(as_text(value, place, name=name).split())
    if len(text) > 256:
        raise InputError(f"{place}: `{name}` has {len(text)} characters, at most 256 are allowed.")
    return text


def clean(text: str) -> str:
    """Remove control characters (except tab and line ends); half a surrogate pair becomes U+FFFD. Emoji stay."""
    return _SURROGATE.sub("\ufffd", _UNWANTED.sub("", text))


def kind(value: JsonValue) -> str:
    """Name a JSON value's type as JSON does."""
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return "a boolean"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the string {value[:40]!r}"
        case list():
            return "a list"
        case _:
            return "an object"


def reasons(error: ValidationError) -> str:
    """Return what a record refused, in one line."""
    return "; ".join(
        f"`{'.'.join(map(str, e['loc']))}` {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
    )


def _cut_off(text: str, error: json.JSONDecodeError) -> bool:
    return error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")


def _is_locomo(text: str) -> bool:
    """Tell one LoCoMo conversation from JSON lines of messages: only the former has `conversation` at its top level."""
    try:
        first, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        # Broken JSON: one message per line leaves a first line that closes what it opens.
        return '"conversation"' in text and not text.lstrip().split("\n", 1)[0].rstrip().endswith("}")
    return isinstance(first, dict) and "conversation" in first

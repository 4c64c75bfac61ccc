"""Conversations as JSON lines: one message per line, with speaker and time.

    {"speaker": "Anna", "text": "I moved to Bremen.", "time": "2025-01-31T18:00+01:00", "id": "m17", "dialogue":
    "chat-1"}

| field | also called | value |
|---|---|---|
| `speaker` | `role` | who said it; the roles `assistant` and `tool` lower the trust of what is learned from it |
| `text` | `content` | what was said, 1 to 1,000,000 characters |
| `time` | `observed_at`, `timestamp` | ISO 8601 or Unix seconds; optional; without a zone it is read as UTC and flagged
| | `id` | `source_id` | string or number, unique within the dialogue; optional |
| `dialogue` | | optional; the file's name without its ending otherwise |

Other fields are ignored. A message without an id gets one from its content (and from how often the same content came
before), so reading a file again, or after lines were added to it, gives the same ids. Control characters other than tab
and line ends are removed, half a surrogate pair becomes U+FFFD, emoji stay. `previous` is the message before in the
same dialogue.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import JsonValue, ValidationError

from memweave.errors import InputError
from memweave.records import Trust, Turn
from memweave.worlds.files import as_identifier, as_object, as_text, clean, kind, read_text, reasons

_TRUST: Final = {"assistant": Trust.AGENT, "ai": Trust.AGENT, "tool": Trust.TOOL}
_LATEST_SECONDS: Final = 1e11
"""Later Unix times (after the year 5138) are taken for milliseconds and refused."""


def read_messages(path: Path | str) -> list[Turn]:
    """Read a file of messages. Raises: InputError naming the file and the line."""
    path = Path(path)
    return parse(read_text(path), path)


def parse(text: str, path: Path) -> list[Turn]:
    """Turn JSON lines into turns, in the order of the file."""
    turns: list[Turn] = []
    seen: dict[tuple[str, str], tuple[Turn, int]] = {}
    last: dict[str, Turn] = {}
    copies: Counter[str] = Counter()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        turn = _turn(_object(line, place), path, last, copies, place)
        key = (turn.dialogue, turn.source_id)
        if key in seen:
            earlier, line_number = seen[key]
            if (earlier.speaker, earlier.text, earlier.observed_at) == (turn.speaker, turn.text, turn.observed_at):
                continue  # the same message twice
            raise InputError(
                f"{place}: the id {turn.source_id!r} is already used on line {line_number} for another message. "
                "Give each message of a dialogue its own id, or leave ids out."
            )
        seen[key] = (turn, number)
        last[turn.dialogue] = turn
        turns.append(turn)
    if not turns:
        raise InputError(f"{path} holds no message. Expected one JSON object per line.")
    return turns


def _object(line: str, place: str) -> dict[str, JsonValue]:
    try:
        value: JsonValue = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{place}, column {error.colno}: not valid JSON ({error.msg}). Each line must hold one whole JSON object."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not usable JSON ({error}).") from None
    return as_object(value, place)


def _turn(item: dict[str, JsonValue], path: Path, last: dict[str, Turn], copies: Counter[str], place: str) -> Turn:
    text = as_text(_one_of(item, ("text", "content"), place), place, name="text")
    speaker = as_identifier(_one_of(item, ("speaker", "role"), place), place, name="speaker")
    observed_at = _time(_one_of(item, ("time", "observed_at", "timestamp"), place), place)
    dialogue = item.get("dialogue")
    dialogue_id = (
        clean(path.stem)[:256] or "default" if dialogue is None else as_identifier(dialogue, place, name="dialogue")
    )
    given = _one_of(item, ("id", "source_id"), place)
    if given is None:
        digest = _digest(dialogue_id, speaker, text, observed_at)
        copies[digest] += 1
        source_id = f"{digest}-{copies[digest]}"
    else:
        source_id = as_identifier(given, place, name="id")
    previous = last.get(dialogue_id)
    try:
        return Turn(
            source_id=source_id,
            dialogue=dialogue_id,
            speaker=speaker,
            text=text,
            observed_at=observed_at,
            observed_naive=observed_at is not None and observed_at.tzinfo is None,
            previous=previous.text if previous else None,
            trust=_TRUST.get(str(item.get("role")).lower(), Trust.USER),
        )
    except ValidationError as error:
        raise InputError(f"{place}: {reasons(error)}.") from None


def _one_of(item: dict[str, JsonValue], names: Sequence[str], place: str) -> JsonValue:
    """Return the value of the first name that is there; a later one counts only where the earlier is absent or null.

    `speaker` beside `role` is normal (a name and what it is); any other pair must agree.
    """
    found = [(name, item[name]) for name in names if item.get(name) is not None]
    if len(found) > 1 and names[0] != "speaker" and any(value != found[0][1] for _, value in found[1:]):
        raise InputError(f"{place}: `{found[0][0]}` and `{found[1][0]}` mean the same and differ. Keep one of them.")
    if not found and names[0] in ("speaker", "text"):
        raise InputError(f"{place}: has no `{names[0]}` (or `{names[1]}`).")
    return found[0][1] if found else None


def _time(value: JsonValue, place: str) -> datetime | None:
    if value is None:
        return None
    try:
        if isinstance(value, str):
            time = datetime.fromisoformat(value.strip())
            return time if time.tzinfo is None else time.astimezone(UTC)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LATEST_SECONDS:
            return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise InputError(
        f"{place}: cannot read the time, {kind(value)}. Expected ISO 8601 such as '2025-01-31T18:00+01:00', "
        "or Unix seconds."
    )


def _digest(dialogue: str, speaker: str, text: str, observed_at: datetime | None) -> str:
    parts = (dialogue, speaker, text, observed_at.isoformat() if observed_at else "")
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()

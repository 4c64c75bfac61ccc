"""LoCoMo: very long conversations of two speakers, with questions about them (Maharana et al., 2024).

https://github.com/snap-research/locomo, CC BY-NC 4.0, not part of this repository. A file is a list of conversations:

    {"sample_id": "conv-26", "conversation": {"speaker_a": "Caroline", "speaker_b": "Melanie",
       "session_1_date_time": "1:56 pm on 8 May, 2023",
       "session_1": [{"speaker": "Caroline", "dia_id": "D1:3", "text": "...", "blip_caption": "a photo of ..."}]},
     "qa": [{"question": "...", "answer": "7 May 2023", "evidence": ["D1:3"], "category": 2}]}

Categories go by number: 1 multi-hop, 2 temporal, 3 open-domain, 4 single-hop, 5 adversarial (Memory-R1's table permutes
the names, specification section 4). What the data gets wrong is mended as follows: evidence strings may hold several
ids or malformed ones (`D8:6; D9:17`, `D:11:26`), ids of turns that do not exist are dropped; a date without a session
is ignored, a session without a date has turns without one; a turn with neither text nor image is skipped; a repeated
`dia_id` gets `#2` appended.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import JsonValue, ValidationError

from memweave.errors import InputError
from memweave.records import Record, Turn
from memweave.worlds.files import as_identifier, as_list, as_object, as_text, clean, kind, load_json, reasons

CATEGORIES: Final = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
"""LoCoMo's own names, for display beside the number."""

# Written out: the calendar module's names depend on the locale.
_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        ["january", "february", "march", "april", "may", "june", "july"]
        + ["august", "september", "october", "november", "december"],
        start=1,
    )
}
_DATE: Final = re.compile(r"(\d{1,2}):(\d{2})\s*([ap])\.?m\.?\s+on\s+(\d{1,2})\s+(\w+),?\s+(\d{4})", re.IGNORECASE)
_EVIDENCE: Final = re.compile(r"D:?(\d+):(\d+)")


class LocomoQuestion(Record):
    """One question about a conversation."""

    id: str
    """`<sample_id>/<position from 0>`: stable for one release of the data."""
    question: str
    answer: str | None
    """Gold answer; `None` for most adversarial questions, which have none."""
    evidence: tuple[str, ...]
    """Source ids of the turns that support the answer, existing ones only; empty for a few questions."""
    category: int
    """1 to 5, see the module."""
    adversarial_answer: str | None = None
    """The wrong answer that a category 5 question invites."""


class LocomoSession(Record):
    """One sitting: turns that follow each other directly."""

    number: int
    observed_at: datetime | None
    turns: tuple[Turn, ...]


class LocomoConversation(Record):
    """One conversation over many sessions, and its questions."""

    sample_id: str
    speakers: tuple[str, str]
    sessions: tuple[LocomoSession, ...]
    questions: tuple[LocomoQuestion, ...]

    @property
    def turns(self) -> list[Turn]:
        """Return the turns of all sessions, oldest first."""
        return [turn for session in self.sessions for turn in session.turns]


def read_locomo(path: Path | str) -> list[LocomoConversation]:
    """Read a LoCoMo file. Raises: InputError naming the file, the conversation and the place."""
    path = Path(path)
    return parse(load_json(path), path)


def parse(value: JsonValue, path: Path) -> list[LocomoConversation]:
    """Turn parsed JSON into conversations; a single conversation may stand without the list around it."""
    items = [value] if isinstance(value, dict) and "conversation" in value else as_list(value, str(path))
    if not items:
        raise InputError(f"{path}: the list of conversations is empty.")
    out = [_conversation(item, f"{path}, conversation {number}") for number, item in enumerate(items)]
    ids = [conversation.sample_id for conversation in out]
    for sample_id in ids:
        if ids.count(sample_id) > 1:
            raise InputError(f"{path}: two conversations have the sample_id {sample_id!r}.")
    return out


def parse_date(text: str) -> datetime | None:
    """Read LoCoMo's `1:56 pm on 8 May, 2023` as a naive time; `None` if it is not of that form."""
    found = _DATE.fullmatch(text.strip())
    if not found or found[5].lower() not in _MONTHS:
        return None
    hour = int(found[1]) % 12 + (12 if found[3].lower() == "p" else 0)
    try:
        return datetime(int(found[6]), _MONTHS[found[5].lower()], int(found[4]), hour, int(found[2]))
    except ValueError:
        return None


def _conversation(value: JsonValue, place: str) -> LocomoConversation:
    item = as_object(value, place)
    if "conversation" not in item:
        raise InputError(
            f"{place}: has no `conversation`, so this is not a LoCoMo file. Messages are read as one JSON object "
            "per line, not as a list."
        )
    sample_id = as_identifier(item.get("sample_id"), place, name="sample_id")
    place = f"{place} ({sample_id})"
    body = as_object(item["conversation"], f"{place}, `conversation`")
    speakers = tuple(as_identifier(body.get(f"speaker_{x}"), place, name=f"speaker_{x}") for x in "ab")
    numbers = sorted(int(key[8:]) for key in body if re.fullmatch(r"session_\d+", key))
    seen: dict[str, int] = {}
    sessions = tuple(_session(body, number, sample_id, seen, f"{place}, session_{number}") for number in numbers)
    if not seen:
        raise InputError(f"{place}: the conversation is empty, it has no session with a turn.")
    questions = as_list(item.get("qa", []), f"{place}, `qa`")
    return LocomoConversation(
        sample_id=sample_id,
        speakers=(speakers[0], speakers[1]),
        sessions=sessions,
        questions=tuple(_question(q, sample_id, n, seen, f"{place}, question {n}") for n, q in enumerate(questions)),
    )


def _session(
    body: dict[str, JsonValue], number: int, sample_id: str, seen: dict[str, int], place: str
) -> LocomoSession:
    """Read one session; `seen` counts the ids of the conversation."""
    written = body.get(f"session_{number}_date_time")
    observed_at = parse_date(written) if isinstance(written, str) else None
    if written is not None and observed_at is None:
        raise InputError(f"{place}: cannot read the date, {kind(written)}. Expected e.g. '1:56 pm on 8 May, 2023'.")
    turns: list[Turn] = []
    for position, value in enumerate(as_list(body[f"session_{number}"], place)):
        where = f"{place}, turn {position}"
        item = as_object(value, where)
        text = _text(item, where)
        if text is None:
            continue
        source_id = as_identifier(item.get("dia_id"), where, name="dia_id")
        seen[source_id] = seen.get(source_id, 0) + 1
        if seen[source_id] > 1:
            source_id = f"{source_id}#{seen[source_id]}"
        try:
            turn = Turn(
                source_id=source_id,
                dialogue=sample_id,
                speaker=as_identifier(item.get("speaker"), where, name="speaker"),
                text=text,
                observed_at=observed_at,
                observed_naive=observed_at is not None,
                previous=turns[-1].text if turns else None,
            )
        except ValidationError as error:
            raise InputError(f"{where}: {reasons(error)}.") from None
        turns.append(turn)
    return LocomoSession(number=number, observed_at=observed_at, turns=tuple(turns))


def _text(item: dict[str, JsonValue], place: str) -> str | None:
    """Return what a turn says and shows: `text [shares a photo: caption]`, the bracket alone, or `None` for nothing."""
    said, caption = item.get("text") or "", item.get("blip_caption") or ""
    if not isinstance(said, str) or not isinstance(caption, str):
        raise InputError(f"{place}: `text` and `blip_caption` must be strings.")
    said, caption = clean(said).strip(), clean(caption).strip()
    photo = (
        f"[shares a photo: {caption}]" if caption else "[shares a photo]" if item.get("img_url") and not said else ""
    )
    whole = f"{said} {photo}".strip()
    return as_text(whole, place, name="text") if whole else None


def _question(value: JsonValue, sample_id: str, number: int, turns: dict[str, int], place: str) -> LocomoQuestion:
    item = as_object(value, place)
    category = item.get("category")
    if not isinstance(category, int) or category not in CATEGORIES:
        raise InputError(f"{place}: `category` must be a whole number from 1 to 5, found {kind(category)}.")
    # A list of ids, or of strings with several; matched as text, so that their shape does not matter.
    named = (f"D{int(session)}:{int(turn)}" for session, turn in _EVIDENCE.findall(str(item.get("evidence"))))
    answer = _answer(item.get("answer"), place, name="answer")
    if answer is None and category != 5:
        raise InputError(f"{place}: has no `answer`.")
    return LocomoQuestion(
        id=f"{sample_id}/{number}",
        question=as_text(item.get("question"), place, name="question"),
        answer=answer,
        evidence=tuple(dict.fromkeys(source_id for source_id in named if source_id in turns)),
        category=category,
        adversarial_answer=_answer(item.get("adversarial_answer"), place, name="adversarial_answer"),
    )


def _answer(value: JsonValue, place: str, *, name: str) -> str | None:
    """Return an answer as text; numbers are written out."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return as_text(value, place, name=name)

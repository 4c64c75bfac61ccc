"""Cases as JSON lines: the formats of the released pools (Memento, section 3.7), read and written.

    {"question": ..., "plan": ..., "reward": 0 | 1}                       the non-parametric pool, and our export
    {"case": ..., "plan": ..., "case_label": "positive" | "negative"}     the parametric pool
    {"replay": {"query": ..., "case_id": ..., "reward": ...}}             ours: a row of experience, beside the cases that it is about

`case_label` is what came of the stored case itself (A11).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from pydantic import JsonValue, TypeAdapter, ValidationError

from memweave.errors import InputError
from memweave.records import Case, NewCase, ReplayRow

_POOL: Final = "pool:"
_REPLAY: Final = "replay"
_LINE: Final = TypeAdapter(dict[str, JsonValue])
_OURS: Final = ("plans", "task_id", "family", "iteration", "run_id", "metadata")
_EXPECTED: Final = 'a line is {"question", "plan", "reward"} or {"case", "plan", "case_label"}'


@dataclass(frozen=True, slots=True)
class ImportedCase:
    """A case of a file."""

    case: NewCase
    source: str
    """What it is recognised by when the line is read again."""
    id: UUID | None
    """Of the case that was exported; `None` in a released pool."""


class CaseImport(NamedTuple):
    """How much of a file is new."""

    cases: int
    replay: int
    """Rows of experience."""


def case_line(case: Case) -> str:
    """Return a case in the public format, with our fields beside; `case_id` brings it back as the same case."""
    ours = case.model_dump(mode="json", include=set(_OURS), exclude_defaults=True)
    line = {"question": case.task, "plan": case.plan, "reward": case.reward, "case_id": str(case.id), **ours}
    return json.dumps(line, ensure_ascii=False)


def replay_line(row: ReplayRow) -> str:
    """Return a row of experience as a line of its own."""
    return json.dumps({_REPLAY: row.model_dump(mode="json", exclude_defaults=True)}, ensure_ascii=False)


def read_case_lines(lines: Iterable[str], source: str) -> tuple[list[ImportedCase], list[ReplayRow]]:
    """Return the cases and the rows of experience in lines; blank ones are skipped. Raises `InputError` naming the first that is none."""
    cases, rows = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                given = _LINE.validate_python(json.loads(line, parse_constant=_no_constant))
                if _REPLAY in given:
                    rows.append(ReplayRow.model_validate(given[_REPLAY]))
                else:
                    cases.append(_read(given))
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{source} {number} is no case: {_reason(error)} ({_EXPECTED}). Nothing was imported."
                ) from None
    return cases, rows


def _read(given: dict[str, JsonValue]) -> ImportedCase:
    task = given.get("question", given.get("case"))
    plan = given.get("plan")
    if not isinstance(task, str) or not task.strip():
        raise ValueError("it has no text in question or case")
    if isinstance(plan, dict | list):
        plan = json.dumps(plan, ensure_ascii=False)
    if not isinstance(plan, str) or not plan.strip():
        raise ValueError("it has no plan")
    reward = _reward(given)
    ours = {name: given[name] for name in _OURS if name in given}
    case = NewCase.model_validate({"task": task, "plan": plan, "reward": reward, **ours})
    known = given.get("case_id")
    said = json.dumps([task, plan, reward]).encode()
    source = f"{_POOL}{hashlib.blake2b(said, digest_size=16).hexdigest()}"
    return ImportedCase(case, source, UUID(known) if isinstance(known, str) else None)


def _reward(given: dict[str, JsonValue]) -> float | None:
    if "case_label" in given:
        label = given["case_label"]
        if label not in ("positive", "negative"):
            raise ValueError(f"its case_label is {label!r:.40}, not positive or negative")
        return 1.0 if label == "positive" else 0.0
    if "reward" not in given:
        raise ValueError("it has neither reward nor case_label")
    reward = given["reward"]
    if reward is not None and not isinstance(reward, bool | int | float):
        raise ValueError(f"its reward is {reward!r:.40}, not a number from 0 to 1")
    return None if reward is None else float(reward)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__

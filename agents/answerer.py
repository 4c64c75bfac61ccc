"""The answerer: pick the memories that matter, then answer from them (Memory-R1, section 3.7: memory distillation)."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Final

from langchain_core.messages import BaseMessage

from memweave.agents.rendering import Profile, conversation
from memweave.agents.replies import without_thinking
from memweave.agents.roles import AnswerRequest, numbered, one_line
from memweave.errors import ModelReplyError
from memweave.records import Record

MARKER: Final = "**Answer:**"

_MARKER: Final = re.compile(
    r"\*\*\s*(?:final )?answer\s*:?\s*\*\*\s*:?|^\s*(?:final )?answer\s*:", re.IGNORECASE | re.MULTILINE
)
_QUOTED: Final = re.compile(r"\[(\d{1,6}(?:\s*,\s*\d{1,6})*)\]", re.ASCII)


class Answer(Record):
    """What an answerer said."""

    text: str
    used: tuple[int, ...]
    """Numbers of the memories that it quoted, in the order of quoting; those that were not shown are left out."""


def render_answer(request: AnswerRequest, profile: Profile = "full") -> list[BaseMessage]:
    """Return the messages that show the memories, a block per participant, and ask the question."""
    lines: list[str] = []
    shown = 0
    for speaker, group in groupby(request.memories, key=lambda memory: memory.speaker):
        block = list(group)
        lines += [f"Memories of {speaker}:" if speaker else "Memories:", numbered(block, shown), ""]
        shown += len(block)
    if not shown:
        lines += ["Memories:", "(none)", ""]
    asked = f" (asked on {request.asked_at:%Y-%m-%d})" if request.asked_at else ""
    lines.append(f"Question{asked}: {one_line(request.question)}")
    return conversation("answerer", profile, request.system_prompt, "\n".join(lines), request.failed)


def parse_answer_reply(reply: str, request: AnswerRequest) -> Answer:
    """Return the line after the last `**Answer:**` (else the last line that is not blank), and the memories quoted.

    Raises `ModelReplyError` when there is no answer in it.
    """
    text = without_thinking(reply)
    if not text:
        raise ModelReplyError(f"The reply is empty. End it with a line that starts with {MARKER}")
    markers = list(_MARKER.finditer(text))
    rest = text[markers[-1].end() :] if markers else text
    lines = [stripped for line in rest.splitlines() if (stripped := line.strip("* \t"))]
    if not lines:
        raise ModelReplyError(f"There is nothing after {MARKER}")
    answer = one_line(lines[0] if markers else lines[-1])
    quoted = [number for line in text.splitlines() for number in _numbers(line)]
    return Answer(text=answer, used=tuple(dict.fromkeys(n for n in quoted if n < len(request.memories))))


def _numbers(line: str) -> list[int]:
    """Return the numbers in brackets in a line; of a quotation, `- ... [3]`, only the last: the others are its text."""
    found = list(_QUOTED.finditer(line))
    if found and line.lstrip().startswith(("- ", "* ")) and not line[found[-1].end() :].strip(' \t.*"'):
        found = found[-1:]
    return [int(number) for match in found for number in match.group(1).split(",")]

"""The judge of answers: generous, CORRECT or WRONG (Memory-R1, section 3.7). For evaluations only, never a reward."""

from __future__ import annotations

import re

from langchain_core.messages import BaseMessage

from memweave.agents.rendering import Profile, conversation
from memweave.agents.replies import json_object
from memweave.agents.roles import JudgeRequest, one_line
from memweave.errors import ModelReplyError
from memweave.records import Record


class Verdict(Record):
    """What the judge decided."""

    correct: bool
    reason: str | None


def render_judge(request: JudgeRequest, profile: Profile = "full") -> list[BaseMessage]:
    """Return the messages that show question, reference and answer and ask for a verdict."""
    body = "\n".join(
        [
            f"Question: {one_line(request.question)}",
            f"Reference answer: {one_line(request.reference)}",
            f"Answer to grade: {one_line(request.answer) or '(none)'}",
        ]
    )
    return conversation("judge", profile, request.system_prompt, body, request.failed)


def parse_judge_reply(reply: str, request: JudgeRequest) -> Verdict:
    """Return the verdict in `reply`: JSON, or prose in which exactly one of the two labels stands.

    Raises `ModelReplyError` when neither holds; an undecided judge is not a WRONG.
    """
    try:
        value = json_object(reply)
    except ModelReplyError:
        labels = set(re.findall(r"\b(?:CORRECT|WRONG)\b", reply))
        if len(labels) != 1:
            raise
        return Verdict(correct=labels == {"CORRECT"}, reason=None)
    label = value.get("label")
    if not isinstance(label, str) or label.strip().upper() not in ("CORRECT", "WRONG"):
        raise ModelReplyError(f"The label is {label!r:.40}. Use CORRECT or WRONG")
    reason = value.get("reason")
    return Verdict(correct=label.strip().upper() == "CORRECT", reason=reason if isinstance(reason, str) else None)

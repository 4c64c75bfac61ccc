"""The extractor: which facts does a turn state? (Memory-R1, section 3.1, node `extract`)"""

from __future__ import annotations

from langchain_core.messages import BaseMessage
from pydantic import JsonValue, ValidationError

from memweave.agents.rendering import Profile, conversation, spoken
from memweave.agents.replies import json_object
from memweave.agents.roles import ExtractRequest, Fact, one_line
from memweave.errors import ModelReplyError


def render_extract(request: ExtractRequest, profile: Profile = "full") -> list[BaseMessage]:
    """Return the messages that ask for the facts of `request.turn`."""
    lines = []
    if request.history:
        lines += ["Earlier turns:", *map(spoken, request.history), ""]
    lines += ["New turn:", spoken(request.turn)]
    return conversation("extractor", profile, request.system_prompt, "\n".join(lines), request.failed)


def parse_extract_reply(reply: str, request: ExtractRequest) -> list[Fact]:
    """Return the facts in `reply`, each once, in order; none for small talk.

    Raises `ModelReplyError` saying what is wrong; never returns a part of the facts.
    """
    value = json_object(reply)
    if "facts" not in value:
        raise ModelReplyError(f"The JSON has no key 'facts' (it has: {', '.join(value) or 'none'})")
    items = value["facts"]
    if not isinstance(items, list):
        raise ModelReplyError("The value of 'facts' is not a list")
    facts = [_fact(item, number, request) for number, item in enumerate(items, 1)]
    return list({fact.text: fact for fact in facts}.values())


def _fact(item: JsonValue, number: int, request: ExtractRequest) -> Fact:
    value = item.get("text", item.get("fact")) if isinstance(item, dict) else item
    if not isinstance(value, str) or not value.strip():
        raise ModelReplyError(f"Fact {number} is not a sentence: {item!r:.60}")
    try:
        return Fact(text=one_line(value), turn=request.turn)
    except ValidationError as error:
        raise ModelReplyError(f"Fact {number}: {error.errors()[0]['msg']}") from None

"""What an AgeMem agent is shown when its context has more tokens than allowed: pure functions of the context.

In this order: results of tools that the model has not seen take at most half of the room; the oldest messages go; what is under way is
cut to what is left. The system message and the user's question stay as they are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from memweave.agents.context import ContextCounter, ContextEdit, apply_edit, fitting
from memweave.graphs.agemem_state import NOTE, TOOLS, is_users
from memweave.records import new_id

_BEGINNING: Final = "<note>\nEarlier messages of this conversation are not shown.\n</note>"
_TOO_LONG: Final = "Your last reply does not fit into your context, so it is not shown. Write less at once."


@dataclass
class Fitted:
    """A context within the limit, and what was taken out of it."""

    context: list[BaseMessage]
    edits: list[ContextEdit] = field(default_factory=list)
    overflowed: bool = False
    """Whether it was too large."""
    used: int = 0
    """Tokens that it has now."""


def least(context: Sequence[BaseMessage], question: Collection[str]) -> list[BaseMessage]:
    """Return what is always shown: system messages, and the question (ids)."""
    return [m for m in context if isinstance(m, SystemMessage) or m.id in question]


def fitted(
    context: Sequence[BaseMessage],
    limit: int,
    count: ContextCounter,
    *,
    question: Collection[str],
    first: str | None,
    alone: ContextCounter | None = None,
) -> Fitted:
    """Return the context with at most `limit` tokens; `least` of it must fit.

    first: id of the message that the conversation begins with. Where another reply has come to stand first, a note is put before it:
    some endpoints refuse a conversation that begins with a reply. `None`: the model takes any.  alone: counts some of the messages
    by themselves, about.
    """
    out = Fitted([message for message in context if message.id != NOTE])

    def tokens(given: Sequence[BaseMessage]) -> int:
        return count(_begun(given, first))

    now = under_way(out.context)
    edit, out.used = fitting(out.context, limit, tokens, keep={*question, *now}, alone=alone or count)
    if edit or out.used > limit:
        out.overflowed = True
        shorter = _shortened(out.context, now, limit // 2, lambda given: count([m for m in given if m.id in now]))
        if shorter != out.context:
            out.context = shorter
            edit, out.used = fitting(out.context, limit, tokens, keep={*question, *now}, alone=alone or count)
        _cut(out, edit)
        if out.used > limit:
            out.context = _shortened(out.context, now, limit, tokens)
            out.used = tokens(out.context)
        if out.used > limit:  # the reply itself is too long
            edit, out.used = fitting(out.context, limit, tokens, keep=question, alone=alone or count)
            _cut(out, edit)
            told = [*out.context, HumanMessage(_TOO_LONG, name=TOOLS, id=str(new_id()))]
            if (more := tokens(told)) <= limit:
                out.context, out.used = told, more
    out.context = _begun(out.context, first)
    return out


def under_way(context: Sequence[BaseMessage]) -> set[str]:
    """Return the ids of the last reply and the results of its calls, when they end the context: the model has not seen them."""
    place = next((i for i in range(len(context) - 1, -1, -1) if isinstance(context[i], AIMessage)), None)
    if place is None or any(is_users(message) for message in context[place:]):
        return set()
    return {str(message.id) for message in context[place:]}


def _cut(out: Fitted, edit: ContextEdit | None) -> None:
    if edit is not None:
        out.context = apply_edit(out.context, edit)
        out.edits.append(edit)


def _shortened(
    context: Sequence[BaseMessage], ids: Collection[str], limit: int, count: ContextCounter
) -> list[BaseMessage]:
    """Return the context with results among `ids` cut to one length, the largest that fits; 0 when none does."""
    longest = max((len(m.text) for m in context if m.id in ids and isinstance(m, ToolMessage)), default=0)

    def cut(length: int) -> list[BaseMessage]:
        return [_ended(m, length) if m.id in ids and isinstance(m, ToolMessage) else m for m in context]

    if not longest or count(context) <= limit:
        return list(context)
    too_long = bisect_left(range(longest + 1), True, key=lambda length: count(cut(length)) > limit)
    return cut(max(0, too_long - 1))


def _ended(message: ToolMessage, length: int) -> ToolMessage:
    """Return a result cut to `length` characters, and a line that says so."""
    text = message.text
    if len(text) <= length:
        return message
    return message.model_copy(
        update={"content": f"{text[:length]}\n[{len(text) - length} more characters do not fit here]"}
    )


def _begun(messages: Sequence[BaseMessage], first: str | None) -> list[BaseMessage]:
    place = next((i for i, message in enumerate(messages) if not isinstance(message, SystemMessage)), None)
    if first is None or place is None or not isinstance(messages[place], AIMessage) or messages[place].id == first:
        return list(messages)
    return [*messages[:place], HumanMessage(_BEGINNING, name=NOTE, id=NOTE), *messages[place:]]

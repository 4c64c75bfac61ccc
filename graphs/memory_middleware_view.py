"""What the model of an agent with `MemoryMiddleware` sees: its messages without what was taken out, recalled memories, a budget.

Pure functions of the public messages and the private edits. The messages themselves are never changed, so whatever is not shown
can be had back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from typing_extensions import TypedDict

from memweave.agents.context import ContextCounter, ContextEdit, apply_edit, units, within
from memweave.agents.memory_tools import RETRIEVE, Numbers
from memweave.agents.recall import recalled_message
from memweave.records import Memory

ARTIFACT: Final = "memories"
"""Where a tool result's artifact holds the memories in its text, as pairs of id and version."""

_LONGEST_QUERY: Final = 4_000
"""Characters of the new messages that memories are searched with, from the end."""
_BEGINNING: Final = "<note>\nEarlier messages of this conversation are not shown.\n</note>"


class Overflow(TypedDict):
    """A model call whose prompt was larger than the budget, although all that may go was gone."""

    tokens: int
    """Of the prompt, as the middleware counts them."""
    limit: int


class Recalled(TypedDict):
    """What was found for the user's message."""

    text: str
    """One line for each memory, with its number."""
    memories: list[tuple[str, int]]
    """Id and version of each."""


@dataclass(frozen=True)
class View:
    """What the model sees beside its system message."""

    messages: list[AnyMessage]
    edit: ContextEdit | None
    """What went because there was no room."""
    overflow: Overflow | None
    memories: list[tuple[str, int]]
    """Id and version of each memory that stands in the messages."""


def asked(messages: Sequence[BaseMessage]) -> list[HumanMessage]:
    """Return what the user says now: the last message of theirs and those right before it."""
    found: list[HumanMessage] = []
    for message in reversed(messages):
        if isinstance(message, HumanMessage):
            found.insert(0, message)
        elif found:
            break
    return found


def query_of(messages: Sequence[BaseMessage]) -> str:
    """Return what memories are searched with; empty when the user says nothing in words."""
    return "\n".join(message.text for message in asked(messages)).strip()[-_LONGEST_QUERY:]


def kept(messages: Sequence[BaseMessage]) -> set[str]:
    """Return the ids of what is always shown: the user's last message, and the call of tools under way with its results."""
    last = asked(messages)[-1:]
    end = units(messages[-_tail(messages) :])[-1:] if messages else []
    under_way = end[0] if end and isinstance(end[0][0], AIMessage) and _calls(end[0][0]) else []
    return {message.id for message in [*last, *under_way] if message.id}


def _calls(message: AIMessage) -> bool:
    return bool(message.tool_calls or message.invalid_tool_calls)


def _tail(messages: Sequence[BaseMessage]) -> int:
    """Return how many messages there are from the last one on that is no tool result."""
    return next((n for n, m in enumerate(reversed(messages), 1) if not isinstance(m, ToolMessage)), len(messages))


def seen(messages: Sequence[BaseMessage], edits: Sequence[ContextEdit], keep: Collection[str]) -> list[BaseMessage]:
    """Return the messages after all edits.

    Of what is in `keep` nothing goes: when a conversation was cut back to an earlier message, an edit may name the open question.
    """
    shown, gone = list(messages), set[str]()
    for edit in edits:
        removed = [each for each in edit.removed if each not in keep]
        if edit.summary is None:
            gone.update(removed)
        else:
            shown = apply_edit(
                [message for message in shown if message.id not in gone],
                edit.model_copy(update={"removed": tuple(removed)}),
            )
            gone = set()
    return [message for message in shown if message.id not in gone]


def fitting(memories: Sequence[Memory], numbers: Numbers, tokens: int, count: Callable[[str], int]) -> list[Memory]:
    """Return the memories, best first, whose message has at most `tokens`; one that is too long is skipped."""
    chosen: list[Memory] = []
    for memory in memories:
        trial = [*chosen, memory]
        lines = numbers.including([each.id for each in trial]).lines(trial)
        if count(recalled_message(trial, lines).text) <= tokens:
            chosen = trial
    return chosen


def view_of(
    messages: Sequence[BaseMessage],
    *,
    system: SystemMessage | None,
    edits: Sequence[ContextEdit],
    recalled: Recalled | None,
    limit: int | None,
    count: ContextCounter,
) -> View:
    """Return what the model sees of `messages`, the system message apart (it counts).

    limit: most tokens, as `count` counts them. The oldest units go first, then the recalled memories; what `kept` names stays, even
    when it is too much.
    """
    keep = kept(messages)
    open_with = messages[0] if messages else None
    shown = seen(messages, edits, keep)
    block = recalled_message([], recalled["text"]) if recalled else None
    before = [system] if system is not None else []

    def whole(given: Sequence[BaseMessage]) -> list[BaseMessage]:
        return _begun(given, open_with)

    def tokens(given: Sequence[BaseMessage]) -> int:
        rest = list(given)[len(before) :]
        return count([*before, *whole(rest)])

    placed = _placed(shown, block, asked(messages)[-1:])
    edit = None
    if limit is not None:
        edit = within([*before, *placed], limit, tokens, keep=keep)
        placed = apply_edit(placed, edit) if edit else placed
        if block is not None and tokens([*before, *placed]) > limit:
            placed, block = [message for message in placed if message is not block], None
    used = tokens([*before, *placed]) if limit is not None else 0
    overflow = Overflow(tokens=used, limit=limit) if limit is not None and used > limit else None
    final: list[Any] = whole(placed)
    return View(final, edit, overflow, _memories(placed, recalled if block is not None else None))


def _placed(
    messages: Sequence[BaseMessage], block: BaseMessage | None, last: Sequence[BaseMessage]
) -> list[BaseMessage]:
    """Return the messages with the recalled memories before the last one of the user, which is always there."""
    if block is None or not last:
        return list(messages)
    at = next(i for i, message in enumerate(messages) if message is last[0])
    return [*messages[:at], block, *messages[at:]]


def _begun(messages: Sequence[BaseMessage], first: BaseMessage | None) -> list[BaseMessage]:
    """Return the messages with a note before them when a reply has come to stand first: some endpoints refuse that."""
    if messages and messages[0] is not first and not isinstance(messages[0], HumanMessage | SystemMessage):
        return [HumanMessage(_BEGINNING, name="note"), *messages]
    return list(messages)


def _memories(messages: Sequence[BaseMessage], recalled: Recalled | None) -> list[tuple[str, int]]:
    found = [(each[0], each[1]) for each in recalled["memories"]] if recalled else []
    for message in messages:
        if isinstance(message, ToolMessage) and message.name == RETRIEVE and isinstance(message.artifact, dict):
            found += [(str(each[0]), int(each[1])) for each in message.artifact.get(ARTIFACT, ())]
    return list(dict.fromkeys(found))

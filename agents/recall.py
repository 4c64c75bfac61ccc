"""Put recalled memories before a chat model: as delimited data in a message of their own, within a token budget.

They never stand in the system prompt: what somebody once said must not speak with the authority of the developer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from langchain_core.messages import HumanMessage

from memweave.agents.roles import numbered
from memweave.records import Memory

TokenCounter = Callable[[str], int]


def recalled_message(memories: Sequence[Memory], lines: str | None = None) -> HumanMessage:
    """Return memories as one message, to stand before what the user says now.

    lines: how they are written; by default one line each, numbered by position.  A memory cannot end the block: `<` is
    written as `&lt;` inside it.
    """
    text = numbered(memories) if lines is None else lines
    return HumanMessage(f"<memories>\n{_escaped(text)}\n</memories>", name="memories")


def within_budget(memories: Sequence[Memory], tokens: int, count: TokenCounter) -> list[Memory]:
    """Return the memories, best first, whose message has at most `tokens`; one that is too long is skipped."""
    left = tokens - count(recalled_message([]).text)
    kept: list[Memory] = []
    for memory in memories:
        cost = count(_escaped(f"{numbered([memory], len(memories))}\n"))
        if cost <= left:
            kept.append(memory)
            left -= cost
    return kept


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has: a quarter of its bytes in UTF-8, rounded up."""
    return math.ceil(len(text.encode("utf-8", "replace")) / 4)


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;")

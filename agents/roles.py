"""The seam between graphs and policies: a request goes in, the reply text of one text protocol comes out.

A role (extractor, manager, answerer, judge) is one request record, one renderer and one parser. Whatever answers the
request is a `Policy`: hand-written rules, a hosted chat model, or a trained local model. All of them reply in the same
text protocol, so graphs, parsers and traces cannot tell them apart. A policy does not know the memory bank, the graph
or the parser.

Text protocol (Memory-R1, section 3.7; ids are per-prompt numbers, never UUIDs):

    extractor   {"facts": ["<one self-contained sentence>", ...]}            an empty list for small talk
    manager     {"memory": [{"reason": "...", "event": "UPDATE", "id": 0, "text": "..."}, ...]}
                event is ADD, UPDATE, DELETE or NOOP (NONE is read as NOOP); id is the number of the memory it changes
                (UPDATE, DELETE; optional for NOOP; ignored for ADD); only changed items are written, so
                {"memory": []} means that nothing changes; reason is one short sentence
    answerer    the lines of the memories that matter, quoted with their numbers, e.g. "- 2023-05-08: ... [3]", then a
                last line "**Answer:** <at most six words>"
    judge       {"reason": "...", "label": "CORRECT"}   or WRONG
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from langchain_core.runnables import RunnableConfig

from memweave.records import Memory, Record, Text, Turn


class Fact(Record):
    """One statement extracted from a turn, about its speaker unless it names someone else."""

    text: Text
    turn: Turn
    """The turn it was extracted from: speaker, time and source id are read from here."""


class Attempt(Record):
    """A reply that could not be used, and why; shown to the policy when it is asked again."""

    reply: str
    error: str


class ExtractRequest(Record):
    """Which facts does `turn` state?"""

    turn: Turn
    history: tuple[Turn, ...] = ()
    """The turns before it, oldest first (Memory-R1, section 2.8: a window of 50 or 24)."""
    system_prompt: str | None = None
    """Replaces the shipped prompt of the role."""
    failed: tuple[Attempt, ...] = ()


class ManageRequest(Record):
    """Which operations bring the bank up to date with `facts`? Memory `i` is shown to the policy as number `i`."""

    facts: tuple[Fact, ...]
    memories: tuple[Memory, ...]
    """What retrieval found for the facts, best first; numbered by position."""
    system_prompt: str | None = None
    failed: tuple[Attempt, ...] = ()


class AnswerRequest(Record):
    """What is the answer to `question`, given `memories`? Memory `i` is shown to the policy as number `i`."""

    question: str
    memories: tuple[Memory, ...]
    """Up to 30 per participant, grouped by participant, oldest first within one; numbered by position."""
    asked_at: datetime | None = None
    system_prompt: str | None = None
    failed: tuple[Attempt, ...] = ()


class JudgeRequest(Record):
    """Does `answer` say the same as `reference`?"""

    question: str
    reference: str
    answer: str
    system_prompt: str | None = None
    failed: tuple[Attempt, ...] = ()


RequestT = TypeVar("RequestT", ExtractRequest, ManageRequest, AnswerRequest, JudgeRequest, contravariant=True)


class Policy(Protocol[RequestT]):
    """Answers the requests of one role, sync and async, in the role's text protocol.

    Raises `UnavailableError` when its model cannot be reached; a reply that makes no sense is returned, not raised.
    """

    @property
    def name(self) -> str:
        """Who decides, as logged with each operation: `rule`, or the model's name."""

    @property
    def policy_version(self) -> str | None:
        """Hash of trained weights; `None` for rules and hosted models."""

    def reply(self, request: RequestT, config: RunnableConfig | None = None) -> str:
        """Return the reply text."""

    async def areply(self, request: RequestT, config: RunnableConfig | None = None) -> str:
        """Return the reply text."""


Extractor = Policy[ExtractRequest]
Manager = Policy[ManageRequest]
Answerer = Policy[AnswerRequest]
Judge = Policy[JudgeRequest]


def dated(memory: Memory) -> str:
    """Return `2023-05-08: text`, or the text alone when the memory has no date (Memory-R1, section 3.2)."""
    return f"{memory.observed_at:%Y-%m-%d}: {memory.text}" if memory.observed_at else memory.text


def numbered(memories: Sequence[Memory], start: int = 0) -> str:
    """Return one line `- 2023-05-08: text [i]` per memory, numbered by position from `start`.

    The number comes last: a policy that quotes a line finds it by its words and copies the number on the way, which small
    policies learn (docs/decisions/0004). Line breaks inside a memory become spaces: a
    text with "- ... [7]" on a line of its own must not pass for a memory.
    """
    return "\n".join(f"- {one_line(dated(memory))} [{i}]" for i, memory in enumerate(memories, start))


def one_line(text: str) -> str:
    """Return `text` with every run of white space as one space."""
    return " ".join(text.split())

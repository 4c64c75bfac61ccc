"""What AgeMem's two machines carry from step to step, and what is kept of each turn."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage
from pydantic import JsonValue
from typing_extensions import TypedDict

from memweave.agents.context import SUMMARY, ContextEdit
from memweave.agents.memory_tools import LONG_TERM, SHORT_TERM, Fault, Numbers
from memweave.agents.tool_protocol import AgentTurn, ProblemKind
from memweave.records import Memory, MemoryOp, Record
from memweave.tracing.records import MemoryRef

Protocol = Literal["native", "text"]
"""How tools are called: by the chat endpoint's own means, or in the text protocol of `agents.tool_protocol`."""
Variant = Literal["full", "rag", "none"]
"""full: all six tools.  rag: the long-term tools, and what fits is retrieved for every user message (the paper's `-RAG`, +LT).
none: no memory at all."""

TOOLS_OF: Final[dict[Variant, tuple[str, ...]]] = {"full": (*LONG_TERM, *SHORT_TERM), "rag": LONG_TERM, "none": ()}
ROLE: Final = "agent"
TOOLS: Final = "tools"
"""Name of a user message that tells the model what was wrong with its reply."""
NOTE: Final = "note"
"""Name of a user message that says something of the context."""
NOT_USERS: Final = frozenset({TOOLS, NOTE, SUMMARY, "memories"})


# records


class Budget(Record):
    """How full the context is."""

    limit: int | None
    """Tokens; `None`: no limit."""
    used: int = 0
    overflowed: bool = False
    """Whether it ever was too full."""
    dropped: int = 0
    """Messages that went because there was no room."""


class CallLog(Record):
    """One call of a tool."""

    name: str
    arguments: dict[str, JsonValue]
    ok: bool
    fault: Fault | None = None
    memory_id: str | None = None
    """The memory that it wrote."""
    retrieved: tuple[str, ...] = ()
    """Texts of the memories that it found."""
    removed: int = 0
    """Messages that it took out of the context."""


class StepLog(Record):
    """One turn of the agent: what it wrote, and what came of it."""

    stage: int
    round: int
    think: str
    calls: tuple[CallLog, ...]
    answer: str | None
    problems: tuple[ProblemKind, ...]
    tokens: int
    """Of the context after the turn."""
    overflow: bool
    """Whether the context was too full, before or after it."""
    late: bool = False
    """Whether it had been too full at any time before the turn."""


class Shown(Record):
    """Which memories a message of the context shows."""

    message_id: str
    memories: tuple[MemoryRef, ...]


class Dialogue(TypedDict):
    """Messages that are nobody's business outside: LangGraph streams those that stand in a channel by themselves."""

    messages: list[AnyMessage]


class Reply(TypedDict):
    """A reply of the model, likewise: it may be in tags. What is public of it goes to `messages`."""

    message: AIMessage


class StepState(TypedDict, total=False):
    """What both machines carry from step to step."""

    context: Dialogue
    """What the model sees; tools rewrite it."""
    numbers: Numbers
    shown: list[Shown]
    edits: Annotated[list[ContextEdit], operator.add]
    """Everything that was ever taken out of the context, oldest first."""
    budget: Budget
    stage: int
    round: int
    reply: Reply
    turn: AgentTurn
    steps: Annotated[list[StepLog], operator.add]
    operations: Annotated[list[MemoryOp], operator.add]


@dataclass
class Acted:
    """What the calls of one turn did."""

    context: list[BaseMessage]
    numbers: Numbers
    new: list[BaseMessage] = field(default_factory=list)
    """Messages that were added, for the public channel."""
    edits: list[ContextEdit] = field(default_factory=list)
    found: list[Memory] = field(default_factory=list)
    """Memories that were retrieved."""
    shown: list[Shown] = field(default_factory=list)
    ops: list[MemoryOp] = field(default_factory=list)
    calls: list[CallLog] = field(default_factory=list)


def is_users(message: BaseMessage) -> bool:
    """Return whether a message of a context is the user's, not one that stands for something else."""
    return isinstance(message, HumanMessage) and message.name not in NOT_USERS

"""What tests of the memory tools share: a conversation, calls of tools, memories that somebody else wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolCall

from memweave.agents.memory_tools import LONG_TERM, SHORT_TERM, Outcome, Workplace
from memweave.records import Memory, OpKind, OpStatus, ProposedOp

ALL = (*LONG_TERM, *SHORT_TERM)
Use = Callable[..., Outcome]

CONTEXT: list[BaseMessage] = [
    SystemMessage("You are kind.", id="s"),
    HumanMessage("rain on the roof", id="u1"),
    AIMessage("It rains a lot.", id="a1"),
    HumanMessage("tea in the garden", id="u2"),
]


def called(name: str, arguments: dict[str, Any]) -> ToolCall:
    return ToolCall(name=name, args=arguments, id="1", type="tool_call")


def remember(at: Workplace, *texts: str, **fields: Any) -> tuple[list[Memory], Workplace]:
    """Write memories as somebody else would; return them, and the workplace where they have numbers."""
    ops = [ProposedOp(kind=OpKind.ADD, text=text, reason="said", actor="test", **fields) for text in texts]
    made = [op.after for op in at.store.apply(ops, scope=at.scope) if op.after]
    return made, replace(at, numbers=at.numbers.including([memory.id for memory in made]))


def logged_failure(at: Workplace, outcome: Outcome) -> bool:
    """Return whether the outcome is in the log, last, as an operation that failed and changed nothing."""
    op = at.store.log(scope=at.scope)[-1]
    who = (op.actor, op.policy_version, op.run_id) == (at.actor, at.policy_version, at.run_id)
    return who and outcome.ops == (op,) and (op.status, op.error, op.after) == (OpStatus.FAILED, outcome.text, None)


def texts(at: Workplace) -> list[str]:
    return [memory.text for memory in at.store.memories(scope=at.scope)]

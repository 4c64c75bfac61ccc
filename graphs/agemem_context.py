"""What a run of an AgeMem graph is told beside its input: whose memories, and other prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from langgraph.runtime import get_runtime

from memweave.agents.prompts import load_prompt


def _describe(schema: dict[str, Any]) -> None:
    schema.pop("anyOf", None)
    schema.update(
        type="string", default=load_prompt("agemem").text, langgraph_nodes=["policy"], langgraph_type="prompt"
    )


@dataclass(kw_only=True)
class AgeMemContext:
    """What a run is told beside its input: `graph.invoke(input, context={"user": "anna"})`."""

    user: str | None = field(
        default=None, metadata={"description": "Whose memories. The authenticated user, if any, wins."}
    )
    tenant: str | None = field(
        default=None, metadata={"description": "Whose installation; 'default' if there is only one."}
    )
    agent_prompt: str | None = field(
        default=None,
        metadata={
            "description": "System prompt of the agent; replaces the shipped one.",
            "json_schema_extra": _describe,
        },
    )


def agent_prompt() -> str | None:
    """Return the prompt that the current run's context gives, if any."""
    context = get_runtime().context
    given = context.get("agent_prompt") if isinstance(context, Mapping) else getattr(context, "agent_prompt", None)
    return given if isinstance(given, str) and given.strip() else None

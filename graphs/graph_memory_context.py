"""What a run of graph memory is told beside its input: whose strategies, and other prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from langgraph.runtime import get_runtime

from memweave.agents.prompts import PromptRole, load_prompt


def _prompt(role: PromptRole, *nodes: str) -> Any:
    """Return a context field for the prompt of `role`; LangGraph Studio shows the shipped text at `nodes`, to be edited."""

    def describe(schema: dict[str, Any]) -> None:
        schema.pop("anyOf", None)
        schema.update(
            type="string", default=load_prompt(role).text, langgraph_nodes=list(nodes), langgraph_type="prompt"
        )

    return field(
        default=None,
        metadata={"description": "System prompt; replaces the shipped one.", "json_schema_extra": describe},
    )


@dataclass(kw_only=True)
class GraphMemoryContext:
    """What a run is told beside its input: `graph.invoke(input, context={"user": "anna"})`."""

    user: str | None = field(
        default=None, metadata={"description": "Whose strategies. The authenticated user, if any, wins."}
    )
    tenant: str | None = field(
        default=None, metadata={"description": "Whose installation; 'default' if there is only one."}
    )
    agent_prompt: str | None = _prompt("graph_memory", "policy", "force_answer")
    judge_prompt: str | None = _prompt("judge", "score")


def agent_prompt() -> str | None:
    """Return the agent's prompt that the current run's context gives, if any."""
    context = get_runtime().context
    value = context.get("agent_prompt") if isinstance(context, Mapping) else getattr(context, "agent_prompt", None)
    return value if isinstance(value, str) and value.strip() else None

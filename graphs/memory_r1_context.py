"""What a run of a Memory-R1 graph is told beside its input: whose memories, and other prompts."""

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

    description = f"System prompt of the {role}; replaces the shipped one. Ignored by rules."
    return field(default=None, metadata={"description": description, "json_schema_extra": describe})


@dataclass(kw_only=True)
class MemoryR1Context:
    """What a run of a Memory-R1 graph is told beside its input: `graph.invoke(input, context={"user": "anna"})`."""

    user: str | None = field(
        default=None, metadata={"description": "Whose memories. The authenticated user, if any, wins."}
    )
    tenant: str | None = field(
        default=None, metadata={"description": "Whose installation; 'default' if there is only one."}
    )
    extractor_prompt: str | None = _prompt("extractor", "extract", "remember")
    manager_prompt: str | None = _prompt("manager", "manage", "remember")
    answerer_prompt: str | None = _prompt("answerer", "answer")
    chat_prompt: str | None = _prompt("chat", "reply")


def prompt_of(role: PromptRole) -> str | None:
    """Return the prompt that the current run's context gives for `role`, if any."""
    context = get_runtime().context
    key = f"{role}_prompt"
    value = context.get(key) if isinstance(context, Mapping) else getattr(context, key, None)
    return value if isinstance(value, str) and value.strip() else None

"""What a run of Memento is told beside its input: whose cases, and other prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from langgraph.runtime import get_runtime

from memweave.agents.prompts import load_prompt

PlayedRole = Literal["planner", "executor", "judge"]


def _prompt(role: PlayedRole, *nodes: str) -> Any:
    """Return a context field for the prompt of `role`; LangGraph Studio shows the shipped text at `nodes`, to be edited."""

    def describe(schema: dict[str, Any]) -> None:
        schema.pop("anyOf", None)
        schema.update(
            type="string", default=load_prompt(role).text, langgraph_nodes=list(nodes), langgraph_type="prompt"
        )

    description = f"System prompt of the {role}; replaces the shipped one."
    return field(default=None, metadata={"description": description, "json_schema_extra": describe})


@dataclass(kw_only=True)
class MementoContext:
    """What a run is told beside its input: `graph.invoke(input, context={"user": "anna"})`."""

    user: str | None = field(
        default=None, metadata={"description": "Whose cases. The authenticated user, if any, wins."}
    )
    tenant: str | None = field(
        default=None, metadata={"description": "Whose installation; 'default' if there is only one."}
    )
    planner_prompt: str | None = _prompt("planner", "plan", "finalize_exhausted")
    executor_prompt: str | None = _prompt("executor", "execute", "subtask")
    judge_prompt: str | None = _prompt("judge", "evaluate")


def prompt_of(role: PlayedRole) -> str | None:
    """Return the prompt that the current run's context gives for `role`, if any."""
    context = get_runtime().context
    key = f"{role}_prompt"
    value = context.get(key) if isinstance(context, Mapping) else getattr(context, key, None)
    return value if isinstance(value, str) and value.strip() else None

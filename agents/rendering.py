"""Turn a request into the messages of a chat, the same way for every role and every kind of model.

Only the system prompt differs between models: full instructions for hosted ones, none for small local ones
(`Profile`). A refused reply and the reason are appended as two more messages, so that a second attempt extends the
first prompt token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from memweave.agents.prompts import PromptRole, load_prompt
from memweave.agents.roles import Attempt, one_line
from memweave.records import Turn

Profile = Literal["full", "none"]
"""Which system prompt a model gets when the request brings none: the shipped one, or none at all."""


def conversation(
    role: PromptRole, profile: Profile, system_prompt: str | None, body: str, failed: Sequence[Attempt]
) -> list[BaseMessage]:
    """Return the messages: system prompt (if any), `body`, and each refused reply with what was wrong with it."""
    prompt = system_prompt or (load_prompt(role).text if profile == "full" else None)
    messages: list[BaseMessage] = [SystemMessage(prompt)] if prompt else []
    messages.append(HumanMessage(body))
    for attempt in failed:
        messages.append(AIMessage(attempt.reply))
        messages.append(HumanMessage(f"That reply cannot be used. {attempt.error}. Reply again."))
    return messages


def spoken(turn: Turn) -> str:
    """Return one line `2023-05-08, Anna: text`, without the date when there is none."""
    date = f"{turn.observed_at:%Y-%m-%d}, " if turn.observed_at else ""
    return one_line(f"{date}{turn.speaker}: {turn.text}")

"""A chat model in a role about a machine: the mapper and the strategist of graph memory ask it the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langgraph.constants import TAG_NOSTREAM

from memweave.agents.cognition import Machine, load_machine
from memweave.agents.llm import DEFAULT_TIMEOUT, aask, ask, described
from memweave.agents.prompts import PromptRole, load_prompt
from memweave.agents.rendering import conversation
from memweave.agents.roles import Attempt
from memweave.models import chat_model, model_name

ATTEMPTS: Final = 2
"""Replies asked for; one that cannot be used is shown to the model with what is wrong with it."""


class MachineRole:
    """Asks a chat model about runs and the machine they are read with.

    model: a chat model or its specification (`chat_model`).  machine: by default `cognitive`.  system_prompt: replaces the shipped one.
    timeout: seconds for one reply.
    """

    role: ClassVar[PromptRole]
    """Name of its prompt, and in traces."""

    def __init__(
        self,
        model: str | BaseChatModel,
        machine: Machine | None = None,
        *,
        system_prompt: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self.model = chat_model(model) if isinstance(model, str) else model
        self.machine = machine or load_machine("cognitive")
        self.system_prompt = system_prompt
        self.timeout = timeout
        load_prompt(self.role)  # read the file now, not in the middle of a run

    @property
    def name(self) -> str:
        """Return the name of the model."""
        return model_name(self.model)

    def _reply(self, text: str, failed: Sequence[Attempt]) -> str:
        """Return what the model says to `text`. Raises `UnavailableError`, `ModelReplyError` when it refuses."""
        return ask(self.model, self._asked(text, failed), self._config(), self.timeout).text

    async def _areply(self, text: str, failed: Sequence[Attempt]) -> str:
        return (await aask(self.model, self._asked(text, failed), self._config(), self.timeout)).text

    def _asked(self, text: str, failed: Sequence[Attempt]) -> list[BaseMessage]:
        return conversation(self.role, "full", self.system_prompt, text, failed)

    def _config(self) -> RunnableConfig:
        own = described(ensure_config(), self.role, (), self.system_prompt or load_prompt(self.role).text)
        return {**own, "run_name": self.role, "tags": [*(own.get("tags") or []), TAG_NOSTREAM]}

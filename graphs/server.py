"""What a LangGraph server process has once: the settings, the memory bank, and the models they name.

`langgraph dev` calls a graph's factory for every request, also for those that only read its schema. So the settings are
read once per process, the bank is opened when a node first needs it and stays open until the process ends, and neither
happens on the event loop.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import Runnable

from memweave.config import Settings
from memweave.errors import SettingsError
from memweave.graphs.session import Home
from memweave.memory_stores import MemoryBank
from memweave.memory_stores.configured import open_bank_from
from memweave.models import chat_model

RoleModel = str | BaseChatModel
"""`"rule"`, or the chat model that plays a role."""


@dataclass(frozen=True)
class Server:
    """The settings of this process and what they name."""

    settings: Settings
    bank: Callable[[], MemoryBank]
    """Opens the bank; the second call returns the same one."""
    close: Callable[[], None]
    """Closes the bank, if it is open."""
    extractor: RoleModel
    manager: RoleModel
    answerer: RoleModel
    planner: BaseChatModel
    executor: BaseChatModel
    home: Home
    """Whose memories, when neither authentication nor the run's context says it."""


async def server() -> Server:
    """Return what this process has, without blocking the event loop."""
    return await asyncio.to_thread(_server)


@lru_cache(maxsize=1)
def _server() -> Server:
    settings = Settings.load()
    opener = _Opener(settings)
    return Server(
        settings=settings,
        bank=opener.open,
        close=opener.close,
        extractor=role_model(settings, settings.extractor),
        manager=role_model(settings, settings.manager),
        answerer=role_model(settings, settings.answerer),
        planner=agent_model(settings, settings.planner),
        executor=agent_model(settings, settings.executor),
        home=Home(settings.tenant, settings.user),
    )


def reset() -> None:
    """Forget the settings and close the bank, so that the next factory call reads and opens anew; for tests."""
    if _server.cache_info().currsize:
        _server().close()
    _server.cache_clear()


class NoModel(BaseChatModel):
    """Stands where a chat model should be: a graph that needs one can be looked at without it, and says so when it is run."""

    @property
    def _llm_type(self) -> str:
        return "memweave-none"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this."""
        return self

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise SettingsError(
            "this agent needs a chat model that calls tools: set MEMWEAVE_MODEL, e.g. openai:gpt-4.1-mini"
        )


def agent_model(settings: Settings, spec: str | None = None) -> BaseChatModel:
    """Return the chat model that `spec` or the settings name for agents; rules are none, so one that says what to set."""
    model = role_model(settings, spec)
    return NoModel() if isinstance(model, str) else model


def role_model(settings: Settings, spec: str | None) -> RoleModel:
    """Return the model for a role: the one that `spec` names, else the one for all roles, or `"rule"`."""
    name = spec or settings.model
    if name == "rule":
        return name
    return chat_model(name, api_key=settings.model_api_key, timeout=settings.model_timeout)


class _Opener:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._bank: MemoryBank | None = None

    def open(self) -> MemoryBank:
        """Open the bank, once."""
        with self._lock:
            if self._bank is None:
                self._bank = open_bank_from(self._settings)
                atexit.register(self.close)
            return self._bank

    def close(self) -> None:
        """Close the bank, if it is open."""
        with self._lock:
            if self._bank is not None:
                self._bank.close()
                self._bank = None
            atexit.unregister(self.close)

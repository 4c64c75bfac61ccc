"""A chat model that replies from a script, for tests without a network: yours as well as ours.

    model = ScriptedChatModel(["first reply", "second reply"])
    model = ScriptedChatModel(lambda messages: f"You said: {messages[-1].text}")

It is a real LangChain chat model: it can be given to any memweave graph, and it reports token usage (in pieces between
white space).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from pydantic import PrivateAttr

from memweave.errors import UsageError

Scripted = str | AIMessage | Exception
"""One reply: its text, a whole message, or an error to raise instead."""
Script = Sequence[Scripted] | Callable[[list[BaseMessage]], Scripted]


class ScriptedChatModel(BaseChatModel):
    """Reply from a list, one after the other, or from a function of the messages; records every call.

    Raises `UsageError` when the list has run out. Safe under threads: concurrent calls take replies in order of
    arrival.
    """

    model_name: str = "scripted"
    _script: Script = PrivateAttr()
    _calls: list[list[BaseMessage]] = PrivateAttr(default_factory=list)
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    def __init__(self, script: Script, *, model_name: str = "scripted", **kwargs: Any) -> None:
        super().__init__(**{"model_name": model_name, **kwargs})
        self._script = script if callable(script) else tuple(script)

    @property
    def calls(self) -> list[list[BaseMessage]]:
        """Return the messages of every call so far, oldest first."""
        return self._calls

    @property
    def prompts(self) -> list[str]:
        """Return the text of every call so far: its messages as `type: text`, a line break between them."""
        return ["\n".join(f"{message.type}: {message.text}" for message in call) for call in self._calls]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this model: what it calls is decided by the script."""
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with self._lock:
            self._calls.append(list(messages))
            reply = self._next(messages)
        if isinstance(reply, Exception):
            raise reply
        message = AIMessage(reply) if isinstance(reply, str) else reply
        if message.usage_metadata is None:
            read, written = sum(len(m.text.split()) for m in messages), len(message.text.split())
            usage = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
            message = message.model_copy(update={"usage_metadata": usage})
        info = {"model_name": self.model_name, "finish_reason": "stop"}
        message = message.model_copy(update={"response_metadata": info | message.response_metadata})
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _next(self, messages: list[BaseMessage]) -> Scripted:
        if callable(self._script):
            return self._script(messages)
        if len(self._calls) > len(self._script):
            last = messages[-1].text if messages else ""
            raise UsageError(
                f"ScriptedChatModel has {len(self._script)} replies and this is call {len(self._calls)}. "
                f"Give it more, or a function. The call ends with: {last[-200:]!r}"
            )
        return self._script[len(self._calls) - 1]

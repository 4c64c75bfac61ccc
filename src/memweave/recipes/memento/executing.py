"""The executor of PlanWorld: it carries out a step exactly, and now and then fails, whatever the step is."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable

from memweave.worlds.planworld import StepError, run_step

FAILED = "I could not find that out."
"""What a step that failed has as its result."""
_ASKED = re.compile(r"Task \d+: (.*)")
_RESULT = re.compile(r"Task \d+ result: (.*)")


class PlanWorldExecutor(BaseChatModel):
    """A deterministic executor, as a chat model: the last task of the conversation, on the result of the task before it.

    p_fail: share of calls that fail, decided by `seed` and the conversation.
    """

    p_fail: float = 0.05
    seed: int = 0
    disable_streaming: bool = True

    @property
    def _llm_type(self) -> str:
        return "planworld-executor"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the model itself: it needs no tools."""
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self._carried_out(messages)))])

    def _carried_out(self, messages: Sequence[BaseMessage]) -> str:
        lines = [
            line for message in messages if isinstance(message, HumanMessage) for line in message.text.splitlines()
        ]
        asked = [found[1] for line in lines if (found := _ASKED.fullmatch(line.strip()))]
        results = [found[1] for line in lines if (found := _RESULT.fullmatch(line.strip()))]
        if not asked:
            return FAILED
        said = "\n".join(message.text for message in messages)
        if random.Random(f"planworld-executor:{self.seed}:{said}").random() < self.p_fail:
            return FAILED
        try:
            return run_step(asked[-1], results[-1] if results else None)
        except StepError as error:
            return f"{FAILED} {error}."

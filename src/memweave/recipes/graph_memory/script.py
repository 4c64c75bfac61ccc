"""The base policy of FSM-QA as a script: the same habits and compliance, no model. It stands in for one wherever a pipeline is tried."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from pydantic import PrivateAttr

from memweave.recipes.graph_memory import teaching
from memweave.recipes.graph_memory.teaching import BASE, Habits
from memweave.serving.seeding import call_seed
from memweave.serving.tool_text import template_messages
from memweave.testing.models import ScriptedChatModel


class FSMQAScript(ScriptedChatModel):
    """The script as a chat model, which speaks the text protocol.

    habits: see `Habits`.  compliance: instead of that of the habits.  seed: of its moves; `None` always makes the most probable one.
    In a rollout they depend on where in which episode it is asked, as those of a policy do (`call_seed`); elsewhere calls share them.
    """

    disable_streaming: bool = True
    _asked: threading.local = PrivateAttr(default_factory=threading.local)

    def __init__(
        self, habits: Habits = BASE, *, compliance: float | None = None, seed: int | None = 0, **kwargs: Any
    ) -> None:
        given = habits if compliance is None else replace(habits, compliance=compliance)
        shared = None if seed is None else random.Random(f"fsmqa-script:{seed}")

        def reply(messages: Sequence[BaseMessage]) -> str:
            said = [(m["role"], m["content"]) for m in template_messages(messages)]
            where = getattr(self._asked, "metadata", None)
            rng = shared
            if seed is not None and where is not None:
                rng = random.Random(call_seed(seed, where, "\n".join(text for _, text in said)))
            return teaching.reply(said, given, rng)  # one call at a time: `ScriptedChatModel` sees to it

        super().__init__(reply, model_name="fsmqa-script", **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        given = run_manager.metadata if run_manager else {}
        self._asked.metadata = given if "memweave_episode" in given else None
        return super()._generate(messages, stop, run_manager, **kwargs)

"""The base policy of FSM-QA as a script: the same habits and compliance, no model. It stands in for one wherever a pipeline is tried."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import BaseMessage

from memweave.recipes.graph_memory import teaching
from memweave.recipes.graph_memory.teaching import BASE, Habits
from memweave.serving.tool_text import template_messages
from memweave.testing.models import ScriptedChatModel


class FSMQAScript(ScriptedChatModel):
    """The script as a chat model, which speaks the text protocol.

    habits: see `Habits`.  compliance: instead of that of the habits.  seed: of its moves; `None` always makes the most probable one.
    Episodes at the same time share its random numbers.
    """

    disable_streaming: bool = True

    def __init__(
        self, habits: Habits = BASE, *, compliance: float | None = None, seed: int | None = 0, **kwargs: Any
    ) -> None:
        given = habits if compliance is None else replace(habits, compliance=compliance)
        rng, lock = None if seed is None else random.Random(f"fsmqa-script:{seed}"), threading.Lock()

        def reply(messages: Sequence[BaseMessage]) -> str:
            said = [(m["role"], m["content"]) for m in template_messages(messages)]
            with lock:
                return teaching.reply(said, given, rng)

        super().__init__(reply, model_name="fsmqa-script", **kwargs)

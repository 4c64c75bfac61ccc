"""Who plays MemHop without being trained: the scripts of `teaching`, as chat models."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from typing import Final

from langchain_core.messages import BaseMessage

from memweave.recipes.agemem import teaching
from memweave.recipes.agemem.teaching import CLEAN, PERFECT, Habits
from memweave.serving.tool_text import template_messages
from memweave.testing.models import ScriptedChatModel

SCRIPTS: Final[dict[str, Habits]] = {
    "script": CLEAN,
    "script-idle": PERFECT,
    "script-tidy": replace(CLEAN, manage=0.33),
    "script-habits": Habits(),
}
"""script: stores, updates and follows everything, and manages its context now and then; script-idle: never; script-tidy: more often;
script-habits: the teacher of the base policy."""


def script(name: str, seed: int = 0) -> ScriptedChatModel:
    """Return a script as a chat model. Episodes at the same time share its random numbers."""
    rng, lock, habits = random.Random(f"{name}:{seed}"), threading.Lock(), SCRIPTS[name]

    def reply(messages: list[BaseMessage]) -> str:
        said = [(m["role"], m["content"]) for m in template_messages(messages)]
        with lock:
            return teaching.reply(said, habits, rng)

    return ScriptedChatModel(reply, model_name=name)

"""A planner of PlanWorld that is a script: it goes by a solved case that asks for the same, by heart, or by guess.

It sees what a model sees and nothing more. It shows what a sensible planner gets out of a retrieval policy, in no time.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, Final

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from memweave.recipes.memento.teaching import final_reply, plan_json, wanted
from memweave.worlds.planworld import PLAIN, SKELETONS, plan_of, read_text

_CASE: Final = re.compile(r"^Task: (.*) \[(\d+)\]\nPlan: (.*)$", re.MULTILINE)
_RESULT: Final = re.compile(r"Task \d+ result: (.*)")


class ScriptedPlanner(BaseChatModel):
    """The script as a chat model. seed: of its guesses, which also depend on what it is shown."""

    seed: int = 0
    disable_streaming: bool = True

    @property
    def _llm_type(self) -> str:
        return "planworld-script"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self._reply(messages)))])

    def _reply(self, messages: Sequence[BaseMessage]) -> str:
        said = [message.text for message in messages]
        results = [found[1] for text in said for found in _RESULT.finditer(text)]
        if results:
            return final_reply(results[-1])
        task = next((text for text in said if read_text(text) is not None), said[-1])
        name, number = read_text(task) or ("nobody", 0)
        about, skeleton = self._guess(task, "\n".join(text for text in said if text.startswith("<cases>")))
        return f"<think>about {about}</think>{plan_json(plan_of(skeleton, name, number))}"

    def _guess(self, task: str, cases: str) -> tuple[str, int]:
        word = wanted(task)
        words = task.partition(": ")[2].split()
        known = [sum(word in plain for word in words) for plain in PLAIN]  # some words stand in several
        if any(word in plain for plain in PLAIN):
            return f"{word} [0]", known.index(max(known))
        solved = cases.partition("Negative examples")[0]
        for text, number, plan in _CASE.findall(solved):
            if wanted(text) == word and (shown := _skeleton(plan)) is not None:
                return f"{word} [{number}]", shown
        return f"{word} [0]", random.Random(f"planworld-script:{self.seed}:{task}:{cases}").randrange(len(SKELETONS))


def _skeleton(plan: str) -> int | None:
    """Return which plan a case shows, whomever it is about."""
    steps = [re.sub(r"of \w+$", "of {name}", s) for s in re.split(r"\s*\d+\. ", plan) if s]
    shape = tuple(re.sub(r"add \d+", "add {number}", s) for s in steps)
    return SKELETONS.index(shape) if shape in SKELETONS else None

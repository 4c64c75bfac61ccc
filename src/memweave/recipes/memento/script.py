"""A planner of PlanWorld that is a script: it goes by the most similar case that was solved, by heart, or by guess.

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

from memweave.recipes.memento.teaching import final_reply, plan_json
from memweave.worlds.planworld import PLAIN, SKELETONS, plan_of, read_text

ENOUGH: Final = 0.3
"""Share of a task's words that a case must have for the script to go by it."""
KNOWN: Final = "known"
NEW: Final = "new"
_CASE: Final = re.compile(r"^Task: (.*)\nPlan \[(\d+)\]: (.*)$", re.MULTILINE)
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
        by, skeleton = self._guess(task, "\n".join(text for text in said if text.startswith("<cases>")))
        return f"<think>{by}</think>{plan_json(plan_of(skeleton, name, number))}"

    def _guess(self, task: str, cases: str) -> tuple[str, int]:
        words = _words(task)
        known = [sum(word in plain for word in words) for plain in PLAIN]  # some words stand in several
        if max(known) > len(words) / 2:
            return KNOWN, known.index(max(known))
        solved = cases.partition("Negative examples")[0]
        found = [(_shared(words, text), number, plan) for text, number, plan in _CASE.findall(solved)]
        best = max(found, key=lambda each: each[0], default=None)
        if best is not None and best[0] >= ENOUGH:
            shown = _skeleton(best[2])
            if shown is not None:
                return f"as [{best[1]}]", shown
        return NEW, random.Random(f"planworld-script:{self.seed}:{task}:{cases}").randrange(len(SKELETONS))


def _words(task: str) -> list[str]:
    return task.partition(": ")[2].split()


def _shared(words: Sequence[str], task: str) -> float:
    other = set(_words(task))
    return sum(word in other for word in words) / max(1, len(words))


def _skeleton(plan: str) -> int | None:
    """Return which plan a case shows, whomever it is about."""
    steps = [re.sub(r"of \w+$", "of {name}", s) for s in re.split(r"\s*\d+\. ", plan) if s]
    shape = tuple(re.sub(r"add \d+", "add {number}", s) for s in steps)
    return SKELETONS.index(shape) if shape in SKELETONS else None

"""The executor: carry out one subtask with tools, and report what the planner needs (Memento, sections 3.1 and 3.4).

Native calls for hosted models, the tags of `tool_protocol` for policies of ours. Text and calls in one native reply: the calls are carried
out and the text is the thought beside them; the official code takes the text for the result and drops the calls (A14). A text in
`<answer>` tags beside calls is the result, once the calls are carried out. Neither: the executor is told so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from langchain_core.messages import BaseMessage, HumanMessage

from memweave.agents.planner import Said, Subtask, as_messages
from memweave.agents.prompts import load_prompt

ROLE: Final = "executor"
TASK: Final = "task"
"""Id of the message that names the subtask; it is never cut away."""
QUERY: Final = "query"
"""Id of the user's message; it is never cut away."""

NO_MORE_ROUNDS: Final = (
    "You have used all {rounds} rounds of tools. Report now what you have found; no call will be carried out."
)


def executor_prompt(given: str | None, *, text_protocol: bool) -> str:
    """Return the system prompt: the given one, else the shipped one for how tools are called."""
    return given or load_prompt("executor_text" if text_protocol else "executor").text


def render_subtask(history: Sequence[Said], subtask: Subtask | None) -> list[BaseMessage]:
    """Return what the executor sees of the history, without the cases (they are the planner's), and its subtask.

    subtask: `None` when the query itself is the task, as there is no planner.
    """
    place = next((i for i in range(len(history) - 1, -1, -1) if history[i].kind == "query"), None)
    shown = [
        message.model_copy(update={"id": QUERY}) if i == place else message
        for i, (said, message) in enumerate(zip(history, as_messages(history), strict=True))
        if said.kind not in ("cases", "note")
    ]
    if subtask is None:
        return shown
    return [*shown, HumanMessage(f"Task {subtask.id}: {subtask.description}", id=TASK)]

"""Logged runs in both protocols, for tests of mappers and strategists."""

from __future__ import annotations

import json

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from memweave.agents.run_log import RunLog, read_run

QUESTION = "Who is the boss of Anna's friend?"
Step = tuple[str, list[tuple[str, str]]] | str
"""A thought with calls and their results, or the answer."""


def search(query: str) -> dict[str, object]:
    return {"name": "search", "args": {"query": query}}


def native(*steps: Step, question: str = QUESTION) -> list[BaseMessage]:
    """Return a run with native calls; a result that begins with `!` failed."""
    said: list[BaseMessage] = [HumanMessage(question)]
    for number, step in enumerate(steps):
        if isinstance(step, str):
            said.append(AIMessage(step))
            continue
        thought, asked = step
        calls = [{**search(query), "id": f"{number}-{i}", "type": "tool_call"} for i, (query, _) in enumerate(asked)]
        said.append(AIMessage(thought, tool_calls=calls))
        for call, (_, text) in zip(calls, asked, strict=True):
            status = "error" if text.startswith("!") else "success"
            said.append(ToolMessage(text.removeprefix("!"), tool_call_id=str(call["id"]), status=status))
    return said


def tagged(*steps: Step, question: str = QUESTION) -> list[BaseMessage]:
    """Return the same run in the text protocol."""
    said: list[BaseMessage] = [HumanMessage(question)]
    for step in steps:
        if isinstance(step, str):
            said.append(AIMessage(f"<think>done</think><answer>{step}</answer>"))
            continue
        thought, asked = step
        calls = [{"name": "search", "arguments": {"query": query}} for query, _ in asked]
        blocks = "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls)
        said.append(AIMessage(f"<think>{thought}</think>{blocks}"))
        for _, text in asked:
            shown = f"Error: {text[1:]}" if text.startswith("!") else text
            said.append(HumanMessage(f"<tool_response>{shown}</tool_response>"))
    return said


FRIEND = ("friend of Anna", "Anna's friend is Boris.")
MISS = ("friend of Anna", "Nothing was found.")
BOSS = ("boss of Boris", "The boss of Boris is Clara.")
CHAIN: tuple[Step, ...] = (
    ("", [FRIEND]),
    ("", [BOSS]),
    "Clara",
)


def run(*steps: Step, reward: float | None = 1.0, question: str = QUESTION) -> RunLog:
    return read_run(tagged(*steps, question=question), reward=reward)

"""The judge of AgeMem's episodes: how right the answer is, which stored memories are good, how well the retrieved ones fit (2.4).

One request, one renderer and one parser for its three questions; their instructions are the prompts `episode_answer`,
`episode_memories` and `episode_relevance`. This module does not know the reward.
"""

from __future__ import annotations

from typing import Final, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langgraph.constants import TAG_NOSTREAM
from pydantic import Field, JsonValue

from memweave.agents.llm import DEFAULT_TIMEOUT, aask, ask, described
from memweave.agents.prompts import load_prompt
from memweave.agents.rendering import conversation
from memweave.agents.replies import as_index, json_object
from memweave.agents.roles import Attempt, one_line
from memweave.errors import ModelReplyError
from memweave.records import Record

ROLE: Final = "judge"
ATTEMPTS: Final = 2
"""Replies asked for; one that makes no sense is shown to the model with what is wrong with it."""

Graded = Literal["episode_answer", "episode_memories", "episode_relevance"]
"""What is judged; also the role of the prompt."""


class GradeRequest(Record):
    """How good is `graded`, given the question?"""

    what: Graded
    question: str
    reference: str | None = None
    """The true answer, where it is known."""
    told: tuple[str, ...] = ()
    """What the assistant was told, oldest first."""
    graded: tuple[str, ...] = Field(min_length=1)
    """The answer, or memories; a memory's number is its place."""
    failed: tuple[Attempt, ...] = ()


def render_grade(request: GradeRequest) -> list[BaseMessage]:
    """Return the messages that show what is to be judged. What was told is left out of where a reference says enough."""
    lines: list[str] = []
    if request.what == "episode_memories" or (request.what == "episode_answer" and request.reference is None):
        lines += ["The assistant was told:", *(f"- {one_line(text)}" for text in request.told)]
    lines.append(f"Question: {one_line(request.question)}")
    if request.reference is not None:
        lines.append(f"Reference answer: {one_line(request.reference)}")
    if request.what == "episode_answer":
        lines.append(f"Answer to grade: {one_line(request.graded[0]) or '(empty)'}")
    elif request.what == "episode_memories":
        lines += ["Stored memories:", *(f"- {one_line(text)} [{i}]" for i, text in enumerate(request.graded))]
    else:
        lines += ["Retrieved memories:", *(f"- {one_line(text)}" for text in request.graded)]
    return conversation(request.what, "full", None, "\n".join(lines), request.failed)


def parse_grade(reply: str, request: GradeRequest) -> float:
    """Return the score in `reply`, in [0, 1]; for `episode_memories` the number of good ones.

    Raises `ModelReplyError` when there is none: a judge that cannot tell has not said 0.
    """
    value = json_object(reply)
    return float(_good(value, len(request.graded))) if request.what == "episode_memories" else _score(value)


def _score(value: dict[str, JsonValue]) -> float:
    given = value.get("score")
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= 1:
        raise ModelReplyError(f"The score is {given!r:.40}. Use a number from 0 to 1")
    return float(given)


def _good(value: dict[str, JsonValue], count: int) -> int:
    given = value.get("good")
    if not isinstance(given, list):
        raise ModelReplyError(f"good is {given!r:.40}. Use a list of numbers of memories")
    numbers = {as_index(each) for each in given}
    wrong = [each for each in given if (number := as_index(each)) is None or number >= count]
    if wrong:
        raise ModelReplyError(f"good names {wrong[0]!r:.40}. Use numbers from 0 to {count - 1}, as they are shown")
    return len(numbers)


class EpisodeGrader:
    """A chat model that answers grade requests, with one more try for a reply that makes no sense. timeout: seconds for one reply."""

    def __init__(self, model: BaseChatModel, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.model = model
        self.timeout = timeout

    def grade(self, request: GradeRequest) -> float:
        """Return the model's grade, as `parse_grade` reads it.

        Raises `UnavailableError` when the model does not answer, `ModelReplyError` when it says nothing that makes sense.
        """
        while True:
            reply = ask(self.model, render_grade(request), _config(request.what), self.timeout).text
            try:
                return parse_grade(reply, request)
            except ModelReplyError as error:
                request = _again(request, reply, error)

    async def agrade(self, request: GradeRequest) -> float:
        """Return the model's grade, as `grade` does."""
        while True:
            reply = (await aask(self.model, render_grade(request), _config(request.what), self.timeout)).text
            try:
                return parse_grade(reply, request)
            except ModelReplyError as error:
                request = _again(request, reply, error)


def _again(request: GradeRequest, reply: str, error: ModelReplyError) -> GradeRequest:
    """Return the request with what was wrong with the reply. Raises the error when there were enough."""
    failed = (*request.failed, Attempt(reply=reply, error=str(error)))
    if len(failed) >= ATTEMPTS:
        raise error
    return request.model_copy(update={"failed": failed})


def _config(what: Graded) -> RunnableConfig:
    """Return the configuration of the run that asks, if there is one: its tracer sees the call, a chat's token stream does not."""
    own = described(ensure_config(), ROLE, (), load_prompt(what).text)
    return {**own, "run_name": what, "tags": [*(own.get("tags") or []), TAG_NOSTREAM]}

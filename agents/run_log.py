"""What is known of a finished run when it is mapped to a path: the question, rounds of calls with their results, the answer, the reward.

    run = read_run(messages, reward=1.0)           # LangChain messages, or the messages of a record
    run = read_trace(trace)                        # with the trace's own score

Both ways of calling tools are read: the text tags of `tool_protocol`, with results in `<tool_response>`, and native calls with tool
messages.
Nothing here raises for what a model wrote.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from pydantic import Field, JsonValue

from memweave.agents.replies import without_thinking
from memweave.agents.tool_protocol import read_text_turn, too_deep
from memweave.errors import InputError, RewardError
from memweave.records import Record, Reward, storable
from memweave.tracing.reading import chat_messages, plain, shown_reply, tool_calls
from memweave.tracing.records import ChatMessage, Trace

NO_QUESTION: Final = frozenset({"advice", "tools"})
"""Names of user messages in which nobody asks anything."""

_RESPONSE: Final = re.compile(r"<tool_response>(.*?)(?:</tool_response>|\Z)", re.DOTALL)
_ADVICE: Final = re.compile(r"<advice>.*?</advice>", re.DOTALL)
_TAG: Final = re.compile(r"<(?:tool_call|answer)>")
_THOUGHT: Final = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_ERROR: Final = re.compile(r"\s*(?:error\s*:|traceback \(most recent)", re.IGNORECASE)


class Call(Record):
    """One call of a tool."""

    name: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)

    @property
    def words(self) -> str:
        """Return what is asked for: the texts and numbers among the arguments."""
        return " ".join(_leaves(self.arguments))


UNKNOWN: Final = Call(name="unknown")
"""A call of which only the result was logged."""


class Result(Record):
    """What a call returned."""

    text: str
    failed: bool = False
    """Whether the tool said so, or the text begins as an error does."""


class Round(Record):
    """One turn of the agent, and what came back."""

    think: str = ""
    calls: tuple[Call, ...] = ()
    results: tuple[Result, ...] = ()
    """In the order of the calls; there may be fewer."""
    answer: str | None = None


class RunLog(Record):
    """A finished run."""

    question: str
    rounds: tuple[Round, ...] = ()
    reward: Reward | None = None
    """`None`: nobody verified the answer."""

    @property
    def answer(self) -> str | None:
        """Return the last answer that was given, if any."""
        return next((each.answer for each in reversed(self.rounds) if each.answer), None)

    @property
    def success(self) -> bool:
        """Return whether the answer was right: reward 1, as `RolloutOutcome` has it."""
        return self.reward == 1.0


def read_run(
    messages: Sequence[BaseMessage] | Sequence[ChatMessage],
    *,
    reward: float | None,
    question: str | None = None,
    carried_out: Sequence[tuple[Call, str]] = (),
) -> RunLog:
    """Return the run that messages tell of. reward: of its answer, in [0, 1].

    question: what was asked; by default the last message of a user that is no result, no advice and no error. What stands before it, an
    earlier round of a chat for example, is left out.  carried_out: calls and the texts that they returned, in order, for logs that keep
    messages as text, where a native call with text beside it cannot be seen.

    Raises `InputError` when nobody asks anything, `RewardError` for what is no reward.
    """
    return _run([_Said.of(message) for message in messages], question, reward, carried_out)


def read_trace(trace: Trace, *, reward: float | None = None, role: str | None = None) -> RunLog:
    """Return the run that a trace tells of: what its last call of the model saw, and what it replied.

    reward: in [0, 1]; by default the trace's own score.  role: whose calls count, if others speak in the trace too.
    Raises `InputError` for a trace without such a call or without a question, `RewardError` for what is no reward.
    """
    spoken = [each for each in trace.generations if each.error is None and role in (None, each.role)]
    if not spoken:
        raise InputError(f"The trace {trace.id} has no reply{f' of the role {role!r}' if role else ''} to read")
    calls = {shown_reply(each.reply, each.tool_calls): each for each in spoken}
    said = []
    for message in spoken[-1].messages:
        known = calls.get(message.text) if message.role == "assistant" else None
        said.append(_Said.of(message) if known is None else _Said("assistant", known.reply, _native(known.tool_calls)))
    said.append(_Said("assistant", spoken[-1].reply, _native(spoken[-1].tool_calls)))
    first = [_Said.of(message) for message in spoken[0].messages]
    start = _asking(first, None)
    question = first[start].text if start is not None else None
    return _run(said, question, reward if reward is not None else trace.score.value if trace.score else None)


@dataclass(frozen=True)
class _Said:
    """One message, whoever logged it."""

    role: str
    text: str
    calls: tuple[Call, ...] = ()
    failed: bool = False
    asks: bool = True
    """Of a user's message: whether it may be the question."""

    @staticmethod
    def of(message: BaseMessage | ChatMessage) -> _Said:
        if isinstance(message, ChatMessage):
            return _Said(message.role, message.text, _calls_in(message.text) if message.role == "assistant" else ())
        role = chat_messages([message])[0].role
        calls = _native(tool_calls(message)) if isinstance(message, AIMessage) else ()
        failed = isinstance(message, ToolMessage) and message.status == "error"
        return _Said(role, message.text, calls, failed, message.name not in NO_QUESTION)


def _run(
    said: Sequence[_Said], question: str | None, reward: float | None, carried_out: Sequence[tuple[Call, str]] = ()
) -> RunLog:
    if reward is not None and not (math.isfinite(reward) and 0 <= reward <= 1):
        raise RewardError(f"a reward of {reward} is none: give a number from 0 to 1")
    start = _asking(said, question)
    asked = question if question is not None or start is None else said[start].text
    asked = storable(_ADVICE.sub("", asked or "")).strip()
    if not asked:
        raise InputError("Nobody asks anything in these messages: give the question")
    later = said if start is None else said[start + 1 :]
    tags = any(_TAG.search(each.text) for each in later if each.role == "assistant")
    return RunLog(question=asked, rounds=tuple(_rounds(_split(later), tags, carried_out)), reward=reward)


def _asking(said: Sequence[_Said], question: str | None) -> int | None:
    """Return the place of the message that asks, `None` without one."""
    for place in range(len(said) - 1, -1, -1):
        each = said[place]
        if each.role != "user" or not each.asks:
            continue
        if question is not None:
            if question in each.text:
                return place
        elif not _RESPONSE.search(each.text) and not _ERROR.match(each.text) and _ADVICE.sub("", each.text).strip():
            return place
    return None


def _split(said: Iterable[_Said]) -> Iterator[_Said]:
    """Yield messages with an assistant's text cut where results stand in the middle of it, as some logs keep a whole run in one text."""
    for each in said:
        if each.role != "assistant" or "<tool_response>" not in each.text:
            yield each
            continue
        at = 0
        for response in _RESPONSE.finditer(each.text):
            yield _Said("assistant", each.text[at : response.start()])
            yield _Said("tool", response.group())
            at = response.end()
        yield _Said("assistant", each.text[at:])


def _rounds(said: Iterable[_Said], tags: bool, carried_out: Sequence[tuple[Call, str]]) -> list[Round]:
    """Return the turns of an agent. tags: whether it speaks the text protocol, where a text without tags is no answer."""
    rounds: list[Round] = []
    unseen = list(carried_out)
    for each in said:
        if each.role == "assistant":
            if each.text.strip() or each.calls:
                rounds.append(_turn(each, tags))
        elif rounds and (each.role == "tool" or _RESPONSE.search(each.text)):
            for text in _RESPONSE.findall(each.text) or [each.text]:
                result = Result(text=storable(text).strip(), failed=each.failed or bool(_ERROR.match(text)))
                rounds[-1] = _returned(rounds[-1], result, unseen)
    return rounds


def _returned(turn: Round, result: Result, unseen: list[tuple[Call, str]]) -> Round:
    """Return a turn with one more result. A turn without a call for it was text beside a call: its thought, and no answer."""
    place = next((i for i, (_, text) in enumerate(unseen) if text.strip() == result.text), None)
    call = UNKNOWN if place is None else unseen.pop(place)[0]
    results = (*turn.results, result)
    if len(turn.calls) >= len(results):
        return turn.model_copy(update={"results": results})
    think = " ".join(part for part in (turn.think, turn.answer) if part)
    return turn.model_copy(update={"calls": (*turn.calls, call), "results": results, "think": think, "answer": None})


def _turn(said: _Said, tags: bool) -> Round:
    if tags and not said.calls:
        turn = read_text_turn(said.text)
        calls = tuple(Call(name=call["name"], arguments=_json(call["args"])) for call in turn.calls)
        return Round(think=turn.think, calls=calls, answer=turn.answer or None)
    thought = " ".join(part.strip() for part in _THOUGHT.findall(said.text))
    text = without_thinking(storable(said.text))
    if said.calls:
        return Round(think=storable(thought) or _prose(text), calls=said.calls)
    return Round(think=storable(thought), answer=text or None)


def _prose(text: str) -> str:
    """Return what was said beside native calls; calls that were logged as text are no thought."""
    return "" if _calls_in(text) else text


def _calls_in(text: str) -> tuple[Call, ...]:
    """Return the native calls that a message's text is, as a trace shows a message that only calls tools."""
    if not text.lstrip().startswith("["):
        return ()
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    return _native(given) if isinstance(given, list) and all(isinstance(each, dict) for each in given) else ()


def _native(calls: Iterable[JsonValue]) -> tuple[Call, ...]:
    found = []
    for call in calls:
        if not isinstance(call, dict) or call.get("error") or too_deep(call.get("args")):
            continue  # it was never carried out
        if isinstance(call.get("name"), str):
            found.append(Call(name=str(call["name"]), arguments=_json(call.get("args"))))
    return tuple(found)


def _json(value: object) -> dict[str, JsonValue]:
    read = plain(value)
    return read if isinstance(read, dict) else {}


def _leaves(value: JsonValue) -> Iterator[str]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)
    elif isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        yield str(value)

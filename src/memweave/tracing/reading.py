"""From what LangChain tells a callback to what a `Generation` holds: messages, token ids, sampling, memories.

A field that is absent or malformed becomes `None`: nothing here guesses. Whether a generation can be trained on is not
this module's business; `doctor` says so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from pydantic import JsonValue, ValidationError

from memweave.tracing.records import ChatMessage, MemoryRef, Sampling

ROLES: Final = {"human": "user", "ai": "assistant", "function": "tool"}
LONGEST_ERROR: Final = 2_000
"""Characters of an error that are kept."""
_EPISODE: Final = re.compile(r"(?P<run>[^/]+)/(?P<iteration>\d+)/(?P<group>.+)/(?P<replica>\d+)", re.DOTALL)
_INTEGERS: Final = frozenset({"top_k", "max_tokens", "seed"})
_ALIASES: Final = {"max_tokens": ("max_tokens", "max_completion_tokens", "max_new_tokens", "max_output_tokens")}


def clean(text: str) -> str:
    """Return `text` as valid Unicode: lone surrogates become U+FFFD, everything else stays."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def plain(value: object) -> JsonValue:
    """Return `value` as JSON; what JSON cannot say (objects, NaN) becomes its text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {clean(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return clean(str(value))


def chat_messages(messages: Iterable[BaseMessage]) -> tuple[ChatMessage, ...]:
    """Return the messages of a prompt as text."""
    return tuple(ChatMessage(role=_role(message), text=said(message)) for message in messages)


def said(message: BaseMessage) -> str:
    """Return the text of a message; for one that only calls tools, its calls as JSON."""
    return shown_reply(clean(message.text), tool_calls(message))


def shown_reply(text: str, calls: Sequence[JsonValue]) -> str:
    """Return the text of a reply as a later prompt shows it: the text, or the calls when there is none."""
    return text if text or not calls else json.dumps(list(calls), ensure_ascii=False)


def tool_calls(message: BaseMessage) -> tuple[JsonValue, ...]:
    """Return the tool calls of a reply, those that could not be parsed included (they have an `error`)."""
    if not isinstance(message, AIMessage):
        return ()
    return tuple(plain(call) for call in (*message.tool_calls, *message.invalid_tool_calls))


def _role(message: BaseMessage) -> str:
    given = getattr(message, "role", None)  # a `ChatMessage` names its own
    return clean(given) if isinstance(given, str) else ROLES.get(message.type, message.type)


def reply_of(result: LLMResult) -> BaseMessage | str:
    """Return the reply that the caller gets: the first candidate; its text for a model that is no chat model."""
    for candidates in result.generations:
        for candidate in candidates:
            return candidate.message if isinstance(candidate, ChatGeneration) else candidate.text
    return ""


def token_ids(value: object) -> tuple[int, ...] | None:
    """Return token ids, or `None` unless `value` is a list of integers."""
    if not isinstance(value, list | tuple) or not all(type(item) is int for item in value):
        return None
    return tuple(value)


def log_probabilities(value: object) -> tuple[float, ...] | None:
    """Return log-probabilities (nat), or `None` unless `value` is a list of numbers; what they are is not judged."""
    if not isinstance(value, list | tuple) or not all(type(item) in (float, int) for item in value):
        return None
    return tuple(float(item) for item in value)


def text_or_none(value: object) -> str | None:
    """Return a text that is not empty, or `None`."""
    return clean(value) if isinstance(value, str) and value else None


def sampling_of(told: object, parameters: Mapping[str, object]) -> Sampling:
    """Return the sampling settings: as the server told them, else as the call asked for them."""
    if isinstance(told, Mapping):
        try:
            return Sampling.model_validate(told)
        except ValidationError:
            pass  # another server's idea of "sampling"; what was asked for is known
    extra = parameters.get("extra_body")
    asked = {**(extra if isinstance(extra, Mapping) else {}), **parameters}
    found: dict[str, float | int] = {}
    for name in Sampling.model_fields:
        for key in _ALIASES.get(name, (name,)):
            value = asked.get(key)
            wanted = int if name in _INTEGERS else (int, float)
            if name != "logprobs" and isinstance(value, wanted) and not isinstance(value, bool):
                found[name] = value
                break
    return Sampling.model_validate(found)


def memory_refs(value: object) -> tuple[MemoryRef, ...]:
    """Return the memories that a caller named in `memweave_memories`: a list of [id, version].

    Raises `ValueError` for anything else: credit would silently miss a memory.
    """
    if value is None:
        return ()
    try:
        return tuple(MemoryRef(id=UUID(str(key)), version=version) for key, version in value)  # type: ignore[attr-defined]  # a value that is no list of pairs is what the except is for
    except (TypeError, ValueError) as error:
        raise ValueError(f"memweave_memories must be a list of [id, version], not {str(value)[:80]!r}") from error


def episode(value: object) -> dict[str, str | int] | None:
    """Return run, iteration, group and replica of an episode's name; `None` when it is not one of ours."""
    match = _EPISODE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    return {
        "run": match["run"],
        "iteration": int(match["iteration"]),
        "group": match["group"],
        "replica": int(match["replica"]),
    }


def error_line(error: BaseException) -> str:
    """Return an error on one line, with its type."""
    text = " ".join(clean(str(error)).split())
    return f"{type(error).__name__}: {text}"[:LONGEST_ERROR] if text else type(error).__name__

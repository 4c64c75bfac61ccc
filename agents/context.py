"""Short-term memory: what a model sees of a conversation, and the operations that shrink it (AgeMem, section 2.2).

A context is a list of messages, each with an id. SUMMARY, FILTER and a token budget never change it in place: they return a
`ContextEdit`, which says what goes and what stands in its place. So the conversation itself stays whole, an edit can be kept in a
trace, and the same edit works on a graph's private context and on the messages of somebody else's agent.

Never removed: system messages, and whatever the caller wants to keep (the open question, the turn under way). A reply with native
tool calls goes together with the results of its calls, or not at all: chat endpoints refuse one without the other.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from operator import itemgetter
from typing import Final, Literal, Protocol

import numpy as np
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.runnables import RunnableConfig
from langgraph.constants import TAG_NOSTREAM

from memweave.agents.llm import DEFAULT_TIMEOUT, aask, ask, described
from memweave.agents.prompts import load_prompt
from memweave.embeddings import Embedder
from memweave.errors import InputError
from memweave.records import Record, new_id
from memweave.serving.tool_text import render_tool_calls

ContextCounter = Callable[[Sequence[BaseMessage]], int]
"""Counts the tokens of messages, what a chat template adds included."""

SUMMARY: Final = "summary"
"""Name of the message that stands for a summarised span."""
FILTER_THRESHOLD: Final = 0.6
"""Cosine from which a message matches the criteria of FILTER (section 4; the value belongs to the encoder, A9)."""
ALL: Final = frozenset({"all", "full", "everything"})
"""Spans that mean the whole context; the paper's case study writes `full` (A13)."""

EditKind = Literal["summary", "filter", "budget", "reset"]


class ContextEdit(Record):
    """Messages taken out of a context, and the text that stands in the place of the first of them."""

    kind: EditKind
    removed: tuple[str, ...]
    """Ids of the messages, in their order."""
    summary: str | None = None
    summary_id: str | None = None
    """Id of the message that holds the summary."""


class Summarizer(Protocol):
    """Writes what stands for a span of messages."""

    def summarize(self, messages: Sequence[BaseMessage], config: RunnableConfig | None = None) -> str:
        """Return a text that keeps what matters of the messages. Raises `UnavailableError` when a model is away."""

    async def asummarize(self, messages: Sequence[BaseMessage], config: RunnableConfig | None = None) -> str:
        """Return the same without blocking."""


def estimate_context(messages: Sequence[BaseMessage]) -> int:
    """Return about how many tokens messages have: LangChain's estimate, a quarter of the characters plus 3 per message."""
    return count_tokens_approximately(messages)


def with_ids(messages: Iterable[BaseMessage]) -> list[BaseMessage]:
    """Return the messages; one without an id gets one."""
    return [message if message.id else message.model_copy(update={"id": str(new_id())}) for message in messages]


def apply_edit(messages: Sequence[BaseMessage], edit: ContextEdit) -> list[BaseMessage]:
    """Return the context after `edit`; messages that it names and that are not there change nothing."""
    gone = set(edit.removed)
    kept: list[BaseMessage] = []
    stands = edit.summary is None
    for message in messages:
        if message.id not in gone:
            kept.append(message)
        elif not stands:
            kept.append(summary_message(edit.summary or "", edit.summary_id))
            stands = True
    return kept


def summary_message(text: str, message_id: str | None = None) -> HumanMessage:
    """Return the message that stands for a summarised span: data, never with the authority of a system message."""
    inner = text.replace("<", "&lt;")
    return HumanMessage(f"<summary>\n{inner}\n</summary>", name=SUMMARY, id=message_id or str(new_id()))


def text_of(message: BaseMessage) -> str:
    """Return what a message says, native tool calls included."""
    if isinstance(message, AIMessage) and message.tool_calls and "<tool_call>" not in message.text:
        return "\n".join(part for part in (message.text, render_tool_calls(message.tool_calls)) if part)
    return message.text


def units(messages: Sequence[BaseMessage]) -> list[list[BaseMessage]]:
    """Return the messages in groups that can only go together: a reply with native tool calls, and their results."""
    found: list[list[BaseMessage]] = []
    open_calls: set[str] = set()
    for message in messages:
        if isinstance(message, ToolMessage) and message.tool_call_id in open_calls:
            found[-1].append(message)
            continue
        found.append([message])
        # Endpoints are sent the calls that could not be read too; `create_agent` answers them.
        calls = [*message.tool_calls, *message.invalid_tool_calls] if isinstance(message, AIMessage) else []
        open_calls = {call["id"] for call in calls if call["id"]}
    return found


def removable(messages: Sequence[BaseMessage], keep: Collection[str]) -> list[list[BaseMessage]]:
    """Return the units without a system message or a message in `keep` (ids), oldest first."""
    return [
        unit
        for unit in units(messages)
        if not any(isinstance(message, SystemMessage) or message.id in keep or not message.id for message in unit)
    ]


def matching(
    messages: Sequence[BaseMessage],
    criteria: str,
    embedder: Embedder,
    *,
    keep: Collection[str] = (),
    threshold: float = FILTER_THRESHOLD,
) -> ContextEdit | None:
    """Return the edit that removes what matches `criteria`: cosine at least `threshold` (Eq. 15); `None` if nothing does.

    A unit of several messages matches if its whole text does.
    """
    # Some endpoints embed no empty text; a message without words (an image) matches nothing.
    candidates = [unit for unit in removable(messages, keep) if any(text_of(message).strip() for message in unit)]
    if not candidates or not criteria.strip():
        return None
    similar = cosines(embedder, criteria, ["\n".join(map(text_of, unit)) for unit in candidates])
    gone = [unit for unit, value in zip(candidates, similar, strict=True) if value >= threshold]
    return _edit("filter", gone) if gone else None


def cosines(embedder: Embedder, text: str, others: Sequence[str]) -> list[float]:
    """Return the cosine of `text` with each of the others, of which there is one at least (Eq. 9)."""
    vectors = embedder.embed([text, *others]).astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    similar: list[float] = ((vectors[1:] @ vectors[0]) / np.maximum(norms[1:] * norms[0], 1e-12)).tolist()
    return similar


def span_of(messages: Sequence[BaseMessage], span: str, *, keep: Collection[str] = ()) -> list[list[BaseMessage]]:
    """Return the units of a span: `all`, or the last N messages that are no system messages (section 2.2).

    A span that is larger than the conversation is all of it, and so is one that cannot be read (A13). Raises `InputError`
    for a span of no messages.
    """
    text = span.strip().lower()
    number = re.fullmatch(r"(?:last\s+)?(\d{1,9})(?:\s+messages?)?", text)
    if text in ALL or number is None:
        return removable(messages, keep)
    count = int(number[1])
    if count < 1:
        raise InputError('A span is "all" or a number of messages from 1 on')
    last = {m.id for m in [m for m in messages if not isinstance(m, SystemMessage) and m.id not in keep][-count:]}
    return [unit for unit in removable(messages, keep) if any(message.id in last for message in unit)]


def summarized(span: Sequence[Sequence[BaseMessage]], text: str) -> ContextEdit:
    """Return the edit that puts `text` in the place of a span."""
    edit = _edit("summary", span)
    return edit.model_copy(update={"summary": text, "summary_id": str(new_id())})


def within(
    messages: Sequence[BaseMessage], limit: int, count: ContextCounter, *, keep: Collection[str] = ()
) -> ContextEdit | None:
    """Return the edit that removes the oldest units until at most `limit` tokens are left; `None` if they fit already.

    It removes all it may when even that is not enough.
    """
    return fitting(messages, limit, count, keep=keep)[0]


def fitting(
    messages: Sequence[BaseMessage],
    limit: int,
    count: ContextCounter,
    *,
    keep: Collection[str] = (),
    alone: ContextCounter | None = None,
) -> tuple[ContextEdit | None, int]:
    """Return the edit of `within`, and the tokens that are left after it.

    alone: counts some of the messages by themselves, about; only how long the search takes depends on it.
    """
    candidates = removable(messages, keep)
    free = {message.id for unit in candidates for message in unit}
    fixed = [(i, message) for i, message in enumerate(messages) if message.id not in free]
    place = {message.id: i for i, message in enumerate(messages)}

    @cache
    def tokens(number: int) -> int:
        """Return the tokens of the newest `number` units beside what has to stay."""
        newest = [(place[m.id], m) for unit in candidates[len(candidates) - number :] for m in unit]
        return count([message for _, message in sorted([*fixed, *newest], key=itemgetter(0))])

    near = _about(candidates, [message for _, message in fixed], limit, alone or count)
    most = _largest(near, len(candidates), lambda number: tokens(number) <= limit)
    gone = candidates[: len(candidates) - most]
    return (_edit("budget", gone) if gone else None), tokens(most)


def _about(
    candidates: Sequence[Sequence[BaseMessage]], fixed: Sequence[BaseMessage], limit: int, count: ContextCounter
) -> int:
    """Return about how many of the newest units fit. Each is counted once, and no more than fit."""
    number, left = 0, limit - count(fixed)
    for unit in reversed(candidates):
        left -= count(unit)
        if left < 0:
            break
        number += 1
    return number


def _largest(near: int, most: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number up to `most` that fits, 0 when none does; the search begins at `near` and widens by doubling."""
    step = 1
    if fits(near):
        low, high = near, near + 1
        while high <= most and fits(high):
            low, step = high, 2 * step
            high = min(high + step, most) if high < most else most + 1
    else:
        low, high = near - 1, near
        while low > 0 and not fits(low):
            high, step = low, 2 * step
            low -= step
        low = max(low, 0)
    # `low` fits (or is 0), `high` does not (or is too many).
    return low + bisect_left(range(low + 1, high), True, key=lambda number: not fits(number))


def all_but_system(messages: Sequence[BaseMessage], *, keep: Collection[str] = ()) -> ContextEdit | None:
    """Return the edit between two stages: everything goes but system messages (section 2.3)."""
    gone = removable(messages, keep)
    return _edit("reset", gone) if gone else None


def _edit(kind: EditKind, gone: Iterable[Sequence[BaseMessage]]) -> ContextEdit:
    return ContextEdit(kind=kind, removed=tuple(str(message.id) for unit in gone for message in unit))


# who summarises


class ModelSummarizer:
    """A chat model with the shipped prompt `summarizer` (section 2.2), or with one of your own."""

    def __init__(self, model: object, *, prompt: str | None = None, timeout: float = DEFAULT_TIMEOUT) -> None:
        from langchain_core.language_models import BaseChatModel

        if not isinstance(model, BaseChatModel):
            raise InputError(f"a summarizer needs a chat model, not {type(model).__name__}")
        self.model = model
        self.prompt = prompt or load_prompt("summarizer").text
        self.timeout = timeout

    def summarize(self, messages: Sequence[BaseMessage], config: RunnableConfig | None = None) -> str:
        """Return the model's summary. Raises `UnavailableError`, `ModelReplyError`."""
        return ask(self.model, self._asked(messages), self._config(config), self.timeout).text.strip()

    async def asummarize(self, messages: Sequence[BaseMessage], config: RunnableConfig | None = None) -> str:
        """Return the model's summary, as `summarize` does."""
        return (await aask(self.model, self._asked(messages), self._config(config), self.timeout)).text.strip()

    def _asked(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        lines = "\n".join(f"{message.type}: {text_of(message)}".replace("<", "&lt;") for message in messages)
        return [SystemMessage(self.prompt), HumanMessage(f"<span>\n{lines}\n</span>")]

    def _config(self, config: RunnableConfig | None) -> RunnableConfig:
        """Return `config` for this call, with a tag that keeps the summary out of the token stream of a chat."""
        own = described(config, "summarizer", (), self.prompt)
        return {**own, "run_name": "summarizer", "tags": [*(own.get("tags") or []), TAG_NOSTREAM]}


class ExtractiveSummarizer:
    """The rarest sentences of a span, in their order, within a token cap: no model, lossy.

    A sentence's weight is the mean inverse document frequency of its words over the sentences of the span.
    """

    def __init__(self, sentences: int = 4, tokens: int = 64, count: Callable[[str], int] | None = None) -> None:
        if sentences < 1 or tokens < 1:
            raise InputError(f"a summary of {sentences} sentences and {tokens} tokens is empty; give 1 at least")
        self.sentences = sentences
        self.tokens = tokens
        self._count = count or _quarter

    def summarize(self, messages: Sequence[BaseMessage], config: RunnableConfig | None = None) -> str:
        """Return the sentences; empty when there is none. Tool calls and their tags are no sentences."""
        said = list(dict.fromkeys(s for m in messages if not isinstance(m, AIMessage) for s in _sentences(m.text)))
        words = [set(re.findall(r"\w+", sentence.lower())) for sentence in said]
        frequency = Counter(word for each in words for word in each)
        weight = [sum(math.log(1 + len(said) / frequency[word]) for word in each) / max(1, len(each)) for each in words]
        chosen: list[int] = []
        for i in sorted(range(len(said)), key=lambda i: (-weight[i], i)):
            if len(chosen) == self.sentences:
                break
            more = sorted([*chosen, i])
            # Counted as a whole: a counter may round, and the spaces between sentences count too.
            if self._count(" ".join(said[j] for j in more)) <= self.tokens:
                chosen = more
        return " ".join(said[i] for i in chosen)

    async def asummarize(self, messages: Sequence[BaseMessage], config: RunnableConfig | None = None) -> str:
        """Return the sentences."""
        return self.summarize(messages, config)


def _sentences(text: str) -> list[str]:
    plain = re.sub(r"</?\w+>", " ", text)
    # The number of a memory stays with its text.
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+(?!\[\d)|\n+", plain) if re.search(r"\w", part)]


def _quarter(text: str) -> int:
    return math.ceil(len(text.encode("utf-8", "replace")) / 4)

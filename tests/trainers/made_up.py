"""Traces and chat models that rows, credit and rollouts are tested with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from memweave.records import new_id, utc_now
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import Generation, MemoryRef, Sampling, Score, Trace, TraceStatus

VERSION = "v1"
SAMPLING = Sampling(temperature=1.0, logprobs="processed")


def generation(
    index: int,
    prompt: Sequence[int] | None,
    sampled: Sequence[int] | None,
    *,
    role: str | None = None,
    version: str | None = VERSION,
    sampling: Sampling = SAMPLING,
    logprobs: Sequence[float] | None = None,
    read: Sequence[MemoryRef] = (),
    wrote: Sequence[MemoryRef] = (),
    **fields: Any,
) -> Generation:
    """Return a generation whose tokens have log-probabilities -0.5, -1.0, ... unless they are given."""
    given = tuple(-0.5 * (place + 1) for place in range(len(sampled or ()))) if logprobs is None else tuple(logprobs)
    return Generation(
        index=index,
        role=role,
        policy_version=version,
        prompt_token_ids=None if prompt is None else tuple(prompt),
        token_ids=None if sampled is None else tuple(sampled),
        logprobs=given,
        sampling=sampling,
        memories_read=tuple(read),
        memories_written=tuple(wrote),
        started_at=utc_now(),
        **fields,
    )


def trace(
    *generations: Generation,
    score: float | Score | None = 1.0,
    group: str = "g",
    replica: int | None = None,
    status: TraceStatus = TraceStatus.OK,
    **fields: Any,
) -> Trace:
    """Return a trace; a number is a score in -10..10."""
    given = Score(value=score, low=-10, high=10) if isinstance(score, int | float) else score
    now = utc_now()
    return Trace(
        id=new_id(), group=group, replica=replica, status=status, score=given, generations=generations,
        started_at=now, ended_at=now, **fields,
    )  # fmt: skip


def policy(reply: Callable[[list[BaseMessage]], str]) -> ScriptedChatModel:
    """Return a chat model that a trace takes for a trained policy: its tokens are the characters' code points."""

    def answer(messages: list[BaseMessage]) -> AIMessage:
        text = reply(messages)
        return AIMessage(
            text,
            response_metadata={
                "prompt_token_ids": [ord(c) for message in messages for c in message.text],
                "token_ids": [ord(c) for c in text],
                "token_logprobs": [-0.5] * len(text),
                "policy": "scripted",
                "policy_version": VERSION,
                "sampling": SAMPLING.model_dump(exclude_none=True),
                "finish_reason": "stop",
            },
        )

    return ScriptedChatModel(answer)

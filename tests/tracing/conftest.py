"""Made-up generations and traces that nothing is wrong with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from memweave.records import new_id, utc_now
from memweave.tracing import ChatMessage, Generation, Sampling, Score, Trace

Make = Callable[..., Any]


@pytest.fixture
def generation() -> Callable[..., Generation]:
    """Return a function that makes a sound generation; arguments replace its fields."""

    def make(**fields: Any) -> Generation:
        given: dict[str, Any] = {
            "index": 0,
            "node": "answer",
            "role": "answerer",
            "step": 1,
            "namespace": "answer:1",
            "policy": "run-answerer-v1",
            "policy_version": "v1",
            "prompt_token_ids": (1, 2, 3),
            "token_ids": (10, 11, 0),
            "logprobs": (-0.5, -0.25, -0.125),
            "sampling": Sampling(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=8, logprobs="processed"),
            "messages": (ChatMessage(role="user", text="Where?"),),
            "reply": "in Oslo",
            "finish_reason": "stop",
            "started_at": utc_now(),
            "seconds": 0.25,
        }
        return Generation(**{**given, **fields})

    return make


@pytest.fixture
def trace(generation: Callable[..., Generation]) -> Callable[..., Trace]:
    """Return a function that makes a sound trace of one generation; arguments replace its fields."""

    def make(**fields: Any) -> Trace:
        given: dict[str, Any] = {
            "id": new_id(),
            "graph": "agent",
            "run": "run",
            "iteration": 0,
            "group": "task",
            "replica": 0,
            "generations": (generation(),),
            "score": Score(value=1.0),
            "started_at": utc_now(),
            "ended_at": utc_now(),
        }
        return Trace(**{**given, **fields})

    return make

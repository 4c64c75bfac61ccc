"""Training rows: the generations of traces as token sequences with masks, log-probabilities and credit."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Span:
    """Where a generation's sampled tokens lie in a row: `[start, stop)`."""

    start: int
    stop: int
    generation: int
    """Index within the trace."""


@dataclass(slots=True)
class Row:
    """One sequence that a trainer forwards once. All arrays have the length of `ids`.

    A token trains where `mask` is true, which holds only for sampled tokens; `logprobs` and `advantages` mean something
    there and are 0 elsewhere. `prompt_length` tokens come before the first sampled one.
    """

    ids: Ids
    mask: Mask
    logprobs: Floats
    advantages: Floats
    spans: list[Span]
    trace: UUID
    group: str
    actor: str
    policy_version: str
    temperature: float
    prompt_length: int = field(default=0)

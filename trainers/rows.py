"""Training rows: the generations of traces as token sequences with masks, log-probabilities and credit.

An agent that keeps talking in one context produces prompts that repeat everything before. Such generations become one row,
which a trainer forwards once. A row goes on only when *all* its ids, sampled and given, are an exact prefix of the
next prompt: after an equal suffix behind dropped tokens, the log-probabilities would belong to another prefix.
This module knows neither text nor tokenizers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from memweave.errors import InputError
from memweave.tracing import Generation, Trace
from memweave.trainers.refusals import Admission, Refusal

Ids = NDArray[np.int32]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

Advantages = Mapping[tuple[UUID, int], float]
"""Advantage of each generation: (trace id, index of the generation). One that is not in it is not trained on."""

Fork = Literal["first", "prompt_rewritten", "completion_retokenised", "shorter_prompt", "other_policy", "not_merged"]
"""Why a generation began a row of its own. first: it is the actor's first in its trace.
completion_retokenised: the prompt leaves the row within sampled tokens (the reply was parsed and written anew).
prompt_rewritten: it leaves the row within given tokens.  shorter_prompt: it ends where the row goes on.
other_policy: the ids would go on, but other weights, or another temperature, sampled them.  not_merged: merging is off."""


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
    there and are 0 elsewhere. `prompt_length` tokens come before the first sampled one. `actor` is that of the first span.
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


@dataclass(frozen=True, slots=True)
class RowReport:
    """What became of the generations of some traces: `trained` plus all `refusals` are `generations`."""

    generations: int
    trained: int
    rows: int
    tokens: int
    """To forward: the length of all rows."""
    tokens_saved: int
    """That merging spares: with a row per generation, `tokens + tokens_saved` would be forwarded."""
    forks: dict[Fork, int]
    """Rows by the reason why they began."""
    refusals: dict[Refusal, int]
    """Generations that are not trained on, by reason."""

    @property
    def merge_ratio(self) -> float:
        """Return generations per row: 1 when nothing was merged (or there is nothing)."""
        return self.trained / self.rows if self.rows else 1.0


@dataclass(frozen=True, slots=True)
class RowSet:
    """Rows, in the order of the traces, and how they came about."""

    rows: list[Row]
    report: RowReport


def build_rows(
    traces: Iterable[Trace],
    *,
    policy_version: str | None,
    temperature: float,
    actors: Collection[str] | None = None,
    max_length: int | None = None,
    drop_truncated: bool = False,
    scored: bool = True,
    merge: bool = True,
) -> RowSet:
    """Turn the generations of `traces` into rows; every sampled token that is accepted lies in exactly one.

    policy_version: what must have sampled them; `None` admits any.  temperature: of the training run, > 0.
    actors: train these only.  max_length: tokens of the longest row; longer generations are refused.
    drop_truncated: refuse replies that were cut off.  scored: refuse traces without a score; turn it off for a credit
    that finds rewards elsewhere, as `memory_hop` does.  merge: `False` gives each generation a row.
    Advantages are 0 until `assign`. Raises `InputError` when a trace is given twice: its tokens would train twice.
    """
    admission = Admission.of(policy_version, temperature, actors, max_length, drop_truncated, scored)
    tally = _Tally()
    rows: list[Row] = []
    seen: set[UUID] = set()
    for trace in traces:
        if trace.id in seen:
            raise InputError(f"trace {trace.id} is given twice; its tokens would train twice. Give each trace once.")
        seen.add(trace.id)
        rows += [draft.row(trace) for draft in _drafts(trace, admission, tally, merge)]
    return RowSet(rows, tally.report(rows))


def assign(rows: Sequence[Row], advantages: Advantages) -> list[Row]:
    """Write the advantage of each generation to its sampled tokens; return the rows that have any left to train.

    Rows are changed in place: the mask of a span without credit is cleared. May be repeated with another credit.
    """
    trained = []
    for row in rows:
        for span in row.spans:
            value = advantages.get((row.trace, span.generation))
            row.mask[span.start : span.stop] = value is not None
            row.advantages[span.start : span.stop] = value or 0.0
        if row.mask.any():
            trained.append(row)
    return trained


@dataclass(slots=True)
class _Tally:
    generations: int = 0
    unmerged: int = 0
    forks: Counter[Fork] = field(default_factory=Counter)
    refusals: Counter[Refusal] = field(default_factory=Counter)

    def report(self, rows: Sequence[Row]) -> RowReport:
        tokens = sum(len(row.ids) for row in rows)
        return RowReport(
            generations=self.generations,
            trained=self.generations - sum(self.refusals.values()),
            rows=len(rows),
            tokens=tokens,
            tokens_saved=self.unmerged - tokens,
            forks=dict(self.forks),
            refusals=dict(self.refusals),
        )


class _Draft:
    """A row that may still go on. Lists of Python ints: comparing them costs a tenth of making arrays of them."""

    __slots__ = ("actors", "first", "ids", "logprobs", "spans")

    def __init__(self, first: Generation) -> None:
        self.first = first
        self.ids: list[int] = []
        self.logprobs: list[tuple[float, ...]] = []  # of each span
        self.spans: list[Span] = []
        self.actors: set[str] = set()

    def is_prefix_of(self, prompt: Sequence[int]) -> bool:
        length = len(self.ids)
        if length > len(prompt) or prompt[length - 1] != self.ids[-1]:
            return False
        return self.ids == list(prompt[:length])

    def same_policy(self, generation: Generation) -> bool:
        mine = self.first
        return (mine.policy_version, mine.sampling.temperature) == (
            generation.policy_version,
            generation.sampling.temperature,
        )

    def append(self, generation: Generation) -> None:
        prompt, sampled = generation.prompt_token_ids or (), generation.token_ids or ()
        self.ids.extend(prompt[len(self.ids) :])
        start = len(self.ids)
        self.ids.extend(sampled)
        self.logprobs.append(generation.logprobs or ())
        self.spans.append(Span(start, len(self.ids), generation.index))
        self.actors.add(generation.actor)

    def left_at(self, prompt: Sequence[int]) -> int:
        """Return at which token `prompt` stops being equal to this row."""
        most = min(len(self.ids), len(prompt))
        # Equality of prefixes is monotone, so its end is found by bisection, comparing slices at the speed of C.
        return bisect_left(range(1, most + 1), True, key=lambda n: self.ids[:n] != list(prompt[:n]))

    def sampled_at(self, position: int) -> bool:
        return any(span.start <= position < span.stop for span in self.spans)

    def row(self, trace: Trace) -> Row:
        size = len(self.ids)
        mask, logprobs = np.zeros(size, np.bool_), np.zeros(size, np.float32)
        for span, values in zip(self.spans, self.logprobs, strict=True):
            mask[span.start : span.stop] = True
            logprobs[span.start : span.stop] = values
        return Row(
            ids=np.array(self.ids, np.int32),
            mask=mask,
            logprobs=logprobs,
            advantages=np.zeros(size, np.float32),
            spans=self.spans,
            trace=trace.id,
            group=trace.group or str(trace.id),
            actor=self.first.actor,
            policy_version=self.first.policy_version or "",
            temperature=self.first.sampling.temperature or 0.0,
            prompt_length=self.spans[0].start,
        )


def _drafts(trace: Trace, admission: Admission, tally: _Tally, merge: bool) -> list[_Draft]:
    tally.generations += len(trace.generations)
    refused = admission.of_trace(trace)
    if refused is not None:
        tally.refusals[refused] += len(trace.generations)
        return []
    drafts: list[_Draft] = []
    for generation in sorted(trace.generations, key=lambda g: g.index):
        if (why := admission.of_generation(generation)) is not None:
            tally.refusals[why] += 1
            continue
        prompt = generation.prompt_token_ids or ()
        tally.unmerged += len(prompt) + len(generation.token_ids or ())
        # Several rows may be open (two agents taking turns); the longest that fits holds most of the prompt.
        fitting = [draft for draft in drafts if draft.is_prefix_of(prompt)] if merge else []
        same = [draft for draft in fitting if draft.same_policy(generation)]
        if same:
            max(same, key=lambda draft: len(draft.ids)).append(generation)
            continue
        fork: Fork = "other_policy" if fitting else _fork(drafts, generation) if merge else "not_merged"
        tally.forks[fork] += 1
        drafts.append(_Draft(generation))
        drafts[-1].append(generation)
    return drafts


def _fork(drafts: Sequence[_Draft], generation: Generation) -> Fork:
    """Return why `generation` goes on no row, judged by the row of its actor that it shares most with."""
    own = [draft for draft in drafts if generation.actor in draft.actors]
    if not own:
        return "first"
    prompt = generation.prompt_token_ids or ()
    shared, _, nearest = max((draft.left_at(prompt), number, draft) for number, draft in enumerate(own))
    if shared == len(prompt):
        return "shorter_prompt"
    return "completion_retokenised" if nearest.sampled_at(shared) else "prompt_rewritten"

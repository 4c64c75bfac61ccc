"""Why a generation is not trained on, by name. What cannot be trusted is refused and counted, never repaired."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal, get_args

from memweave.tracing import Generation, Sampling, Trace, TraceStatus

Refusal = Literal[
    "failed_run",
    "unscored",
    "other_actor",
    "failed_call",
    "missing_ids",
    "missing_logprobs",
    "empty_completion",
    "length_mismatch",
    "logprob_invalid",
    "other_policy_version",
    "other_temperature",
    "sampling_breaks_ratio",
    "truncated",
    "too_long",
]
"""failed_run: the run failed, timed out or a server was away.  unscored: its trace has no score.
other_actor: not among the actors that are trained.  failed_call: the model call raised.
missing_ids: no prompt ids or no sampled ids.  missing_logprobs: no log-probabilities.
empty_completion: nothing was sampled.  length_mismatch: not one log-probability per sampled token.
logprob_invalid: one is NaN, infinite or positive.
other_policy_version: sampled by other weights than the published ones (a frozen partner, a stale adapter).
other_temperature: sampled at another (or an unknown) temperature than the training's.
sampling_breaks_ratio: greedy, or top_p, top_k, min_p, a penalty or raw log-probabilities at T != 1: the log-probabilities are
not those of the distribution that was sampled from.
truncated: cut off at `max_tokens`, and such replies are to be dropped.  too_long: prompt and reply exceed the longest row."""

REFUSALS: Final[tuple[Refusal, ...]] = get_args(Refusal)
"""All reasons, in the order in which they are looked for: the first that holds is counted."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What a generation must be to train.

    policy_version: the published one; `None` admits any.  temperature: of the training run.  actors: `None` admits all.
    max_length: most tokens of prompt and reply together.  scored: whether its trace must have a score of its own.
    """

    policy_version: str | None
    temperature: float
    actors: frozenset[str] | None = None
    max_length: int | None = None
    drop_truncated: bool = False
    scored: bool = True

    @classmethod
    def of(
        cls,
        policy_version: str | None,
        temperature: float,
        actors: Collection[str] | None,
        max_length: int | None,
        drop_truncated: bool,
        scored: bool,
    ) -> Admission:
        """Return the rules; `actors` is copied."""
        named = None if actors is None else frozenset([actors] if isinstance(actors, str) else actors)
        return cls(policy_version, temperature, named, max_length, drop_truncated, scored)

    def of_trace(self, trace: Trace) -> Refusal | None:
        """Return why no generation of `trace` trains, or `None`."""
        if trace.status is not TraceStatus.OK:
            return "failed_run"
        return "unscored" if self.scored and trace.score is None else None

    def of_generation(self, generation: Generation) -> Refusal | None:
        """Return why `generation` does not train, or `None`."""
        if self.actors is not None and generation.actor not in self.actors:
            return "other_actor"
        if generation.error is not None:
            return "failed_call"
        return self._tokens(generation) or self._policy(generation) or self._length(generation)

    def _tokens(self, generation: Generation) -> Refusal | None:
        sampled, logprobs = generation.token_ids, generation.logprobs
        if not generation.prompt_token_ids or sampled is None:
            return "missing_ids"
        if logprobs is None:
            return "missing_logprobs"
        if not sampled:
            return "empty_completion"
        if len(sampled) != len(logprobs):
            return "length_mismatch"
        # A NaN fails both comparisons.
        return None if all(-math.inf < value <= 0.0 for value in logprobs) else "logprob_invalid"

    def _policy(self, generation: Generation) -> Refusal | None:
        if self.policy_version is not None and generation.policy_version != self.policy_version:
            return "other_policy_version"
        temperature = generation.sampling.temperature
        if temperature is None or not abs(temperature - self.temperature) <= 1e-9:
            return "other_temperature"
        return "sampling_breaks_ratio" if breaks_ratio(generation.sampling) else None

    def _length(self, generation: Generation) -> Refusal | None:
        if self.drop_truncated and generation.finish_reason == "length":
            return "truncated"
        tokens = len(generation.prompt_token_ids or ()) + len(generation.token_ids or ())
        return "too_long" if self.max_length is not None and tokens > self.max_length else None


def breaks_ratio(sampling: Sampling) -> str | None:
    """Return which setting makes the log-probabilities differ from the distribution that was sampled from, or `None`.

    A setting that is `None` was left to the server. At T != 1 the server must have said that it gives processed ones.
    """
    temperature = sampling.temperature
    if temperature is not None and not temperature > 0:
        return "temperature"
    if sampling.top_p is not None and sampling.top_p < 1:
        return "top_p"
    if sampling.top_k is not None and sampling.top_k > 0:  # 0 and -1 mean: all tokens
        return "top_k"
    if sampling.min_p is not None and sampling.min_p > 0:
        return "min_p"
    if sampling.repetition_penalty not in (None, 1.0):
        return "repetition_penalty"
    if sampling.presence_penalty not in (None, 0.0):
        return "presence_penalty"
    if sampling.frequency_penalty not in (None, 0.0):
        return "frequency_penalty"
    return "logprobs" if temperature not in (None, 1.0) and sampling.logprobs != "processed" else None

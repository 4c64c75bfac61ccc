"""What keeps traces from being trained on, found by name: one code and one check per fault.

An `error` means that a trainer refuses the generation, trace or group, or would learn something wrong from it. A `warning`
means that it teaches less than it seems to, or nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol
from uuid import UUID

from memweave.records import Record
from memweave.tracing.reading import clean, shown_reply
from memweave.tracing.records import ChatMessage, Generation, Sampling, Trace, TraceStatus

Code = Literal[
    "missing_ids",
    "length_mismatch",
    "logprob_invalid",
    "logprob_mismatch",
    "prefix_mismatch",
    "missing_reward",
    "group_of_one",
    "zero_variance",
    "truncated",
    "parser_altered",
    "mixed_policy_versions",
    "sampling_breaks_ratio",
    "failed_run",
    "empty_completion",
    "no_policy_model",
]
Severity = Literal["error", "warning"]
ReferenceLogprobs = Mapping[tuple[UUID, int], Sequence[float]]
"""Log-probabilities (nat) of the sampled tokens as a trainer computes them, by trace and index of the generation."""

TOLERANCE: Final = 1e-3
"""Largest difference to a reference log-probability, in nat."""
_ABOVE_ZERO: Final = 1e-6
"""Rounding that a log-probability of 0 may show."""


class Tokenizer(Protocol):
    """What the doctor needs of a tokenizer; those of Hugging Face have it."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Return the text of token ids."""


class Finding(Record):
    """One fault: what, where, and what to do about it."""

    code: Code
    severity: Severity
    trace: UUID | None = None
    """`None` when it concerns several."""
    generation: int | None = None
    message: str
    remedy: str


@dataclass(frozen=True)
class _Known:
    """What the caller knows beside the traces."""

    tokenizer: Tokenizer | None
    temperature: float | None
    reference: ReferenceLogprobs | None


@dataclass(frozen=True)
class _Fault:
    severity: Severity
    message: str
    generation: int | None = None


Check = Callable[[Trace, _Known], Iterator[_Fault]]


def doctor(
    traces: Iterable[Trace],
    *,
    tokenizer: Tokenizer | None = None,
    temperature: float | None = None,
    reference_logprobs: ReferenceLogprobs | None = None,
) -> list[Finding]:
    """Return what is wrong with traces, in their order, then what is wrong with groups and iterations; empty when all is well.

    tokenizer: of the policy; without it nothing is said about altered text.  temperature: of the training run; without it,
    any temperature above 0 will do.  reference_logprobs: to compare the recorded ones with, to 1e-3.
    """
    known, given = _Known(tokenizer, temperature, reference_logprobs), list(traces)
    found = [
        Finding(
            code=code,
            severity=fault.severity,
            trace=trace.id,
            generation=fault.generation,
            message=fault.message,
            remedy=REMEDIES[code],
        )
        for trace in given
        for code, check in CHECKS.items()
        for fault in check(trace, known)
    ]
    return [*found, *_groups(given), *_versions(given)]


REMEDIES: Final[dict[Code, str]] = {
    "missing_ids": "Serve the model with memweave.serving (VLLMServer or LocalServer): its replies carry ids and log-probabilities",
    "length_mismatch": "Do not train on it. Check that the server returns ids and log-probabilities of the same reply",
    "logprob_invalid": "Do not train on it. Look for NaN in the weights, and check the server's log-probabilities",
    "logprob_mismatch": "Check that server and trainer hold the same weights, in the same precision, at the same temperature",
    "prefix_mismatch": "Use a chat template that only appends. Until then each call is a row of its own, which costs time only",
    "missing_reward": "Score it (`TraceStore.score`), or return a reward for it; it is never taken as 0",
    "group_of_one": "Sample at least two scored episodes per task, or leave the task out",
    "zero_variance": "The group teaches nothing: choose tasks that sometimes succeed, or sample more episodes",
    "truncated": "Raise max_tokens, or score such a reply as what it is",
    "parser_altered": "Let the graph see what was sampled: no tool or reasoning parser in the server, no post-processing",
    "mixed_policy_versions": "Publish between iterations, not within one; train only on the version that was published",
    "sampling_breaks_ratio": "Sample with top_p 1, no top_k, min_p or penalties, processed log-probabilities, and one temperature above 0",
    "failed_run": "Read the error. A server that did not answer is no fault of the policy: such runs are left out",
    "empty_completion": "Check the end token and the chat template: the model stopped at once",
    "no_policy_model": "Give the graph a chat model of a policy server: `server.chat_model(role)`",
}
"""What to do about each fault."""


def _missing_ids(trace: Trace, known: _Known) -> Iterator[_Fault]:
    trained = _has_policy(trace)
    for each in _replies(trace):
        fields = ("prompt_token_ids", "token_ids", "logprobs")
        missing = [name for name in fields if getattr(each, name) is None]
        if missing and trained:
            severity: Severity = "error" if each.policy_version else "warning"
            who = each.policy or "a model"
            yield _Fault(severity, f"{each.actor}: {who} gave no {', '.join(missing)}", each.index)


def _length_mismatch(trace: Trace, known: _Known) -> Iterator[_Fault]:
    for each in _replies(trace):
        if each.token_ids is not None and each.logprobs is not None and len(each.token_ids) != len(each.logprobs):
            counts = f"{len(each.token_ids)} token ids and {len(each.logprobs)} log-probabilities"
            yield _Fault("error", f"{each.actor}: {counts}", each.index)


def _logprob_invalid(trace: Trace, known: _Known) -> Iterator[_Fault]:
    for each in _replies(trace):
        bad = [value for value in each.logprobs or () if not -math.inf < value <= _ABOVE_ZERO]
        if bad:
            yield _Fault(
                "error", f"{each.actor}: {len(bad)} log-probabilities are impossible, e.g. {bad[0]:g}", each.index
            )


def _logprob_mismatch(trace: Trace, known: _Known) -> Iterator[_Fault]:
    for each in _replies(trace):
        expected = (known.reference or {}).get((trace.id, each.index))
        if expected is None or each.logprobs is None:
            continue
        if len(expected) != len(each.logprobs):
            yield _Fault(
                "error", f"{each.actor}: {len(each.logprobs)} tokens, the reference has {len(expected)}", each.index
            )
            continue
        worst = max((abs(a - b) for a, b in zip(each.logprobs, expected, strict=True) if a != b), default=0.0)
        if not worst <= TOLERANCE:  # NaN is a mismatch too
            yield _Fault("error", f"{each.actor}: differs from the reference by up to {worst:.3g} nat", each.index)


def _prefix_mismatch(trace: Trace, known: _Known) -> Iterator[_Fault]:
    replies = [each for each in _replies(trace) if each.prompt_token_ids is not None and each.token_ids is not None]
    for place, each in enumerate(replies):
        earlier = max((one for one in replies[:place] if _continues(each, one)), key=_turns, default=None)
        if earlier is None:
            continue
        before = (*(earlier.prompt_token_ids or ()), *(earlier.token_ids or ()))
        now = each.prompt_token_ids or ()
        if now[: len(before)] != before:
            same = next(
                (i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now))
            )
            yield _Fault(
                "warning",
                f"{each.actor}: its messages continue call {earlier.index}, its token ids only up to {same} of {len(before)}",
                each.index,
            )


def _continues(later: Generation, earlier: Generation) -> bool:
    reply = ChatMessage(role="assistant", text=shown_reply(earlier.reply, earlier.tool_calls))
    begin = (*earlier.messages, reply)
    return later.messages[: len(begin)] == begin


def _turns(generation: Generation) -> int:
    return len(generation.messages)


def _missing_reward(trace: Trace, known: _Known) -> Iterator[_Fault]:
    if trace.score is None and trace.status is TraceStatus.OK:
        yield _Fault("error", "the run has no score")


def _truncated(trace: Trace, known: _Known) -> Iterator[_Fault]:
    for each in _replies(trace):
        if each.finish_reason == "length":
            most = f" of at most {each.sampling.max_tokens}" if each.sampling.max_tokens else ""
            yield _Fault(
                "warning",
                f"{each.actor}: cut off after {len(each.token_ids or ()) or 'its last'} tokens{most}",
                each.index,
            )


def _parser_altered(trace: Trace, known: _Known) -> Iterator[_Fault]:
    for each in _replies(trace):
        if known.tokenizer is None or not each.token_ids:
            continue
        sampled = clean(known.tokenizer.decode(list(each.token_ids), skip_special_tokens=True))
        if sampled != each.reply:
            yield _Fault(
                "warning", f"{each.actor}: sampled {sampled[:60]!r}, the graph got {each.reply[:60]!r}", each.index
            )


def _sampling_breaks_ratio(trace: Trace, known: _Known) -> Iterator[_Fault]:
    for each in _replies(trace):
        if each.policy_version is None:
            continue
        for severity, what in _skewed(each.sampling, known.temperature):
            yield _Fault(severity, f"{each.actor}: {what}", each.index)


def _skewed(sampling: Sampling, wanted: float | None) -> Iterator[tuple[Severity, str]]:
    """Yield why recorded log-probabilities are not those of the distribution that was sampled from."""
    if sampling.top_p is not None and sampling.top_p < 1:
        yield "error", f"top_p {sampling.top_p:g}"
    if sampling.top_k is not None and sampling.top_k > 0:
        yield "error", f"top_k {sampling.top_k}"
    if sampling.min_p is not None and sampling.min_p > 0:
        yield "error", f"min_p {sampling.min_p:g}"
    if sampling.repetition_penalty not in (None, 1.0):
        yield "error", f"repetition_penalty {sampling.repetition_penalty:g}"
    for name in ("presence_penalty", "frequency_penalty"):
        if value := getattr(sampling, name):
            yield "error", f"{name} {value:g}"
    heat = sampling.temperature
    if heat == 0:
        yield "error", "temperature 0: the reply was not sampled"
    elif wanted is not None and heat is not None and heat != wanted:
        yield "error", f"temperature {heat:g}, the training run has {wanted:g}"
    if heat not in (None, 0, 1) and sampling.logprobs == "raw":
        yield "error", f"raw log-probabilities at temperature {heat:g}"
    elif heat not in (None, 0, 1) and sampling.logprobs is None:
        yield (
            "warning",
            f"temperature {heat:g}, and the server did not say whether log-probabilities are of that temperature",
        )


def _failed_run(trace: Trace, known: _Known) -> Iterator[_Fault]:
    if trace.status is not TraceStatus.OK:
        yield _Fault("warning", f"the run ended as {trace.status.value}: {trace.error or 'no reason is recorded'}")
    for each in trace.generations:
        if each.error is not None and trace.status is TraceStatus.OK:
            yield _Fault("warning", f"{each.actor}: the call failed and the run went on: {each.error}", each.index)


def _empty_completion(trace: Trace, known: _Known) -> Iterator[_Fault]:
    for each in _replies(trace):
        if each.token_ids == () or not (each.reply or each.tool_calls):
            yield _Fault("warning", f"{each.actor}: the reply is empty", each.index)


def _no_policy_model(trace: Trace, known: _Known) -> Iterator[_Fault]:
    if trace.status is TraceStatus.OK and not _has_policy(trace):
        count = len(list(_replies(trace)))
        yield _Fault(
            "error", f"none of {count} replies says which weights sampled it" if count else "no model was called"
        )


CHECKS: Final[dict[Code, Check]] = {
    "failed_run": _failed_run,
    "no_policy_model": _no_policy_model,
    "missing_ids": _missing_ids,
    "length_mismatch": _length_mismatch,
    "logprob_invalid": _logprob_invalid,
    "logprob_mismatch": _logprob_mismatch,
    "prefix_mismatch": _prefix_mismatch,
    "truncated": _truncated,
    "empty_completion": _empty_completion,
    "parser_altered": _parser_altered,
    "sampling_breaks_ratio": _sampling_breaks_ratio,
    "missing_reward": _missing_reward,
}
"""Checks of one trace; those of groups and iterations follow."""


def _groups(traces: Sequence[Trace]) -> Iterator[Finding]:
    groups: dict[tuple[str | None, int | None, str], list[Trace]] = defaultdict(list)
    for trace in traces:
        if trace.group is not None:
            groups[trace.run, trace.iteration, trace.group].append(trace)
    for (_, _, name), members in groups.items():
        scores = [trace.score for trace in members if trace.score is not None]
        if len(scores) < 2:
            message = (
                f"group {name!r}: {len(scores)} of {len(members)} episodes has a score; there is nothing to compare"
            )
            yield _of_several("group_of_one", "error", members, message)
        elif all((score.value, score.parts) == (scores[0].value, scores[0].parts) for score in scores):
            message = f"group {name!r}: all {len(scores)} scores are {scores[0].value:g}"
            yield _of_several("zero_variance", "warning", members, message)


def _versions(traces: Sequence[Trace]) -> Iterator[Finding]:
    seen: dict[tuple[str, int, str], dict[str, list[Trace]]] = defaultdict(lambda: defaultdict(list))
    for trace in traces:
        if trace.run is None or trace.iteration is None:
            continue
        for each in trace.generations:
            if each.policy_version is not None:
                seen[trace.run, trace.iteration, each.actor][each.policy_version].append(trace)
    for (run, iteration, actor), versions in seen.items():
        if len(versions) > 1:
            counts = ", ".join(f"{version} ({len(members)} replies)" for version, members in versions.items())
            odd = min(versions.values(), key=len)
            message = f"run {run!r}, iteration {iteration}: {actor} was played by {len(versions)} policies: {counts}"
            yield _of_several("mixed_policy_versions", "error", odd, message)


def _of_several(code: Code, severity: Severity, members: Sequence[Trace], message: str) -> Finding:
    only = {trace.id for trace in members}
    trace = members[0].id if len(only) == 1 else None
    return Finding(code=code, severity=severity, trace=trace, message=message, remedy=REMEDIES[code])


def _replies(trace: Trace) -> Iterator[Generation]:
    """Yield the generations that brought a reply."""
    return (each for each in trace.generations if each.error is None)


def _has_policy(trace: Trace) -> bool:
    return any(each.policy_version is not None for each in _replies(trace))

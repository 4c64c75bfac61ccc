"""Memory-hop credit: the reward of a later answer reaches the write of the memory that it read. The definition is ours."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple
from uuid import UUID

from memweave.errors import SettingsError
from memweave.tracing import Generation, Trace, TraceStatus
from memweave.trainers.credit import (
    Credit,
    CreditResult,
    Excluding,
    Group,
    Rewarded,
    Scale,
    check_scaling,
    compare,
    episode_of,
)

Unread = Literal["zero", "trace", "exclude"]
"""What a write is worth that no scored generation has read: 0, its own trace's reward, or no credit."""


def memory_hop(
    parts: Mapping[str, str] | None = None,
    *,
    gamma: float = 0.9,
    unread: Unread = "trace",
    scale: Scale = "group",
    epsilon: float = 1e-6,
    drop_zero_variance: bool = False,
) -> Credit:
    """Return the credit that pays a write of a memory with what its readers earned.

    An *episode* is all traces of a group with the same replica: one branch of the memory, so a version that one trace
    wrote can be read in a later one (traces without a replica stand alone). Versions are never looked up across episodes:
    two branches number their versions alike.

    *Own reward* of a generation: the score of its trace. Where one score says too little, its parts say more: with
    `name = parts.get(actor, actor)`, `Score.parts[f"{name}#{k}"]` is taken if it exists, k counting the generations of that
    actor in the trace from 0 (the k-th answer of a run), else `Score.parts[name]`, else `Score.value`.

    *Readers* of a generation g that wrote versions W: every other generation of the episode, in a trace that ended well
    and is scored, whose prompt held a version v of a memory of which W has a version u <= v. It is v - u hops away: u was
    replaced v - u times since. A reader that saw several such versions counts once, with its fewest hops.

        reward(g) = mean over readers r of gamma^hops(r) * own(r)

    so one reader at hop 0 passes its reward on unchanged, and the writer of version 1 gets gamma times what the reader of
    version 2 earned. A write without readers is worth what `unread` says (0 only where nobody can have read it unseen: every
    trace of the episode ended well, and one has a score); a generation that wrote nothing (an answer, a
    NOOP, a DELETE, a reply that could not be used) has its own reward. A generation without a reward has no credit: in a
    trace without a score, only writes that were read have one.

    Rewards are compared within (group, actor), one per generation: A = (reward - mean) / (sample deviation + epsilon).

    gamma: 0..1.  parts: which part of the score is an actor's reward, where it is not named as the actor.
    """
    check_scaling(scale, epsilon)
    if not 0.0 <= gamma <= 1.0:
        raise SettingsError(f"gamma {gamma} lies outside 0..1.")
    if unread not in ("zero", "trace", "exclude"):
        raise SettingsError(f"unread {unread!r} is none of zero, trace, exclude.")
    names = dict(parts or {})

    def credit(groups: Sequence[Group]) -> CreditResult:
        out = Excluding()
        compared: list[list[Rewarded]] = []
        for group in groups:
            by_actor: dict[str, list[Rewarded]] = defaultdict(list)
            broken = {episode_of(trace) for trace in group.traces if trace.status is not TraceStatus.OK}
            for episode, traces in _episodes(group.traces, out).items():
                calls = list(_calls(traces, names))
                blank = 0.0 if episode not in broken and any(call.own is not None for call in calls) else None
                for call, reward in _rewards(calls, gamma, unread, blank, out):
                    by_actor[call.generation.actor].append(Rewarded(reward, episode, [call.key]))
            compared += by_actor.values()
        return compare(compared, out, scale=scale, epsilon=epsilon, drop_zero_variance=drop_zero_variance)

    return credit


@dataclass(frozen=True, slots=True)
class _Call:
    """A generation within an episode. own: its own reward, if its trace has a score."""

    key: tuple[UUID, int]
    generation: Generation
    written: tuple[tuple[UUID, int], ...]
    own: float | None


class _Reading(NamedTuple):
    reader: int
    version: int


def _episodes(traces: Iterable[Trace], out: Excluding) -> dict[object, list[Trace]]:
    """Return the traces that ended well, by episode; a trace without a score may hold writes that others read."""
    found: dict[object, list[Trace]] = defaultdict(list)
    for trace in traces:
        if out.ready(trace, scored=False):
            found[episode_of(trace)].append(trace)
    return found


def _calls(traces: Sequence[Trace], names: Mapping[str, str]) -> Iterator[_Call]:
    for trace in traces:
        logged: dict[int, list[tuple[UUID, int]]] = defaultdict(list)
        for event in trace.memory_events:
            made = event.status == "applied" and event.kind in ("ADD", "UPDATE")
            if made and event.memory is not None and event.generation is not None:
                logged[event.generation].append((event.memory.id, event.memory.version))
        played: Counter[str] = Counter()
        for generation in sorted(trace.generations, key=lambda g: g.index):
            actor = generation.actor
            own = _own_reward(trace, names.get(actor, actor), played[actor])
            played[actor] += 1
            written = [(ref.id, ref.version) for ref in generation.memories_written] + logged[generation.index]
            yield _Call((trace.id, generation.index), generation, tuple(dict.fromkeys(written)), own)


def _own_reward(trace: Trace, name: str, number: int) -> float | None:
    if trace.score is None:
        return None
    parts = trace.score.parts
    return parts.get(f"{name}#{number}", parts.get(name, trace.score.value))


def _rewards(
    calls: Sequence[_Call], gamma: float, unread: Unread, blank: float | None, out: Excluding
) -> Iterator[tuple[_Call, float]]:
    """Yield the calls of one episode that have a reward, with it; count the others. blank: what `zero` is worth here."""
    readings: dict[UUID, list[_Reading]] = defaultdict(list)
    for number, call in enumerate(calls):
        if call.own is not None:
            for ref in call.generation.memories_read:
                readings[ref.id].append(_Reading(number, ref.version))
    for number, call in enumerate(calls):
        reward = call.own
        if call.written:
            hops = _hops(number, call, readings)
            if hops:
                earned = [gamma**away * (calls[reader].own or 0.0) for reader, away in hops.items()]
                reward = sum(earned) / len(earned)
            elif unread == "exclude":
                out.counts["unread_write"] += 1
                continue
            elif unread == "zero":
                reward = blank
        if reward is None:
            out.counts["unscored"] += 1
        else:
            yield call, reward


def _hops(writer: int, call: _Call, readings: Mapping[UUID, Sequence[_Reading]]) -> dict[int, int]:
    """Return the readers of what `call` wrote, each with its fewest hops."""
    found: dict[int, int] = {}
    for memory, version in call.written:
        for reader, seen in readings.get(memory, ()):
            if reader != writer and seen >= version:
                found[reader] = min(found.get(reader, seen - version), seen - version)
    return found

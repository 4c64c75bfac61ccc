"""Credit over the stages of an episode: which turns are trained, and by which reward. For graphs that say the stage of a call.

A graph says it with the metadata `memweave_stage` of its model calls (`Generation.stage`); AgeMem's episode does. A generation
without a stage, such as a judge's reply, is no turn of the policy and has no credit here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from memweave.agents.memory_tools import ADD, ALIASES, FILTER, RETRIEVE, SUMMARY, UPDATE
from memweave.agents.tool_protocol import read_text_turn
from memweave.errors import SettingsError
from memweave.tracing import Generation, Trace
from memweave.trainers.credit import (
    Credit,
    CreditResult,
    Excluded,
    Excluding,
    Group,
    Rewarded,
    Scale,
    check_scaling,
    compare,
    episode_of,
)

KEPT_TOOLS: Final[Mapping[int, Collection[str]]] = {
    1: (ADD, RETRIEVE, UPDATE),
    2: (FILTER, SUMMARY),
    3: (SUMMARY, FILTER, RETRIEVE),
}
"""Tools whose turns AgeMem's released code trains, by stage (A8); DELETE is in none."""
STAGE_PART: Final = "stage-{}"
"""Name of the part of a score that is the reward of one stage."""


def stages_only(credit: Credit, stages: Collection[int]) -> Credit:
    """Return `credit` for the turns of some stages; the others are not trained on.

    What the credit compares stays the same: with `broadcast()`, the rewards of all episodes, also of one that never came to such
    a stage. `stages_only(broadcast(), (3,))` credits only the stage that is rewarded at its end (terminal-only).
    """
    wanted = frozenset(stages)
    if not wanted:
        raise SettingsError("no stage is named, so nothing would be trained. Name one at least, such as (3,)")

    def why(trace: Trace) -> dict[int, Excluded]:
        return {g.index: "other_stage" for g in trace.generations if g.stage is not None and g.stage not in wanted}

    return _without(credit, why)


def tool_steps_only(credit: Credit) -> Credit:
    """Return `credit` for the turns that AgeMem's released code trains (A8); the others are not trained on.

    Kept are turns that call a tool of `KEPT_TOOLS` for their stage, whether the call succeeds or not, the last turn of each stage,
    and in stage 1 every turn that answers (in the text protocol, which policies of ours speak). With
    `broadcast(step_pooled=True)` inside, only kept turns count as steps.
    """

    def why(trace: Trace) -> dict[int, Excluded]:
        turns = sorted((g for g in trace.generations if g.stage is not None), key=lambda g: g.index)
        last = {g.stage: g.index for g in turns}
        return {g.index: "no_tool" for g in turns if g.index != last[g.stage] and not _kept(g)}

    return _without(credit, why)


def per_stage(*, scale: Scale = "group", epsilon: float = 1e-6, drop_zero_variance: bool = False) -> Credit:
    """Return the credit that compares each stage's own reward, `Score.parts["stage-1"]` and so on, within (group, stage).

    An episode without a turn in a stage is not compared there. AgeMem's reward has these parts with
    `RewardSettings(by_stage=True)`.
    """
    check_scaling(scale, epsilon)

    def credit(groups: Sequence[Group]) -> CreditResult:
        _check_stages(groups)
        out = Excluding()
        compared: list[list[Rewarded]] = []
        for group in groups:
            by_stage: dict[int, list[Rewarded]] = {}
            for trace in group.traces:
                if not out.ready(trace) or trace.score is None:
                    continue
                for stage, turns in _by_stage(trace).items():
                    reward = None if stage is None else trace.score.parts.get(STAGE_PART.format(stage))
                    if stage is None or reward is None:
                        out.counts["no_stage" if stage is None else "no_own_reward"] += len(turns)
                        continue
                    keys = [(trace.id, turn.index) for turn in turns]
                    by_stage.setdefault(stage, []).append(Rewarded(reward, episode_of(trace), keys))
            compared += [by_stage[stage] for stage in sorted(by_stage)]
        return compare(compared, out, scale=scale, epsilon=epsilon, drop_zero_variance=drop_zero_variance)

    return credit


def _without(credit: Credit, why: Callable[[Trace], Mapping[int, Excluded]]) -> Credit:
    """Return `credit` over traces without the generations that `why` names (by index), and without those that have no stage."""

    def filtered(groups: Sequence[Group]) -> CreditResult:
        _check_stages(groups)
        out = Excluding()
        left = [Group(group.id, tuple(_kept_of(trace, why(trace), out) for trace in group.traces)) for group in groups]
        found = credit(left)
        excluded = {**found.report.excluded}
        for reason, number in out.counts.items():
            excluded[reason] = excluded.get(reason, 0) + number
        return CreditResult(found.advantages, replace(found.report, excluded=excluded))

    return filtered


def _kept_of(trace: Trace, reasons: Mapping[int, Excluded], out: Excluding) -> Trace:
    kept: list[Generation] = []
    for generation in trace.generations:
        reason: Excluded | None = "no_stage" if generation.stage is None else reasons.get(generation.index)
        if reason is None:
            kept.append(generation)
        else:
            out.counts[reason] += 1
    return trace.model_copy(update={"generations": tuple(kept)})


def _kept(generation: Generation) -> bool:
    """Return whether the released code trains a turn for what it says."""
    turn = read_text_turn(generation.reply)
    names = [call["name"] for call in turn.calls]
    native = [call for call in generation.tool_calls if isinstance(call, dict) and call.get("type") == "tool_call"]
    names += [str(call.get("name")) for call in native]
    known = KEPT_TOOLS.get(generation.stage or 0, ())
    return any(ALIASES.get(name, name) in known for name in names) or (
        generation.stage == 1 and turn.answer is not None
    )


def _by_stage(trace: Trace) -> dict[int | None, list[Generation]]:
    found: dict[int | None, list[Generation]] = {}
    for generation in trace.generations:
        found.setdefault(generation.stage, []).append(generation)
    return found


def _check_stages(groups: Sequence[Group]) -> None:
    """Raise `SettingsError` when no generation at all has a stage: nothing would be trained, without a word."""
    generations = [generation for group in groups for trace in group.traces for generation in trace.generations]
    if generations and all(generation.stage is None for generation in generations):
        raise SettingsError(
            "no reply says in which stage it was made, so a credit of stages has nothing to go by. "
            "Give the model calls of the graph the metadata memweave_stage, as AgeMem's episode does"
        )

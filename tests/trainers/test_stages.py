"""Credit over the stages of an episode: by hand, which turns are trained and what they are compared by."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memweave.agents.memory_tools import ADD, DELETE, FILTER, RETRIEVE, SUMMARY, UPDATE
from memweave.errors import SettingsError
from memweave.serving.tool_text import render_tool_calls
from memweave.tracing import Generation, Score, Trace, TraceStatus
from memweave.trainers.credit import Credit, CreditResult, Group, broadcast, shuffled
from memweave.trainers.stages import per_stage, stages_only, tool_steps_only
from tests.trainers.made_up import generation, trace


def turn(index: int, stage: int | None, reply: str = "") -> Generation:
    return generation(index, [1], [2], role="agent", stage=stage, reply=reply)


def calling(name: str) -> str:
    return f"<think>so</think>{render_tool_calls([{'name': name, 'args': {}, 'id': None, 'type': 'tool_call'}])}"


def episode(score: float | Score | None, replica: int, *stages: int | None, **fields: object) -> Trace:
    made = [turn(index, stage) for index, stage in enumerate(stages)]
    return trace(*made, score=score, replica=replica, **fields)  # type: ignore[arg-type]  # test helper


def values(result: CreditResult, *traces: Trace) -> list[list[float | None]]:
    return [
        [None if (v := result.advantages.get((t.id, g.index))) is None else round(v, 4) for g in t.generations]
        for t in traces
    ]


# terminal-only


def test_only_the_turns_of_the_last_stage_get_the_episodes_advantage() -> None:
    """r = 1, 0: mean 0.5, deviation sqrt(0.5); +-0.7071 to stage 3 alone."""
    good, bad = episode(1, 0, 1, 2, 3, 3), episode(0, 1, 1, 1, 2, 3)
    result = stages_only(broadcast(), (3,))([Group("g", (good, bad))])
    assert values(result, good, bad) == [[None, None, 0.7071, 0.7071], [None, None, None, -0.7071]]
    assert result.report.excluded == {"other_stage": 5}
    assert (result.report.credited, result.report.rewards, result.report.reward_mean) == (3, 2, 0.5)


def test_an_episode_that_never_came_to_the_stage_still_counts_in_the_mean() -> None:
    """r = 3, 1, -1: mean 1, deviation 2. The third overflowed in stage 2."""
    all_three = [episode(3, 0, 1, 3), episode(1, 1, 1, 3), episode(-1, 2, 1, 2)]
    result = stages_only(broadcast(epsilon=0), (3,))([Group("g", tuple(all_three))])
    assert values(result, *all_three) == [[None, 1.0], [None, 0.0], [None, None]]


def test_several_stages_may_be_trained_and_none_is_refused() -> None:
    pair = (episode(1, 0, 1, 2, 3), episode(0, 1, 1, 2, 3))
    result = stages_only(broadcast(), (1, 2))([Group("g", pair)])
    assert values(result, *pair) == [[0.7071, 0.7071, None], [-0.7071, -0.7071, None]]
    with pytest.raises(SettingsError, match="no stage is named"):
        stages_only(broadcast(), ())


# turns that the released code trains


def test_turns_of_the_kept_tools_of_their_stage_and_the_last_of_each_stage_are_trained() -> None:
    says = [
        (1, calling(ADD), True),
        (1, calling(RETRIEVE), True),
        (1, calling(UPDATE), True),
        (1, calling(DELETE), False),
        (1, calling(FILTER), False),
        (1, "<answer>Noted.</answer>", True),
        (1, "no tags", False),
        (1, "no tags", True),  # the last of the stage
        (2, calling(FILTER), True),
        (2, calling(SUMMARY), True),
        (2, calling("Clear_context"), True),  # what the released code calls it
        (2, calling(ADD), False),
        (2, "<answer>Nice.</answer>", False),
        (2, "<answer>Nice.</answer>", True),
        (3, calling(RETRIEVE), True),
        (3, calling(SUMMARY), True),
        (3, calling(FILTER), True),
        (3, calling(ADD), False),
        (3, "<answer>Clara</answer>", True),
    ]
    played = trace(*(turn(i, stage, reply) for i, (stage, reply, _) in enumerate(says)), score=1, replica=0)
    other = episode(0, 1, 3)
    result = tool_steps_only(broadcast())([Group("g", (played, other))])
    assert [value is not None for value in values(result, played)[0]] == [kept for *_, kept in says]
    assert {round(value, 4) for value in result.advantages.values()} == {0.7071, -0.7071}
    assert result.report.excluded == {"no_tool": sum(not kept for *_, kept in says)}


def test_native_calls_count_and_those_that_cannot_be_read_do_not() -> None:
    def native(index: int, kind: str) -> Generation:
        call = {"name": ADD, "args": {}, "id": "1", "type": kind}
        return generation(index, [1], [2], stage=1, tool_calls=(call,))

    played = trace(native(0, "tool_call"), native(1, "invalid_tool_call"), turn(2, 1), score=1, replica=0)
    other = episode(0, 1, 1)
    result = tool_steps_only(broadcast())([Group("g", (played, other))])
    assert values(result, played) == [[0.7071, None, 0.7071]]


def test_dropped_turns_are_no_steps_of_a_pooled_credit() -> None:
    """Of three turns of the first episode two are dropped: r = 1, 0 over one step each, mean 0.5 and not 0.75."""
    long, short = episode(1, 0, 3, 3, 3), episode(0, 1, 3)
    both = [Group("g", (long, short))]
    assert values(tool_steps_only(broadcast(step_pooled=True, scale="none"))(both), long) == [[None, None, 0.5]]
    assert values(broadcast(step_pooled=True, scale="none")(both), long) == [[0.25, 0.25, 0.25]]


# a reward for each stage


def staged(replica: int, rewards: dict[str, float], *stages: int | None, **fields: object) -> Trace:
    return episode(Score(value=0, low=-10, high=10, parts=rewards), replica, *stages, **fields)


def test_each_stage_is_compared_by_its_own_reward() -> None:
    """Stage 1: 4, 2 (mean 3, deviation sqrt 2); stage 2: 0, 1; stage 3: equal."""
    one = staged(0, {"stage-1": 4, "stage-2": 0, "stage-3": 5}, 1, 1, 2, 3)
    two = staged(1, {"stage-1": 2, "stage-2": 1, "stage-3": 5}, 1, 2, 2, 3)
    result = per_stage()([Group("g", (one, two))])
    assert values(result, one, two) == [[0.7071, 0.7071, -0.7071, 0.0], [-0.7071, 0.7071, 0.7071, 0.0]]
    assert (result.report.groups, result.report.rewards, result.report.zero_variance) == (3, 6, 1)


def test_an_episode_without_a_turn_in_a_stage_is_not_compared_there() -> None:
    parts = {"stage-1": 1.0, "stage-3": -1.0}
    never = staged(0, parts, 1)
    two, three = (
        staged(1, {"stage-1": 0.0, "stage-3": 1.0}, 1, 3),
        staged(2, {"stage-1": 0.5, "stage-3": 0.0}, 1, 3),
    )
    result = per_stage(scale="none")([Group("g", (never, two, three))])
    assert values(result, never, two, three) == [[0.5], [-0.5, 0.5], [0.0, -0.5]]


def test_a_stage_without_a_reward_of_its_own_has_no_credit() -> None:
    pair = (staged(0, {"stage-1": 1}, 1, 3), staged(1, {"stage-1": 0}, 1, 3))
    result = per_stage()([Group("g", pair)])
    assert values(result, *pair) == [[0.7071, None], [-0.7071, None]]
    assert result.report.excluded == {"no_own_reward": 2}


# what all have in common


CREDITS: list[Credit] = [stages_only(broadcast(), (3,)), tool_steps_only(broadcast()), per_stage()]


@pytest.mark.parametrize("credit", CREDITS)
def test_a_reply_without_a_stage_is_no_turn_of_the_policy(credit: Credit) -> None:
    pair = (staged(0, {"stage-3": 1}, 3, None), staged(1, {"stage-3": 0}, 3, None))
    result = credit([Group("g", pair)])
    assert [each[1] for each in values(result, *pair)] == [None, None]
    assert result.report.excluded == {"no_stage": 2}


@pytest.mark.parametrize("credit", CREDITS)
def test_every_generation_is_credited_or_counted(credit: Credit) -> None:
    parts = {"stage-1": 1.0, "stage-2": 1.0, "stage-3": 1.0}
    traces = [
        staged(0, parts, 1, 1, 2, 3),
        staged(1, {**parts, "stage-1": 0.0}, 1, 2, 2, None),
        staged(2, parts, 1, 3, status=TraceStatus.FAILED),
        episode(None, 3, 1, 2, 2),
    ]
    report = credit([Group("g", tuple(traces))]).report
    assert report.credited + sum(report.excluded.values()) == sum(len(each.generations) for each in traces)


@pytest.mark.parametrize("credit", CREDITS)
def test_a_graph_that_never_says_a_stage_is_refused(credit: Credit) -> None:
    with pytest.raises(SettingsError, match="memweave_stage"):
        credit([Group("g", (episode(1, 0, None), episode(0, 1, None)))])
    assert credit([]).report.credited == 0


def test_the_control_deals_rewards_and_keeps_the_stages() -> None:
    traces = [episode(float(number), number, 1, 3) for number in range(4)]
    result = shuffled(stages_only(broadcast(), (3,)), 1)([Group("g", tuple(traces))])
    found = values(result, *traces)
    assert [each[0] for each in found] == [None] * 4
    assert sorted(each[1] for each in found if each[1] is not None) == [-1.1619, -0.3873, 0.3873, 1.1619]


# statistics over all steps


def pooled(rewards: list[float], lengths: list[int], **options: object) -> tuple[list[float], CreditResult]:
    traces = [episode(r, i, *[3] * n) for i, (r, n) in enumerate(zip(rewards, lengths, strict=True))]
    result = broadcast(epsilon=0, **options)([Group("g", tuple(traces))])  # type: ignore[arg-type]  # options of broadcast
    return [result.advantages[t.id, 0] for t in traces], result


def test_longer_episodes_pull_mean_and_deviation() -> None:
    """r = 1 (3 steps), 0 (1 step): values 1 1 1 0, mean 0.75, deviation sqrt(0.75 / 3) = 0.5: A = 0.5, -1.5."""
    found, result = pooled([1, 0], [3, 1], step_pooled=True)
    assert found == pytest.approx([0.5, -1.5])
    report = result.report
    assert (report.rewards, report.reward_mean, report.reward_std, report.credited) == (4, 0.75, 0.5, 4)
    assert pooled([1, 0], [3, 1])[0] == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)])


def test_three_episodes_pooled_by_hand() -> None:
    """r = 2, -1, 0 with 1, 2, 2 steps: sum 0, squares 4 + 2 = 6 over 5 values: deviation sqrt(6 / 4)."""
    found, _ = pooled([2, -1, 0], [1, 2, 2], step_pooled=True)
    assert found == pytest.approx([value / math.sqrt(1.5) for value in (2, -1, 0)])


def test_replies_whose_tokens_nobody_knows_are_no_steps() -> None:
    judge = generation(1, None, None, role="judge")
    one = trace(turn(0, 3), judge, judge.model_copy(update={"index": 2}), score=1, replica=0)
    two = episode(0, 1, 3)
    assert values(broadcast(step_pooled=True, scale="none")([Group("g", (one, two))]), two) == [[-0.5]]


def test_an_episode_of_no_steps_is_nothing_to_compare_with() -> None:
    one, none = episode(1, 0, 3), trace(score=0, replica=1)
    result = broadcast(step_pooled=True)([Group("g", (one, none))])
    assert (dict(result.advantages), result.report.group_of_one) == ({}, 1)


@given(st.integers(1, 6), st.lists(st.integers(-5, 5), min_size=2, max_size=6).filter(lambda r: len(set(r)) > 1))
def test_with_equal_lengths_pooling_is_the_same_up_to_the_bessel_factor(steps: int, rewards: list[int]) -> None:
    count = len(rewards)
    whole, _ = pooled([float(r) for r in rewards], [steps] * count)
    over_steps, _ = pooled([float(r) for r in rewards], [steps] * count, step_pooled=True)
    factor = math.sqrt((steps * count - 1) / (steps * (count - 1)))
    assert over_steps == pytest.approx([factor * each for each in whole])


@given(st.lists(st.integers(1, 6), min_size=2, max_size=6).filter(lambda lengths: len(set(lengths)) > 1))
def test_with_unequal_lengths_there_are_rewards_that_pooling_centres_elsewhere(lengths: list[int]) -> None:
    """Reward each episode with its length: the pooled mean, sum T^2 / sum T, lies above the mean of the lengths."""
    rewards = [float(length) for length in lengths]
    whole, _ = pooled(rewards, lengths, scale="none")
    over_steps, _ = pooled(rewards, lengths, scale="none", step_pooled=True)
    assert all(a < b for a, b in zip(over_steps, whole, strict=True))

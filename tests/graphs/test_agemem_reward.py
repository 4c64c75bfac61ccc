"""AgeMem's reward, part by part and by hand (specification, 2.4), and its credit over the three stages (2.5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from memweave.agents.memory_tools import ADD, DELETE, FILTER, LONG_TERM, RETRIEVE, SHORT_TERM, SUMMARY, UPDATE
from memweave.graphs.agemem_reward import (
    ANSWER_ONLY,
    CODE,
    PAPER,
    PRESETS,
    EpisodeLog,
    Judged,
    RewardSettings,
    added,
    bounds,
    compression,
    context_reward,
    maintenance,
    memory_reward,
    overflow_stage,
    penalty,
    preventive,
    retrieved,
    reward,
    rounds_penalty,
    stage_rewards,
    storage,
    task_reward,
    tool_counts,
    tool_use,
)
from memweave.graphs.agemem_state import CallLog, StepLog
from memweave.trainers.credit import Group, broadcast
from tests.trainers.made_up import generation, trace


def call(name: str, ok: bool = True, *, content: str = "", found: tuple[str, ...] = ()) -> CallLog:
    return CallLog(
        name=name,
        arguments={"content": content} if content else {},
        ok=ok,
        fault=None if ok else "bad_arguments",
        retrieved=found,
    )


def step(stage: int, *calls: CallLog, overflow: bool = False, late: bool = False) -> StepLog:
    return StepLog(
        stage=stage, round=1, think="", calls=calls, answer=None, problems=(), tokens=10, overflow=overflow, late=late
    )


def log(*steps: StepLog, **fields: Any) -> EpisodeLog:
    given = {"answered": True, "used": 100, "limit": 1_000, "overflowed": False, "exhausted": False, **fields}
    return EpisodeLog(steps=steps, **given)


def judged(answer: float | None = 1.0, good: int = 0, **fields: Any) -> Judged:
    return Judged(answer=answer, good_adds=good, **fields)


# the vectors of section 2.4

FULL = log(
    step(1, call(ADD, content="a"), call(ADD, content="b")),
    step(1, call(ADD, content="c"), call(ADD, content="d")),
    step(2, call(FILTER)),
    step(3, call(RETRIEVE, found=("a",))),
    used=2048,
    limit=8192,
)
FINE = judged(1.0, 2, relevance=0.8, preserved=True)


def test_the_vector_of_a_good_episode() -> None:
    score = reward(FULL, FINE)
    assert score.value == pytest.approx(0.783333, abs=1e-6)
    assert score.parts["context"] == pytest.approx(0.916667, abs=1e-6)
    assert score.parts["memory"] == pytest.approx(0.433333, abs=1e-6)
    assert {name: score.parts[name] for name in ("task", "compression", "preventive", "preservation")} == {
        "task": 1.0, "compression": 0.75, "preventive": 1.0, "preservation": 1.0,
    }  # fmt: skip
    assert {name: score.parts[name] for name in ("storage", "maintenance", "relevance", "penalty")} == {
        "storage": 0.5, "maintenance": 0.0, "relevance": 0.8, "penalty": 0.0,
    }  # fmt: skip


def test_the_vector_of_an_episode_that_overflowed() -> None:
    assert reward(FULL.model_copy(update={"overflowed": True}), FINE).value == pytest.approx(0.283333, abs=1e-6)


def test_the_vector_of_an_episode_without_an_answer() -> None:
    nothing = log(step(3), answered=False, used=1_000, exhausted=True)
    score = reward(nothing, judged(None))
    assert score.value == pytest.approx(-1.333333, abs=1e-6)
    assert {name: value for name, value in score.parts.items() if value} == {"task": -1.0, "penalty": -1.0}


# parts


def test_task_is_what_the_judge_says_or_minus_one() -> None:
    assert task_reward(log(), judged(0.4)) == 0.4
    assert task_reward(log(), judged(0.0)) == 0.0
    assert task_reward(log(answered=False), judged(None)) == -1.0
    assert task_reward(log(answered=False), judged(0.9)) == -1.0


@pytest.mark.parametrize(("used", "share"), [(0, 1.0), (250, 0.75), (1_000, 0.0), (4_000, 0.0)])
def test_compression_is_the_share_of_the_context_that_is_free(used: int, share: float) -> None:
    assert compression(log(used=used)) == share


@pytest.mark.parametrize("tool", [SUMMARY, FILTER])
def test_prevention_is_a_summary_or_filter_before_the_first_overflow(tool: str) -> None:
    assert preventive(log(step(1), step(2, call(tool)))) == 1.0
    assert preventive(log(step(2, call(tool)), step(2, overflow=True), overflowed=True)) == 1.0
    assert preventive(log(step(2, overflow=True), step(2, call(tool)), overflowed=True)) == 0.0
    assert preventive(log(step(2, call(tool, ok=False)))) == 0.0
    assert preventive(log(step(2, call(ADD), call(RETRIEVE)))) == 0.0
    assert preventive(log()) == 0.0


def test_prevention_comes_too_late_after_an_overflow_that_left_no_turn() -> None:
    """A message alone can be too much: the policy had no turn then, so no turn says that it overflowed."""
    assert preventive(log(step(1), step(2, call(FILTER), late=True), overflowed=True)) == 0.0


def test_prevention_in_the_turn_that_overflows_counts() -> None:
    assert preventive(log(step(2, call(SUMMARY), overflow=True), overflowed=True)) == 1.0


def test_context_is_the_mean_of_its_three_parts() -> None:
    episode = log(step(2, call(FILTER)), used=400)
    assert context_reward(episode, judged(preserved=True)) == pytest.approx((0.6 + 1 + 1) / 3)
    assert context_reward(episode, judged(preserved=False)) == pytest.approx((0.6 + 1 + 0) / 3)
    assert context_reward(log(used=400), judged(preserved=True)) == pytest.approx((0.6 + 0 + 1) / 3)


def test_storage_is_the_share_of_good_memories_among_those_that_stage_one_added() -> None:
    episode = log(
        step(1, call(ADD, content="a"), call(ADD, content="b"), call(ADD, False, content="c")),
        step(1, call(UPDATE, content="d")),
        step(2, call(ADD, content="e")),
        step(3, call(ADD, content="f")),
    )
    assert added(episode.steps) == ["a", "b"]
    assert storage(episode, judged(good=1)) == 0.5
    assert storage(episode, judged(good=2)) == 1.0
    assert storage(log(), judged(good=0)) == 0.0
    assert storage(log(), judged(good=3)) == 1.0  # a judge that counts too many cannot pay more than all


@pytest.mark.parametrize("tool", [UPDATE, DELETE])
def test_maintenance_is_one_successful_update_or_delete_in_any_stage(tool: str) -> None:
    for stage in (1, 2, 3):
        assert maintenance(log(step(stage, call(tool)))) == 1.0
        assert maintenance(log(step(stage, call(tool, ok=False)))) == 0.0
    assert maintenance(log(step(1, call(tool)), step(2, call(tool)))) == 1.0
    assert maintenance(log(step(1, call(ADD)))) == 0.0


def test_memory_is_the_mean_of_its_parts_and_maintenance_can_be_left_out() -> None:
    episode = log(step(1, call(ADD, content="a"), call(UPDATE)))
    given = judged(good=1, relevance=0.5)
    assert memory_reward(episode, given) == pytest.approx((1 + 1 + 0.5) / 3)
    assert memory_reward(episode, given, replace(PAPER, maintenance=False)) == pytest.approx((1 + 0.5) / 2)
    assert memory_reward(log(), judged()) == 0.0


def test_retrieved_is_what_stage_three_found_each_once() -> None:
    steps = (
        step(1, call(RETRIEVE, found=("early",))),
        step(3, call(RETRIEVE, found=("b", "a")), call(RETRIEVE, ok=False, found=("failed",))),
        step(3, call(RETRIEVE, found=("a", "c"))),
    )
    assert retrieved(steps) == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("exhausted", "overflowed", "expected"),
    [(False, False, 0.0), (True, False, -1.0), (False, True, -0.5), (True, True, -1.5)],
)
def test_penalties(exhausted: bool, overflowed: bool, expected: float) -> None:
    assert penalty(log(exhausted=exhausted, overflowed=overflowed)) == expected


# A3: (turns of stage 3, answered, exhausted) -> P_rounds of the paper, of the released code; five rounds are allowed
ROUNDS = [
    (5, True, False, 0.0, -1.0),
    (4, True, False, 0.0, 0.0),
    (5, False, True, -1.0, -1.0),
    (0, False, False, 0.0, 0.0),
]


@pytest.mark.parametrize(("turns", "answered", "exhausted", "paper", "code"), ROUNDS)
def test_the_released_code_takes_the_last_round_for_a_violation_even_with_an_answer(
    turns: int, answered: bool, exhausted: bool, paper: float, code: float
) -> None:
    episode = log(*[step(2)] * 7, *[step(3)] * turns, answered=answered, exhausted=exhausted, rounds=5)
    assert rounds_penalty(episode) == paper
    assert rounds_penalty(episode, replace(PAPER, double_penalty=True)) == code
    assert CODE.double_penalty
    assert not PAPER.double_penalty
    assert not ANSWER_ONLY.double_penalty


def test_what_an_answer_in_the_last_round_is_worth() -> None:
    """A right answer and nothing else: paper 1/3 (0.9 of the context free: + 0.1); released code 0.5 - 1, and what it pays beside."""
    late = log(*[step(3)] * 5, used=100)
    assert reward(late, judged(1.0)).value == pytest.approx(1 / 3 + 0.9 / 9)
    score = reward(late, judged(1.0), CODE)
    assert score.parts["penalty"] == -1.0
    assert score.value == pytest.approx(0.5 - 1 + 0.15 * 0.3 + 0.2 * (0 + 0 + 1) / 3)
    in_time = reward(late.model_copy(update={"rounds": 6}), judged(1.0), CODE)
    assert in_time.value == pytest.approx(score.value + 1)
    neither = log(*[step(3)] * 5, answered=False, exhausted=True, used=100)
    assert reward(neither, judged(None), replace(CODE, clip=False)).value == pytest.approx(-1 - 1 + 0.15 * 0.3)


def test_calls_are_counted_by_tool_and_stage_and_failures_apart() -> None:
    steps = (step(1, call(ADD), call(ADD), call(ADD, ok=False)), step(3, call(RETRIEVE), call("weather", ok=False)))
    assert tool_counts(steps) == {"Add_memory/1": 2, "failed/1": 1, "Retrieve_memory/3": 1, "failed/3": 1}


def test_use_of_tools_by_hand() -> None:
    episode = log(step(1, call(ADD)), step(2), step(3, call(RETRIEVE, ok=False)), step(3))
    assert tool_use(episode) == pytest.approx((1 / 4 + 1 / 2 + 1) / 3)
    assert tool_use(log(step(1, call(ADD), call(ADD), call(RETRIEVE)))) == pytest.approx(1.0)
    assert tool_use(log(answered=False, exhausted=True)) == 0.0


# presets


def test_the_paper_weighs_all_three_alike() -> None:
    score = reward(log(used=500), judged(0.5, preserved=True, relevance=0.3))
    assert score.value == pytest.approx((0.5 + (0.5 + 0 + 1) / 3 + (0 + 0 + 0.3) / 3) / 3)
    assert list(bounds(PAPER)) == pytest.approx([-1 / 3 - 1.5, 1.0])


def test_the_released_code_weighs_differently_pays_for_tools_and_clips() -> None:
    assert (CODE.task, CODE.context, CODE.memory, CODE.tools) == (0.5, 0.15, 0.15, 0.2)
    score = reward(FULL, FINE, CODE)
    tools = (1 + 1 + 1) / 3  # more calls than turns, both key tools, an answer in time
    assert score.value == pytest.approx(0.5 + 0.15 * 0.916667 + 0.15 * 0.433333 + 0.2 * tools, abs=1e-6)
    unanswered = log(step(2, call(FILTER)), answered=False, used=0)
    # -1 without a weight, and 0.15 of a context that is free, kept clear, and keeps the question's words
    assert reward(unanswered, judged(None, preserved=True), CODE).value == pytest.approx(
        -1 + 0.15 + 0.2 * tool_use(unanswered)
    )
    worst = log(step(3), answered=False, used=1_000, exhausted=True, overflowed=True)
    assert reward(worst, judged(None), CODE).value == -1.0
    assert bounds(CODE) == (-1.0, 1.0)


def test_answer_only_is_the_task_alone() -> None:
    busy = FULL.model_copy(update={"overflowed": True, "exhausted": True})
    assert reward(busy, judged(0.25, 2, relevance=1.0, preserved=True), ANSWER_ONLY).value == 0.25
    assert reward(log(answered=False), judged(None), ANSWER_ONLY).value == -1.0
    assert bounds(ANSWER_ONLY) == (-1.0, 1.0)


def test_presets_are_found_by_name() -> None:
    assert PRESETS == {"paper": PAPER, "code": CODE, "answer-only": ANSWER_ONLY}


# a reward for each stage


def test_what_each_stage_earned_by_hand() -> None:
    """FULL and FINE: storage 0.5 | compression 0.75, prevention 1 | task 1, preservation 1, relevance 0.8; each third of a third."""
    first, second, third = stage_rewards(FULL, FINE)
    assert first == pytest.approx(0.5 / 9)
    assert second == pytest.approx(1.75 / 9)
    assert third == pytest.approx(1 / 3 + 1 / 9 + 0.8 / 9)
    assert first + second + third == pytest.approx(0.783333, abs=1e-6)
    parts = reward(FULL, FINE, replace(PAPER, by_stage=True)).parts
    assert [parts[f"stage-{stage}"] for stage in (1, 2, 3)] == [first, second, third]
    assert set(parts) - set(reward(FULL, FINE).parts) == {"stage-1", "stage-2", "stage-3"}


@pytest.mark.parametrize(
    ("made", "stage"),
    [
        ([step(1), step(1, overflow=True), step(2, overflow=True, late=True)], 1),  # the turn that made it too much
        ([step(1), step(2), step(2, overflow=True)], 2),
        ([step(1), step(1), step(2, late=True)], 1),  # a message of stage 1 that came after its last turn
        ([step(1), step(2)], 2),  # the question did not fit any more
        ([], 1),
    ],
)
def test_an_overflow_costs_the_stage_of_the_turn_before_it(made: list[StepLog], stage: int) -> None:
    episode = log(*made, answered=False, overflowed=True, used=1_000)
    assert overflow_stage(episode) == stage
    shares = stage_rewards(episode, judged(None))
    assert shares[stage - 1] == pytest.approx(-0.5 - (1 / 3 if stage == 3 else 0))
    assert sum(shares) == pytest.approx(-0.5 - 1 / 3)


# ranges

calls = st.builds(
    call,
    st.sampled_from([*LONG_TERM, *SHORT_TERM, "weather"]),
    st.booleans(),
    content=st.sampled_from(["", "a", "b"]),
    found=st.sampled_from([(), ("a",), ("a", "b")]),
)
steps = st.builds(
    lambda stage, made, overflow, late: step(stage, *made, overflow=overflow, late=late),
    st.sampled_from([1, 2, 3]), st.lists(calls, max_size=3), st.booleans(), st.booleans(),
)  # fmt: skip
logs = st.builds(
    lambda made, answered, used, limit, overflowed, exhausted: log(
        *made, answered=answered, used=used, limit=limit, overflowed=overflowed, exhausted=exhausted and not answered
    ),
    st.lists(steps, max_size=6), st.booleans(), st.integers(0, 500), st.integers(1, 300), st.booleans(), st.booleans(),
)  # fmt: skip
shares = st.floats(0, 1)
judgements = st.builds(
    lambda answer, good, relevance, preserved: judged(answer, good, relevance=relevance, preserved=preserved),
    st.one_of(st.none(), shares), st.integers(0, 4), shares, st.booleans(),
)  # fmt: skip
presets = st.one_of(
    st.sampled_from([PAPER, CODE, ANSWER_ONLY, replace(PAPER, maintenance=False)]),
    st.builds(
        RewardSettings, task=shares, context=shares, memory=shares, tools=shares, penalties=st.booleans(),
        no_answer_weighted=st.booleans(), maintenance=st.booleans(), clip=st.booleans(), double_penalty=st.booleans(),
        by_stage=st.booleans(),
    ),
)  # fmt: skip


@given(logs, judgements, presets)
def test_a_reward_is_the_weighted_sum_of_its_parts_within_its_range(
    episode: EpisodeLog, judgement: Judged, settings: RewardSettings
) -> None:
    score = reward(episode, judgement, settings)
    parts = score.parts
    task = parts["task"] * (settings.task if parts["task"] >= 0 or settings.no_answer_weighted else 1)
    whole = task + settings.context * parts["context"] + settings.memory * parts["memory"]
    whole += settings.tools * parts["tools"] + (parts["penalty"] if settings.penalties else 0)
    assert sum(stage_rewards(episode, judgement, settings)) == pytest.approx(whole, abs=1e-9)
    if settings.clip:
        whole = min(1.0, max(-1.0, whole))
    assert score.value == pytest.approx(whole, abs=1e-9)  # the range was not what made it so
    assert (score.low, score.high) == bounds(settings)
    assert all(0 <= parts[name] <= 1 for name in parts if name not in ("task", "penalty") and "stage" not in name)


@pytest.mark.parametrize("wrong", [{"answer": 1.1}, {"good_adds": -1}, {"relevance": -0.1}])
def test_a_judge_that_leaves_its_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Judged.model_validate({"answer": 1.0, "good_adds": 0, **wrong})


# credit: the vector of section 2.5


def test_every_turn_of_all_three_stages_gets_the_episodes_advantage_once() -> None:
    lengths = [(2, 3, 1), (1, 1, 5), (4, 1, 1), (1, 2, 2)]
    episodes = []
    for replica, (rewarded, stages) in enumerate(zip([1.0, 0.0, 0.0, 1.0], lengths, strict=True)):
        turns = [f"stage-{stage}" for stage, number in enumerate(stages, 1) for _ in range(number)]
        made = [generation(i, [1, 2], [3, 4], role="agent", node=node) for i, node in enumerate(turns)]
        episodes.append(trace(*made, score=rewarded, replica=replica))
    result = broadcast()([Group("task", tuple(episodes))])
    assert len(result.advantages) == sum(map(sum, lengths)) == result.report.credited
    for episode, sign in zip(episodes, (1, -1, -1, 1), strict=True):
        given = [result.advantages[episode.id, each.index] for each in episode.generations]
        assert given == pytest.approx([sign * 0.866024] * len(given), abs=2e-6)
    assert result.report.excluded == {}
    assert (result.report.rewards, result.report.reward_mean) == (4, 0.5)

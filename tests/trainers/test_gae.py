"""Advantages by hand, against the definition as a double sum, and over episodes that are spread across rows."""

from __future__ import annotations

import math
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memweave.errors import InputError, RewardError, SettingsError
from memweave.trainers.gae import gae, token_credit, whiten
from memweave.trainers.rows import Floats, Row, Span

A, B = UUID(int=1), UUID(int=2)


def row(trace: UUID, mask: list[int], spans: list[tuple[int, int, int]]) -> Row:
    n = len(mask)
    zeros = np.zeros(n, dtype=np.float32)
    return Row(
        ids=np.arange(n, dtype=np.int32),
        mask=np.array(mask, dtype=np.bool_),
        logprobs=zeros,
        advantages=zeros.copy(),
        spans=[Span(*span) for span in spans],
        trace=trace,
        group="g",
        actor="policy",
        policy_version="v",
        temperature=1.0,
    )


def floats(*values: float) -> Floats:
    return np.array(values, dtype=np.float32)


def test_two_episodes_by_hand() -> None:
    values = np.array([[0.5, 0.2, 0.4], [1.0, 0.0, 9.0]])
    rewards = np.array([[0.0, 0.0, 1.0], [0.0, 2.0, 9.0]])
    mask = np.array([[True, True, True], [True, True, False]])
    # errors at gamma 0.9: .9*.2-.5=-.32, .9*.4-.2=.16, 1-.4=.6 | 0-1=-1, 2-0=2; gamma*lambda = 0.45
    expected = [[-0.32 + 0.45 * (0.16 + 0.45 * 0.6), 0.16 + 0.45 * 0.6, 0.6], [-1 + 0.45 * 2, 2.0, 0.0]]
    np.testing.assert_allclose(gae(values, rewards, mask, gamma=0.9, lambda_=0.5), expected, atol=1e-12)


def test_defaults_give_reward_minus_value() -> None:
    values = np.array([[0.5, 0.2, 0.4]])
    advantages = gae(values, np.array([[0.0, 0.0, 1.0]]), np.ones((1, 3), dtype=np.bool_))
    np.testing.assert_allclose(advantages, 1.0 - values, atol=1e-12)


@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    st.sampled_from([0.0, 0.5, 0.97, 1.0]),
    st.integers(0, 1000),
)
def test_equals_the_definition(lengths: list[int], gamma: float, lambda_: float, seed: int) -> None:
    """A_t is the sum over k of (gamma lambda)^k (r_{t+k} + gamma V_{t+k+1} - V_{t+k})."""
    random = np.random.default_rng(seed)
    shape = len(lengths), max(lengths)
    values, rewards = random.normal(size=shape), random.normal(size=shape)
    mask = np.arange(shape[1]) < np.array(lengths)[:, None]
    found = gae(values, rewards, mask, gamma=gamma, lambda_=lambda_)
    for e, n in enumerate(lengths):
        for t in range(shape[1]):
            expected = 0.0
            for k in range(max(0, n - t)):
                following = values[e, t + k + 1] if t + k + 1 < n else 0.0
                expected += (gamma * lambda_) ** k * (rewards[e, t + k] + gamma * following - values[e, t + k])
            assert found[e, t] == pytest.approx(expected, abs=1e-9)


def test_an_episode_runs_across_rows_in_time_order() -> None:
    """Generation 1 of trace A has its own row, before the row that holds 0 and 2; a row of trace B stands between."""
    rows = [
        row(A, [0, 1, 1], [(1, 3, 1)]),
        row(B, [0, 1], [(1, 2, 0)]),
        row(A, [0, 1, 0, 1, 0], [(1, 2, 0), (3, 4, 2)]),
    ]
    values = [floats(9, 0.2, 0.3), floats(9, 0.5), floats(9, 0.1, 9, 0.4, 9)]
    credit = token_credit(rows, values, {A: 1.0, B: -1.0}, gamma=0.5, lambda_=0.0)
    # lambda 0: A_t = r_t + gamma V_{t+1} - V_t along 0.1, 0.2, 0.3, 0.4
    np.testing.assert_allclose(credit.advantages[2], [0, 0.5 * 0.2 - 0.1, 0, 1 - 0.4, 0], atol=1e-6)
    np.testing.assert_allclose(credit.advantages[0], [0, 0.5 * 0.3 - 0.2, 0.5 * 0.4 - 0.3], atol=1e-6)
    np.testing.assert_allclose(credit.advantages[1], [0, -1 - 0.5], atol=1e-6)
    np.testing.assert_allclose(credit.returns[0], [0, 0.5 * 0.3, 0.5 * 0.4], atol=1e-6)


def test_rewards_of_generations_and_tokens() -> None:
    rows = [row(A, [0, 1, 1, 0, 1], [(1, 3, 0), (4, 5, 1)])]
    credit = token_credit(
        rows,
        [floats(0, 0, 0, 0, 0)],
        {A: 1.0},
        generation_rewards={(A, 0): 10.0},
        token_rewards=[floats(7, -0.1, -0.2, 7, -0.3)],
    )
    np.testing.assert_allclose(credit.returns[0], [0, 10.4, 10.5, 0, 0.7], atol=1e-5)


def test_whitening_counts_trained_tokens_only() -> None:
    masks = [np.array([False, True]), np.array([True, True])]
    white = whiten([floats(99, 1), floats(2, 3)], masks)
    scale = math.sqrt(2 / 3)
    np.testing.assert_allclose(np.concatenate(white), [0, -1 / scale, 0, 1 / scale], atol=1e-5)
    assert whiten([floats(5)], [np.array([True])])[0][0] == 0


@pytest.mark.parametrize("reward", [{}, {A: math.nan}, {A: math.inf}])
def test_a_missing_reward_is_refused(reward: dict[UUID, float]) -> None:
    with pytest.raises(RewardError, match="trace 00000000-0000-0000-0000-000000000001 has the reward"):
        token_credit([row(A, [1], [(0, 1, 0)])], [floats(0)], reward)


def test_bad_input_is_named() -> None:
    one = [row(A, [1, 1], [(0, 2, 0)])]
    with pytest.raises(
        InputError, match=r"values must hold one array per row with the row's length; rows \[2\], values \[1\]"
    ):
        token_credit(one, [floats(0)], {A: 1.0})
    with pytest.raises(RewardError, match="trace .* has the reward nan"):
        token_credit(one, [floats(0, 0)], {A: 1.0}, generation_rewards={(A, 0): math.nan})
    with pytest.raises(InputError, match="no token of these rows trains"):
        token_credit([row(A, [0], [])], [floats(0)], {A: 1.0})
    with pytest.raises(SettingsError, match="gamma=1.5 must lie"):
        gae(np.zeros((1, 1)), np.zeros((1, 1)), np.ones((1, 1), dtype=np.bool_), gamma=1.5)
    assert token_credit([], [], {}) == ([], [])

"""Generalised advantage estimation over the sampled tokens of an episode, in the order in which they were sampled.

An episode is one trace: its generations in order of start, whichever rows they were merged into and whatever stood between them.
One token is one step; prompt and tool tokens are part of the states and no steps. The reward comes at the last sampled token
(Schulman et al. 2016; defaults gamma = lambda = 1 as in verl, with which an advantage is reward-to-go minus value).
NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from memweave.errors import InputError, RewardError, SettingsError
from memweave.trainers.rows import Floats, Mask, Row

Series = NDArray[np.float64]


class TokenCredit(NamedTuple):
    """Advantages and returns (the value head's targets), one array per row with the row's length; 0 where nothing trains."""

    advantages: list[Floats]
    returns: list[Floats]


def gae(values: Series, rewards: Series, mask: Mask, *, gamma: float = 1.0, lambda_: float = 1.0) -> Series:
    """Return the advantages of E episodes of up to N tokens each.

    values: (E, N), estimate for the state in which a token was sampled.  rewards: (E, N), given after it.  mask: (E, N), true on
    the first n_e positions.  After its last token an episode has value 0.  Returns (E, N), 0 where the mask is false.
    """
    for name, factor in (("gamma", gamma), ("lambda", lambda_)):
        if not 0.0 <= factor <= 1.0:
            raise SettingsError(f"{name}={factor} must lie in [0, 1]")
    values, rewards = np.where(mask, values, 0.0), np.where(mask, rewards, 0.0)
    following = np.pad(values[:, 1:], ((0, 0), (0, 1)))
    errors = rewards + gamma * following - values
    advantages = np.zeros_like(values)
    running = np.zeros(len(values))
    for t in reversed(range(values.shape[1])):  # (E,) at a time: the recursion runs along the tokens
        running = np.where(mask[:, t], errors[:, t] + gamma * lambda_ * running, 0.0)
        advantages[:, t] = running
    return advantages


def token_credit(
    rows: Sequence[Row],
    values: Sequence[Floats],
    rewards: Mapping[UUID, float],
    *,
    generation_rewards: Mapping[tuple[UUID, int], float] | None = None,
    token_rewards: Sequence[Floats] | None = None,
    gamma: float = 1.0,
    lambda_: float = 1.0,
) -> TokenCredit:
    """Return what each sampled token of `rows` is worth.

    values: per row, an estimate at each position for the state in which that token was sampled.  rewards: by trace, given at
    the episode's last token.  generation_rewards: by (trace, generation), given at that generation's last token.
    token_rewards: per row, added at each token (a KL penalty).  Raises: RewardError when a trace has no reward or one that is
    not a number, InputError when an array does not fit its row.
    """
    if not rows:
        return TokenCredit([], [])
    _check_sizes(rows, values, "values")
    if token_rewards is not None:
        _check_sizes(rows, token_rewards, "token_rewards")
    episodes = list(_episodes(rows).items())
    shape = len(episodes), max(sum(len(piece.columns) for piece in pieces) for _, pieces in episodes)
    value, reward, mask = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=np.bool_)
    for e, (trace, pieces) in enumerate(episodes):
        t = 0
        for piece in pieces:
            place = slice(t, t := t + len(piece.columns))
            mask[e, place] = True
            value[e, place] = values[piece.row][piece.columns]
            if token_rewards is not None:
                reward[e, place] = token_rewards[piece.row][piece.columns]
            reward[e, t - 1] += _number((generation_rewards or {}).get((trace, piece.generation), 0.0), trace)
        reward[e, t - 1] += _number(rewards.get(trace), trace)
    advantage = gae(value, reward, mask, gamma=gamma, lambda_=lambda_)
    result = TokenCredit([_zeros(row) for row in rows], [_zeros(row) for row in rows])
    for e, (_, pieces) in enumerate(episodes):
        t = 0
        for piece in pieces:
            place = slice(t, t := t + len(piece.columns))
            result.advantages[piece.row][piece.columns] = advantage[e, place]
            result.returns[piece.row][piece.columns] = advantage[e, place] + value[e, place]
    return result


def whiten(advantages: Sequence[Floats], masks: Sequence[Mask], *, epsilon: float = 1e-8) -> list[Floats]:
    """Return the advantages with mean 0 and standard deviation 1 over all trained tokens; one token alone becomes 0."""
    flat = np.concatenate([a[m].astype(np.float64) for a, m in zip(advantages, masks, strict=True)])
    if flat.size == 0:
        return [a.copy() for a in advantages]
    mean, scale = flat.mean(), flat.std() + epsilon
    return [np.where(m, (a - mean) / scale, 0.0).astype(np.float32) for a, m in zip(advantages, masks, strict=True)]


class _Piece(NamedTuple):
    """The trained tokens of one generation."""

    generation: int
    row: int
    columns: NDArray[np.intp]


def _episodes(rows: Sequence[Row]) -> dict[UUID, list[_Piece]]:
    """Return where the trained tokens of each trace are, in time order. Traces without any are left out."""
    episodes: dict[UUID, list[_Piece]] = {}
    for index, row in enumerate(rows):
        for span in row.spans:
            columns = np.flatnonzero(row.mask[span.start : span.stop]) + span.start
            if len(columns):
                episodes.setdefault(row.trace, []).append(_Piece(span.generation, index, columns))
    if not episodes:
        raise InputError("no token of these rows trains: every mask is false")
    for pieces in episodes.values():
        pieces.sort(key=lambda piece: piece.generation)
    return episodes


def _check_sizes(rows: Sequence[Row], arrays: Sequence[Floats], name: str) -> None:
    sizes, found = [len(row.ids) for row in rows], [len(array) for array in arrays]
    if sizes != found:
        raise InputError(f"{name} must hold one array per row with the row's length; rows {sizes}, {name} {found}")


def _number(reward: float | None, trace: UUID) -> float:
    if reward is None or not np.isfinite(reward):
        raise RewardError(f"trace {trace} has the reward {reward}; score it, or leave its rows out of the batch")
    return reward


def _zeros(row: Row) -> Floats:
    return np.zeros(len(row.ids), dtype=np.float32)

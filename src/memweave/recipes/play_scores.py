"""What episodes of a text environment come to: shares that were won, with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Self

from memweave.metrics import hierarchical_bootstrap
from memweave.recipes.game import Episode, EpisodeStatus

Played = dict[str, list[list[Episode]]]
"""Level -> seed -> episodes, in order."""


@dataclass(frozen=True, kw_only=True)
class LevelResult:
    """The episodes of one level."""

    score: float
    """Share that was won, in [0, 1]."""
    low: float
    high: float
    """95 % bootstrap interval of the score: seeds, then episodes."""
    reward: float
    """Mean over episodes; BabyAI's is 1 - 0.9 x steps used / steps allowed for a win, else 0."""
    steps: float
    """Mean over episodes, those that were no action included."""
    invalid: int
    """Steps that were no action."""
    ended: Mapping[str, int]
    """How many episodes ended how, as in `EpisodeStatus`."""
    won: tuple[str, ...]
    """Per seed, one `1` or `0` per episode."""
    errors: tuple[str, ...]
    """What players failed with, each once."""

    @classmethod
    def of(cls, by_seed: Sequence[Sequence[Episode]]) -> Self:
        """Return what the episodes of a level come to, given by seed."""
        interval = hierarchical_bootstrap([[float(each.won) for each in episodes] for episodes in by_seed])
        every = [each for episodes in by_seed for each in episodes]
        ended = Counter(each.status for each in every)
        return cls(
            score=interval.mean,
            low=interval.low,
            high=interval.high,
            reward=fmean(each.reward for each in every),
            steps=fmean(each.steps for each in every),
            invalid=sum(each.invalid for each in every),
            ended={status.value: ended[status] for status in EpisodeStatus},
            won=tuple("".join(str(int(each.won)) for each in episodes) for episodes in by_seed),
            errors=tuple(dict.fromkeys(each.error for each in every if each.error is not None)),
        )


@dataclass(frozen=True, kw_only=True)
class PlayResult:
    """What an evaluation found."""

    world: str
    agent: str
    policy: str | None
    """Name of the model, where one plays."""
    policy_version: str | None
    """Hash of its weights, where they are known."""
    episodes: int
    """Of each level and seed."""
    seeds: int
    max_steps: int
    score: float
    """Mean of the levels' scores."""
    low: float
    high: float
    """Its 95 % bootstrap interval: seeds, then episodes; the levels are as they are."""
    levels: Mapping[str, LevelResult]
    run: str | None
    """Name of the run in the trace store, where there is one."""
    seconds: float

    @classmethod
    def of(
        cls,
        played: Played,
        *,
        world: str,
        agent: str,
        max_steps: int,
        seconds: float,
        policy: str | None = None,
        policy_version: str | None = None,
        run: str | None = None,
    ) -> Self:
        """Return what these episodes come to."""
        total = hierarchical_bootstrap(_over_levels(list(played.values())))
        one = next(iter(played.values()))
        return cls(
            world=world,
            agent=agent,
            policy=policy,
            policy_version=policy_version,
            episodes=len(one[0]),
            seeds=len(one),
            max_steps=max_steps,
            score=total.mean,
            low=total.low,
            high=total.high,
            levels={level: LevelResult.of(by_seed) for level, by_seed in played.items()},
            run=run,
            seconds=seconds,
        )

    def payload(self) -> dict[str, object]:
        """Return this as one JSON object."""
        return asdict(self)


def _over_levels(levels: Sequence[Sequence[Sequence[Episode]]]) -> list[list[float]]:
    """Return, per seed and number of the episode, the share of levels that won it.

    Its mean is the mean of the levels. Resampling it draws seeds and episodes, and keeps the levels, which are not a sample.
    """
    return [
        [fmean(each.won for each in same) for same in zip(*by_level, strict=True)]
        for by_level in zip(*levels, strict=True)
    ]

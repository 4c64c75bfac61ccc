"""`GymTextEnv`: any environment with gymnasium's interface in words, its own cap, and what is no action."""

from __future__ import annotations

from typing import Any

import pytest

from memweave.errors import InputError, SettingsError, UsageError
from memweave.worlds.text_env import GymTextEnv, Step, TextEnv


class Counter:
    """Counts up from the seed; five above it is the goal, one below it a pit."""

    def __init__(self, truncated_after: int = 1_000) -> None:
        self.taken: list[int] = []
        self._truncated_after = truncated_after

    def reset(self, *, seed: int) -> tuple[int, dict[str, Any]]:
        self.taken, self.start, self.at = [], seed, seed
        return seed, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.taken.append(action)
        self.at += action
        won, lost = self.at == self.start + 5, self.at < self.start
        return self.at, 0.5 * won - lost, won or lost, len(self.taken) >= self._truncated_after, {}


ACTIONS = {"go up": 1, "Go-Down": -1}


def made(env: Counter | None = None, **options: Any) -> GymTextEnv:
    return GymTextEnv(env or Counter(), ACTIONS, lambda seen, env: f"You are at {seen} of {env.start + 5}.", **options)


def test_it_is_a_text_env_with_the_names_that_are_understood() -> None:
    env = made()
    assert isinstance(env, TextEnv)
    assert env.actions == ("go up", "go down")


def test_the_task_stands_before_the_first_observation_only() -> None:
    env = made(task=lambda seen, env: f"Climb from {seen}.")
    assert env.reset(7) == "Climb from 7.\n\nYou are at 7 of 12."
    assert env.step("go up") == Step("You are at 8 of 12.")
    assert made().reset(7) == "You are at 7 of 12."


def test_names_are_read_leniently_and_reach_the_environment_as_its_own_actions() -> None:
    game = Counter()
    env = made(game)
    env.reset(0)
    for name in ("go up", " GO  UP ", "go_up", "Go-Up", "go_down"):
        assert env.step(name).ok
    assert game.taken == [1, 1, 1, 1, -1]


def test_reward_and_end_are_the_environments() -> None:
    env = made()
    env.reset(0)
    steps = [env.step("go up") for _ in range(5)]
    assert [(step.reward, step.done) for step in steps] == [(0.0, False)] * 4 + [(0.5, True)]
    assert not steps[-1].cut
    env.reset(3)
    assert env.step("go down") == Step("You are at 2 of 8.", -1.0, done=True)


def test_an_unknown_action_is_told_counted_and_costs_a_step_but_never_reaches_the_environment() -> None:
    game = Counter()
    env = made(game, max_steps=4)
    env.reset(0)
    step = env.step("fly")
    assert step == Step(
        "There is no action 'fly', so nothing happened. The actions are: go up, go down.", 0.0, done=False, ok=False
    )
    assert (game.taken, env.invalid) == ([], 1)
    env.step("go up")
    env.step("")
    last = env.step("x" * 1_000)
    assert (last.done, last.cut, last.ok) == (True, True, False)  # the fourth step
    assert len(last.text) < 200
    assert (game.taken, env.invalid) == ([1], 3)
    env.reset(0)
    assert env.invalid == 0


def test_the_cap_ends_an_episode_and_a_goal_at_the_cap_is_still_reached() -> None:
    env = made(max_steps=3)
    env.reset(0)
    assert [env.step("go up").done for _ in range(2)] == [False, False]
    assert env.step("go up") == Step("You are at 3 of 5.", done=True, cut=True)
    env = made(max_steps=5)
    env.reset(0)
    last = [env.step("go up") for _ in range(5)][-1]
    assert (last.done, last.cut, last.reward) == (True, False, 0.5)


def test_the_environments_own_limit_counts_too() -> None:
    env = made(Counter(truncated_after=2))
    env.reset(0)
    env.step("go up")
    assert env.step("go up") == Step("You are at 2 of 5.", done=True, cut=True)


def test_no_step_is_taken_outside_an_episode() -> None:
    game = Counter()
    env = made(game, max_steps=1)
    with pytest.raises(UsageError, match=r"no episode is open.*reset\(seed\)"):
        env.step("go up")
    env.reset(0)
    env.step("go up")
    with pytest.raises(UsageError, match="no episode is open"):
        env.step("go up")
    assert game.taken == [1]


def test_what_is_no_environment_is_refused() -> None:
    with pytest.raises(InputError, match="int cannot be played: it has no reset and no step"):
        GymTextEnv(3, ACTIONS, str)
    with pytest.raises(SettingsError, match="actions with different names"):
        GymTextEnv(Counter(), {}, lambda seen, env: "")
    with pytest.raises(SettingsError, match="actions with different names"):
        GymTextEnv(Counter(), {"go up": 1, "Go_Up": 2}, lambda seen, env: "")
    with pytest.raises(SettingsError, match="max_steps = 0"):
        made(max_steps=0)


def test_an_environment_of_the_old_interface_is_refused_by_name() -> None:
    class Old(Counter):
        def step(self, action: int) -> Any:
            return super().step(action)[:4]

    env = made(Old())
    env.reset(0)
    with pytest.raises(InputError, match=r"Old.step does not return \(observation, reward, terminated"):
        env.step("go up")

    class Older(Counter):
        def reset(self, *, seed: int) -> Any:
            return super().reset(seed=seed)[0]

    with pytest.raises(InputError, match=r"Older.reset does not return \(observation, info\)"):
        made(Older()).reset(0)

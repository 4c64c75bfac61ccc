"""Text environments: a task is told in words, and so is what every action leads to.

`TextEnv` is the seam that players know; `GymTextEnv` puts any environment with gymnasium's `reset` and `step` behind it.
This module does not know who plays, and needs no package of its own. docs/text-environments.md plugs one in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from memweave.errors import InputError, SettingsError, UsageError

MAX_STEPS: Final = 64
"""Steps of an episode where nothing else is said: as many as BabyAI's levels of one room allow."""


@dataclass(frozen=True)
class Step:
    """What one action led to."""

    text: str
    """What is seen now."""
    reward: float = 0.0
    """Of this step alone."""
    done: bool = False
    """Whether the episode is over; no action counts after that."""
    ok: bool = True
    """Whether the environment knows the action."""
    cut: bool = False
    """Whether it is over only because the steps are used up."""


@runtime_checkable
class TextEnv(Protocol):
    """An environment in words. One instance plays one episode at a time."""

    @property
    def actions(self) -> tuple[str, ...]:
        """Return the names of the actions that are understood."""

    def reset(self, seed: int) -> str:
        """Begin the episode that `seed` stands for; return its task and what is seen first."""

    def step(self, action: str) -> Step:
        """Do one action. What is no action changes nothing and costs a step."""


class GymTextEnv:
    """An environment with gymnasium's interface, in words.

    env: anything with `reset(seed=...) -> (observation, info)` and `step(action) -> (observation, reward, terminated,
    truncated, info)`.  actions: name -> what `env.step` takes.  describe: words for an observation; it gets the
    environment too.  task: words for what is to be done, put before the first observation.  max_steps: steps of an
    episode, those that were no action included; the environment may end it earlier.

    Raises `InputError` for an object that has no `reset` or `step`, `SettingsError` for no actions, two of one name, or
    a cap below 1.
    """

    def __init__(
        self,
        env: Any,
        actions: Mapping[str, Any],
        describe: Callable[[Any, Any], str],
        *,
        task: Callable[[Any, Any], str] | None = None,
        max_steps: int = MAX_STEPS,
    ) -> None:
        missing = [name for name in ("reset", "step") if not callable(getattr(env, name, None))]
        if missing:
            raise InputError(
                f"{type(env).__name__} cannot be played: it has no {' and no '.join(missing)}. Give an environment with "
                "gymnasium's reset(seed=...) and step(action)"
            )
        self._names = {plain(name): value for name, value in actions.items()}
        if not actions or len(self._names) < len(actions):
            raise SettingsError("an environment needs actions with different names, of at least one")
        if max_steps < 1:
            raise SettingsError(f"max_steps = {max_steps}: an episode has at least one step")
        self.env = env
        self.max_steps = max_steps
        self.invalid = 0
        """Steps of the episode that were no action."""
        self._describe = describe
        self._task = task
        self._steps: int | None = None  # None: no episode is open

    @property
    def actions(self) -> tuple[str, ...]:
        """Return the names of the actions, as they are shown."""
        return tuple(self._names)

    def reset(self, seed: int) -> str:
        """Begin an episode. Equal seeds begin equal ones, if the environment keeps gymnasium's word."""
        reply = self.env.reset(seed=seed)
        if not isinstance(reply, tuple) or len(reply) != 2:
            raise InputError(f"{self._who}.reset does not return (observation, info), as gymnasium's environments do")
        self._steps, self.invalid = 0, 0
        seen = self._describe(reply[0], self.env)
        return seen if self._task is None else f"{self._task(reply[0], self.env)}\n\n{seen}"

    def step(self, action: str) -> Step:
        """Do the action of this name, in whatever case; `_` and `-` are spaces. Raises `UsageError` outside an episode."""
        if self._steps is None:
            raise UsageError("no episode is open: it ended, or never began. Call reset(seed) first")
        self._steps += 1
        used_up = self._steps >= self.max_steps
        name = plain(action)
        if name not in self._names:
            self.invalid += 1
            step = Step(
                f"There is no action {shown(action)}, so nothing happened. The actions are: {', '.join(self.actions)}.",
                done=used_up, ok=False, cut=used_up,
            )  # fmt: skip
        else:
            step = self._stepped(self.env.step(self._names[name]), used_up)
        if step.done:
            self._steps = None
        return step

    def _stepped(self, reply: Any, used_up: bool) -> Step:
        if not isinstance(reply, tuple) or len(reply) != 5:
            raise InputError(
                f"{self._who}.step does not return (observation, reward, terminated, truncated, info), as gymnasium's "
                "environments do"
            )
        observation, reward, terminated, truncated, _ = reply
        over = bool(terminated or truncated or used_up)
        return Step(self._describe(observation, self.env), float(reward), over, cut=over and not terminated)

    @property
    def _who(self) -> str:
        return type(self.env).__name__


def plain(action: str) -> str:
    """Return the name of an action as it is compared."""
    return " ".join(action.lower().replace("_", " ").replace("-", " ").split())


def shown(action: str) -> str:
    """Return what was given for an action, in quotes, cut to what fits a line."""
    return repr(action if len(action) <= 40 else f"{action[:40]}...")

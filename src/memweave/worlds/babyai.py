"""BabyAI (Chevalier-Boisvert et al., arXiv 1810.08272) in words: missions in a grid of rooms, seen from inside.

The levels, the rules and the reference player are those of `minigrid`, an extra (`pip install 'memweave[babyai]'`) that is
imported when the first environment is made. The words are ours. An agent sees 7 x 7 cells: itself in the middle of the
nearest row, nothing behind it, nothing beyond a wall or a closed door.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Final

from memweave.errors import InputError, NotInstalledError, OperationError
from memweave.worlds.text_env import MAX_STEPS, GymTextEnv

ACTIONS: Final = {"turn left": 0, "turn right": 1, "go forward": 2, "pick up": 3, "drop": 4, "toggle": 5}
"""Name -> number in minigrid. Its seventh, `done`, does nothing in these levels: they end when the mission is fulfilled."""
LEVELS: Final = (
    "BabyAI-GoToObj-v0",
    "BabyAI-GoToLocal-v0",
    "BabyAI-PickupLoc-v0",
    "BabyAI-UnlockLocal-v0",
    "BabyAI-PutNextLocal-v0",
)
"""The levels that are played by default, from the easiest: one skill each, one room each (the key's level has doors)."""
DIRECTIONS: Final = ("east", "south", "west", "north")

# minigrid.core.constants, by number: what an observation is made of.
_KINDS: Final = ("unseen", "empty", "wall", "floor", "door", "key", "ball", "box", "goal", "lava", "agent")
_COLORS: Final = ("red", "green", "blue", "purple", "yellow", "grey")
_DOORS: Final = ("open", "closed", "locked")
_PASSED_OVER: Final = frozenset({"unseen", "empty", "wall", "floor", "agent"})

RULES: Final = (
    "Go forward moves you one cell, unless something is in the way. Pick up, drop and toggle act on the cell in front of you: "
    "you carry one object at most; toggle opens and closes a door, a locked one only while you carry the key of its color, and "
    "it opens a box for good. To go to an object is to stand next to it and face it. The episode ends when the mission is done."
)
_PLAN: Final = 1_000
"""Subgoals that the reference player may make before one action. It needs a few dozen; when it contradicts itself it never
ends, and there is no other way to stop it."""


class BabyAIEnv(GymTextEnv):
    """One BabyAI level in words.

    level: an id that minigrid registers, such as `BabyAI-GoToObj-v0`, or its middle part alone.  max_steps: as in
    `GymTextEnv`; the level may allow fewer.  rules: whether the task tells `RULES`, or somebody else does.

    Raises `NotInstalledError` without minigrid, `InputError` for a level that it does not have.
    """

    def __init__(self, level: str, *, max_steps: int = MAX_STEPS, rules: bool = True) -> None:
        self.level = level_id(level)
        env = _gymnasium().make(self.level, disable_env_checker=True)
        super().__init__(env, ACTIONS, _Words(), task=_task if rules else _mission, max_steps=max_steps)

    def bot(self) -> Bot:
        """Return a reference player for the episode that has just begun."""
        return Bot(self)


class Bot:
    """BabyAI's own reference player. It plans on the state of the environment, never on words."""

    def __init__(self, env: BabyAIEnv) -> None:
        from minigrid.utils.baby_ai_bot import BabyAIBot

        make: Any = BabyAIBot
        self._level = env.level
        self._names = {number: name for name, number in ACTIONS.items()}
        with _at_a_loss(self._level):
            self._bot = make(env.env)
        self._plan = _Plan(self._bot.stack)
        self._bot.stack = self._plan

    def action(self) -> str | None:
        """Return what to do next, after the action before was done; `None` when it thinks that nothing is left.

        Raises `OperationError` when it finds no plan: there are levels that it does not know, and some where it errs.
        """
        self._plan.pushed = 0
        with _at_a_loss(self._level):
            return self._names.get(int(self._bot.replan()))


def level_ids() -> list[str]:
    """Return the levels that minigrid has, sorted. Raises `NotInstalledError`."""
    return sorted(name for name in _gymnasium().registry if name.startswith("BabyAI-"))


def level_id(level: str) -> str:
    """Return the id of a level that is given by its id, or without `BabyAI-` and version. Raises `InputError`."""
    known = level_ids()
    short = {name.removeprefix("BabyAI-").rpartition("-")[0].lower(): name for name in known}
    if level in known:
        return level
    if level.lower() in short:
        return short[level.lower()]
    near = get_close_matches(level, known, n=3, cutoff=0.5)
    hint = f"Near it: {', '.join(near)}" if near else f"For example: {', '.join(LEVELS)}"
    raise InputError(f"BabyAI has no level {level!r} among its {len(known)}. {hint}")


def describe(image: Any, direction: int) -> str:
    """Return a view in words.

    image: (7, 7, 3) integers, minigrid's observation: column from left to right, row from far to near, then kind, color
    and state. The agent stands in the middle of the last row; what it carries is shown at its place.  direction: 0 to 3.
    """
    width, depth = len(image), len(image[0])
    middle, here = width // 2, depth - 1
    carried = _thing(image[middle][here])
    lines = [f"You face {DIRECTIONS[int(direction)]}. You carry {carried or 'nothing'}."]
    seen = []
    for column in range(width):
        for row in range(depth):
            ahead, aside = here - row, column - middle  # steps; aside is negative on the left
            thing = _thing(image[column][row])
            if thing and (ahead or aside):
                seen.append((ahead + abs(aside), ahead, aside, thing))
    lines += [f"{_capital(thing)} is {_place(ahead, aside)}." for _, ahead, aside, thing in sorted(seen)]
    if not seen:
        lines.append("You see no objects.")
    lines += [f"A wall is {place}." for place in _walls(image, middle, here)]
    return " ".join(lines)


def _thing(cell: Any) -> str:
    """Return an object with its article; nothing for a cell without one."""
    kind, color, state = (int(value) for value in cell)
    if _KINDS[kind] in _PASSED_OVER:
        return ""
    name = f"{_COLORS[color]} {_KINDS[kind]}"
    if _KINDS[kind] == "door":
        name = f"{_DOORS[state]} {name}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _place(ahead: int, aside: int) -> str:
    side = "left" if aside < 0 else "right"
    if not aside:
        return "right in front of you" if ahead == 1 else f"{ahead} steps ahead"
    if not ahead:
        return f"{_steps(abs(aside))} to the {side}"
    return f"{_steps(ahead)} ahead and {abs(aside)} to the {side}"


def _steps(number: int) -> str:
    return "1 step" if number == 1 else f"{number} steps"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _walls(image: Any, middle: int, here: int) -> Iterator[str]:
    """Yield where the nearest wall is: straight ahead, to the left, to the right."""
    lines: Sequence[tuple[int, int]] = ((1, 0), (0, -1), (0, 1))
    for ahead, aside in lines:
        reach = here if ahead else middle
        for far in range(1, reach + 1):
            if _KINDS[int(image[middle + far * aside][here - far * ahead][0])] == "wall":
                yield _place(far * ahead, far * aside)
                break


class _Words:
    """Words for observations; says so when an action had no effect, which a player cannot always see."""

    def __init__(self) -> None:
        self._before = ""

    def __call__(self, observation: Any, env: Any) -> str:
        state = str(env.unwrapped.hash())
        still = env.unwrapped.step_count > 0 and state == self._before
        self._before = state
        return ("Nothing happened. " if still else "") + describe(
            observation["image"].tolist(), observation["direction"]
        )


def _mission(observation: Any, env: Any) -> str:
    return f"Your mission: {observation['mission']}."


def _task(observation: Any, env: Any) -> str:
    return f"{_mission(observation, env)} {RULES}"


class _Plan(list[Any]):
    """The stack of the reference player's subgoals, which cannot go on for ever."""

    pushed = 0

    def append(self, item: Any, /) -> None:
        self.pushed += 1
        if self.pushed > _PLAN:
            raise RecursionError("its plan goes round in circles")
        super().append(item)


@contextmanager
def _at_a_loss(level: str) -> Iterator[None]:
    """Turn what the reference player fails with (it asserts what it takes for granted) into an `OperationError`."""
    try:
        yield
    except Exception as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise OperationError(f"the bot finds no way through {level} ({said}). Choose another level") from error


def _gymnasium() -> Any:
    """Return gymnasium with BabyAI's levels. Raises `NotInstalledError`."""
    try:
        import gymnasium
        import minigrid.envs.babyai.core.roomgrid_level as levels
    except ModuleNotFoundError as error:
        raise NotInstalledError(
            f"BabyAI needs the package {error.name!r}. Install it: pip install 'memweave[babyai]'"
        ) from error
    # A level that has to be drawn again says so on standard output, which belongs to the caller.
    vars(levels)["print"] = _unsaid
    return gymnasium


def _unsaid(*words: object) -> None:
    return None

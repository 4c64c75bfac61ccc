"""Recipes that train something else than a policy on episodes: a name, arms, the options that they take, and one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from memweave.errors import SettingsError, UsageError


@dataclass(frozen=True, kw_only=True)
class OwnRun:
    """What one run is asked for. An option that was not given is `None`: the recipe has its own value."""

    out: Path
    """Folder of what is made; it exists."""
    arm: str
    seed: int = 0
    data: Path | None = None
    """A file or a folder of the user's."""
    steps: int | None = None
    tasks: int | None = None
    group_size: int | None = None
    learning_rate: float | None = None
    temperature: float | None = None
    base: Path | None = None
    resume: bool = False
    """Go on with the run in `out`, if the recipe can."""
    say: Callable[[str], object] = lambda line: None
    """Gets a line now and then."""


class OwnResult(Protocol):
    """What came of a run."""

    def payload(self) -> dict[str, JsonValue]:
        """Return it as one JSON object."""

    def lines(self) -> list[str]:
        """Return it for a person to read."""


@dataclass(frozen=True)
class OwnRecipe:
    """A recipe that runs on its own."""

    name: str
    summary: str
    arms: tuple[str, ...]
    """The first is the default."""
    takes: Mapping[str, str]
    """Options of `memweave train` that mean something here -> what they mean."""
    needs: tuple[str, ...]
    """Those of them that have to be given."""
    run: Callable[[OwnRun], OwnResult]

    def check(self, arm: str, given: Mapping[str, object]) -> None:
        """Raise `SettingsError` for an unknown arm, `UsageError` for an option that means nothing here or one that is missing.

        given: option -> value, `None` when it was not given.
        """
        if arm not in self.arms:
            raise SettingsError(f"recipe {self.name} has no arm {arm!r}. There are: {', '.join(self.arms)}")
        for name, value in given.items():
            if value not in (None, False) and name not in self.takes:
                known = ", ".join(f"--{each}" for each in self.takes)
                raise UsageError(f"--{name} means nothing to {self.name}. It takes {known}")
        for name in self.needs:
            if given.get(name) is None:
                raise UsageError(f"{self.name} needs --{name}: {self.takes[name]}")

"""The demo's last part: a small policy learns to manage memory, here and now, and is compared with what does not learn.

Everything runs through the recipe `memory-r1-manager`, as `memweave train` does, for a few steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

STEPS: Final = 20
DIALOGUES: Final = 6
SEED: Final = 0
NEEDED: Final = ("torch", "trl", "peft", "accelerate", "datasets")


@dataclass(frozen=True)
class Learner:
    """A manager and how it does on dialogues that were not trained on."""

    name: str
    exact_match: float
    """0..1"""
    memories: float
    """Per dialogue, mean."""


@dataclass(frozen=True)
class LearningStory:
    """What a short training did."""

    managers: tuple[Learner, ...]
    """Before, after, and what does not learn; all with the same answerer."""
    rewards: tuple[float, ...]
    """Mean reward of each step."""
    dialogues: int
    questions: int
    episodes: int
    seconds: float
    """Of the training alone."""

    @property
    def before(self) -> float:
        """Return the exact match before."""
        return self.managers[0].exact_match

    @property
    def after(self) -> float:
        """Return the exact match after."""
        return self.managers[1].exact_match


def missing() -> list[str]:
    """Return the packages that training needs and that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def learn(tell: Callable[[str], object]) -> LearningStory:
    """Train the manager for a few steps in this process, and ask before and after. tell: gets a line now and then."""
    from memweave.recipes import Place, find_recipe
    from memweave.recipes.memory_r1.evaluation import evaluate_world
    from memweave.recipes.running import DIALOG_BASE, run_recipe

    recipe = find_recipe("memory-r1-manager")
    settings = recipe.settings.changed(steps=STEPS, seed=SEED, eval_tasks=1, test_size=0, save_every=STEPS)
    with TemporaryDirectory(prefix="memweave-learning-") as folder:
        out = Path(folder) / "run"
        tell(f"{STEPS} steps of {settings.tasks_per_step} tasks x {settings.group_size} episodes")
        began = time.perf_counter()
        result = run_recipe(recipe, settings, Place(out=out, base=DIALOG_BASE, quiet=True))
        seconds = time.perf_counter() - began
        managers = {
            "base policy": "base",
            f"after {STEPS} steps": str(result.policy),
            "rules, exact key": "exact-key",
            "adds everything": "always-add",
            "perfect": "oracle",
        }
        found = []
        for name, manager in managers.items():
            tell(f"asking about {DIALOGUES} dialogues: {name}")
            asked = evaluate_world(manager, number=DIALOGUES, split="val", base=DIALOG_BASE)
            budget = next(iter(asked.budgets.values()))
            found.append(Learner(name, budget.score, budget.bank_size))
    return LearningStory(
        managers=tuple(found),
        rewards=_known(result.rewards),
        dialogues=DIALOGUES,
        questions=asked.questions,
        episodes=result.episodes,
        seconds=seconds,
    )


def _known(rewards: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(reward for reward in rewards if reward is not None)

"""Training runs with a name: `memweave train RECIPE`.

A recipe is a world with a known answer, a graph, a reward and settings that fit together. Each has arms: the runs that its
claim compares, controls among them.
"""

from __future__ import annotations

from difflib import get_close_matches

from memweave.errors import SettingsError
from memweave.recipes.own import OwnRecipe, OwnRun
from memweave.recipes.recipe import Place, Recipe, RecipeResult, TrainSettings

__all__ = [
    "OwnRecipe",
    "OwnRun",
    "Place",
    "Recipe",
    "RecipeResult",
    "TrainSettings",
    "find_recipe",
    "own_recipes",
    "recipes",
]


def recipes() -> dict[str, Recipe]:
    """Return all recipes by name."""
    from memweave.recipes.agemem.training import AGEMEM, AGEMEM_ANSWER_ONLY, AGEMEM_RAG
    from memweave.recipes.graph_memory.grpo import GRAPH_MEMORY_GRPO
    from memweave.recipes.memory_r1.training import MEMORY_R1_ANSWERER, MEMORY_R1_MANAGER
    from memweave.recipes.token_class import TOKEN_CLASS
    from memweave.recipes.two_node import TWO_NODE

    of_agemem = (AGEMEM, AGEMEM_ANSWER_ONLY, AGEMEM_RAG)
    known = (TOKEN_CLASS, TWO_NODE, MEMORY_R1_MANAGER, MEMORY_R1_ANSWERER, *of_agemem, GRAPH_MEMORY_GRPO)
    return {recipe.name: recipe for recipe in known}


def own_recipes() -> dict[str, OwnRecipe]:
    """Return the recipes that train something else than a policy on episodes, by name."""
    from memweave.recipes.graph_memory.training import GRAPH_MEMORY_BUILD, GRAPH_MEMORY_WEIGHTS
    from memweave.recipes.memento.offline import MEMENTO_Q_OFFLINE
    from memweave.recipes.memento.training import MEMENTO_Q

    known = (MEMENTO_Q, MEMENTO_Q_OFFLINE, GRAPH_MEMORY_BUILD, GRAPH_MEMORY_WEIGHTS)
    return {recipe.name: recipe for recipe in known}


def find_recipe(name: str) -> Recipe:
    """Return the recipe called `name`. Raises `SettingsError` with near matches when there is none."""
    recipes_ = recipes()
    if name in recipes_:
        return recipes_[name]
    if name in own_recipes():
        raise SettingsError(f"{name} runs on its own: own_recipes()[{name!r}].run(...), or memweave train {name}")
    known = [*recipes_, *own_recipes()]
    near = get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(sorted(known))}"
    raise SettingsError(f"there is no recipe {name!r}. {hint}")

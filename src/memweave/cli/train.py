"""`memweave train RECIPE`: train a policy from traces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memweave.cli import render
from memweave.cli.common import AsJson, Home
from memweave.errors import NotInstalledError, UsageError

if TYPE_CHECKING:
    from memweave.recipes import RecipeResult


def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Which run; --list shows them.", show_default=False)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the recipes and their arms.")] = False,
    arm: Annotated[str | None, typer.Option("--arm", help="Which arm of the recipe.  [default: its first]")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of sampling and of the adapter.")] = None,
    group_size: Annotated[int | None, typer.Option("--group-size", min=2, help="Episodes per task.")] = None,
    tasks: Annotated[int | None, typer.Option("--tasks", min=1, help="Tasks per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", min=0.0, help="Of AdamW.")] = None,
    policy_server: Annotated[
        str | None,
        typer.Option(
            "--policy-server", metavar="URL", help="A vLLM server (memweave serve).  [default: in this process]"
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option("--base", metavar="FOLDER", help="Base policy.  [default: a tiny one, in the data folder]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where the run goes.  [default: runs/RECIPE-ARM-sSEED]"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Train a policy from traces: sample episodes, credit them, update, publish, repeat.

    The folder of the run holds checkpoints, traces.db (see `memweave traces`), log.jsonl, curves.png and the trained policy.
    """
    from memweave.recipes import Place, find_recipe, recipes

    if list_:
        _show_list(as_json)
        return
    if recipe is None:
        raise UsageError(f"name a recipe: {', '.join(sorted(recipes()))}. See: memweave train --list")
    from memweave.config import Settings

    chosen = find_recipe(recipe)
    settings = chosen.settings.changed(
        steps=steps, seed=seed, group_size=group_size, tasks_per_step=tasks, learning_rate=learning_rate
    )
    name = arm or next(iter(chosen.arms))
    chosen.credit(name, settings.seed)  # an unknown arm is refused before anything is made
    folder = out or Path("runs") / f"{chosen.name}-{name}-s{settings.seed}"
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise UsageError(f"{folder} holds a run already. Go on with --resume, or choose another --out")
    need_training()
    from memweave.recipes.running import run_recipe

    data = Settings.load(home=home).home
    place = Place(
        out=folder,
        base=base or data / "policies" / "tiny",
        server_url=policy_server,
        resume=resume,
        quiet=as_json,
    )
    result = run_recipe(chosen, settings, place, arm=name)
    if as_json:
        render.emit(result.payload())
    else:
        _show(result, folder)


def need_training() -> None:
    """Raise `NotInstalledError` unless what training needs is installed."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "trl", "peft", "accelerate", "datasets") if find_spec(name) is None]
    if missing:
        raise NotInstalledError(
            f"training needs {', '.join(missing)}. Install memweave with the extra: pip install 'memweave[train]'"
        )


def _show_list(as_json: bool) -> None:
    from memweave.recipes import recipes

    if as_json:
        render.emit(
            {"recipes": [{"name": r.name, "summary": r.summary, "arms": list(r.arms)} for r in recipes().values()]}
        )
        return
    for each in recipes().values():
        typer.echo(f"{each.name:<14} {each.summary}\n{'':<14} arms: {', '.join(each.arms)}")


def _show(result: RecipeResult, folder: Path) -> None:
    typer.echo(
        f"{result.recipe} ({result.arm}, seed {result.seed}): mean reward {result.start:.3f} -> {result.end:.3f} in "
        f"{result.steps} steps, {result.episodes} episodes, {result.generated_tokens:,} tokens, {result.seconds:.0f} s"
    )
    if result.excluded:
        typer.echo(f"{result.excluded} episodes had no score: memweave traces doctor --store {folder / 'traces.db'}")
    typer.echo(f"policy {result.policy_version}: {result.policy}")
    typer.echo(f"curves: {folder / 'checkpoints' / 'curves.png'}")

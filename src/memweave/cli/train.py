"""`memweave train RECIPE`: train a policy from traces."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memweave.cli import render
from memweave.cli.common import AsJson, Home
from memweave.errors import NotInstalledError, UsageError
from memweave.recipes.recipe import RUN_FILE, TRACES
from memweave.recipes.run_file import LOCK, held

if TYPE_CHECKING:
    from memweave.recipes import OwnRecipe, RecipeResult


def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Which run; --list shows them.", show_default=False)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the recipes, their arms and their settings.")] = False,
    arm: Annotated[
        str | None, typer.Option("--arm", metavar="ARM", help="Which arm of the recipe.  [default: its first]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, metavar="N", help="Optimiser steps.  [default: the recipe's]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, metavar="N", help="Of sampling and of the adapter.  [default: 0]")
    ] = None,
    tasks: Annotated[
        int | None, typer.Option("--tasks", min=1, metavar="N", help="Tasks per step.  [default: the recipe's]")
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option("--group-size", min=1, metavar="N", help="Episodes per task.  [default: the recipe's]"),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", metavar="RATE", help="Of AdamW.  [default: the recipe's]")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", metavar="T", help="Of sampling and of the loss.  [default: the recipe's]"),
    ] = None,
    policy_server: Annotated[
        str | None,
        typer.Option(
            "--policy-server", metavar="URL", help="A vLLM server (memweave serve).  [default: in this process]"
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option("--base", metavar="FOLDER", help="Base policy.  [default: the recipe's own]"),
    ] = None,
    partner: Annotated[
        Path | None,
        typer.Option(
            "--partner", metavar="FOLDER", help="Policy of the role that is not trained.  [default: the base policy]"
        ),
    ] = None,
    test_size: Annotated[
        int | None,
        typer.Option("--test-size", min=0, metavar="N", help="Tasks of the final test; 0: none.  [default: all]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where the run goes.  [default: runs/RECIPE-ARM-sSEED]"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Rows of your own, for recipes that learn from a file; for graph memory, the folder of a graph.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in that folder, from its last checkpoint.")
    ] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Train a policy from traces: sample episodes, credit them, update, publish, repeat.

    The folder of the run gets the trained policy (policy/), every episode (traces.db, see `memweave traces`), and
    checkpoints/ with log.jsonl and curves.png. Ctrl-C stops a run; --resume goes on with it. A policy server is sent the
    key in MEMWEAVE_MODEL_API_KEY, if set.
    """
    from memweave.config import Settings
    from memweave.recipes import Place, find_recipe, own_recipes, recipes

    if list_:
        _show_list(as_json)
        return
    if recipe is None:
        raise UsageError(
            f"name a recipe: {', '.join(sorted([*recipes(), *own_recipes()]))}. See: memweave train --list"
        )
    if (own := own_recipes().get(recipe)) is not None:
        given = {
            "data": data,
            "steps": steps,
            "tasks": tasks,
            "group-size": group_size,
            "learning-rate": learning_rate,
            "temperature": temperature,
            "base": base,
            "resume": resume,
        }
        others = {"policy-server": policy_server, "partner": partner, "test-size": test_size}
        own.check(arm or own.arms[0], {**given, **others})
        _run_own(own, arm or own.arms[0], seed or 0, out, given, as_json=as_json)
        return
    chosen = find_recipe(recipe)
    if data is not None and not chosen.takes_data:
        takers = [name for name, own in own_recipes().items() if "data" in own.takes]
        takers += [name for name, each in recipes().items() if each.takes_data]
        raise UsageError(f"--data means nothing to {recipe}. It is for: {', '.join(takers)}")
    settings = chosen.settings.changed(
        steps=steps,
        seed=seed,
        group_size=group_size,
        tasks_per_step=tasks,
        learning_rate=learning_rate,
        temperature=temperature,
        test_size=test_size,
    )
    name = arm or next(iter(chosen.arms))
    chosen.arm(name)  # an unknown arm is refused before anything is made
    folder = out or Path("runs") / f"{chosen.name}-{name}-s{settings.seed}"
    _check_folder(folder, resume=resume)
    need_training()
    from memweave.recipes.running import default_base, ensure_base, run_recipe

    known = Settings.load(home=home)
    if base is None:  # only the tiny default is made; a name that was mistyped is an error
        base = default_base(known.home, chosen)
        if chosen.base == "tiny":
            ensure_base(base)
    place = Place(
        out=folder,
        base=base,
        partner=partner,
        data=data,
        server_url=policy_server,
        api_key=known.model_api_key,
        resume=resume,
        quiet=as_json,
        say=(lambda line: None) if as_json else render.note,
    )
    try:
        result = run_recipe(chosen, settings, place, arm=name)
    except KeyboardInterrupt:
        if folder.exists():
            render.note(f"what was done is in {folder}; the same command with --resume goes on with it")
        raise
    if as_json:
        render.emit(result.payload())
    else:
        _show(result, folder)


def _run_own(recipe: OwnRecipe, arm: str, seed: int, out: Path | None, given: dict[str, Any], *, as_json: bool) -> None:
    """Run a recipe that trains something else than a policy on episodes."""
    from memweave.recipes import OwnRun

    folder = out or Path("runs") / f"{recipe.name}-{arm}-s{seed}"
    _check_folder(folder, resume=bool(given["resume"]))
    need_training()
    folder.mkdir(parents=True, exist_ok=True)
    options = {name.replace("-", "_"): value for name, value in given.items()}
    say = (lambda line: None) if as_json else render.note
    try:
        with held(folder):
            result = recipe.run(OwnRun(out=folder, arm=arm, seed=seed, say=say, **options))
    except BaseException:
        with suppress(OSError):  # a run that made nothing leaves nothing
            folder.rmdir()
        raise
    if as_json:
        render.emit({"recipe": recipe.name, "arm": arm, "seed": seed, **result.payload()})
    else:
        for line in [f"{recipe.name} ({arm}, seed {seed})", *result.lines()]:
            typer.echo(line)


def _check_folder(folder: Path, *, resume: bool) -> None:
    """Raise `UsageError` for a folder in use, or for one without a run to go on with."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. Name a folder with --out")
    used = folder.exists() and any(each.name != LOCK for each in folder.iterdir())
    if used and not resume:
        raise UsageError(f"{folder} is not empty. Go on with its run (--resume), or choose another --out")
    if resume and not any((folder / name).exists() for name in (RUN_FILE, TRACES)):
        raise UsageError(f"{folder} holds no run to go on with. Start it without --resume")


def need_training() -> None:
    """Raise `NotInstalledError` unless what training needs is installed."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "trl", "peft", "accelerate", "datasets") if find_spec(name) is None]
    if missing:
        raise NotInstalledError(
            f"training needs {', '.join(missing)}. Install memweave with the extra: pip install 'memweave[train]'"
        )


def _show_list(as_json: bool) -> None:
    from memweave.recipes import own_recipes, recipes

    if as_json:
        render.emit(
            {
                "recipes": [
                    {"name": r.name, "summary": r.summary, "arms": list(r.arms), "settings": asdict(r.settings)}
                    for r in recipes().values()
                ],
                "own": [
                    {"name": r.name, "summary": r.summary, "arms": list(r.arms), "takes": dict(r.takes)}
                    for r in own_recipes().values()
                ],
            }
        )
        return
    wide = max(map(len, [*recipes(), *own_recipes()]))
    for each in recipes().values():
        has = each.settings
        typer.echo(f"{each.name:<{wide}} {each.summary}\n{'':<{wide}} arms: {', '.join(each.arms)}")
        typer.echo(
            f"{'':<{wide}} {has.steps} steps of {has.tasks_per_step} tasks x {has.group_size} episodes, learning rate "
            f"{has.learning_rate:g}, temperature {has.temperature:g}"
        )
    for own in own_recipes().values():
        typer.echo(f"{own.name:<{wide}} {own.summary}\n{'':<{wide}} arms: {', '.join(own.arms)}")
        typer.echo(f"{'':<{wide}} takes {', '.join(f'--{name} ({what})' for name, what in own.takes.items())}")


def _show(result: RecipeResult, folder: Path) -> None:
    name = f"{result.recipe} ({result.arm}, seed {result.seed})"
    if result.start is None or result.end is None:
        typer.echo(f"{name}: {render.count(result.steps, 'step')} of imitation, {result.seconds:.0f} s")
    else:
        typer.echo(
            f"{name}: mean reward {result.start:.3f} -> {result.end:.3f} in {result.steps} steps, "
            f"{result.episodes} episodes, {result.generated_tokens:,} tokens, {result.seconds:.0f} s"
        )
    if result.excluded:
        typer.echo(f"{result.excluded} episodes had no score: memweave traces doctor --store {folder / TRACES}")
    for cell, found in result.test.items():
        if isinstance(found, dict) and isinstance(score := found.get("score"), float):
            typer.echo(f"test {cell}: {score:.3f}")
    typer.echo(f"policy {result.policy_version}: {result.policy}")
    if result.start is None:
        return
    typer.echo(f"curves: {folder / 'checkpoints' / 'curves.png'}")
    typer.echo(f"episodes: memweave traces list --store {folder / TRACES}")

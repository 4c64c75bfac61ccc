"""`memweave eval world babyai-strategies`: what graph memory's advice is worth in BabyAI, trained or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memweave.cli import render
from memweave.cli.common import AsJson
from memweave.cli.eval import progress_bar

if TYPE_CHECKING:
    from memweave.recipes.babyai_strategies.study import StudyResult


def babyai_strategies(
    policy: Annotated[
        str | None,
        typer.Option("--policy", metavar="SPEC", help="A model that plays.  [default: a script that reads advice]"),
    ] = None,
    level: Annotated[
        list[str] | None,
        typer.Option(
            "--level",
            metavar="L",
            help="A level, e.g. PickupLoc (may be repeated).  [default: five, where things are hidden]",
        ),
    ] = None,
    advice: Annotated[
        list[str] | None,
        typer.Option(
            "--advice",
            metavar="A",
            help="random, similarity, uniform or trained (may be repeated); no advice is always played.  [default: all]",
        ),
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option(
            "--k", metavar="K", min=1, help="Strategies that are shown (may be repeated).  [default: 1 and 3]"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="Times that all is done anew.")] = 3,
    build: Annotated[
        int, typer.Option("--build", metavar="N", min=1, help="Missions to build from, of each level.")
    ] = 10,
    samples: Annotated[int, typer.Option("--samples", metavar="N", min=1, help="Rollouts of each of them.")] = 4,
    train: Annotated[
        int, typer.Option("--train", metavar="N", min=1, help="Missions to train the weights on, of each level.")
    ] = 30,
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", min=1, help="Times that each is tried.")] = 1,
    test: Annotated[
        int, typer.Option("--test", metavar="N", min=1, help="Missions that are measured, of each level.")
    ] = 10,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="Actions of an episode.")] = 40,
    learning_rate: Annotated[float, typer.Option("--learning-rate", metavar="A", help="Of the weights.")] = 0.1,
    compliance: Annotated[
        float,
        typer.Option(
            "--compliance", metavar="P", min=0.0, max=1.0, help="How often the script heeds a piece of advice."
        ),
    ] = 0.7,
    as_json: AsJson = False,
) -> None:
    """Build a graph of strategies from missions of BabyAI, train its weights on others, and measure its advice on others again.

    The score is the share of missions that were fulfilled. A model is local:FOLDER, vllm:NAME@URL, openai:NAME or openai:NAME@URL.
    """
    from memweave.config import Settings
    from memweave.models import chat_model
    from memweave.recipes.babyai_strategies.missions import LEVELS
    from memweave.recipes.babyai_strategies.study import ARMS, StudySettings, run_study

    settings = StudySettings(
        levels=tuple(level or LEVELS), seeds=seeds, build=build, samples=samples, train=train, epochs=epochs, test=test,
        k=tuple(k or (1, 3)), arms=tuple(advice or ARMS), steps=steps, learning_rate=learning_rate, compliance=compliance,
    )  # fmt: skip
    model = None if policy is None else chat_model(policy, api_key=Settings.load().model_api_key)
    with progress_bar() as report:
        found = run_study(settings, model, report=report)
    if as_json:
        render.emit(found.payload())
    else:
        show(found)


def show(found: StudyResult) -> None:
    """Print a line per kind of advice, the differences, and what was built."""
    out, given = render.out(), found.settings
    out.print(
        f"BabyAI, {render.count(given.seeds, 'seed')}: a graph from {render.count(given.build, 'mission')} of each level, "
        f"weights from {given.train}, measured on {given.test} others. Played by {render.safe(found.policy)}."
    )
    out.print()
    columns = ("fulfilled", "95 % interval", *given.levels)
    made = render.table("advice", *columns, right=columns)
    for name, arm in found.arms.items():
        interval = f"{_percent(arm.low)} - {_percent(arm.high)}"
        render.row(made, name, _percent(arm.score), interval, *map(_percent, arm.levels.values()))
    out.print(made)
    out.print()
    gains = render.table("difference", "points", "95 % interval", right=("points", "95 % interval"))
    for name, gain in found.gains.items():
        render.row(gains, name, f"{100 * gain.mean:+.1f}", f"{100 * gain.low:+.1f} - {100 * gain.high:+.1f}")
    out.print(gains)
    out.print()
    for number, seed in enumerate(found.seeds):
        out.print(
            f"Seed {number}: {seed.paths} paths, {render.count(len(seed.strategies), 'strategy')}, "
            f"{render.count(seed.pairs, 'pair')} of rollouts, of which {seed.moved} moved the weights.",
            style="dim",
        )
    out.print(
        f"In percent; intervals are bootstraps over seeds and missions, differences are paired. {found.seconds:.1f} s.",
        style="dim",
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"

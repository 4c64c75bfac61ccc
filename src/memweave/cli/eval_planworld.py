"""`memweave eval world planworld`: what showing cases to a frozen planner is worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from memweave.cli import render
from memweave.cli.common import AsJson
from memweave.cli.eval import progress_bar
from memweave.errors import SettingsError

if TYPE_CHECKING:
    from memweave.recipes.memento.evaluation import PlanWorldResult
    from memweave.worlds.planworld import Split


def planworld(
    agent: Annotated[
        str,
        typer.Option(
            "--agent",
            metavar="A",
            help="Which cases are shown: none, random-k, cosine, neural-q, neural-q-loo, kernel, episodic, soft-q; controls: oracle, "
            "shuffled, successes, retries; an extension: mu-grpo.",
        ),
    ] = "cosine",
    policy: Annotated[
        str, typer.Option("--policy", metavar="P", help="Who plans: base, script, a policy's folder, or a model.")
    ] = "base",
    episodes: Annotated[int, typer.Option("--episodes", min=1, metavar="N", help="Tasks of each iteration.")] = 300,
    iterations: Annotated[int, typer.Option("--iterations", min=1, metavar="N", help="Iterations.")] = 5,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, metavar="N", help="Streams, each with families of its own.")
    ] = 1,
    first_seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="The first seed.")] = 0,
    k: Annotated[int, typer.Option("--k", min=0, metavar="K", help="Cases that are shown.")] = 4,
    alignment: Annotated[
        float,
        typer.Option("--alignment", min=0.0, max=1.0, metavar="L", help="Share of a text's words that say what to do."),
    ] = 0.7,
    split: Annotated[str, typer.Option("--split", metavar="SPLIT", help="val or test.")] = "test",
    repeated: Annotated[
        bool,
        typer.Option("--repeated", help="The same tasks in every iteration, as in the paper; fresh ones otherwise."),
    ] = False,
    unseen: Annotated[
        int,
        typer.Option("--unseen", min=0, metavar="N", help="Tasks of unseen families at the end, on the bank as it is."),
    ] = 0,
    temperature: Annotated[float, typer.Option("--temperature", metavar="T", min=0.0, help="Of the planner.")] = 1.0,
    base: Annotated[
        Path | None, typer.Option("--base", metavar="FOLDER", help="Planner.  [default: the one that knows PlanWorld]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let a frozen planner work on a stream of tasks, and remember what worked.

    Every finished task becomes a case. Nothing but the cases that are shown changes from task to task. A model is local:FOLDER,
    vllm:NAME@URL, openai:NAME or openai:NAME@URL.
    """
    if split not in ("val", "test"):
        raise SettingsError(f"--split {split!r} is not known; choose val or test (and --unseen N for other families)")
    from memweave.config import Settings
    from memweave.recipes.memento.evaluation import evaluate_planworld
    from memweave.recipes.memento.stream import StreamSettings
    from memweave.recipes.running import PLANWORLD_BASE
    from memweave.worlds.planworld import PlanWorldSettings

    mode: Literal["fresh", "repeated"] = "repeated" if repeated else "fresh"
    settings = StreamSettings(
        arm=agent,
        iterations=iterations,
        tasks=episodes,
        k=k,
        seed=first_seed,
        world=PlanWorldSettings(alignment=alignment),
        split=cast("Split", split),
        mode=mode,
        unseen=unseen,
    )
    with progress_bar() as report:
        found = evaluate_planworld(
            settings,
            policy,
            seeds=seeds,
            temperature=temperature,
            base=base or PLANWORLD_BASE,
            api_key=Settings.load().model_api_key,
            report=report,
        )
    if as_json:
        render.emit(found.payload())
    else:
        show(found)


def show(found: PlanWorldResult) -> None:
    """Print the score, iteration by iteration."""
    out, settings = render.out(), found.settings
    tasks = f"{render.count(settings.iterations, 'iteration')} of {render.count(settings.tasks, 'task')}"
    out.print(
        f"PlanWorld, {settings.split}: {tasks}, {render.count(len(found.streams), 'seed')}, alignment "
        f"{settings.world.alignment:g}, agent {found.agent}, k {settings.k}, planner {render.safe(found.policy)}."
    )
    out.print()
    columns = ["score", "95 % interval", *(str(i + 1) for i in range(settings.iterations))]
    made = render.table("", *columns, right=columns)
    render.row(
        made,
        "solved",
        _percent(found.score),
        f"{_percent(found.low)} - {_percent(found.high)}",
        *map(_percent, found.per_iteration),
    )
    if found.cumulative:
        render.row(made, "solved once", "", "", *map(_percent, found.cumulative))
    shown = zip(*(stream.shown for stream in found.streams.values()), strict=True)
    render.row(made, "cases that fit", "", "", *(_percent(sum(each) / len(each)) for each in shown))
    out.print(made)
    if settings.unseen:
        marks = "".join(stream.unseen for stream in found.streams.values())
        out.print(f"Unseen families: {_percent(marks.count('1') / len(marks))} of {len(marks)} tasks.")
    out.print(f"In percent; the interval is a bootstrap over seeds and tasks. {found.seconds:.1f} s.", style="dim")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"

"""`memweave eval world babyai`: how well an agent fulfils missions in a grid that it is told about in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from memweave.cli import render
from memweave.cli.common import AsJson
from memweave.cli.eval import progress_bar

if TYPE_CHECKING:
    from memweave.config import Settings
    from memweave.recipes.play_scores import PlayResult
    from memweave.recipes.playing import AgentName

SHOWN: Final = 3
"""Errors of players that are printed."""


def babyai(
    agent: Annotated[
        str,
        typer.Option(
            "--agent",
            metavar="A",
            help="bot (the reference player), random, or an agent around --policy: full, rag or none of AgeMem's memory.",
        ),
    ] = "bot",
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="SPEC",
            help="Its model: openai:NAME[@URL], vllm:NAME@URL, local:FOLDER.  [default: MEMWEAVE_MODEL]",
        ),
    ] = None,
    level: Annotated[
        list[str] | None,
        typer.Option(
            "--level", metavar="L", help="A level, e.g. GoToObj (may be repeated).  [default: five, of one skill each]"
        ),
    ] = None,
    episodes: Annotated[int, typer.Option("--episodes", metavar="N", min=1, help="Of each level and seed.")] = 20,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="Times that all is played anew.")] = 1,
    max_steps: Annotated[
        int, typer.Option("--max-steps", metavar="N", min=1, help="Steps of an episode; a level may allow fewer.")
    ] = 64,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", min=0.0, help="Of the policy; 0 is greedy.")
    ] = 0.0,
    embedding: Annotated[
        str | None,
        typer.Option(
            "--embedding",
            metavar="MODEL",
            help="Of the memory: minilm, hashing or openai:MODEL@URL.  [default: minilm if installed, else hashing]",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency", metavar="N", min=1, max=256, help="Episodes at a time.  [default: 8 of a policy]"
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", metavar="FILE", help="Trace store that gets every episode of a policy.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a player on levels of BabyAI, told in words.

    The score is the share of missions that were fulfilled, the mean over the levels. A memory is empty when an episode begins.
    """
    from memweave.config import Settings
    from memweave.recipes.playing import WITHOUT_MODEL, evaluate_babyai
    from memweave.worlds.babyai import LEVELS

    settings = Settings.load(embedding=embedding)
    with progress_bar() as report:
        found = evaluate_babyai(
            cast("AgentName", agent),
            policy if agent in WITHOUT_MODEL else policy or _configured(settings),
            level or LEVELS,
            episodes=episodes,
            seeds=seeds,
            max_steps=max_steps,
            temperature=temperature,
            embedding=settings.embedding,
            store=store,
            api_key=settings.model_api_key,
            concurrency=concurrency,
            report=report,
        )
    if as_json:
        render.emit(found.payload())
    else:
        show_babyai(found)


def _configured(settings: Settings) -> str | None:
    """Return the model of the settings; rules do not play."""
    return None if settings.model == "rule" else settings.model


def show_babyai(found: PlayResult) -> None:
    """Print a line per level, then what players failed with."""
    out = render.out()
    who = f"{found.agent} with {render.safe(found.policy)}" if found.policy else found.agent
    out.print(
        f"BabyAI: {who}, {render.count(found.episodes, 'episode')} of each level, {render.count(found.seeds, 'seed')}, "
        f"at most {render.count(found.max_steps, 'step')}."
    )
    if found.policy_version is not None:
        out.print(f"policy {found.policy_version}", style="dim")
    out.print()
    columns = ("won", "95 % interval", "reward", "steps", "no action", "lost", "out of steps", "gave up", "failed")
    made = render.table("level", *columns, right=columns)
    for level, at in found.levels.items():
        ended = (at.ended[status] for status in ("lost", "out_of_steps", "gave_up", "failed"))
        render.row(
            made, level, _percent(at.score), f"{_percent(at.low)} - {_percent(at.high)}", f"{at.reward:.2f}",
            f"{at.steps:.1f}", at.invalid, *ended,
        )  # fmt: skip
    interval = f"{_percent(found.low)} - {_percent(found.high)}"
    render.row(made, "all", _percent(found.score), interval, *("" for _ in columns[2:]), style="bold")
    out.print(made)
    out.print(
        "Won in percent; the interval is a bootstrap over seeds and episodes. Reward and steps are means, the rest are counts. "
        f"{found.seconds:.1f} s.",
        style="dim",
    )
    errors = list(dict.fromkeys(error for at in found.levels.values() for error in at.errors))
    for error in errors[:SHOWN]:
        out.print(render.safe(error), style="yellow")
    if len(errors) > SHOWN:
        out.print(f"and {len(errors) - SHOWN} other errors, which --json shows", style="yellow")
    if found.run is not None:
        out.print(f"Traces: run {found.run}.", style="dim")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"

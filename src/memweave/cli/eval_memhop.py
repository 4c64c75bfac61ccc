"""`memweave eval world memhop`: how an agent manages its memory where the right answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from memweave.cli import render
from memweave.cli.common import AsJson
from memweave.cli.eval import progress_bar
from memweave.errors import SettingsError

if TYPE_CHECKING:
    from memweave.graphs.agemem_state import Variant
    from memweave.recipes.agemem.evaluation import MemHopResult
    from memweave.worlds.memhop import Split

SPLITS = ("train", "val", "test", "ood")


def memhop(
    agent: Annotated[
        str,
        typer.Option(
            "--agent", metavar="A", help="full: six tools; rag: long-term tools, the rest is retrieved for it; none."
        ),
    ] = "full",
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            metavar="P",
            help="base, script, script-idle, script-tidy, script-habits, a trained policy's folder, or a model.",
        ),
    ] = "base",
    episodes: Annotated[
        int | None, typer.Option("--episodes", min=1, metavar="N", help="Only the first N.  [default: all]")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Times they are played.")] = 1,
    split: Annotated[str, typer.Option("--split", metavar="SPLIT", help="train, val, test or ood.")] = "test",
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", min=0.0, help="Of a policy that samples; 0 is greedy.")
    ] = 0.0,
    threshold: Annotated[
        float, typer.Option("--threshold", metavar="C", min=-1.0, max=1.0, help="Cosine from which FILTER removes.")
    ] = 0.6,
    distractors: Annotated[
        int | None, typer.Option("--distractors", min=0, metavar="N", help="Small-talk messages.  [default: 3]")
    ] = None,
    p_stale: Annotated[
        float | None,
        typer.Option("--p-stale", min=0.0, max=1.0, metavar="P", help="Share with a correction.  [default: 0.5]"),
    ] = None,
    related: Annotated[
        bool, typer.Option("--related", help="Small talk names people of the chain, and tells no fact of theirs.")
    ] = False,
    base: Annotated[
        Path | None, typer.Option("--base", metavar="FOLDER", help="Base policy.  [default: the one that knows MemHop]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let an agent be told facts, distracted, and asked; the score is exact match.

    Nothing but the tools carries facts over to the question: the context is wiped in between. A model is local:FOLDER,
    vllm:NAME@URL, openai:NAME or openai:NAME@URL.
    """
    if split not in SPLITS:
        raise SettingsError(f"--split {split!r} is not known; choose {', '.join(SPLITS)}")
    from memweave.config import Settings
    from memweave.recipes.agemem.evaluation import control, evaluate_memhop
    from memweave.recipes.running import MEMHOP_BASE

    settings = Settings.load()
    world = control(distractors, p_stale, related=related)
    with progress_bar() as report:
        found = evaluate_memhop(
            cast("Variant", agent),
            policy,
            number=episodes,
            seeds=seeds,
            split=cast("Split", split),
            temperature=temperature,
            threshold=threshold,
            world=world,
            base=base or MEMHOP_BASE,
            api_key=settings.model_api_key,
            report=report,
        )
    if as_json:
        render.emit(found.payload())
    else:
        show(found)


def show(found: MemHopResult) -> None:
    """Print the score, how questions of each length went, and the use of tools."""
    out, means = render.out(), found.means
    sampled = f", temperature {found.temperature:g}, {render.count(found.seeds, 'seed')}" if found.temperature else ""
    out.print(
        f"MemHop, {found.split}: {render.count(found.episodes, 'episode')}, agent {found.agent}, policy "
        f"{render.safe(found.policy)}{sampled}."
    )
    if found.policy_version:
        out.print(f"policy {found.policy_version}", style="dim")
    out.print()
    columns = ("score", "95 % interval", "one fact", "two", "three", "memory quality", "tokens", "overflowed", "reward")
    made = render.table(*columns, right=columns)
    render.row(
        made,
        _percent(found.score),
        f"{_percent(found.low)} - {_percent(found.high)}",
        *(_percent(found.hops[n]) for n in ("1", "2", "3")),
        _percent(means["mq"]),
        f"{means['tokens']:.0f}",
        _percent(means["overflowed"]),
        f"{means['reward']:.3f}",
    )
    out.print(made)
    out.print()
    tools = render.table("calls per episode", "", right=("",))
    for name, value in means.items():
        if name.startswith("calls:"):
            render.row(tools, name.removeprefix("calls:"), f"{value:.2f}")
    out.print(tools)
    out.print(f"Exact match in percent; the interval is a bootstrap over episodes. {found.seconds:.1f} s.", style="dim")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"

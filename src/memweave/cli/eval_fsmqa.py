"""`memweave eval world fsmqa`: what strategies from a graph are worth to a policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from memweave.cli import render
from memweave.cli.common import AsJson
from memweave.cli.eval import progress_bar
from memweave.errors import UsageError

if TYPE_CHECKING:
    from memweave.recipes.graph_memory.evaluation import FSMQAResult
    from memweave.worlds.fsmqa import Split


def fsmqa(
    agent: Annotated[
        list[str] | None,
        typer.Option(
            "--agent",
            metavar="A",
            help="What is advised: none, uniform, trained, random, similarity, confidence, raw (may be repeated).  "
            "[default: none, uniform, trained]",
        ),
    ] = None,
    policy: Annotated[
        str, typer.Option("--policy", metavar="P", help="Who plays: base, script, a policy's folder, or a model.")
    ] = "base",
    graph: Annotated[
        list[Path] | None,
        typer.Option(
            "--graph",
            metavar="FOLDER",
            help="Graph that a run has left, one for each seed.  [default: built and trained on the spot]",
        ),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split",
            metavar="SPLIT",
            help="val, test, ood-entities, ood-mixture, ood-chains (may be repeated).  [default: test]",
        ),
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option("--k", min=0, metavar="K", help="Strategies in a prompt (may be repeated).  [default: 1]"),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            "--temperature", min=0.0, metavar="T", help="Of the policy; 0 is greedy (may be repeated).  [default: 0]"
        ),
    ] = None,
    episodes: Annotated[
        int | None, typer.Option("--episodes", min=1, metavar="N", help="Questions of a split.  [default: all]")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Each with questions of its own.")] = 1,
    first_seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="The first seed.")] = 0,
    utility: Annotated[
        int,
        typer.Option(
            "--utility",
            min=0,
            metavar="N",
            help="Also measure what each strategy is worth, N rollouts for each kind, and how ranks agree with it.",
        ),
    ] = 0,
    weights_arm: Annotated[
        str | None,
        typer.Option(
            "--weights-arm",
            metavar="ARM",
            help="Of graph-memory-weights, for a graph made on the spot.  [default: its first]",
        ),
    ] = None,
    build_questions: Annotated[
        int | None,
        typer.Option(
            "--build-questions", min=1, metavar="N", help="A graph made on the spot from fewer.  [default: all]"
        ),
    ] = None,
    weights_questions: Annotated[
        int | None,
        typer.Option("--weights-questions", min=1, metavar="N", help="Its weights trained on fewer.  [default: all]"),
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", metavar="FOLDER", help="Base policy.  [default: the one that knows FSM-QA]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a policy questions with strategies in its prompt, and without.

    Arms, splits, k and temperatures that are repeated are all combined; every arm gets the same questions and the same luck. A model is
    local:FOLDER, vllm:NAME@URL, openai:NAME or openai:NAME@URL.
    """
    from memweave.config import Settings
    from memweave.recipes.graph_memory.arms import SHOWN
    from memweave.recipes.graph_memory.building import BuildSettings
    from memweave.recipes.graph_memory.evaluation import DEFAULT_ARMS, FSMQAEvalSettings, evaluate_fsmqa
    from memweave.recipes.graph_memory.weighing import DEFAULT_ARM, WeightsSettings
    from memweave.recipes.running import FSMQA_BASE

    made = {
        "--weights-arm": weights_arm,
        "--build-questions": build_questions,
        "--weights-questions": weights_questions,
    }
    if graph and (useless := [name for name, value in made.items() if value is not None]):
        raise UsageError(f"{useless[0]} is about a graph made on the spot, and --graph gives one. Leave out either")
    settings = FSMQAEvalSettings(
        arms=tuple(agent or DEFAULT_ARMS),
        splits=cast("tuple[Split, ...]", tuple(split or ("test",))),
        ks=(SHOWN,) if k is None else tuple(k),
        temperatures=tuple((0.0,) if temperature is None else temperature),
        episodes=episodes,
        first_seed=first_seed,
        seeds=seeds,
        utility=utility,
        weights=WeightsSettings(arm=weights_arm or DEFAULT_ARM, queries=weights_questions),
        build=BuildSettings(queries=build_questions),
    )
    with progress_bar() as report:
        found = evaluate_fsmqa(
            settings,
            policy,
            graphs=graph or (),
            base=base or FSMQA_BASE,
            api_key=Settings.load().model_api_key,
            report=report,
        )
    if as_json:
        render.emit(found.payload())
    else:
        show(found)


def show(found: FSMQAResult) -> None:
    """Print a line for each arm on each split, and how ranks agree with worth."""
    out, settings = render.out(), found.settings
    out.print(f"FSM-QA: policy {render.safe(found.policy)}, {render.count(settings.seeds, 'seed')}.")
    out.print()
    made = render.table("advised", "split", "k", "T", "right", "95 % interval", "searches", right=("k", "T", "right"))
    for cell in found.cells:
        render.row(
            made,
            cell.arm,
            cell.split,
            str(cell.k),
            f"{cell.temperature:g}",
            f"{100 * cell.score:.1f}",
            f"{100 * cell.low:.1f} - {100 * cell.high:.1f}",
            f"{cell.calls:.1f}",
        )
    out.print(made)
    for seed, each in found.utility.items():
        before, after = (sum(side) / max(1, len(side)) for side in (each.before, each.after))
        out.print(
            f"Rank and worth, seed {seed}: Spearman {before:+.2f} with every weight 1, {after:+.2f} with those of the graph."
        )
    out.print(f"In percent; the interval is a bootstrap over seeds and questions. {found.seconds:.1f} s.", style="dim")

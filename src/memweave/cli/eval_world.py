"""`memweave eval world NAME`: how a memory, or an agent, does where the answers are known. One command per world.

Another world is a function in a file of its own and a line in `WORLDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer
from typer.core import TyperGroup

from memweave.cli import render
from memweave.cli.common import AsJson
from memweave.cli.eval import progress_bar
from memweave.cli.eval_babyai import babyai
from memweave.cli.eval_babyai_strategies import babyai_strategies
from memweave.cli.eval_fsmqa import fsmqa
from memweave.cli.eval_memhop import memhop
from memweave.cli.eval_planworld import planworld
from memweave.errors import SettingsError

if TYPE_CHECKING:
    from memweave.recipes.memory_r1.evaluation import WorldResult
    from memweave.worlds.dialog_world import Split

SPLITS: Final = ("val", "test", "ood")


class _Worlds(TyperGroup):
    """A group of commands that says which there are."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command of a world. Raises `SettingsError` for one that there is not."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise SettingsError(f"there is no world {args[0]!r}. There are: {', '.join(self.commands)}")
        return super().resolve_command(ctx, args)


def dialog(
    manager: Annotated[
        str,
        typer.Option(
            "--manager",
            metavar="M",
            help="oracle, always-add, always-noop, exact-key, rule, raw-turns, base, a trained policy's folder, or a model.",
        ),
    ] = "base",
    answerer: Annotated[
        str,
        typer.Option("--answerer", metavar="A", help="oracle, rule, base, a trained policy's folder, or a model."),
    ] = "base",
    budget: Annotated[
        list[int] | None,
        typer.Option("--budget", metavar="N", help="Memories that the answerer sees (may be repeated).  [default: 6]"),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", min=0.0, help="Of policies that sample; 0 is greedy.")
    ] = 0.0,
    answerer_temperature: Annotated[
        float | None,
        typer.Option(
            "--answerer-temperature", metavar="T", min=0.0, help="Of the answerer.  [default: as --temperature]"
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", metavar="SPLIT", help="val, test or ood.")] = "test",
    dialogues: Annotated[
        int | None,
        typer.Option("--dialogues", metavar="N", min=1, help="Only the first N dialogues.  [default: all]"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of sampling.")] = 0,
    base: Annotated[
        Path | None,
        typer.Option("--base", metavar="FOLDER", help="Base policy.  [default: the one that knows DialogWorld]"),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency", metavar="N", min=1, max=256, help="Dialogues at a time.  [default: 64, then 16 to ask]"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a manager and an answerer on whole dialogues of DialogWorld.

    The manager remembers each dialogue once; then every question is asked at each budget. The score is exact match. A model is
    local:FOLDER, vllm:NAME@URL, openai:NAME or openai:NAME@URL. raw-turns keeps every turn and finds it by BM25; with a budget
    that holds all turns it is full context.
    """
    if split not in SPLITS:
        raise SettingsError(f"--split {split!r} is not known; choose {', '.join(SPLITS)}")
    from memweave.config import Settings
    from memweave.recipes.memory_r1.evaluation import evaluate_world
    from memweave.recipes.running import DIALOG_BASE

    settings = Settings.load()
    with progress_bar() as report:
        found = evaluate_world(
            manager,
            answerer,
            budgets=budget or (6,),
            split=cast("Split", split),
            number=dialogues,
            temperature=temperature,
            answerer_temperature=answerer_temperature,
            seed=seed,
            base=base or DIALOG_BASE,
            api_key=settings.model_api_key,
            concurrency=concurrency,
            report=report,
        )
    if as_json:
        render.emit(found.payload())
    else:
        show_world(found)


def show_world(found: WorldResult) -> None:
    """Print a line per budget, then the score of each kind of question."""
    sampled = f", temperature {found.temperature:g}, seed {found.seed}" if found.temperature else ""
    out = render.out()
    out.print(
        f"DialogWorld, {found.split}: {render.count(found.dialogues, 'dialogue')}, "
        f"{render.count(found.questions, 'question')}. Memory by {render.safe(found.manager)}, "
        f"answers by {render.safe(found.answerer)}{sampled}."
    )
    for role, version in found.policy_versions.items():
        if version is not None:
            out.print(f"{role} {version}", style="dim")
    out.print()
    columns = ("budget", "score", "95 % interval", "memories", "failed turns", "no answer", "seconds")
    made = render.table(*columns, right=columns)
    for budget, at in found.budgets.items():
        interval = f"{_percent(at.low)} - {_percent(at.high)}"
        counts = (f"{at.bank_size:.1f}", at.failed_turns, at.unanswered, f"{at.seconds:.1f}")
        render.row(made, budget, _percent(at.score), interval, *counts)
    out.print(made)
    out.print()
    kinds = render.table("kind", "n", *map(_at, found.budgets), right=["n", *map(_at, found.budgets)])
    for kind, number in found.questions_by_kind.items():
        render.row(kinds, kind, number, *(_percent(at.kinds[kind]) for at in found.budgets.values()))
    out.print(kinds)
    out.print(
        f"Exact match in percent; the interval is a bootstrap over dialogues. {found.seconds:.1f} s.", style="dim"
    )


def _at(budget: int) -> str:
    return f"budget {budget}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


WORLDS: Final[dict[str, Callable[..., None]]] = {
    "dialog": dialog,
    "memhop": memhop,
    "planworld": planworld,
    "fsmqa": fsmqa,
    "babyai": babyai,
    "babyai-strategies": babyai_strategies,
}
"""Name of the world -> its command."""

world_app = typer.Typer(
    cls=_Worlds,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure a memory or an agent in a world that knows what is right.",
    epilog="For example: world dialog --manager rule --answerer oracle --budget 6; "
    "world babyai --agent full --policy openai:gpt-4.1-mini. Each world has its own options: world NAME --help.",
)
for _name, _command in WORLDS.items():
    world_app.command(_name)(_command)

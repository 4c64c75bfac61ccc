"""`memweave pretrain`: make the base policy of a world, or only measure one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from memweave.cli import render
from memweave.cli.common import AsJson
from memweave.cli.train import need_training
from memweave.errors import SettingsError, UsageError

if TYPE_CHECKING:
    from memweave.recipes.pretraining import Course

WORLDS: Final = ("dialog", "memhop", "planworld", "fsmqa")


def pretrain(
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where the policy goes; a new folder.", show_default=False),
    ] = None,
    clean_steps: Annotated[
        int | None, typer.Option("--clean-steps", min=1, metavar="N", help="Steps of clean lessons, then the gate.")
    ] = None,
    habit_steps: Annotated[
        int | None, typer.Option("--habit-steps", min=0, metavar="N", help="Steps of the teacher with habits.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, metavar="N", help="Of weights, texts and banks.  [default: 0]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was cut off, from its last save.")
    ] = False,
    distill: Annotated[
        str | None,
        typer.Option(
            "--distill",
            metavar="FORM",
            help="How the answerer writes: select_then_answer, or direct or direct_with_filler, the controls of memory "
            "distillation.  [default: select_then_answer]",
        ),
    ] = None,
    world: Annotated[
        str,
        typer.Option(
            "--world",
            metavar="NAME",
            help="Whose base policy: dialog (memory-r1), memhop (agemem), planworld (memento) or fsmqa (graph memory).",
        ),
    ] = "dialog",
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="SIZE", help="With fsmqa: a small or a large policy.  [default: small]"),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="Where it trains: cpu, cuda, ...")] = "cpu",
    policy: Annotated[
        Path | None,
        typer.Option(
            "--measure", metavar="FOLDER", help="Train nothing; run the gate on this policy.", show_default=False
        ),
    ] = None,
    distractors: Annotated[
        list[int] | None,
        typer.Option(
            "--distractors",
            metavar="N",
            help="With --measure: ask the same questions among N memories of other things, 0 to 54; may be repeated.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the base policy of a world's recipes: clean lessons, the gate, then lessons of a teacher with habits.

    The gate asks for answers on fresh banks and says how many are right. A policy that misses it is kept, and the exit
    code is 1. Ctrl-C stops a run; --resume goes on with it.
    """
    if world not in WORLDS:
        raise SettingsError(f"no policy is made for a world {world!r}. There are: {', '.join(WORLDS)}")
    if world != "dialog" and (distill is not None or distractors):
        raise UsageError(f"--distill and --distractors are about DialogWorld; leave them out for {world}")
    if size is not None and (world != "fsmqa" or size not in ("small", "large")):
        raise UsageError(f"--size {size} with --world {world}: only fsmqa has sizes, small and large")
    if policy is not None:
        if out is not None or resume or any(one is not None for one in (clean_steps, habit_steps, distill, size)):
            raise UsageError(
                "--measure only takes --distractors, --seed and --json. Leave out the rest, or leave out --measure"
            )
        need_training()
        if distractors:
            _distract(policy, seed or 0, distractors, as_json=as_json)
        else:
            _measure(world, policy, seed or 0, as_json=as_json)
        return
    if distractors:
        raise UsageError("--distractors asks a policy that exists: give it with --measure FOLDER")
    if out is None:
        raise UsageError("name a new folder for the policy: --out FOLDER. To look at one: --measure FOLDER")
    _check_folders(out, _part(out), resume=resume)
    need_training()
    given: dict[str, Any] = {
        "clean_steps": clean_steps,
        "habit_steps": habit_steps,
        "distill": distill,
        "seed": seed,
        "size": size,
    }
    course = _course(world, {name: value for name, value in given.items() if value is not None})
    _make(out, course, resume=resume, device=device, as_json=as_json)


def _course(world: str, given: dict[str, Any]) -> Course:
    """Return what the base policy of a world learns."""
    if world == "memhop":
        from memweave.recipes.agemem.pretraining import MemHopCourse, MemHopPretrainSettings

        return MemHopCourse(MemHopPretrainSettings(**given))
    if world == "planworld":
        from memweave.recipes.memento.pretraining import PlanWorldCourse, PlanWorldPretrainSettings

        return PlanWorldCourse(PlanWorldPretrainSettings(**given))
    if world == "fsmqa":
        from memweave.recipes.graph_memory.pretraining import FSMQACourse, FSMQAPretrainSettings

        return FSMQACourse(FSMQAPretrainSettings.of(**{"size": "small", **given}))
    from memweave.recipes.memory_r1 import pretraining

    return pretraining.DialogCourse(pretraining.PretrainSettings(**given))


def _part(out: Path) -> Path:
    """Return where a run is kept until it is done."""
    absolute = out.absolute()
    return absolute.with_name(absolute.name + ".part")


def _check_folders(out: Path, part: Path, *, resume: bool) -> None:
    """Raise `UsageError` for a folder that is taken, for a run that would be lost, or for none to go on with."""
    if out.exists():
        raise UsageError(f"{out} exists already. Choose another --out, or remove it")
    if resume and not part.exists():
        raise UsageError(f"{out} has no run to go on with ({part.name} is not there). Start it without --resume")
    if not resume and part.exists():
        raise UsageError(f"{part} holds a run that was cut off. Go on with it (--resume), or remove it")


def _make(out: Path, course: Course, *, resume: bool, device: str, as_json: bool) -> None:
    from memweave.recipes import pretraining

    settings = course.settings
    try:
        with _progress() as report:
            found = pretraining.pretrain(out, course, resume=resume, report=report, device=device)
    except KeyboardInterrupt:
        if _part(out).exists():
            render.note(f"what was saved is in {_part(out)}; the same command with --resume goes on with it")
        raise
    gate = found["gate"]
    needed = pretraining.GATE
    missed = None
    if not gate["lookups"] >= needed:
        missed = (
            f"{out} answers {gate['lookups']:.3f} of lookups after its clean lessons, and {needed:.2f} are needed to train "
            f"on top of it. It is kept; try more --clean-steps ({settings.clean_steps} now) or another --seed"
        )
    if as_json:
        ended = {} if missed is None else {"error": missed, "exit_code": 1}
        render.emit({"policy": str(out), **found, "passed": missed is None, **ended})
    else:
        typer.echo(
            f"{out}: {found['parameters']:,} parameters, {settings.clean_steps} + {settings.habit_steps} steps, "
            f"loss {found['loss']:.3f}, {found['minutes']:.1f} minutes on {found['device']}"
        )
        _show(gate, passed=missed is None, needed=needed)
    if missed is not None:
        render.complain(missed, 1, as_json=False)  # the object of --json is out already
        raise typer.Exit(1)


def _measure(world: str, policy: Path, seed: int, *, as_json: bool) -> None:
    from memweave.recipes import pretraining

    found = _course(world, {"seed": seed}).measure(policy)
    passed = found["lookups"] >= pretraining.GATE
    if as_json:
        render.emit({"policy": str(policy), "seed": seed, **found, "passed": passed})
        return
    _show(found, passed=passed, needed=pretraining.GATE)
    if not passed:
        typer.echo("A policy that has learned habits misses it on purpose; what it did before is in pretraining.json.")


def _distract(policy: Path, seed: int, counts: list[int], *, as_json: bool) -> None:
    from memweave.recipes.memory_r1.measuring import with_distractors

    found = with_distractors(policy, seed, counts)
    if as_json:
        render.emit({"policy": str(policy), "seed": seed, "distractors": {str(n): each for n, each in found.items()}})
        return
    table = render.table("distractors", "right", right=("distractors", "right"))
    for count, each in found.items():
        render.row(table, str(count), f"{each['right']:.3f}")
    render.out().print(table)


def _show(gate: Mapping[str, Any], *, passed: bool, needed: float) -> None:
    typer.echo(
        f"gate {'passed' if passed else 'missed'}: {gate['lookups']:.3f} of lookups, needed {needed:.2f} "
        f"({gate['asked']} replies{' of each role' if 'operations' in gate else ''})"
    )
    table = render.table("kind", "right", right=("right",))
    for kind, share in gate["by_kind"].items():
        render.row(table, kind, f"{share:.3f}")
    render.out().print(table)


@contextmanager
def _progress() -> Iterator[Callable[[int, int, float], None]]:
    """Show steps and loss on standard error while the block runs. Nothing without a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("pre-training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=render.notes(), transient=True, disable=not render.notes().is_terminal) as bar:
        task = bar.add_task("pre-training", total=None, shown="")

        def report(step: int, steps: int, loss: float) -> None:
            bar.update(task, completed=step, total=steps, shown=f"loss {loss:.3f}")

        yield report

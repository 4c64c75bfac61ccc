"""`memweave traces ...`: look at recorded runs, find what is wrong with them, take them elsewhere."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.text import Text

from memweave.cli import render
from memweave.cli.common import AsJson, Home
from memweave.cli.trace_view import show_trace
from memweave.errors import InputError, NotInstalledError, UsageError

if TYPE_CHECKING:
    from memweave.tracing import Finding, Trace, TraceStatus, TraceStore
    from memweave.tracing.diagnosis import Tokenizer

SHOWN: Final = 20
"""Rows of a list that are shown unless the caller asks for more."""
COLUMNS: Final = ("id", "started", "graph", "run", "step", "task", "status", "calls", "tokens", "score")
WIDE: Final = 110
"""Columns of a terminal in which all of them fit."""
SHORTEST: Final = 4
"""Fewest digits of an id that are accepted."""

traces_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at recorded runs, check and export them."
)

Store = Annotated[
    Path | None, typer.Option("--store", metavar="FILE", help="Trace store.  [default: traces.db in --home]")
]
Run = Annotated[str | None, typer.Option("--run", help="Only traces of this training run or application.")]
Iteration = Annotated[int | None, typer.Option("--iteration", min=0, help="Only traces of this training step.")]
Group = Annotated[str | None, typer.Option("--group", help="Only traces of this task.")]
Status = Annotated[
    str | None, typer.Option("--status", help="Only ok, failed, timeout, cancelled or unavailable runs.")
]
Id = Annotated[
    str | None, typer.Argument(metavar="[ID]", help="First or last digits of its id; the newest without one.")
]


@traces_app.command("list")
def list_(
    store: Store = None,
    home: Home = None,
    run: Run = None,
    iteration: Iteration = None,
    group: Group = None,
    status: Status = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Most rows to show.")] = SHOWN,
    as_json: AsJson = False,
) -> None:
    """Show recorded runs, newest first."""
    kind = _status(status)
    with open_traces(store, home) as opened:
        found = opened.query(run=run, iteration=iteration, group=group, status=kind, limit=limit)
        total = opened.count(run=run, iteration=iteration, group=group, status=kind)
    if as_json:
        render.emit({"traces": [_summary(trace) for trace in found], "total": total})
    elif not found:
        render.note("No traces match.")
    else:
        _print_list(found)
        more = f"; --limit {total} shows all" if total > len(found) else ""
        render.note(f"{len(found)} of {render.count(total, 'trace')}{more}.")


@traces_app.command()
def show(
    id: Id = None,
    store: Store = None,
    home: Home = None,
    full: Annotated[bool, typer.Option("--full", help="Show whole prompts and replies, not their ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one run, call by call: end of the prompt, reply, tokens, memory operations, score."""
    with open_traces(store, home) as opened:
        trace = _find(opened, id)
    if as_json:
        render.emit(trace.model_dump(mode="json"))
    else:
        show_trace(trace, full=full)


@traces_app.command()
def doctor(
    store: Store = None,
    home: Home = None,
    run: Run = None,
    iteration: Iteration = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Check the newest ones only.")] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer", metavar="PATH", help="Folder of the policy, or its tokenizer.json: checks the texts too."
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, help="Temperature of the training run.")
    ] = None,
    full: Annotated[bool, typer.Option("--all", help="Show every finding, not one of each kind.")] = False,
    as_json: AsJson = False,
) -> None:
    """Name what keeps traces from being trained on. Exit code 1 when there are errors."""
    from memweave.tracing import doctor as examine

    words = _tokenizer(tokenizer) if tokenizer else None
    with open_traces(store, home) as opened:
        traces = opened.query(run=run, iteration=iteration, limit=limit)
        if not traces:
            raise InputError(f"no trace in {opened.path} to check. `memweave traces list` shows what there is.")
    found = examine(traces, tokenizer=words, temperature=temperature)
    errors = sum(finding.severity == "error" for finding in found)
    if as_json:
        findings = [finding.model_dump(mode="json") for finding in found]
        render.emit({"traces": len(traces), "errors": errors, "warnings": len(found) - errors, "findings": findings})
    else:
        _print_findings(found, full=full)
        verdict = (
            f"{render.count(errors, 'error')}, {render.count(len(found) - errors, 'warning')}"
            if found
            else "all is well"
        )
        render.note(f"{render.count(len(traces), 'trace')}: {verdict}.")
    if errors:
        raise typer.Exit(1)


@traces_app.command()
def export(
    file: Annotated[
        Path | None, typer.Argument(help="FILE.jsonl or FILE.parquet; JSON lines on standard output without one.")
    ] = None,
    store: Store = None,
    home: Home = None,
    run: Run = None,
    iteration: Iteration = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="The newest ones only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write traces as JSON lines (one per trace, exact) or Parquet (one row per model call)."""
    from memweave.tracing.export import to_line, to_parquet, write_jsonl

    if file is not None and file.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{file} tells no format. Name a file that ends in .jsonl or .parquet.")
    if file is not None and file.exists():
        raise InputError(f"{file} exists already; name another file, or remove it first.")
    with open_traces(store, home) as opened:
        if file is None:
            lines = [to_line(trace) for trace in opened.iterate(run=run, iteration=iteration, limit=limit)]
        else:
            write = write_jsonl if file.suffix == ".jsonl" else to_parquet
            written = write(opened.iterate(run=run, iteration=iteration, limit=limit), file)
    if file is None:
        if as_json:
            render.emit({"lines": lines})
        else:
            sys.stdout.writelines(line + "\n" for line in lines)
        return
    noun = "trace" if file.suffix == ".jsonl" else "row"
    if as_json:
        render.emit({"file": str(file), f"{noun}s": written})
    else:
        render.note(f"Wrote {render.count(written, noun)} to {file}.")


def open_traces(store: Path | None, home: Path | None) -> TraceStore:
    """Open the store; looking at traces must not make one."""
    from memweave.config import Settings
    from memweave.tracing.store import FILE_NAME, TraceStore

    path = store if store is not None else Settings.load(home=home).home / FILE_NAME
    if not path.exists():
        raise UsageError(
            f"there is no trace store at {path}. Name one with --store (that of a training run is FOLDER/traces.db), or "
            "record runs with Tracer(TraceStore(PATH))."
        )
    return TraceStore(path)


def _find(store: TraceStore, digits: str | None) -> Trace:
    """Return the trace with these digits, or the newest. Raises: InputError when there is none, or more than one."""
    if digits is None:
        newest = store.query(limit=1)
        if not newest:
            raise InputError(f"{store.path} holds no traces yet.")
        return newest[0]
    wanted = digits.replace("-", "").lower()
    if len(wanted) < SHORTEST or set(wanted) - set("0123456789abcdef"):
        raise InputError(
            f"{digits!r} is not an id; give at least {SHORTEST} of its hexadecimal digits, as the lists show them."
        )
    fitting = [key for key in store.ids() if key.hex.startswith(wanted) or key.hex.endswith(wanted)]
    if len(fitting) > 1:
        some = ", ".join(str(each) for each in fitting[:3])
        raise InputError(f"{digits!r} fits {len(fitting)} ids ({some}); give more digits.")
    trace = store.get(fitting[0]) if fitting else None
    if trace is None:
        raise InputError(f"there is no trace {digits!r} in {store.path}. `memweave traces list` shows them.")
    return trace


def _status(text: str | None) -> TraceStatus | None:
    from memweave.tracing import TraceStatus

    if text is None:
        return None
    try:
        return TraceStatus(text.lower())
    except ValueError:
        raise InputError(f"--status {text!r} is not one of {', '.join(TraceStatus)}.") from None


def _tokenizer(path: Path) -> Tokenizer:
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"there is no tokenizer at {file}. Name the folder of the policy.")
    try:
        from tokenizers import Tokenizer as Loaded
    except ModuleNotFoundError as error:
        raise NotInstalledError("--tokenizer needs the package 'tokenizers': pip install 'memweave[local]'.") from error
    try:
        loaded: Tokenizer = Loaded.from_file(str(file))
    except Exception as error:  # it has no error class of its own
        raise InputError(f"{file} is no tokenizer: {error}") from error
    return loaded


def _summary(trace: Trace) -> dict[str, object]:
    fields = (
        "id",
        "graph",
        "run",
        "iteration",
        "group",
        "replica",
        "thread",
        "status",
        "error",
        "score",
        "started_at",
        "ended_at",
    )
    read, written = tokens(trace)
    return {
        **trace.model_dump(mode="json", include=set(fields)),
        "calls": len(trace.generations),
        "prompt_tokens": read,
        "sampled_tokens": written,
        "memory_ops": len(trace.memory_events),
    }


def tokens(trace: Trace) -> tuple[int | None, int | None]:
    """Return how many tokens a run's calls read and sampled, as far as that is known."""
    read = [len(each.prompt_token_ids) for each in trace.generations if each.prompt_token_ids is not None]
    written = [len(each.token_ids) for each in trace.generations if each.token_ids is not None]
    return sum(read) if read else None, sum(written) if written else None


def _print_list(traces: Sequence[Trace]) -> None:
    """Print a table; a narrow terminal gets what tells episodes apart, and no more."""
    wide = render.out().width >= WIDE
    names = [name for name in COLUMNS if wide or name not in ("graph", "calls", "tokens")]
    made = render.table(*names, right=("step", "calls", "tokens", "score"))
    for trace in traces:
        read, written = tokens(trace)
        replica = "" if trace.replica is None else f" #{trace.replica}"
        cells = {
            "id": render.short(trace.id),
            "started": render.minute(trace.started_at),
            "graph": trace.graph or "-",
            "run": trace.run or "-",
            "step": "-" if trace.iteration is None else trace.iteration,
            "task": "-" if trace.group is None else f"{trace.group}{replica}",
            "status": trace.status.value,
            "calls": len(trace.generations),
            "tokens": "-" if written is None else f"{read or 0}+{written}",
            "score": "-" if trace.score is None else f"{trace.score.value:.3g}",
        }
        style = None if trace.status.value == "ok" else "red"
        render.row(made, *(cells[name] for name in names), style=style)
    render.out().print(made)


def _print_findings(findings: Sequence[Finding], *, full: bool) -> None:
    by_code: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        by_code[finding.severity, finding.code].append(finding)
    for (severity, code), members in sorted(by_code.items()):
        style = "bold red" if severity == "error" else "yellow"
        times = f"  {len(members)} times" if len(members) > 1 else ""
        render.out().print(Text.assemble((f"{severity} {code}", style), (times, "bold")))
        shown = members if full else members[:1]
        for finding in shown:
            place = "" if finding.trace is None else f"{render.short(finding.trace)} "
            call = "" if finding.generation is None else f"call {finding.generation} "
            example = "e.g. " if len(members) > len(shown) else ""
            render.out().print(Text(f"  {example}{place}{call}{render.safe(finding.message)}"), soft_wrap=True)
        render.out().print(Text(f"  {members[0].remedy}.", style="dim"), soft_wrap=True)

"""`memweave eval ...`: measure retrieval and answers on public data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memweave.cli import render
from memweave.cli.common import AsJson, secret

if TYPE_CHECKING:
    from rich.progress import TaskID
    from rich.table import Table

    from memweave.config import Settings
    from memweave.embeddings import Embedder
    from memweave.evaluation.retrieval import RetrievalReport, RetrievalTask

eval_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure retrieval and answers.")

DatasetName = Annotated[str, typer.Option("--dataset", help="locomo, hotpotqa or musique.")]
DataPath = Annotated[
    Path | None, typer.Option("--path", help="File or folder of the data set.  [default: its folder in MEMWEAVE_DATA]")
]
Conversation = Annotated[
    list[str] | None, typer.Option("--conversation", help="LoCoMo: only this conversation (may be repeated).")
]
EmbeddingModel = Annotated[
    str | None,
    typer.Option(
        "--embedding", help="minilm, hashing or openai:MODEL@URL.  [default: minilm if installed, else hashing]"
    ),
]


@eval_app.command()
def retrieval(
    dataset: DatasetName,
    path: DataPath = None,
    k: Annotated[
        str, typer.Option("--k", help="How many memories are retrieved: numbers, separated by commas.")
    ] = "5,10,30,60",
    conversation: Conversation = None,
    questions: Annotated[
        str | None, typer.Option("--questions", help="HotpotQA, MuSiQue: questions FROM:TO, counted from 0.")
    ] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Also measure dense, BM25 and plain RRF.")] = False,
    embedding: EmbeddingModel = None,
    as_json: AsJson = False,
) -> None:
    """Measure recall: how much of a question's evidence is among the first k memories found.

    LoCoMo: evidence turns within the question's conversation, categories 1 to 4. HotpotQA, MuSiQue: supporting passages.
    """
    from memweave.config import Settings
    from memweave.evaluation.datasets import parse_ks
    from memweave.evaluation.retrieval import BASELINES, default_embedding, evaluate_retrieval

    settings = Settings.load(embedding=embedding)
    ks = parse_ks(k)
    task = _retrieval_task(settings, dataset, path, conversation or [], questions)
    with progress_bar() as report:
        found = evaluate_retrieval(
            task,
            ks=ks,
            embedding=_embedder(settings, settings.embedding or default_embedding()),
            methods=BASELINES if baselines else None,
            report=report,
        )
    if as_json:
        render.emit(found.payload())
    else:
        _show_retrieval(found)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on standard error while the block runs; it is told (stage, done, total). Nothing without a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=render.notes(), transient=True, disable=not render.notes().is_terminal) as bar:
        stages: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bar.add_task(stage, total=total)
            bar.update(stages[stage], completed=done, total=total)

        yield report


def _retrieval_task(
    settings: Settings, name: str, path: Path | None, conversations: list[str], questions: str | None
) -> RetrievalTask:
    from memweave.errors import SettingsError
    from memweave.evaluation.datasets import Dataset, find_data, load_locomo, load_passages, parse_part
    from memweave.evaluation.retrieval import locomo_task, passage_task

    if name not in list(Dataset):
        raise SettingsError(f"--dataset {name!r} is not known; choose {', '.join(Dataset)}.")
    dataset = Dataset(name)
    where = find_data(dataset, path, settings.data)
    if dataset is Dataset.LOCOMO:
        if questions is not None:
            raise SettingsError("--questions is for HotpotQA and MuSiQue; for LoCoMo name a --conversation.")
        return locomo_task(load_locomo(where, conversations))
    if conversations:
        raise SettingsError(f"--conversation is for LoCoMo; for {dataset} give a range of --questions.")
    return passage_task(load_passages(dataset, where, parse_part(questions)))


def _embedder(settings: Settings, spec: str) -> Embedder:
    from memweave.embeddings import embedder

    return embedder(spec, api_key=secret(settings.embedding_api_key), timeout=settings.model_timeout)


def _show_retrieval(found: RetrievalReport) -> None:
    from memweave.evaluation.retrieval import PRODUCTION

    best = found.scores[PRODUCTION]
    left_out = f" ({found.skipped} without evidence left out)" if found.skipped else ""
    what = "evidence turns" if found.dataset == "locomo" else "supporting passages"
    render.out().print(
        f"Recall of {what}, %. {found.dataset}: {found.n} questions{left_out}. Embedding: {found.embedding}."
    )
    render.out().print()
    ks = list(best.recall)
    overall = render.table("method", *(f"R@{k}" for k in ks), right=[f"R@{k}" for k in ks])
    for name, scores in found.scores.items():
        cells = [
            f"{_percent(scores.recall[k])} [{_percent(scores.interval[k][0])}, {_percent(scores.interval[k][1])}]"
            for k in ks
        ]
        render.row(overall, name, *cells, style="bold" if name == PRODUCTION else None)
    render.out().print(overall)
    _print_groups(f"{PRODUCTION}, by category", best.by_category, found.n_by_category, ks)
    if len(best.by_collection) > 1:
        _print_groups(f"{PRODUCTION}, by conversation", best.by_collection, None, ks)
    render.out().print("In brackets: 95 % bootstrap interval over questions.", style="dim")


def _print_groups(
    title: str, groups: dict[str, dict[int, float]], counts: dict[str, int] | None, ks: list[int]
) -> None:
    made: Table = render.table(
        title, *(["n"] if counts else []), *(f"R@{k}" for k in ks), right=["n", *(f"R@{k}" for k in ks)]
    )
    for group, recall in groups.items():
        render.row(made, group, *([counts[group]] if counts else []), *(_percent(recall[k]) for k in ks))
    render.out().print(made)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"

"""`memweave eval ...`: measure retrieval and answers on public data sets."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memweave.cli import render
from memweave.cli.common import AsJson, secret
from memweave.cli.eval_tables import show_qa, show_retrieval
from memweave.errors import OperationError, SettingsError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from memweave.config import Settings
    from memweave.embeddings import Embedder
    from memweave.evaluation.datasets import Dataset
    from memweave.evaluation.qa_report import QAReport
    from memweave.evaluation.qa_task import QATask
    from memweave.evaluation.retrieval import RetrievalTask

eval_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure retrieval and answers.")

DatasetName = Annotated[str, typer.Option("--dataset", metavar="NAME", help="locomo, hotpotqa or musique.")]
DataPath = Annotated[
    Path | None,
    typer.Option(
        "--path", metavar="PATH", help="File or folder of the data set.  [default: its folder in MEMWEAVE_DATA]"
    ),
]
Conversation = Annotated[
    list[str] | None,
    typer.Option("--conversation", metavar="ID", help="LoCoMo: only this conversation (may be repeated)."),
]
Questions = Annotated[
    str | None, typer.Option("--questions", metavar="FROM:TO", help="HotpotQA, MuSiQue: only these, counted from 0.")
]
EmbeddingModel = Annotated[
    str | None,
    typer.Option(
        "--embedding",
        metavar="MODEL",
        help="minilm, hashing or openai:MODEL@URL.  [default: minilm if installed, else hashing]",
    ),
]


@eval_app.command()
def retrieval(
    dataset: DatasetName,
    path: DataPath = None,
    k: Annotated[str, typer.Option("--k", metavar="K,K,...", help="How many memories are retrieved.")] = "5,10,30,60",
    conversation: Conversation = None,
    questions: Questions = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Also measure dense, BM25 and plain RRF.")] = False,
    embedding: EmbeddingModel = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much of the evidence a search finds.

    Recall at k is the share of a question's evidence among the first k memories. LoCoMo: evidence turns within the question's
    conversation, categories 1 to 4. HotpotQA, MuSiQue: supporting passages within the corpus.
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
        show_retrieval(found)


@eval_app.command()
def qa(
    dataset: DatasetName,
    path: DataPath = None,
    agent: Annotated[
        str, typer.Option("--agent", metavar="AGENT", help="memory-r1, rag or full-context.")
    ] = "memory-r1",
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="Who answers: rule, openai:NAME or openai:NAME@URL.  [default: rule]"
        ),
    ] = None,
    manager: Annotated[
        str | None,
        typer.Option("--manager", metavar="MODEL", help="Who builds the memory, as for --model.  [default: the model]"),
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="MODEL", help="Who also grades the answers.  [default: nobody]")
    ] = None,
    conversation: Conversation = None,
    questions: Questions = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N questions.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder to keep the run in; the same command continues it."),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", metavar="N", min=1, max=256, help="Questions worked on at a time.")
    ] = 8,
    embedding: EmbeddingModel = None,
    as_json: AsJson = False,
) -> None:
    """Measure answers, their tokens and latency.

    Exact match, F1, BLEU-1 and an optional judge. memory-r1 builds a memory with extractor and manager; rag keeps every raw
    turn or passage; full-context shows all of it.
    """
    from memweave.config import Settings

    settings = Settings.load(embedding=embedding, model=model, manager=manager, judge=judge)
    task = _qa_task(settings, dataset, path, conversation or [], questions)
    names = RoleNames.of(settings, model, manager)
    with _kept(out) as folder:
        found = _run_qa(settings, task, names, agent, folder, limit, concurrency, kept=out is not None)
    if as_json:
        render.emit(found.payload())
    else:
        show_qa(found)
        if out is None:
            render.note("The answers were not kept. With --out DIR they are, and an interrupted run continues there.")


@dataclass(frozen=True)
class RoleNames:
    """Who plays which role, by name."""

    answerer: str
    extractor: str
    manager: str
    judge: str | None

    @classmethod
    def of(cls, settings: Settings, model: str | None, manager: str | None) -> RoleNames:
        """Return the names that options and settings give.

        `--model` decides who answers, whatever the settings say; `--manager` decides for the extractor too, because both
        build the memory.
        """
        return cls(
            answerer=model or settings.answerer or settings.model,
            extractor=manager or settings.extractor or settings.model,
            manager=settings.manager or settings.model,
            judge=settings.judge,
        )


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
    from memweave.evaluation.datasets import Dataset, load_locomo, load_passages, parse_part
    from memweave.evaluation.retrieval import locomo_task, passage_task

    dataset, where = _dataset(settings, name, path, conversations, questions)
    if dataset is Dataset.LOCOMO:
        return locomo_task(load_locomo(where, conversations))
    return passage_task(load_passages(dataset, where, parse_part(questions)))


def _embedder(settings: Settings, spec: str) -> Embedder:
    from memweave.embeddings import embedder

    return embedder(spec, api_key=secret(settings.embedding_api_key), timeout=settings.model_timeout)


def _qa_task(
    settings: Settings, name: str, path: Path | None, conversations: list[str], questions: str | None
) -> QATask:
    from memweave.evaluation.datasets import Dataset, load_locomo, load_passages, parse_part
    from memweave.evaluation.qa_task import locomo_qa, passage_qa

    dataset, where = _dataset(settings, name, path, conversations, questions)
    if dataset is Dataset.LOCOMO:
        return locomo_qa(load_locomo(where, conversations))
    return passage_qa(load_passages(dataset, where, parse_part(questions)))


@contextmanager
def _kept(out: Path | None) -> Iterator[Path]:
    """Yield the folder of the run: the one given, or a temporary one."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="memweave-qa-") as folder:
        yield Path(folder)


def _run_qa(
    settings: Settings,
    task: QATask,
    names: RoleNames,
    agent: str,
    folder: Path,
    limit: int | None,
    concurrency: int,
    *,
    kept: bool,
) -> QAReport:
    import asyncio

    from memweave.evaluation.qa import QAModels, qa_settings, run_qa
    from memweave.evaluation.retrieval import default_embedding
    from memweave.graphs.server import role_model

    embedder = _embedder(settings, settings.embedding or default_embedding())
    identity = qa_settings(
        task,
        agent=agent,
        model=names.answerer,
        extractor=names.extractor,
        manager=names.manager,
        judge=names.judge,
        embedding=embedder.model_id,
    )
    builds = identity.manager is not None
    models = QAModels(
        answerer=role_model(settings, names.answerer),
        extractor=role_model(settings, names.extractor) if builds else "rule",
        manager=role_model(settings, names.manager) if builds else "rule",
        judge=role_model(settings, names.judge) if names.judge else None,
    )
    part = task.first(limit)
    try:
        with progress_bar() as report:
            return asyncio.run(
                run_qa(part, identity, models, folder, embedding=embedder, concurrency=concurrency, report=report)
            )
    except (KeyboardInterrupt, OperationError):
        if kept:
            render.note(f"What is finished is in {folder}. The same command continues there.")
        raise


def _dataset(
    settings: Settings, name: str, path: Path | None, conversations: list[str], questions: str | None
) -> tuple[Dataset, Path]:
    """Return which data set is meant and where it is. Raises: SettingsError."""
    from memweave.evaluation.datasets import Dataset, find_data

    if name not in list(Dataset):
        raise SettingsError(f"--dataset {name!r} is not known; choose {', '.join(Dataset)}.")
    dataset = Dataset(name)
    if dataset is Dataset.LOCOMO and questions is not None:
        raise SettingsError("--questions is for HotpotQA and MuSiQue; for LoCoMo name a --conversation.")
    if dataset is not Dataset.LOCOMO and conversations:
        raise SettingsError(f"--conversation is for LoCoMo; for {dataset} give a range of --questions.")
    return dataset, find_data(dataset, path, settings.data)

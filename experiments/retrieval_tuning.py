"""How the defaults of `SearchConfig` were chosen: a grid on development data, and what each part is worth.

    MEMWEAVE_DATA=... python experiments/retrieval_tuning.py            the grid, with cross-validation
    MEMWEAVE_DATA=... python experiments/retrieval_tuning.py ablation   one part off at a time

Development data: LoCoMo conv-26, the first 50 HotpotQA and the first 50 MuSiQue questions. Nothing else is read. The objective is
the mean over the three sets of mean recall (LoCoMo at 5, 10, 30, 60; passages at 2, 5, 10, 20). Cross-validation leaves out one of
five folds (LoCoMo: by session of the first evidence), chooses the best configuration on the rest and scores it on the fold; the gap
to the best configuration on everything is how much the choice overfits. Findings are in docs/log.md.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from pathlib import Path

import numpy as np
import typer
from numpy.typing import NDArray

from memweave.evaluation.datasets import Dataset, load_locomo, load_passages
from memweave.evaluation.retrieval import BASELINES, RetrievalTask, evaluate_retrieval, locomo_task, passage_task
from memweave.memory_stores import SearchConfig

FOLDS = 5
KS = {"locomo": (5, 10, 30, 60), "hotpotqa": (2, 5, 10, 20), "musique": (2, 5, 10, 20)}

GRID = {
    f"k={k} dense={dense} boost={boost}": SearchConfig(rrf_k=k, dense_weight=dense, speaker_boost=boost)
    for k, dense, boost in itertools.product((2, 5, 10, 60), (1.0, 1.5, 2.0), (1.0, 2.0, 3.0))
}
ABLATION = {
    "default": SearchConfig(),
    "names stay in the dense query": SearchConfig(names_in_query=True),
    "no speaker boost": SearchConfig(speaker_boost=1.0),
    "neither": SearchConfig(names_in_query=True, speaker_boost=1.0),
    "no context in BM25": SearchConfig(context_in_bm25=False),
    "no date in BM25": SearchConfig(date_in_bm25=False),
    "rrf_k 60": SearchConfig(rrf_k=60),
    "equal weights": SearchConfig(dense_weight=1.0),
    "bm25_k 1.2": SearchConfig(bm25_k=1.2),
    "bm25_k 2": SearchConfig(bm25_k=2.0),
    "bm25_b 0.5": SearchConfig(bm25_b=0.5),
    "bm25_avg_len 30": SearchConfig(bm25_avg_len=30.0),
    "bm25_avg_len 60": SearchConfig(bm25_avg_len=60.0),
    "bm25_avg_len 256": SearchConfig(bm25_avg_len=256.0),
    "prefetch 60": SearchConfig(prefetch=60),
    "prefetch 200": SearchConfig(prefetch=200),
    **BASELINES,
}


def development_tasks(data: Path) -> list[RetrievalTask]:
    """Return the questions that may be looked at while tuning."""
    half = slice(0, 50)
    return [
        locomo_task(load_locomo(data / "locomo", ["conv-26"])),
        passage_task(load_passages(Dataset.HOTPOTQA, data / "hotpotqa", half)),
        passage_task(load_passages(Dataset.MUSIQUE, data / "musique", half)),
    ]


def folds_of(task: RetrievalTask) -> NDArray[np.int64]:
    """Return the fold of each question: by session in LoCoMo, by position otherwise."""
    queries = [query for collection in task.collections for query in collection.queries]
    sessions = [re.match(r"D(\d+):", query.relevant[0]) for query in queries]
    return np.array([(int(s[1]) if s else n) % FOLDS for n, s in enumerate(sessions)])


def main(configs: dict[str, SearchConfig], data: Path) -> None:
    """Measure every configuration on every set and print the table, best first, then the cross-validated score."""
    tasks = development_tasks(data)
    scores: dict[str, list[NDArray[np.float64]]] = {name: [] for name in configs}  # per set: (questions,) mean over k
    for task in tasks:
        found = evaluate_retrieval(task, ks=KS[task.dataset], methods=configs, report=_progress)
        for name in configs:
            by_k = found.scores[name].by_query
            scores[name].append(np.mean([by_k[k] for k in KS[task.dataset]], axis=0))
            recall = " ".join(f"{100 * np.mean(by_k[k]):5.1f}" for k in KS[task.dataset])
            typer.echo(f"{task.dataset:9s} {name:32s} {recall}")
    objective = {name: float(np.mean([values.mean() for values in sets])) for name, sets in scores.items()}
    for name in sorted(objective, key=lambda name: -objective[name]):
        sets = " ".join(f"{100 * values.mean():5.1f}" for values in scores[name])
        typer.echo(f"{100 * objective[name]:6.2f}   {sets}   {name}")
    typer.echo(f"cross-validated: {100 * _cross_validated(scores, [folds_of(task) for task in tasks]):.2f}")


def _cross_validated(scores: dict[str, list[NDArray[np.float64]]], folds: list[NDArray[np.int64]]) -> float:
    """Return the mean score of each question under the configuration chosen without its fold."""
    held_out: list[list[float]] = [[] for _ in folds]
    for fold in range(FOLDS):
        chosen = max(
            scores, key=lambda name: np.mean([s[f != fold].mean() for s, f in zip(scores[name], folds, strict=True)])
        )
        for out, values, f in zip(held_out, scores[chosen], folds, strict=True):
            out.extend(values[f == fold])
    return float(np.mean([np.mean(out) for out in held_out]))


def _progress(stage: str, done: int, total: int) -> None:
    if done == total:
        typer.echo(stage, err=True)


if __name__ == "__main__":
    main(ABLATION if "ablation" in sys.argv[1:] else GRID, Path(os.environ["MEMWEAVE_DATA"]))

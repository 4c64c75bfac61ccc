"""The recipe `memento-q-offline`: a Q-function from rows that somebody collected (Memento, section 4).

    {"query": ..., "case": ..., "plan": ..., "case_label": "positive" | "negative", "truth_label": true | false}

In the released file every row of a query has the same `truth_label`, so a split by rows has the answer to most held-out rows in its
training part. Held out are therefore whole queries; the other split is measured beside it, to show what it hides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from memweave.embeddings import embedder, minilm_installed
from memweave.errors import InputError
from memweave.recipes.own import OwnRecipe, OwnRun

if TYPE_CHECKING:
    from memweave.trainers.case_q import CaseQSettings, Rows

EPOCHS: Final = 10
SEEDS: Final = 3
HELD_OUT: Final = 0.1
HEAD: Final = "head.safetensors"
_EXPECTED: Final = (
    'a line is {"query", "case", "plan", "case_label": "positive" | "negative", "truth_label": true | false}'
)


@dataclass(frozen=True)
class LabelledRow:
    """One row: a case was shown for a query, and the query was solved or not (A11)."""

    query: str
    case: str
    case_reward: float
    solved: bool


def read_rows(path: Path) -> list[LabelledRow]:
    """Return the rows of a file. Raises `InputError` naming the first line that is none, and for rows that teach nothing."""
    from memweave.worlds.files import read_text

    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                rows.append(_row(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path} line {number} is no row: {error} ({_EXPECTED})") from None
    queries = {row.query for row in rows}
    if len(queries) < 10 or len({row.solved for row in rows}) < 2:
        raise InputError(
            f"{path} has {len(queries)} queries, {sum(row.solved for row in rows)} of {len(rows)} rows solved: there have to be ten "
            "queries, solved and unsolved ones"
        )
    return rows


def _row(given: object) -> LabelledRow:
    if not isinstance(given, dict):
        raise ValueError("it is no object")
    query, case = given.get("query"), given.get("case")
    if not isinstance(query, str) or not query.strip() or not isinstance(case, str) or not case.strip():
        raise ValueError("it has no text in query, or in case")
    if given.get("case_label") not in ("positive", "negative"):
        raise ValueError(f"its case_label is {given.get('case_label')!r:.40}")
    if not isinstance(given.get("truth_label"), bool):
        raise ValueError(f"its truth_label is {given.get('truth_label')!r:.40}")
    return LabelledRow(query, case, float(given["case_label"] == "positive"), given["truth_label"])


@dataclass(frozen=True)
class OfflineResult:
    """What the rows taught. AUCs are on held-out rows, one per seed; `None` where they are of one class only."""

    encoder: str
    rows: int
    queries: int
    solved: int
    """Queries that were solved."""
    mixed: int
    """Queries whose rows have both labels. Without any, nothing can be said about which of a query's cases help."""
    epochs: int
    by_query: list[float | None]
    """Held out: whole queries."""
    by_row: list[float | None]
    """Held out: rows, as in the official code; other rows of the same queries were trained on."""
    query_only_by_query: list[float | None]
    """The same for a Q-function that sees no case."""
    query_only_by_row: list[float | None]
    cosine: float | None
    """Similarity of query and case as a score, on all rows."""
    head: str
    """File of the Q-function of the first seed, split by query."""

    def payload(self) -> dict[str, JsonValue]:
        """Return it as one JSON object."""
        made: dict[str, Any] = asdict(self)
        return made

    def lines(self) -> list[str]:
        """Return it for a person to read."""
        within = (
            f"{self.mixed} queries have rows of both labels."
            if self.mixed
            else "All rows of a query have the same label: which of its cases help cannot be learned or measured (within-query AUC: none)."
        )
        return [
            f"{self.rows:,} rows of {self.queries} queries, {self.solved} solved. Embedding {self.encoder}, {self.epochs} epochs, "
            f"{len(self.by_query)} seeds.",
            within,
            "AUC on held-out      queries  rows (leaks)",
            f"Q(query, case)         {_mean(self.by_query)}         {_mean(self.by_row)}",
            f"Q(query) alone         {_mean(self.query_only_by_query)}         {_mean(self.query_only_by_row)}",
            f"cosine                 {_mean([self.cosine])}",
            f"Q-function: {self.head}",
        ]


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.3f}" if known else "  -  "


def run(asked: OwnRun) -> OfflineResult:
    """Train on the rows in `asked.data`."""
    from memweave.trainers.case_q import CaseQSettings, auc

    assert asked.data is not None  # the recipe needs it
    rows = read_rows(asked.data)
    name = "minilm" if minilm_installed() else "hashing"
    model = embedder(name)
    texts = list(dict.fromkeys([text for row in rows for text in (row.query, row.case)]))
    asked.say(f"embedding {len(texts)} texts with {model.model_id}")
    vectors = dict(zip(texts, _unit(model.embed(texts)), strict=True))
    numbers = _numbers(rows, vectors)
    settings = CaseQSettings(label_input=asked.arm == "label-input", balance=True)
    if asked.learning_rate is not None:
        settings = replace(settings, learning_rate=asked.learning_rate)
    epochs = asked.steps or EPOCHS
    found: dict[str, list[float | None]] = {}
    head = asked.out / HEAD
    for seed in range(asked.seed, asked.seed + SEEDS):
        for split, held in (("by_query", _queries_out(rows, seed)), ("by_row", _rows_out(len(rows), seed))):
            for kind, given in (("", numbers), ("query_only_", _without_cases(numbers))):
                asked.say(f"seed {seed}, split {split.replace('_', ' ')}{', without cases' if kind else ''}")
                trainer = _trained(given, ~held, replace(settings, seed=seed), model.model_id, epochs)
                test = given.take(np.flatnonzero(held))
                found.setdefault(kind + split, []).append(auc(trainer.q(test), test.rewards))
                if (seed, kind, split) == (asked.seed, "", "by_query"):
                    trainer.exported().save(head)
    by_query: dict[str, set[bool]] = {}
    for row in rows:
        by_query.setdefault(row.query, set()).add(row.solved)
    cosines = (numbers.queries * numbers.cases).sum(axis=1).astype(np.float64)
    return OfflineResult(
        encoder=model.model_id,
        rows=len(rows),
        queries=len(by_query),
        solved=sum(True in labels for labels in by_query.values()),
        mixed=sum(len(labels) > 1 for labels in by_query.values()),
        epochs=epochs,
        **found,
        cosine=auc(cosines, numbers.rewards),
        head=str(head),
    )


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def _numbers(rows: Sequence[LabelledRow], vectors: dict[str, NDArray[np.float32]]) -> Rows:
    from memweave.trainers.case_q import Rows

    return Rows(
        np.stack([vectors[row.query] for row in rows]),
        np.stack([vectors[row.case] for row in rows]),
        np.array([row.case_reward for row in rows]),
        np.array([float(row.solved) for row in rows]),
    )


def _without_cases(rows: Rows) -> Rows:
    return replace(rows, cases=np.zeros_like(rows.cases), case_rewards=np.full(len(rows), np.nan))


def _queries_out(rows: Sequence[LabelledRow], seed: int) -> NDArray[np.bool_]:
    """Return which rows are held out: all of some queries."""
    queries = sorted({row.query for row in rows})
    rng = np.random.default_rng([seed, 1])
    chosen = rng.choice(len(queries), max(1, round(HELD_OUT * len(queries))), replace=False)
    out = {queries[int(i)] for i in chosen}
    return np.array([row.query in out for row in rows])


def _rows_out(count: int, seed: int) -> NDArray[np.bool_]:
    out = np.zeros(count, dtype=bool)
    out[np.random.default_rng([seed, 2]).choice(count, max(1, round(HELD_OUT * count)), replace=False)] = True
    return out


def _trained(rows: Rows, used: NDArray[np.bool_], settings: CaseQSettings, encoder: str, epochs: int) -> Any:
    from memweave.trainers.case_q import CaseQTrainer

    train = rows.take(np.flatnonzero(used))
    trainer = CaseQTrainer(rows.queries.shape[1], encoder, settings)
    rng = np.random.default_rng([settings.seed, 3])
    for _ in range(epochs):
        order = rng.permutation(len(train))
        size = min(settings.batch, len(train))
        trainer.fit(train, [order[i : i + size] for i in range(0, len(order) - size + 1, size)])
    return trainer


MEMENTO_Q_OFFLINE: Final = OwnRecipe(
    name="memento-q-offline",
    summary="Memento's Q-function from collected rows: AUC by query beside the split by rows, which leaks",
    arms=("plain", "label-input"),
    takes={
        "data": "a file of rows, JSON lines",
        "steps": "epochs",
        "learning-rate": "of AdamW",
        "seed": "the first of three",
        "out": "where the Q-function goes",
    },
    needs=("data",),
    run=run,
)

"""Retrieval among 100,000 cases of one user, records returned: by cosine, pre-filter and Q, and Q over all, in one run after `optimize()`.

Cosine also before it.

Vectors are made up and looked up, so the embedding is excluded; each query asks for a task that the bank has not seen.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import DIMENSION, Row, percentile, report, timed

from memweave.embeddings import Vectors
from memweave.memory_stores import CaseBank, open_cases
from memweave.memory_stores.case_head import QHead
from memweave.memory_stores.case_retrieval import CosineTopK, NeuralQTopK, RetrievalPolicy
from memweave.records import Scope

SCOPE = Scope(user="bench")
HIDDEN = 512
CHUNK = 5_000


class MadeUp:
    """An embedder whose vectors come from the text's number: clusters of similar tasks."""

    model_id = "made-up"
    dimension = DIMENSION

    def __init__(self) -> None:
        self._centres = np.random.default_rng(0).normal(size=(500, DIMENSION)).astype(np.float32)

    def embed(self, texts: list[str]) -> Vectors:
        """Return (n, d); a text is `task NUMBER`."""
        rows = []
        for text in texts:
            number = int(text.split()[1])
            noise = np.random.default_rng(number + 1).normal(size=DIMENSION).astype(np.float32)
            rows.append(self._centres[number % 500] + noise)
        return np.stack(rows)


def head() -> QHead:
    """Return a Q-function with random weights."""
    rng = np.random.default_rng(1)
    shapes = ((HIDDEN, 2 * DIMENSION), (HIDDEN,), (2, HIDDEN), (2,))
    w1, b1, w2, b2 = (rng.normal(scale=0.05, size=shape).astype(np.float32) for shape in shapes)
    return QHead(w1, b1, w2, b2, encoder=MadeUp.model_id)


def fill(bank: CaseBank, count: int) -> float:
    """Import `count` cases and return how many seconds that took, index included."""
    began = time.perf_counter()
    for start in range(0, count, CHUNK):
        lines = [
            json.dumps({"question": f"task {n}", "plan": '{"plan": []}', "reward": n % 2, "case_id": f"{n:032x}"})
            for n in range(start, min(count, start + CHUNK))
        ]
        bank.import_(lines, scope=SCOPE)
    bank.count(scope=SCOPE)
    return time.perf_counter() - began


def asking(bank: CaseBank, policy: RetrievalPolicy, numbers: range) -> list[Callable[[], object]]:
    """Return retrievals of four cases."""
    return [lambda n=n: bank.retrieve(f"task {n}", scope=SCOPE, k=4, policy=policy) for n in numbers]


def row(bank: CaseBank, name: str, policy: RetrievalPolicy, bar: float | None, numbers: range) -> Row:
    """Measure retrievals for new tasks with these numbers."""
    bank.embed([f"task {n}" for n in numbers])  # the last few hundred query vectors are remembered
    for call in asking(bank, policy, range(numbers.stop, numbers.stop + 2)):
        call()  # opens files, reads the table
    times = timed(asking(bank, policy, numbers))
    p50 = percentile(times, 50)
    detail = f"p95 {percentile(times, 95):.2f} ms, {len(numbers)} queries"
    return Row(f"{name}, p50", p50, "ms", f"<= {bar:g}" if bar else "", p50 <= bar if bar else None, detail)


def nearest(bank: CaseBank, numbers: range) -> list[set[str]]:
    """Return the four nearest tasks of each."""
    cosine = CosineTopK()
    return [{each.case.task for each in bank.retrieve(f"task {n}", scope=SCOPE, k=4, policy=cosine)} for n in numbers]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    args = parser.parse_args()
    many, few, count = args.queries, max(5, args.queries // 20), args.cases
    policies: list[tuple[str, RetrievalPolicy, float | None, int]] = [
        ("cosine", CosineTopK(), 3.0, many),
        ("64 by cosine, then Q", NeuralQTopK(head(), prefilter=64), 30.0, many),
        ("256 by cosine, then Q", NeuralQTopK(head(), prefilter=256), 30.0, many),
        ("Q of all cases", NeuralQTopK(head(), prefilter=None), None, few),
    ]
    with tempfile.TemporaryDirectory() as folder, open_cases(Path(folder), embedding=MadeUp()) as bank:
        rows = [Row("filling, import and index", fill(bank, count), "s", detail=f"{count:,} cases")]
        rows.append(row(bank, "cosine before optimize()", CosineTopK(), None, range(count, count + many)))
        exact = nearest(bank, range(count, count + many))
        began = time.perf_counter()
        bank.optimize()
        rows.append(Row("optimize(), once", time.perf_counter() - began, "s", detail="no other thread runs meanwhile"))
        found = nearest(bank, range(count, count + many))
        same = sum(len(one & other) for one, other in zip(exact, found, strict=True)) / (4 * many)
        rows.append(Row("of the four nearest, found after it", same, "share"))
        for place, (name, policy, bar, queries) in enumerate(policies, 1):
            first = count + 10_000 * place
            rows.append(row(bank, name, policy, bar, range(first, first + queries)))
        report("cases", f"Retrieval of 4 among {count:,} cases, {DIMENSION} dimensions, embedding excluded", rows)


if __name__ == "__main__":
    main()

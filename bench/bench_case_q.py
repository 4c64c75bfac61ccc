"""One online update of the Q-function of case retrieval: 32 rows, the head for retrieval made of it, among 100,000 rows of experience."""

from __future__ import annotations

import argparse
from uuid import UUID

import numpy as np
from common import DIMENSION, Row, percentile, report, timed

from memweave.memory_stores.case_retrieval import NeuralQTopK
from memweave.records import ReplayRow
from memweave.trainers.case_q import CaseQSettings, OnlineCaseQ, Rows

SHOWN = 4
BAR = 100.0


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--updates", type=int, default=50)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    learner = OnlineCaseQ(NeuralQTopK(), DIMENSION, "made-up", CaseQSettings(update_every=1, minibatches=1))
    queries, known = (rng.normal(size=(args.rows, DIMENSION)).astype(np.float32) for _ in range(2))
    learner._seen.extend(Rows(queries, known, np.ones(args.rows), rng.random(args.rows).round()))
    shown = [ReplayRow(query="q", case_id=UUID(int=i), reward=1.0) for i in range(SHOWN)]
    query, cases = rng.normal(size=DIMENSION).astype(np.float32), rng.normal(size=(SHOWN, DIMENSION)).astype(np.float32)
    calls = [lambda: learner.observe(shown, query, cases, np.ones(SHOWN))] * args.updates
    timed(calls[:3])
    times = timed(calls)
    p50 = percentile(times, 50)
    rows = [Row("update, p50", p50, "ms", f"<= {BAR:g}", p50 <= BAR, f"p95 {percentile(times, 95):.1f} ms")]
    report("case_q", f"One update on 32 of {args.rows:,} rows, {DIMENSION} dimensions, hidden 512", rows)


if __name__ == "__main__":
    main()

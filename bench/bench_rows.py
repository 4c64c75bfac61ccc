"""From traces to credited rows: generations per second, in memory and read from a trace store.

    python bench/bench_rows.py [--generations 10000]

100 given and 40 sampled tokens a call: one call an episode, and episodes of 20 turns whose prompts repeat all before.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from common import Row as Measured
from common import report

from memweave.records import new_id, utc_now
from memweave.tracing import Generation, Sampling, Score, Trace
from memweave.tracing.store import TraceStore
from memweave.trainers.credit import Credit, Group, broadcast
from memweave.trainers.hops import memory_hop
from memweave.trainers.rows import assign, build_rows

GIVEN, SAMPLED, GROUP_SIZE = 100, 40, 8
BAR = 2_000
SAMPLING = Sampling(temperature=1.0, logprobs="processed")


def growing(episodes: int, *, turns: int, vocabulary: int = 2_048) -> list[Trace]:
    """Return episodes of `turns` calls in one growing context, in groups of 8."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(episodes):
        said: tuple[int, ...] = ()
        calls = []
        for index in range(turns):
            prompt = said + tuple(rng.integers(0, vocabulary, GIVEN).tolist())
            reply = tuple(rng.integers(0, vocabulary, SAMPLED).tolist())
            calls.append(
                Generation(
                    index=index, node="agent", role="agent", policy_version="v1", prompt_token_ids=prompt, token_ids=reply,
                    logprobs=tuple((-rng.random(SAMPLED)).tolist()), sampling=SAMPLING, started_at=utc_now(),
                )
            )  # fmt: skip
            said = prompt + reply
        made.append(
            Trace(
                id=new_id(), run="bench", iteration=0, group=f"task {number // GROUP_SIZE}", replica=number % GROUP_SIZE,
                score=Score(value=float(rng.random())), generations=tuple(calls), started_at=utc_now(), ended_at=utc_now(),
            )
        )  # fmt: skip
    return made


def to_rows(traces: Sequence[Trace], credit: Credit) -> int:
    """Group, credit, build and assign; return how many generations train."""
    groups = [Group(name or "", tuple(part)) for name, part in groupby(traces, key=lambda trace: trace.group)]
    made = build_rows(traces, policy_version="v1", temperature=1.0)
    assign(made.rows, credit(groups).advantages)
    return made.report.trained


def rate(work: Callable[[], int], wanted: int) -> float:
    """Return generations per second, the best of three runs."""
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        done = work()
        best = max(best, done / (time.perf_counter() - start))
        if done != wanted:
            raise SystemExit(f"{done} of {wanted} generations came through")
    return best


def main() -> None:
    """Measure both kinds of episodes, from memory and from disk."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--generations", type=int, default=10_000)
    count = parser.parse_args().generations
    rows = []
    for turns in (1, 20):
        traces = growing(count // turns, turns=turns)
        wanted = len(traces) * turns
        with tempfile.TemporaryDirectory() as folder, TraceStore(Path(folder) / "traces.db") as store:
            store.add_many(traces)

            def read(kept: TraceStore = store) -> int:
                return to_rows(kept.query(run="bench", newest=False), broadcast())

            found = {
                "": rate(lambda kept=traces: to_rows(kept, broadcast()), wanted),
                ", memory-hop credit": rate(lambda kept=traces: to_rows(kept, memory_hop()), wanted),
                ", from a trace store": rate(read, wanted),
            }
        rows += [
            Measured(f"{turns} turn{'s' * (turns > 1)}{how}", value, "gen/s", f">= {BAR:,}", value >= BAR)
            for how, value in found.items()
        ]
    report("rows", f"{count:,} generations to credited rows, {GIVEN} given and {SAMPLED} sampled tokens each", rows)


if __name__ == "__main__":
    main()

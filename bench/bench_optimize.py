"""What Qdrant Edge's `optimize()` gives and costs: searches before, during and after it, at 20,000 memories.

`optimize()` merges segments and builds HNSW graphs. memweave does not call it by itself: see docs/results.md.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time

from common import Given, Row, fill, percentile, queries, report, timed, users

from memweave.memory_stores import open_bank
from memweave.memory_stores.edge import EdgeEngine


def measure(count: int, memories: int) -> list[Row]:
    """Measure a bank whose memories belong to `count` users."""
    given, scopes, rng = Given(), users(count), random.Random(0)
    with tempfile.TemporaryDirectory() as folder, open_bank(folder, embedding=given) as bank:
        fill(bank, given, scopes, memories // count)
        asked = [(q, rng.choice(scopes)) for q in queries(200, given, seed=1_000)]
        searches = [lambda q=q, s=s: bank.search(q, scope=s) for q, s in asked]
        timed(searches[:50])
        before = timed(searches)
        engine = bank._core.projector.engine
        assert isinstance(engine, EdgeEngine)
        thread = threading.Thread(target=engine.optimize)
        start = last = time.perf_counter()
        thread.start()
        gaps = []
        while thread.is_alive():  # how long other Python threads stand still
            time.sleep(0.001)
            gaps.append(time.perf_counter() - last)
            last = time.perf_counter()
        thread.join()
        took = time.perf_counter() - start
        timed(searches[:50])
        after = timed(searches)
    whose = "one user" if count == 1 else f"{count} users"
    return [
        Row(f"{whose}: search before, p50", percentile(before, 50), "ms"),
        Row(f"{whose}: search after, p50", percentile(after, 50), "ms"),
        Row(f"{whose}: optimize in a thread", took, "s"),
        Row(f"{whose}: longest standstill of the other threads meanwhile", max(gaps), "s"),
    ]


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memories", type=int, default=20_000)
    args = parser.parse_args()
    rows = [row for count in (1, 50) for row in measure(count, args.memories)]
    report("optimize", f"Edge's optimize(), {args.memories:,} memories, dimension 384", rows)


if __name__ == "__main__":
    main()

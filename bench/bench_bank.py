"""What a bank of 20,000 memories costs besides searching: one write, a branch, a rebuild, a purge, a second process."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import DIMENSION, Given, Row, fill, percentile, proposals, queries, report, timed, users

from memweave.memory_stores import MemoryBank, open_bank
from memweave.records import Scope

SECOND = """
import json, sys, time
sys.path.insert(0, {folder!r})
from common import Given, queries, users
from memweave.memory_stores import open_bank
given = Given()
(question,) = queries(1, given, seed=5)
start = time.perf_counter()
with open_bank({home!r}, embedding=given) as bank:
    opened = time.perf_counter()
    bank.search(question, scope=users(1)[0])
    found = time.perf_counter()
    owner = bank._core.projector.engine.owns_folder
print(json.dumps([opened - start, found - opened, owner]))
"""


def second_process(home: Path) -> tuple[float, float]:
    """Return how long another process takes to open the folder, and for its first search, in milliseconds."""
    code = SECOND.format(folder=str(Path(__file__).parent), home=str(home))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    opened, found, owner = json.loads(done.stdout)
    assert not owner, "the second process should have found the index taken"
    return opened * 1_000, found * 1_000


def branches(bank: MemoryBank, scope: Scope, given: Given) -> list[Row]:
    """Measure branches of one user's state."""
    (question,) = queries(1, given, seed=6)
    (op,) = proposals(1, given, seed=7)
    first, *others = timed([lambda: bank.branch(scope=scope)] * 201)
    branch = bank.branch(scope=scope)
    count = len(branch.memories(scope=scope))
    p50 = percentile(others, 50)
    return [
        Row(f"branch of {count:,} memories, first of a state", first, "ms"),
        Row(f"branch of {count:,} memories, further ones, p50", p50, "ms", "< 1", p50 < 1),
        Row(
            f"one write in a branch of {count:,}",
            percentile(timed([lambda: branch.apply([op], scope=scope)] * 20), 50),
            "ms",
        ),
        Row(
            f"one search in a branch of {count:,}",
            percentile(timed([lambda: branch.search(question, scope=scope)] * 20), 50),
            "ms",
        ),
    ]


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memories", type=int, default=20_000)
    args = parser.parse_args()
    given, scopes, large = Given(), users(26), Scope(user="large")
    half = args.memories // 2
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "bank"
        with open_bank(home, embedding=given) as bank:
            fill(bank, given, [large], half)
            fill(bank, given, scopes[1:], half // 25)
            (question,) = queries(1, given, seed=4)
            rows = [
                Row(
                    f"index {args.memories:,} memories for the first time",
                    timed([lambda: bank.search(question, scope=large)])[0],
                    "ms",
                )
            ]
            ops = proposals(200, given, seed=99)
            written = timed([lambda op=op: bank.apply([op], scope=scopes[1]) for op in ops])
            rows += [
                Row("apply one ADD, p50", percentile(written, 50), "ms", detail="durable, and in the index"),
                Row("apply one ADD, p95", percentile(written, 95), "ms"),
                Row(
                    "apply 100 ADDs at once, per ADD",
                    timed([lambda: bank.apply(ops[:100], scope=scopes[1])])[0] / 100,
                    "ms",
                ),
                *branches(bank, scopes[2], given),
                *branches(bank, large, given),
                Row(
                    "list the memories of a user with 400",
                    percentile(timed([lambda: bank.memories(scope=scopes[3])] * 20), 50),
                    "ms",
                ),
            ]
            opened, found = second_process(home)
            rows += [
                Row("second process: open", opened, "ms"),
                Row("second process: first search (its temporary index)", found, "ms"),
                Row("rebuild the index", timed([bank.rebuild])[0], "ms"),
                Row(
                    "purge one of 26 users (rewrites ledger and index)",
                    timed([lambda: bank.purge(scope=scopes[2])])[0],
                    "ms",
                ),
            ]
            size = sum(path.stat().st_blocks * 512 for path in home.rglob("*")) / 1e6
            rows.append(Row("size on disk", size, "MB"))
    report(
        "bank",
        f"Other calls, {args.memories:,} memories of 26 users (one of them has half), dimension {DIMENSION}",
        rows,
    )


if __name__ == "__main__":
    main()

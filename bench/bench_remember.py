"""What remembering one turn costs outside the embedding model: Memory-R1's construction graph with rules, at 10,000 memories.

The turns are those of the demo's conversation; the bank holds 10,000 memories of the same two speakers. The time that the embedder
takes is measured inside it and subtracted.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from common import Row, Words, percentile, report

from memweave.embeddings import HashingEmbedder, Vectors
from memweave.graphs.memory_r1 import create_construction_graph
from memweave.graphs.memory_r1_construction import ConstructionGraph
from memweave.memory_stores import MemoryBank, open_bank
from memweave.records import OpKind, ProposedOp, Scope, Turn
from memweave.worlds import read_turns

ANNA = Scope(user="anna")


class Stopwatch(HashingEmbedder):
    """Hashing embeddings of MiniLM's size, and how long they took, in seconds."""

    seconds = 0.0

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (n, 384) float32."""
        start = time.perf_counter()
        try:
            return super().embed(texts)
        finally:
            self.seconds += time.perf_counter() - start


def fill(bank: MemoryBank, turns: Sequence[Turn], count: int) -> None:
    """Write memories of the conversation's speakers, in sentences of 8 to 24 words."""
    words, speakers = Words(1), sorted({turn.speaker for turn in turns})
    ops = [
        ProposedOp(kind=OpKind.ADD, text=words.sentence(8, 24), speaker=speakers[n % 2], reason="made up", actor="bench", run_id="old")
        for n in range(count)
    ]  # fmt: skip
    for start in range(0, count, 500):
        bank.apply(ops[start : start + 500], scope=ANNA)


def batch(
    bank: MemoryBank, graph: ConstructionGraph, watch: Stopwatch, turns: Sequence[Turn]
) -> tuple[list[float], dict[str, list[float]]]:
    """Remember all turns in one run; returns milliseconds per turn and per node, the embedder's time subtracted."""
    begin = time.perf_counter()
    bank.accept(turns, scope=ANNA)
    accepting = (time.perf_counter() - begin) * 1_000 / len(turns)
    per_turn: list[float] = []
    nodes: dict[str, list[float]] = defaultdict(list)
    last, embedded, current = time.perf_counter(), watch.seconds, 0.0
    for update in graph.stream({}, stream_mode="updates"):
        now = time.perf_counter()
        took = (now - last - (watch.seconds - embedded)) * 1_000
        last, embedded = now, watch.seconds
        for node in update:
            nodes[node].append(took)
            current += took
            if node == "apply":
                per_turn.append(current + accepting)
                current = 0.0
    return per_turn, nodes


def one_by_one(bank: MemoryBank, graph: ConstructionGraph, watch: Stopwatch, turns: Sequence[Turn]) -> list[float]:
    """Remember each turn by a run of its own, as a chat does; returns milliseconds, the embedder's time subtracted."""
    out = []
    for turn in turns:
        start, embedded = time.perf_counter(), watch.seconds
        bank.accept([turn], scope=ANNA)
        graph.invoke({})
        out.append((time.perf_counter() - start - (watch.seconds - embedded)) * 1_000)
    return out


def profiled(call: Callable[[], object]) -> None:
    """Print where a call spends its time."""
    profile = cProfile.Profile()
    profile.runcall(call)
    pstats.Stats(profile).sort_stats("tottime").print_stats(30)


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memories", type=int, default=10_000)
    parser.add_argument("--profile", action="store_true", help="print a profile instead of the table")
    args = parser.parse_args()
    watch = Stopwatch(384)
    turns = read_turns(Path(str(files("memweave.demo") / "conversation.jsonl")))
    again = [turn.model_copy(update={"dialogue": "again"}) for turn in turns[:100]]
    with tempfile.TemporaryDirectory() as folder, open_bank(folder, embedding=watch) as bank:
        fill(bank, turns, args.memories)
        bank.search("warm up", scope=ANNA)
        graph = create_construction_graph(bank, scope=ANNA, max_turns=1_000_000)
        if args.profile:
            bank.accept(turns, scope=ANNA)
            profiled(lambda: graph.invoke({}))
            return
        per_turn, nodes = batch(bank, graph, watch, turns)
        single = one_by_one(bank, graph, watch, again)
        embedding = watch.seconds
    p50 = percentile(per_turn, 50)
    rows = [
        Row("a turn in a run over all turns, p50", p50, "ms", "<= 10", p50 <= 10),
        Row("a turn in a run over all turns, p95", percentile(per_turn, 95), "ms"),
        Row("a turn in a run of its own, p50", percentile(single, 50), "ms"),
        *(
            Row(f"    node {node}, mean", sum(took) / len(took), "ms", detail=f"{len(took)} times")
            for node, took in nodes.items()
        ),
        Row("embedder, in all (subtracted above)", embedding, "s"),
    ]
    report(
        "remember", f"Remember a turn, rule manager, {args.memories:,} memories of one user, {len(turns)} turns", rows
    )


if __name__ == "__main__":
    main()

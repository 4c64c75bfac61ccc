"""How late the event loop is while 64 async tasks use one bank: p99 of what a 1 ms sleep takes beyond 1 ms.

Each task writes (one ADD per call) and searches, without a pause, on a bank that holds memories already. The index is open when the
measurement starts; opening it is reported apart, because Qdrant Edge keeps the interpreter to itself while it loads.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path

from common import Row, Words, percentile, report, users

from memweave.memory_stores import MemoryBank, open_bank
from memweave.records import OpKind, ProposedOp, Scope

TASKS = 64


def add(text: str) -> ProposedOp:
    """Return one memory to write."""
    return ProposedOp(kind=OpKind.ADD, text=text, speaker="Anna", reason="made up for a benchmark", actor="bench")


async def watch(lags: list[float], stop: asyncio.Event) -> None:
    """Note by how many milliseconds each short sleep is late."""
    while not stop.is_set():
        start = time.perf_counter()
        await asyncio.sleep(0.001)
        lags.append((time.perf_counter() - start) * 1_000 - 1)


async def work(bank: MemoryBank, scope: Scope, words: Words, until: float, calls: list[float]) -> None:
    """Write and search until a time, without a pause."""
    while time.perf_counter() < until:
        start = time.perf_counter()
        await bank.aapply([add(words.sentence(8, 24))], scope=scope)
        await bank.asearch(words.sentence(4, 9), scope=scope)
        calls.append((time.perf_counter() - start) * 1_000)


async def measured(bank: MemoryBank, scopes: list[Scope], seconds: float) -> tuple[list[float], list[float]]:
    """Return lags of the loop and durations of one write and one search, in milliseconds."""
    lags: list[float] = []
    calls: list[float] = []
    stop = asyncio.Event()
    words = [Words(seed) for seed in range(TASKS)]
    watcher = asyncio.create_task(watch(lags, stop))
    until = time.perf_counter() + seconds
    await asyncio.gather(*(work(bank, scopes[n % len(scopes)], words[n], until, calls) for n in range(TASKS)))
    stop.set()
    await watcher
    return lags, calls


async def opening(home: Path, embedding: str, scope: Scope) -> list[float]:
    """Return lags of the loop while a folder is opened and first searched."""
    lags: list[float] = []
    stop = asyncio.Event()
    watcher = asyncio.create_task(watch(lags, stop))
    async with await asyncio.to_thread(open_bank, home, embedding=embedding) as bank:
        await bank.asearch("tea", scope=scope)
    stop.set()
    await watcher
    return lags


def run(embedding: str, *, memories: int, seconds: float) -> list[Row]:
    """Measure one embedding."""
    rng, words, scopes = random.Random(0), Words(9), users(16)
    with tempfile.TemporaryDirectory() as folder:
        with open_bank(folder, embedding=embedding) as bank:
            for scope in scopes:
                bank.apply([add(words.sentence(8, 24)) for _ in range(memories // len(scopes))], scope=scope)
            bank.search("tea", scope=rng.choice(scopes))
            lags, calls = asyncio.run(measured(bank, scopes, seconds))
        opened = asyncio.run(opening(Path(folder), embedding, scopes[0]))
    p99 = percentile(lags, 99)
    return [
        Row(f"{embedding}: lag, p50", percentile(lags, 50), "ms"),
        Row(f"{embedding}: lag, p99", p99, "ms", "<= 50", p99 <= 50),
        Row(f"{embedding}: lag, maximum", max(lags), "ms"),
        Row(
            f"{embedding}: write + search of one task, p50",
            percentile(calls, 50),
            "ms",
            detail=f"{len(calls) / seconds:.0f}/s in all",
        ),
        Row(f"{embedding}: lag while a folder is opened, maximum", max(opened), "ms"),
    ]


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memories", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--embedding", nargs="*", default=["hashing", "minilm"])
    args = parser.parse_args()
    rows = [row for name in args.embedding for row in run(name, memories=args.memories, seconds=args.seconds)]
    report(
        "loop_lag", f"Event-loop lag, {TASKS} tasks, {args.memories:,} memories of 16 users, {args.seconds:g} s", rows
    )


if __name__ == "__main__":
    main()

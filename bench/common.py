"""What the benchmarks share: made-up memories with vectors, timing, a table, and one JSON file per benchmark."""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memweave.embeddings import Vectors
from memweave.memory_stores import MemoryBank
from memweave.memory_stores.text import embedded_text
from memweave.records import OpKind, ProposedOp, Scope

RESULTS = Path(__file__).with_name("results")
DIMENSION = 384
PACKAGES = ("qdrant-edge-py", "qdrant-client", "sqlalchemy", "numpy", "langgraph")


@dataclass(frozen=True)
class Row:
    """One measurement. bar: what it must meet, in words; met: whether it does (`None`: reported only)."""

    what: str
    value: float
    unit: str
    bar: str = ""
    met: bool | None = None
    detail: str = ""


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile. share: 0..100."""
    return float(np.percentile(np.asarray(values), share))


def timed(calls: Iterable[Callable[[], object]]) -> list[float]:
    """Return how long each call took, in milliseconds."""
    out = []
    for call in calls:
        start = time.perf_counter()
        call()
        out.append((time.perf_counter() - start) * 1_000)
    return out


def report(name: str, title: str, rows: Sequence[Row]) -> None:
    """Print a table and write `results/NAME.json`."""
    width = max(len(row.what) for row in rows)
    print(f"\n{title}")
    for row in rows:
        verdict = "" if row.met is None else ("  ok" if row.met else "  MISSED")
        bar = f"  bar {row.bar}{verdict}" if row.bar else ""
        print(
            f"  {row.what:<{width}}  {row.value:>10.3f} {row.unit:<5}{bar}{'  (' + row.detail + ')' if row.detail else ''}"
        )
    found = {"benchmark": name, "title": title, "machine": machine(), "rows": [asdict(row) for row in rows]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def machine() -> dict[str, str | int | float]:
    """Return where and when this ran. load: processes that wanted a CPU in the last minute, ours included."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=RESULTS.parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": commit,
        "cpu": _cpu(),
        "cores": os.cpu_count() or 0,
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


class Given:
    """An `Embedder` that looks up vectors made beforehand, so that a benchmark measures everything but the model."""

    model_id = "given"
    dimension = DIMENSION

    def __init__(self) -> None:
        self._known: dict[str, NDArray[np.float32]] = {}

    def learn(self, texts: Sequence[str], *, seed: int) -> None:
        """Give each text a random unit vector around one of 200 centres, as texts about 200 subjects would have."""
        rng = np.random.default_rng(seed)
        centres = np.random.default_rng(0).normal(size=(200, DIMENSION))
        rows = centres[rng.integers(200, size=len(texts))] + rng.normal(size=(len(texts), DIMENSION))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        self._known.update(zip(texts, rows.astype(np.float32), strict=True))

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (n, 384) float32."""
        return np.stack([self._known[text] for text in texts])


class Words:
    """Sentences over a vocabulary whose word frequencies fall as in natural text (Zipf)."""

    def __init__(self, seed: int, size: int = 5_000) -> None:
        syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u")]
        words = random.Random(0)
        self._words = ["".join(words.choices(syllables, k=words.randint(2, 4))) for _ in range(size)]
        self._weights = [1 / (rank + 10) for rank in range(size)]
        self._rng = random.Random(seed)

    def sentence(self, low: int, high: int) -> str:
        """Return a sentence of `low` to `high` words."""
        return " ".join(self._rng.choices(self._words, self._weights, k=self._rng.randint(low, high)))


SPEAKERS = ("Annabel Hart", "Bertram Cole")


def users(count: int) -> list[Scope]:
    """Return the scopes of `count` users."""
    return [Scope(user=f"user{number}") for number in range(count)]


def proposals(count: int, embedder: Given, *, seed: int) -> list[ProposedOp]:
    """Return ADDs of made-up memories of 8 to 24 words, by two speakers, whose vectors `embedder` knows."""
    words = Words(seed)
    out = []
    for number in range(count):
        text, speaker = words.sentence(8, 24), SPEAKERS[number % 2]
        out.append(
            ProposedOp(
                kind=OpKind.ADD,
                text=text,
                speaker=speaker,
                dialogue=f"session{number // 20}",
                source_ids=(f"D{number}",),
                observed_at=datetime(2026, 1, 1 + number % 28, tzinfo=UTC),
                context=words.sentence(8, 16),
                reason="made up for a benchmark",
                actor="bench",
            )  # fmt: skip
        )
    embedder.learn([embedded_text(op.text or "", op.speaker) for op in out], seed=seed)
    return out


def fill(bank: MemoryBank, embedder: Given, scopes: Sequence[Scope], each: int) -> None:
    """Write `each` memories for every scope."""
    for number, scope in enumerate(scopes):
        ops = proposals(each, embedder, seed=number)
        for start in range(0, each, 500):
            bank.apply(ops[start : start + 500], scope=scope)


def queries(count: int, embedder: Given, *, seed: int, name: str = "") -> list[str]:
    """Return questions of 4 to 9 words, each naming `name` if given, whose vectors `embedder` knows."""
    words = Words(seed)
    out = [f"{name} {words.sentence(4, 9)}".strip() for _ in range(count)]
    # A bank embeds a question without the participants' names.
    embedder.learn([question.removeprefix(name).strip() for question in out], seed=seed)
    return out

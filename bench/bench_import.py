"""How long `import memweave` and the command line's help take in a fresh interpreter, and what they load."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from common import Row, percentile, report

HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "openai",
    "qdrant_client",
    "langgraph",
    "langchain_core",
    "sqlalchemy",
)


def loaded(statement: str) -> list[str]:
    """Return which heavy packages a statement loads."""
    code = f"import sys, json\n{statement}\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def seconds(command: list[str], *, times: int = 7) -> list[float]:
    """Return how long a command takes, in seconds."""
    out = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        out.append(time.perf_counter() - start)
    return out


def slowest(statement: str, count: int = 5) -> list[tuple[str, float]]:
    """Return the top-level packages that cost most, in milliseconds (`-X importtime`)."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", statement], capture_output=True, text=True, check=True
    )
    costs: dict[str, float] = {}
    for line in done.stderr.splitlines():
        own, _, name = line.removeprefix("import time:").split("|") if line.count("|") == 2 else ("", "", "")
        if own.strip().isdigit():
            package = name.strip().partition(".")[0]
            costs[package] = costs.get(package, 0.0) + int(own) / 1_000
    return sorted(costs.items(), key=lambda item: -item[1])[:count]


def main() -> None:
    """Run all of it."""
    start = percentile(seconds([sys.executable, "-c", "pass"]), 50)
    rows = [Row("python -c pass, p50", start, "s")]
    for name, command, statement, bar in (
        ("import memweave", [sys.executable, "-c", "import memweave"], "import memweave", True),
        ("from memweave.memory_stores import open_bank", None, "from memweave.memory_stores import open_bank", False),
        ("memweave --help", [sys.executable, "-m", "memweave", "--help"], "import memweave.cli.app", False),
    ):
        took = percentile(seconds(command or [sys.executable, "-c", statement]), 50)
        heavy = loaded(statement)
        limit, met = ("< 1, no torch", took < 1 and "torch" not in heavy) if bar else ("", None)
        rows.append(
            Row(
                f"{name}, p50",
                took,
                "s",
                limit,
                met,
                detail="loads " + (", ".join(heavy) or "none of the heavy packages"),
            )
        )
        for package, cost in slowest(statement)[:3]:
            rows.append(Row(f"    of which {package}", cost / 1_000, "s"))
    report("import", "Import and first screen, interpreter start included", rows)


if __name__ == "__main__":
    main()

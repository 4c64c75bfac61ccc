"""Deliberate faults: `make mutants`, or `python mutants [NAME ...]`. Every one must be caught by the test suite.

Each fault is one replacement in one file. It is planted in a copy of the checkout, the tests named beside it run there, and they
must fail. Before that the same tests must pass without the fault. Exits with 1 when a fault survives, 2 when a fault no longer
matches the code (then it must be brought up to date: the code moved on).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults import FAULTS, Fault

ROOT = Path(__file__).parents[1]
WORKERS = 2
TIMEOUT = 600


def copy_checkout(target: Path) -> None:
    """Copy the files that git knows or would add, links as links."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source = ROOT / name
        if not source.is_symlink() and not source.is_file():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target / name, follow_symlinks=False)


def tests_pass(checkout: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Run `tests` in `checkout`; return whether they pass, and the end of what pytest said. Tests that hang do not pass."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not integration", *tests]
    try:
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"nothing came of it within {TIMEOUT} s"
    last = "\n".join(done.stdout.strip().splitlines()[-3:])
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest could not run {' '.join(tests)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0, last


def plant(fault: Fault, checkout: Path) -> None:
    """Put the fault into `checkout`. Raises `SystemExit` when its text is not there exactly once."""
    path = checkout / fault.file
    text = path.read_text()
    if text.count(fault.old) != 1:
        raise SystemExit(
            f"fault {fault.name}: its text is {text.count(fault.old)} times in {fault.file}; bring it up to date"
        )
    path.write_text(text.replace(fault.old, fault.new))


def try_fault(fault: Fault) -> tuple[Fault, bool, str, float]:
    """Return the fault, whether it was caught, what pytest said, and how many seconds it took."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder)
        copy_checkout(checkout)
        plant(fault, checkout)
        passed, said = tests_pass(checkout, fault.tests)
    return fault, not passed, said, time.perf_counter() - began


def main() -> int:
    """Try the faults named on the command line, or all; return the exit code."""
    wanted = [fault for fault in FAULTS if not sys.argv[1:] or fault.name in sys.argv[1:]]
    if unknown := set(sys.argv[1:]) - {fault.name for fault in FAULTS}:
        print(
            f"no fault {', '.join(sorted(unknown))}; there are {', '.join(fault.name for fault in FAULTS)}",
            file=sys.stderr,
        )
        return 2
    tests = tuple(sorted({test for fault in wanted for test in fault.tests}))
    print(f"{len(wanted)} faults. First without any: {len(tests)} files or tests", flush=True)
    passed, said = tests_pass(ROOT, tests)
    if not passed:
        print(f"the tests fail already:\n{said}", file=sys.stderr)
        return 1
    survived = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for fault, caught, said, seconds in pool.map(try_fault, wanted):
            print(
                f"{'caught' if caught else 'SURVIVED':<9} {fault.name:<44} {seconds:5.0f} s  {fault.what}", flush=True
            )
            if not caught:
                survived.append(fault.name)
                print(said, file=sys.stderr)
    print(f"{len(wanted) - len(survived)} of {len(wanted)} faults were caught")
    return bool(survived)


if __name__ == "__main__":
    sys.exit(main())

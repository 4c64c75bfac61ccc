"""kill -9 while cases and experience are written: what was acknowledged is found, an import is there whole or not at all."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from memweave.memory_stores import open_cases
from memweave.memory_stores.case_retrieval import CosineTopK
from memweave.records import Scope

ANNA = Scope(user="anna")
CHILD = Path(__file__).with_name("case_crash_child.py")


def killed(home: Path, *, after: int | None = None, probe: int | None = None) -> list[dict[str, Any]]:
    """Let a process work until a probe, or until it has said `after` things; return all that it said before it died."""
    process = subprocess.Popen(
        [sys.executable, str(CHILD), str(home), *([str(probe)] if probe else [])], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(json.loads(line))
            if len(said) == after:
                process.kill()
        assert process.wait(60) == -signal.SIGKILL
    return said


def check(home: Path, said: list[dict[str, Any]]) -> None:
    with open_cases(home) as bank:
        cases, rows = bank.cases(scope=ANNA), bank.replay(scope=ANNA)
        ids, by_run = {case.id for case in cases}, Counter(row.run_id for row in rows)
        assert {UUID(line["case"]) for line in said if "case" in line} <= ids
        for line in said:
            if "case" in line:
                assert by_run[line["run"]] == line["rows"]
        assert {row.case_id for row in rows} <= ids
        imported = Counter(case.run_id for case in cases if case.run_id and case.run_id.startswith("import"))
        assert {line["imported"] for line in said if "imported" in line} <= set(imported)
        assert set(imported.values()) <= {2}
        assert {run: by_run[run] for run in imported} == imported
        assert {run for run in by_run if run and run.startswith("import")} == set(imported)
        if cases:
            shown = bank.retrieve(cases[-1].task, scope=ANNA, k=1, policy=CosineTopK())
            assert shown[0].case.task == cases[-1].task


@pytest.mark.parametrize("seed", range(2))
def test_what_was_acknowledged_is_there_after_a_kill_at_random(tmp_path: Path, seed: int) -> None:
    rng, said = random.Random(seed), list[dict[str, Any]]()
    for _ in range(2):
        said += killed(tmp_path, after=rng.randint(3, 12))
        check(tmp_path, said)


def test_killed_between_two_writes_on_one_folder_again_and_again(tmp_path: Path) -> None:
    said = list[dict[str, Any]]()
    for probe in (1, 3, 8, 12, 13, 14, 15):
        said += killed(tmp_path, probe=probe)
        check(tmp_path, said)

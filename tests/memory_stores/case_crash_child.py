"""A process that writes cases and experience until it is killed; `test_case_crash.py` starts this file.

    python case_crash_child.py FOLDER [PROBE]

Says `{"case": ID, "rows": N}` on standard output once the rows of a task and then its case are acknowledged, and `{"imported": RUN}` after
each import. Dies by SIGKILL at the PROBEth point between two durable writes, or when someone kills it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from itertools import count

from memweave.memory_stores import open_cases, probes
from memweave.memory_stores.case_lines import replay_line
from memweave.records import NewCase, ReplayRow, Scope, new_id

ANNA = Scope(user="anna")


def emit(**line: object) -> None:
    """Write one line in one piece, unbuffered: whoever reads it may rely on it."""
    os.write(1, (json.dumps(line) + "\n").encode())


def imported(run: str) -> list[str]:
    """Return an export of two cases with a row of experience each."""
    lines = []
    for number in range(2):
        case_id = new_id()
        case = {"question": f"task {run} {number}", "plan": "p", "reward": 1, "run_id": run, "case_id": str(case_id)}
        lines += [json.dumps(case), replay_line(ReplayRow(query="q", case_id=case_id, reward=1.0, run_id=run))]
    return lines


def main(home: str, kill_at: int | None) -> None:
    """Write until killed."""
    reached = count(1)

    def listener(point: str) -> None:
        if next(reached) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with open_cases(home, embedding="hashing:64") as bank:
        probes.listen(listener)
        for number in count():
            run = f"{os.getpid()}.{number}"
            shown = bank.cases(scope=ANNA)[-3:]
            rows = [ReplayRow(query=run, case_id=case.id, reward=0.0, run_id=run) for case in shown]
            bank.add_replay(rows, scope=ANNA)
            case = bank.write(NewCase(task=f"task {run}", plan="p", reward=0.0, run_id=run), scope=ANNA)
            assert case is not None
            emit(case=case.id.hex, run=run, rows=len(rows))
            bank.import_(imported(f"import {run}"), scope=ANNA)
            emit(imported=f"import {run}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)

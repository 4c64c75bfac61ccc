"""Processes that work on a bank until they are killed; `test_crash.py` starts this file.

Reads one case per line from standard input, forks a process for it (so that 100 cases import everything once), and reports on
standard output, one JSON object per line: `pid` when the process starts, one line per acknowledged call, `exit` when it has ended.

    {"home": FOLDER, "ledger_url": null, "case": "7", "kill_at": 12}     work, and die by SIGKILL at the 12th probe
    {..., "kill_at": null, "record": true}                               report the probes of one undisturbed run
    {..., "kill_at": null, "endless": true}                              work until someone kills it
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from itertools import count
from typing import Any

from memweave.memory_stores import MemoryBank, open_bank, probes
from memweave.records import MemoryOp, OpKind, ProposedOp, Scope, StoredTurn, Turn

ANNA, BOB = Scope(user="anna"), Scope(user="bob")


def emit(**line: Any) -> None:
    """Write one line in one piece, unbuffered: whoever reads it may rely on it."""
    os.write(1, (json.dumps(line) + "\n").encode())


class Work:
    """A fixed sequence of calls that uses every kind of write; numbered, so that each can be recognised in the log."""

    def __init__(self, bank: MemoryBank, case: str) -> None:
        self.bank, self.case, self.done = bank, case, 0

    def steps(self) -> Iterator[None]:
        """Do one call after the other."""
        for step in (self.adds, self.turn, self.replaces, self.undoes, self.rejects, self.undoes_run, self.purges):
            self.run = f"{self.case}.{self.done}"
            step()
            self.done += 1
            yield

    def op(self, kind: OpKind, *, target: int | None = None) -> ProposedOp:
        memory = self.bank.memories(scope=ANNA)[target] if target is not None else None
        text = f"{kind} {self.run} tea" if kind in (OpKind.ADD, OpKind.UPDATE) else None
        return ProposedOp(
            kind=kind, memory_id=memory.id if memory else None, text=text, reason="r", actor="child", run_id=self.run,
            source_ids=(self.run,), speaker="Anna" if kind is OpKind.ADD else None,
        )  # fmt: skip

    def apply(self, *ops: ProposedOp, turn: StoredTurn | None = None) -> list[MemoryOp]:
        done = self.bank.apply(ops, scope=ANNA, turn=turn)
        emit(applied=[op.id.hex for op in done], turn=turn.source_id if turn else None)
        return done

    def accept(self) -> StoredTurn:
        (turn,) = self.bank.accept([Turn(source_id=self.run, speaker="Anna", text=f"turn {self.run}")], scope=ANNA)
        emit(accepted=turn.source_id)
        return turn

    def adds(self) -> None:
        self.apply(*(self.op(OpKind.ADD) for _ in range(3)))

    def turn(self) -> None:
        self.apply(self.op(OpKind.ADD), self.op(OpKind.UPDATE, target=0), turn=self.accept())

    def replaces(self) -> None:
        self.last = self.apply(self.op(OpKind.DELETE, target=0), self.op(OpKind.UPDATE, target=1), self.op(OpKind.ADD))

    def undoes(self) -> None:
        undone = self.bank.undo(self.last[0].id, scope=ANNA, actor="child")
        emit(applied=[undone.id.hex], turn=None)

    def rejects(self) -> None:
        turn = self.accept()
        failed = self.bank.reject("not JSON", scope=ANNA, actor="child", turn=turn, run_id=f"{self.run}-rejected")
        emit(rejected=turn.source_id, op=failed.id.hex)
        self.apply(self.op(OpKind.UPDATE, target=-1), self.op(OpKind.NOOP), self.op(OpKind.ADD), turn=turn)

    def undoes_run(self) -> None:
        undone = self.bank.undo_run(f"{self.case}.{self.done - 1}", scope=ANNA, actor="child")
        emit(applied=[op.id.hex for op in undone], turn=None)

    def purges(self) -> None:
        self.bank.apply([self.op(OpKind.ADD).model_copy(update={"speaker": "Bobsecret"})], scope=BOB)
        self.bank.purge(scope=BOB)
        emit(purged=True)


def work(case: dict[str, Any]) -> None:
    """Be the process of one case."""
    reached: list[str] = []

    def listener(point: str) -> None:
        reached.append(point)
        if len(reached) == case["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    probes.listen(listener)
    with open_bank(case["home"], embedding="hashing:64", ledger_url=case.get("ledger_url")) as bank:
        bank.search("tea", scope=ANNA)  # opens the index
        for cycle in count():
            for _ in Work(bank, f"{case['case']}.{cycle}").steps():
                pass
            if not case.get("endless"):
                break
    if case.get("record"):
        emit(probes=reached)


def main() -> None:
    """Fork one process per line of input."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            emit(pid=os.getpid())
            try:
                work(json.loads(line))
            except BaseException as error:
                emit(error=repr(error))
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        emit(exit=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()

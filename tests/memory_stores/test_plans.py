"""Reads of a few rows touch a few rows, however many a user has: what SQLite's planner makes of the ledger's queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from memweave.memory_stores import MemoryBank
from memweave.records import Scope, Turn
from memweave.testing.operations import add

READS: dict[str, tuple[Callable[[MemoryBank, Scope], object], str]] = {
    "get several": (
        lambda bank, scope: bank._found([m.id for m in bank.memories(scope=scope, limit=3)], scope=scope),
        "sqlite_autoindex_memweave_versions_1 (partition=? AND memory_id=?)",
    ),
    "turns before": (
        lambda bank, scope: bank.turns(scope=scope, dialogue="default", before=9, limit=2),
        "memweave_turns_dialogue (partition=? AND dialogue=? AND position<?)",
    ),
    "pending turns": (
        lambda bank, scope: bank.turns(scope=scope, status=bank.turns(scope=scope)[0].status),
        "memweave_turns_status (partition=? AND status=?)",
    ),
    "speakers": (lambda bank, scope: bank.speakers(scope=scope), "USING COVERING INDEX memweave_versions_open"),
    "last operations": (
        lambda bank, scope: bank.log(scope=scope, newest=True, limit=2),
        "memweave_ops_partition (partition=? AND seq>?)",
    ),
    "a run": (
        lambda bank, scope: bank.log(scope=scope, run_id="1"),
        "memweave_ops_run (partition=? AND run_id=? AND seq>?)",
    ),
    "history": (
        lambda bank, scope: bank.history(bank.memories(scope=scope)[0].id, scope=scope),
        "memweave_ops_memory (partition=? AND memory_id=? AND seq>?)",
    ),
}


@pytest.mark.parametrize("read", READS)
def test_a_read_uses_its_index(bank: MemoryBank, scope: Scope, read: str) -> None:
    bank.apply([add(f"fact {n}", speaker="Anna") for n in range(10)], scope=scope)
    bank.accept([Turn(source_id=str(n), speaker="Anna", text="hello") for n in range(10)], scope=scope)
    engine = bank._core.ledger.database.engine
    statements: list[tuple[str, Any]] = []
    sa.event.listen(engine, "before_cursor_execute", lambda _c, _k, text, values, *_: statements.append((text, values)))
    call, expected = READS[read]
    call(bank, scope)
    selects = [(text, values) for text, values in statements if text.startswith("SELECT")]
    with engine.connect() as connection:
        plans = [
            str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).all()) for text, values in selects
        ]
    assert any(expected in plan for plan in plans), plans

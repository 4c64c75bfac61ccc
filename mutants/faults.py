"""The faults, and the tests that must notice each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault: in `file`, `old` (there exactly once) becomes `new`."""

    name: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = [
    Fault(
        "prefetch-without-filter",
        "one of the two prefetches of a hybrid search ignores the scope",
        "memory_stores/edge.py",
        "qe.Prefetch(limit=query.prefetch, query=bm25, filter=where, params=idf)",
        "qe.Prefetch(limit=query.prefetch, query=bm25, params=idf)",
        ("tests/memory_stores/test_engines.py", "tests/memory_stores/test_search.py"),
    ),
    Fault(
        "undo-forgets-index",
        "the undo of an ADD (a DELETE) reaches the ledger and not the index",
        "memory_stores/ledger.py",
        "        return Change(seq, partition, Effect.REMOVE, memory_id, None)",
        "        return Change(seq, partition, Effect.NONE, memory_id, None)",
        ("tests/memory_stores/test_stores.py", "tests/memory_stores/test_search.py"),
    ),
]

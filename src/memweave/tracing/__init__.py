"""Traces: every LangGraph run as a token-exact record that can be stored, inspected, exported and trained on.

The records are here at once; the rest is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from memweave.tracing.records import (
    TRACE_FORMAT,
    ChatMessage,
    Generation,
    MemoryEvent,
    MemoryRef,
    Sampling,
    Score,
    Trace,
    TraceStatus,
)

if TYPE_CHECKING:
    from memweave.tracing.diagnosis import Finding, doctor
    from memweave.tracing.export import read_jsonl, to_dataset, to_parquet, write_jsonl
    from memweave.tracing.store import TraceStore
    from memweave.tracing.tracer import Tracer

_HOME = {
    "Finding": "memweave.tracing.diagnosis",
    "TraceStore": "memweave.tracing.store",
    "Tracer": "memweave.tracing.tracer",
    "doctor": "memweave.tracing.diagnosis",
    "read_jsonl": "memweave.tracing.export",
    "to_dataset": "memweave.tracing.export",
    "to_parquet": "memweave.tracing.export",
    "write_jsonl": "memweave.tracing.export",
}

__all__ = [
    "ChatMessage",
    "Finding",
    "Generation",
    "MemoryEvent",
    "MemoryRef",
    "Sampling",
    "Score",
    "TRACE_FORMAT",
    "Trace",
    "TraceStatus",
    "TraceStore",
    "Tracer",
    "doctor",
    "read_jsonl",
    "to_dataset",
    "to_parquet",
    "write_jsonl",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'memweave.tracing' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Traces: every LangGraph run as a token-exact record that can be stored, inspected, exported and trained on."""

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

__all__ = [
    "TRACE_FORMAT",
    "ChatMessage",
    "Generation",
    "MemoryEvent",
    "MemoryRef",
    "Sampling",
    "Score",
    "Trace",
    "TraceStatus",
]

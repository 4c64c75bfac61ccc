"""LangGraph agents whose memory is learned.

Importing this package imports nothing heavy and does nothing; the names below are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memweave.graphs.agemem import create_agemem_agent
    from memweave.graphs.graph_memory import create_graph_memory_agent
    from memweave.graphs.memento import create_memento_agent
    from memweave.graphs.memento_feedback import record_feedback
    from memweave.graphs.memory_middleware import MemoryMiddleware
    from memweave.graphs.memory_r1 import create_memory_r1_agent
    from memweave.memory_stores import CaseBank, MemoryBank, StrategyGraph, open_bank, open_cases, open_strategies
    from memweave.models import chat_model
    from memweave.records import IndexFilter, Memory, MemoryHit, MemoryOp, ProposedOp, Scope, Turn

__version__ = "0.1.0"

_HOME = {
    "CaseBank": "memweave.memory_stores",
    "IndexFilter": "memweave.records",
    "Memory": "memweave.records",
    "MemoryBank": "memweave.memory_stores",
    "MemoryHit": "memweave.records",
    "MemoryMiddleware": "memweave.graphs.memory_middleware",
    "MemoryOp": "memweave.records",
    "ProposedOp": "memweave.records",
    "Scope": "memweave.records",
    "StrategyGraph": "memweave.memory_stores",
    "Turn": "memweave.records",
    "chat_model": "memweave.models",
    "create_agemem_agent": "memweave.graphs.agemem",
    "create_graph_memory_agent": "memweave.graphs.graph_memory",
    "create_memento_agent": "memweave.graphs.memento",
    "create_memory_r1_agent": "memweave.graphs.memory_r1",
    "open_bank": "memweave.memory_stores",
    "open_cases": "memweave.memory_stores",
    "open_strategies": "memweave.memory_stores",
    "record_feedback": "memweave.graphs.memento_feedback",
}

__all__ = [
    "CaseBank",
    "IndexFilter",
    "Memory",
    "MemoryBank",
    "MemoryHit",
    "MemoryMiddleware",
    "MemoryOp",
    "ProposedOp",
    "Scope",
    "StrategyGraph",
    "Turn",
    "chat_model",
    "create_agemem_agent",
    "create_graph_memory_agent",
    "create_memento_agent",
    "create_memory_r1_agent",
    "open_bank",
    "open_cases",
    "open_strategies",
    "record_feedback",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'memweave' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

"""Ledger, index and the memory bank over them."""

from memweave.memory_stores.bank import MemoryBank
from memweave.memory_stores.branch import Branch
from memweave.memory_stores.case_bank import CaseBank, CaseSettings, RetrievedCase, open_cases
from memweave.memory_stores.case_retrieval import retrieval_policy
from memweave.memory_stores.engine import SearchConfig
from memweave.memory_stores.in_use import bank_in_use, use_bank
from memweave.memory_stores.opening import open_bank, reembed
from memweave.memory_stores.store import MemoryStore
from memweave.memory_stores.strategy_graph import ScoredStrategy, StrategyGraph, StrategySettings, open_strategies

__all__ = [
    "Branch",
    "CaseBank",
    "CaseSettings",
    "MemoryBank",
    "MemoryStore",
    "RetrievedCase",
    "ScoredStrategy",
    "SearchConfig",
    "StrategyGraph",
    "StrategySettings",
    "bank_in_use",
    "open_bank",
    "open_cases",
    "open_strategies",
    "reembed",
    "retrieval_policy",
    "use_bank",
]

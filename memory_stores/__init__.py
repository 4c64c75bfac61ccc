"""Ledger, index and the memory bank over them."""

from memweave.memory_stores.bank import MemoryBank
from memweave.memory_stores.branch import Branch
from memweave.memory_stores.case_bank import CaseBank, CaseSettings, RetrievedCase, open_cases
from memweave.memory_stores.case_retrieval import retrieval_policy
from memweave.memory_stores.engine import SearchConfig
from memweave.memory_stores.in_use import bank_in_use, use_bank
from memweave.memory_stores.opening import open_bank, reembed
from memweave.memory_stores.store import MemoryStore

__all__ = [
    "Branch",
    "CaseBank",
    "CaseSettings",
    "MemoryBank",
    "MemoryStore",
    "RetrievedCase",
    "SearchConfig",
    "bank_in_use",
    "open_bank",
    "open_cases",
    "reembed",
    "retrieval_policy",
    "use_bank",
]

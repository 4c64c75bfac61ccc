"""Ledger, index and the memory bank over them."""

from memweave.memory_stores.bank import MemoryBank
from memweave.memory_stores.branch import Branch
from memweave.memory_stores.engine import SearchConfig
from memweave.memory_stores.in_use import bank_in_use, use_bank
from memweave.memory_stores.opening import open_bank, reembed
from memweave.memory_stores.store import MemoryStore

__all__ = ["Branch", "MemoryBank", "MemoryStore", "SearchConfig", "bank_in_use", "open_bank", "reembed", "use_bank"]

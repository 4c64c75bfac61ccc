"""Ledger, index and the memory bank over them."""

from memweave.memory_stores.bank import MemoryBank
from memweave.memory_stores.branch import Branch
from memweave.memory_stores.engine import SearchConfig
from memweave.memory_stores.opening import open_bank, reembed
from memweave.memory_stores.store import MemoryStore

__all__ = ["Branch", "MemoryBank", "MemoryStore", "SearchConfig", "open_bank", "reembed"]

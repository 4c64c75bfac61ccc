"""Ledger, index and the memory bank over them."""

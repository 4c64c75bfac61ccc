"""What a deliberate fault is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault: in `file`, `old` (there exactly once) becomes `new`. tests: files, or single tests of slow files."""

    name: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

"""What all SQLite files of ours have in common: a write-ahead log, commits that are on disk, deleted cells that are overwritten."""

from __future__ import annotations

import sqlite3
import time
from typing import Final

BUSY_SECONDS: Final = 30
"""How long a connection waits for another writer."""
_RETRY_SECONDS: Final = 0.01


def prepare(connection: sqlite3.Connection) -> None:
    """Set a new connection up. Raises `sqlite3.OperationalError` when others hold the file for longer than `BUSY_SECONDS`."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            break
        except sqlite3.OperationalError as error:
            # Two that turn a new file into one with a log hold a shared lock each; SQLite does not wait then, whatever its timeout.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(_RETRY_SECONDS)
    for pragma in ("synchronous=FULL", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}").close()

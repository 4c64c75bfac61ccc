"""Opening a database for the ledger: SQLite (WAL) by default, PostgreSQL by URL; one writer at a time in both.

SQLite commits are synced to disk (synchronous=FULL) and deleted content is overwritten (secure_delete), so that what was
acknowledged survives a power cut and what was purged is gone.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from memweave import sqlite_files
from memweave.errors import DataFolderError, InputError, SettingsError, StorageFullError, UnavailableError
from memweave.memory_stores.schema import metadata

_WRITER_LOCK: Final = 0x6D656D77
"""Key of the PostgreSQL advisory lock that lets one transaction write at a time: commit order is then the order of `seq`."""
_PROJECTOR_LOCK: Final = 0x6D656D78


class Database:
    """A pooled connection to the ledger's database. Raises typed errors that name it."""

    def __init__(self, url: str | URL) -> None:
        self.url = parsed_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.where = f"ledger {self.url.database}" if self.is_sqlite else f"ledger {self.url.render_as_string()}"
        with self.errors("open"):
            self.engine = _sqlite(self.url) if self.is_sqlite else _postgres(self.url)
        self._peek = threading.Lock()
        self._peeking: Any = None  # the driver's own connection
        self._writer = threading.RLock()
        self._projector = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection in a read transaction: one consistent state."""
        with self.errors("read"), self.engine.connect() as connection:
            if not self.is_sqlite:  # where each statement would see a state of its own
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection in a write transaction, the only one; commits on success, otherwise changes nothing."""
        with self._writer, self.errors("write"), self.engine.connect() as connection:
            connection = connection.execution_options(memweave_write=True)
            with connection.begin():
                if not self.is_sqlite:
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITER_LOCK})
                yield connection

    def peek(self, query: str) -> Any:
        """Return the single value of a query that runs before every read, so without the toolkit's overhead on SQLite."""
        with self.errors("read"):
            if not self.is_sqlite:
                with self.engine.connect() as connection:
                    return connection.exec_driver_sql(query).scalar()
            with self._peek:
                if self._peeking is None:
                    self._peeking = self.engine.raw_connection()
                row = self._peeking.driver_connection.execute(query).fetchone()
                return row[0] if row else None

    @contextmanager
    def projecting(self) -> Iterator[None]:
        """Let one projector at a time, over all processes that share this database, write to a shared index."""
        with self._projector:
            if self.is_sqlite:
                with file_lock(Path(f"{self.url.database}.projector.lock")):
                    yield
                return
            with self.errors("read"), self.engine.connect() as connection:
                connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": _PROJECTOR_LOCK})
                try:
                    yield
                finally:
                    connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": _PROJECTOR_LOCK})

    def erase_traces(self) -> None:
        """Remove deleted content from the files: SQLite's page remainders and write-ahead log, or PostgreSQL's dead rows.

        PostgreSQL's own write-ahead log and backups keep theirs until the server recycles them.
        Raises: UnavailableError when another process reads for so long that the files cannot be rewritten.
        """
        with self._writer, self.errors("purge"):
            if self.is_sqlite:
                self._rewrite()
            else:
                with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    connection.exec_driver_sql(f"SET lock_timeout = '{sqlite_files.BUSY_SECONDS}s'")
                    try:
                        # FULL writes the tables anew: a plain VACUUM frees the space of deleted rows, their bytes stay in it.
                        connection.exec_driver_sql(f"VACUUM (FULL) {', '.join(metadata.tables)}")
                    finally:
                        connection.exec_driver_sql("RESET lock_timeout")

    def _rewrite(self) -> None:
        raw = self.engine.raw_connection()
        try:
            connection: Any = raw.driver_connection  # the driver's own: VACUUM cannot run in a transaction
            # secure_delete overwrites freed cells, but not the copies that balancing the tree leaves between the cells of a page.
            connection.execute("VACUUM").close()
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            raw.close()
        if busy:
            raise UnavailableError(
                f"what was purged is gone from {self.where}, but not yet from its write-ahead log, because another process is "
                "reading. Repeat the purge, or close that process."
            )

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turn the driver's errors into ours."""
        try:
            yield
        except DBAPIError as error:
            raise self._translated(error.orig or error, doing, isinstance(error, OperationalError)) from error
        except sqlite3.Error as error:
            raise self._translated(error, doing, True) from error
        except UnicodeEncodeError as error:
            raise InputError(f"cannot {doing} {self.where}: {error.object[:80]!r} is not valid Unicode.") from error

    def _translated(self, error: BaseException, doing: str, operational: bool) -> BaseException:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "is full" in text or "No space left" in text or "disk I/O error" in text:
            return StorageFullError(
                f"the disk is full: cannot {doing} {self.where} ({text}). Nothing was changed; free space and repeat."
            )
        if "lock timeout" in text:
            return UnavailableError(
                f"what was purged is gone from {self.where}, but not yet from its files, because another session is using "
                "the tables. Repeat the purge."
            )
        if "locked" in text:
            return UnavailableError(
                f"{self.where} is locked by another writer for {sqlite_files.BUSY_SECONDS} s. Repeat, or find the process that holds it."
            )
        if "malformed" in text or "not a database" in text:
            return DataFolderError(f"{self.where} is damaged ({text}). Restore it from a backup or an export.")
        if self.is_sqlite and ("unable to open" in text or "readonly" in text):
            return DataFolderError(
                f"cannot {doing} {self.where} ({text}). Check that the folder exists and is writable."
            )
        if not self.is_sqlite and operational:
            return UnavailableError(f"{self.where} does not answer ({text}). Start it or correct ledger_url.")
        return error

    def close(self) -> None:
        """Release all connections."""
        with self._peek:
            if self._peeking is not None:
                self._peeking.close()
                self._peeking = None
        self.engine.dispose()


def parsed_url(url: str | URL) -> URL:
    """Return a database URL as we use it. Raises: SettingsError when it is none, or of another database."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise SettingsError(f"ledger_url {url!r} is not a database URL, such as postgresql://user@host/name") from error
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite":
        return parsed
    raise SettingsError(f"ledger_url {parsed.render_as_string()!r}: only sqlite:// and postgresql:// are supported")


def _sqlite(url: URL) -> Engine:
    engine = sa.create_engine(
        url, connect_args={"timeout": sqlite_files.BUSY_SECONDS, "check_same_thread": False}, pool_size=16
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:  # the driver's connection
        connection.isolation_level = None  # we begin transactions ourselves, so that a writer takes its lock at once
        sqlite_files.prepare(connection)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("memweave_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgres(url: URL) -> Engine:
    try:
        return sa.create_engine(url, connect_args={"connect_timeout": 10}, pool_size=16, pool_pre_ping=True)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise SettingsError(
            "a PostgreSQL ledger needs the extra 'postgres': pip install 'memweave[postgres]'"
        ) from error


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; released by the kernel when the process ends."""
    import fcntl

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

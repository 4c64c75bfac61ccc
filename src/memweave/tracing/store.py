"""`TraceStore`: traces in a SQLite file of their own.

A trace that `add` has returned for is on disk: it survives a crash of the program and of the machine. Several threads
and processes may use one file. The file is readable by its owner alone: a trace holds whole prompts.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

from memweave import sqlite_files
from memweave.errors import (
    DataFolderError,
    FormatError,
    InputError,
    StorageFullError,
    UnavailableError,
)
from memweave.records import as_utc, utc_now
from memweave.tracing.packing import checked, pack, unpack
from memweave.tracing.records import Score, Trace, TraceStatus

STORE_FORMAT: Final = 1
"""Version of the file; raised when a reader of the old one would misread the new one."""
FILE_NAME: Final = "traces.db"
"""Name of the file in a data folder."""

_APPLICATION: Final = 0x6D775472  # "mwTr": tells our file from another program's
_PAGE: Final = 200
_UNFINISHED: Final = (TraceStatus.UNAVAILABLE, TraceStatus.CANCELLED)
_TABLES: Final = """
CREATE TABLE traces (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    episode TEXT UNIQUE,
    run TEXT, iteration INTEGER, grp TEXT,
    status TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    generations INTEGER NOT NULL,
    body BLOB NOT NULL,
    tokens BLOB NOT NULL
);
CREATE INDEX traces_by_time ON traces (started_at, seq);
CREATE INDEX traces_by_run ON traces (run, iteration, grp);
CREATE TABLE scores (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    trace BLOB NOT NULL REFERENCES traces (id) ON DELETE CASCADE,
    recorded_at INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX scores_by_trace ON scores (trace, seq);
"""
_COLUMNS: Final = """SELECT t.seq, t.started_at, t.body, t.tokens,
    (SELECT s.body FROM scores s WHERE s.trace = t.id ORDER BY s.seq DESC LIMIT 1) FROM traces t"""


class TraceStore:
    """Traces on disk. The same trace, or the same episode, is stored once.

    An episode is (run, iteration, policy version, group, replica), for traces that say run, group and replica. Adding an
    episode that is there already changes nothing and returns the id of the stored trace: an episode that is run again after
    a crash is never doubled. A run that was cancelled, or whose server did not answer, takes no place: it is kept as an
    attempt, and the episode can still be stored. The policy version is `metadata["policy_version"]`, or else what the
    generations say.

    Raises `FormatError` for a file of a newer version, `DataFolderError` for one that is no trace store or cannot be
    opened, `StorageFullError` when the disk is full (nothing is changed then, and the store can be used again once there
    is space), `UnavailableError` when another process locks the file for 30 s.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.where = f"trace store {self.path}"
        self._lock = threading.RLock()
        with self._errors("open"):
            self._connection = self._connected()

    # writing

    def add(self, trace: Trace) -> UUID:
        """Store a trace with its score; returns its id, or that of the trace which holds the episode already."""
        return self.add_many([trace])[0]

    def add_many(self, traces: Iterable[Trace]) -> list[UUID]:
        """Store traces, all of them or none; returns what `add` would for each."""
        packed = [(trace, *pack(trace)) for trace in traces]
        with self._writing("write") as connection:
            return [self._insert(connection, trace, body, tokens) for trace, body, tokens in packed]

    def _insert(self, connection: sqlite3.Connection, trace: Trace, body: bytes, tokens: bytes) -> UUID:
        key = episode_key(trace)
        values = (
            trace.id.bytes, key, trace.run, trace.iteration, trace.group, trace.status.value,
            _microseconds(trace.started_at), len(trace.generations), body, tokens,
        )  # fmt: skip
        done = connection.execute(
            "INSERT INTO traces (id, episode, run, iteration, grp, status, started_at, generations, body, tokens) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            values,
        )
        if done.rowcount:
            if trace.score is not None:
                self._record(connection, trace.id, trace.score)
            return trace.id
        found = connection.execute(
            "SELECT id FROM traces WHERE id = ? OR episode = ? ORDER BY id = ? DESC", (values[0], key, values[0])
        ).fetchone()
        return UUID(bytes=found[0])

    def score(self, trace_id: UUID, score: Score) -> None:
        """Give a trace a score. Earlier ones are kept; the latest counts. Raises `InputError` without such a trace."""
        with self._writing("write") as connection:
            if connection.execute("SELECT 1 FROM traces WHERE id = ?", (trace_id.bytes,)).fetchone() is None:
                raise InputError(f"there is no trace {trace_id} in {self.path}. `memweave traces list` shows them.")
            self._record(connection, trace_id, score)

    def _record(self, connection: sqlite3.Connection, trace_id: UUID, score: Score) -> None:
        connection.execute(
            "INSERT INTO scores (trace, recorded_at, body) VALUES (?, ?, ?)",
            (trace_id.bytes, _microseconds(utc_now()), score.model_dump_json()),
        )

    def delete(self, ids: Iterable[UUID]) -> int:
        """Erase traces and their scores; returns how many there were. The file is rewritten, so that nothing of them is left."""
        with self._writing("delete from") as connection:
            done = connection.executemany("DELETE FROM traces WHERE id = ?", [(each.bytes,) for each in ids]).rowcount
        self._rewrite(done)
        return max(done, 0)

    def prune(self, before: datetime) -> int:
        """Erase traces of runs that started before a time (UTC if it names no zone); returns how many."""
        with self._writing("delete from") as connection:
            moment = _microseconds(as_utc(before))
            done = connection.execute("DELETE FROM traces WHERE started_at < ?", (moment,)).rowcount
        self._rewrite(done)
        return done

    # reading

    def get(self, trace_id: UUID) -> Trace | None:
        """Return a trace with its latest score, or `None`."""
        with self._reading() as connection:
            row = connection.execute(f"{_COLUMNS} WHERE t.id = ?", (trace_id.bytes,)).fetchone()
        return None if row is None else self._trace(row)

    def scores(self, trace_id: UUID) -> list[Score]:
        """Return all scores that a trace was given, oldest first."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT body FROM scores WHERE trace = ? ORDER BY seq", (trace_id.bytes,)
            ).fetchall()
        return [Score.model_validate_json(body) for (body,) in rows]

    def query(
        self,
        *,
        run: str | None = None,
        iteration: int | None = None,
        group: str | None = None,
        status: TraceStatus | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
        newest: bool = True,
    ) -> list[Trace]:
        """Return traces that meet all conditions, newest first (or oldest), at most `limit`.

        since, until: start of the run; `until` is exclusive.
        """
        where = _conditions(run, iteration, group, status, since, until)
        return list(self._pages(*where, limit=limit, newest=newest))

    def iterate(
        self,
        *,
        run: str | None = None,
        iteration: int | None = None,
        group: str | None = None,
        status: TraceStatus | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
        newest: bool = True,
    ) -> Iterator[Trace]:
        """Yield what `query` returns, read page by page: for more than fits into memory."""
        where = _conditions(run, iteration, group, status, since, until)
        return self._pages(*where, limit=limit, newest=newest)

    def ids(self) -> list[UUID]:
        """Return the ids of all traces, in the order in which they were added."""
        with self._reading() as connection:
            return [UUID(bytes=key) for (key,) in connection.execute("SELECT id FROM traces ORDER BY seq").fetchall()]

    def count(
        self,
        *,
        run: str | None = None,
        iteration: int | None = None,
        group: str | None = None,
        status: TraceStatus | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> int:
        """Return how many traces meet all conditions."""
        conditions, values = _conditions(run, iteration, group, status, since, until)
        with self._reading() as connection:
            row = connection.execute(f"SELECT count(*) FROM traces t WHERE {conditions}", values).fetchone()
        return int(row[0])

    def _pages(self, conditions: str, values: Sequence[Any], *, limit: int | None, newest: bool) -> Iterator[Trace]:
        order, beyond = ("DESC", "<") if newest else ("ASC", ">")
        left = limit if limit is not None else -1
        place: tuple[int, ...] = ()
        while left != 0:
            after = f"AND (t.started_at, t.seq) {beyond} (?, ?)" if place else ""
            size = _PAGE if left < 0 else min(left, _PAGE)
            with self._reading() as connection:
                rows = connection.execute(
                    f"{_COLUMNS} WHERE {conditions} {after} ORDER BY t.started_at {order}, t.seq {order} LIMIT ?",
                    (*values, *place, size),
                ).fetchall()
            for row in rows:
                yield self._trace(row)
            if len(rows) < size:
                return
            place = (rows[-1][1], rows[-1][0])
            left = left - len(rows) if left > 0 else left

    def _trace(self, row: Sequence[Any]) -> Trace:
        _, _, body, tokens, score = row
        fields = unpack(body, tokens)
        if score is not None:
            fields["score"] = Score.model_validate_json(score)
        return checked(fields, self.where)

    # from async code

    async def aadd(self, trace: Trace) -> UUID:
        """Store a trace, as `add` does."""
        return await asyncio.to_thread(self.add, trace)

    async def aadd_many(self, traces: Iterable[Trace]) -> list[UUID]:
        """Store traces, as `add_many` does."""
        return await asyncio.to_thread(self.add_many, list(traces))

    async def aget(self, trace_id: UUID) -> Trace | None:
        """Return a trace, as `get` does."""
        return await asyncio.to_thread(self.get, trace_id)

    async def ascore(self, trace_id: UUID, score: Score) -> None:
        """Give a trace a score, as `score` does."""
        await asyncio.to_thread(self.score, trace_id, score)

    # the file

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _connected(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Made by us and not by SQLite, for the sake of its mode; the write-ahead log takes that over.
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(
            self.path, timeout=sqlite_files.BUSY_SECONDS, check_same_thread=False, isolation_level=None
        )  # we begin transactions ourselves, so that a writer takes its lock at once
        try:
            self._check_format(connection)
            sqlite_files.prepare(connection)
            connection.execute("PRAGMA foreign_keys=ON").close()
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                for statement in _TABLES.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {STORE_FORMAT}")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_format(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN")  # one moment: another process may be making the tables
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute("COMMIT")
        if tables and application != _APPLICATION:
            raise DataFolderError(f"{self.path} is another program's database, not a trace store. Name another file.")
        if version > STORE_FORMAT:
            raise FormatError(
                f"{self.path} is a trace store of format {version}; this version reads up to {STORE_FORMAT}. Upgrade memweave."
            )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors("read"):
            yield self._connection

    @contextmanager
    def _writing(self, doing: str) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors(doing):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _rewrite(self, deleted: int) -> None:
        """Write the file anew: deleted cells are overwritten, but copies of them may be left between the cells of a page."""
        if deleted <= 0:
            return
        with self._lock, self._errors("rewrite"):
            self._connection.execute("VACUUM").close()
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._translated(error, doing) from error
        except OSError as error:
            raise self._translated(error, doing) from error

    def _translated(self, error: Exception, doing: str) -> Exception:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "is full" in text or "No space left" in text or "disk I/O error" in text:
            return StorageFullError(
                f"the disk is full: cannot {doing} {self.where} ({text}). Nothing was changed; free space and repeat."
            )
        if "locked" in text:
            return UnavailableError(
                f"{self.where} is locked by another writer for {sqlite_files.BUSY_SECONDS} s. Repeat."
            )
        if "malformed" in text or "not a database" in text:
            return DataFolderError(f"{self.where} is damaged or no trace store ({text}). Restore it, or name another.")
        if "closed" in text:
            return InputError(f"{self.where} is closed. Open it again.")
        return DataFolderError(f"cannot {doing} {self.where} ({text}). Check the folder and its permissions.")


def episode_key(trace: Trace) -> str | None:
    """Return what no two stored traces share; `None` for a trace that is no episode or did not get to its end."""
    if trace.run is None or trace.group is None or trace.replica is None or trace.status in _UNFINISHED:
        return None
    iteration = "" if trace.iteration is None else str(trace.iteration)
    return "\0".join((trace.run, iteration, policy_version(trace), trace.group, str(trace.replica)))


def policy_version(trace: Trace) -> str:
    """Return the policy version of an episode: as its metadata say, else those of its generations; empty without any."""
    given = trace.metadata.get("policy_version")
    if isinstance(given, str):
        return given
    return "+".join(sorted({each.policy_version for each in trace.generations if each.policy_version}))


def _microseconds(moment: datetime) -> int:
    return round(as_utc(moment).timestamp() * 1_000_000)


def _conditions(
    run: str | None,
    iteration: int | None,
    group: str | None,
    status: TraceStatus | None,
    since: datetime | None,
    until: datetime | None,
) -> tuple[str, list[Any]]:
    given = (
        ("t.run = ?", run),
        ("t.iteration = ?", iteration),
        ("t.grp = ?", group),
        ("t.status = ?", status.value if status else None),
        ("t.started_at >= ?", _microseconds(since) if since else None),
        ("t.started_at < ?", _microseconds(until) if until else None),
    )
    used = [(text, value) for text, value in given if value is not None]
    return " AND ".join(text for text, _ in used) or "1", [value for _, value in used]

"""Tables of the ledger, for SQLite and PostgreSQL. Times are microseconds since 1970 (UTC), structures are JSON text."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

# SQLite numbers rows by itself only in a column declared INTEGER.
_Serial = BigInteger().with_variant(Integer(), "sqlite")

meta = Table(
    "memweave_meta", metadata, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False)
)
"""Format version, ledger id, embedding model and dimension."""

scopes = Table(
    "memweave_scopes",
    metadata,
    Column("partition", String(32), primary_key=True),
    Column("collection", String(64), nullable=False),
    Column("tenant", Text, nullable=False),
    Column("user", Text, nullable=False),
    Index("memweave_scopes_user", "tenant", "user"),
)
"""Who owns a partition. The other tables know the partition only, so that purging a user leaves no name behind."""

ops = Table(
    "memweave_ops",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("op_id", String(32), nullable=False),
    Column("partition", String(32), nullable=False),
    Column("kind", String(8), nullable=False),
    Column("status", String(8), nullable=False),
    Column("memory_id", String(32)),
    Column("before_version", Integer),
    Column("after_version", Integer),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("policy_version", Text),
    Column("source_ids", Text, nullable=False),
    Column("run_id", Text),
    Column("error", Text),
    Column("undoes", String(32)),
    Column("recorded_at", BigInteger, nullable=False),
    UniqueConstraint("partition", "op_id"),
    Index("memweave_ops_partition", "partition", "seq"),
    Index("memweave_ops_memory", "partition", "memory_id", "seq"),
    Index("memweave_ops_run", "partition", "run_id", "seq"),
    sqlite_autoincrement=True,
)
"""The log, append-only. kind PURGE is the content-free tombstone of a purged partition."""

versions = Table(
    "memweave_versions",
    metadata,
    Column("partition", String(32), primary_key=True),
    Column("memory_id", String(32), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("opened_seq", BigInteger, nullable=False),
    Column("closed_seq", BigInteger),
    Column("recorded_at", BigInteger, nullable=False),
    Column("closed_at", BigInteger),
    Column("text", Text, nullable=False),
    Column("speaker", Text),
    Column("dialogue", Text),
    Column("context", Text),
    Column("source_ids", Text, nullable=False),
    Column("observed_at", BigInteger),
    Column("observed_naive", SmallInteger, nullable=False),
    Column("valid_from", BigInteger),
    Column("valid_to", BigInteger),
    Column("trust", String(16), nullable=False),
    Column("metadata", Text, nullable=False),
    Column("run_id", Text),
    Column("vector", LargeBinary, nullable=False),
    Index("memweave_versions_open", "partition", "closed_seq", "speaker"),
    Index("memweave_versions_seq", "opened_seq"),
)
"""Every version of every memory with its vector (little-endian float32). Closing one sets closed_seq and closed_at, nothing else."""

turns = Table(
    "memweave_turns",
    metadata,
    Column("position", _Serial, primary_key=True, autoincrement=True),
    Column("partition", String(32), nullable=False),
    Column("dialogue", Text, nullable=False),
    Column("source_id", Text, nullable=False),
    Column("speaker", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("observed_at", BigInteger),
    Column("observed_naive", SmallInteger, nullable=False),
    Column("previous", Text),
    Column("trust", String(16), nullable=False),
    Column("status", String(8), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error", Text),
    UniqueConstraint("partition", "dialogue", "source_id"),
    Index("memweave_turns_status", "partition", "status", "position"),
    Index("memweave_turns_dialogue", "partition", "dialogue", "position"),
    sqlite_autoincrement=True,
)
"""Messages as they came in, kept so that a failed turn can be retried."""

replay = Table(
    "memweave_replay",
    metadata,
    Column("position", _Serial, primary_key=True, autoincrement=True),
    Column("partition", String(32), nullable=False),
    Column("row", Text, nullable=False),
    Index("memweave_replay_partition", "partition", "position"),
    sqlite_autoincrement=True,
)
"""Which cases were shown for a query, and what came of it (`ReplayRow`, as JSON): experience, append-only."""

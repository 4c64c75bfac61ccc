"""Tables of the ledger, for SQLite and PostgreSQL. Times are microseconds since 1970 (UTC), structures are JSON text."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
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

graph_paths = Table(
    "memweave_graph_paths",
    metadata,
    Column("position", _Serial, primary_key=True, autoincrement=True),
    Column("partition", String(32), nullable=False),
    Column("path_id", String(32), nullable=False),
    Column("machine", Text, nullable=False),
    Column("states", Text, nullable=False),
    UniqueConstraint("partition", "path_id"),
    sqlite_autoincrement=True,
)
"""Canonical paths of a graph of strategies. All tables of a graph go by the partition of its strategies."""

graph_edges = Table(
    "memweave_graph_edges",
    metadata,
    Column("position", _Serial, primary_key=True, autoincrement=True),
    Column("partition", String(32), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("source", String(32), nullable=False),
    Column("target", String(32), nullable=False),
    Column("initial", Double, nullable=False),
    Column("weight", Double, nullable=False),
    Column("updates", Integer, nullable=False),
    Column("gap_sum", Double, nullable=False),
    Column("active", SmallInteger, nullable=False),
    Column("op_id", String(32), nullable=False),
    UniqueConstraint("partition", "kind", "source", "target"),
    Index("memweave_graph_edges_op", "partition", "op_id"),
    sqlite_autoincrement=True,
)
"""Edges and their trainable weights, but for what `graph_moves` still has. An edge counts while it is active (the operation that made it is
not undone) and both ends are current; one that does not keeps its weight for when that comes back."""

graph_steps = Table(
    "memweave_graph_steps",
    metadata,
    Column("position", _Serial, primary_key=True, autoincrement=True),
    Column("partition", String(32), nullable=False),
    Column("version", Integer, nullable=False),
    Column("kind", String(8), nullable=False),
    Column("touches", BigInteger, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),
    Column("row", Text, nullable=False),
    Index("memweave_graph_steps_version", "partition", "version"),
    sqlite_autoincrement=True,
)
"""What changed the weights, append-only: kind `step` (`WeightUpdate`, as JSON) or `rollback`. touches: the sum of `updates` over all edges
afterwards, which lets a check see that weights and log belong together."""

graph_snapshots = Table(
    "memweave_graph_snapshots",
    metadata,
    Column("partition", String(32), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("recorded_at", BigInteger, nullable=False),
    Column("kept", SmallInteger, nullable=False),
    Column("edges", Integer, nullable=False),
    Column("touches", BigInteger, nullable=False),
    Column("weights", LargeBinary, nullable=False),
)
"""Weights that can be gone back to: (position, weight, updates, gap_sum) of the edges that had been trained, compressed."""

graph_moves = Table(
    "memweave_graph_moves",
    metadata,
    Column("partition", String(32), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("gap", Double, nullable=False),
    Column("weights", LargeBinary, nullable=False),
)
"""Steps that the edges do not have yet: (position, weight) of those that each one touched. A step appends one row; now and then all rows of
a partition are written into its edges and go."""

LATER = (replay, graph_paths, graph_edges, graph_steps, graph_snapshots, graph_moves)
"""Tables that ledgers of the first releases lack; they are added when such a ledger is opened."""

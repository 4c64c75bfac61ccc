"""The statements of every write and every look at the ledger, made once: building one anew costs five times its execution."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import bindparam

from memweave.memory_stores.schema import meta, ops, scopes, turns, versions
from memweave.records import TurnStatus

HEAD: Final = "SELECT seq FROM memweave_ops ORDER BY seq DESC LIMIT 1"
LAST_TIME: Final = "SELECT recorded_at FROM memweave_ops ORDER BY seq DESC LIMIT 1"

META: Final = sa.select(meta.c.value).where(meta.c.key == bindparam("name"))
OWNER: Final = sa.select(scopes.c.user).where(scopes.c.partition == bindparam("owned"))

INSERT_OP: Final = sa.insert(ops)
INSERT_VERSION: Final = sa.insert(versions)

_MEMORY: Final = (versions.c.partition == bindparam("in_partition"), versions.c.memory_id == bindparam("of_memory"))
CURRENT: Final = sa.select(versions).where(*_MEMORY, versions.c.closed_seq.is_(None))
"""The current version of a memory. Parameters: in_partition, of_memory; for the others also at_version."""
LAST_VERSION: Final = sa.select(sa.func.max(versions.c.version)).where(*_MEMORY)
VERSION: Final = sa.select(versions).where(*_MEMORY, versions.c.version == bindparam("at_version"))
CLOSE_VERSION: Final = (
    sa.update(versions)
    .where(*_MEMORY, versions.c.version == bindparam("at_version"))
    .values(closed_seq=bindparam("by_seq"), closed_at=bindparam("by_time"))
)

# A position alone could be one of a branch.
_PENDING_TURN: Final = (
    turns.c.partition == bindparam("in_partition"),
    turns.c.position == bindparam("at_position"),
    turns.c.dialogue == bindparam("in_dialogue"),
    turns.c.source_id == bindparam("of_source"),
    turns.c.status == TurnStatus.PENDING.value,
)
FINISH_TURN: Final = sa.update(turns).where(*_PENDING_TURN).values(status=TurnStatus.DONE.value, error=None)
"""A turn that is not done becomes done. Parameters: in_partition, at_position, in_dialogue, of_source; to fail also because."""
FAIL_TURN: Final = (
    sa.update(turns).where(*_PENDING_TURN).values(attempts=turns.c.attempts + 1, error=bindparam("because"))
)


@lru_cache
def turns_with(*given: str) -> sa.Select[Any]:
    """Return the query for turns of a partition, oldest first, or newest first before a position.

    given: which of the parameters in_dialogue, with_status, before_position and most there are, besides in_partition.
    """
    conditions = {
        "in_dialogue": turns.c.dialogue == bindparam("in_dialogue"),
        "with_status": turns.c.status == bindparam("with_status"),
        "before_position": turns.c.position < bindparam("before_position"),
    }
    query = sa.select(turns).where(turns.c.partition == bindparam("in_partition"))
    query = query.where(*(condition for name, condition in conditions.items() if name in given))
    query = query.order_by(turns.c.position.desc() if "before_position" in given else turns.c.position)
    return query.limit(bindparam("most")) if "most" in given else query


CHANGES: Final = (
    sa.select(
        *(ops.c[name].label(f"op_{name}") for name in ("seq", "partition", "kind", "status", "memory_id")),
        versions,
        scopes.c.tenant,
        scopes.c.user,
    )
    .select_from(ops)
    .outerjoin(
        versions,
        sa.and_(
            versions.c.partition == ops.c.partition,
            versions.c.memory_id == ops.c.memory_id,
            versions.c.version == ops.c.after_version,
        ),
    )
    .outerjoin(scopes, scopes.c.partition == ops.c.partition)
    .where(ops.c.seq > bindparam("after"))
    .order_by(ops.c.seq)
    .limit(bindparam("most"))
)
"""What happened after a sequence number, with what it wrote and whose it is. Parameters: after, most."""

"""What one operation does to one memory, without any store."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from memweave.errors import ConflictError, UnknownMemoryError
from memweave.memory_stores.transitions import Sides, transition
from memweave.records import Memory, ProposedOp, Scope, Trust
from memweave.testing.operations import add, delete, noop, update

SCOPE = Scope(user="anna")
THEN, NOW = datetime(2024, 5, 8, tzinfo=UTC), datetime(2024, 5, 9, tzinfo=UTC)
ID, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)
CURRENT = Memory(
    id=ID, version=3, scope=SCOPE, text="Anna drinks tea", speaker="Anna", dialogue="d1", context="What do you drink?",
    source_ids=("1", "2"), observed_at=THEN, observed_naive=True, valid_from=THEN, valid_to=NOW, trust=Trust.WEB,
    metadata={"n": 1}, recorded_at=THEN,
)  # fmt: skip


def applied(op: ProposedOp, current: Memory | None = CURRENT, last: int = 3) -> Sides:
    return transition(op, current, last, scope=SCOPE, now=NOW)


def test_add_makes_version_one_with_a_new_id() -> None:
    before, after = applied(add("Anna has a cat", observed_at=THEN, source_ids=("7",)), None, 0)
    assert before is None
    assert after == Memory(
        id=after.id, version=1, scope=SCOPE, text="Anna has a cat", source_ids=("7",), observed_at=THEN, recorded_at=NOW
    )  # fmt: skip
    assert after.id.version == 7
    assert (after.trust, after.metadata, after.observed_naive, after.closed_at) == (Trust.USER, {}, False, None)


def test_add_takes_a_given_id_and_goes_on_counting_where_it_was_deleted() -> None:
    _, after = applied(add("Anna has a cat", memory_id=OTHER), None, 5)
    assert after is not None
    assert (after.id, after.version) == (OTHER, 6)


def test_add_over_a_current_memory_is_a_conflict() -> None:
    with pytest.raises(ConflictError, match=rf"cannot ADD memory {ID}: the id is taken in default/anna"):
        applied(add("Anna has a cat", memory_id=ID))


def test_update_changes_what_is_given_and_keeps_the_rest() -> None:
    before, after = applied(update(ID, "Anna drinks coffee", source_ids=("2", "3")))
    assert before == CURRENT
    assert after == CURRENT.model_copy(
        update={"version": 4, "text": "Anna drinks coffee", "source_ids": ("1", "2", "3"), "recorded_at": NOW}
    )


@pytest.mark.parametrize(
    "given",
    [
        {"speaker": "Bob"},
        {"dialogue": "d2"},
        {"context": "And now?"},
        {"context": ""},
        {"valid_from": NOW},
        {"valid_to": NOW + timedelta(days=1)},
        {"trust": Trust.USER},
        {"metadata": {}},
        {"observed_naive": False},
        {"observed_at": NOW, "observed_naive": False},
    ],
)
def test_update_of_each_field(given: dict[str, Any]) -> None:
    _, after = applied(update(ID, "Anna drinks tea", **given))
    assert after == CURRENT.model_copy(update={**given, "version": 4, "recorded_at": NOW})


def test_update_with_a_time_says_anew_whether_it_had_a_zone() -> None:
    _, after = applied(update(ID, "x", observed_at=NOW))
    assert after is not None
    assert (after.observed_at, after.observed_naive) == (NOW, False)


def test_update_counts_from_the_last_version_ever() -> None:
    _, after = applied(update(ID, "x"), last=9)
    assert after is not None
    assert after.version == 10


def test_delete_leaves_nothing_and_noop_touches_nothing() -> None:
    assert applied(delete(ID)) == Sides(CURRENT, None)
    assert applied(noop(ID)) == applied(noop(), None, 0) == Sides(None, None)


@pytest.mark.parametrize("op", [update(ID, "x"), delete(ID), noop(ID)])
def test_a_target_that_is_not_there_is_unknown(op: ProposedOp) -> None:
    with pytest.raises(UnknownMemoryError, match=rf"cannot {op.kind} memory {ID}: no such memory for default/anna"):
        applied(op, None, 3)


@pytest.mark.parametrize("op", [update(ID, "x", expected_version=2), delete(ID, expected_version=4)])
def test_a_version_that_moved_on_is_a_conflict(op: ProposedOp) -> None:
    with pytest.raises(ConflictError, match=rf"is at version 3, not {op.expected_version}.*nothing was changed"):
        applied(op)


def test_the_expected_version_is_accepted() -> None:
    assert applied(delete(ID, expected_version=3)).before == CURRENT

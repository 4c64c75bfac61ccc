"""Records: what they accept, what they refuse, and what they make of times and ids."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from memweave.records import (
    MAX_TEXT,
    IndexFilter,
    Memory,
    OpKind,
    ProposedOp,
    Scope,
    Turn,
    as_utc,
    new_id,
    storable,
)

SAID: dict[str, Any] = {"source_id": "1", "speaker": "Anna", "text": "Hi"}
OP: dict[str, Any] = {"kind": OpKind.ADD, "text": "Hi", "reason": "said so", "actor": "test"}
NAMES = [
    (Scope, {}, "user"),
    (Turn, SAID, "source_id"),
    (Turn, SAID, "speaker"),
    (Turn, SAID, "dialogue"),
    (ProposedOp, OP, "actor"),
]


# Ids


def test_ids_are_uuid7_and_sort_in_the_order_they_were_made() -> None:
    before = time.time_ns() // 1_000_000
    ids = [new_id() for _ in range(5_000)]
    after = time.time_ns() // 1_000_000
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert {(i.version, i.variant) for i in ids} == {(7, UUID(int=0x8 << 60).variant)}
    assert before <= ids[0].int >> 80 <= ids[-1].int >> 80 <= after + 2


def test_ids_stay_in_order_when_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_id()
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    assert new_id() > first


def test_ids_of_threads_differ() -> None:
    made: list[UUID] = []
    threads = [threading.Thread(target=lambda: made.extend([new_id() for _ in range(500)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 2_000


# Names and texts


@pytest.mark.parametrize(("record", "rest", "field"), NAMES)
@pytest.mark.parametrize("wrong", ["", "a\nb", "a\0", "a\x7f", "\ud800", "x" * 257, None, 7])
def test_names_are_short_printable_text(record: type[Scope], rest: dict[str, Any], field: str, wrong: object) -> None:
    with pytest.raises(ValidationError, match=field):
        record.model_validate(rest | {field: wrong})


@pytest.mark.parametrize(("record", "rest", "field"), NAMES)
@pytest.mark.parametrize("right", ["a", "x" * 256, "Zoë 🫖", "../../etc", "a'; DROP TABLE", "日本語"])
def test_names_are_otherwise_free(record: type[Scope], rest: dict[str, Any], field: str, right: str) -> None:
    assert getattr(record.model_validate(rest | {field: right}), field) == right


@pytest.mark.parametrize(("record", "rest"), [(Turn, SAID), (ProposedOp, OP)])
@pytest.mark.parametrize("wrong", ["", "a\0b", "half \ud800", "x" * (MAX_TEXT + 1)])
def test_texts_have_to_be_storable(record: type[Turn], rest: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValidationError, match="text"):
        record.model_validate(rest | {"text": wrong})


@pytest.mark.parametrize("right", ["x" * MAX_TEXT, "tab\tand\nline\x07", "👩‍👩‍👧", "\u202e"])
def test_texts_are_otherwise_free(right: str) -> None:
    assert Turn.model_validate(SAID | {"text": right}).text == right


@given(st.text(st.characters(codec=None)))
def test_storable_keeps_all_that_can_be_kept(text: str) -> None:
    out = storable(text)
    assert "\0" not in out
    out.encode()
    if "\0" not in text and not any(0xD800 <= ord(c) < 0xE000 for c in text):
        assert out == text
    assert storable("a\0b\ud800c") == "a\ufffdb\ufffdc"
    assert storable("\ud83e\uded6") == "🫖"  # both halves of a pair


@pytest.mark.parametrize("wrong", [("\ud800",), ("",), ("a\nb",), "1"])
def test_source_ids_are_names(wrong: object) -> None:
    with pytest.raises(ValidationError, match="source_ids"):
        ProposedOp.model_validate(OP | {"source_ids": wrong})


@pytest.mark.parametrize(
    "wrong", [{"a": float("nan")}, {"a": [float("inf")]}, {"\ud800": 1}, {"a": "\udfff"}, {"a": object()}, {1: 2}]
)
def test_metadata_is_json(wrong: object) -> None:
    with pytest.raises(ValidationError, match="metadata"):
        ProposedOp.model_validate(OP | {"metadata": wrong})


def test_metadata_keeps_its_shape() -> None:
    given_ = {"a": [1, 2.5, None, True, {"b": "🫖 \\u0000"}]}
    assert ProposedOp.model_validate(OP | {"metadata": given_}).metadata == given_


# Times


def test_times_become_utc_and_a_missing_zone_is_remembered() -> None:
    naive = Turn.model_validate(SAID | {"observed_at": "2024-05-08T10:00:00"})
    assert (naive.observed_at, naive.observed_naive) == (datetime(2024, 5, 8, 10, tzinfo=UTC), True)
    aware = Turn.model_validate(SAID | {"observed_at": datetime(2024, 5, 8, 10, tzinfo=timezone(timedelta(hours=2)))})
    assert (aware.observed_at, aware.observed_naive) == (datetime(2024, 5, 8, 8, tzinfo=UTC), False)
    assert not Turn.model_validate(SAID).observed_naive
    told = Turn.model_validate(SAID | {"observed_at": "2024-05-08T10:00:00", "observed_naive": False})
    assert not told.observed_naive


def test_an_operation_flags_a_naive_time_and_says_nothing_about_a_missing_one() -> None:
    assert ProposedOp.model_validate(OP | {"observed_at": datetime(2024, 5, 8)}).observed_naive is True
    assert ProposedOp.model_validate(OP | {"observed_at": datetime(2024, 5, 8, tzinfo=UTC)}).observed_naive is False
    assert ProposedOp.model_validate(OP).observed_naive is None


@pytest.mark.parametrize("wrong", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:00:00-05:00", "yesterday", "2024-13-01"])
def test_impossible_times_are_refused(wrong: str) -> None:
    with pytest.raises(ValidationError, match="observed_at"):
        Turn.model_validate(SAID | {"observed_at": wrong})


def test_as_utc_reads_naive_as_utc() -> None:
    assert as_utc(datetime(2024, 5, 8)) == datetime(2024, 5, 8, tzinfo=UTC)


# Operations and filters


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "ADD", "text": None},
        {"kind": "ADD", "text": " \n"},
        {"kind": "UPDATE", "text": "x"},
        {"kind": "UPDATE", "text": None, "memory_id": UUID(int=1)},
        {"kind": "DELETE", "text": None},
        {"kind": "MERGE"},
        {"reason": ""},
        {"reason": "x" * 2_001},
        {"actor": ""},
        {"unknown": 1},
        {"memory_id": "7"},
    ],
)
def test_incomplete_operations_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ProposedOp.model_validate(OP | wrong)


@pytest.mark.parametrize("field", ["speakers", "dialogues", "runs", "trust"])
def test_a_filter_on_nothing_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match=r"at least one value|too_short"):
        IndexFilter.model_validate({field: ()})


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Scope(user="anna").user = "bob"  # type: ignore[misc]  # that is what is tested


# Scopes


@given(st.lists(st.tuples(st.text("ab/", min_size=1, max_size=3), st.text("ab/", min_size=1, max_size=3)), unique=True))
def test_partitions_of_different_scopes_differ(names: list[tuple[str, str]]) -> None:
    keys = {Scope(tenant=t, user=u).partition(c) for t, u in names for c in ("memories", "cases")}
    assert len(keys) == 2 * len(names)
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in keys)


def test_partitions_do_not_change() -> None:
    # They are on disk: another value would lose everybody's memories.
    assert Scope(user="anna").partition() == "6d6c209773c11f1f8d2e737a1b712907"
    assert Scope(tenant="acme", user="anna").partition() != Scope(user="anna").partition()


def test_a_memory_survives_json() -> None:
    recorded_at = datetime(2024, 5, 8, tzinfo=UTC)
    memory = Memory(id=new_id(), version=1, scope=Scope(user="anna"), text="Hi 🫖", recorded_at=recorded_at)
    assert Memory.model_validate_json(memory.model_dump_json()) == memory

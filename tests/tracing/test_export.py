"""Whatever a trace holds comes back from the store and from JSON lines exactly, and from a dataset row by row."""

from __future__ import annotations

import json
import math
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memweave.errors import FormatError, InputError, NotInstalledError, StorageFullError
from memweave.tracing import (
    ChatMessage,
    Generation,
    MemoryEvent,
    MemoryRef,
    Sampling,
    Score,
    Trace,
    TraceStatus,
    TraceStore,
    read_jsonl,
    to_dataset,
    to_parquet,
    write_jsonl,
)

MakeTrace = Callable[..., Trace]

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
name = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8).filter(str.strip)
maybe = st.none() | text
time = st.datetimes(timezones=st.just(UTC))
token = st.integers(0, 200_000) | st.integers(-(2**63), 2**63 - 1)
real = st.floats(allow_nan=False, allow_infinity=False)
leaf = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | real | text
json_value = st.recursive(
    leaf, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(text, inside, max_size=3), max_leaves=6
)
ref = st.builds(MemoryRef, id=st.uuids(), version=st.integers(1, 9))


def tupled(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=4).map(tuple)


sampling = st.builds(
    Sampling,
    temperature=st.none() | real,
    top_p=st.none() | real,
    top_k=st.none() | st.integers(-1, 9),
    max_tokens=st.none() | st.integers(1, 99),
    seed=st.none() | st.integers(0, 2**31),
    logprobs=st.sampled_from([None, "processed", "raw"]),
)


@st.composite
def generations(draw: st.DrawFn, index: int) -> Generation:
    return draw(
        st.builds(
            Generation,
            index=st.just(index),
            node=maybe,
            role=maybe,
            step=st.none() | st.integers(-1, 99),
            stage=st.none() | st.integers(0, 3),
            namespace=text,
            policy=maybe,
            policy_version=maybe,
            prompt_hash=maybe,
            prompt_token_ids=st.none() | tupled(token),
            token_ids=st.none() | tupled(token),
            logprobs=st.none() | tupled(st.floats(allow_nan=False)),
            sampling=sampling,
            messages=tupled(st.builds(ChatMessage, role=text, text=text)),
            reply=text,
            tool_calls=tupled(json_value),
            memories_read=tupled(ref),
            memories_written=tupled(ref),
            finish_reason=maybe,
            started_at=time,
            seconds=st.none() | st.floats(0, 1e6),
            error=maybe,
        )  # fmt: skip
    )


@st.composite
def scores(draw: st.DrawFn) -> Score:
    low, value, high = sorted(draw(st.tuples(real, real, real)))
    return Score(value=value, low=low, high=high, parts=draw(st.dictionaries(text, real, max_size=2)))


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    count = draw(st.integers(0, 3))
    event = st.builds(
        MemoryEvent, op_id=text, kind=text, status=text, memory=st.none() | ref, text=maybe, reason=text, actor=maybe,
        error=maybe, generation=st.none() | st.integers(0, 2),
    )  # fmt: skip
    return draw(
        st.builds(
            Trace,
            id=st.uuids(),
            graph=maybe,
            run=st.none() | name,
            iteration=st.none() | st.integers(0, 99),
            group=st.none() | name,
            replica=st.none() | st.integers(0, 99),
            thread=maybe,
            status=st.sampled_from(TraceStatus),
            error=maybe,
            generations=st.tuples(*(generations(index) for index in range(count))),
            memory_events=tupled(event),
            score=st.none() | scores(),
            started_at=time,
            ended_at=time,
            metadata=st.dictionaries(text, json_value, max_size=3),
        )  # fmt: skip
    )


@settings(max_examples=30)
@given(trace=traces())
def test_the_store_returns_what_it_was_given(trace: Trace) -> None:
    with tempfile.TemporaryDirectory() as folder, TraceStore(Path(folder) / "traces.db") as store:
        store.add(trace)
        assert store.get(trace.id) == trace


@settings(max_examples=30)
@given(given=st.lists(traces(), max_size=3))
def test_json_lines_return_what_was_written(given: list[Trace]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traces.jsonl"
        assert write_jsonl(given, path) == len(given)
        assert list(read_jsonl(path)) == given


@settings(max_examples=6)
@given(given=st.lists(traces(), min_size=1, max_size=2))
def test_dataset_and_parquet_hold_every_generation(given: list[Trace]) -> None:
    import datasets

    expected = [(trace, each) for trace in given for each in trace.generations]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traces.parquet"
        assert to_parquet(given, path) == len(expected)
        made = to_dataset(given)
        import pyarrow.parquet

        assert pyarrow.parquet.read_table(path).to_pylist() == made.data.table.to_pylist()
    assert isinstance(made, datasets.Dataset)
    for row, (trace, each) in zip(made, expected, strict=True):
        assert row["trace"]["id"] == str(trace.id)
        assert row["trace"]["status"] == trace.status.value
        assert json.loads(row["trace"]["metadata"]) == trace.metadata
        assert row["trace"]["started_at"] == trace.started_at
        assert (row["trace"]["score"] or {}).get("value") == (trace.score.value if trace.score else None)
        for field in ("prompt_token_ids", "token_ids", "logprobs"):
            values = getattr(each, field)
            assert row[field] == (None if values is None else list(values))
        assert row["sampling"] == each.sampling.model_dump()
        assert row["messages"] == [message.model_dump() for message in each.messages]
        assert [json.loads(call) for call in row["tool_calls"]] == list(each.tool_calls)
        assert row["memories_read"] == [{"id": str(ref.id), "version": ref.version} for ref in each.memories_read]
        assert [op["op_id"] for op in row["memory_ops"]] == [
            event.op_id for event in trace.memory_events if event.generation == each.index
        ]
        for field in ("index", "node", "role", "actor", "policy", "policy_version", "reply", "error", "seconds"):
            assert row[field] == getattr(each, field)


def test_log_probabilities_that_are_no_numbers_survive_too(
    tmp_path: Path, trace: MakeTrace, generation: Callable[..., Generation]
) -> None:
    """They are faults, and `doctor` has to see them."""
    given = trace(generations=(generation(logprobs=(math.nan, math.inf, -math.inf)),))
    write_jsonl([given], tmp_path / "traces.jsonl")
    with TraceStore(tmp_path / "traces.db") as store:
        store.add(given)
        for back in (store.query()[0], *read_jsonl(tmp_path / "traces.jsonl")):
            assert str(back.generations[0].logprobs) == "(nan, inf, -inf)"


def test_a_newer_format_is_refused_by_name(tmp_path: Path, trace: MakeTrace) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text("\n" + json.dumps({**trace().model_dump(mode="json"), "format": 2, "new": 1}))
    with pytest.raises(FormatError, match=r"line 2: a trace of format 2; this version reads 1. Upgrade memweave"):
        list(read_jsonl(path))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": ', "line 1: not JSON"),
        ("[]", "line 1: no trace, but list"),
        ('{"id": "x"}', r"line 1: no trace \(id: "),
    ],
)
def test_a_line_that_is_no_trace_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match=says):
        list(read_jsonl(path))


def test_a_file_appears_whole_or_not_at_all_for_its_owner_alone(tmp_path: Path, trace: MakeTrace) -> None:
    path = tmp_path / "traces.jsonl"

    def broken() -> Any:
        yield trace()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_jsonl(broken(), path)
    assert list(tmp_path.iterdir()) == []
    write_jsonl([trace()], path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    script = """
import resource, sys
from memweave.errors import StorageFullError
from memweave.records import new_id, utc_now
from memweave.tracing import Trace, write_jsonl
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
trace = Trace(id=new_id(), error="x" * 10_000, started_at=utc_now(), ended_at=utc_now())
try:
    write_jsonl([trace] * 100, sys.argv[1])
except StorageFullError as error:
    assert sys.argv[1] in str(error)
    print("fine")
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "t.jsonl")], capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.returncode) == ("fine\n", 0), run.stderr
    assert list(tmp_path.iterdir()) == []
    assert issubclass(StorageFullError, Exception)


def test_a_missing_package_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, trace: MakeTrace, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for export in (lambda: to_dataset([trace()]), lambda: to_parquet([trace()], tmp_path / "t.parquet")):
        with pytest.raises(NotInstalledError, match=r"pip install 'memweave\[export\]'"):
            export()
    assert list(tmp_path.iterdir()) == []

"""The trace store: what was acknowledged is there, once, whatever happens to the process or the disk."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from memweave.errors import DataFolderError, FormatError, InputError, StorageFullError, UsageError
from memweave.records import new_id
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import Generation, Score, Trace, Tracer, TraceStatus, TraceStore
from memweave.tracing.writer import TraceWriter

pytestmark = pytest.mark.anyio

MakeTrace = Callable[..., Trace]
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    with TraceStore(tmp_path / "deep" / "traces.db") as opened:
        yield opened


def test_what_was_added_comes_back_equal(store: TraceStore, trace: MakeTrace) -> None:
    given = trace()
    assert store.add(given) == given.id
    assert store.get(given.id) == given
    assert store.get(new_id()) is None
    with TraceStore(store.path) as again:
        assert again.query() == [given]


def test_only_the_owner_may_read_the_files(store: TraceStore, trace: MakeTrace) -> None:
    store.add(trace())
    files = list(store.path.parent.iterdir())
    assert len(files) == 3  # with the write-ahead log and its index
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_the_same_trace_is_stored_once(store: TraceStore, trace: MakeTrace) -> None:
    given = trace(run=None, group=None)
    assert [store.add(given), store.add(given)] == [given.id] * 2
    assert store.count() == 1


def test_the_same_episode_is_stored_once_and_the_first_stays(store: TraceStore, trace: MakeTrace) -> None:
    first = trace()
    again = trace(score=Score(value=0.0))
    assert store.add_many([first, again]) == [first.id, first.id]
    assert store.query() == [first]
    assert store.scores(first.id) == [Score(value=1.0)]


@pytest.mark.parametrize(
    "other",
    [
        {"run": "other"},
        {"iteration": 1},
        {"iteration": None},
        {"group": "other"},
        {"replica": 1},
        {"metadata": {"policy_version": "v2"}},
        {"group": None},
        {"replica": None},
        {"run": None},
    ],
    ids=str,
)
def test_what_differs_in_any_part_is_another_episode(
    store: TraceStore, trace: MakeTrace, other: dict[str, object]
) -> None:
    first, second = trace(), trace(**other)
    assert store.add_many([first, second]) == [first.id, second.id]


def test_the_policy_version_of_an_episode_is_that_of_its_generations(
    store: TraceStore, trace: MakeTrace, generation: Callable[..., Generation]
) -> None:
    first, second = trace(), trace(generations=(generation(policy_version="v2"),))
    third = trace(metadata={"policy_version": "v1"}, generations=())
    assert store.add_many([first, second, third]) == [first.id, second.id, first.id]


@pytest.mark.parametrize("status", [TraceStatus.UNAVAILABLE, TraceStatus.CANCELLED])
def test_an_attempt_that_did_not_end_takes_no_episodes_place(
    store: TraceStore, trace: MakeTrace, status: TraceStatus
) -> None:
    attempt, real = trace(status=status, score=None), trace()
    assert store.add(attempt) == attempt.id
    assert store.add(real) == real.id
    assert store.add(trace()) == real.id
    assert store.count() == 2


def test_the_latest_score_counts_and_the_earlier_ones_are_kept(store: TraceStore, trace: MakeTrace) -> None:
    given = trace(score=None)
    store.add(given)
    scores = [Score(value=0.25), Score(value=-1.0, low=-1.0, parts={"manager": 0.5})]
    for score in scores:
        store.score(given.id, score)
    found = store.get(given.id)
    assert found is not None
    assert found.score == scores[1]
    assert store.scores(given.id) == scores
    with pytest.raises(InputError, match="there is no trace"):
        store.score(new_id(), scores[0])


def test_queries(store: TraceStore, trace: MakeTrace) -> None:
    made = [
        trace(run=f"r{n % 2}", iteration=n // 4, group=f"g{n % 3}", replica=n, started_at=NOON + timedelta(minutes=n),
              status=TraceStatus.FAILED if n == 5 else TraceStatus.OK)
        for n in range(12)
    ]  # fmt: skip
    store.add_many(made[::-1])  # an import brings old ones later
    assert store.query(newest=False) == made
    assert store.query(limit=3) == made[:-4:-1]
    assert store.query(limit=0) == []
    assert store.query(run="r1", iteration=1) == [made[7], made[5]]
    assert store.query(group="g0", since=NOON + timedelta(minutes=3), until=NOON + timedelta(minutes=9)) == [
        made[6],
        made[3],
    ]
    assert store.query(status=TraceStatus.FAILED) == [made[5]]
    assert (store.count(), store.count(run="r0"), store.count(run="r2")) == (12, 6, 0)


def test_many_pages(store: TraceStore, trace: MakeTrace) -> None:
    made = [trace(group=f"g{n}", started_at=NOON, generations=()) for n in range(450)]
    store.add_many(made)
    assert list(store.iterate(newest=False)) == made
    assert list(store.iterate(limit=401)) == made[:-402:-1]


def test_pruning_erases_the_bytes(store: TraceStore, trace: MakeTrace) -> None:
    old = [trace(group=f"g{n}", started_at=NOON, error="qx-secret-" + "z" * 3_000 + str(n)) for n in range(30)]
    new = trace(started_at=NOON + timedelta(days=1))
    store.add_many([*old, new])
    assert store.prune(NOON + timedelta(hours=1)) == 30
    assert store.prune(NOON + timedelta(hours=1)) == 0
    assert store.query() == [new]
    assert store.delete([new.id, new_id()]) == 1
    assert store.count() == 0
    assert store.scores(new.id) == []
    assert all(old[0].id.bytes not in file.read_bytes() for file in store.path.parent.iterdir())
    assert store.add(new) == new.id


@pytest.mark.parametrize("seed", [0, 2])
def test_nothing_stays_between_the_rows_of_a_page(store: TraceStore, trace: MakeTrace, seed: int) -> None:
    # Balancing a B-tree moves rows between pages and leaves copies in the gaps; random keys and sizes make it happen.
    rng = random.Random(seed)
    kept: list[Trace] = []
    erased: list[Trace] = []
    for _ in range(8):
        for replica in range(50):
            group = f"g{rng.random()}" * rng.randint(1, 8)
            key = UUID(int=rng.getrandbits(128))
            kept.append(
                trace(
                    id=key,
                    group=group,
                    replica=replica,
                    generations=(),
                    score=None,
                    started_at=NOON,
                    ended_at=NOON,
                )
            )
        store.add_many(kept[-50:])
        rng.shuffle(kept)
        half = len(kept) // 2
        store.delete(each.id for each in kept[:half])
        erased += kept[:half]
        del kept[:half]
    left = b"".join(file.read_bytes() for file in store.path.parent.iterdir())
    assert [each.id for each in erased if each.id.bytes in left or (each.group or "").encode() in left] == []
    assert all(each.id.bytes in left for each in kept)


def test_all_or_none_of_a_batch(store: TraceStore, trace: MakeTrace, generation: Callable[..., Generation]) -> None:
    huge = trace(group="huge", generations=(generation(token_ids=(2**63,)),))
    with pytest.raises(InputError, match="beyond 64 bits"):
        store.add_many([trace(), huge])
    assert store.count() == 0


def test_a_newer_format_is_refused_by_name(store: TraceStore) -> None:
    store.close()
    with sqlite3.connect(store.path) as raw:
        raw.execute("PRAGMA user_version = 2")
    raw.close()
    with pytest.raises(FormatError, match="format 2; this version reads up to 1. Upgrade"):
        TraceStore(store.path)


def test_another_programs_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE mine (x)")
    raw.commit()
    raw.close()
    before = path.read_bytes()
    with pytest.raises(DataFolderError, match="another program's database"):
        TraceStore(path)
    assert path.read_bytes() == before
    (tmp_path / "text").write_text("no database at all, but long enough to be looked at" * 10)
    with pytest.raises(DataFolderError, match="no trace store"):
        TraceStore(tmp_path / "text")
    with pytest.raises(DataFolderError, match="Check the folder"):
        TraceStore(tmp_path)


def test_a_closed_store_says_so(store: TraceStore, trace: MakeTrace) -> None:
    store.close()
    with pytest.raises(InputError, match="is closed"):
        store.add(trace())


async def test_async_forms(store: TraceStore, trace: MakeTrace) -> None:
    given = trace(score=None)
    assert await store.aadd(given) == given.id
    assert await store.aadd_many([given]) == [given.id]
    await store.ascore(given.id, Score(value=0.5))
    found = await store.aget(given.id)
    assert found is not None
    assert found.score == Score(value=0.5)


CHILD = """
import os, sys
from memweave.records import new_id, utc_now
from memweave.tracing import Generation, Score, Trace, TraceStore

store, name = TraceStore(sys.argv[1]), sys.argv[2]
number = 0
while number < int(sys.argv[3]):
    generation = Generation(index=0, token_ids=(1, 2), logprobs=(-1.0, -2.0), started_at=utc_now())
    trace = Trace(id=new_id(), run=name, group="g", replica=number, generations=(generation,), score=Score(value=1.0),
                  started_at=utc_now(), ended_at=utc_now())
    os.write(1, (store.add(trace).hex + "\\n").encode())
    number += 1
"""


def child(path: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(path), name, str(count)], stdout=subprocess.PIPE)


def test_what_was_acknowledged_survives_kill_9_and_is_never_doubled(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    for round in range(3):
        process = child(path, "run", 100_000)
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(20 + 15 * round)]
        os.kill(process.pid, signal.SIGKILL)
        told += process.stdout.readlines()
        process.stdout.close()
        process.wait()
        with TraceStore(path) as store:  # every round begins with the episodes that the last one wrote
            kept = {trace.id.hex: trace for trace in store.iterate()}
            assert {line.decode().strip() for line in told if line.endswith(b"\n")} <= kept.keys()
            replicas = [trace.replica for trace in kept.values()]
            assert sorted(replicas, key=lambda replica: replica or 0) == list(range(len(replicas)))
            assert all(trace.score == Score(value=1.0) for trace in kept.values())


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    processes = [child(path, name, 60) for name in ("a", "b", "same", "same")]
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert said[2] == said[3]  # the loser of each race was told the winner's id
    with TraceStore(path) as store:
        assert (store.count(run="a"), store.count(run="b"), store.count(run="same")) == (60, 60, 60)


def test_a_full_disk_is_one_clear_error_and_the_store_goes_on(tmp_path: Path) -> None:
    # In a process of its own, because the limit holds for all it writes.
    script = """
import resource, sys
from memweave.errors import StorageFullError
from memweave.records import new_id, utc_now
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import Trace, Tracer, TraceStore
import random

def made(n):
    noise = "".join(random.Random(n).choices("abcdefghijklmnopqrstuvwxyz", k=20_000))
    return Trace(id=new_id(), error=noise, started_at=utc_now(), ended_at=utc_now())

with TraceStore(sys.argv[1]) as store:
    store.add(made(0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    done = 1
    try:
        while done < 1_000:
            store.add(made(done))
            done += 1
    except StorageFullError as error:
        assert sys.argv[1] in str(error) and "free space and repeat" in str(error), error
    assert 3 < done < 1_000
    assert store.count() == done
    tracer = Tracer(store)
    ScriptedChatModel(["".join(random.Random(1).choices("abcdefghij", k=300_000))]).invoke("hi", {"callbacks": [tracer]})
    try:
        tracer.flush()
        raise AssertionError("a full disk was not reported")
    except StorageFullError as error:
        assert sys.argv[1] in str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    tracer.close()
    assert store.count() == done + 1
    store.add(made(-1))
    assert len(store.query()) == done + 2
print("fine")
"""
    path = str(tmp_path / "traces.db")
    run = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert (run.stdout, run.returncode) == ("fine\n", 0), run.stderr


# the background writer of a tracer


def test_a_tracer_writes_in_the_background_and_flush_waits(store: TraceStore) -> None:
    with Tracer(store, run="app") as tracer:
        for _ in range(250):
            ScriptedChatModel(["hi"]).invoke("hello", {"callbacks": [tracer]})
        tracer.flush()
        assert store.count(run="app") == 250
        assert len(tracer.traces) == 100
        assert tracer.traces == store.query(limit=100)[::-1]
    with pytest.raises(UsageError, match="closed"):
        ScriptedChatModel(["hi"]).invoke("hello", {"callbacks": [tracer]})


async def test_aflush(store: TraceStore) -> None:
    tracer = Tracer(store)
    await ScriptedChatModel(["hi"]).ainvoke("hello", {"callbacks": [tracer]})
    await tracer.aflush()
    assert store.count() == 1
    tracer.close()


class Broken(TraceStore):
    """Fails while it is told to; counts what it was asked."""

    full = True
    asked = 0

    def add_many(self, traces: object) -> list[object]:  # type: ignore[override]  # narrower than the real one
        self.asked += 1
        if self.full:
            raise StorageFullError("the disk is full")
        return super().add_many(traces)  # type: ignore[arg-type, return-value]


def test_a_full_queue_over_a_full_disk_fails_the_run_and_loses_nothing(tmp_path: Path, trace: MakeTrace) -> None:
    with Broken(tmp_path / "traces.db") as store:
        writer = TraceWriter(store, limit=3)
        for n in range(3):
            writer.put(trace(replica=n))
        with pytest.raises(StorageFullError):
            writer.flush(10)
        with pytest.raises(StorageFullError):
            writer.put(trace(replica=3))
        store.full = False
        writer.flush(10)
        writer.put(trace(replica=3))
        writer.close(10)
        assert [each.replica for each in store.query(newest=False)] == [0, 1, 2, 3]


def test_a_trace_that_can_never_be_stored_is_told_of_and_holds_nothing_up(
    store: TraceStore, trace: MakeTrace, generation: Callable[..., Generation]
) -> None:
    writer = TraceWriter(store)
    with store._lock:  # nothing is written until all three are queued
        writer.put(trace(replica=0))
        writer.put(trace(replica=1, generations=(generation(token_ids=(2**70,)),)))
        writer.put(trace(replica=2))
    with pytest.raises(InputError, match="beyond 64 bits"):
        writer.flush(10)
    writer.flush(10)
    assert sorted(each.replica or 0 for each in store.query()) == [0, 2]
    writer.close(10)


def test_a_program_that_ends_without_closing_loses_no_trace(tmp_path: Path) -> None:
    script = """
import sys
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import Tracer, TraceStore
tracer = Tracer(TraceStore(sys.argv[1]))
for _ in range(20):
    ScriptedChatModel(["hi"]).invoke("hello", {"callbacks": [tracer]})
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "traces.db")], check=True)
    with TraceStore(tmp_path / "traces.db") as store:
        assert store.count() == 20


def test_threads_share_a_store(store: TraceStore, trace: MakeTrace) -> None:
    def work(name: str) -> None:
        for n in range(25):
            store.add(trace(run=name, replica=n))
            assert len(store.query(run=name)) == n + 1

    threads = [threading.Thread(target=work, args=(f"r{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count() == 100

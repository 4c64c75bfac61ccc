"""Threads and tasks on one bank: every acknowledged write is there, nothing fails, and the end is what the exact engine says."""

from __future__ import annotations

import random
import sys
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import anyio
import pytest

from memweave.embeddings import HashingEmbedder, Vectors
from memweave.errors import ConflictError, StorageFullError, UsageError
from memweave.memory_stores import MemoryBank, open_bank
from memweave.memory_stores.engine import IndexHit, IndexPoint, IndexQuery, rrf_share
from memweave.memory_stores.exact import ExactEngine
from memweave.memory_stores.projector import Projector
from memweave.records import OpKind, ProposedOp, Scope, Turn, TurnStatus
from memweave.testing.audit import audit, oracle, replay

ANNA, BOB = Scope(user="anna"), Scope(user="bob")
WORDS = (
    "tea",
    "coffee",
    "garden",
    "Lisbon",
    "piano",
    "sister",
    "rabbit",
    "bicycle",
    "marathon",
    "pottery",
    "rain",
    "library",
)


def add(text: str, *, speaker: str | None = None) -> ProposedOp:
    return ProposedOp(kind=OpKind.ADD, text=text, reason="said so", actor="test", speaker=speaker)


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=6))


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Let threads alternate as often as they can, so that races show."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(calls: Sequence[Callable[[], None]]) -> None:
    """Run calls in threads of their own; raises what any of them raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result()


class Worker:
    """Adds, changes, deletes and searches; remembers what it was told is there."""

    def __init__(self, bank: MemoryBank, number: int, *, scope: Scope = ANNA) -> None:
        self.bank, self.scope, self.name = bank, scope, f"Speaker{number}"
        self.rng = random.Random(number)
        self.mine: dict[UUID, str] = {}

    def next_op(self) -> ProposedOp:
        kind = self.rng.choices([OpKind.ADD, OpKind.UPDATE, OpKind.DELETE], [5, 2, 1])[0]
        if kind is OpKind.ADD or not self.mine:
            return add(f"{self.name} {sentence(self.rng)}", speaker=self.name)
        text = f"{self.name} {sentence(self.rng)}" if kind is OpKind.UPDATE else None
        target = self.rng.choice(list(self.mine))
        return ProposedOp(kind=kind, memory_id=target, text=text, reason="changed", actor="test")

    def note(self, op: ProposedOp, memory_id: UUID | None) -> None:
        assert memory_id is not None
        if op.text is None:
            del self.mine[memory_id]
        else:
            self.mine[memory_id] = op.text

    def work(self, rounds: int) -> None:
        for _ in range(rounds):
            op = self.next_op()
            (done,) = self.bank.apply([op], scope=self.scope)
            self.note(op, done.memory_id)
            self.check(self.bank.search(f"{self.name} {sentence(self.rng)}", scope=self.scope))

    async def awork(self, rounds: int) -> None:
        for _ in range(rounds):
            op = self.next_op()
            (done,) = await self.bank.aapply([op], scope=self.scope)
            self.note(op, done.memory_id)
            self.check(await self.bank.asearch(f"{self.name} {sentence(self.rng)}", scope=self.scope))

    def check(self, hits: Sequence[object]) -> None:
        assert len(hits) >= min(10, len(self.mine))  # never a torn or emptied index


def assert_all_there(bank: MemoryBank, workers: Sequence[Worker], *, scope: Scope = ANNA) -> None:
    expected = {memory_id: text for worker in workers for memory_id, text in worker.mine.items()}
    assert {m.id: m.text for m in bank.memories(scope=scope)} == expected
    assert audit(bank, scope=scope) == []


def assert_equals_oracle(bank: MemoryBank, *, queries: int) -> None:
    """Compare the index with an exact engine over the ledger: the same ten memories for random queries, up to ties."""
    exact, rng = oracle(bank, scope=ANNA), random.Random(0)
    everything = bank.count(scope=ANNA)
    for _ in range(queries):
        plan, _ = bank._plan(sentence(rng), ANNA, 10, None, ())
        # As deep as there are memories: otherwise ties at the end of a ranking decide who takes part in the fusion.
        plan = replace(plan, prefetch=everything)
        found = bank._core.projector.search(plan)
        assert len(found) == 10
        bounds = fused_bounds(exact, plan, everything)
        worst = min(hit.score for hit in found)
        for hit in found:
            low, high = bounds.pop(hit.key)
            assert low - 1e-5 <= hit.score <= high + 1e-5
        assert max(low for low, _ in bounds.values()) <= worst + 1e-5  # nobody better was left out


def fused_bounds(exact: ExactEngine, plan: IndexQuery, everything: int) -> dict[UUID, tuple[float, float]]:
    """Return the least and the most that each memory's fused score can be, however ties within a ranking are broken."""
    out: dict[UUID, tuple[float, float]] = {}
    rankings = (replace(plan, sparse=None, limit=everything), replace(plan, dense=None, limit=everything))
    for one, weight in zip(rankings, plan.weights, strict=True):
        hits = exact.search(one)
        scores = [-hit.score for hit in hits]
        for hit in hits:
            first, last = bisect_left(scores, -hit.score - 1e-5), bisect_right(scores, -hit.score + 1e-5) - 1
            low, high = out.get(hit.key, (0.0, 0.0))
            out[hit.key] = (low + rrf_share(last, plan.rrf_k, weight), high + rrf_share(first, plan.rrf_k, weight))
    return out


def test_eight_threads_write_and_search(bank: MemoryBank) -> None:
    bank.search("warm up", scope=ANNA)
    workers = [Worker(bank, n) for n in range(8)]
    at_once([lambda w=w: w.work(25) for w in workers])  # type: ignore[misc]  # the default binds w
    assert_all_there(bank, workers)
    assert_equals_oracle(bank, queries=100)


@pytest.mark.anyio
async def test_sixty_four_tasks_write_and_search(bank: MemoryBank) -> None:
    workers = [Worker(bank, n) for n in range(64)]
    async with anyio.create_task_group() as group:
        for worker in workers:
            group.start_soon(worker.awork, 4)
    assert_all_there(bank, workers)
    assert_equals_oracle(bank, queries=100)


class Background:
    """Repeats a call in a thread while the block runs; raises afterwards what the call raised."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call, self._stop = call, threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self.rounds = 0

    def _loop(self) -> None:
        while not self._stop.is_set():
            self._call()
            self.rounds += 1

    def __enter__(self) -> Background:
        self._future = self._pool.submit(self._loop)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        self._future.result()


def fill(bank: MemoryBank, count: int, *, scope: Scope = ANNA) -> None:
    rng = random.Random(1)
    bank.apply([add(sentence(rng), speaker=f"P{n % 3}") for n in range(count)], scope=scope)


@pytest.mark.usefixtures("eager_switching")
def test_searches_see_a_whole_index_while_another_user_is_purged(bank: MemoryBank) -> None:
    fill(bank, 60)

    def search() -> None:
        assert len(bank.search("tea garden", scope=ANNA)) == 10
        assert bank.count(scope=ANNA) == 60

    with Background(search) as one, Background(search):
        for _ in range(4):  # each purge writes the index anew
            bank.apply([add("secret")], scope=BOB)
            bank.purge(scope=BOB)
            bank.rebuild()
    assert one.rounds > 0
    assert audit(bank, scope=ANNA) == []


@pytest.mark.usefixtures("eager_switching")
def test_new_speakers_appear_while_others_search(bank: MemoryBank) -> None:
    bank.apply([add(f"fact {n}", speaker=f"Person{n}") for n in range(300)], scope=ANNA)
    bank.search("warm up", scope=ANNA)
    with Background(lambda: bank.search("what did Person7 say", scope=ANNA)):
        for n in range(40):
            bank.apply([add("news", speaker=f"Newcomer{n}")], scope=ANNA)


@pytest.mark.usefixtures("eager_switching")
def test_purge_and_writes_of_one_user_race(bank: MemoryBank) -> None:
    """Whichever comes first: what is left is what was written after the last purge, in log, state and index."""
    with Background(lambda: bank.apply([add("kept or purged")], scope=ANNA)):
        for _ in range(4):
            bank.purge(scope=ANNA)
    bank.purge(scope=ANNA)
    assert bank.log(scope=ANNA) == []
    assert audit(bank, scope=ANNA) == []
    bank.apply([add("after")], scope=ANNA)
    assert [hit.memory.text for hit in bank.search("after", scope=ANNA)] == ["after"]


@pytest.mark.usefixtures("eager_switching")
def test_a_branch_holds_exactly_the_state_of_its_moment(bank: MemoryBank) -> None:
    fill(bank, 5)
    worker = Worker(bank, 0)
    branches = []
    with Background(lambda: worker.work(1)):
        for _ in range(20):
            branches.append(bank.branch(scope=ANNA))
            branches[-1].apply([add("only in the branch")], scope=ANNA)
    for branch in branches:
        state, problems = replay(op for op in bank.log(scope=ANNA) if op.seq <= branch.base_seq)
        assert problems == []
        inside = [m for m in branch.memories(scope=ANNA) if m.text != "only in the branch"]
        assert {(m.id, m.version) for m in inside} == {(m.id, m.version) for m in state.values()}
    assert all(m.text != "only in the branch" for m in bank.memories(scope=ANNA))


def test_a_state_knows_nothing_of_what_closed_it_later(bank: MemoryBank) -> None:
    """What a branch or an index reads while somebody writes."""
    (op,) = bank.apply([add("likes tea")], scope=ANNA)
    bank.apply([ProposedOp(kind=OpKind.DELETE, memory_id=op.memory_id, reason="r", actor="test")], scope=ANNA)
    ledger = bank._core.ledger
    (then,) = ledger.snapshot(ANNA.partition(), ANNA, seq=op.seq)
    ((_, filled),) = next(ledger.everything(op.seq))
    assert then.memory == filled.memory == op.after


@pytest.mark.usefixtures("eager_switching")
def test_an_export_is_one_moment_of_a_bank_that_is_written_to(bank: MemoryBank, tmp_path: Path) -> None:
    worker, exports = Worker(bank, 0), []
    worker.work(5)
    with Background(lambda: worker.work(1)):
        exports = [list(bank.export(scope=ANNA)) for _ in range(10)]
    with open_bank(tmp_path / "copy", embedding="hashing") as copy:
        for number, lines in enumerate(exports):
            scope = Scope(user=f"copy{number}")
            copy.import_(lines, scope=scope)
            assert audit(copy, scope=scope) == []


def test_one_of_many_writers_wins_each_version(bank: MemoryBank) -> None:
    (op,) = bank.apply([add("version 1")], scope=ANNA)
    won = []

    def race(name: str) -> None:
        for version in range(1, 11):
            update = ProposedOp(kind=OpKind.UPDATE, memory_id=op.memory_id, text=f"{name} {version}", reason="r",
                                actor=name, expected_version=version)  # fmt: skip
            barrier.wait()
            try:
                bank.apply([update], scope=ANNA)
            except ConflictError:
                continue
            won.append(version)

    barrier = threading.Barrier(4)
    at_once([lambda n=n: race(f"writer{n}") for n in range(4)])  # type: ignore[misc]  # the default binds n
    assert won == list(range(1, 11))
    assert audit(bank, scope=ANNA) == []


def test_a_turn_is_done_once(bank: MemoryBank) -> None:
    (turn,) = bank.accept([Turn(source_id="1", speaker="Anna", text="I like tea")], scope=ANNA)
    outcomes = []

    def process() -> None:
        barrier.wait()
        try:
            bank.apply([add("likes tea")], scope=ANNA, turn=turn)
        except ConflictError:
            outcomes.append("refused")
        else:
            outcomes.append("done")

    barrier = threading.Barrier(4)
    at_once([process] * 4)
    assert sorted(outcomes) == ["done", "refused", "refused", "refused"]
    assert len(bank.memories(scope=ANNA)) == 1


class CountingEmbedder(HashingEmbedder):
    """Remembers in which threads, and in how many at once, it was asked."""

    def __init__(self) -> None:
        super().__init__(64)
        self.threads: set[str] = set()
        self.now = self.most = 0
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str]) -> Vectors:
        with self._lock:
            self.threads.add(threading.current_thread().name)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return super().embed(texts)
        finally:
            with self._lock:
                self.now -= 1


@pytest.mark.anyio
async def test_async_calls_run_in_a_few_threads_of_the_bank(tmp_path: Path) -> None:
    embedder = CountingEmbedder()
    async with open_bank(tmp_path, embedding=embedder) as bank, anyio.create_task_group() as group:
        for n in range(64):
            group.start_soon(lambda n=n: bank.aapply([add(f"fact {n}")], scope=ANNA))
            group.start_soon(lambda n=n: bank.asearch(f"fact {n}", scope=ANNA))
    assert embedder.threads
    assert all(name.startswith("memweave") for name in embedder.threads)
    assert embedder.most <= 4


@pytest.mark.anyio
async def test_cancelled_calls_happen_whole_or_not_at_all(bank: MemoryBank) -> None:
    """Cancellation reaches a call before it starts, or lets it finish; the bank works on."""
    rng = random.Random(0)
    turns = await bank.aaccept(
        [Turn(source_id=str(n), speaker="Anna", text=f"turn {n}") for n in range(24)], scope=ANNA
    )
    for turn in turns:
        ops = [add(f"{turn.text} part {part}").model_copy(update={"run_id": turn.source_id}) for part in range(3)]
        with anyio.move_on_after(rng.uniform(0, 0.01)):
            await bank.aapply(ops, scope=ANNA, turn=turn)
    await bank.aapply([add("afterwards")], scope=ANNA)
    written = {turn.source_id: len(bank.log(scope=ANNA, run_id=turn.source_id)) for turn in turns}
    assert set(written.values()) <= {0, 3}
    done = {turn.source_id for turn in bank.turns(scope=ANNA, status=TurnStatus.DONE)}
    assert done == {source_id for source_id, count in written.items() if count == 3}
    assert audit(bank, scope=ANNA) == []


def test_one_bank_closes_while_another_works(tmp_path: Path) -> None:
    with open_bank(tmp_path, embedding="hashing") as bank:
        worker = Worker(bank, 0)

        def open_and_close() -> None:
            with open_bank(tmp_path) as other:
                other.search("tea", scope=ANNA)

        with Background(open_and_close), Background(open_and_close):
            worker.work(40)
        assert_all_there(bank, [worker])


def test_a_closed_bank_says_so(tmp_path: Path) -> None:
    bank = open_bank(tmp_path, embedding="hashing")
    bank.close()
    bank.close()  # twice is once
    with pytest.raises(UsageError, match="closed"):
        bank.search("tea", scope=ANNA)
    with pytest.raises(UsageError, match="closed"):
        bank.apply([add("tea")], scope=ANNA)
    with pytest.raises(UsageError, match="closed"):
        anyio.run(lambda: bank.asearch("tea", scope=ANNA))
    with open_bank(tmp_path) as again:
        assert again.memories(scope=ANNA) == []


class FullDisk(ExactEngine):
    """An index whose disk is full, for as long as it is said to be."""

    full = False

    def upsert(self, points: Sequence[IndexPoint]) -> None:
        if self.full:
            raise StorageFullError("the disk is full")
        super().upsert(points)


def test_an_index_that_could_not_be_written_anew_is_not_taken_for_whole(bank: MemoryBank) -> None:
    fill(bank, 20)
    engine = FullDisk()
    projector = Projector(bank._core.ledger, engine, bank._encoder, write_key="key", shared=False)
    projector.catch_up()
    engine.full = True
    with pytest.raises(StorageFullError):
        projector.rebuild()
    with pytest.raises(StorageFullError):
        projector.catch_up()
    engine.full = False
    projector.catch_up()
    assert projector.count(ANNA.partition()) == 20


class InterruptedSearch(ExactEngine):
    """Lets its first search look only after `clear`, and writes only after that search."""

    def __init__(self) -> None:
        super().__init__()
        self.started, self.cleared, self.searched = threading.Event(), threading.Event(), threading.Event()

    def search(self, query: IndexQuery) -> list[IndexHit]:
        if self.started.is_set():
            return super().search(query)
        self.started.set()
        assert self.cleared.wait(10)
        found = super().search(query)
        self.searched.set()
        return found

    def clear(self) -> None:
        super().clear()
        if self.started.is_set():
            self.cleared.set()
            assert self.searched.wait(10)


def test_a_search_that_met_an_emptied_index_looks_again(bank: MemoryBank) -> None:
    fill(bank, 20)
    engine = InterruptedSearch()
    projector = Projector(bank._core.ledger, engine, bank._encoder, write_key="key", shared=False)
    projector.catch_up()
    query, _ = bank._plan("tea garden", ANNA, 10, None, ())
    with ThreadPoolExecutor(1) as pool:
        search = pool.submit(projector.search, query)
        assert engine.started.wait(10)
        projector.rebuild()
        assert len(search.result()) == 10

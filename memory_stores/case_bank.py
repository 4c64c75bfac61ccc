"""`CaseBank`: finished tasks of many scopes, on the same ledger and index as memories (Memento, sections 2.6, 3.7 and 6).

A case is a memory of the collection `cases` whose text is the task: it is embedded once, when it is written, it explains itself in the log,
and it can be undone. What was shown for which query, and what came of it, is kept beside it as replay rows.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import numpy as np

from memweave.errors import InputError
from memweave.memory_stores.bank import MemoryBank
from memweave.memory_stores.case_kernel import Uses, uses_of
from memweave.memory_stores.case_lines import (
    CaseImport,
    ImportedCase,
    case_line,
    read_case_lines,
    replay_line,
)
from memweave.memory_stores.case_retrieval import (
    Candidates,
    CaseQuery,
    ECKernelSoftmax,
    Matrix,
    NeuralQTopK,
    RetrievalPolicy,
    Vector,
)
from memweave.memory_stores.case_rows import case_of, memory_text, metadata_of
from memweave.memory_stores.case_store import CaseStore
from memweave.memory_stores.closing import Closing
from memweave.memory_stores.opening import open_bank
from memweave.records import Case, MemoryHit, MemoryOp, NewCase, OpKind, ProposedOp, Record, ReplayRow, Scope

ACTOR: Final = "memento"


class CaseSettings(Record):
    """What a case bank keeps."""

    verified_only: bool = True
    """Refuse a case whose answer nobody verified."""
    positive_only: bool = False
    """Refuse a case that was not solved (reward below 1): failures that look like a task crowd out what worked (docs/planworld.md)."""
    dedup_threshold: float | None = None
    """Refuse a case when one with the same plan and reward is there already and the cosine of their tasks is at least this (A13)."""
    max_cases: int | None = None
    """Above it, the oldest case goes for each new one (A13); it stays in the ledger, and undo brings it back."""
    allow_self: bool = False
    """Show a query its own cases of earlier iterations (A4). Those of the same iteration never."""


@dataclass(frozen=True, slots=True)
class RetrievedCase:
    """A case that a policy chose."""

    case: Case
    score: float
    """What it was ranked by; comparable within one retrieval."""
    probability: float | None


@dataclass(frozen=True, slots=True)
class _Table:
    """All cases of a scope at one moment."""

    seq: int
    cases: tuple[Case, ...]
    vectors: Matrix
    rewards: np.ndarray[Any, np.dtype[np.float64]]


class CaseBank(Closing):
    """Cases of many scopes, on disk. Open one with `open_cases`, or make one of a memory bank that is open.

    Safe to use from any thread and from async code. Each method has an async twin with the prefix `a`.
    """

    def __init__(self, bank: MemoryBank, settings: CaseSettings | None = None) -> None:
        self.settings = settings or CaseSettings()
        self._bank = bank
        self._memories = CaseStore(bank)
        self._writing = threading.Lock()
        self._tables: dict[Scope, _Table] = {}

    @property
    def encoder(self) -> str:
        """Return the name of the embedding model; a Q-function belongs to one."""
        return self._memories.embedder.model_id

    # writing

    def write(self, case: NewCase, *, scope: Scope) -> Case | None:
        """Add a case (Eq. 12) and return it; `None` when the settings refuse it, which the log then says."""
        with self._writing:
            refused = self._refusal(case, scope)
            if refused is not None:
                self._memories.reject(refused, scope=scope, actor=ACTOR, reason="case was not kept", run_id=case.run_id)
                return None
            ops = [_addition(case), *self._leaving(scope)]
            added, *_ = self._memories.apply(ops, scope=scope)
        assert added.after is not None  # an ADD that did not fail
        return case_of(added.after)

    def _refusal(self, case: NewCase, scope: Scope) -> str | None:
        if case.reward is None and self.settings.verified_only:
            return "nobody verified its answer"
        if self.settings.positive_only and not case.positive:
            return f"only solved tasks are kept, and its reward is {case.reward}"
        if self.settings.dedup_threshold is None:
            return None
        near = self._memories.nearest(self._vector(case.task), scope=scope, limit=8)
        for hit in near:
            known = case_of(hit.memory)
            if hit.score >= self.settings.dedup_threshold and (known.plan, known.reward) == (case.plan, case.reward):
                return f"case {known.id} says the same (cosine {hit.score:.3f})"
        return None

    def _leaving(self, scope: Scope, new: int = 1) -> list[ProposedOp]:
        if self.settings.max_cases is None:
            return []
        over = self._memories.count(scope=scope) + new - self.settings.max_cases
        oldest = self._memories.memories(scope=scope, limit=over) if over > 0 else []
        return [
            ProposedOp(
                kind=OpKind.DELETE,
                memory_id=memory.id,
                reason=f"the oldest of more than {self.settings.max_cases} cases",
                actor=ACTOR,
            )
            for memory in oldest
        ]

    def remove(self, case_id: UUID, *, scope: Scope, reason: str, actor: str = "user") -> MemoryOp:
        """Take a case out of the bank; `undo` brings it back. Raises `UnknownMemoryError`."""
        op = ProposedOp(kind=OpKind.DELETE, memory_id=case_id, reason=reason, actor=actor)
        return self._memories.apply([op], scope=scope)[0]

    def undo(self, op_id: UUID, *, scope: Scope, actor: str = "user") -> MemoryOp:
        """Take back one operation, as `MemoryBank.undo`."""
        return self._memories.undo(op_id, scope=scope, actor=actor)

    def log(
        self, *, scope: Scope, limit: int | None = None, run_id: str | None = None, newest: bool = False
    ) -> list[MemoryOp]:
        """Return operations on cases, refused ones included, oldest first."""
        return self._memories.log(scope=scope, limit=limit, run_id=run_id, newest=newest)

    # reading

    def retrieve(
        self,
        task: str,
        *,
        scope: Scope,
        k: int = 4,
        policy: RetrievalPolicy,
        task_id: str | None = None,
        iteration: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> list[RetrievedCase]:
        """Return up to `k` cases that `policy` chooses for a task, best first.

        task_id, iteration: of the query; it is not shown its own cases (`CaseSettings.allow_self`).  rng: of policies that draw.

        Raises `InputError` for a blank task or a negative `k`, `EmbeddingMismatchError` for a Q-function or a kernel of another embedding.
        """
        if not task.strip() or k < 0:
            raise InputError(f"cases for the task {task[:60]!r}, k = {k}: give a task in words, and 0 or more")
        if k == 0 or policy.prefilter == 0:
            return []
        query = CaseQuery(task, self._vector(task), task_id)
        _check(policy, self.encoder, len(query.vector))
        if policy.prefilter is None:
            cases, candidates = self._everything(query, scope, iteration)
        else:
            cases, candidates = self._near(query, scope, iteration, max(policy.prefilter, k))
        if not cases:
            return []
        chosen = policy.choose(query, candidates, k, rng or np.random.default_rng())
        return [RetrievedCase(cases[each.index], each.score, each.probability) for each in chosen]

    def _hidden(self, case: Case, task_id: str | None, iteration: int | None) -> bool:
        if task_id is None or case.task_id != task_id:
            return False
        return not self.settings.allow_self or case.iteration == iteration

    def _near(self, query: CaseQuery, scope: Scope, iteration: int | None, most: int) -> tuple[list[Case], Candidates]:
        """Return the nearest cases that may be shown; asks for more when some may not."""
        limit = most
        while True:
            hits: list[MemoryHit] = self._memories.nearest(query.vector, scope=scope, limit=limit)
            found = [(case_of(hit.memory), hit.score) for hit in hits]
            kept = [each for each in found if not self._hidden(each[0], query.task_id, iteration)][:most]
            if len(kept) == most or len(hits) < limit:
                break
            limit *= 2
        cases = [case for case, _ in kept]
        ids = [case.id for case in cases]
        candidates = Candidates(
            ids=ids,
            vectors=self._memories.vectors(ids, scope=scope),
            rewards=_rewards(cases),
            cosines=np.array([score for _, score in kept], dtype=np.float64),
        )
        return cases, candidates

    def _everything(self, query: CaseQuery, scope: Scope, iteration: int | None) -> tuple[list[Case], Candidates]:
        table = self._table(scope)
        cosines = (table.vectors @ query.vector).astype(np.float64)
        shown = [i for i, case in enumerate(table.cases) if not self._hidden(case, query.task_id, iteration)]
        if len(shown) == len(table.cases):  # the arrays themselves: a head keeps what it knows of them
            ids = [case.id for case in table.cases]
            return list(table.cases), Candidates(ids, table.vectors, table.rewards, cosines)
        cases = [table.cases[i] for i in shown]
        ids = [case.id for case in cases]
        return cases, Candidates(ids, table.vectors[shown], table.rewards[shown], cosines[shown])

    def _table(self, scope: Scope) -> _Table:
        """Return all cases of a scope, read anew when the ledger has grown."""
        seq = self._memories.head()
        known = self._tables.get(scope)
        if known is not None and known.seq == seq:
            return known
        cases = tuple(case_of(memory) for memory in self._memories.memories(scope=scope))
        vectors = self._memories.vectors([case.id for case in cases], scope=scope)
        made = _Table(seq, cases, vectors, _rewards(cases))
        self._tables = {scope: made}  # one: a bank of 100,000 cases takes 150 MB
        return made

    def get(self, case_id: UUID, *, scope: Scope) -> Case:
        """Return a case. Raises `UnknownMemoryError`."""
        return case_of(self._memories.get(case_id, scope=scope))

    def cases(self, *, scope: Scope, limit: int | None = None) -> list[Case]:
        """Return the cases, oldest first."""
        return [case_of(memory) for memory in self._memories.memories(scope=scope, limit=limit)]

    def count(self, *, scope: Scope) -> int:
        """Return the number of cases."""
        return self._memories.count(scope=scope)

    def vectors(self, ids: Sequence[UUID], *, scope: Scope) -> Matrix:
        """Return (n, d) the vectors of cases, as they were embedded when they were written. Raises `UnknownMemoryError`."""
        return self._memories.vectors(ids, scope=scope)

    def embed(self, texts: Sequence[str]) -> Matrix:
        """Return (n, d) the vectors of tasks, of length 1."""
        vectors = [self._vector(text) for text in texts]
        return np.stack(vectors) if vectors else np.zeros((0, self._memories.embedder.dimension), dtype=np.float32)

    def _vector(self, text: str) -> Vector:
        return self._memories.query_vector(memory_text(text))

    # experience

    def add_replay(self, rows: Sequence[ReplayRow], *, scope: Scope) -> None:
        """Keep which cases were shown for a query, and what came of it."""
        if rows:
            self._memories.add_replay(rows, scope=scope)

    def replay(self, *, scope: Scope, limit: int | None = None) -> list[ReplayRow]:
        """Return the last `limit` rows of experience, or all, oldest first."""
        return self._memories.replay(scope=scope, limit=limit)

    def uses(self, *, scope: Scope, limit: int | None = None) -> dict[UUID, Uses]:
        """Return what each case did for which queries, from the last `limit` rows of experience or all: D of `ECKernelSoftmax`."""
        rows = self.replay(scope=scope, limit=limit)
        return uses_of(rows, self.embed([row.query for row in rows]))

    # moving

    def export(self, *, scope: Scope, replay: bool = False) -> Iterator[str]:
        """Yield the cases as JSON lines in the public format, with our fields beside: question, plan, reward, ...

        replay: whether the rows of experience follow, each a line of its own.
        """
        for case in self.cases(scope=scope):
            yield case_line(case)
        for row in self.replay(scope=scope) if replay else ():
            yield replay_line(row)

    def import_(self, lines: Iterable[str], *, scope: Scope, source: str = "line") -> CaseImport:
        """Add the cases of a released pool or an export, and its rows of experience, all or none; return how many are new.

        A line is {"question", "plan", "reward"}, {"case", "plan", "case_label"}, or an export's row of experience. What is there already
        is skipped, so it can be repeated. Settings for what is kept do not apply: a pool is taken as it is.  source: how a line is named
        in an error.

        Raises `InputError` naming the first line that cannot be read.
        """
        read, rows = read_case_lines(lines, source)
        with self._writing:
            there = self._memories.memories(scope=scope)
            known: set[object] = {memory.id for memory in there} | {s for memory in there for s in memory.source_ids}
            fresh: dict[object, ImportedCase] = {}
            for each in read:
                key = each.id or each.source
                if key not in known:
                    fresh.setdefault(key, each)
            more = _beyond(rows, self.replay(scope=scope) if rows else ())
            self._memories.apply_with_replay([_imported(each) for each in fresh.values()], more, scope=scope)
        return CaseImport(len(fresh), len(more))

    # async twins

    async def awrite(self, case: NewCase, *, scope: Scope) -> Case | None:
        """Async twin of `write`."""
        return await self._memories._in_thread(self.write, case, scope=scope)

    async def aremove(self, case_id: UUID, *, scope: Scope, reason: str, actor: str = "user") -> MemoryOp:
        """Async twin of `remove`."""
        return await self._memories._in_thread(self.remove, case_id, scope=scope, reason=reason, actor=actor)

    async def aundo(self, op_id: UUID, *, scope: Scope, actor: str = "user") -> MemoryOp:
        """Async twin of `undo`."""
        return await self._memories._in_thread(self.undo, op_id, scope=scope, actor=actor)

    async def alog(
        self, *, scope: Scope, limit: int | None = None, run_id: str | None = None, newest: bool = False
    ) -> list[MemoryOp]:
        """Async twin of `log`."""
        return await self._memories._in_thread(self.log, scope=scope, limit=limit, run_id=run_id, newest=newest)

    async def aretrieve(
        self,
        task: str,
        *,
        scope: Scope,
        k: int = 4,
        policy: RetrievalPolicy,
        task_id: str | None = None,
        iteration: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> list[RetrievedCase]:
        """Async twin of `retrieve`."""
        return await self._memories._in_thread(
            self.retrieve, task, scope=scope, k=k, policy=policy, task_id=task_id, iteration=iteration, rng=rng
        )

    async def aget(self, case_id: UUID, *, scope: Scope) -> Case:
        """Async twin of `get`."""
        return await self._memories._in_thread(self.get, case_id, scope=scope)

    async def acases(self, *, scope: Scope, limit: int | None = None) -> list[Case]:
        """Async twin of `cases`."""
        return await self._memories._in_thread(self.cases, scope=scope, limit=limit)

    async def acount(self, *, scope: Scope) -> int:
        """Async twin of `count`."""
        return await self._memories._in_thread(self.count, scope=scope)

    async def avectors(self, ids: Sequence[UUID], *, scope: Scope) -> Matrix:
        """Async twin of `vectors`."""
        return await self._memories._in_thread(self.vectors, ids, scope=scope)

    async def aembed(self, texts: Sequence[str]) -> Matrix:
        """Async twin of `embed`."""
        return await self._memories._in_thread(self.embed, texts)

    async def aadd_replay(self, rows: Sequence[ReplayRow], *, scope: Scope) -> None:
        """Async twin of `add_replay`."""
        await self._memories._in_thread(self.add_replay, rows, scope=scope)

    async def areplay(self, *, scope: Scope, limit: int | None = None) -> list[ReplayRow]:
        """Async twin of `replay`."""
        return await self._memories._in_thread(self.replay, scope=scope, limit=limit)

    async def auses(self, *, scope: Scope, limit: int | None = None) -> dict[UUID, Uses]:
        """Async twin of `uses`."""
        return await self._memories._in_thread(self.uses, scope=scope, limit=limit)

    async def aexport(self, *, scope: Scope, replay: bool = False) -> list[str]:
        """Async twin of `export`; returns all lines."""
        return await self._memories._in_thread(lambda: list(self.export(scope=scope, replay=replay)))

    async def aimport(self, lines: Sequence[str], *, scope: Scope, source: str = "line") -> CaseImport:
        """Async twin of `import_`."""
        return await self._memories._in_thread(self.import_, lines, scope=scope, source=source)

    # its end

    def optimize(self) -> bool:
        """Build the search graphs of an embedded index, as `MemoryBank.optimize`: worth it after a large import."""
        return self._bank.optimize()

    def close(self) -> None:
        """Release the memory bank below; the data folder is closed with its last bank in this process."""
        self._bank.close()

    async def aclose(self) -> None:
        """Async twin of `close`."""
        await self._bank.aclose()


def open_cases(home: Path | str, *, settings: CaseSettings | None = None, **given: Any) -> CaseBank:
    """Open the case bank in the folder `home`, beside its memories; the other arguments and errors are those of `open_bank`."""
    return CaseBank(open_bank(home, **given), settings)


def _addition(case: NewCase, why: str = "a finished task") -> ProposedOp:
    worth = "not verified" if case.reward is None else f"reward {case.reward:g}"
    return ProposedOp(
        kind=OpKind.ADD,
        text=memory_text(case.task),
        reason=f"{why}, {worth}",
        actor=ACTOR,
        run_id=case.run_id,
        metadata=metadata_of(case),
    )


def _imported(line: ImportedCase) -> ProposedOp:
    return _addition(line.case, "imported").model_copy(update={"memory_id": line.id, "source_ids": (line.source,)})


def _beyond(rows: Sequence[ReplayRow], there: Sequence[ReplayRow]) -> list[ReplayRow]:
    """Return the rows that are not there, or not as often."""
    left = Counter(row.model_dump_json() for row in there)
    found = []
    for row in rows:
        left[said := row.model_dump_json()] -= 1
        if left[said] < 0:
            found.append(row)
    return found


def _check(policy: RetrievalPolicy, encoder: str, dimension: int) -> None:
    if isinstance(policy, NeuralQTopK) and policy.head is not None:
        policy.head.check(encoder, dimension)
    elif isinstance(policy, ECKernelSoftmax):
        policy.kernel.check(encoder, dimension)


def _rewards(cases: Sequence[Case]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([np.nan if case.reward is None else case.reward for case in cases], dtype=np.float64)

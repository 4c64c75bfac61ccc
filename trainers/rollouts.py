"""Rollouts: G episodes of each task at once, each traced, scored, and on a branch of the memory of its own.

    rollouts = Rollouts(graph, reward, bank=bank, store=store)
    groups = rollouts.run(tasks, group_size=8, run="first", iteration=0)

Any LangChain runnable will do; that of sync nodes runs in threads. An episode that fails is data: a trace with a status and
no score. What every episode of a call fails for is an error.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from langchain_core.runnables import Runnable

from memweave.errors import (
    GroupError,
    InputError,
    MemweaveError,
    NoPolicyError,
    OperationError,
    RewardError,
    SettingsError,
    UnavailableError,
)
from memweave.memory_stores import MemoryBank
from memweave.records import Scope
from memweave.tracing import Trace, TraceStatus
from memweave.trainers.credit import Group
from memweave.trainers.episodes import POLICY_VERSION_KEY, Episode, EpisodeRunner, Reward, Task, has_policy_call
from memweave.trainers.loop_thread import LoopThread

__all__ = ["EpisodeStore", "Group", "Reward", "Rollouts", "Task"]

Progress = Callable[[int, int, int], object]
"""Called after every episode: how many are done, how many of these failed, how many there are."""


class EpisodeStore(Protocol):
    """Where episodes are kept; `TraceStore` is one."""

    async def aadd(self, trace: Trace) -> object:
        """Store a trace durably."""

    def iterate(self, *, run: str | None = None, iteration: int | None = None, newest: bool = True) -> Iterable[Trace]:
        """Return the traces of a run's iteration, newest or oldest first."""


class Rollouts:
    """Runs episodes of `graph` and scores them with `reward`. Close it, or use it in a `with` block.

    concurrency: episodes at work at once.  timeout: seconds for one episode (and again for its reward).
    bank: what the graph's memory is; every episode reads and writes a branch of it, which is forgotten afterwards. The
    branch is of the user in the task's context, or of `scope`. The reward sees the branch as `bank_in_use()`.
    store: keeps every episode, and is asked first, so that a call that was killed goes on where it was.
    recursion_limit: LangGraph steps. An episode that reaches it failed and is not scored: a loop that the policy may get
    into needs a cap of its own in the graph, after which there is an output to score.
    """

    def __init__(
        self,
        graph: Runnable[Any, Any],
        reward: Reward,
        *,
        concurrency: int = 32,
        timeout: float | None = 60.0,
        bank: MemoryBank | None = None,
        scope: Scope | None = None,
        store: EpisodeStore | None = None,
        recursion_limit: int = 100,
        progress: Progress | None = None,
    ) -> None:
        if concurrency < 1:
            raise SettingsError(f"concurrency {concurrency} must be 1 or more.")
        if timeout is not None and not timeout > 0:
            raise SettingsError(f"timeout {timeout} must be above 0 seconds; use None for no limit.")
        self.concurrency = concurrency
        self.progress = progress
        self._runner = EpisodeRunner(graph, reward, timeout, recursion_limit, bank, scope)
        self._store = store
        self._loop: LoopThread | None = None

    async def arun(
        self,
        tasks: Sequence[Task],
        *,
        group_size: int,
        run: str,
        iteration: int = 0,
        policy_version: str | None = None,
        training: bool = True,
    ) -> list[Group]:
        """Run `group_size` episodes of each task and return one group per task, in order, replicas in order.

        Every finished episode is in the store before this returns, and as soon as it is trainable. An episode that the store
        holds already (same run, iteration, policy version, task and replica) is not run again.
        training: `False` for evaluation: groups of one, and graphs without a policy, are allowed.
        Raises: `GroupError` for groups of one; `RewardError` for a reward that is not a number, that raises, or that
        no episode has; `NoPolicyError` when no episode called a policy; `UnavailableError`, or another
        `OperationError`, when no episode ran to its end.
        """
        _check(tasks, group_size, training)
        call = _Call(list(tasks), group_size, run, iteration, policy_version)
        await self._reuse(call)
        waiting = iter(call.missing())
        workers = min(self.concurrency, len(call.episodes) - call.done)
        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as together:
                for _ in range(workers):
                    together.create_task(self._work(waiting, call))
        except BaseExceptionGroup as errors:
            failure = _first(errors)
        if failure is not None:
            raise failure  # out here: it keeps its own cause, without the group around it
        call.check(training)
        await self._keep(call.held)
        return call.groups()

    def run(
        self,
        tasks: Sequence[Task],
        *,
        group_size: int,
        run: str,
        iteration: int = 0,
        policy_version: str | None = None,
        training: bool = True,
    ) -> list[Group]:
        """Blocking twin of `arun`, on a loop that is kept between calls; also from within a running loop (a notebook).

        Ctrl-C cancels the episodes at work; those that finished stay stored.
        """
        if self._loop is None:
            # A sync node and a sync reward each occupy a thread; a few more for the bank and the store.
            self._loop = LoopThread("memweave-rollouts", workers=self.concurrency + 4)
        work = self.arun(
            tasks, group_size=group_size, run=run, iteration=iteration, policy_version=policy_version, training=training
        )
        return self._loop.run(work)

    def close(self) -> None:
        """Stop the loop of `run`; the store and the bank stay open."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    async def _reuse(self, call: _Call) -> None:
        """Take from the store what an earlier call has done."""
        if self._store is None:
            return
        store = self._store
        # Most calls find nothing, and reading is blocking: in a thread.
        found = await asyncio.to_thread(
            lambda: list(store.iterate(run=call.run, iteration=call.iteration, newest=False))
        )
        for trace in found:
            call.reuse(trace)
        if call.done:
            self._report(call)

    async def _work(self, waiting: Iterator[tuple[Task, int]], call: _Call) -> None:
        """Run episodes until there are none left: as many of these run as episodes may be at work."""
        for task, replica in waiting:
            episode = await self._runner.run(
                task, replica, run=call.run, iteration=call.iteration, policy_version=call.policy_version
            )
            if episode.trainable:
                await self._keep([episode.trace])
            call.finish(episode)
            self._report(call)

    async def _keep(self, traces: Iterable[Trace]) -> None:
        if self._store is not None:
            for trace in traces:
                await self._store.aadd(trace)

    def _report(self, call: _Call) -> None:
        if self.progress is not None:
            self.progress(call.done, call.failed, len(call.episodes))


@dataclass(slots=True)
class _Call:
    """The episodes of one call and how far they are.

    What cannot be trained on is `held` and stored last: if it is all there is, the call raises, and a later one should try
    again instead of finding it.
    """

    tasks: Sequence[Task]
    group_size: int
    run: str
    iteration: int
    policy_version: str | None
    episodes: dict[tuple[str, int], Trace | None] = field(init=False)
    held: list[Trace] = field(default_factory=list)
    done: int = 0
    failed: int = 0
    errors: list[Exception] = field(default_factory=list)
    """One of each kind."""

    def __post_init__(self) -> None:
        self.episodes = {(task.id, replica): None for task in self.tasks for replica in range(self.group_size)}

    def missing(self) -> list[tuple[Task, int]]:
        """Return the episodes to run, those of one task side by side."""
        numbers = range(self.group_size)
        return [(task, number) for task in self.tasks for number in numbers if self.episodes[task.id, number] is None]

    def reuse(self, trace: Trace) -> None:
        """Take a stored trace, if it is one of this call's episodes under the same policy, and got to an end."""
        key = (trace.group or "", -1 if trace.replica is None else trace.replica)
        same = trace.metadata.get(POLICY_VERSION_KEY) == self.policy_version
        ended = trace.status not in (TraceStatus.UNAVAILABLE, TraceStatus.CANCELLED)
        if same and ended and key in self.episodes and self.episodes[key] is None:
            self._set(key, trace)

    def finish(self, episode: Episode) -> None:
        """Take an episode that just ended."""
        trace = episode.trace
        self._set((trace.group or "", trace.replica or 0), trace)
        if not episode.trainable:
            self.held.append(trace)
        if episode.error is not None and type(episode.error) not in map(type, self.errors):
            self.errors.append(episode.error)

    def _set(self, key: tuple[str, int], trace: Trace) -> None:
        self.episodes[key] = trace
        self.done += 1
        self.failed += trace.status is not TraceStatus.OK

    def groups(self) -> list[Group]:
        """Return the traces by task."""
        numbers = range(self.group_size)
        found = self.episodes
        return [
            Group(task.id, tuple(t for n in numbers if (t := found[task.id, n]) is not None)) for task in self.tasks
        ]

    def check(self, training: bool) -> None:
        """Raise what makes these episodes useless as a whole."""
        traces = [trace for trace in self.episodes.values() if trace is not None]
        ended = [trace for trace in traces if trace.status is TraceStatus.OK]
        if not ended:
            raise self._nothing(traces)
        if all(trace.score is None for trace in ended):
            raise RewardError(
                f"none of {len(ended)} episodes has a reward: the reward function returned None each time. "
                "Return a number or a Score for episodes that can be judged."
            )
        if training and not any(has_policy_call(trace) for trace in ended):
            calls = [generation for trace in ended for generation in trace.generations]
            if calls and all(generation.prompt_token_ids and generation.token_ids == () for generation in calls):
                raise NoPolicyError(
                    f"{len(ended)} episodes ran, and all {len(calls)} replies are empty: not one token was sampled, so there "
                    "is nothing to train on. Look at one with `memweave traces show`, and check max_tokens."
                )
            raise NoPolicyError(
                f"{len(ended)} episodes ran, and none called a model whose tokens are known. "
                "Give the graph a chat model of the policy server: server.chat_model(role)."
            )

    def _nothing(self, traces: Sequence[Trace]) -> Exception:
        """Return the error that all episodes failed with; where they differ, how they ended and the first."""
        count = Counter(trace.status.value for trace in traces)
        how = ", ".join(f"{number} {status}" for status, number in count.most_common())
        first = next((trace.error for trace in traces if trace.error), "no error was recorded")
        said = f"none of {len(traces)} episodes ran to its end ({how}): {first}"
        only = self.errors[0] if len(self.errors) == 1 else None
        error: Exception
        if isinstance(only, MemweaveError):
            error = type(only)(f"{said}")
        elif set(count) == {TraceStatus.UNAVAILABLE}:
            error = UnavailableError(f"{said}. Check that the server runs, then resume.")
        elif set(count) == {TraceStatus.TIMEOUT}:
            error = OperationError(f"{said}. Allow more time (timeout=), or cap the graph's loops.")
        else:
            error = OperationError(f"{said}. Run the graph once by itself to see where.")
        error.__cause__ = self.errors[0] if self.errors else None
        return error


def _check(tasks: Sequence[Task], group_size: int, training: bool) -> None:
    if group_size < (2 if training else 1):
        raise GroupError(f"group_size {group_size}: an episode is compared with others of its task. Use 2 or more.")
    if not tasks:
        raise InputError("there is no task to run.")
    twice = [name for name, number in Counter(task.id for task in tasks).items() if number > 1]
    if twice:
        raise InputError(f"{len(twice)} task ids are given twice, {twice[0]!r} first; their episodes would be mixed.")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error within (nested) groups."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

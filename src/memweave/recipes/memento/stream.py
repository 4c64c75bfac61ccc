"""A stream of PlanWorld tasks through the real graph: read cases, plan, execute, judge; then the batch is written and learned from.

Tasks of a batch are worked on at the same time and all read before any of them is written, so that a stream is the same every time it is
played with the same seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal, cast
from uuid import UUID

import numpy as np
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig

from memweave.errors import InputError, OperationError
from memweave.graphs.memento import create_memento_agent
from memweave.graphs.memento_feedback import record_feedback
from memweave.graphs.memento_state import MementoInput, QueryRecord
from memweave.memory_stores import CaseBank, CaseSettings, open_cases
from memweave.memory_stores.case_head import QHead
from memweave.memory_stores.case_kernel import Kernel
from memweave.memory_stores.case_retrieval import (
    CaseLearner,
    Choice,
    NoCases,
    RetrievalPolicy,
    SetLearner,
    TriedSets,
)
from memweave.recipes.memento.arms import ARMS, Arm, Given, Learner, Noted
from memweave.recipes.memento.executing import PlanWorldExecutor
from memweave.records import Scope
from memweave.worlds.planworld import PlanTask, PlanWorld, PlanWorldSettings, Split, score

HEAD: Final = "head.safetensors"
KERNEL: Final = "kernel.safetensors"
SCOPE: Final = Scope(user="planworld")
EMBEDDING: Final = "hashing"
MAX_CYCLES: Final = 2
"""A plan, and after its results the answer."""
_DRAWINGS: Final = 1_000_003
"""Apart from one drawing's seed to the next."""
RECURSION: Final = 200
"""Steps of the graph for one task; `batch` forgets the agent's own limit."""
PlannerOf = Callable[[int], BaseChatModel]
"""Gives the planner for a seed of sampling."""
Report = Callable[[str, int, int], object]
"""Called with the iteration, how many of its tasks are done, and how many there are."""


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """What is played."""

    arm: str = "cosine"
    iterations: int = 5
    tasks: int = 300
    """Of each iteration."""
    k: int = 4
    seed: int = 0
    world: PlanWorldSettings = field(default_factory=PlanWorldSettings)
    split: Split = "test"
    mode: Literal["fresh", "repeated"] = "fresh"
    """fresh: new tasks in every iteration.  repeated: the same ones again, as in the paper (A3, A4)."""
    at_once: int = 32
    unseen: int = 0
    """Tasks of unseen families, played at the end on the bank as it is then."""

    def __post_init__(self) -> None:
        if self.arm not in ARMS:
            raise InputError(f"there is no arm {self.arm!r}. There are: {', '.join(ARMS)}")
        for name in ("iterations", "tasks", "at_once"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.k < 0 or self.unseen < 0:
            raise InputError(f"k = {self.k}, unseen = {self.unseen}: give 0 or more")


@dataclass(frozen=True)
class StreamResult:
    """What came of a stream."""

    right: tuple[str, ...]
    """Per iteration, one `1` or `0` per task."""
    cumulative: tuple[str, ...]
    """The same, where a task of an earlier iteration that was solved once counts as solved (repeated mode)."""
    unseen: str
    """Of unseen families."""
    cases: int
    """In the bank at the end."""
    shown: tuple[float, ...]
    """Per iteration, the share of shown cases that were solved and of the task's own rule."""
    statuses: dict[str, int]
    losses: tuple[float, ...] = ()
    """Of each update of what is learned."""


class Stream:
    """One stream under way."""

    def __init__(self, settings: StreamSettings, planner_of: PlannerOf, cases: CaseBank) -> None:
        self.settings = settings
        self.arm: Arm = ARMS[settings.arm]
        self.cases = cases
        self.policy: RetrievalPolicy = self.arm.policy(self._fits) if settings.k else NoCases()
        self.learner: Learner | None = None
        if self.arm.learner is not None and settings.k:
            dimension = len(cases.embed(["dimension"])[0])
            self.learner = self.arm.learner(self.policy, dimension, cases.encoder, settings.seed)
        self._planner_of = planner_of
        self._rules: dict[str, tuple[str, int]] = {}
        """Text -> family and rule."""
        self._kept: dict[UUID, tuple[str, float]] = {}
        """Case -> its task's text, and its true reward."""
        self.statuses: dict[str, int] = {}

    def _fits(self, text: str, case: UUID) -> bool:
        task, reward = self._kept[case]
        return reward == 1.0 and self._rules[task] == self._rules[text]

    @property
    def _one_set(self) -> bool:
        return self.arm.sets == 1 or not self.settings.k

    def iteration(self, number: int, report: Report | None = None) -> tuple[str, float]:
        """Play one iteration; return what was right, and the share of shown cases that fitted."""
        settings = self.settings
        drawn = number if settings.mode == "fresh" else 0
        tasks = PlanWorld(settings.world).tasks(settings.split, settings.tasks, settings.seed, iteration=drawn)
        right, fitting = "", list[bool]()
        for start in range(0, len(tasks), settings.at_once):
            batch = tasks[start : start + settings.at_once]
            records = self._played(batch, number) if self._one_set else self._tried_sets(batch, number)
            rewards = [score(task, record.answer) for task, record in zip(batch, records, strict=True)]
            fitting += [self._fits(record.query, case.id) for record in records for case in record.cases]
            if self.arm.tries > 1:
                rewards = self._tried_again(batch, rewards, number)
            credits = self._credits(batch, records, rewards, number) if self.arm.leave_out else None
            right += "".join(str(int(reward)) for reward in rewards)
            self._keep(records, rewards, number, start, credits)
            if report is not None:
                report(f"iteration {number + 1}", len(right), len(tasks))
        return right, sum(fitting) / len(fitting) if fitting else 0.0

    def unseen(self) -> str:
        """Play tasks of unseen families on the bank as it is; nothing is kept of them."""
        settings = self.settings
        if not settings.unseen:
            return ""
        tasks = PlanWorld(settings.world).tasks("ood", settings.unseen, settings.seed)
        records = self._played(tasks, settings.iterations)
        return "".join(str(int(score(task, record.answer))) for task, record in zip(tasks, records, strict=True))

    def _played(
        self,
        tasks: Sequence[PlanTask],
        number: int,
        attempt: int = 0,
        *,
        policy: RetrievalPolicy | None = None,
        drawing: int = 0,
    ) -> list[QueryRecord]:
        """Return what came of tasks, all worked on with the bank as it is now.

        policy: instead of the arm's.  drawing: another number draws other cases.
        """
        settings = self.settings
        self._rules.update({task.text: (task.family, task.rule) for task in tasks})
        seed = 10_000 * settings.seed + 100 * number + attempt
        agent = create_memento_agent(
            self._planner_of(seed),
            PlanWorldExecutor(p_fail=settings.world.p_fail, seed=seed),
            cases=self.cases,
            scope=SCOPE,
            k=max(settings.k, 1),
            policy=policy or self.policy,
            seed=settings.seed + _DRAWINGS * drawing,
            max_cycles=MAX_CYCLES,
            exhaust_policy="paper_code",
            profile="none",
            protocol="native",
            retain=False,
            timeout=600.0,
        )
        asked: list[MementoInput] = [
            {"messages": [HumanMessage(t.text)], "task_id": t.id, "iteration": number} for t in tasks
        ]
        outputs = agent.batch(asked, RunnableConfig(max_concurrency=settings.at_once, recursion_limit=RECURSION))
        records = [output["record"] for output in outputs]
        if any(record is None for record in records):
            raise OperationError("a task of the stream did not run to its end; play it again")
        for record in records:
            self.statuses[record.status] = self.statuses.get(record.status, 0) + 1
        return records

    def _tried_again(self, tasks: Sequence[PlanTask], rewards: list[float], number: int) -> list[float]:
        failed = [i for i, reward in enumerate(rewards) if reward != 1.0]
        if failed:
            again = self._played([tasks[i] for i in failed], number, attempt=1)
            for i, record in zip(failed, again, strict=True):
                rewards[i] = max(rewards[i], score(tasks[i], record.answer))
        return rewards

    def _credits(
        self, tasks: Sequence[PlanTask], records: Sequence[QueryRecord], rewards: Sequence[float], number: int
    ) -> list[dict[UUID, float]]:
        """Return for each task what each case that it was shown did: the task is played again without it, otherwise the same."""
        found: list[dict[UUID, float]] = [{} for _ in tasks]
        for place in range(max((len(record.cases) for record in records), default=0)):
            which = [i for i, record in enumerate(records) if place < len(record.cases)]
            shown = {tasks[i].id: [case.id for case in records[i].cases] for i in which}
            left = {task: cases[:place] + cases[place + 1 :] for task, cases in shown.items()}
            again = self._played([tasks[i] for i in which], number, policy=Given(left))
            for i, record in zip(which, again, strict=True):
                found[i][shown[tasks[i].id][place]] = (1 + rewards[i] - score(tasks[i], record.answer)) / 2
        return found

    def _tried_sets(self, tasks: Sequence[PlanTask], number: int) -> list[QueryRecord]:
        """Return what came of tasks with the first set of cases that is drawn for each; the learner sees all sets."""
        played = []
        for drawing in range(self.arm.sets):
            noted = Noted(self.policy)
            played.append((self._played(tasks, number, policy=noted, drawing=drawing), noted.found))
        tried = []
        for place, task in enumerate(tasks):
            draws = [found[task.id] for _, found in played if task.id in found]
            if not draws:  # an empty bank is not asked
                continue
            query, candidates, _ = draws[0]
            tried.append(
                TriedSets(
                    query=query.vector,
                    candidates=candidates,
                    chosen=np.array([[choice.index for choice in chosen] for _, _, chosen in draws]),
                    log_probability=np.array([_log_probability(chosen) for _, _, chosen in draws]),
                    rewards=np.array([score(task, records[place].answer) for records, _ in played]),
                )
            )
        cast("SetLearner", self.learner).learn(tried)
        return played[0][0]

    def _keep(
        self,
        records: Sequence[QueryRecord],
        rewards: Sequence[float],
        number: int,
        start: int,
        credits: Sequence[Mapping[UUID, float]] | None = None,
    ) -> None:
        """Write the cases of a batch, in the order of its tasks, and let the learner see them."""
        told = list(rewards)
        if self.arm.shuffled:
            random.Random(f"planworld-shuffled:{self.settings.seed}:{number}:{start}").shuffle(told)
        learner = cast("CaseLearner | None", self.learner) if self._one_set else None
        for place, (record, true, reward) in enumerate(zip(records, rewards, told, strict=True)):
            credit = credits[place] if credits is not None else None
            case = record_feedback(self.cases, record, reward, scope=SCOPE, learner=learner, credit=credit)
            if case is not None:
                self._kept[case.id] = record.query, true


def play(
    settings: StreamSettings, planner_of: PlannerOf, report: Report | None = None, *, learned: Path | None = None
) -> StreamResult:
    """Play a stream from an empty bank and return what came of it.

    learned: folder for the Q-function or the kernel that was learned, if the arm has one.
    """
    with ExitStack() as opened:
        folder = opened.enter_context(TemporaryDirectory(prefix="memweave-planworld-"))
        bank = CaseSettings(allow_self=settings.mode == "repeated", positive_only=ARMS[settings.arm].successes)
        cases = opened.enter_context(open_cases(folder, settings=bank, embedding=EMBEDDING))
        stream = Stream(settings, planner_of, cases)
        played = [stream.iteration(number, report) for number in range(settings.iterations)]
        unseen = stream.unseen()
        if learned is not None:
            _save(stream.policy, learned)
        right = tuple(marks for marks, _ in played)
        return StreamResult(
            right=right,
            cumulative=_cumulative(right) if settings.mode == "repeated" else (),
            unseen=unseen,
            cases=cases.count(scope=SCOPE),
            shown=tuple(share for _, share in played),
            statuses=stream.statuses,
            losses=tuple(getattr(stream.learner, "losses", ())),
        )


def _log_probability(chosen: Sequence[Choice]) -> float:
    """Return the logarithm of drawing these choices in this order."""
    return sum(math.log(choice.probability) for choice in chosen if choice.probability is not None)


def _save(policy: RetrievalPolicy, folder: Path) -> None:
    head, kernel = getattr(policy, "head", None), getattr(policy, "kernel", None)
    if isinstance(head, QHead):
        head.save(folder / HEAD)
    if isinstance(kernel, Kernel) and kernel.weights is not None:
        kernel.save(folder / KERNEL)


def _cumulative(right: Sequence[str]) -> tuple[str, ...]:
    found, before = [], "0" * len(right[0])
    for marks in right:
        before = "".join(max(old, new) for old, new in zip(before, marks, strict=True))
        found.append(before)
    return tuple(found)

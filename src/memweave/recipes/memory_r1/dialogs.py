"""DialogWorld as training material: temporal banks, tasks, reward, and the evaluation on whole dialogues.

Sizes, and where they come from, are in docs/memory-r1.md. Reward and evaluation are one function, `score` of the world.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import NAMESPACE_OID, uuid5

from memweave.agents.llm import PolicyLike, as_answerer, as_manager
from memweave.agents.roles import AnswerRequest, ManageRequest
from memweave.errors import ContextLengthError, InputError, UnavailableError
from memweave.graphs.memory_r1_answering import said_at
from memweave.graphs.memory_r1_episode import EpisodeGraph, create_episode_graph
from memweave.memory_stores import MemoryBank, SearchConfig, open_bank
from memweave.metrics import normalise, token_f1
from memweave.recipes.memory_r1 import players
from memweave.records import Memory, OpKind, ProposedOp, Scope, Turn
from memweave.tracing import Score, Trace
from memweave.trainers.rollouts import Task
from memweave.worlds.dialog_language import in_third_person
from memweave.worlds.dialog_world import Dialogue, DialogWorld, Question, score

BUDGET: Final = 6
"""Memories that the answerer sees: half of them of each speaker."""
BUDGETS: Final = (6, 12, 60)
TOP_K: Final = 5
"""Memories that the manager sees per fact."""
WINDOW: Final = 50
"""Turns before the present one from which a temporal bank is built (specification, 2.8; its appendix: 24)."""
MOST: Final = 2_000
"""Largest budget: a search returns 1,000 memories of one speaker at most."""
BM25: Final = SearchConfig(
    dense_weight=1e-9, names_in_query=True, speaker_boost=1.0, context_in_bm25=False, date_in_bm25=False
)
"""BM25 alone. The weight of the vectors is too small to change its order; they only rank what shares no word with the
question, after everything else, so that a large budget shows every memory."""
GOLD: Final = "gold"


def episode_graph(
    world: DialogWorld,
    manager: PolicyLike[ManageRequest],
    answerer: PolicyLike[AnswerRequest],
    *,
    budget: int = BUDGET,
) -> EpisodeGraph:
    """Return the episode graph of the world. It runs on the bank in use (`use_bank`, or that of `Rollouts`).

    An episode with a prompt that does not fit the policy's context raises `InputError`.
    """
    return create_episode_graph(
        _no_bank, extractor=players.extractor(world), manager=players.Fitting(as_manager(manager)),
        answerer=players.Fitting(as_answerer(answerer)), top_k=TOP_K, history_window=0,
        per_participant=per_participant(budget), max_attempts=1,
    )  # fmt: skip


def per_participant(budget: int) -> int:
    """Return the memories per speaker of a budget. Raises `InputError` for less than one, or more than a search returns."""
    if not 2 <= budget <= MOST:
        raise InputError(f"budget {budget}: the answerer sees memories of two speakers, so give 2 to {MOST:,}")
    return budget // 2


def _no_bank() -> MemoryBank:
    raise InputError("the episode graph has no bank of its own; run it inside use_bank(...), or give Rollouts a bank")


@contextmanager
def scratch_bank(search: SearchConfig | None = None) -> Iterator[MemoryBank]:
    """Open an empty bank that is gone afterwards. Hashed words find what DialogWorld asks for, and cost no encoder."""
    with (
        TemporaryDirectory(prefix="memweave-dialogs-") as folder,
        open_bank(folder, embedding="hashing", search=search) as bank,
    ):
        yield bank


# tasks


@dataclass(frozen=True)
class Prepared:
    """Tasks and the memories that their episodes start with, by user."""

    tasks: tuple[Task, ...]
    memories: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    """User -> (speaker, text), the oldest first."""

    def fill(self, bank: MemoryBank) -> None:
        """Write the memories into `bank`."""
        for user, memories in self.memories.items():
            _add(bank, user, memories, "built beforehand")


def _add(bank: MemoryBank, user: str, memories: Sequence[tuple[str | None, str]], reason: str) -> None:
    """Add (speaker, text), the oldest first, under ids that follow from them.

    A search shows memories of equal score in the order of their ids. Ids by age would always show what is outdated first,
    random ids would give every run other scores; these are like random ones, and the same in every run and every arm.
    """
    seen: Counter[tuple[str | None, str]] = Counter()
    ops = []
    for line in memories:
        speaker, text = line
        seen[line] += 1
        fixed = uuid5(NAMESPACE_OID, json.dumps([user, speaker, text, seen[line]]))
        ops.append(
            ProposedOp(
                kind=OpKind.ADD, memory_id=fixed, text=text, speaker=speaker, actor="memory-r1-recipe", reason=reason
            )
        )
    if ops:
        bank.apply(ops, scope=Scope(user=user))


def manager_turns(world: DialogWorld, dialogues: Iterable[Dialogue], window: int = WINDOW) -> Prepared:
    """Return one single-turn task per turn that a question is linked to (specification, 2.8, algorithm 1; B2, B7).

    The bank of a task is what a perfect manager makes of the `window` turns before (the paper asks GPT-4o-mini). Turns from
    which the extractor finds nothing are left out: there is nothing to decide.
    """
    tasks, memories = [], {}
    for dialogue in dialogues:
        for position, turn in enumerate(dialogue.turns):
            linked = dialogue.linked(position)
            if not linked or not world.extract(turn):
                continue
            user = f"{dialogue.id}@{position}"
            tasks.append(_task(user, [turn], linked))
            memories[user] = temporal_bank(world, dialogue.turns[max(0, position - window) : position])
    return Prepared(tuple(tasks), memories)


def temporal_bank(world: DialogWorld, turns: Sequence[Turn]) -> list[tuple[str, str]]:
    """Return (speaker, text) of the memories that a perfect manager makes of `turns`, the oldest first per speaker."""
    banks: dict[str, list[str]] = {}
    for turn in turns:
        if facts := world.extract(turn):
            banks[turn.speaker] = players.replay(banks.get(turn.speaker, []), facts)
    return [(speaker, text) for speaker, texts in banks.items() for text in texts]


def raw_turns(dialogues: Iterable[Dialogue]) -> Prepared:
    """Return every turn of the dialogues as a memory of its speaker, small talk too, in the third person.

    It is the memory of the baselines without a manager, BM25 over raw turns and full context (specification, section 7).
    """
    return Prepared(
        (), {each.id: [(t.speaker, in_third_person(t.text, t.speaker)) for t in each.turns] for each in dialogues}
    )


def whole_dialogues(dialogues: Iterable[Dialogue]) -> Prepared:
    """Return one task per dialogue: all turns on an empty bank, then all questions (specification, algorithm 5)."""
    return Prepared(tuple(_task(dialogue.id, dialogue.turns, dialogue.questions) for dialogue in dialogues))


def questions(dialogues: Iterable[Dialogue]) -> Prepared:
    """Return one task per question, on the banks that a manager left (specification, algorithm 2)."""
    tasks = [
        Task(
            id=question.id,
            input={"turns": [], "questions": [question.text]},
            context={"user": dialogue.id},
            metadata={GOLD: [question.gold]},
        )
        for dialogue in dialogues
        for question in dialogue.questions
    ]
    return Prepared(tuple(tasks))


def _task(user: str, turns: Sequence[Turn], asked: Sequence[Question]) -> Task:
    return Task(
        id=user,
        input={"turns": list(turns), "questions": [question.text for question in asked]},
        context={"user": user},
        metadata={GOLD: [question.gold for question in asked]},
    )


def reward(task: Task, output: Any, trace: Trace) -> Score:
    """Return the mean exact match of the answers (specification, equations 4 and 7; several questions: B7)."""
    return Score(value=_mean_score(score, task, output))


def lenient_reward(task: Task, output: Any, trace: Trace) -> Score:
    """Return the mean of `lenient_score`, in place of a judge that is generous; exact match is a part of it."""
    return Score(value=_mean_score(lenient_score, task, output), parts={"exact": _mean_score(score, task, output)})


def lenient_score(gold: str, answer: str | None) -> float:
    """Return 1.0 when the answer contains all words of the gold answer after normalisation, whatever else it says."""
    return float(set(normalise(gold).split()) <= set(normalise(answer or "").split()))


def _mean_score(scored: Callable[[str, str | None], float], task: Task, output: Any) -> float:
    gold = task.metadata[GOLD]
    assert isinstance(gold, list)
    return fmean(scored(str(one), answer) for one, answer in zip(gold, output["answers"], strict=True))


# evaluation


@dataclass(frozen=True)
class Outcome:
    """Answers to the questions of dialogues, right or wrong."""

    right: Mapping[str, str]
    """Dialogue -> one `1` or `0` per question."""
    bank_size: float
    """Memories per dialogue, mean."""
    failed_turns: int
    """Turns whose reply could not be used; they changed nothing."""
    unanswered: int = 0
    """Questions whose reply could not be used; they count as wrong."""
    f1: float = 0.0
    """Mean token F1 over all questions, in [0, 1]."""
    lenient: float = 0.0
    """Share of answers that contain all words of the gold answer, in [0, 1]: what a lenient judge would count."""
    words: float = 0.0
    """Words per answer, mean; a reply that cannot be used has none."""

    @property
    def by_dialogue(self) -> list[float]:
        """Return the share of right answers of each dialogue."""
        return [fmean(map(float, marks)) for marks in self.right.values()]

    @property
    def score(self) -> float:
        """Return the mean of `by_dialogue`: what a bootstrap over dialogues resamples."""
        return fmean(self.by_dialogue)


def construct(
    bank: MemoryBank,
    world: DialogWorld,
    dialogues: Sequence[Dialogue],
    manager: PolicyLike[ManageRequest],
    *,
    concurrency: int = 64,
    tick: Callable[[], object] | None = None,
) -> int:
    """Let `manager` remember the dialogues, each as a user of its own; return the turns that failed.

    concurrency: dialogues at a time.  tick: called after each one.  Raises `ContextLengthError` for a prompt that the manager
    cannot read, `UnavailableError` when it does not answer (half a dialogue must not be taken for a whole one), `InputError`
    when the bank knows one of the dialogues already.
    """
    for dialogue in dialogues:
        if bank.count(scope=Scope(user=dialogue.id)):
            raise InputError(
                f"the bank holds memories of {dialogue.id} already; let the manager begin with an empty one"
            )
    graph = episode_graph(world, manager, players.ANSWERERS["oracle"])
    inputs = [{"turns": dialogue.turns, "questions": []} for dialogue in dialogues]
    failed = 0
    for dialogue, (output, memories) in zip(
        dialogues, _run(graph, bank, inputs, dialogues, concurrency, tick), strict=True
    ):
        failed += len(output["failed"])
        in_order = [(memory.speaker, memory.text) for memory in sorted(memories, key=said_at)]
        _add(bank, dialogue.id, in_order, "built on a branch")
    return failed


def ask(
    bank: MemoryBank,
    world: DialogWorld,
    dialogues: Sequence[Dialogue],
    answerer: PolicyLike[AnswerRequest],
    *,
    budget: int = BUDGET,
    failed_turns: int = 0,
    concurrency: int = 64,
    tick: Callable[[], object] | None = None,
) -> Outcome:
    """Ask all questions of the dialogues, whose memories are in `bank`.

    Raises as `construct` does.
    """
    graph = episode_graph(world, players.MANAGERS["always-noop"], answerer, budget=budget)
    inputs = [{"turns": [], "questions": [question.text for question in each.questions]} for each in dialogues]
    outputs = [output for output, _ in _run(graph, bank, inputs, dialogues, concurrency, tick)]
    right = {
        each.id: "".join(
            str(int(score(question.gold, answer)))
            for question, answer in zip(each.questions, output["answers"], strict=True)
        )
        for each, output in zip(dialogues, outputs, strict=True)
    }
    sizes = [len(bank.memories(scope=Scope(user=each.id))) for each in dialogues]
    answers = [
        (question.gold, answer)
        for each, output in zip(dialogues, outputs, strict=True)
        for question, answer in zip(each.questions, output["answers"], strict=True)
    ]
    return Outcome(
        right,
        bank_size=fmean(sizes),
        failed_turns=failed_turns,
        unanswered=sum(answer is None for _, answer in answers),
        f1=fmean(token_f1(answer, gold) for gold, answer in answers),
        lenient=fmean(lenient_score(gold, answer) for gold, answer in answers),
        words=fmean(len((answer or "").split()) for _, answer in answers),
    )


def _run(
    graph: EpisodeGraph,
    bank: MemoryBank,
    inputs: Sequence[Any],
    dialogues: Sequence[Dialogue],
    concurrency: int,
    tick: Callable[[], object] | None,
) -> list[tuple[Any, list[Memory]]]:
    """Return the output of each dialogue's episode, and the memories that it ended with.

    Each runs on a branch of the bank, as the episodes of training do. The index of a branch is exact and orders memories of
    equal score by id; that of the bank orders them at random.
    """
    from memweave.memory_stores import use_bank
    from memweave.trainers.loop_thread import LoopThread

    async def one(limit: asyncio.Semaphore, given: Any, user: str) -> tuple[Any, list[Memory]]:
        scope = Scope(user=user)
        async with limit:
            with use_bank(await bank.abranch(scope=scope)) as branch:
                try:
                    output = await graph.ainvoke(given, {"recursion_limit": 100_000}, context={"user": user})  # type: ignore[call-overload]  # a mapping does for a context
                except UnavailableError as error:
                    raise UnavailableError(f"{user}: {error}") from error
                except InputError as error:
                    if isinstance(error.__cause__, ContextLengthError):  # see `players.Fitting`
                        raise ContextLengthError(f"{user}: {error}") from error
                    raise
                memories = branch.memories(scope=scope)
        if tick is not None:
            tick()
        return output, memories

    async def everything() -> list[tuple[Any, list[Memory]]]:
        limit = asyncio.Semaphore(concurrency)
        return await asyncio.gather(
            *(one(limit, given, each.id) for given, each in zip(inputs, dialogues, strict=True))
        )

    loop = LoopThread("memweave-dialogs", workers=8)
    try:
        return loop.run(everything())
    finally:
        loop.close()

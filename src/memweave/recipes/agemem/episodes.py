"""MemHop as training material: tasks, the episode graph with the recipes' settings, the judge, and the outcome of an evaluation.

Reward and evaluation are one function: `judged` calls the world's `score` for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, Final

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage

from memweave.agents.context import ContextCounter, ExtractiveSummarizer
from memweave.agents.memory_tools import LONG_TERM, SHORT_TERM
from memweave.errors import OperationError
from memweave.graphs.agemem_episode import (
    EpisodeGraph,
    EpisodeJudge,
    EpisodeOutput,
    EpisodeTask,
    create_agemem_episode_graph,
)
from memweave.graphs.agemem_reward import Judged, RewardSettings, added, retrieved, reward, tool_counts
from memweave.graphs.agemem_state import Variant
from memweave.memory_stores import MemoryBank, SearchConfig, open_bank
from memweave.recipes.agemem.simulating import (
    FLOOR,
    RECALLED,
    ROUNDS,
    SUMMARY_SENTENCES,
    SUMMARY_TOKENS,
    THRESHOLD,
    TOP_K,
)
from memweave.recipes.lesson_rows import context_tokens
from memweave.serving.policy_folder import load_policy_folder
from memweave.serving.tool_text import template_messages
from memweave.tracing import Score, Trace
from memweave.trainers.rollouts import Rollouts, Task
from memweave.worlds.memhop import MemHopTask, memory_quality, read_facts, score

LIMIT: Final = 256
"""Tokens of the context (T_max): a third of the episodes overflow if nobody manages it (docs/agemem.md)."""
COSINE: Final = SearchConfig(dense_weight=1.0, bm25_weight=0.0, speaker_boost=1.0, names_in_query=True)
"""Ranking by cosine alone, as the paper's Eq. 8."""
TOOLS: Final = (*LONG_TERM, *SHORT_TERM)


@contextmanager
def scratch_bank() -> Iterator[MemoryBank]:
    """Open an empty bank that ranks by cosine and is gone afterwards."""
    with (
        TemporaryDirectory(prefix="memweave-memhop-") as folder,
        open_bank(folder, embedding="hashing", search=COSINE) as bank,
    ):
        yield bank


def token_counter(base: Path) -> ContextCounter:
    """Return what counts the tokens of a context for the policies of one base, exactly."""
    folder = load_policy_folder(base)

    def count(messages: Sequence[BaseMessage]) -> int:
        return context_tokens(folder, [(m["role"], m["content"]) for m in template_messages(messages)])

    return count


def episode_task(task: MemHopTask) -> EpisodeTask:
    """Return what is fed of an episode of the world; the truth stays with the judge."""
    return EpisodeTask(
        id=task.id,
        messages=task.messages,
        distractors=task.distractors,
        question=task.question,
        key_phrases=task.key_phrases,
    )


def rollout_tasks(tasks: Sequence[MemHopTask]) -> list[Task]:
    """Return the tasks as rollouts take them, each with a memory of its own."""
    return [Task(id=t.id, input={"task": episode_task(t)}, context={"user": t.id}) for t in tasks]


def memhop_judge(tasks: Sequence[MemHopTask], settings: RewardSettings) -> EpisodeJudge:
    """Return the judge of these episodes: the reward with its parts, and beside it what the evaluation measures."""
    known = {task.id: task for task in tasks}

    def judge(given: EpisodeTask, outcome: EpisodeOutput) -> Score:
        task = known[given.id]
        log = outcome["log"]
        found = reward(log, judged(task, outcome), settings)
        calls = tool_counts(log.steps)
        per_tool = {
            f"calls:{name}": float(sum(n for k, n in calls.items() if k.startswith(f"{name}/"))) for name in TOOLS
        }
        measured = {
            "em": score(task, outcome["answer"]),
            "mq": memory_quality(task, outcome["stored"]),
            "tokens": float(log.used),
            "answered": float(log.answered),
            "overflowed": float(log.overflowed),
            "turns": float(len(log.steps)),
            "unreadable": fmean([float(any(p != "two_blocks" for p in step.problems)) for step in log.steps]),
            "calls:failed": float(sum(n for k, n in calls.items() if k.startswith("failed/"))),
        }
        return found.model_copy(update={"parts": {**found.parts, **measured, **per_tool}})

    return judge


def judged(task: MemHopTask, outcome: EpisodeOutput) -> Judged:
    """Return what the world's truth says of an episode (specification, section 7, judges offline)."""
    steps = outcome["log"].steps
    gold, seen, good = set(task.gold), set[object](), 0
    for text in added(steps):
        facts = [fact for fact in read_facts(text) if fact in gold and fact not in seen]
        seen.update(facts)
        good += bool(facts)
    found = retrieved(steps)
    fitting = sum(any(fact in gold for fact in read_facts(text)) for text in found)
    answer = outcome["answer"]
    return Judged(
        answer=None if answer is None else score(task, answer),
        good_adds=good,
        relevance=fitting / len(found) if found else 0.0,
        preserved=outcome["preserved"],
    )


def episode_graph(
    model: BaseChatModel,
    base: Path,
    judge: EpisodeJudge,
    *,
    variant: Variant = "full",
    threshold: float = THRESHOLD,
    timeout: float = 600.0,
    count: ContextCounter | None = None,
) -> EpisodeGraph:
    """Return the episode graph with the settings of the recipes. It runs on the bank in use (that of `Rollouts`).

    base: policy whose tokenizer counts the context, unless `count` does.
    """
    return create_agemem_episode_graph(
        model,
        _no_bank,
        judge=judge,
        variant=variant,
        context_tokens=LIMIT,
        rounds=ROUNDS,
        recalled=RECALLED,
        recall_floor=FLOOR,
        protocol="text",
        profile="none",
        summarizer=ExtractiveSummarizer(SUMMARY_SENTENCES, SUMMARY_TOKENS),
        count_tokens=count or token_counter(base),
        filter_threshold=threshold,
        top_k=TOP_K,
        timeout=timeout,
    )


def _no_bank() -> MemoryBank:
    raise OperationError("an episode runs on the bank of its rollouts; none is in use")


def graph_reward(task: Task, output: Any, trace: Trace) -> Score | None:
    """Return what the graph's judge said."""
    found = output.get("reward")
    return found if isinstance(found, Score) else None


@dataclass(frozen=True)
class Outcome:
    """How a policy did on a set of episodes."""

    right: str
    """One `1` or `0` per episode, in the order of the tasks."""
    mq: list[float]
    """Memory quality of each episode, in [0, 1]."""
    tokens: list[float]
    """Tokens of the context at the end of each episode."""
    means: Mapping[str, float] = field(default_factory=dict)
    """Mean of every part of the score."""

    @property
    def score(self) -> float:
        """Return the share of exact matches."""
        return fmean(map(float, self.right)) if self.right else 0.0


def evaluate(
    model: BaseChatModel,
    base: Path,
    tasks: Sequence[MemHopTask],
    settings: RewardSettings,
    *,
    variant: Variant = "full",
    threshold: float = THRESHOLD,
    count: ContextCounter | None = None,
    concurrency: int = 32,
    progress: Callable[[int, int, int], object] | None = None,
) -> Outcome:
    """Play every task once and return what came of it.

    Raises `OperationError` or `UnavailableError` when an episode did not run to its end: what is left out would change the score.
    """
    graph = episode_graph(model, base, memhop_judge(tasks, settings), variant=variant, threshold=threshold, count=count)
    with (
        scratch_bank() as bank,
        Rollouts(
            graph,
            graph_reward,
            concurrency=concurrency,
            timeout=900.0,
            bank=bank,
            recursion_limit=10_000,
            progress=progress,
        ) as rollouts,
    ):
        groups = rollouts.run(rollout_tasks(tasks), group_size=1, run="evaluation", training=False)
    scores: list[Score] = []
    for group in groups:
        trace = group.traces[0]
        if trace.score is None:
            raise OperationError(f"the episode {group.id} has no score ({trace.status}): {trace.error}. Run it again")
        scores.append(trace.score)
    parts = [each.parts for each in scores]
    names = sorted({name for each in parts for name in each})
    return Outcome(
        right="".join(str(int(each["em"])) for each in parts),
        mq=[round(each["mq"], 4) for each in parts],
        tokens=[each["tokens"] for each in parts],
        means={
            "reward": fmean(s.value for s in scores),
            **{name: fmean(each[name] for each in parts) for name in names},
        },
    )

"""The reward of an AgeMem episode: pure functions over the log of the whole trajectory (specification, 2.4, Eq. 16-26).

    R = w_task R_task + w_ctx R_context + w_mem R_memory + P_penalty

Two presets. `PAPER` is the paper's (weights 1/3). `CODE` follows the released code where the two disagree (section 6, A2, A3): other
weights, a term for the use of tools, no answer costs 1 unweighted, the last round costs 1 even with an answer, everything cut to
[-1, 1]. What a judge says is passed in; nothing here calls one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field

from memweave.agents.memory_tools import ADD, DELETE, FILTER, RETRIEVE, SUMMARY, UPDATE
from memweave.graphs.agemem_state import StepLog
from memweave.records import Record
from memweave.tracing.records import Score

Unit = Annotated[float, Field(ge=0, le=1)]
NO_ANSWER: Final = -1.0
ROUNDS: Final = -1.0
OVERFLOW: Final = -0.5


class Judged(Record):
    """What a judge says of an episode. Each value is in [0, 1]."""

    answer: Unit | None
    """How right the answer is (S_judge); `None` without an answer."""
    good_adds: int = Field(ge=0)
    """Memories of high quality among those that stage 1 added."""
    relevance: Unit = 0.0
    """How well what stage 3 retrieved fits the question; 0 when it retrieved nothing (A14)."""
    preserved: bool = False
    """Whether everything that the question names is in the context when the answer is given."""


class EpisodeLog(Record):
    """What the reward is computed from."""

    steps: tuple[StepLog, ...]
    answered: bool
    used: int = Field(ge=0)
    """Tokens of the context when the answer was given, or when the episode ended."""
    limit: int = Field(gt=0)
    """Tokens that the context may have (T_max)."""
    overflowed: bool
    """Whether the context ever had more (A4)."""
    exhausted: bool
    """Whether stage 3 used up its rounds without an answer (A3)."""
    rounds: int = Field(default=5, gt=0)
    """Turns that stage 3 may take (N_max)."""


@dataclass(frozen=True)
class RewardSettings:
    """Weights, and which terms count."""

    name: Literal["paper", "code", "answer-only"] = "paper"
    task: float = 1 / 3
    context: float = 1 / 3
    memory: float = 1 / 3
    tools: float = 0.0
    """Weight of the use of tools; only the released code has it."""
    penalties: bool = True
    no_answer_weighted: bool = True
    """Whether -1 for no answer is multiplied by the weight of the task (Eq. 17), or counts in full (the released code)."""
    maintenance: bool = True
    """Whether R_maintenance counts; without it R_memory is the mean of the other two (A15: it pays for calls directly)."""
    double_penalty: bool = False
    """Whether P_rounds falls due for every stage 3 that took all its rounds, as in the released code (A3): also for one that
    answered in the last of them. Otherwise only where no answer came."""
    by_stage: bool = False
    """Whether the score also has the share of each stage, as parts `stage-1` to `stage-3`; the value stays the same."""
    clip: bool = False


PAPER: Final = RewardSettings()
CODE: Final = RewardSettings(
    name="code",
    task=0.5,
    context=0.15,
    memory=0.15,
    tools=0.2,
    no_answer_weighted=False,
    double_penalty=True,
    clip=True,
)
"""The released code's. Rewards of runs of the arm `code` from before `double_penalty` was there are not comparable with it."""
ANSWER_ONLY: Final = RewardSettings(name="answer-only", task=1.0, context=0.0, memory=0.0, penalties=False)
"""R_task alone, the paper's ablation: it pays for no tool. No answer is worth -1."""
PRESETS: Final = {preset.name: preset for preset in (PAPER, CODE, ANSWER_ONLY)}


def task_reward(log: EpisodeLog, judged: Judged) -> float:
    """Return R_task (Eq. 17): what the judge says, or -1 without an answer."""
    return judged.answer if log.answered and judged.answer is not None else NO_ANSWER


def compression(log: EpisodeLog) -> float:
    """Return max(0, 1 - T_used / T_max) (Eq. 19)."""
    return max(0.0, 1 - log.used / log.limit)


def preventive(log: EpisodeLog) -> float:
    """Return 1 if SUMMARY or FILTER did something before any overflow (Eq. 20)."""
    for step in log.steps:
        if step.late:
            return 0.0
        if any(call.ok and call.name in (SUMMARY, FILTER) for call in step.calls):
            return 1.0
        if step.overflow:
            return 0.0
    return 0.0


def context_reward(log: EpisodeLog, judged: Judged) -> float:
    """Return R_context (Eq. 18): the mean of compression, prevention and preservation (Eq. 21)."""
    return (compression(log) + preventive(log) + float(judged.preserved)) / 3


def storage(log: EpisodeLog, judged: Judged) -> float:
    """Return the share of good memories among those that stage 1 added (Eq. 23)."""
    return min(1.0, judged.good_adds / max(1, len(added(log.steps))))


def maintenance(log: EpisodeLog) -> float:
    """Return 1 if at least one UPDATE or DELETE succeeded (Eq. 24, A15)."""
    return float(any(call.ok and call.name in (UPDATE, DELETE) for step in log.steps for call in step.calls))


def memory_reward(log: EpisodeLog, judged: Judged, settings: RewardSettings = PAPER) -> float:
    """Return R_memory (Eq. 22): the mean of storage, maintenance and relevance (Eq. 25)."""
    parts = [storage(log, judged), judged.relevance]
    if settings.maintenance:
        parts.append(maintenance(log))
    return sum(parts) / len(parts)


def rounds_penalty(log: EpisodeLog, settings: RewardSettings = PAPER) -> float:
    """Return -1 if stage 3 used up its rounds without an answer; with `double_penalty`, if it took them all (A3)."""
    spent = sum(step.stage == 3 for step in log.steps) >= log.rounds
    return ROUNDS * (log.exhausted or (settings.double_penalty and spent))


def penalty(log: EpisodeLog, settings: RewardSettings = PAPER) -> float:
    """Return P_penalty (Eq. 26): -1 for using up the rounds, -0.5 for an overflow."""
    return rounds_penalty(log, settings) + OVERFLOW * log.overflowed


def tool_use(log: EpisodeLog) -> float:
    """Return the released code's term for the use of tools, in [0, 1]: calls per turn, key tools, and an early end, a third each."""
    calls = [call for step in log.steps for call in step.calls if call.ok]
    per_turn = min(1.0, len(calls) / max(1, len(log.steps)))
    key = sum(any(call.name == name for call in calls) for name in (ADD, RETRIEVE)) / 2
    return (per_turn + key + float(log.answered and not log.exhausted)) / 3


def reward(log: EpisodeLog, judged: Judged, settings: RewardSettings = PAPER) -> Score:
    """Return R (Eq. 16) with its parts, within the range that the settings allow.

    With `PAPER` it lies in [-1/3 - 1.5, 1].
    """
    task = task_reward(log, judged)
    parts = {
        "task": task,
        "context": context_reward(log, judged),
        "memory": memory_reward(log, judged, settings),
        "compression": compression(log),
        "preventive": preventive(log),
        "preservation": float(judged.preserved),
        "storage": storage(log, judged),
        "maintenance": maintenance(log),
        "relevance": judged.relevance,
        "penalty": penalty(log, settings),
        "tools": tool_use(log),
    }
    value = task_weight(task, settings) * task + settings.context * parts["context"] + settings.memory * parts["memory"]
    value += settings.tools * parts["tools"] + (parts["penalty"] if settings.penalties else 0.0)
    low, high = bounds(settings)
    if settings.by_stage:
        shares = stage_rewards(log, judged, settings)
        parts |= {f"stage-{stage}": share for stage, share in enumerate(shares, 1)}
    return Score(value=min(high, max(low, value)), low=low, high=high, parts=parts)


def task_weight(task: float, settings: RewardSettings) -> float:
    """Return what R_task is multiplied by."""
    return 1.0 if task < 0 and not settings.no_answer_weighted else settings.task


def stage_rewards(log: EpisodeLog, judged: Judged, settings: RewardSettings = PAPER) -> tuple[float, float, float]:
    """Return what each stage earned; the three add up to R before it is cut (ours: the paper rewards the end of stage 3 alone).

    Stage 1 earns storage and maintenance, stage 2 compression and prevention, stage 3 the task, preservation, relevance, the use of
    tools, and the penalty for its rounds. The penalty for an overflow goes to the stage of the turn before it.
    """
    shares = [0.0, 0.0, 0.0]
    task = task_reward(log, judged)
    memory = settings.memory / (3 if settings.maintenance else 2)
    context = settings.context / 3
    shares[0] += memory * (storage(log, judged) + (maintenance(log) if settings.maintenance else 0.0))
    shares[1] += context * (compression(log) + preventive(log))
    shares[2] += task_weight(task, settings) * task + context * judged.preserved + memory * judged.relevance
    shares[2] += settings.tools * tool_use(log)
    if settings.penalties:
        shares[2] += rounds_penalty(log, settings)
        shares[overflow_stage(log) - 1] += OVERFLOW * log.overflowed
    return shares[0], shares[1], shares[2]


def overflow_stage(log: EpisodeLog) -> int:
    """Return the stage of the last turn before the context first had too many tokens, or of the one that made it so."""
    stage = 1
    for step in log.steps:
        if step.late:
            break
        stage = step.stage
        if step.overflow:
            break
    return stage


def bounds(settings: RewardSettings) -> tuple[float, float]:
    """Return the smallest and the largest value that the reward can take."""
    if settings.clip:
        return -1.0, 1.0
    high = settings.task + settings.context + settings.memory + settings.tools
    no_answer = settings.task if settings.no_answer_weighted else 1.0
    return -no_answer + ((ROUNDS + OVERFLOW) if settings.penalties else 0.0), max(high, 1.0)


def added(steps: Sequence[StepLog]) -> list[str]:
    """Return the texts that stage 1 added, successes only."""
    return [
        str(call.arguments.get("content", ""))
        for step in steps
        if step.stage == 1
        for call in step.calls
        if call.name == ADD and call.ok
    ]


def retrieved(steps: Sequence[StepLog]) -> list[str]:
    """Return the texts of the memories that stage 3 retrieved, each once, in their order (A14)."""
    found = [text for step in steps if step.stage == 3 for call in step.calls if call.ok for text in call.retrieved]
    return list(dict.fromkeys(found))


def tool_counts(steps: Sequence[StepLog]) -> dict[str, int]:
    """Return how often each tool succeeded in each stage, as `Add_memory/1` -> 3, and `failed/3` for calls that did nothing."""
    counts: dict[str, int] = {}
    for step in steps:
        for call in step.calls:
            key = f"{call.name if call.ok else 'failed'}/{step.stage}"
            counts[key] = counts.get(key, 0) + 1
    return counts

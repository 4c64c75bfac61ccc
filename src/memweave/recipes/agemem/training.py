"""The recipes `agemem`, `agemem-answer-only` and `agemem-rag`: one agent trained over all three stages on MemHop (docs/agemem.md).

Credit is the paper's step-wise GRPO: the advantage of an episode's reward, copied to every turn of all three stages; the loss is Eq. 6.
Other arms of `agemem` change the credit alone: only stage 3 is trained, each stage has a reward of its own (specification, section 7,
C6), mean and deviation are over all steps (A7), or only turns that the released code trains are (A8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from pydantic import JsonValue

from memweave.graphs.agemem_reward import ANSWER_ONLY, CODE, PAPER, RewardSettings
from memweave.graphs.agemem_state import Variant
from memweave.recipes.agemem import episodes
from memweave.recipes.recipe import REPLY_SECONDS, Arm, Recipe, Stage, Staging, TrainSettings
from memweave.trainers.credit import Credit, broadcast, shuffled
from memweave.trainers.stages import per_stage, stages_only, tool_steps_only
from memweave.worlds.memhop import MemHop, MemHopSettings, MemHopTask, without

MAX_TOKENS: Final = 64
"""Twice what a usual turn takes."""
TRAIN_TASKS: Final = 1_000
WORLD: Final = MemHopSettings()


@dataclass(frozen=True)
class Material:
    """What an arm is trained and tested on."""

    reward: RewardSettings = PAPER
    variant: Variant = "full"
    world: MemHopSettings = field(default_factory=MemHopSettings)


MATERIAL: Final[Mapping[tuple[str, str], Material]] = {
    ("agemem", "grpo"): Material(),
    ("agemem", "shuffled"): Material(),
    ("agemem", "code"): Material(reward=CODE),
    ("agemem", "no-maintenance"): Material(reward=replace(PAPER, maintenance=False)),
    ("agemem", "no-memory"): Material(variant="none"),
    ("agemem", "terminal-only"): Material(),
    ("agemem", "per-stage"): Material(reward=replace(PAPER, by_stage=True)),
    ("agemem", "step-pooled"): Material(),
    ("agemem", "tool-steps"): Material(),
    ("agemem-answer-only", "grpo"): Material(reward=ANSWER_ONLY),
    ("agemem-answer-only", "no-stale"): Material(reward=ANSWER_ONLY, world=without(WORLD, stale=True)),
    ("agemem-answer-only", "no-distractors"): Material(reward=ANSWER_ONLY, world=without(WORLD, distractors=True)),
    ("agemem-answer-only", "no-both"): Material(reward=ANSWER_ONLY, world=without(WORLD, stale=True, distractors=True)),
    ("agemem-rag", "grpo"): Material(variant="rag"),
}


def stage(recipe: str, given: Staging) -> Stage:
    """Return what an arm of a recipe is trained on."""
    material = MATERIAL[recipe, given.arm]
    world = MemHop(material.world)
    train = world.tasks("train", TRAIN_TASKS, given.settings.seed)
    held_out = world.tasks("val")[: given.settings.eval_tasks]
    bank = given.open.enter_context(episodes.scratch_bank())
    judge = episodes.memhop_judge([*train, *held_out], material.reward)
    return Stage(
        graph=episodes.episode_graph(
            given.model_of("agent"), given.place.base, judge, variant=material.variant, timeout=REPLY_SECONDS
        ),
        train=episodes.rollout_tasks(train),
        held_out=episodes.rollout_tasks(held_out),
        reward=episodes.graph_reward,
        bank=bank,
        actors=("agent",),
        test=lambda: tested(given, material),
    )


def tested(given: Staging, material: Material) -> Mapping[str, JsonValue]:
    """Return how the trained policy does on the test episodes of the arm's world, greedy and at T = 1, and with unseen people (`ood`)."""
    tasks = _tasks(given, material.world)
    if not tasks:
        return {}
    unseen = MemHop(material.world).tasks("ood")[: given.settings.test_size]
    found: dict[str, JsonValue] = {}
    for name, temperature, played in (("greedy", 0.0, tasks), ("sampled", 1.0, tasks), ("ood", 0.0, unseen)):
        given.place.say(f"testing {name} on {len(played)} episodes")
        model = given.model_at("agent", temperature)
        outcome = episodes.evaluate(model, given.place.base, played, material.reward, variant=material.variant)
        found[name] = payload(outcome)
    return found


def _tasks(given: Staging, world: MemHopSettings) -> Sequence[MemHopTask]:
    return [] if given.settings.test_size == 0 else MemHop(world).tasks("test", given.settings.test_size)


def payload(outcome: episodes.Outcome) -> JsonValue:
    """Return an outcome as JSON, with its score."""
    made: dict[str, Any] = {"score": outcome.score, **asdict(outcome)}
    return made


def _eq6() -> Mapping[str, Any]:
    from memweave.trainers.grpo_config import agemem

    return {k: v for k, v in agemem().items() if k not in ("num_generations", "beta")}


def _arm(credit: Callable[[int], Credit]) -> Arm:
    return Arm(credit, preset=_eq6)


GRPO: Final = _arm(lambda seed: broadcast())
CREDITS: Final[Mapping[str, Arm]] = {
    "shuffled": _arm(lambda seed: shuffled(broadcast(), seed)),
    "terminal-only": _arm(lambda seed: stages_only(broadcast(), (3,))),
    "per-stage": _arm(lambda seed: per_stage()),
    "step-pooled": _arm(lambda seed: broadcast(step_pooled=True)),
    "tool-steps": _arm(lambda seed: tool_steps_only(broadcast())),
}
"""Arms with a credit of their own; the others have that of `GRPO`."""
SETTINGS: Final = TrainSettings(
    steps=60,
    tasks_per_step=4,
    group_size=8,
    learning_rate=1e-3,
    lora_rank=16,
    loss_type="grpo",
    beta=0.001,
    concurrency=32,
    eval_tasks=8,
)


def _recipe(name: str, summary: str) -> Recipe:
    arms = {arm: CREDITS.get(arm, GRPO) for recipe, arm in MATERIAL if recipe == name}
    return Recipe(
        name=name,
        summary=summary,
        stage=lambda given: stage(name, given),
        arms=arms,
        settings=SETTINGS,
        max_tokens={"agent": MAX_TOKENS},
        base="memhop",
        trains=None,
    )


AGEMEM: Final = _recipe("agemem", "AgeMem on MemHop, all rewards: one agent with six memory tools (minutes on a CPU)")
AGEMEM_ANSWER_ONLY: Final = _recipe(
    "agemem-answer-only", "AgeMem on MemHop, rewarded for the answer alone; with controls (minutes on a CPU)"
)
AGEMEM_RAG: Final = _recipe(
    "agemem-rag", "AgeMem on MemHop without the short-term tools: what fits is retrieved for it"
)

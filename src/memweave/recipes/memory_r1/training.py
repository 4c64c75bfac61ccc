"""The recipes `memory-r1-manager` and `memory-r1-answerer`: each role trained with the other one frozen (docs/memory-r1.md).

Order of the specification (section 5, B8): the manager first, with the base answerer; then the answerer, on the bank that the
trained manager leaves (`--partner`); if wanted the manager again, with the trained answerer as partner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

from langchain_core.messages import BaseMessage
from pydantic import JsonValue

from memweave.agents.answerer import render_answer
from memweave.agents.llm import ANSWERER, MANAGER, LLMPolicy, PolicyLike
from memweave.agents.manager import render_manage
from memweave.agents.roles import AnswerRequest, ManageRequest
from memweave.memory_stores import MemoryBank
from memweave.recipes.memory_r1 import dialogs, players
from memweave.recipes.memory_r1.players import Player
from memweave.recipes.recipe import REPLY_SECONDS, Arm, Recipe, Stage, Staging, TrainSettings
from memweave.serving.tool_text import template_messages
from memweave.trainers.credit import broadcast, shuffled
from memweave.trainers.rollouts import Reward
from memweave.worlds.dialog_world import Dialogue, DialogWorld

SHARPENED: Final = (1.0, 0.7, 0.5, 0.3)
"""Temperatures at which the base answerer is tested too; greedy is the sharpest of all."""
MAX_TOKENS: Final = {"manager": 112, "answerer": 64}
"""Twice what a usual reply takes; a manager that is told two facts at once needs it."""


@dataclass(frozen=True)
class Material:
    """What an arm is trained on, where it differs from the recipe's own."""

    dialogues: int | None = None
    """`None`: all of the split, 10. They have 159 questions, about as many as the paper's training set."""
    window: int = dialogs.WINDOW
    rollout: bool = False
    """Whole dialogues from an empty bank instead of single turns on temporal banks (specification, B2)."""
    reward: Reward = dialogs.reward


SHORT_WINDOW: Final = 24
"""Of the paper's appendix; its algorithm says 50 (specification, B1)."""
MATERIAL: Final[Mapping[str, Material]] = {
    "grpo-window24": Material(window=SHORT_WINDOW),
    "grpo-rollout": Material(rollout=True),
    "grpo-lenient": Material(reward=dialogs.lenient_reward),
    "grpo-data40": Material(dialogues=3),
    "grpo-data600": Material(dialogues=38),
}
"""Arms that are trained on something else than the others. `data` counts questions, about."""
GRPO: Final = Arm(lambda seed: broadcast())
ARMS: Final = {
    "grpo": GRPO,
    "ppo": Arm(trainer="ppo"),
    "shuffled": Arm(lambda seed: shuffled(broadcast(), seed)),
    "sft": Arm(trainer="sft"),
    "grpo-data40": GRPO,
    "grpo-data600": GRPO,
}
Conversation = list[dict[str, str]]
_Cells = dict[str, tuple[PolicyLike[AnswerRequest], int]]
"""Name -> answerer and budget."""


def manager_stage(given: Staging) -> Stage:
    """Return what the manager is trained on: single turns on temporal banks, or whole dialogues."""
    world, material = DialogWorld(), MATERIAL.get(given.arm, Material())
    train = world.dialogues("train", material.dialogues)
    turns = dialogs.manager_turns(world, train, material.window)
    episodes = dialogs.whole_dialogues(train) if material.rollout else turns
    held_out = dialogs.manager_turns(world, world.dialogues("val"))
    bank = given.open.enter_context(dialogs.scratch_bank())
    turns.fill(bank)
    held_out.fill(bank)
    return Stage(
        graph=dialogs.episode_graph(world, _manager(given, None), _answerer(given, None)),
        train=episodes.tasks,
        held_out=held_out.tasks[: given.settings.eval_tasks],
        reward=material.reward,
        bank=bank,
        actors=("manager",),
        examples=lambda: _manager_examples(world, train),
        test=lambda: tested_manager(given, world, _tested(given, world)),
    )


def answerer_stage(given: Staging) -> Stage:
    """Return what the answerer is trained on: questions on the banks that the frozen manager left."""
    world, material = DialogWorld(), MATERIAL.get(given.arm, Material())
    train, held_out = world.dialogues("train", material.dialogues), world.dialogues("val")
    bank = given.open.enter_context(dialogs.scratch_bank())
    given.place.say(f"the frozen manager remembers {len(train) + len(held_out)} dialogues")
    dialogs.construct(bank, world, [*train, *held_out], _manager(given, 0.0))
    return Stage(
        graph=dialogs.episode_graph(world, players.MANAGERS["always-noop"], _answerer(given, None)),
        train=dialogs.questions(train).tasks,
        held_out=dialogs.questions(held_out).tasks[: given.settings.eval_tasks],
        reward=material.reward,
        bank=bank,
        actors=("answerer",),
        examples=lambda: _answerer_examples(bank, world, train),
        test=lambda: tested_answerer(given, world, _tested(given, world)),
    )


def _manager(given: Staging, temperature: float | None) -> LLMPolicy[ManageRequest]:
    model = given.model_of("manager") if temperature is None else given.model_at("manager", temperature)
    return LLMPolicy(model, MANAGER, profile="none", timeout=REPLY_SECONDS)


def _answerer(given: Staging, temperature: float | None) -> LLMPolicy[AnswerRequest]:
    model = given.model_of("answerer") if temperature is None else given.model_at("answerer", temperature)
    return LLMPolicy(model, ANSWERER, profile="none", timeout=REPLY_SECONDS)


# the final evaluation


def _tested(given: Staging, world: DialogWorld) -> list[Dialogue]:
    return [] if given.settings.test_size == 0 else world.dialogues("test", given.settings.test_size)


def _unseen(given: Staging, world: DialogWorld) -> list[Dialogue]:
    """Return the dialogues with unseen words and templates, at most as many as are tested."""
    return world.dialogues("ood")[: given.settings.test_size]


def tested_manager(given: Staging, world: DialogWorld, dialogues: Sequence[Dialogue]) -> Mapping[str, JsonValue]:
    """Return how the manager does on whole dialogues with the frozen answerer: greedy at each budget, and at T = 1.

    `ood` has unseen words and templates.
    """
    found: dict[str, JsonValue] = {}
    if not dialogues:
        return found
    one = (dialogs.BUDGET,)
    for name, temperature, budgets, asked in (
        ("greedy", 0.0, dialogs.BUDGETS, dialogues),
        ("sampled", 1.0, one, dialogues),
        ("ood", 0.0, one, _unseen(given, world)),
    ):
        given.place.say(f"testing the manager on {len(asked)} dialogues, {name}")
        with dialogs.scratch_bank() as bank:
            failed = dialogs.construct(bank, world, asked, _manager(given, temperature))
            for budget in budgets:
                answerer = _answerer(given, 0.0)
                found[f"{name}-{budget}"] = payload(
                    dialogs.ask(bank, world, asked, answerer, budget=budget, failed_turns=failed)
                )
    return found


def tested_answerer(given: Staging, world: DialogWorld, dialogues: Sequence[Dialogue]) -> Mapping[str, JsonValue]:
    """Return how the answerer does on the frozen manager's banks: greedy at each budget, and at T = 1.

    Beside it, what does not depend on the arm and is therefore asked by `grpo` alone: the base answerer, sharpened or not, the
    oracle, and with a trained partner the other cells of {base, partner} x {base, trained}. `ood` has unseen words and templates.
    """
    if not dialogues:
        return {}
    one, trained, partner = dialogs.BUDGET, _answerer(given, 0.0), _manager(given, 0.0)
    cells: _Cells = {f"greedy-{budget}": (trained, budget) for budget in dialogs.BUDGETS}
    cells[f"sampled-{one}"] = (_answerer(given, 1.0), one)
    unseen: _Cells = {f"ood-{one}": (trained, one)}
    base = _base_answerer(given, 0.0)
    if given.arm == "grpo":
        cells |= {"partner/base": (base, one), "partner/oracle": (players.ANSWERERS["oracle"], one)}
        cells |= {f"partner/base-t{t:g}": (_base_answerer(given, t), one) for t in SHARPENED}
        unseen[f"ood-base-{one}"] = (base, one)
    found = _asked(given, world, dialogues, "partner", partner, cells)
    if given.arm == "grpo" and given.place.partner is not None:
        manager = LLMPolicy(given.base_at("manager", 0.0), MANAGER, profile="none", timeout=REPLY_SECONDS)
        both: _Cells = {"base/base": (base, one), "base/trained": (trained, one)}
        found |= _asked(given, world, dialogues, "base", manager, both)
    return found | _asked(given, world, _unseen(given, world), "partner", partner, unseen)


def _asked(
    given: Staging,
    world: DialogWorld,
    dialogues: Sequence[Dialogue],
    name: str,
    manager: PolicyLike[ManageRequest],
    cells: _Cells,
) -> dict[str, JsonValue]:
    """Let `manager` remember the dialogues, and return what each cell (answerer, budget) answers on its banks."""
    given.place.say(f"testing the answerer on {len(dialogues)} dialogues of the {name} manager")
    with dialogs.scratch_bank() as bank:
        failed = dialogs.construct(bank, world, dialogues, manager)
        return {
            cell: payload(dialogs.ask(bank, world, dialogues, answerer, budget=budget, failed_turns=failed))
            for cell, (answerer, budget) in cells.items()
        }


def _base_answerer(given: Staging, temperature: float) -> LLMPolicy[AnswerRequest]:
    return LLMPolicy(given.base_at("answerer", temperature), ANSWERER, profile="none", timeout=REPLY_SECONDS)


def payload(outcome: dialogs.Outcome) -> JsonValue:
    """Return an outcome as JSON: the score, and one mark per question of each dialogue."""
    return {"score": outcome.score, **asdict(outcome)}


# demonstrations


def _manager_examples(world: DialogWorld, dialogues: Sequence[Dialogue]) -> list[Conversation]:
    """Return every decision of a perfect manager on whole dialogues."""
    seen: list[Conversation] = []

    def play(request: ManageRequest) -> str:
        reply = players.MANAGERS["oracle"].reply(request)
        seen.append(_conversation(render_manage(request, "none"), reply))
        return reply

    with dialogs.scratch_bank() as bank:
        dialogs.construct(bank, world, dialogues, Player[ManageRequest]("oracle", play), concurrency=1)
    return seen


def _answerer_examples(bank: MemoryBank, world: DialogWorld, dialogues: Sequence[Dialogue]) -> list[Conversation]:
    """Return every reply of a perfect answerer on the banks of the frozen manager."""
    seen: list[Conversation] = []

    def play(request: AnswerRequest) -> str:
        reply = players.ANSWERERS["oracle"].reply(request)
        seen.append(_conversation(render_answer(request, "none"), reply))
        return reply

    dialogs.ask(bank, world, dialogues, Player[AnswerRequest]("oracle", play), concurrency=1)
    return seen


def _conversation(messages: Sequence[BaseMessage], reply: str) -> Conversation:
    return [*template_messages(list(messages)), {"role": "assistant", "content": reply}]


Trains = Literal["manager", "answerer"]


def _recipe(trains: Trains, summary: str, arms: Mapping[str, Arm], settings: TrainSettings) -> Recipe:
    return Recipe(
        name=f"memory-r1-{trains}",
        summary=summary,
        stage=manager_stage if trains == "manager" else answerer_stage,
        arms=arms,
        settings=settings,
        max_tokens=MAX_TOKENS,
        base="dialog",
        trains=trains,
    )


MEMORY_R1_MANAGER: Final = _recipe(
    "manager",
    "Memory-R1's manager on DialogWorld, reward = exact match of the frozen answerer (minutes on a CPU)",
    {**ARMS, "grpo-window24": GRPO, "grpo-rollout": GRPO},
    TrainSettings(steps=60, learning_rate=1e-3, lora_rank=16, eval_tasks=32),
)
MEMORY_R1_ANSWERER: Final = _recipe(
    "answerer",
    "Memory-R1's answerer on the banks of a frozen manager, reward = exact match (minutes on a CPU)",
    {**ARMS, "grpo-lenient": GRPO},
    TrainSettings(steps=100, learning_rate=1e-3, lora_rank=16, eval_tasks=32),
)

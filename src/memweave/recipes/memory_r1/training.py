"""The recipes `memory-r1-manager` and `memory-r1-answerer`: each role trained with the other one frozen (docs/memory-r1.md).

Order of the specification (section 5, B8): the manager first, with the base answerer; then the answerer, on the bank that the
trained manager leaves (`--partner`); if wanted the manager again, with the trained answerer as partner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
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
from memweave.worlds.dialog_world import Dialogue, DialogWorld

SHORT_WINDOW: Final = 24
SHARPENED: Final = (1.0, 0.7, 0.5, 0.3)
"""Temperatures at which the base answerer is tested too; greedy is the sharpest of all."""
MAX_TOKENS: Final = {"manager": 112, "answerer": 64}
"""Twice what a usual reply takes; a manager that is told two facts at once needs it."""
ARMS: Final = {
    "grpo": Arm(lambda seed: broadcast()),
    "ppo": Arm(trainer="ppo"),
    "shuffled": Arm(lambda seed: shuffled(broadcast(), seed)),
    "sft": Arm(trainer="sft"),
}
Conversation = list[dict[str, str]]


def manager_stage(given: Staging) -> Stage:
    """Return what the manager is trained on: single turns on temporal banks, or whole dialogues."""
    world = DialogWorld()
    train = world.dialogues("train")
    window = SHORT_WINDOW if given.arm == "grpo-window24" else dialogs.WINDOW
    turns = dialogs.manager_turns(world, train, window)
    episodes = dialogs.whole_dialogues(train) if given.arm == "grpo-rollout" else turns
    held_out = dialogs.manager_turns(world, world.dialogues("val"))
    bank = given.open.enter_context(dialogs.scratch_bank())
    turns.fill(bank)
    held_out.fill(bank)
    return Stage(
        graph=dialogs.episode_graph(world, _manager(given, None), _answerer(given, None)),
        train=episodes.tasks,
        held_out=held_out.tasks[: given.settings.eval_tasks],
        reward=dialogs.reward,
        bank=bank,
        actors=("manager",),
        examples=lambda: _manager_examples(world, train),
        test=lambda: tested_manager(given, world, _tested(given, world)),
    )


def answerer_stage(given: Staging) -> Stage:
    """Return what the answerer is trained on: questions on the banks that the frozen manager left."""
    world = DialogWorld()
    train, held_out = world.dialogues("train"), world.dialogues("val")
    bank = given.open.enter_context(dialogs.scratch_bank())
    given.place.say(f"the frozen manager remembers {len(train) + len(held_out)} dialogues")
    dialogs.construct(bank, world, [*train, *held_out], _manager(given, 0.0))
    return Stage(
        graph=dialogs.episode_graph(world, players.MANAGERS["always-noop"], _answerer(given, None)),
        train=dialogs.questions(train).tasks,
        held_out=dialogs.questions(held_out).tasks[: given.settings.eval_tasks],
        reward=dialogs.reward,
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


def tested_manager(given: Staging, world: DialogWorld, dialogues: Sequence[Dialogue]) -> Mapping[str, JsonValue]:
    """Return how the manager does on whole dialogues with the frozen answerer: greedy at each budget, and at T = 1."""
    found: dict[str, JsonValue] = {}
    for name, temperature, budgets in (("greedy", 0.0, dialogs.BUDGETS), ("sampled", 1.0, (dialogs.BUDGET,))):
        if not dialogues:
            break
        given.place.say(f"testing the manager on {len(dialogues)} dialogues, {name}")
        with dialogs.scratch_bank() as bank:
            failed = dialogs.construct(bank, world, dialogues, _manager(given, temperature))
            for budget in budgets:
                answerer = _answerer(given, 0.0)
                found[f"{name}-{budget}"] = payload(
                    dialogs.ask(bank, world, dialogues, answerer, budget=budget, failed_turns=failed)
                )
    return found


def tested_answerer(given: Staging, world: DialogWorld, dialogues: Sequence[Dialogue]) -> Mapping[str, JsonValue]:
    """Return how the answerer does on the frozen manager's banks, beside the base answerer, sharpened or not, and the oracle.

    With a trained partner also the four cells {base, partner} x {base, trained}.
    """
    found: dict[str, JsonValue] = {}
    trained = _answerer(given, 0.0)
    managers = {"partner": _manager(given, 0.0)}
    if given.place.partner is not None:
        managers["base"] = LLMPolicy(given.base_at("manager", 0.0), MANAGER, profile="none", timeout=REPLY_SECONDS)
    for name, manager in managers.items():
        if not dialogues:
            break
        given.place.say(f"testing the answerer on {len(dialogues)} dialogues of the {name} manager")
        others: dict[str, PolicyLike[AnswerRequest]] = {
            f"{name}/base": _base_answerer(given, 0.0),
            f"{name}/trained": trained,
        }
        if name == "partner":
            others |= {f"partner/base-t{t:g}": _base_answerer(given, t) for t in SHARPENED}
            others |= {
                "partner/oracle": players.ANSWERERS["oracle"],
                f"sampled-{dialogs.BUDGET}": _answerer(given, 1.0),
            }
        with dialogs.scratch_bank() as bank:
            failed = dialogs.construct(bank, world, dialogues, manager)
            for cell, answerer in others.items():
                found[cell] = payload(dialogs.ask(bank, world, dialogues, answerer, failed_turns=failed))
            for budget in dialogs.BUDGETS if name == "partner" else ():
                at = dialogs.ask(bank, world, dialogues, trained, budget=budget, failed_turns=failed)
                found[f"greedy-{budget}"] = payload(at)
    return found


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
    {**ARMS, "grpo-window24": Arm(lambda seed: broadcast()), "grpo-rollout": Arm(lambda seed: broadcast())},
    TrainSettings(steps=60, learning_rate=1e-3, lora_rank=16, eval_tasks=32),
)
MEMORY_R1_ANSWERER: Final = _recipe(
    "answerer",
    "Memory-R1's answerer on the banks of a frozen manager, reward = exact match (minutes on a CPU)",
    ARMS,
    TrainSettings(steps=60, learning_rate=3e-4, lora_rank=16, eval_tasks=32),
)

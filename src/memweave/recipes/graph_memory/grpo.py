"""The recipe `graph-memory-grpo`: GRPO on FSM-QA with strategies in the prompt, from a graph that stays as it is (specification, 2.6).

Every rollout of a group has the same prompt; what tools return is no part of the loss, since only sampled tokens are. Memory has its price:
the result says how many episodes the graph took (`charged`), and the tables count them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import JsonValue

from memweave.errors import SettingsError
from memweave.graphs.graph_memory_state import Guidance
from memweave.memory_stores.strategy_graph import StrategyGraph
from memweave.recipes.graph_memory.arms import NONE, RAW, SHOWN, advise, measured
from memweave.recipes.graph_memory.building import BuildSettings, build
from memweave.recipes.graph_memory.keeping import GRAPH, HOME, MADE, PACKED, TRAJECTORIES, Kept
from memweave.recipes.graph_memory.players import MAX_TOKENS
from memweave.recipes.graph_memory.rollouts import Playing, questions, rollout_graph
from memweave.recipes.graph_memory.weighing import WeightsSettings, train
from memweave.recipes.recipe import Arm, Place, Recipe, Stage, Staging, TrainSettings
from memweave.tracing import Score, Trace
from memweave.trainers.credit import broadcast
from memweave.trainers.rollouts import Task
from memweave.worlds.fsmqa import FSMQATask, Split

TRAIN_TASKS: Final = 1_000
PAID: Final = "chosen"
"""Arm of the weights, where a run trains them itself: one drawn strategy, as each rollout is charged."""
OWN: Final = "graph"
"""Folder of the graph within that of the run."""
ADVISED: Final[Mapping[str, str]] = {
    "plain": NONE,
    "uniform": "uniform",
    "trained": "trained",
    "random": "random",
    "raw-trajectories": RAW,
}
"""By arm: how prompts are advised, as in `memweave eval world fsmqa`."""
TESTS: Final[Mapping[str, tuple[Split, float]]] = {
    "greedy": ("test", 0.0),
    "sampled": ("test", 1.0),
    "ood-entities": ("ood-entities", 0.0),
    "ood-mixture": ("ood-mixture", 0.0),
    "ood-chains": ("ood-chains", 0.0),
}


def check(arm: str, place: Place) -> None:
    """Raise `InputError` or `SettingsError` for a graph that cannot be, or that nothing would be done with."""
    if place.data is None:
        return
    if ADVISED[arm] == NONE:
        raise SettingsError(f"arm {arm} has no memory in its prompts; leave out --data {place.data}")
    if Kept.find(place.data).made.weights_arm is None and arm == "trained":
        raise SettingsError(f"the weights of {place.data} are not trained: memweave train graph-memory-weights")


def stage(given: Staging) -> Stage:
    """Return what an arm is trained on."""
    settings = given.settings
    train_on = questions("rl", TRAIN_TASKS, settings.seed)
    held_out = questions("val", settings.eval_tasks, settings.seed)
    kept = None if ADVISED[given.arm] == NONE else memory(given)
    advice = advised(given.arm, kept, [*train_on, *held_out], settings.seed)
    return Stage(
        graph=Playing(rollout_graph(given.model_of("agent")), [*train_on, *held_out]),
        train=episodes(train_on, advice),
        held_out=episodes(held_out, advice),
        reward=graph_reward,
        test=lambda: tested(given, kept),
    )


def episodes(tasks: Sequence[FSMQATask], advice: Mapping[str, Guidance | None]) -> list[Task]:
    """Return the questions as rollouts take them, with what is advised."""
    return [
        Task(
            id=task.id,
            input={
                "query": task.text,
                "guidance": advice[task.id],
                "arm": "grpo",
                "query_id": task.id,
                "ground_truth": task.answer,
            },
        )
        for task in tasks
    ]


def graph_reward(task: Task, output: Any, trace: Trace) -> Score | None:
    """Return the reward that the graph has found: exact match."""
    found = output.get("reward")
    return None if found is None else Score(value=float(found))


def advised(arm: str, kept: Kept | None, tasks: Sequence[FSMQATask], seed: int) -> dict[str, Guidance | None]:
    """Return what each question is advised in an arm, by the graph as it is."""
    if kept is None:
        return {task.id: None for task in tasks}
    with kept.opened() as graph:
        return _advised(ADVISED[arm], graph, kept, tasks, seed)


def _advised(
    how: str, graph: StrategyGraph, kept: Kept, tasks: Sequence[FSMQATask], seed: int
) -> dict[str, Guidance | None]:
    return advise(how, graph, tasks, k=SHOWN, seed=seed, trajectories=kept.trajectories())


def memory(given: Staging) -> Kept:
    """Return the graph of a run: the one that is given, else one that the base policy builds first.

    It is copied into the run's folder. Raises `SettingsError` when that holds another one.
    """
    place, folder = given.place, given.place.out / OWN
    source = None if place.data is None else Kept.find(place.data)
    if source is not None:
        if (folder / MADE).exists() and Kept.find(folder).made != source.made:
            raise SettingsError(f"{place.out} was begun with another graph than {place.data}. Start a new run")
        folder.mkdir(parents=True, exist_ok=True)
        for name in (GRAPH, PACKED, TRAJECTORIES, MADE):
            if (source.folder / name).exists():
                shutil.copy(source.folder / name, folder / name)
        return Kept.find(folder)
    if (folder / MADE).exists():
        return Kept.find(folder)
    seed, model = given.settings.seed, given.base_at("agent", 1.0)
    built = folder / "built"
    if not (built / MADE).exists():
        shutil.rmtree(built / HOME, ignore_errors=True)
        built.mkdir(parents=True, exist_ok=True)
        build(built, BuildSettings(seed=seed), model, say=place.say)
    if given.arm != "trained":
        return Kept.find(built)
    own = WeightsSettings(arm=PAID, seed=seed)
    return train(folder, Kept.find(built), own, model, say=place.say).kept


def charged(arm: str, kept: Kept | None) -> dict[str, int]:
    """Return the episodes that an arm's memory has cost before training: those of the weights only where they are used."""
    if kept is None:
        return {"build": 0, "weights": 0}
    return {"build": kept.made.build_rollouts, "weights": kept.made.weight_rollouts if arm == "trained" else 0}


def tested(given: Staging, kept: Kept | None) -> Mapping[str, JsonValue]:
    """Return how the trained policy does on test questions, with memory in the prompt and without (B14), and what memory has cost."""
    found: dict[str, JsonValue] = {"charged": dict(charged(given.arm, kept))}
    seed, most = given.settings.seed, given.settings.test_size
    if most == 0:
        return found
    for name, (split, temperature) in TESTS.items():
        tasks = questions(split, most, seed)
        model = given.model_at("agent", temperature)
        given.place.say(f"testing {name} on {len(tasks)} questions")
        for suffix, advice in _both(given.arm, kept, tasks, seed).items():
            outcome = measured(model, tasks, advice, seed=seed)
            cell: dict[str, Any] = {"score": outcome.score, **outcome.payload()}
            found[f"{name}{suffix}"] = cell
    return found


def _both(arm: str, kept: Kept | None, tasks: Sequence[FSMQATask], seed: int) -> dict[str, dict[str, Guidance | None]]:
    without: dict[str, Guidance | None] = {task.id: None for task in tasks}
    return {"": without} if kept is None else {"": advised(arm, kept, tasks, seed), "-without": without}


GRAPH_MEMORY_GRPO: Final = Recipe(
    name="graph-memory-grpo",
    summary="GRPO on FSM-QA with strategies of a frozen graph in the prompt, and without (minutes on a CPU)",
    stage=stage,
    check=check,
    arms=dict.fromkeys(ADVISED, Arm(lambda seed: broadcast())),
    settings=TrainSettings(
        steps=60,
        tasks_per_step=4,
        group_size=8,
        learning_rate=1e-3,
        lora_rank=16,
        loss_type="grpo",
        concurrency=32,
        eval_tasks=8,
    ),
    max_tokens={"agent": MAX_TOKENS},
    base="fsmqa",
    takes_data=True,
)

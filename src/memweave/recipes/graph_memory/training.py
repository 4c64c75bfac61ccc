"""The recipes `graph-memory-build` and `graph-memory-weights` on FSM-QA: a graph of strategies, and its weights (docs/graph-memory.md)."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Final

from langchain_core.language_models import BaseChatModel

from memweave.errors import SettingsError
from memweave.recipes.graph_memory.building import BUILD_ARMS, BuildSettings, Built, build
from memweave.recipes.graph_memory.keeping import HOME, MADE, Kept
from memweave.recipes.graph_memory.players import BASES, player
from memweave.recipes.graph_memory.weighing import WEIGHTS_ARMS, Trained, WeightsSettings, train
from memweave.recipes.own import OwnRecipe, OwnRun
from memweave.recipes.run_file import claim_run
from memweave.recipes.running import BASE, FSMQA_BASE

BUILT: Final = "built"
"""Folder of the graph that a run of the weights has built itself."""


def run_build(asked: OwnRun) -> Built:
    """Build a graph; what is left of a run that was cut off is built anew."""
    own = BuildSettings(arm=asked.arm, seed=asked.seed, queries=asked.tasks)
    settings = own if asked.group_size is None else BuildSettings(**{**asdict(own), "samples": asked.group_size})
    with ExitStack() as opened:
        model = _player(asked, opened)
        claim_run(asked.out, {"recipe": "graph-memory-build", **_player_of(asked), **asdict(settings)})
        return built(asked.out, settings, model, asked)


def run_weights(asked: OwnRun) -> Trained:
    """Train the weights of a graph: of the one given, or of one that is built first. With `resume`, goes on where it was.

    Raises `SettingsError` for a graph of another machine, and for one whose weights are trained already.
    """
    settings = WeightsSettings(
        arm=asked.arm,
        seed=asked.seed,
        queries=asked.tasks,
        epochs=asked.steps,
        samples=asked.group_size,
        learning_rate=asked.learning_rate,
    )
    with ExitStack() as opened:
        model = _player(asked, opened)
        start = None if asked.data is None else Kept.find(asked.data)
        machine = settings.of_arm().reading.machine
        if start is not None and start.made.reading.machine != machine:
            raise SettingsError(
                f"{asked.data} holds paths of the machine {start.made.reading.machine}, and arm {asked.arm} is about {machine}"
            )
        if start is not None and start.made.weights_arm is not None:
            raise SettingsError(
                f"the weights of {asked.data} are trained already ({start.made.weights_arm}). Give the graph as it was built, or make one: "
                "memweave train graph-memory-build"
            )
        about = {} if start is None else {f"graph {name}": value for name, value in asdict(start.made).items()}
        claim_run(asked.out, {"recipe": "graph-memory-weights", **_player_of(asked), **about, **asdict(settings)})
        if start is None:
            own = BuildSettings(arm=settings.of_arm().build, seed=asked.seed)
            start = built(asked.out / BUILT, own, model, asked).kept
        return train(asked.out, start, settings, model, say=asked.say)


def built(folder: Path, settings: BuildSettings, model: BaseChatModel, asked: OwnRun) -> Built:
    """Return the graph in a folder if it is whole, else build it."""
    file = folder / "build.json"
    if (folder / MADE).exists() and file.exists():
        return Built(kept=Kept.find(folder), **json.loads(file.read_text()))
    shutil.rmtree(folder / HOME, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    found = build(folder, settings, model, policy=_name(asked), say=asked.say)
    file.write_text(json.dumps({k: v for k, v in asdict(found).items() if k != "kept"}))
    return found


def _player(asked: OwnRun, opened: ExitStack) -> BaseChatModel:
    temperature = 1.0 if asked.temperature is None else asked.temperature
    name = BASE if asked.base is None else str(asked.base)
    return player(name, opened, base=FSMQA_BASE, temperature=temperature, seed=asked.seed)


def _player_of(asked: OwnRun) -> dict[str, object]:
    """Return what a run says of who plays, so that it goes on with the same."""
    return {"base": _name(asked), "temperature": asked.temperature}


def _name(asked: OwnRun) -> str:
    """Return who plays: the hash of the weights, or a name."""
    from memweave.serving.policy_folder import load_policy_folder

    folder = FSMQA_BASE if asked.base is None else BASES.get(str(asked.base), asked.base)
    return load_policy_folder(folder).version if folder.is_dir() else str(folder)


GRAPH_MEMORY_BUILD: Final = OwnRecipe(
    name="graph-memory-build",
    summary="Graph memory on FSM-QA: paths and strategies from runs without advice (minutes on a CPU)",
    arms=tuple(BUILD_ARMS),
    takes={
        "tasks": "questions, 200",
        "group-size": "rollouts of each, 8",
        "temperature": "of the policy, 1",
        "base": "the policy, a folder or script",
        "seed": "of questions and sampling",
        "resume": "build anew what was cut off",
        "out": "where the graph goes",
    },
    needs=(),
    run=run_build,
)
GRAPH_MEMORY_WEIGHTS: Final = OwnRecipe(
    name="graph-memory-weights",
    summary="Graph memory on FSM-QA: which strategies help, learned with and without each (minutes on a CPU)",
    arms=tuple(WEIGHTS_ARMS),
    takes={
        "data": "folder of a graph; without it, one is built first",
        "steps": "epochs",
        "tasks": "questions, 1,000",
        "group-size": "rollouts with and without, each, of a question",
        "learning-rate": "of the weights",
        "temperature": "of the policy, 1",
        "base": "the policy, a folder or script",
        "seed": "of questions and sampling",
        "resume": "go on with what was cut off",
        "out": "where the graph goes",
    },
    needs=(),
    run=run_weights,
)

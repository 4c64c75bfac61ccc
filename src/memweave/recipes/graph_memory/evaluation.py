"""`memweave eval world fsmqa`: what strategies of a graph are worth to a policy, arm by arm on the same questions.

With equal seeds all arms search with the same luck and draw the same random numbers, so they can be compared question by question.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from memweave.errors import InputError, SettingsError
from memweave.metrics import hierarchical_bootstrap
from memweave.recipes.graph_memory.arms import ARMS, NONE, SHOWN, Measured, advise, measured
from memweave.recipes.graph_memory.building import BuildSettings, build
from memweave.recipes.graph_memory.keeping import HOME, Kept
from memweave.recipes.graph_memory.players import player
from memweave.recipes.graph_memory.rollouts import questions
from memweave.recipes.graph_memory.utility import UtilityResult, utility
from memweave.recipes.graph_memory.weighing import WeightsSettings, train
from memweave.recipes.running import BASE, FSMQA_BASE
from memweave.worlds.fsmqa import SPLITS, Split

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from pydantic import SecretStr

    from memweave.graphs.graph_memory_state import Guidance
    from memweave.memory_stores.strategy_graph import StrategyGraph
    from memweave.worlds.fsmqa import FSMQATask

Report = Callable[[str, int, int], object]
"""Called with a stage, how much of it is done, and how much there is."""
REPEATS: Final = 3
"""Times that a question is asked at a temperature above 0, with other random numbers each."""
DEFAULT_ARMS: Final = ("none", "uniform", "trained")


@dataclass(frozen=True, kw_only=True)
class FSMQAEvalSettings:
    """What is asked."""

    arms: tuple[str, ...] = DEFAULT_ARMS
    splits: tuple[Split, ...] = ("test",)
    ks: tuple[int, ...] = (SHOWN,)
    """Strategies in a prompt."""
    temperatures: tuple[float, ...] = (0.0,)
    episodes: int | None = None
    """Questions, by default all of a split."""
    first_seed: int = 0
    seeds: int = 1
    utility: int = 0
    """Rollouts of each strategy for each kind, to measure what it is worth (D2); 0: not measured."""
    weights: WeightsSettings = field(default_factory=WeightsSettings)
    """Of the graph that is made when none is given."""
    build: BuildSettings = field(default_factory=BuildSettings)

    def __post_init__(self) -> None:
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise SettingsError(f"there is no agent {unknown[0]!r}. There are: {', '.join(ARMS)}")
        if unknown := [split for split in self.splits if split not in SPLITS]:
            raise SettingsError(f"there is no split {unknown[0]!r}. There are: {', '.join(SPLITS)}")
        if min(self.ks, default=0) < 0 or min(self.temperatures, default=0.0) < 0:
            raise InputError(f"k = {self.ks}, temperatures {self.temperatures}: give 0 or more")
        if self.seeds < 1 or self.first_seed < 0 or self.utility < 0:
            raise InputError(
                f"{self.seeds} seeds from {self.first_seed}, utility {self.utility}: give 1, 0 and 0 at least"
            )

    @property
    def needs_graph(self) -> bool:
        """Return whether an arm, or what is measured beside them, looks into a graph."""
        return self.utility > 0 or any(arm != NONE for arm in self.arms) and max(self.ks, default=0) > 0


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm on one split."""

    arm: str
    split: str
    k: int
    temperature: float
    score: float
    """Share of exact matches, in [0, 1]."""
    low: float
    high: float
    """95 % bootstrap interval, over seeds and questions."""
    right: Mapping[str, tuple[str, ...]]
    """Seed -> for each time that the questions are asked, one `1` or `0` per question."""
    calls: float
    """Mean of searches."""
    unreadable: float
    """Share of rollouts without an answer."""


@dataclass(frozen=True, kw_only=True)
class FSMQAResult:
    """What an evaluation found."""

    world: str
    policy: str
    settings: FSMQAEvalSettings
    graphs: Mapping[str, Mapping[str, object]]
    """Seed -> how its graph was made; without any, none."""
    cells: tuple[Cell, ...]
    utility: Mapping[str, UtilityResult]
    """Seed -> how ranks agree with worth, before and after training."""
    seconds: float

    def payload(self) -> dict[str, object]:
        """Return this as one JSON object."""
        return asdict(self)


def evaluate_fsmqa(
    settings: FSMQAEvalSettings,
    policy: str = BASE,
    *,
    graphs: Sequence[Path] = (),
    base: Path = FSMQA_BASE,
    api_key: SecretStr | None = None,
    report: Report | None = None,
) -> FSMQAResult:
    """Ask questions in every arm, on every split, with every k, at every temperature.

    policy: `base`, `script`, a policy's or an adapter's folder, or a specification for `chat_model`.  graphs: folders of graphs, one for
    each seed; without any, each seed builds one and trains its weights, if an arm needs it.

    Raises `SettingsError`, `InputError` for what cannot be, `UnavailableError` when a model does not answer.
    """
    if graphs and len(graphs) != settings.seeds:
        raise InputError(f"{len(graphs)} graphs for {settings.seeds} seeds: give one for each seed, or none")
    found = [Kept.find(place) for place in graphs]
    if "trained" in settings.arms:
        for given in found:
            if given.made.weights_arm is None:
                raise SettingsError(
                    f"the weights of {given.folder} are not trained, so there is no agent 'trained'. Train them: "
                    f"memweave train graph-memory-weights --data {given.folder} --out FOLDER; or name other agents"
                )
    began = time.perf_counter()
    marks: dict[tuple[str, Split, int, float], dict[str, list[Measured]]] = {}
    made: dict[str, Mapping[str, object]] = {}
    worth: dict[str, UtilityResult] = {}
    for number, seed in enumerate(range(settings.first_seed, settings.first_seed + settings.seeds)):
        with ExitStack() as opened:
            models = {
                heat: player(policy, opened, base=base, temperature=heat, seed=seed, api_key=api_key)
                for heat in dict.fromkeys((*settings.temperatures, 1.0))
            }
            kept = found[number] if found else None
            if kept is None and settings.needs_graph:
                folder = Path(opened.enter_context(TemporaryDirectory(prefix="memweave-fsmqa-")))
                kept = _make(folder, settings, models[1.0], policy, seed)
            graph = opened.enter_context(kept.opened()) if kept else None
            if kept is not None:
                made[str(seed)] = asdict(kept.made)
            for cell, tasks in _cells(settings, seed):
                said = _said(report, f"{cell[0]}, {cell[1]}, k {cell[2]}, T {cell[3]:g}, seed {seed}")
                rows = _asked(cell, models[cell[3]], graph, kept, tasks, seed, said)
                marks.setdefault(cell, {})[str(seed)] = rows
            if settings.utility and graph is not None:
                tasks = questions(settings.splits[0], settings.episodes, seed)
                said = _said(report, f"utility, seed {seed}")
                worth[str(seed)] = utility(
                    models[1.0], graph, tasks, rollouts=settings.utility, seed=seed, progress=said
                )
    return FSMQAResult(
        world="fsmqa",
        policy=policy,
        settings=settings,
        graphs=made,
        cells=tuple(_cell(key, by_seed) for key, by_seed in marks.items()),
        utility=worth,
        seconds=time.perf_counter() - began,
    )


def _make(folder: Path, settings: FSMQAEvalSettings, model: BaseChatModel, policy: str, seed: int) -> Kept:
    """Build a graph for a seed, and train its weights if an arm, or the utility, is about them."""
    (folder / "built" / HOME).mkdir(parents=True)
    start = build(folder / "built", replace(settings.build, seed=seed), model, policy=policy).kept
    if "trained" not in settings.arms and not settings.utility:
        return start
    (folder / "weights").mkdir()
    return train(folder / "weights", start, replace(settings.weights, seed=seed, val=0), model).kept


def _cells(settings: FSMQAEvalSettings, seed: int) -> list[tuple[tuple[str, Split, int, float], list[FSMQATask]]]:
    """Return every cell once: without advice, k does not matter."""
    made = {}
    for split in settings.splits:
        tasks = questions(split, settings.episodes, seed)
        for arm in settings.arms:
            for k in settings.ks:
                for heat in settings.temperatures:
                    made[(NONE, split, 0, heat) if arm == NONE or k == 0 else (arm, split, k, heat)] = tasks
    return list(made.items())


def _asked(
    cell: tuple[str, Split, int, float],
    model: BaseChatModel,
    graph: StrategyGraph | None,
    kept: Kept | None,
    tasks: Sequence[FSMQATask],
    seed: int,
    said: Callable[[int, int], object] | None,
) -> list[Measured]:
    arm, _, k, heat = cell
    advice: dict[str, Guidance | None] = dict.fromkeys(task.id for task in tasks)
    if graph is not None and kept is not None:
        advice = advise(arm, graph, tasks, k=k, seed=seed, trajectories=kept.trajectories())
    times = REPEATS if heat else 1
    return [measured(model, tasks, advice, seed=100 * seed + turn, progress=said) for turn in range(times)]


def _cell(key: tuple[str, Split, int, float], by_seed: Mapping[str, Sequence[Measured]]) -> Cell:
    arm, split, k, heat = key
    per_question = [
        [[float(mark) for mark in same] for same in zip(*(each.right for each in times), strict=True)]
        for times in by_seed.values()
    ]
    every = [each for times in by_seed.values() for each in times]
    interval = hierarchical_bootstrap(per_question)
    return Cell(
        arm=arm,
        split=split,
        k=k,
        temperature=heat,
        score=interval.mean,
        low=interval.low,
        high=interval.high,
        right={seed: tuple(each.right for each in times) for seed, times in by_seed.items()},
        calls=sum(each.calls for each in every) / len(every),
        unreadable=sum(each.unreadable for each in every) / len(every),
    )


def _said(report: Report | None, stage: str) -> Callable[[int, int], object] | None:
    return None if report is None else lambda done, total: report(stage, done, total)

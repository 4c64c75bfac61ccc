"""The recipe `graph-memory-weights`: machine B over the weights split of FSM-QA (specification, 2.5).

Every step is durable and knows its question and its epoch, so a run that was cut off goes on with the questions that have no step yet.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Literal

import numpy as np
from langchain_core.language_models import BaseChatModel
from pydantic import JsonValue

from memweave.errors import SettingsError
from memweave.graph_records import EdgeStep, WeightUpdate
from memweave.graphs.graph_memory_pairing import Learner, paired_rollouts
from memweave.graphs.graph_memory_weights import create_weights_graph
from memweave.memory_stores.strategy_activation import Activation
from memweave.memory_stores.strategy_graph import StrategyGraph
from memweave.recipes.graph_memory.arms import SHOWN, Measured, advise, measured
from memweave.recipes.graph_memory.keeping import HOME, SCOPE, Kept, Reading, keep, open_graph
from memweave.recipes.graph_memory.rollouts import Episodes, query_task, questions
from memweave.trainers.edge_weights import Reinforce
from memweave.worlds.fsmqa import FSMQATask

Say = Callable[[str], object]
CHUNK: Final = 50
"""Questions between two lines of progress."""
POINTS: Final = 20
"""Means in a curve, at most, so that they can be told from noise."""
LOG: Final = "log.jsonl"
Estimator = Literal["gap", "with-only"]
"""gap: with minus without.  with-only: what the rollout with the strategy was worth, without a baseline (D6)."""


@dataclass(frozen=True, kw_only=True)
class WeightsArm:
    """How weights are trained."""

    learning_rate: float
    reading: Reading = field(default_factory=Reading)
    samples: int = 1
    """Rollouts with and without, each, of a question; their mean is the gap."""
    estimator: Estimator = "gap"
    build: str = "faithful"
    """Arm of the graph, where the run builds it itself."""
    epochs: int = 1
    every: bool = False
    """Try all strategies that a question activates, against one rollout without; steps are weighed by p(m | q)."""
    queries: int | None = None
    """By default all of the weights split."""

    def learner(self) -> Learner:
        """Return what makes steps of its gaps."""
        if self.estimator == "with-only":
            return WithOnly(self.learning_rate)
        return Reinforce(self.learning_rate, expected=self.every)


CHOSEN: Final = WeightsArm(learning_rate=0.01)
"""What most of the study was done with; its variants differ in one thing."""
WEIGHTS_ARMS: Final[dict[str, WeightsArm]] = {
    "even": WeightsArm(learning_rate=200.0, reading=Reading(temperature=200.0), every=True),
    "chosen": CHOSEN,
    "faithful": WeightsArm(learning_rate=0.05),
    "gentle": WeightsArm(learning_rate=0.003),
    "spread": WeightsArm(learning_rate=0.02, reading=Reading(temperature=5.0), epochs=3),
    "tempered": WeightsArm(learning_rate=0.03, reading=Reading(temperature=3.0), epochs=3),
    "every": WeightsArm(learning_rate=10.0, reading=Reading(temperature=10.0), every=True, queries=300),
    "with-only": replace(CHOSEN, estimator="with-only"),
    "n4": replace(CHOSEN, samples=4),
    "probe": replace(CHOSEN, build="probe"),
    "coarse": replace(CHOSEN, build="coarse", reading=replace(CHOSEN.reading, machine="coarse")),
    "normalised": replace(CHOSEN, reading=Reading(degree_normalised=True)),
}
"""even: all strategies of a question, which count nearly alike, expected gradient: finds the first and orders the others
(docs/log.md). chosen: one that is drawn; a seventh of the rollouts, and as good a first strategy. faithful: section 2.5 as it
stands. gentle: the same with a smaller learning rate. spread: other strategies are tried more often. tempered: between chosen and
spread. every: as even, at a temperature where the leading one counts most, on 300 questions. with-only, n4: other estimators of the
gap (D6). probe: on a graph with random strategies among the others. coarse: the smaller machine (B1). normalised: rho divided by
degrees."""


DEFAULT_ARM: Final = next(iter(WEIGHTS_ARMS))


@dataclass(frozen=True, kw_only=True)
class WeightsSettings:
    """How much is played."""

    arm: str = DEFAULT_ARM
    seed: int = 0
    queries: int | None = None
    """By default the arm's."""
    epochs: int | None = None
    samples: int | None = None
    learning_rate: float | None = None
    at_once: int = 8
    """Questions tried at the same time, with the weights from before."""
    val: int = 100
    """Questions of the validation before and after each epoch."""

    def __post_init__(self) -> None:
        if self.arm not in WEIGHTS_ARMS:
            known = ", ".join(WEIGHTS_ARMS)
            raise SettingsError(f"graph-memory-weights has no arm {self.arm!r}. There are: {known}")
        self.of_arm().learner()  # refuses a learning rate that is none

    def of_arm(self) -> WeightsArm:
        """Return the arm with what is given instead of its own."""
        arm = WEIGHTS_ARMS[self.arm]
        given = {
            "queries": self.queries,
            "epochs": self.epochs,
            "samples": self.samples,
            "learning_rate": self.learning_rate,
        }
        return replace(arm, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]  # the keys are its own


class WithOnly:
    """REINFORCE without a baseline: the rollout without the strategy counts as worth nothing."""

    def __init__(self, learning_rate: float) -> None:
        self._learner = Reinforce(learning_rate)

    def step(
        self, activation: Activation, chosen: int, reward_with: float, reward_without: float, **given: str | None
    ) -> EdgeStep:
        """Return the step for one question."""
        return self._learner.step(activation, chosen, reward_with, 0.0, **given)


@dataclass(frozen=True)
class Trained:
    """What came of training."""

    kept: Kept
    how: WeightsArm
    """What the arm comes to, with what was asked for instead of its own."""
    updates: int
    """Steps, those with a gap of 0 included."""
    rollouts: int
    """Charged for training, over all epochs: both sides, or one where there is no baseline."""
    gaps: tuple[float, ...]
    """Mean gap of each epoch, of strategies as they were drawn."""
    nonzero: float
    """Share of steps that changed weights."""
    largest: float
    """Mean probability of the strategies that were drawn: near 1 nothing else is tried."""
    gradient: float
    """Mean of the squared length of gap x gradient: estimators with the same mean differ by their variance (D6)."""
    val: tuple[Measured, ...]
    """Of weights as they were before the first epoch and after each."""
    failures: dict[str, int] = field(default_factory=dict)

    def payload(self) -> dict[str, JsonValue]:
        """Return it as one JSON object."""
        made: dict[str, Any] = {**asdict(self), "kept": str(self.kept.folder), "made": asdict(self.kept.made)}
        return {**made, "val": [each.payload() for each in self.val]}

    def lines(self) -> list[str]:
        """Return it for a person to read."""
        gaps = "  ".join(f"{gap:+.3f}" for gap in self.gaps)
        val = "  ".join(f"{100 * each.score:.1f}" for each in self.val)
        return [
            f"{self.updates} steps, {self.rollouts} rollouts; {100 * self.nonzero:.0f} % of the steps changed weights",
            f"mean gap of each epoch: {gaps}",
            f"validation, %, before and after each epoch: {val}",
            f"mean probability of what was tried: {self.largest:.2f}",
            *([f"failures: {self.failures}"] if self.failures else []),
            f"graph: {self.kept.folder}",
        ]


def train(
    folder: Path, start: Kept, settings: WeightsSettings, model: BaseChatModel, *, say: Say = lambda line: None
) -> Trained:
    """Train the weights of a graph in `folder`, and keep it there; a folder with some of it done is gone on with."""
    arm = settings.of_arm()
    tasks = questions("weights", arm.queries, settings.seed)
    checked = questions("val", settings.val, settings.seed)
    failures: Counter[str] = Counter()
    made = replace(start.made, reading=replace(arm.reading, machine=start.made.reading.machine))
    with open_graph(folder / HOME, made.reading) as graph:
        if not graph.queries(scope=SCOPE):
            with start.lines() as lines:
                graph.import_(lines, scope=SCOPE)
        val = _Validation(folder / "val.jsonl", graph, checked, model, settings.seed)
        val.measure(0)
        for epoch in range(arm.epochs):
            failures.update(_epoch(epoch, graph, tasks, settings, model, folder / LOG, say))
            graph.snapshot(scope=SCOPE)
            val.measure(epoch + 1)
        updates = graph.updates(scope=SCOPE)
        rollouts = _rollouts(updates, arm)
        made = replace(made, weights_arm=settings.arm, weight_rollouts=rollouts)
        draw(folder, updates, val.found)
        return Trained(
            kept=keep(folder, graph, made, start.trajectories()),
            how=arm,
            updates=len(updates),
            rollouts=rollouts,
            gaps=tuple(_mean([u.gap for u in updates if u.run_id == _run_id(e)]) for e in range(arm.epochs)),
            nonzero=_mean([float(update.gap != 0) for update in updates]),
            largest=_mean([update.probability for update in updates]),
            gradient=_mean([(update.gap * update.gradient_norm) ** 2 for update in updates]),
            val=tuple(val.found),
            failures=dict(failures),
        )


def _epoch(
    epoch: int,
    graph: StrategyGraph,
    tasks: Sequence[FSMQATask],
    settings: WeightsSettings,
    model: BaseChatModel,
    log: Path,
    say: Say,
) -> Counter[str]:
    """Try strategies out on all questions in an order of this epoch, those left out that have a step. Return what failed, by kind."""
    arm, run, seed = settings.of_arm(), _run_id(epoch), 1_000 * settings.seed + epoch
    tried = {(str(u.query_id), u.strategy_id) for u in graph.updates(scope=SCOPE) if u.run_id == run}
    done = set() if arm.every else {query for query, _ in tried}
    pairing = paired_rollouts(
        Episodes.of(model, tasks, seed),
        arm.learner(),
        samples=arm.samples,
        seed=seed,
        profile="none",
        run=run,
        parallel=2 * arm.samples * settings.at_once,
        every=arm.every,
        tried=tried,
    )
    machine = create_weights_graph(pairing, graph, scope=SCOPE, batch=settings.at_once)
    order = [tasks[place] for place in np.random.default_rng([settings.seed, epoch]).permutation(len(tasks))]
    failures: Counter[str] = Counter()
    for place in range(0, len(order), settings.at_once):  # batches stay as they are when some of it is done
        batch = [query_task(task) for task in order[place : place + settings.at_once] if task.id not in done]
        if not batch:
            continue
        failures.update(each.kind for each in machine.invoke({"queries": batch})["failures"])
        over = min(place + settings.at_once, len(order))
        if over // CHUNK > place // CHUNK or over == len(order):
            write_log(log, graph)
            say(f"epoch {epoch + 1}: {over} of {len(order)} questions")
    return failures


def _run_id(epoch: int) -> str:
    return f"weights-{epoch}"


def _rollouts(updates: Sequence[WeightUpdate], arm: WeightsArm) -> int:
    """Return how many rollouts the steps took: both sides, the one without only once for a question and epoch."""
    without = 0 if arm.estimator == "with-only" else len({(update.run_id, update.query_id) for update in updates})
    return arm.samples * (len(updates) + without)


class _Validation:
    """Measures the graph on questions of `val` before and after each epoch; what was measured is in a file, and stays."""

    def __init__(
        self, file: Path, graph: StrategyGraph, tasks: Sequence[FSMQATask], model: BaseChatModel, seed: int
    ) -> None:
        self._file = file
        self._graph = graph
        self._tasks = tasks
        self._model = model
        self._seed = seed
        rows = file.read_text().splitlines() if file.exists() else []
        self.found = [Measured(**json.loads(row)) for row in rows]

    def measure(self, number: int) -> None:
        """Measure, unless it was done."""
        if number < len(self.found) or not self._tasks:
            return
        given = advise("trained", self._graph, self._tasks, k=SHOWN, seed=self._seed)
        self.found.append(measured(self._model, self._tasks, given, seed=self._seed))
        self._file.write_text("".join(f"{json.dumps(each.payload())}\n" for each in self.found))


def write_log(file: Path, graph: StrategyGraph) -> None:
    """Write every step that was taken, one line each, from the graph itself: a run that was cut off has no line too many."""
    names = {each.id: each.summary for each in graph.strategies(scope=SCOPE)}
    partial = file.with_name(f".{file.name}")
    with partial.open("w") as out:
        for number, update in enumerate(graph.updates(scope=SCOPE), 1):
            row = {
                "step": number,
                "epoch": int(str(update.run_id).rpartition("-")[2]) + 1,
                "query_id": update.query_id,
                "strategy": names.get(update.strategy_id, str(update.strategy_id)),
                "probability": update.probability,
                "reward_with": update.reward_with,
                "reward_without": update.reward_without,
                "gap": update.gap,
                "gradient_norm": update.gradient_norm,
                "version": update.version,
            }
            out.write(json.dumps(row) + "\n")
    os.replace(partial, file)


def draw(folder: Path, updates: Sequence[WeightUpdate], val: Sequence[Measured]) -> None:
    """Draw the mean gap and the probability of what was tried over the steps, and the validation, into `curves.png`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    gaps, tried, scores = figure.subplots(1, 3)
    width = max(CHUNK, len(updates) // POINTS)
    for axes, title, values in (
        (gaps, "reward gap", [update.gap for update in updates]),
        (tried, "probability of the one tried", [update.probability for update in updates]),
    ):
        places = range(0, len(values), width)
        axes.plot([place + width / 2 for place in places], [_mean(values[place : place + width]) for place in places])
        axes.set(title=title, xlabel=f"step (means of {width})")
    gaps.axhline(0, color="0.8", zorder=0)
    scores.plot(range(len(val)), [each.score for each in val], marker="o")
    scores.set(title="validation, exact match", xlabel="epoch", ylim=(0, 1), xticks=range(max(1, len(val))))
    figure.savefig(folder / "curves.png", dpi=80)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0

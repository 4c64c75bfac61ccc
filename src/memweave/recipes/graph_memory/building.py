"""The recipe `graph-memory-build`: machine A over the build split of FSM-QA; the policy plays without advice (specification, 2.4)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from langchain_core.language_models import BaseChatModel
from pydantic import JsonValue

from memweave.agents.cognition import load_machine
from memweave.agents.path_mapper import RuleMapper
from memweave.graph_records import NewStrategy, Principle, StrategyKind
from memweave.graphs.graph_memory_build import SAMPLES, create_build_graph
from memweave.graphs.graph_memory_induction import Taught
from memweave.memory_stores.strategy_graph import StrategyGraph
from memweave.recipes.graph_memory.advising import acts, random_advice
from memweave.recipes.graph_memory.keeping import HOME, SCOPE, Kept, Made, Reading, keep, open_graph
from memweave.recipes.graph_memory.rollouts import Episodes, query_task, questions
from memweave.tracing import Trace

Say = Callable[[str], object]
CHUNK: Final = 40
"""Questions between two lines of progress."""


@dataclass(frozen=True, kw_only=True)
class BuildArm:
    """What a graph is built with, beside the policy."""

    machine: str = "cognitive"
    positive: bool = False
    """Whether questions that were only answered rightly teach something too (B5)."""
    injected: float = 0.0
    """Share of strategies that are random, in [0, 1): a probe that section 7 allows, marked `injected` in their metadata."""


BUILD_ARMS: Final[dict[str, BuildArm]] = {
    "faithful": BuildArm(),
    "positive": BuildArm(positive=True),
    "coarse": BuildArm(machine="coarse"),
    "probe": BuildArm(injected=0.3),
}
"""faithful: algorithm 1.  positive: with positive distillation.  coarse: the machine of 8 states (B1).  probe: three strategies in ten are
random ones."""


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """How much is played."""

    arm: str = "faithful"
    seed: int = 0
    """Of the questions, of what searches find and of choices."""
    queries: int | None = None
    """By default all of the build split."""
    samples: int = SAMPLES
    """Rollouts of a question."""
    at_once: int = 4
    """Questions whose rollouts are made at the same time."""


@dataclass(frozen=True)
class Built:
    """What came of building."""

    kept: Kept
    queries: int
    rollouts: int
    right: float
    """Share of rollouts that were right."""
    paths: int
    strategies: tuple[str, ...]
    """Their summaries."""
    injected: int
    """How many of them are random ones."""
    edges: int
    decisions: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)

    def payload(self) -> dict[str, JsonValue]:
        """Return it as one JSON object."""
        made: dict[str, Any] = {**asdict(self), "kept": str(self.kept.folder), "made": asdict(self.kept.made)}
        return made

    def lines(self) -> list[str]:
        """Return it for a person to read."""
        cases = ", ".join(f"{number} {name}" for name, number in sorted(self.decisions.items()))
        return [
            f"{self.queries} questions, {self.rollouts} rollouts, {100 * self.right:.1f} % of them right",
            f"{self.paths} paths, {len(self.strategies)} strategies, {self.edges} edges; questions: {cases}",
            *([f"failures: {self.failures}"] if self.failures else []),
            f"graph: {self.kept.folder}",
        ]


class Trajectories:
    """Keeps one right run of each question as text (a `TraceKeeper`): what raw memory shows instead of strategies."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.right = 0
        self.played = 0

    def add(self, trace: Trace) -> UUID:
        """Look at a trace."""
        self.played += 1
        if trace.score is not None and trace.score.value == 1.0 and trace.group is not None:
            self.right += 1
            self.found.setdefault(trace.group, _text(trace))
        return trace.id

    async def aadd(self, trace: Trace) -> UUID:
        """Look at a trace."""
        return self.add(trace)


def _text(trace: Trace) -> str:
    """Return what was asked, said and found, on one line."""
    last = trace.generations[-1]
    said = [*(message.text for message in last.messages), last.reply]
    return " ".join(" ".join(text.split()) for text in said if text)


def build(
    folder: Path, settings: BuildSettings, model: BaseChatModel, *, policy: str = "base", say: Say = lambda line: None
) -> Built:
    """Build a graph in `folder`, where nothing of one is, and keep it there."""
    arm = BUILD_ARMS[settings.arm]
    machine = load_machine(arm.machine)
    tasks = questions("build", settings.queries, settings.seed)
    keeper, reading = Trajectories(), Reading(machine=arm.machine)
    rows: list[Taught] = []
    failures: Counter[str] = Counter()
    with open_graph(folder / HOME, reading) as graph:
        building = create_build_graph(
            Episodes.of(model, tasks, settings.seed),
            graph,
            scope=SCOPE,
            mapper=RuleMapper(machine),
            samples=settings.samples,
            batch=settings.at_once,
            positive=arm.positive,
            seed=settings.seed,
            parallel=settings.at_once * settings.samples,
            traces=keeper,
        )
        for start in range(0, len(tasks), CHUNK):
            found = building.invoke({"queries": [query_task(task) for task in tasks[start : start + CHUNK]]})
            rows += found["rows"]
            failures.update(each.kind for each in found["failures"])
            say(f"built from {start + len(found['rows'])} of {len(tasks)} questions")
        injected = _inject(graph, arm.injected, settings.seed)
        made = Made(
            seed=settings.seed,
            build_arm=settings.arm,
            build_rollouts=keeper.played,
            reading=reading,
            policy=policy,
        )
        return Built(
            kept=keep(folder, graph, made, keeper.found),
            queries=len(tasks),
            rollouts=keeper.played,
            right=keeper.right / max(1, keeper.played),
            paths=len(graph.paths(scope=SCOPE)),
            strategies=tuple(each.summary for each in graph.strategies(scope=SCOPE)),
            injected=injected,
            edges=len(graph.edges(scope=SCOPE)),
            decisions=dict(Counter(row.decision for row in rows)),
            failures=dict(failures),
        )


def _inject(graph: StrategyGraph, share: float, seed: int) -> int:
    """Write random strategies until they are this share, and link each to as many paths as the others have; return how many."""
    written = graph.strategies(scope=SCOPE)
    paths = [path.id for path in graph.paths(scope=SCOPE)]
    number = round(share / (1 - share) * len(written))
    rng = random.Random(f"fsmqa-injected:{seed}")
    known = {each.summary for each in written}
    linked = [each.evidence for each in written]
    made = 0
    while made < number and paths:
        new = random_strategy(rng)
        if new.summary in known:
            continue
        known.add(new.summary)
        own = rng.sample(paths, min(len(paths), max(2, 2 * rng.choice(linked))))
        graph.write(new, own, scope=SCOPE, reason="a random strategy, injected as a probe", actor="experiment")
        made += 1
    return made


def random_strategy(rng: random.Random) -> NewStrategy:
    """Return a strategy as the rules write them, with a random situation and choice."""
    (piece,) = random_advice(rng, 1)
    words = acts()
    summary = f"When {piece.when}, consider {words[piece.take[0]]}."
    return NewStrategy(
        summary=summary,
        principles=(Principle(text=summary, score=60),),
        kind=StrategyKind.CONTRAST,
        score=60,
        metadata={"injected": True},
    )

"""The whole of graph memory on BabyAI: build, weights, and missions that were used for neither, with advice of several kinds and with none.

    study = run_study(StudySettings(seeds=3))
    study.arms["trained, k = 1"].score, study.gains["trained, k = 1"].low

The machines are those of `memweave.graphs`, the rules those of `agents.babyai_paths` and `RuleStrategist`. A script plays where no model
is given.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from langchain_core.language_models import BaseChatModel

from memweave.agents.babyai_paths import BabyAIMapper
from memweave.agents.rendering import Profile
from memweave.agents.strategist import RULE_MATCH
from memweave.errors import InputError, SettingsError
from memweave.graphs.graph_memory_build import create_build_graph
from memweave.graphs.graph_memory_guidance import Advisor
from memweave.graphs.graph_memory_pairing import paired_rollouts
from memweave.graphs.graph_memory_play import Job, Player, QueryTask, name_of
from memweave.graphs.graph_memory_state import Guidance
from memweave.graphs.graph_memory_weights import create_weights_graph
from memweave.memory_stores.strategy_graph import Rank, StrategyGraph, StrategySettings, open_strategies
from memweave.metrics import Interval, hierarchical_bootstrap, paired_bootstrap
from memweave.models import model_name
from memweave.recipes.babyai_strategies.missions import LEVELS, STEPS, Playing, missions
from memweave.recipes.babyai_strategies.script import BASE, BabyAIScript
from memweave.records import Scope
from memweave.trainers.edge_weights import Reinforce

ARMS: Final[Mapping[str, Rank]] = {
    "random": "random",
    "similarity": "similarity",
    "uniform": "uniform",
    "trained": "weights",
}
"""Kinds of advice beside none: what it is ranked by. All of them see the same strategies."""
NONE: Final = "none"

Report = Callable[[str, int, int], object]
"""Called with a stage, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """How much is played, and how. Numbers of missions are of each level and seed."""

    levels: tuple[str, ...] = LEVELS
    seeds: int = 3
    build: int = 10
    samples: int = 4
    """Rollouts of a mission that is built from."""
    train: int = 30
    epochs: int = 1
    test: int = 10
    k: tuple[int, ...] = (1, 3)
    arms: tuple[str, ...] = tuple(ARMS)
    steps: int = STEPS
    learning_rate: float = 0.1
    neighbours: int = 8
    compliance: float = BASE.compliance
    """Of the script."""

    def __post_init__(self) -> None:
        counts = {
            name: getattr(self, name) for name in ("seeds", "build", "samples", "train", "epochs", "test", "steps")
        }
        if low := [f"{name} = {value}" for name, value in counts.items() if value < 1]:
            raise SettingsError(f"{', '.join(low)}: give 1 at least")
        if not self.levels or not self.k or min(self.k) < 1:
            raise SettingsError("give at least one level, and k of 1 at least")
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise SettingsError(f"there is no advice {unknown[0]!r}. There are: {', '.join(ARMS)}")
        if not 0 <= self.compliance <= 1:
            raise SettingsError(f"compliance = {self.compliance}: give a probability")


@dataclass(frozen=True)
class ArmResult:
    """Missions that were fulfilled with one kind of advice."""

    score: float
    """Share, in [0, 1]."""
    low: float
    high: float
    """95 % bootstrap interval: seeds, then missions."""
    levels: Mapping[str, float]
    won: tuple[str, ...]
    """Per seed, one `1` or `0` per mission, in order."""


@dataclass(frozen=True)
class SeedResult:
    """What was built and learned with one seed."""

    strategies: tuple[str, ...]
    """Their summaries."""
    paths: int
    failures: Mapping[str, int]
    """What went wrong on the way, by kind."""
    pairs: int
    """Strategies that were tried out."""
    moved: int
    """Pairs with a gap, which move the weights."""
    mean_gap: float | None
    raised: tuple[tuple[str, float], ...]
    """Summaries, with how far the mean weight of the paths' edges to them is from where it began; most raised first."""
    rollouts: int


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What a study found."""

    world: str = "babyai"
    settings: StudySettings
    policy: str
    arms: Mapping[str, ArmResult]
    gains: Mapping[str, Interval]
    """Difference to no advice, in [-1, 1], with its paired 95 % interval; and of `trained` to the other kinds."""
    seeds: tuple[SeedResult, ...]
    seconds: float

    def payload(self) -> dict[str, object]:
        """Return this as one JSON object."""
        made = asdict(self)
        made["gains"] = {name: gain._asdict() for name, gain in self.gains.items()}
        return made


def run_study(
    settings: StudySettings | None = None, model: BaseChatModel | None = None, *, report: Report | None = None
) -> StudyResult:
    """Return what advice of each kind is worth.

    model: plays instead of the script.  Raises `UnavailableError` when it cannot be reached, `InputError` for a level that there is not, or
    one without as many missions, `NotInstalledError` without minigrid.
    """
    given, began = settings or StudySettings(), time.perf_counter()
    won: dict[str, list[list[float]]] = {}
    built: list[SeedResult] = []
    families: list[str] = []
    for seed in range(given.seeds):
        playing = Playing(model or BabyAIScript(compliance=given.compliance, seed=seed), steps=given.steps)
        of_arm, result, families = asyncio.run(_Seed(given, seed, playing, report).run())
        built.append(result)
        for name, scores in of_arm.items():
            won.setdefault(name, []).append(scores)
    return StudyResult(
        settings=given,
        policy="script" if model is None else model_name(model),
        arms={name: _arm(scores, families) for name, scores in won.items()},
        gains=_gains(won),
        seeds=tuple(built),
        seconds=time.perf_counter() - began,
    )


@dataclass(frozen=True)
class _Seed:
    """One seed of a study."""

    settings: StudySettings
    seed: int
    playing: Playing
    report: Report | None

    async def run(self) -> tuple[dict[str, list[float]], SeedResult, list[str]]:
        """Return per arm what each test mission was worth, what was learned, and the level of each mission."""
        given, known = self.settings, set[str]()
        build = missions("build", given.build, seed=self.seed, levels=given.levels, known=known)
        train = missions("weights", given.train, seed=self.seed, levels=given.levels, known=known)
        test = missions("test", given.test, seed=self.seed, levels=given.levels, known=known)
        machine = BabyAIMapper().machine
        graph = StrategySettings(machine=machine.label, match_threshold=RULE_MATCH, neighbours=given.neighbours)
        with (
            TemporaryDirectory(prefix="memweave-babyai-") as folder,
            open_strategies(folder, settings=graph, embedding="hashing") as memory,
        ):
            found = await self._learned(memory, build, train)
            played: dict[tuple[str, str | None], float] = {}
            scores = {NONE: await self._tested(memory, test, NONE, None, 0, played)}
            for arm in given.arms:
                for k in given.k:
                    scores[f"{arm}, k = {k}"] = await self._tested(memory, test, arm, ARMS[arm], k, played)
        found = replace(found, rollouts=found.rollouts + len(played))
        return scores, found, [str(task.family) for task in test]

    async def _learned(self, memory: StrategyGraph, build: list[QueryTask], train: list[QueryTask]) -> SeedResult:
        given, scope = self.settings, self._scope
        building = create_build_graph(
            self.playing, memory, scope=scope, mapper=BabyAIMapper(), samples=given.samples, seed=self.seed,
            run=f"build-{self.seed}", parallel=1,
        )  # fmt: skip
        built = await building.ainvoke({"queries": build})
        self._tell(1)
        pairing = paired_rollouts(
            self.playing, Reinforce(given.learning_rate), seed=self.seed, profile=self._profile,
            run=f"weights-{self.seed}", parallel=1,
        )  # fmt: skip
        training = create_weights_graph(pairing, memory, scope=scope, epochs=given.epochs)
        trained = await training.ainvoke({"queries": train})
        self._tell(2)
        gaps = [row.update.gap for row in trained["rows"]]
        kinds = [each.kind for each in (*built["failures"], *trained["failures"])]
        return SeedResult(
            strategies=tuple(each.summary for each in memory.strategies(scope=scope)),
            paths=len(memory.paths(scope=scope)),
            failures={kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
            pairs=len(gaps),
            moved=sum(gap != 0 for gap in gaps),
            mean_gap=fmean(gaps) if gaps else None,
            raised=_raised(memory, scope),
            rollouts=built["rollouts"] + trained["rollouts"],
        )

    async def _tested(
        self,
        memory: StrategyGraph,
        test: Sequence[QueryTask],
        arm: str,
        rank: Rank | None,
        k: int,
        played: dict[tuple[str, str | None], float],
    ) -> list[float]:
        """Return what missions are worth with this advice; every arm draws the same random numbers.

        played: by mission and advice. The script draws by these alone, so what it played once is not played again.
        """
        advisor = Advisor(profile=self._profile)
        given = [self._advice(memory, task, arm, rank, k, advisor) for task in test]
        names = [(name_of(task), each.text if each else None) for task, each in zip(test, given, strict=True)]
        open_ = [
            Job(task, "eval", 0, guidance=each)
            for task, each, name in zip(test, given, names, strict=True)
            if name not in played or not self.playing.scripted
        ]
        done = await Player(self.playing, f"test-{self.seed}", parallel=1).aplay(open_)
        if failed := [each.failure for each in done if each.failure is not None]:
            raise InputError(f"{len(failed)} missions could not be played. First: {failed[0].kind}, {failed[0].reason}")
        for job, each in zip(open_, done, strict=True):
            played[name_of(job.task), job.guidance.text if job.guidance else None] = each.reward or 0.0
        self._tell(3)
        return [played[name] for name in names]

    def _advice(
        self, memory: StrategyGraph, task: QueryTask, arm: str, rank: Rank | None, k: int, advisor: Advisor
    ) -> Guidance | None:
        if rank is None:
            return None
        digest = hashlib.blake2b(f"{self.seed}\0{arm}\0{name_of(task)}".encode(), digest_size=16).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "big"))
        found = memory.top(task.text, scope=self._scope, k=k, exclude=name_of(task), rank=rank, rng=rng)
        return advisor.advise(found)[0]

    @property
    def _scope(self) -> Scope:
        return Scope(user=f"babyai-{self.seed}")

    @property
    def _profile(self) -> Profile:
        return "none" if self.playing.scripted else "full"

    def _tell(self, stage: int) -> None:
        if self.report is not None:
            self.report(f"seed {self.seed}", stage, 3)


def _raised(memory: StrategyGraph, scope: Scope) -> tuple[tuple[str, float], ...]:
    start = memory.settings.initial_weight
    edges = memory.edges(scope=scope)
    found = []
    for strategy in memory.strategies(scope=scope):
        weights = [edge.weight for edge in edges if edge.target == strategy.id]
        if weights:
            found.append((strategy.summary, round(fmean(weights) - start, 3)))
    return tuple(sorted(found, key=lambda each: -each[1]))


def _arm(scores: list[list[float]], families: Sequence[str]) -> ArmResult:
    interval = hierarchical_bootstrap(scores)
    levels = {
        level: fmean(mark for seed in scores for mark, own in zip(seed, families, strict=True) if own == level)
        for level in dict.fromkeys(families)
    }
    won = tuple("".join(str(int(mark)) for mark in seed) for seed in scores)
    return ArmResult(interval.mean, interval.low, interval.high, levels, won)


def _gains(won: Mapping[str, list[list[float]]]) -> dict[str, Interval]:
    found = {f"{name} - {NONE}": paired_bootstrap(scores, won[NONE]) for name, scores in won.items() if name != NONE}
    for name, scores in won.items():
        arm, _, shown = name.partition(", ")
        if arm != "trained":
            continue
        for other in ("uniform", "random", "similarity"):
            if (beside := f"{other}, {shown}") in won:
                found[f"{name} - {other}"] = paired_bootstrap(scores, won[beside])
    return found

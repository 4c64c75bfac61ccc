"""What a run of graph memory leaves, and others take up: the graph, the trajectories that it was built from, and how both were made.

FOLDER/graph.jsonl            `StrategyGraph.export`; read as graph.jsonl.gz too
FOLDER/trajectories.jsonl     one right run of each question that had one, as text
FOLDER/graph.json             `Made`
FOLDER/memory/                the data folder that it was made in: `memweave strategies list --home FOLDER/memory --user fsmqa`
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from memweave.agents.cognition import load_machine
from memweave.agents.strategist import RULE_MATCH
from memweave.errors import FormatError, InputError
from memweave.memory_stores.strategy_graph import StrategyGraph, StrategySettings, open_strategies
from memweave.records import Scope

GRAPH: Final = "graph.jsonl"
PACKED: Final = "graph.jsonl.gz"
MADE: Final = "graph.json"
TRAJECTORIES: Final = "trajectories.jsonl"
HOME: Final = "memory"
SCOPE: Final = Scope(user="fsmqa")
EMBEDDING: Final = "hashing"
FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a graph is read: what is activated, and how probable each strategy is to be tried."""

    neighbours: int = 8
    """k of N_k(q)."""
    temperature: float = 1.0
    """Of p(m | q); 1 in the paper. It changes what is tried, not which strategies rank first."""
    degree_normalised: bool = False
    machine: str = "cognitive"

    def settings(self) -> StrategySettings:
        """Return the settings of the graph, for strategies that rules write."""
        return StrategySettings(
            machine=load_machine(self.machine).label,
            match_threshold=RULE_MATCH,
            neighbours=self.neighbours,
            temperature=self.temperature,
            degree_normalised=self.degree_normalised,
        )


@dataclass(frozen=True, kw_only=True)
class Made:
    """How a graph was made."""

    seed: int
    build_arm: str
    build_rollouts: int
    weights_arm: str | None = None
    """`None`: every weight is 1."""
    weight_rollouts: int = 0
    """Both sides of every pair."""
    reading: Reading = field(default_factory=Reading)
    policy: str = "base"
    """Who played: the hash of a policy's weights, or a name."""

    @property
    def interactions(self) -> int:
        """Return the episodes that it took: build and 2 x weights (specification, section 7, D3)."""
        return self.build_rollouts + self.weight_rollouts


@dataclass(frozen=True)
class Kept:
    """A graph in a folder, as a run has left it."""

    folder: Path
    made: Made

    @classmethod
    def find(cls, place: Path) -> Kept:
        """Return the graph in a folder, or that a file of a folder belongs to. Raises `InputError`, `FormatError`."""
        folder = place if place.is_dir() else place.parent
        if not (folder / MADE).is_file() or not any((folder / name).is_file() for name in (GRAPH, PACKED)):
            raise InputError(
                f"{place} holds no graph of FSM-QA. Make one: memweave train graph-memory-weights --out FOLDER"
            )
        return cls(folder, _read(folder / MADE))

    @contextmanager
    def opened(self) -> Iterator[StrategyGraph]:
        """Open a copy of the graph, which is gone afterwards."""
        with TemporaryDirectory(prefix="memweave-fsmqa-") as home, open_graph(Path(home), self.made.reading) as graph:
            with self.lines() as lines:
                graph.import_(lines, scope=SCOPE)
            yield graph

    @contextmanager
    def lines(self) -> Iterator[Iterable[str]]:
        """Open the file of the graph."""
        plain = self.folder / GRAPH
        with plain.open() if plain.exists() else gzip.open(self.folder / PACKED, "rt") as lines:
            yield lines

    def trajectories(self) -> dict[str, str]:
        """Return the right runs that were kept, by the id of their question."""
        file = self.folder / TRAJECTORIES
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return {str(row["query_id"]): str(row["text"]) for row in rows}


def open_graph(home: Path, reading: Reading) -> StrategyGraph:
    """Open the graph in a data folder."""
    return open_strategies(home, settings=reading.settings(), embedding=EMBEDDING)


def keep(folder: Path, graph: StrategyGraph, made: Made, trajectories: dict[str, str]) -> Kept:
    """Write a graph, and how it was made, into a folder; `graph.json` comes last, so what has it is whole."""
    _replace(folder / GRAPH, "".join(f"{line}\n" for line in graph.export(scope=SCOPE)))
    rows = (json.dumps({"query_id": name, "text": text}) for name, text in trajectories.items())
    _replace(folder / TRAJECTORIES, "".join(f"{row}\n" for row in rows))
    _replace(folder / MADE, json.dumps({"format": FORMAT, **asdict(made)}, indent=2) + "\n")
    return Kept(folder, made)


def _replace(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}")
    partial.write_text(text)
    os.replace(partial, file)


def _read(file: Path) -> Made:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
        version = found.pop("format")
        if version == FORMAT:
            known = {each.name for each in fields(Made)}
            return Made(**{**{k: v for k, v in found.items() if k in known}, "reading": Reading(**found["reading"])})
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise FormatError(f"{file} cannot be read as a graph's description. Make the graph anew") from error
    raise FormatError(f"{file} has format {version}; this version of memweave reads {FORMAT}")

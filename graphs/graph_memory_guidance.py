"""From the graph of strategies to what a prompt says: the graph, opened when it is first needed, and strategies as advice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from memweave.agents.advice import BUDGET, render_advice
from memweave.agents.cognition import Machine
from memweave.agents.rendering import Profile
from memweave.errors import SettingsError
from memweave.graphs.graph_memory_state import Guidance, ShownStrategy
from memweave.memory_stores.strategy_graph import ScoredStrategy, StrategyGraph

StrategySource = StrategyGraph | Callable[[], StrategyGraph]
"""A graph of strategies, or how to open it when it is first needed."""

_OPENING: Final = "<advice>\n"
_CLOSING: Final = "\n</advice>"


class Strategies:
    """A graph of strategies that is opened on first use, once, and never on the event loop.

    machine: whose paths are added to it, if any are; `get` raises `SettingsError` for a graph of another machine's paths.
    """

    def __init__(self, source: StrategySource, machine: Machine | None = None) -> None:
        self._source = source
        self._machine = machine
        self._lock = threading.Lock()
        if isinstance(source, StrategyGraph):
            self._check(source)

    def get(self) -> StrategyGraph:
        """Return the graph."""
        with self._lock:
            if not isinstance(self._source, StrategyGraph):
                opened = self._source()
                self._check(opened)
                self._source = opened
            return self._source

    async def aget(self) -> StrategyGraph:
        """Return the graph; opening it happens in a thread."""
        return self._source if isinstance(self._source, StrategyGraph) else await asyncio.to_thread(self.get)

    def _check(self, graph: StrategyGraph) -> None:
        if self._machine is not None:
            check_machine(graph, self._machine)


def check_machine(graph: StrategyGraph, machine: Machine) -> None:
    """Raise `SettingsError` when a graph holds paths of another machine."""
    built = graph.settings.machine
    if built not in (machine.name, machine.label):
        raise SettingsError(
            f"the graph holds paths of the machine {built!r}, and the mapper maps to {machine.label!r}: give both the same one"
        )


@dataclass(frozen=True)
class Advisor:
    """Renders strategies into a prompt."""

    chars: int = BUDGET
    """Most characters of the advice, its frame included."""
    profile: Profile = "full"
    """`none`, for policies that were trained on it: the lines in their tags, and no word around them."""

    def __post_init__(self) -> None:
        if self.chars < 1:
            raise SettingsError(f"advice_chars = {self.chars}: give 1 at least, or k = 0 for no advice")

    def advise(self, found: Sequence[ScoredStrategy]) -> tuple[Guidance | None, tuple[str, ...]]:
        """Return strategies as advice, best first, and why some of them are left out; no advice when none is there, or fits."""
        framed = self.profile == "full"
        frame = 0 if framed else len(_OPENING) + len(_CLOSING)
        advice = render_advice([each.strategy for each in found], budget=max(1, self.chars - frame), framed=framed)
        if not advice.text:
            return None, advice.left_out
        known = {each.strategy.id: each for each in found}
        text = advice.text if framed else f"{_OPENING}{advice.text}{_CLOSING}"
        shown = tuple(_shown(known[each]) for each in advice.shown)
        return Guidance(text=text, strategies=shown, left_out=advice.left_out), advice.left_out


def _shown(found: ScoredStrategy) -> ShownStrategy:
    return ShownStrategy(
        id=found.strategy.id,
        version=found.strategy.version,
        summary=found.strategy.summary,
        relevance=found.relevance,
        probability=found.probability,
    )

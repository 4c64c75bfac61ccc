"""What a player of BabyAI has been told so far: mission, advice, what was seen, and what it is about to do by its own words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from memweave.agents.cognition import load_machine
from memweave.agents.tool_protocol import read_text_turn
from memweave.recipes.lesson_rows import Said
from memweave.worlds.babyai_words import FORWARD, TURNS, Cell, Chart, Mission, read_mission, read_view

OVER: Final = "The episode is over"
_CONSIDER: Final = re.compile(r"When ([^.]*?), consider ([^.]+?)(?: instead of ([^.]+?))?\.")


class Plan(StrEnum):
    """What a turn follows, in the words of its thought."""

    LOOK = "look around"
    WALK = "walk about"
    DOOR = "open a door"
    KEY = "fetch a key"
    TRY = "try the door"
    GO = "go to it"
    AROUND = "go around"
    AGAIN = "once more"
    LEAVE = "give up"


STATES: Final[Mapping[str, Plan]] = {
    "LookAround": Plan.LOOK,
    "WalkAbout": Plan.WALK,
    "OpenDoor": Plan.DOOR,
    "FetchKey": Plan.KEY,
    "TryLocked": Plan.TRY,
    "Approach": Plan.GO,
    "GoAround": Plan.AROUND,
    "TryAgain": Plan.AGAIN,
    "GiveUp": Plan.LEAVE,
}
"""What following advice for a choice of the machine means."""


@dataclass(frozen=True)
class Advice:
    """One piece of advice: `When <situation>, consider <choice>.`"""

    text: str
    finding: str | None
    """State of the machine that the situation names; `None` when it names none."""
    plan: Plan


@dataclass(frozen=True)
class Seen:
    """What a player knows when it is its turn."""

    mission: Mission
    chart: Chart
    advice: tuple[Advice, ...]
    done: tuple[tuple[Plan | None, str], ...]
    """Its own actions, oldest first, each with the plan that it followed."""
    cells: tuple[Cell, ...]
    """Where it stood before each of them."""
    over: bool

    @property
    def plan(self) -> Plan | None:
        """Return the plan of the last action."""
        return self.done[-1][0] if self.done else None

    @property
    def action(self) -> str | None:
        """Return the last action."""
        return self.done[-1][1] if self.done else None

    @property
    def since(self) -> int:
        """Return for how many actions the plan has been followed."""
        plans = [plan for plan, _ in self.done]
        return next((i for i, plan in enumerate(reversed(plans)) if plan != self.plan), len(plans))

    @property
    def blocked(self) -> bool:
        """Return whether the last action was a step that had no effect."""
        return self.action == FORWARD and self.chart.view.still

    @property
    def looked(self) -> bool:
        """Return whether everything was looked at from where the agent stands."""
        here = [
            action in TURNS and plan is Plan.LOOK
            for (plan, action), cell in zip(self.done, self.cells, strict=True)
            if cell == self.chart.at
        ]
        return sum(here) >= 3

    @property
    def finding(self) -> str:
        """Return what it has met, as a state of the machine."""
        if self.blocked and self.plan in (Plan.GO, Plan.AGAIN):
            return "WayBlocked"
        if self.chart.locked(self.mission):
            return "DoorLocked"
        return "GoalKnown" if self.chart.goals(self.mission) else "GoalUnknown"


def see(said: Sequence[Said]) -> Seen:
    """Return what messages show. Raises `ValueError` when they hold no mission of BabyAI."""
    asked = "\n".join(text for role, text in said if role == "user" and not text.startswith("<tool_response>"))
    mission, view = read_mission(asked), read_view(asked)
    if mission is None or view is None:
        raise ValueError(f"this is no mission of BabyAI: {asked:.200}")
    chart = Chart.begun(view)
    done: list[tuple[Plan | None, str]] = []
    asked_for: list[tuple[Plan | None, str]] = []
    cells: list[Cell] = []
    over = False
    for role, text in said:
        if role == "assistant":
            asked_for = list(_turn(text))
        elif asked_for and text.startswith("<tool_response>"):
            done.append(asked_for.pop(0))
            cells.append(chart.at)
            chart.take(done[-1][1], text)
            over = over or OVER in text
    return Seen(mission, chart, tuple(read_advice(asked)), tuple(done), tuple(cells), over)


@lru_cache(maxsize=1_024)
def _turn(text: str) -> tuple[tuple[Plan | None, str], ...]:
    turn = read_text_turn(text)
    plan = next((plan for plan in Plan if turn.think.startswith(plan)), None)
    return tuple((plan, str(call["args"].get("action", ""))) for call in turn.calls)


def read_advice(text: str) -> Iterator[Advice]:
    """Yield the advice in a text: one piece for each line that recommends a choice of the machine, in its order."""
    states = load_machine("babyai").states
    for line in text.splitlines():
        for found in _CONSIDER.finditer(line):
            plan = next((STATES[each.name] for each in states if each.act and each.act in found[2]), None)
            if plan is not None:
                met = [each.name for each in states if each.kind == "finding" and each.when and each.when in found[1]]
                yield Advice(found[0], met[0] if met else None, plan)
                break

"""What BabyAI's words say: missions and views, read back, and a chart of all that was seen from where the agent began.

    chart = Chart.begun(read_view(text)); chart.take("go forward", next_text)
    chart.goals(read_mission(text))                 # where something is that the mission names

The other direction of `memweave.worlds.babyai`. Only what was told is known; nothing here needs minigrid.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final, Literal, Self

from memweave.worlds.text_env import plain

Cell = tuple[int, int]
"""Steps to the east and to the south of where the episode began."""
Verb = Literal["go", "pick", "open", "put"]

HEADINGS: Final[Mapping[str, Cell]] = {"east": (1, 0), "south": (0, 1), "west": (-1, 0), "north": (0, -1)}
FORWARD: Final = "go forward"
TURNS: Final = ("turn left", "turn right")

_VERBS: Final[Mapping[str, Verb]] = {"go to": "go", "pick up": "pick", "open": "open", "put": "put"}
_MISSION: Final = re.compile(r"[Yy]our mission: ([^.\n]+)")
_NAMED: Final = re.compile(
    r"\b(?:a|an|the) (?:(red|green|blue|purple|yellow|grey) )?(door|key|ball|box|object)\b", re.IGNORECASE
)
_FACING: Final = re.compile(r"You face (east|south|west|north)\. You carry (?:nothing|an? (\w+) (\w+))\.")
_SEEN: Final = re.compile(
    r"\bAn? (?:(?:(open|closed|locked) )?(\w+) (\w+)|wall) is "
    r"(?:(right in front of you)|(\d+) steps? ahead(?: and (\d+) to the (left|right))?|(\d+) steps? to the (left|right))\."
)
_STILL: Final = "Nothing happened."


@dataclass(frozen=True)
class Thing:
    """An object, or what is asked for: no kind or color means any."""

    kind: str | None
    color: str | None
    state: str | None = None
    """Of a door: open, closed or locked."""

    def fits(self, other: Thing) -> bool:
        """Return whether `other` is such a thing, whatever its state."""
        return self.kind in (None, other.kind) and self.color in (None, other.color)


@dataclass(frozen=True)
class Mission:
    """What is to be done, as far as one thing after the other is told."""

    verb: Verb
    things: tuple[Thing, ...]
    """In the order in which they are named; at least one."""


@dataclass(frozen=True)
class View:
    """What one observation tells."""

    heading: str
    carried: Thing | None
    things: tuple[tuple[int, int, Thing], ...]
    """Steps ahead, steps aside (negative on the left), what is there."""
    walls: tuple[tuple[int, int], ...]
    still: bool
    """Whether the action before had no effect."""


@lru_cache(maxsize=4_096)
def read_mission(text: str) -> Mission | None:
    """Return the first mission in a text; `None` without one, or when it names nothing that BabyAI has."""
    said = _MISSION.search(text)
    named = (
        tuple(Thing(_kind(each[2]), each[1] and each[1].lower()) for each in _NAMED.finditer(said[1])) if said else ()
    )
    verbs = (
        sorted((said[1].lower().find(words), verb) for words, verb in _VERBS.items() if words in said[1].lower())
        if said
        else []
    )
    return Mission(verbs[0][1], named) if verbs and named else None


def _kind(word: str) -> str | None:
    return None if word.lower() == "object" else word.lower()


@lru_cache(maxsize=65_536)
def read_view(text: str) -> View | None:
    """Return what an observation tells, `None` for a text that is none (an action that there is not, for example)."""
    facing = _FACING.search(text)
    if facing is None:
        return None
    things, walls = [], []
    for found in _SEEN.finditer(text, facing.end()):
        state, color, kind, front, ahead, beside, side, alone, alone_side = found.groups()
        steps = 1 if front else int(ahead or 0)
        aside = int(beside or alone or 0) * (-1 if "left" in (side, alone_side) else 1)
        if kind is None:
            walls.append((steps, aside))
        else:
            things.append((steps, aside, Thing(kind, color, state)))
    carried = Thing(facing[3], facing[2]) if facing[3] else None
    return View(facing[1], carried, tuple(things), tuple(walls), _STILL in text[: facing.start()])


@dataclass
class Chart:
    """What was told so far, put together: dead reckoning from where the episode began."""

    view: View
    at: Cell = (0, 0)
    things: dict[Cell, Thing] = field(default_factory=dict)
    walls: set[Cell] = field(default_factory=set)
    """And other cells that could not be entered."""
    clear: set[Cell] = field(default_factory=set)
    """Cells straight ahead that were seen to be empty."""

    @classmethod
    def begun(cls, view: View) -> Self:
        """Return the chart of the first observation."""
        chart = cls(view)
        chart._note(view)
        return chart

    @property
    def front(self) -> Cell:
        """Return the cell in front of the agent."""
        return self.cell(1, 0)

    def cell(self, ahead: int, aside: int) -> Cell:
        """Return the cell so many steps ahead and aside (negative on the left)."""
        east, south = HEADINGS[self.view.heading]
        return self.at[0] + ahead * east - aside * south, self.at[1] + ahead * south + aside * east

    def take(self, action: str, text: str) -> None:
        """Go on with what an action led to. A text that tells no view changes nothing."""
        view, name = read_view(text), plain(action)
        if view is None:
            return
        if name == FORWARD and not view.still:
            self.at = self.front
        elif name == FORWARD and self.front not in self.things:
            self.walls.add(self.front)
        elif name == "pick up" and view.carried and not view.still:
            self.things.pop(self.front, None)
        self.view = view
        self._note(view)

    def _note(self, view: View) -> None:
        self.things.update({self.cell(ahead, aside): thing for ahead, aside, thing in view.things})
        self.walls.update(self.cell(ahead, aside) for ahead, aside in view.walls)
        ahead_of = [thing[0] for thing in view.things if not thing[1]] + [wall[0] for wall in view.walls if not wall[1]]
        for steps in range(1, min(ahead_of, default=1)):
            self.clear.add(self.cell(steps, 0))
            self.things.pop(self.cell(steps, 0), None)  # it is not there any more

    def imagined(self, action: str) -> Chart | None:
        """Return the chart after an action whose effect is sure, as far as can be told beforehand; `None` for another action."""
        if action == FORWARD and self.front in self.clear and self.free(self.front):
            return replace(self, at=self.front)
        if action not in TURNS:
            return None
        order = tuple(HEADINGS)
        heading = order[(order.index(self.view.heading) + (1 if action == "turn right" else -1)) % len(order)]
        return replace(self, view=replace(self.view, heading=heading, still=False))

    # what the mission is about

    def goals(self, mission: Mission) -> dict[Cell, Thing]:
        """Return what the mission is about at present, as far as it was seen: a door to be opened only while it is not open."""
        wanted = mission.things[0]
        if mission.verb == "put" and len(mission.things) > 1 and self.view.carried and wanted.fits(self.view.carried):
            wanted = mission.things[1]
        return {
            cell: thing
            for cell, thing in self.things.items()
            if wanted.fits(thing) and not (mission.verb == "open" and thing.state == "open")
        }

    def opens(self, door: Thing) -> bool:
        """Return whether the agent could open a door now: it is closed, or locked and its key carried."""
        return door.state == "closed" or (door.state == "locked" and self.view.carried == Thing("key", door.color))

    def locked(self, mission: Mission) -> dict[Cell, Thing]:
        """Return locked doors that seem to be in the way, their keys not carried: those that are the goal, or any while it is not seen."""
        among = self.goals(mission) or self.things
        return {cell: thing for cell, thing in among.items() if thing.state == "locked" and not self.opens(thing)}

    def doors(self) -> dict[Cell, Thing]:
        """Return the doors that the agent could open now."""
        return {cell: thing for cell, thing in self.things.items() if self.opens(thing)}

    def keys(self, mission: Mission) -> dict[Cell, Thing]:
        """Return the keys that were seen and are not the goal; those of locked doors in the way alone, when one is known."""
        found = {cell: thing for cell, thing in self.things.items() if thing.kind == "key"}
        found = {cell: thing for cell, thing in found.items() if cell not in self.goals(mission)}
        colors = {door.color for door in self.locked(mission).values()}
        return {cell: thing for cell, thing in found.items() if not colors or thing.color in colors}

    def free(self, cell: Cell) -> bool:
        """Return whether a cell may be entered, as far as is known."""
        thing = self.things.get(cell)
        return cell not in self.walls and (thing is None or thing.state == "open")


def beside(cell: Cell) -> Iterator[Cell]:
    """Yield the four cells around one."""
    for east, south in HEADINGS.values():
        yield cell[0] + east, cell[1] + south

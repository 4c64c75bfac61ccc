"""How the script of BabyAI carries out a plan: one action at a time, from what was seen alone."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

from memweave.recipes.babyai_strategies.seeing import Plan, Seen
from memweave.worlds.babyai_words import FORWARD, HEADINGS, Cell, Chart, beside

FAR: Final = 24
"""Steps from where the agent stands that are thought of when a way is looked for; what was not seen is taken for free."""
AT_ONCE: Final = 4
"""Actions of one turn."""
LEFT, RIGHT = "turn left", "turn right"
_ORDER: Final = tuple(HEADINGS)


def actions(seen: Seen, plan: Plan, rng: random.Random) -> list[str]:
    """Return the next actions of a plan that can be followed: one, and those after it as long as the effect of each is sure."""
    found = [action(seen, plan, rng)]
    while plan is not Plan.LOOK and len(found) < AT_ONCE:
        chart = seen.chart.imagined(found[-1])
        if chart is None or doorway(chart) or (plan is Plan.WALK and not chart.free(chart.front)):
            break
        seen = replace(seen, chart=chart)
        found.append(action(seen, plan, rng))
    return found


def action(seen: Seen, plan: Plan, rng: random.Random) -> str:
    """Return the next action of a plan that can be followed."""
    chart, mission = seen.chart, seen.mission
    match plan:
        case Plan.LOOK:
            return RIGHT
        case Plan.WALK:
            return _walk(seen, rng)
        case Plan.DOOR:
            through = doorway(chart)
            return FORWARD if through else _to(chart, chart.doors(), "toggle")
        case Plan.KEY:
            return _pick_up(chart, chart.keys(mission), _to)
        case Plan.TRY:
            return _to(chart, chart.locked(mission), "toggle")
    goals = chart.goals(mission)
    if mission.verb == "put" and chart.view.carried and mission.things[0].fits(chart.view.carried):
        return _put(chart, goals)
    way = _to if plan is Plan.AROUND else _straight
    if mission.verb in ("pick", "put"):
        return _pick_up(chart, goals, way)
    return way(chart, goals, "toggle" if mission.verb == "open" else "drop")


def doorway(chart: Chart) -> bool:
    """Return whether the agent stands in an open door, or right before one."""
    there = chart.things.get(chart.at), chart.things.get(chart.front)
    return any(thing is not None and thing.state == "open" for thing in there)


def nearest(chart: Chart, cells: Collection[Cell]) -> Cell:
    """Return the cell with the fewest steps to it, walls aside."""
    return min(cells, key=lambda cell: (_steps(chart.at, cell), cell))


def _steps(one: Cell, other: Cell) -> int:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


def _walk(seen: Seen, rng: random.Random) -> str:
    """Return a step ahead; a turn where there is none."""
    if seen.chart.free(seen.chart.front) and not seen.blocked:
        return FORWARD
    return rng.choice((LEFT, RIGHT))


def _pick_up(chart: Chart, cells: Collection[Cell], way: Callable[[Chart, Collection[Cell], str], str]) -> str:
    """Return the next action to pick something up; who carries something else puts it down first, where there is room."""
    if chart.view.carried and chart.free(chart.front) and not doorway(chart):
        return "drop"
    return way(chart, cells, "pick up")


def _put(chart: Chart, goals: Collection[Cell]) -> str:
    """Return the next action to put what is carried next to something."""
    if not goals:
        return RIGHT
    goal = nearest(chart, goals)
    places = [cell for cell in beside(goal) if chart.free(cell) and cell != chart.at]
    return _to(chart, places, "drop") if places else _to(chart, goals, "drop")


def _to(chart: Chart, cells: Collection[Cell], act: str) -> str:
    """Return the next action to stand before the nearest of some cells and act there, around what is in the way."""
    if chart.front in cells:
        return act
    way = _way(chart, cells)
    return _straight(chart, cells, act) if way is None else _toward(chart, way)


def _way(chart: Chart, cells: Collection[Cell]) -> Cell | None:
    """Return the next cell on the shortest way to one of `cells`; `None` without a way."""
    first: dict[Cell, Cell] = {chart.at: chart.at}
    waiting = deque([chart.at])
    while waiting:
        at = waiting.popleft()
        for cell in beside(at):
            origin = cell if at == chart.at else first[at]
            if cell in cells:
                return origin
            if cell not in first and chart.free(cell) and _steps(cell, chart.at) <= FAR:
                first[cell] = origin
                waiting.append(cell)
    return None


def _straight(chart: Chart, cells: Collection[Cell], act: str) -> str:
    """Return the next action towards the nearest cell as the crow flies, whatever is in the way."""
    if chart.front in cells:
        return act
    goal = nearest(chart, cells)
    east, south = goal[0] - chart.at[0], goal[1] - chart.at[1]
    one = (chart.at[0] + (east > 0) - (east < 0), chart.at[1])
    other = (chart.at[0], chart.at[1] + (south > 0) - (south < 0))
    ways = [cell for cell in ((one, other) if abs(east) >= abs(south) else (other, one)) if cell != chart.at]
    return _toward(chart, chart.front if chart.front in ways else ways[0])


def _toward(chart: Chart, cell: Cell) -> str:
    """Return the action that leads into a cell beside the agent: a turn, or a step."""
    if chart.front == cell:
        return FORWARD
    wanted = next(name for name, way in HEADINGS.items() if (chart.at[0] + way[0], chart.at[1] + way[1]) == cell)
    return LEFT if (_ORDER.index(chart.view.heading) - _ORDER.index(wanted)) % 4 == 1 else RIGHT

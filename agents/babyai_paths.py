"""From a run in BabyAI to a path through the machine `babyai`, by rules: what was met, and what was done about it.

    what the log tells                                            what the path says
    was the mission's goal seen? a locked door, and no key?       GoalKnown, GoalUnknown, DoorLocked
    three turns on the spot, or turns until the goal is seen      LookAround
    a door that is not the goal is opened                         OpenDoor, from when it was first seen, and the steps through it
    a key that is not the goal is picked up                       FetchKey, from when it was first seen
    a locked door is toggled without its key                      TryLocked
    any other step, the goal being known or not                   Approach, WalkAbout
    a step forward had no effect; then the same, or another       WayBlocked; TryAgain, GoAround
    the end of the run, and its reward                            GiveUp; Fulfilled, Unfulfilled and why

Only actions and observations count, in words; thoughts and the state of the grid do not. A path never depends on who played.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from memweave.agents.cognition import Machine, load_machine
from memweave.agents.path_mapper import Mapped, MappedPath, UnmappedRun
from memweave.agents.run_log import RunLog
from memweave.worlds.babyai_words import FORWARD, TURNS, Cell, Chart, Mission, read_mission, read_view
from memweave.worlds.text_env import plain

LOOK: Final = 3
"""Turns on the spot, in a row, with which somebody looks around."""
THROUGH: Final = 2
"""Steps forward after a door was opened that still belong to it."""
OVER: Final = "The episode is over:"
USED_UP: Final = "your steps are used up"


class BabyAIMapper:
    """Maps runs whose calls are BabyAI's actions. The same run always gets the same path."""

    def __init__(self) -> None:
        self._machine = load_machine("babyai")

    @property
    def machine(self) -> Machine:
        """Return whose paths they are."""
        return self._machine

    def map(self, run: RunLog) -> Mapped:
        """Return the path of a run, or why it has none: nobody verified it, or it tells of no mission."""
        if run.reward is None:
            return UnmappedRun(kind="no_reward", text="Nobody verified the run: it is neither a success nor a failure")
        mission, view = read_mission(run.question), read_view(run.question)
        if mission is None or view is None:
            return UnmappedRun(kind="no_fit", text="The question tells no mission of BabyAI, or not what is seen first")
        path = self._machine.canonical(Reading(run, mission, Chart.begun(view)).states())
        if problem := self._machine.problem(path):
            return UnmappedRun(
                kind="no_fit", text=f"The run went {' -> '.join(path)}, which 'babyai' refuses: {problem}"
            )
        return MappedPath(machine=self._machine.label, states=path, by="rule")

    async def amap(self, run: RunLog) -> Mapped:
        """Return the path of a run, as `map` does."""
        return self.map(run)


@dataclass(frozen=True)
class Deed:
    """One action, what was known before it, and what came of it."""

    action: str
    finding: str
    """GoalKnown, GoalUnknown or DoorLocked, before the action."""
    charted: frozenset[Cell]
    """Where things had been seen."""
    front: Cell
    still: bool
    """Whether it had no effect."""
    found: bool
    """Whether the goal is known after it."""
    mark: str | None
    """The choice that it completes: OpenDoor, FetchKey or TryLocked."""

    @property
    def blocked(self) -> bool:
        """Return whether it was a step that had no effect."""
        return self.action == FORWARD and self.still


class Reading:
    """A run, read for the rules. chart: of what is seen first."""

    def __init__(self, run: RunLog, mission: Mission, chart: Chart) -> None:
        self._run, self._mission, self._chart = run, mission, chart
        self._text = ""
        self._deeds = list(self._read())

    def states(self) -> Iterator[str]:
        """Yield the states of the machine."""
        yield "Start"
        courses = _courses(self._deeds)
        for place, (deed, course) in enumerate(zip(self._deeds, courses, strict=True)):
            after_block = place > 0 and self._deeds[place - 1].blocked
            if not place or after_block or course != courses[place - 1]:
                yield "WayBlocked" if after_block else deed.finding
                yield course[0]
        if self._run.success:
            yield "Fulfilled"
        else:
            yield from self._failing()
        yield "End"

    def _failing(self) -> Iterator[str]:
        if OVER not in self._text:
            yield "WayBlocked" if self._deeds and self._deeds[-1].blocked else self._finding()
            yield "GiveUp"
        yield from ("Unfulfilled", "OutOfSteps" if USED_UP in self._text else "Stopped")

    def _read(self) -> Iterator[Deed]:
        chart = self._chart
        for each in self._run.rounds:
            for call, result in zip(each.calls, each.results, strict=False):
                action, finding, charted, front = (
                    plain(call.words),
                    self._finding(),
                    frozenset(chart.things),
                    chart.front,
                )
                before = chart.things.get(front)
                ours = front in chart.goals(self._mission)
                opens = before is not None and chart.opens(before)
                self._text = result.text
                view = read_view(result.text)
                chart.take(action, result.text)
                still = view is None or view.still
                mark = None
                if action == "toggle" and before is not None and before.kind == "door":
                    if opens and not still and not ours:
                        mark = "OpenDoor"
                    elif before.state == "locked" and not opens:
                        mark = "TryLocked"
                elif action == "pick up" and before is not None and before.kind == "key" and not (still or ours):
                    mark = "FetchKey"
                yield Deed(action, finding, charted, front, still, bool(chart.goals(self._mission)), mark)

    def _finding(self) -> str:
        if self._chart.locked(self._mission):
            return "DoorLocked"
        return "GoalKnown" if self._chart.goals(self._mission) else "GoalUnknown"


Course = tuple[str, int]
"""A choice, and the place of the deed that completes it: two doors in a row are two courses. -1 when none does."""


def _courses(deeds: Sequence[Deed]) -> list[Course]:
    """Return which course of action each deed belongs to."""
    found: list[Course | None] = [None] * len(deeds)
    for start, end in _turns(deeds):
        unseen = deeds[start].finding != "GoalKnown"
        if unseen and (end - start >= LOOK or (deeds[end - 1].found and deeds[start].finding == "GoalUnknown")):
            found[start:end] = [("LookAround", -1)] * (end - start)
    free = 0  # from where on deeds may belong to the next completed course
    for place, deed in enumerate(deeds):
        if deed.mark is None:
            continue
        first = next(i for i in range(free, place + 1) if i == place or deed.front in deeds[i].charted)
        free = place + 1
        while deed.mark == "OpenDoor" and free < len(deeds) and free <= place + THROUGH and _moves(deeds[free]):
            free += 1
        for i in range(first, free):
            found[i] = found[i] or (deed.mark, place)
    by_sight: list[Course] = [
        each or ("Approach" if deed.finding == "GoalKnown" else "WalkAbout", -1)
        for each, deed in zip(found, deeds, strict=True)
    ]
    return _after_blocks(deeds, by_sight)


def _moves(deed: Deed) -> bool:
    return deed.action == FORWARD and not deed.still


def _turns(deeds: Sequence[Deed]) -> Iterator[tuple[int, int]]:
    """Yield the places of turns in a row: the first, and the one after the last."""
    start = None
    for place, deed in enumerate(deeds):
        if deed.action in TURNS:
            start = place if start is None else start
        elif start is not None:
            yield start, place
            start = None
    if start is not None:
        yield start, len(deeds)


def _after_blocks(deeds: Sequence[Deed], courses: list[Course]) -> list[Course]:
    """Return the courses with what was done about steps that had no effect."""
    around = False
    for place in range(1, len(deeds)):
        if courses[place][0] != "Approach":
            around = False
        elif deeds[place - 1].blocked:
            around = deeds[place].action != FORWARD
            courses[place] = ("GoAround" if around else "TryAgain", place if not around else -1)
        elif around:
            courses[place] = ("GoAround", -1)
    return courses

"""The machine of cognitive states, and what a path through it is (trainable graph memory, section 4.1; specification 2.3).

    machine = load_machine("cognitive")            # or "coarse", or the path of a file of yours
    machine.problem(states)                        # None for a legal path, else what is wrong with it
    machine.canonical(states)                      # loops cut to two rounds: equal behaviour, equal path

A machine is data (`machines/*.toml`); arcs and states that the paper does not name are marked `reconstructed` there.
This module knows neither runs nor models.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Final, Literal
from uuid import UUID

from pydantic import Field, ValidationError

from memweave.errors import InputError
from memweave.graph_records import path_id
from memweave.records import Name, Record

LONGEST_PATH: Final = 256
"""States of a path that is read; a run of ours has about 10 a call, and may call 6 times."""
MOST_ROUNDS: Final = 2
"""Rounds of a loop that a canonical path keeps: once, or more than once."""
SHIPPED: Final = ("cognitive", "coarse", "babyai")

StateKind = Literal["choice", "finding", "outcome", "passage"]
"""choice: the agent decides it.  finding: it meets it.  outcome: known only afterwards.  passage: neither."""
Origin = Literal["attested", "reconstructed"]
"""attested: the paper's text has it.  reconstructed: ours."""


class Words(Record):
    """What a state is, and how strategies and prompts speak of it."""

    kind: StateKind
    meaning: Annotated[str, Field(min_length=1)]
    when: str | None = None
    """It as a situation: `when {when}, ...`."""
    act: str | None = None
    """A choice as advice: `consider {act}`."""
    reconstructed: bool = False
    covers: tuple[Name, ...] = ()
    """States of the cognitive machine that it stands for, so that the rules can map to it; by default the one of its own name."""


class State(Words):
    """One state of a machine."""

    name: Name


class Arc(Record):
    """One step that is allowed."""

    source: Name
    target: Name
    origin: Origin


class Machine(Record):
    """A finite-state machine. `load_machine` makes one and refuses a faulty one; `faults` says what is wrong with one."""

    name: Name
    version: Annotated[int, Field(ge=1)]
    start: Name
    end: Name
    states: tuple[State, ...]
    arcs: tuple[Arc, ...]

    @property
    def label(self) -> str:
        """Return name and version, as a path keeps them: `cognitive@1`."""
        return f"{self.name}@{self.version}"

    @cached_property
    def by_name(self) -> Mapping[str, State]:
        """Return the states by name."""
        return {state.name: state for state in self.states}

    @cached_property
    def after(self) -> Mapping[str, tuple[str, ...]]:
        """Return where each state may lead, in the order of the file."""
        return {state.name: tuple(arc.target for arc in self.arcs if arc.source == state.name) for state in self.states}

    @cached_property
    def projection(self) -> Mapping[str, str]:
        """Return the state that stands for each state of the cognitive machine, as far as this machine says so."""
        return {covered: state.name for state in self.states for covered in (state.covers or (state.name,))}

    def legal(self, path: Sequence[str]) -> bool:
        """Return whether `path` leads from start to end along arcs."""
        return self.problem(path) is None

    def problem(self, path: Sequence[str]) -> str | None:
        """Return the first thing that is wrong with a path, in words that help a model to do better; `None` for a legal one."""
        if not path:
            return "The path is empty"
        if len(path) > LONGEST_PATH:
            return f"The path has {len(path)} states; at most {LONGEST_PATH} are read"
        for name in path:
            if name not in self.by_name:
                return f"There is no state {name!r:.80}"
        if path[0] != self.start:
            return f"The path begins with {path[0]}, not with {self.start}"
        for place, (source, target) in enumerate(zip(path, path[1:], strict=False), 1):
            if target not in self.after[source]:
                return f"Step {place}: {source} does not lead to {target}, but to {', '.join(self.after[source]) or 'nothing'}"
        return None if path[-1] == self.end else f"The path ends with {path[-1]}, not with {self.end}"

    def canonical(self, path: Iterable[str]) -> tuple[str, ...]:
        """Return a path with a state's immediate repeats cut to one and a loop's rounds to two; a legal path stays legal.

        Of `A B A B A B`, `A B A B` stays: that a loop was taken again is told, how often is not.
        """
        return canonical(path)

    def path_id(self, path: Sequence[str]) -> UUID:
        """Return the id of the node of a canonical path; equal paths of equal machines are one node (B3)."""
        return path_id(self.label, path)


def canonical(path: Iterable[str]) -> tuple[str, ...]:
    """Return `path` as `Machine.canonical` does; shortest loops first, leftmost first, until nothing is left to cut."""
    states: list[str] = []
    for name in path:
        if not states or states[-1] != name:
            states.append(name)
    while (cut := _third_round(states)) is not None:
        del states[cut[0] : cut[1]]
    return tuple(states)


def _third_round(states: Sequence[str]) -> tuple[int, int] | None:
    """Return the place of a loop body that stands there once more after `MOST_ROUNDS` equal ones, or `None`."""
    for size in range(2, len(states) // (MOST_ROUNDS + 1) + 1):
        equal = 0  # states in a row that are those of a round before
        for place in range(size, len(states)):
            equal = equal + 1 if states[place] == states[place - size] else 0
            if equal == size * MOST_ROUNDS:
                return place + 1 - size, place + 1
    return None


# what is wrong with a machine


def faults(machine: Machine) -> list[str]:
    """Return every fault of a machine, one line each; `[]` for a sound one. Loops are no fault as long as they have a way out."""
    names = [state.name for state in machine.states]
    found = [f"the state {name!r} is there twice" for name in sorted({n for n in names if names.count(n) > 1})]
    found += [
        f"there is no {what} state {name!r}"
        for what, name in (("start", machine.start), ("end", machine.end))
        if name not in names
    ]
    if machine.start == machine.end:
        found.append(f"{machine.start!r} is start and end at the same time")
    found += _faults_of_arcs(machine, set(names))
    found += _faults_of_words(machine)
    return [*found, *_faults_of_reach(machine)] if {machine.start, machine.end} <= set(names) else found


def _faults_of_arcs(machine: Machine, names: set[str]) -> list[str]:
    found = []
    seen: dict[tuple[str, str], Origin] = {}
    for arc in machine.arcs:
        shown = f"the arc {arc.source} -> {arc.target}"
        found += [f"{shown} names the unknown state {name!r}" for name in (arc.source, arc.target) if name not in names]
        if arc.source == machine.end:
            found.append(f"{shown} leads out of the end state")
        if (arc.source, arc.target) in seen:
            found.append(f"{shown} is there twice")
        seen[arc.source, arc.target] = arc.origin
    return found


def _faults_of_words(machine: Machine) -> list[str]:
    found = [f"the choice {state.name} has no words: give it `act`" for state in machine.states if _is_mute(state)]
    covered = [name for state in machine.states for name in state.covers]
    twice = sorted({name for name in covered if covered.count(name) > 1})
    return [*found, *(f"{name!r} is covered by two states" for name in twice)]


def _is_mute(state: State) -> bool:
    return state.kind == "choice" and not state.act


def _faults_of_reach(machine: Machine) -> list[str]:
    """Return the states off every path. A loop without a way out is named as one fault, not once for each of its states."""
    onward: dict[str, set[str]] = {state.name: set() for state in machine.states}
    back: dict[str, set[str]] = {state.name: set() for state in machine.states}
    for arc in machine.arcs:
        if arc.source in onward and arc.target in onward:
            onward[arc.source].add(arc.target)
            back[arc.target].add(arc.source)
    reached, ending = _closure(machine.start, onward), _closure(machine.end, back)
    found = [f"no path from {machine.start} reaches {name}" for name in onward if name not in reached]
    told: set[str] = set()
    for name in (name for name in onward if name not in ending and name not in told):
        round_trip = [other for other in onward if other in _beyond(name, onward) and name in _beyond(other, onward)]
        if round_trip:
            told |= set(round_trip)
            found.append(f"the loop of {', '.join(round_trip)} has no way out to {machine.end}")
        else:
            found.append(f"no path from {name} reaches {machine.end}")
    return found


def _closure(start: str, onward: Mapping[str, set[str]]) -> set[str]:
    """Return everything that can be reached from `start`, itself included."""
    seen, waiting = {start}, [start]
    while waiting:
        new = onward[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def _beyond(name: str, onward: Mapping[str, set[str]]) -> set[str]:
    """Return everything that can be reached from `name` by at least one arc."""
    return {reached for step in onward[name] for reached in _closure(step, onward)}


# files


class _File(Record):
    name: Name
    version: Annotated[int, Field(ge=1)]
    start: Name = "Start"
    end: Name = "End"
    states: dict[Name, Words]
    attested: dict[Name, tuple[Name, ...]] = Field(default_factory=dict)
    reconstructed: dict[Name, tuple[Name, ...]] = Field(default_factory=dict)


def load_machine(which: str | Path = "cognitive") -> Machine:
    """Return a machine: one of `SHIPPED` by its name, or that of a TOML file by its path.

    Raises `InputError` naming every fault of the file.
    """
    if isinstance(which, str) and which in SHIPPED:
        return _shipped(which)
    try:
        source = Path(which).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The machine {str(which)!r} cannot be read ({error}). Give {', '.join(map(repr, SHIPPED))}, or the path of a file"
        ) from error
    return parse_machine(source, str(which))


@lru_cache
def _shipped(name: str) -> Machine:
    source = files("memweave.agents.machines").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return parse_machine(source, name)


def parse_machine(source: str, where: str) -> Machine:
    """Return the machine in the text of a TOML file. where: its name in messages.  Raises `InputError` naming every fault."""
    try:
        given = _File.model_validate(tomllib.loads(source))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"The machine {where!r} is no TOML: {error}") from None
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise InputError(f"The machine {where!r} has faults: {told}") from None
    origins: tuple[tuple[Origin, dict[str, tuple[str, ...]]], ...] = (
        ("attested", given.attested),
        ("reconstructed", given.reconstructed),
    )
    machine = Machine(
        name=given.name,
        version=given.version,
        start=given.start,
        end=given.end,
        states=tuple(State(name=name, **words.model_dump()) for name, words in given.states.items()),
        arcs=tuple(
            Arc(source=source, target=target, origin=origin)
            for origin, table in origins
            for source, targets in table.items()
            for target in targets
        ),
    )
    if found := faults(machine):
        raise InputError(f"The machine {where!r} has faults: {'; '.join(found)}")
    return machine

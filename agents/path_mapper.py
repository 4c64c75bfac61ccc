"""Mappers: from a finished run to one legal, canonical path through the machine, or a named failure (specification 2.3 and B2).

    mapper = as_mapper("rule")                       # or a model's specification, a chat model, a mapper of yours
    mapped = mapper.map(run)                         # MappedPath | UnmappedRun

`RuleMapper` is deterministic and needs no model. `ModelMapper` is the paper's way: a chat model gets the response and the whole transition
table and writes one path; the paper's own prompt for it is not public. A run that fits no path is data, not an exception.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, Literal, Protocol

from langchain_core.language_models import BaseChatModel
from pydantic import JsonValue

from memweave.agents.cognition import Machine, load_machine
from memweave.agents.machine_role import ATTEMPTS, MachineRole
from memweave.agents.path_rules import ON_TOPIC, Reading
from memweave.agents.replies import json_object
from memweave.agents.roles import Attempt, one_line
from memweave.agents.run_log import RunLog
from memweave.errors import ModelReplyError, SettingsError
from memweave.records import Name, Record, storable

ROLE: Final = "path_mapper"
MOST_REPAIRS: Final = 3
"""Steps of a path that are repaired; one with more of them was not read off the machine."""
LONGEST_GAP: Final = 2
"""States that are put in where a step of a path leaves some out."""
LONGEST_TEXT: Final = 1_000
"""Characters of one thought, result or answer that a model is shown."""

FailureKind = Literal["no_answer", "no_reward", "no_fit", "no_reply", "illegal"]
"""no_answer: the run never answered.  no_reward: nobody verified the answer.  no_fit: the rules' path is none of this machine.
no_reply: the model's replies could not be read.  illegal: its paths were not legal, and could not be repaired."""


class MappedPath(Record):
    """The path of a run: legal and canonical."""

    machine: Name
    """`Machine.label`."""
    states: tuple[Name, ...]
    by: Name
    """Who mapped it: `rule`, or the model's name."""
    repairs: tuple[str, ...] = ()
    """What was put right in the model's path."""


class UnmappedRun(Record):
    """A run that has no path, and why."""

    kind: FailureKind
    text: str


Mapped = MappedPath | UnmappedRun


class PathMapper(Protocol):
    """Maps runs to paths, sync and async. Raises `UnavailableError` when its model cannot be reached, and nothing else."""

    @property
    def machine(self) -> Machine:
        """Whose paths they are."""

    def map(self, run: RunLog) -> Mapped:
        """Return the path of a run, or why it has none."""

    async def amap(self, run: RunLog) -> Mapped:
        """Return the path of a run, or why it has none."""


MapperLike = str | BaseChatModel | PathMapper
"""`rule`, a specification for `chat_model`, a chat model, or a mapper."""


def as_mapper(value: MapperLike, machine: Machine | None = None) -> PathMapper:
    """Return the mapper that `value` names. machine: by default the cognitive one; a mapper has its own.

    Raises `SettingsError` for a machine that the rules cannot map to, or a specification that is none.
    """
    if value == "rule":
        return RuleMapper(machine)
    if isinstance(value, str | BaseChatModel):
        return ModelMapper(value, machine)
    return value


def _unfit(run: RunLog) -> UnmappedRun | None:
    """Return why no mapper can do anything with a run, if so."""
    if not run.answer:
        return UnmappedRun(kind="no_answer", text="The run ended without an answer, and every path leads through one")
    if run.reward is None:
        return UnmappedRun(
            kind="no_reward", text="Nobody verified the answer, so it is neither a success nor a failure"
        )
    return None


class RuleMapper:
    """Maps by the rules of `path_rules`. The same run always gets the same path.

    machine: one that has a state for each of the cognitive machine's (by name, or by what its states cover).  on_topic: share of a
    query's content words that a passage needs to bear on it, in (0, 1].

    Raises `SettingsError` for another machine.
    """

    def __init__(self, machine: Machine | None = None, *, on_topic: float = ON_TOPIC) -> None:
        self._machine = machine or load_machine("cognitive")
        self._on_topic = on_topic
        known = [state.name for state in load_machine("cognitive").states]
        if missing := [name for name in known if name not in self._machine.projection]:
            raise SettingsError(
                f"The rules cannot map to the machine {self._machine.name!r}: it has no state for {', '.join(missing)}. "
                "Name them in `covers` of its states, or map with a model"
            )
        if not 0 < on_topic <= 1:
            raise SettingsError(f"on_topic = {on_topic}: give a share above 0, at most 1")

    @property
    def machine(self) -> Machine:
        """Return whose paths they are."""
        return self._machine

    def map(self, run: RunLog) -> Mapped:
        """Return the path of a run, or why it has none."""
        if unfit := _unfit(run):
            return unfit
        machine = self._machine
        states = [machine.projection[name] for name in Reading(run, self._on_topic).states()]
        path = machine.canonical(states)
        if problem := machine.problem(path):
            return UnmappedRun(
                kind="no_fit", text=f"The run went {' -> '.join(path)}, which {machine.name!r} refuses: {problem}"
            )
        return MappedPath(machine=machine.label, states=path, by="rule")

    async def amap(self, run: RunLog) -> Mapped:
        """Return the path of a run, as `map` does."""
        return self.map(run)


class ModelMapper(MachineRole):
    """Lets a chat model write the path, with one more try for a reply that is none. Arguments: `MachineRole`."""

    role = ROLE

    def map(self, run: RunLog) -> Mapped:
        """Return the path of a run, or why it has none. Raises `UnavailableError`."""
        failed: tuple[Attempt, ...] = ()
        mapped: Mapped | None = _unfit(run)
        while mapped is None:
            try:
                reply = self._reply(render_run(run, self.machine), failed)
            except ModelReplyError as error:
                return UnmappedRun(kind="no_reply", text=str(error))
            mapped, failed = self._read(reply, run, failed)
        return mapped

    async def amap(self, run: RunLog) -> Mapped:
        """Return the path of a run, as `map` does."""
        failed: tuple[Attempt, ...] = ()
        mapped: Mapped | None = _unfit(run)
        while mapped is None:
            try:
                reply = await self._areply(render_run(run, self.machine), failed)
            except ModelReplyError as error:
                return UnmappedRun(kind="no_reply", text=str(error))
            mapped, failed = self._read(reply, run, failed)
        return mapped

    def _read(self, reply: str, run: RunLog, failed: tuple[Attempt, ...]) -> tuple[Mapped | None, tuple[Attempt, ...]]:
        """Return what a reply says; or `None` and one more failed attempt, as long as there may be another."""
        kind: FailureKind = "no_reply"
        try:
            given = _path_in(storable(reply), self.machine)
            kind = "illegal"
            states, repairs = repaired(given, self.machine)
            _check_outcome(states, run, self.machine)
        except ModelReplyError as error:
            failed = (*failed, Attempt(reply=storable(reply) or "(empty)", error=str(error)))
            return (UnmappedRun(kind=kind, text=str(error)) if len(failed) >= ATTEMPTS else None), failed
        path = self.machine.canonical(states)
        return MappedPath(machine=self.machine.label, states=path, by=self.name, repairs=tuple(repairs)), failed


# what a model is shown


def transition_table(machine: Machine) -> str:
    """Return a machine as a prompt shows it: one line for each state, with what it means and where it may lead."""
    return "\n".join(
        f"- {state.name}: {state.meaning}."
        + (f" -> {', '.join(onward)}" if (onward := machine.after[state.name]) else "")
        for state in machine.states
    )


def render_run(run: RunLog, machine: Machine) -> str:
    """Return a run and the machine as the mapper sees them. What was logged cannot begin a line of its own: it is data."""
    lines = [
        f"Machine, from {machine.start} to {machine.end}:",
        transition_table(machine),
        "",
        f"Question: {_cut(run.question)}",
        "Run:",
    ]
    for number, each in enumerate(run.rounds, 1):
        if each.think:
            lines.append(f"{number}. thought: {_cut(each.think)}")
        lines += [f"{number}. call: {call.name} {_cut(str(call.arguments))}" for call in each.calls]
        lines += [
            f"{number}. {'error' if found.failed else 'result'}: {_cut(found.text) or '(empty)'}"
            for found in each.results
        ]
        if each.answer:
            lines.append(f"{number}. answer: {_cut(each.answer)}")
    return "\n".join([*lines, f"The answer was {'right' if run.success else 'wrong'}."])


def _cut(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= LONGEST_TEXT else f"{line[:LONGEST_TEXT]} ..."


# what a model wrote


def _path_in(reply: str, machine: Machine) -> list[str]:
    """Return the states that a reply names, spelt as the machine spells them. Raises `ModelReplyError`."""
    given = json_object(reply).get("path")
    if not isinstance(given, list) or not given:
        raise ModelReplyError('The object has no list "path" of states')
    spelt = {_bare(name): name for name in machine.by_name}
    names = [each if each in machine.by_name else spelt.get(_bare(each)) for each in map(_name, given)]
    found = [name for name in names if name is not None]
    if len(found) < len(given):
        unknown = given[names.index(None)]
        raise ModelReplyError(f"There is no state {unknown!r:.80}. Use the names of the machine")
    return found


def _name(value: JsonValue) -> str:
    return value if isinstance(value, str) else ""


def _bare(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())


def repaired(path: Sequence[str], machine: Machine) -> tuple[tuple[str, ...], list[str]]:
    """Return a path of known states made legal, and what was done to it.

    Where a step leaves states out, they are put in if there is exactly one shortest way and it is short; a state is never
    taken out. Outcomes are never put in: what came of a run is told, not guessed. Raises `ModelReplyError` for what cannot be repaired.
    """
    found = list(path)
    done: list[str] = []
    if found[0] != machine.start:
        found.insert(0, machine.start)
        done.append(f"put {machine.start} before the first state")
    if found[-1] != machine.end:
        found.append(machine.end)
        done.append(f"put {machine.end} after the last state")
    states = [found[0]]
    for target in found[1:]:
        if target == states[-1] or target in machine.after[states[-1]]:
            states.append(target)
            continue
        between = _between(states[-1], target, machine)
        if between is None:
            raise ModelReplyError(_no_arc(states[-1], target, machine))
        done.append(f"put {', '.join(between)} between {states[-1]} and {target}")
        states += [*between, target]
    if len(done) > MOST_REPAIRS:
        raise ModelReplyError(f"{len(done)} steps of the path are not in the machine. First: {done[0]}")
    legal = machine.canonical(states)
    if problem := machine.problem(legal):
        raise ModelReplyError(problem)
    return legal, done


def _no_arc(source: str, target: str, machine: Machine) -> str:
    return f"{source} does not lead to {target}, but to {', '.join(machine.after[source]) or 'nothing'}"


def _between(source: str, target: str, machine: Machine) -> tuple[str, ...] | None:
    """Return the states on the one shortest way; `None` when there are several, or it is too long."""
    found: list[tuple[str, ...]] = []
    waiting: deque[tuple[str, ...]] = deque([(source,)])
    while waiting:
        way = waiting.popleft()
        if len(way) - 1 > LONGEST_GAP or (found and len(way) > len(found[0])):
            break
        if len(way) > 1 and target in machine.after[way[-1]]:
            found.append(way)
            continue
        onward = (name for name in machine.after[way[-1]] if machine.by_name[name].kind != "outcome")
        waiting.extend((*way, name) for name in onward if name not in way)
    return found[0][1:] if len(found) == 1 else None


def _check_outcome(path: Sequence[str], run: RunLog, machine: Machine) -> None:
    """Raise `ModelReplyError` when a path says another outcome than the reward, as far as the machine tells them apart."""
    sides: Mapping[bool, str | None] = {
        True: machine.projection.get("CorrectAnswer"),
        False: machine.projection.get("WrongAnswer"),
    }
    told, other = sides[run.success], sides[not run.success]
    if told is None or other is None or told == other:
        return
    if told not in path or other in path:
        raise ModelReplyError(
            f"The answer was {'right' if run.success else 'wrong'}, so the path leads through {told}, not {other}"
        )

"""The strategist: from paths that succeeded and failed to one strategy, or a named reason why there is none (section 4.1, Alg. 1; 2.4).

    strategist = as_strategist("rule")               # or a model's specification, a chat model, a strategist of yours
    induced = strategist.induce(request)             # Proposal | NoStrategy

A proposal goes to `StrategyGraph.write`, which finds the strategy that it matches, or makes a new one. `RuleStrategist` contrasts where two
paths first decide differently; `ModelStrategist` asks a chat model. Neither sees the question: a strategy is about any.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Protocol
from uuid import UUID

from langchain_core.language_models import BaseChatModel
from pydantic import Field

from memweave.agents.cognition import Machine, load_machine
from memweave.agents.leaks import Source
from memweave.agents.roles import Attempt
from memweave.agents.run_log import RunLog
from memweave.graph_records import (
    MAX_SCORE,
    START_SCORES,
    SUPPORT,
    NewStrategy,
    Principle,
    States,
    Strategy,
    StrategyKind,
)
from memweave.records import Record

RULE_MATCH: Final = 0.99
"""`match_threshold` for strategies of rules: equal summaries are equal strategies. Their sentences are alike whatever they advise; at the
default of 0.85, which suits a model's prose, encoders take different advice for the same."""

SkipKind = Literal["no_difference", "skipped", "leak", "unusable", "no_reply"]
"""no_difference: the paths decide alike.  skipped: the model says that there is nothing to learn.  leak: it speaks of the question.
unusable: not hedged, too long, no such target.  no_reply: the model's replies could not be read."""


class InductionRequest(Record):
    """What do these paths teach?"""

    kind: StrategyKind
    """contrast: of one query.  speculative: failures of one query, successes of similar ones.  positive: successes only."""
    successes: Annotated[tuple[States, ...], Field(min_length=1)]
    """Canonical paths; rules look at the first."""
    failures: tuple[States, ...] = ()
    existing: tuple[Strategy, ...] = ()
    """Strategies of the graph, or the nearest of them; numbered by position."""
    source: Source
    """What a strategy may not repeat; never shown to a model."""
    failed: tuple[Attempt, ...] = ()


class Proposal(Record):
    """A strategy to be written."""

    new: NewStrategy
    target: UUID | None = None
    """The strategy to update; `None` lets the graph look for one."""
    reason: str
    """As logged with the write."""
    by: str
    """`rule`, or the model's name."""


class NoStrategy(Record):
    """Why there is none."""

    kind: SkipKind
    text: str


Induced = Proposal | NoStrategy


class Strategist(Protocol):
    """Makes strategies of paths, sync and async. Raises `UnavailableError` when its model cannot be reached, and nothing else."""

    def induce(self, request: InductionRequest) -> Induced:
        """Return a strategy, or why there is none."""

    async def ainduce(self, request: InductionRequest) -> Induced:
        """Return a strategy, or why there is none."""


StrategistLike = str | BaseChatModel | Strategist
"""`rule`, a specification for `chat_model`, a chat model, or a strategist."""


def as_strategist(value: StrategistLike, machine: Machine | None = None) -> Strategist:
    """Return the strategist that `value` names. machine: whose paths it gets; by default the cognitive one.

    Raises `SettingsError` for a specification that is none.
    """
    if value == "rule":
        return RuleStrategist(machine)
    if isinstance(value, str | BaseChatModel):
        from memweave.agents.model_strategist import ModelStrategist

        return ModelStrategist(value, machine)
    return value


def source_of(*runs: RunLog, answers: tuple[str, ...] = ()) -> Source:
    """Return what a strategy made of these runs of one question may not repeat. answers: right ones, where they are known."""
    given = [run.answer for run in runs if run.answer]
    found = [result.text for run in runs for each in run.rounds for result in each.results]
    return Source(question=runs[0].question, answers=(*answers, *dict.fromkeys(given)), found=tuple(found))


class RuleStrategist:
    """Contrasts two paths where they first decide differently: `When <situation>, consider <success> instead of <failure>.`

    The summary leaves `instead of` out: it is what strategies are told apart by, and encoders that count words take "A instead of B" for
    "B instead of A". Write its proposals to a graph with `match_threshold=RULE_MATCH`.
    """

    def __init__(self, machine: Machine | None = None) -> None:
        self.machine = machine or load_machine("cognitive")

    def induce(self, request: InductionRequest) -> Induced:
        """Return a strategy, or why there is none."""
        if request.kind is StrategyKind.POSITIVE or not request.failures:
            return self._distilled(request)
        success, failure = request.successes[0], request.failures[0]
        parted = self._parting(success, failure)
        if parted is None:
            return NoStrategy(
                kind="no_difference", text="Both runs decided alike; what came of them is no matter of strategy"
            )
        good, bad = parted
        when = self._situation(failure[:bad])
        alike = when == self._situation(success[:good])
        return self._proposal(request, when, success[good], failure[bad], alike=alike)

    async def ainduce(self, request: InductionRequest) -> Induced:
        """Return a strategy, as `induce` does."""
        return self.induce(request)

    def _choices(self, path: States) -> list[int]:
        """Return the places of decisions that advice can name."""
        known = self.machine.by_name
        return [i for i, name in enumerate(path) if name in known and known[name].kind == "choice" and known[name].act]

    def _parting(self, success: States, failure: States) -> tuple[int, int] | None:
        """Return the places where two paths first decide differently, `None` when one only decides more than the other."""
        for good, bad in zip(self._choices(success), self._choices(failure), strict=False):
            if success[good] != failure[bad]:
                return good, bad
        return None

    def _situation(self, before: States) -> str:
        """Return in words where a path stood: what was met last, and in which course of action."""
        parts: list[str] = []
        for name in reversed(before):
            state = self.machine.by_name.get(name)
            if state is None or not state.when:
                continue
            if state.kind == "choice":
                return " and ".join([state.when, *parts])
            parts = parts or [state.when]
        return " and ".join(parts) or "a question is asked"

    def _distilled(self, request: InductionRequest) -> Induced:
        """Return what a success decided before it met anything, where it could have decided otherwise."""
        path = request.successes[0]
        choices = self._choices(path)
        chosen = None
        for place in choices:
            if chosen is not None and any(self.machine.by_name[name].kind == "finding" for name in path[chosen:place]):
                break
            others = self.machine.after.get(path[place - 1], ()) if place else ()
            if sum(self.machine.by_name[name].kind == "choice" for name in others) > 1:
                chosen = place
        if chosen is None:
            return NoStrategy(kind="no_difference", text="The run decided nothing that it could have decided otherwise")
        return self._proposal(request, self._situation(path[:chosen]), path[chosen], None, alike=True)

    def _proposal(
        self, request: InductionRequest, when: str, better: str, worse: str | None, *, alike: bool
    ) -> Proposal:
        act = self.machine.by_name[better].act
        summary = f"When {when}, consider {act}."
        instead = f" instead of {self.machine.by_name[worse].act}" if worse else ""
        score = START_SCORES[request.kind]
        principle = Principle(text=f"When {when}, consider {act}{instead}.", score=score)
        doubt = "" if alike else " They stood in different situations when they parted."
        runs = "one run" if worse is None else "one pair of runs"
        known = next((each for each in request.existing if each.summary == summary), None)
        new = NewStrategy(
            summary=summary,
            principles=_joined(known, principle),
            kind=request.kind,
            score=score,
            uncertainty=f"Rests on {runs}, which chance may explain.{doubt}",
            metadata={"machine": self.machine.label, "when": when, "better": better, "worse": worse},
        )
        parted = f"{better} succeeded" + (f" where {worse} failed" if worse else "")
        return Proposal(new=new, target=known.id if known else None, reason=f"first divergence: {parted}", by="rule")


def _joined(known: Strategy | None, principle: Principle) -> tuple[Principle, ...]:
    """Return the principles of a strategy with one more, or with one that is supported again."""
    there = known.principles if known else ()
    if all(each.text != principle.text for each in there):
        return (*there, principle)
    return tuple(
        each.model_copy(update={"score": min(MAX_SCORE, each.score + SUPPORT)}) if each.text == principle.text else each
        for each in there
    )

"""The strategist as a chat model: the prompt of section 4.1 and appendices B.2 and E.3, its reply, and what is not taken from it.

What a model gets wrong is told to it once; after that there is no strategy, by name. Confidence: a principle's score is the model's,
clamped to 30..85; a strategy's begins where its kind does, unless the model gives a number.
"""

from __future__ import annotations

import math
import re
from typing import Final

from pydantic import JsonValue

from memweave.agents.cognition import Machine
from memweave.agents.leaks import leaks
from memweave.agents.machine_role import ATTEMPTS, MachineRole
from memweave.agents.path_mapper import transition_table
from memweave.agents.replies import as_index, json_object
from memweave.agents.roles import Attempt, one_line
from memweave.agents.strategist import Induced, InductionRequest, NoStrategy, Proposal, SkipKind
from memweave.errors import ModelReplyError
from memweave.graph_records import MAX_SCORE, MIN_SCORE, START_SCORES, NewStrategy, Principle, Strategy
from memweave.records import storable

ROLE: Final = "strategist"
SOFT_CAP: Final = 30
"""Strategies above which updating is preferred to creating."""
MOST_SHOWN: Final = 100
"""Existing strategies that a model is shown."""
LONGEST_SENTENCE: Final = 400
"""Characters of a summary, or of a principle."""
MOST_PRINCIPLES: Final = 5

_HEDGE: Final = re.compile(
    r"\b(?:consider\w*|may|might|can|could|tends?|often|usually|typically|sometimes|likely|seems?|perhaps|try)\b",
    re.IGNORECASE,
)
_ABSOLUTE: Final = re.compile(r"\b(?:always|never|must|guarantee\w*)\b", re.IGNORECASE)


class _Refused(ModelReplyError):
    """A reply that cannot be used. kind: what it is called when there is no further try."""

    def __init__(self, kind: SkipKind, text: str) -> None:
        super().__init__(text)
        self.kind: SkipKind = kind


class ModelStrategist(MachineRole):
    """Lets a chat model write strategies, with one more try for a reply that cannot be used. Arguments: `MachineRole`."""

    role = ROLE

    def induce(self, request: InductionRequest) -> Induced:
        """Return a strategy, or why there is none. Raises `UnavailableError`."""
        while True:
            try:
                reply = self._reply(render_induction(request, self.machine), request.failed)
            except ModelReplyError as error:
                return NoStrategy(kind="no_reply", text=str(error))
            found = self._read(reply, request)
            if not isinstance(found, InductionRequest):
                return found
            request = found

    async def ainduce(self, request: InductionRequest) -> Induced:
        """Return a strategy, as `induce` does."""
        while True:
            try:
                reply = await self._areply(render_induction(request, self.machine), request.failed)
            except ModelReplyError as error:
                return NoStrategy(kind="no_reply", text=str(error))
            found = self._read(reply, request)
            if not isinstance(found, InductionRequest):
                return found
            request = found

    def _read(self, reply: str, request: InductionRequest) -> Induced | InductionRequest:
        """Return what a reply says, or the request with what is wrong with it, as long as there may be another try."""
        try:
            return parse_induction(storable(reply), request, self.machine, by=self.name)
        except ModelReplyError as error:
            failed = (*request.failed, Attempt(reply=storable(reply) or "(empty)", error=str(error)))
            if len(failed) < ATTEMPTS:
                return request.model_copy(update={"failed": failed})
            return NoStrategy(kind=error.kind if isinstance(error, _Refused) else "no_reply", text=str(error))


# what is shown


def render_induction(request: InductionRequest, machine: Machine) -> str:
    """Return machine, paths and existing strategies as the strategist sees them; the question is not among them."""
    titles = {
        "contrast": "The paths are of runs on one question.",
        "speculative": "The failed paths are of one question, which no run answered; the others are of similar questions.",
        "positive": "All runs on this question succeeded.",
    }
    lines = ["Machine:", transition_table(machine), "", titles[request.kind]]
    lines += [f"Succeeded: {' -> '.join(path)}" for path in request.successes]
    lines += [f"Failed: {' -> '.join(path)}" for path in request.failures]
    lines += ["", f"Existing strategies: {len(request.existing)}"]
    lines += [_shown(number, each) for number, each in enumerate(request.existing[:MOST_SHOWN])]
    if len(request.existing) > SOFT_CAP:
        lines.append(f"There are more than {SOFT_CAP}: strongly prefer updating one of low or medium confidence.")
    return "\n".join(lines)


def _shown(number: int, strategy: Strategy) -> str:
    said = [strategy.summary, *(each.text for each in strategy.principles)]
    return f"- ({strategy.confidence}, {strategy.score}) {one_line(' '.join(said))} [{number}]"


# what is read


def parse_induction(reply: str, request: InductionRequest, machine: Machine, *, by: str) -> Induced:
    """Return what the model decided. by: its name.

    Raises `ModelReplyError` saying what is wrong, in words that help a model to do better.
    """
    given = json_object(reply)
    decision = given.get("decision")
    reasoning = given.get("reasoning")
    reason = one_line(reasoning)[:1_000] if isinstance(reasoning, str) and reasoning.strip() else "no reason given"
    if decision == "skip":
        return NoStrategy(kind="skipped", text=reason)
    if decision not in ("create", "update"):
        raise ModelReplyError(f"The decision is {decision!r:.40}. Use create, update or skip")
    target = _target(given.get("target_meta_id"), request) if decision == "update" else None
    new = _strategy(given.get("meta_cognition"), request)
    if not _HEDGE.search(new.summary):
        raise _Refused("unusable", f"{new.summary!r:.120} is not hedged. Say consider, may help, tends to")
    for text in (new.summary, *(each.text for each in new.principles)):
        _check_words(text, request, machine)
    return Proposal(new=new, target=target.id if target else None, reason=reason, by=by)


def _target(given: JsonValue, request: InductionRequest) -> Strategy:
    number = as_index(given)
    shown = request.existing[:MOST_SHOWN]
    if number is None or number >= len(shown):
        there = f"Use a number from 0 to {len(shown) - 1}" if shown else "None exists: create, or skip"
        raise _Refused("unusable", f"target_meta_id is {given!r:.40}. {there}")
    return shown[number]


def _strategy(given: JsonValue, request: InductionRequest) -> NewStrategy:
    if not isinstance(given, dict):
        raise ModelReplyError('There is no object "meta_cognition" with the strategy')
    start = START_SCORES[request.kind]
    items = given.get("strategy_principles")
    principles = [_principle(item, start) for item in items] if isinstance(items, list) else []
    if len(principles) > MOST_PRINCIPLES:
        raise _Refused(
            "unusable", f"There are {len(principles)} principles; give at most {MOST_PRINCIPLES}, the best ones"
        )
    note = given.get("uncertainty_note")
    return NewStrategy(
        summary=_sentence(given.get("summary"), "summary"),
        principles=tuple(principles),
        kind=request.kind,
        score=_score(given.get("overall_confidence"), start),
        uncertainty=one_line(note)[:LONGEST_SENTENCE] if isinstance(note, str) and note.strip() else None,
    )


def _principle(given: JsonValue, start: int) -> Principle:
    if isinstance(given, str):  # the meaning is plain
        given = {"principle": given}
    if not isinstance(given, dict):
        raise ModelReplyError('A principle is no object with "principle" and "confidence_score"')
    text = _sentence(given.get("principle"), "principle")
    return Principle(text=text, score=_score(given.get("confidence_score"), start))


def _sentence(given: JsonValue, what: str) -> str:
    text = one_line(given) if isinstance(given, str) else ""
    if not text:
        raise ModelReplyError(f"A {what} is missing or empty")
    if len(text) > LONGEST_SENTENCE:
        raise _Refused("unusable", f"A {what} has {len(text)} characters; use at most {LONGEST_SENTENCE}")
    return text


def _score(given: JsonValue, start: int) -> int:
    """Return a score within its bounds; `start` where none was given."""
    if isinstance(given, bool) or not isinstance(given, int | float) or math.isnan(given):
        return start
    return round(max(MIN_SCORE, min(MAX_SCORE, given)))


def _check_words(text: str, request: InductionRequest, machine: Machine) -> None:
    """Raise `ModelReplyError` for a sentence that speaks of the question, of states by name, or as if it were certain."""
    allowed = " ".join(part for state in machine.states for part in (state.meaning, state.when, state.act) if part)
    if found := leaks(text, request.source, allowed=allowed):
        raise _Refused(
            "leak", f"A strategy may not speak of the question, and {text!r:.120} holds {', '.join(found[:5])}"
        )
    named = [name for name in machine.by_name if re.search(rf"\b{re.escape(name)}\b", text)]
    if jargon := [
        name for name in named if sum(char.isupper() for char in name) > 1
    ]:  # a name, and no word such as Start
        raise _Refused("unusable", f"{text!r:.120} uses {jargon[0]}, a name that the agent does not know")
    if _ABSOLUTE.search(text) and not _HEDGE.search(text):
        raise _Refused("unusable", f"{text!r:.120} is not hedged. Say consider, may help, tends to")

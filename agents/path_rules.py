"""From a run to a path by rules, without a model: deterministic, and the same for every world that logs its calls (specification 2.3).

    what is asked of the log                                             what the path says
    did it search?                                                       KnowledgeSufficient, or KnowledgeUncertainGap
    how many calls, and does one use what an earlier one found?          Sequential-, Parallel- or SingleStepPlanning
    did the tool fail? does what came back bear on what was asked?       ToolFailure, KnowledgeAligned, -Conflicting, InformationIrrelevant
    does what came back contain the answer? is it called a guess?        SufficientInformation, or AssumptionBasedReasoning
    the reward                                                           CorrectAnswer, or WrongAnswer and where it seems to come from

The rules see what was logged and nothing else: no gold answer, no hidden state of a world.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

from memweave.agents.rules import text as english
from memweave.agents.run_log import Call, Result, Round, RunLog
from memweave.metrics import normalise

ON_TOPIC: Final = 0.75
"""Share of a query's content words that one passage (a line of the result) has to have to bear on the query."""

_GUESS: Final = re.compile(r"\b(?:assum\w*|guess\w*|unsure|not sure)\b", re.IGNORECASE)
_CONFLICT: Final = re.compile(r"\b(?:contradict\w*|conflict\w*|disagree\w*|inconsistent)\b", re.IGNORECASE)
_IN_ORDER: Final = re.compile(
    r"\b(?:seq|sequential(?:ly)?|step by step|depends? on|one after (?:the )?(?:other|another))\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Reading:
    """A run, read for the rules. on_topic: see `ON_TOPIC`."""

    run: RunLog
    on_topic: float = ON_TOPIC

    @cached_property
    def rounds(self) -> tuple[Round, ...]:
        """Return the rounds that called a tool."""
        return tuple(each for each in self.run.rounds if each.calls)

    def states(self) -> Iterator[str]:
        """Yield the states of the cognitive machine; the run has to have an answer and a reward."""
        goal = "GoalMisunderstood" if self._astray() else "CorrectGoalEstablished"
        yield from ("Start", goal)
        if self.rounds:
            yield from self._searching()
        else:
            yield "KnowledgeSufficient"
        grounded = not self._guessed() and (not self.rounds or self._grounded())
        if self.rounds or not grounded:
            yield "DecisionMaking"
            yield from (
                ("SufficientInformation",) if grounded else ("InsufficientInformation", "AssumptionBasedReasoning")
            )
        yield "AnswerGeneration"
        if self.run.success:
            yield "CorrectAnswer"
        else:
            yield from ("WrongAnswer", "DiagnosisHub", self._diagnosis(goal, grounded))
        yield "End"

    # searching

    def _searching(self) -> Iterator[str]:
        yield "KnowledgeUncertainGap"
        for number, plan in enumerate(self._plans()):
            if number and self.findings[plan[0] - 1] == "ToolFailure":  # from there it is a decision to plan anew
                yield from ("DecisionMaking", "InsufficientInformation")
            yield from ("StrategyPlanning", self._kind(plan))
            for place in plan:
                finding = self.findings[place]
                yield "ToolExecution"
                yield from ((finding,) if finding == "ToolFailure" else ("InformationAnalysis", finding))

    def _plans(self) -> list[range]:
        """Return the rounds of each plan. A new one begins when, after nothing useful, something new is asked."""
        starts = [0]
        for place in range(1, len(self.rounds)):
            useful = self.findings[place - 1] == "KnowledgeAligned"
            again = all(call in self._calls(range(place)) for call in self.rounds[place].calls)
            if not useful and not again and not self._uses(place, range(place)):
                starts.append(place)
        return [range(start, end) for start, end in zip(starts, [*starts[1:], len(self.rounds)], strict=True)]

    def _kind(self, plan: range) -> str:
        if any(self._uses(place, plan[:i]) for i, place in enumerate(plan)):
            return "SequentialDependentPlanning"
        distinct: list[Call] = []
        for call in self._calls(plan):
            if call not in distinct:
                distinct.append(call)
        if len(distinct) > 1:
            return "ParallelIndependentPlanning"
        stated = _IN_ORDER.search(self.rounds[plan[0]].think)  # a chain that broke after its first link
        return "SequentialDependentPlanning" if stated else "SingleStepPlanning"

    def _calls(self, places: Sequence[int]) -> list[Call]:
        return [call for place in places for call in self.rounds[place].calls]

    def _uses(self, place: int, earlier: Sequence[int]) -> bool:
        """Return whether a round asks for something that only an earlier result can have told it."""
        known = content(self.run.question)
        asked = content(" ".join(call.words for call in self.rounds[place].calls)) - known
        for before in earlier:
            for call, result in self._answered(before):
                query = content(call.words)
                if any(asked - query & content(passage) for passage in self._relevant(query, result)):
                    return True
        return False

    # what came back

    @cached_property
    def findings(self) -> tuple[str, ...]:
        """Return what each round found."""
        return tuple(self._finding(place) for place in range(len(self.rounds)))

    def _finding(self, place: int) -> str:
        answered = self._answered(place)
        if not answered or all(result.failed for _, result in answered):
            return "ToolFailure"
        if self._conflicting(place):
            return "KnowledgeConflicting"
        helpful = len(answered) == len(self.rounds[place].calls) and all(
            self._helps(call, result) for call, result in answered
        )
        return "KnowledgeAligned" if helpful else "InformationIrrelevant"

    def _answered(self, place: int) -> list[tuple[Call, Result]]:
        return list(zip(self.rounds[place].calls, self.rounds[place].results, strict=False))

    def _helps(self, call: Call, result: Result) -> bool:
        if result.failed:
            return False
        return bool(self._relevant(content(call.words), result)) or self._tells_answer(result)

    def _relevant(self, query: frozenset[str], result: Result) -> list[str]:
        """Return the passages that bear on a query."""
        lines = [line for line in result.text.splitlines() if line.strip()]
        needed = self.on_topic * len(query)
        return [line for line in lines if not result.failed and len(query & content(line)) >= needed]

    def _tells_answer(self, result: Result) -> bool:
        """Return whether a result contains the answer; one that stands in the question already is no sign of anything."""
        return not _contains(self.run.question, self.run.answer) and _contains(result.text, self.run.answer)

    def _conflicting(self, place: int) -> bool:
        """Return whether the same call found something else before, or the thought that follows says that something does not agree."""
        following = [place for place, each in enumerate(self.run.rounds) if each.calls][place] + 1
        if following < len(self.run.rounds) and _CONFLICT.search(self.run.rounds[following].think):
            return True
        for call, result in self._answered(place):
            now = self._relevant(content(call.words), result)
            for before in range(place):
                for other, told in self._answered(before):
                    then = self._relevant(content(call.words), told) if other == call else []
                    if now and then and not {_bare(line) for line in now} & {_bare(line) for line in then}:
                        return True
        return False

    # the answer

    def _guessed(self) -> bool:
        """Return whether the thought beside the answer calls it a guess."""
        last = next((each for each in reversed(self.run.rounds) if each.answer), None)
        return last is not None and bool(_GUESS.search(last.think))

    def _grounded(self) -> bool:
        """Return whether the answer stands in what was found; one without words of its own (yes, no), whether something was found."""
        answer = self.run.answer
        if not content(answer or ""):
            return self.findings[-1] == "KnowledgeAligned"
        return any(
            self._tells_answer(result)
            or any(_contains(line, answer) for line in self._relevant(content(call.words), result))
            for place in range(len(self.rounds))
            for call, result in self._answered(place)
            if not result.failed
        )

    def _astray(self) -> bool:
        """Return whether the first call has nothing to do with the question; calls without words (numbers, codes) tell nothing."""
        words = content(" ".join(call.words for call in self.rounds[0].calls)) if self.rounds else frozenset()
        words = frozenset(word for word in words if word.isalpha())
        return bool(words) and not words & content(self.run.question)

    def _diagnosis(self, goal: str, grounded: bool) -> str:
        """Return where a wrong answer seems to come from."""
        if goal == "GoalMisunderstood":
            return "GoalError"
        if not self.rounds:
            return "InternalKnowledgeConflict"
        if grounded:
            return "ReasoningError"
        return "InternalKnowledgeConflict" if "KnowledgeAligned" in self.findings else "RetrievalFailure"


@lru_cache(maxsize=4_096)
def content(text: str) -> frozenset[str]:
    """Return the stems of the content words and numbers of a text; passages are looked at once for every call."""
    return english.content(text)


def _contains(text: str, answer: str | None) -> bool:
    """Return whether an answer stands in a text, word for word, as exact match normalises both."""
    wanted = normalise(answer or "")
    return bool(wanted) and f" {wanted} " in f" {normalise(text)} "


def _bare(line: str) -> str:
    """Return a passage without its number."""
    return re.sub(r"\s*\[\d+\]\s*", " ", line).strip()

"""A player of BabyAI as a script, with habits that are often bad and a settable ear for advice. It stands in for a trained policy.

Text in, text out: it reads mission, observations and advice as a model would, names its plan in its thought, and calls `act`. Which plan
is right is written down nowhere here; the environment alone decides what comes of it.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from pydantic import PrivateAttr

from memweave.recipes.babyai_strategies import moving
from memweave.recipes.babyai_strategies.seeing import Plan, Seen, see
from memweave.recipes.lesson_rows import Said
from memweave.serving.tool_text import template_messages
from memweave.testing.models import ScriptedChatModel

WALKED: Final = 6
"""Turns of walking about after which a player thinks again."""
DONE: Final = "done"
STUCK: Final = "I give up"

Weights = Mapping[Plan, float]


@dataclass(frozen=True)
class Habits:
    """How often a player follows which plan, by what it has met; among those that are possible, weights need not add up to 1."""

    unknown: Weights = field(
        default_factory=lambda: {Plan.LOOK: 0.25, Plan.WALK: 0.55, Plan.DOOR: 0.08, Plan.KEY: 0.08, Plan.LEAVE: 0.04}
    )
    locked: Weights = field(
        default_factory=lambda: {
            Plan.TRY: 0.5, Plan.KEY: 0.15, Plan.LOOK: 0.1, Plan.WALK: 0.15, Plan.DOOR: 0.05, Plan.LEAVE: 0.05,
        }
    )  # fmt: skip
    blocked: Weights = field(default_factory=lambda: {Plan.AGAIN: 0.55, Plan.AROUND: 0.35, Plan.LEAVE: 0.1})
    compliance: float = 0.7
    """Probability that a piece of advice is taken to heart, each on its own, for a whole episode."""

    def of(self, finding: str) -> Weights:
        """Return the weights of what was met, a state of the machine; a known goal is gone to."""
        known = {"GoalUnknown": self.unknown, "DoorLocked": self.locked, "WayBlocked": self.blocked}
        return known.get(finding, {Plan.GO: 1.0})


BASE: Final = Habits()


def possible(seen: Seen) -> tuple[Plan, ...]:
    """Return the plans that can be followed now."""
    chart, finding = seen.chart, seen.finding
    if finding == "WayBlocked":
        return (Plan.AGAIN, Plan.AROUND, Plan.LEAVE)
    if finding == "GoalKnown":
        return (Plan.GO,)
    found = [Plan.WALK, Plan.LEAVE]
    if not seen.looked:
        found.insert(0, Plan.LOOK)
    if chart.doors():
        found.append(Plan.DOOR)
    if chart.keys(seen.mission) and not _holds_key(seen):
        found.append(Plan.KEY)
    if finding == "DoorLocked":
        found.append(Plan.TRY)
    return tuple(found)


def goes_on(seen: Seen) -> bool:
    """Return whether the plan of the last turn is neither carried out nor impossible."""
    chart, plan = seen.chart, seen.plan
    known = seen.finding == "GoalKnown"
    match plan:
        case Plan.LOOK:
            return not known and not seen.looked
        case Plan.WALK:
            return not known and seen.since < WALKED
        case Plan.DOOR:
            return not known and (moving.doorway(chart) or bool(chart.doors())) and not _through(seen)
        case Plan.KEY:
            return not _holds_key(seen) and bool(chart.keys(seen.mission))
        case Plan.TRY:
            return seen.finding == "DoorLocked" and seen.action != "toggle"
        case Plan.GO | Plan.AROUND:
            return known
    return False


def _holds_key(seen: Seen) -> bool:
    carried, doors = seen.chart.view.carried, seen.chart.locked(seen.mission).values()
    return carried is not None and carried.kind == "key" and (not doors or any(d.color == carried.color for d in doors))


def _through(seen: Seen) -> bool:
    """Return whether the last step led out of a door."""
    there = seen.chart.things.get(seen.cells[-1])
    return there is not None and there.kind == "door" and seen.chart.at != seen.cells[-1]


def decide(seen: Seen, habits: Habits, episode: str, rng: random.Random) -> Plan:
    """Return a plan: the first that is advised here, possible, and taken to heart; else one by habit. episode: its name."""
    plans = possible(seen)
    for piece in seen.advice:
        heeds = random.Random(f"{episode}:{piece.text}").random() < habits.compliance
        if heeds and piece.plan in plans and piece.finding in (None, seen.finding):
            return piece.plan
    weights = [habits.of(seen.finding).get(plan, 0.0) for plan in plans]
    return rng.choices(plans, weights)[0] if any(weights) else plans[0]


def reply(said: Sequence[Said], habits: Habits, episode: str) -> str:
    """Return the script's turn after the messages `said`, oldest first. episode: what it draws by, beside the number of the turn."""
    seen = see(said)
    if seen.over:
        return f"<think>{DONE}</think><answer>{DONE}</answer>"
    rng = random.Random(f"{episode}:{len(seen.done)}")
    plan = seen.plan if seen.plan is not None and goes_on(seen) else decide(seen, habits, episode, rng)
    if plan is Plan.LEAVE:
        return f"<think>{plan}</think><answer>{STUCK}</answer>"
    calls = [{"name": "act", "arguments": {"action": each}} for each in moving.actions(seen, plan, rng)]
    return f"<think>{plan}</think><tool_call>{json.dumps(calls)}</tool_call>"


class BabyAIScript(ScriptedChatModel):
    """The script as a chat model, which speaks the text protocol.

    habits: see `Habits`.  compliance: instead of that of the habits.  seed: of its decisions, which depend on nothing else but the name of
    the episode (`memweave_episode` of the run) and the number of the turn: both sides of a pair draw alike.
    """

    disable_streaming: bool = True
    _here: threading.local = PrivateAttr(default_factory=threading.local)

    def __init__(self, habits: Habits = BASE, *, compliance: float | None = None, seed: int = 0, **kwargs: Any) -> None:
        given = habits if compliance is None else replace(habits, compliance=compliance)

        def answer(messages: Sequence[BaseMessage]) -> str:
            said = [(m["role"], m["content"]) for m in template_messages(messages)]
            return reply(said, given, f"babyai-script:{seed}:{getattr(self._here, 'episode', '')}")

        super().__init__(answer, model_name="babyai-script", **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._reply(messages, run_manager)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._reply(messages, run_manager)  # it takes less time than to ask another thread

    def _reply(
        self,
        messages: list[BaseMessage],
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None,
    ) -> ChatResult:
        metadata = run_manager.metadata if run_manager and run_manager.metadata else {}
        self._here.episode = str(metadata.get("memweave_episode", ""))
        result = super()._generate(messages)
        self.calls.clear()  # a run has hundreds of thousands
        return result

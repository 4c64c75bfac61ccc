"""A thousand AgeMem episodes of a policy that does anything, right and wrong: what must hold in each of them."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage

from memweave.agents.context import ExtractiveSummarizer
from memweave.agents.memory_tools import ADD, DELETE, FILTER, RETRIEVE, SUMMARY, UPDATE
from memweave.graphs.agemem_episode import EpisodeOutput, EpisodeTask, create_agemem_episode_graph
from memweave.graphs.agemem_reward import PAPER, Judged, reward, tool_counts
from memweave.graphs.agemem_state import TOOLS_OF, Protocol, Variant
from memweave.memory_stores import MemoryBank, use_bank
from memweave.records import Scope
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import Score
from memweave.worlds.memhop import MemHop, MemHopSettings
from tests.graphs.agemem_play import Asked, Ours, Speaker

EPISODES = 1_000
ROUNDS = (2, 1, 3)
WORLD = MemHopSettings(messages=2)
JUNK = (
    "",
    "no tags",
    "<think>hm",
    "<answer>x",
    "<tool_call>[",
    "<tool_call>{}</tool_call>",
    "<tool_call>Look: []</tool_call>",
)


def words(messages: Sequence[BaseMessage]) -> int:
    """Count words, and one for each message."""
    return sum(1 + len(message.text.split()) for message in messages)


@dataclass
class Player:
    """Plays one episode after the other; every memory that it writes says in which one."""

    speaker: Speaker
    calls: list[list[BaseMessage]] = field(default_factory=list)
    rng: random.Random = field(default_factory=random.Random)
    mark: str = ""

    def begin(self, number: int) -> None:
        self.calls.clear()
        self.rng = random.Random(number)
        self.mark = f"zeal{number}x"

    def reply(self, messages: list[BaseMessage]) -> AIMessage | str:
        self.calls.append(list(messages))
        chance = self.rng.random()
        if chance < 0.25:
            return self.speaker.answer(self.rng.choice(["Boris", "It was nice.", ""]))
        if chance < 0.4 and self.speaker.protocol == "text":
            return self.rng.choice(JUNK)
        asked = self.rng.choices(self.asks(messages[-1].text), k=self.rng.randint(1, 3))
        made = self.speaker.calls(*asked, think=self.rng.choice(["", "so it is"]))
        both = chance > 0.95 and self.speaker.protocol == "text"
        return f"{made.text}<answer>x</answer>" if both else made

    def asks(self, last: str) -> list[Asked]:
        number = str(self.rng.choice([0, 1, 1, 2, 3]))
        return [
            (ADD, {"content": f"{last[:60]} {self.mark}"}),
            (UPDATE, {"memory_id": number, "content": f"now {self.mark}"}),
            (DELETE, {"memory_id": number, "confirmation": self.rng.random() < 0.8}),
            (RETRIEVE, {"query": last or "x", "top_k": self.rng.randint(0, 3)}),
            (SUMMARY, {"span": self.rng.choice(["all", "2", "0"])}),
            (FILTER, {"criteria": last or "x"}),
            ("Clear_context", {"criteria": "the weather"}),
            (ADD, {"text": "wrong"}),
            ("Remember", {}),
        ]


class Table:
    """The episode graph in one setting, and who plays on it. The judge alone knows the truth."""

    def __init__(self, variant: Variant, protocol: Protocol, limit: int) -> None:
        self.variant, self.limit = variant, limit
        self.player = Player(Speaker(protocol))
        make = Ours if protocol == "text" else ScriptedChatModel
        self.truth: dict[str, str] = {}
        self.graph: Any = create_agemem_episode_graph(
            make(self.player.reply), self._nobodys, judge=self.judge, variant=variant, context_tokens=limit, rounds=ROUNDS,
            protocol=protocol, profile="none" if protocol == "text" else "full", summarizer=ExtractiveSummarizer(2, 16),
            count_tokens=words, filter_threshold=0.5,
        )  # fmt: skip

    @staticmethod
    def _nobodys() -> MemoryBank:
        raise AssertionError("an episode opened a bank of its own")

    def judge(self, task: EpisodeTask, outcome: EpisodeOutput) -> Score:
        right = outcome["answer"] == self.truth[task.id]
        judged = Judged(
            answer=float(right) if outcome["answer"] is not None else None, good_adds=0, preserved=outcome["preserved"]
        )
        return reward(outcome["log"], judged, PAPER)


def task_of(number: int, table: Table, distractors: int | None = None) -> EpisodeTask:
    """Return an episode of MemHop whose true answer, and what only the judge looks for, are words that nobody says."""
    world = MemHop(replace(WORLD, distractors=number % 3 if distractors is None else distractors, p_restated=0.0))
    drawn = world.draw(random.Random(f"episodes:{number}"), f"e{number}")
    table.truth[drawn.id] = f"truth{number}x"
    return EpisodeTask(
        id=drawn.id,
        messages=drawn.messages,
        distractors=drawn.distractors,
        question=drawn.question,
        key_phrases=(f"phrase{number}x",),
    )


def check(number: int, task: EpisodeTask, table: Table, output: Any) -> None:
    calls, log = table.player.calls, output["log"]
    assert len(calls) == len(log.steps)
    fed: dict[int, list[str]] = {1: [], 2: [], 3: []}
    for call, step in zip(calls, log.steps, strict=True):
        prompt = "\n".join(message.text for message in call)
        assert isinstance(call[0], SystemMessage)
        assert words(call) <= table.limit
        assert (task.question in prompt) == (step.stage == 3)
        assert f"truth{number}x" not in prompt
        assert f"phrase{number}x" not in prompt
        assert set(re.findall(r"zeal\d+x", prompt)) <= {table.player.mark}  # no memory of another episode
        assert 1 <= step.round <= ROUNDS[step.stage - 1]
        if step.round == 1:
            fed[step.stage].append(prompt)
            first = len(fed[step.stage]) == 1
            if first and (step.stage == 2 or (step.stage == 3 and not task.distractors)):
                rest = [message for message in call[1:] if message.type == "human" and message.name is None]
                assert [message.text for message in rest] == [task.distractors[0] if step.stage == 2 else task.question]
                assert len(call) <= 3  # instructions, the message, and with `rag` what was put beside it
                assert len(call) == 2 or table.variant == "rag"
        for made in step.calls:
            assert made.ok == (made.fault is None)
            assert not made.ok or made.name in TOOLS_OF[table.variant]
    stages = [step.stage for step in log.steps]
    assert stages == sorted(stages)
    assert len(fed[1]) <= len(task.messages)
    assert len(fed[2]) <= len(task.distractors)
    for stage, messages in ((1, task.messages), (2, task.distractors)):
        for prompt, message in zip(fed[stage], messages, strict=False):
            assert message in prompt
    assert log.overflowed == (log.used > table.limit or any(step.overflow or step.late for step in log.steps))
    if not log.overflowed:
        assert (len(fed[1]), len(fed[2]), len(fed[3])) == (len(task.messages), len(task.distractors), 1)
    assert log.answered == (output["answer"] is not None)
    assert log.exhausted == (not log.answered and bool(log.steps) and stages[-1] == 3 and log.used <= table.limit)
    assert log.exhausted == (stages.count(3) == ROUNDS[2] and not log.answered and log.used <= table.limit)
    counts = tool_counts(log.steps)
    assert sum(counts.values()) == sum(len(step.calls) for step in log.steps)
    failed = sum(count for key, count in counts.items() if key.startswith("failed/"))
    assert failed == sum(not made.ok for step in log.steps for made in step.calls)
    assert output["preserved"] is False
    assert all(table.player.mark in text for text in output["stored"])
    assert output["reward"].low <= output["reward"].value <= output["reward"].high


def test_a_thousand_episodes_of_a_policy_that_does_anything(bank: MemoryBank, scope: Scope) -> None:
    settings: list[tuple[Variant, Protocol, int]] = [
        ("full", "text", 60), ("full", "text", 90), ("full", "text", 10_000), ("full", "native", 10_000), ("rag", "text", 90),
        ("rag", "native", 10_000), ("none", "text", 50), ("none", "text", 10_000),
    ]  # fmt: skip
    tables = [Table(*each) for each in settings]
    seen: dict[str, int] = {}
    for number in range(EPISODES):
        table = tables[number % len(tables)]
        task = task_of(number, table)
        table.player.begin(number)
        # One user for all, so that only the branch keeps episodes apart.
        with use_bank(bank.branch(scope=scope)):
            output = table.graph.invoke({"task": task}, context={"user": scope.user, "tenant": scope.tenant})
        check(number, task, table, output)
        stages = {step.stage for step in output["log"].steps}
        for name, happened in {
            "answered": output["log"].answered,
            "exhausted": output["log"].exhausted,
            "overflow": output["log"].overflowed,
            "never asked": 3 not in stages,
            "answer in a turn that overflows": output["log"].steps
            and output["log"].steps[-1].answer
            and not output["log"].answered,
            **tool_counts(output["log"].steps),
        }.items():
            seen[name] = seen.get(name, 0) + bool(happened)
    assert bank.memories(scope=scope) == []
    everything = [f"{tool}/{stage}" for tool in (*TOOLS_OF["full"], "failed") for stage in (1, 2, 3)]
    rare = {
        name: seen.get(name, 0)
        for name in ["answered", "exhausted", "overflow", "never asked", *everything]
        if seen.get(name, 0) < 5
    }
    assert rare == {}  # the policy did everything often enough for the rest to mean something


@pytest.mark.parametrize(("stage", "limit", "distractors"), [(1, 75, 1), (2, 110, 6), (3, 110, 1)])
def test_each_stage_can_overflow(bank: MemoryBank, scope: Scope, stage: int, limit: int, distractors: int) -> None:
    """Every stage has episodes in which it is the first to overflow, and they end as they should."""
    table, found = Table("full", "text", limit), 0
    for number in range(60):
        task = task_of(number, table, distractors)
        table.player.begin(number)
        with use_bank(bank.branch(scope=scope)):
            output = table.graph.invoke({"task": task}, context={"user": scope.user, "tenant": scope.tenant})
        check(number, task, table, output)
        first = next((step.stage for step in output["log"].steps if step.overflow and not step.late), None)
        if first == stage:
            found += 1
            if stage == 2:
                assert all(step.stage < 3 for step in output["log"].steps)
            if stage == 3:
                assert output["answer"] is None
    assert found >= 2

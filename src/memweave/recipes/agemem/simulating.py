"""MemHop episodes without a graph and without a bank, a hundred times as fast: what lessons are made from.

The flow, the texts of results and the ranking are those of `create_agemem_episode_graph` with the settings of the recipes; a test plays the
same teacher in both and compares every prompt.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from memweave.agents.context import ExtractiveSummarizer
from memweave.agents.memory_tools import ADD, FILTER, RETRIEVE, SUMMARY, UPDATE
from memweave.agents.tool_protocol import read_text_turn, tools_line
from memweave.embeddings import HashingEmbedder, Vectors
from memweave.recipes.agemem import teaching
from memweave.recipes.lesson_rows import Said
from memweave.worlds.memhop import MemHopTask

TOP_K: Final = 3
RECALLED: Final = 2
"""Memories that stage 1 puts beside each message, without being asked."""
FLOOR: Final = 0.35
"""Cosine below which nothing is put beside a message."""
THRESHOLD: Final = 0.6
ROUNDS: Final = (1, 1, 5)
"""Turns per message in stages 1 and 2, and for the question."""
SUMMARY_SENTENCES: Final = 2
SUMMARY_TOKENS: Final = 16

Policy = Callable[[Sequence[Said]], str]
Counter = Callable[[Sequence[Said]], int]

_EMBEDDER: Final = HashingEmbedder(256)


@lru_cache(maxsize=65_536)
def _vector(text: str) -> Vectors:
    row: Vectors = _EMBEDDER.embed([text])[0]
    return row


@dataclass
class Turn:
    """One reply, and what it was a reply to."""

    stage: int
    said: tuple[Said, ...]
    reply: str


@dataclass
class Simulated:
    """An episode that was played."""

    turns: list[Turn] = field(default_factory=list)
    answer: str | None = None
    overflowed: bool = False
    used: int = 0
    """Tokens of the context at the end."""
    memories: dict[int, str] = field(default_factory=dict)


@dataclass
class _Message:
    role: str
    text: str


class Simulator:
    """Plays one episode. names: the tools that the agent has.  recall_stages: where memories are put beside messages."""

    def __init__(
        self,
        policy: Policy,
        names: Sequence[str],
        *,
        recall_stages: Sequence[int] = (1,),
        limit: int | None = None,
        count: Counter | None = None,
        rounds: tuple[int, int, int] = ROUNDS,
    ) -> None:
        self.policy = policy
        self.names = names
        self.recall_stages = recall_stages
        self.limit = limit
        self.count = count
        self.rounds = rounds
        self.context: list[_Message] = []
        self.out = Simulated()
        self._next = 1

    def play(self, task: MemHopTask) -> Simulated:
        """Return the episode of `task`."""
        stages = (task.messages, task.distractors, (task.question,))
        for stage, feed in enumerate(stages, 1):
            if stage < 3:
                self.context = [_Message("system", tools_line(self.names))]
            for message in feed:
                self._feed(stage, message)
                if self._over() or not self._turns(stage):
                    break
        return self.out

    def _feed(self, stage: int, message: str) -> None:
        self.context.append(_Message("user", message))
        if stage in self.recall_stages and not self._over():
            found = self.search(message, RECALLED if stage == 1 else TOP_K, FLOOR)
            if found:
                self.context.append(_Message("tool", self._lines(found)))

    def _turns(self, stage: int) -> bool:
        """Let the policy answer one message; return whether the stage goes on."""
        for _ in range(self.rounds[stage - 1]):
            said = tuple((m.role, m.text) for m in self.context)
            reply = self.policy(said)
            self.out.turns.append(Turn(stage, said, reply))
            answered = self._act(reply)
            if self._over():
                return False
            if answered is not None:
                if stage == 3:
                    self.out.answer = answered
                return True
        return True

    def _act(self, reply: str) -> str | None:
        turn = read_text_turn(reply)
        own = _Message("assistant", reply)
        self.context.append(own)
        results = [self._call(call["name"], call["args"], own) for call in turn.calls] + [p.text for p in turn.problems]
        if results:
            self.context.append(_Message("tool", "\n".join(results)))
        return turn.answer

    def _call(self, name: str, given: dict[str, str], own: _Message) -> str:
        if name not in self.names:
            return "Error"
        if name == ADD:
            number, self._next = self._next, self._next + 1
            self.out.memories[number] = given["content"]
            return f"Added [{number}]."
        if name == UPDATE:
            number = int(given["memory_id"])
            self.out.memories[number] = given["content"]
            return f"Updated [{number}]."
        if name == RETRIEVE:
            return self.found(given["query"])
        last = max(i for i, m in enumerate(self.context) if m.role == "user")
        asked = self.context[last] if "Who is" in self.context[last].text else None
        free = [m for m in self.context if m.role != "system" and m is not own and m is not asked]
        if name == FILTER:
            wanted = _vector(given["criteria"])
            free = [m for m in free if float(_vector(m.text) @ wanted) >= THRESHOLD]
        if not free:
            return "Error: no message matches. Describe one with its own words."
        place = self.context.index(free[0])
        rest = [m for m in self.context if not any(m is each for each in free)]
        if name == SUMMARY:
            rest.insert(place, _Message("user", f"<summary>\n{_summary(free)}\n</summary>"))
        self.context[:] = rest
        number = len(free)
        done = "Removed" if name == FILTER else "Summarised"
        return f"{done} {number} message{'s' if number != 1 else ''}."

    def found(self, query: str) -> str:
        """Return what RETRIEVE shows for a query."""
        numbers = self.search(query, TOP_K, -1.0)
        return self._lines(numbers) if numbers else "No memory fits."

    def search(self, query: str, limit: int, floor: float) -> list[int]:
        """Return the numbers of the memories that fit best, best first."""
        if not self.out.memories:
            return []
        numbers = list(self.out.memories)
        similar = np.stack([_vector(self.out.memories[n]) for n in numbers]) @ _vector(query)
        order = sorted(range(len(numbers)), key=lambda i: (-round(float(similar[i]), 6), numbers[i]))
        return [numbers[i] for i in order[:limit] if similar[i] >= floor]

    def _lines(self, numbers: Sequence[int]) -> str:
        return "\n".join(f"- {self.out.memories[n]} [{n}]" for n in numbers)

    def _over(self) -> bool:
        if self.count is None:
            return False
        self.out.used = self.count([(m.role, m.text) for m in self.context])
        over = self.limit is not None and self.out.used > self.limit
        self.out.overflowed |= over
        return over


def _summary(span: Sequence[_Message]) -> str:
    kinds = {"user": HumanMessage, "assistant": AIMessage}
    messages = [kinds[m.role](m.text) if m.role in kinds else ToolMessage(m.text, tool_call_id="x") for m in span]
    text = ExtractiveSummarizer(SUMMARY_SENTENCES, SUMMARY_TOKENS).summarize(messages)
    return (text or "Nothing that matters was said.").replace("<", "&lt;")


def teacher(habits: teaching.Habits, rng: random.Random) -> Policy:
    """Return the script of `teaching` as a policy."""
    return lambda said: teaching.reply(said, habits, rng)


def words(said: Sequence[Said]) -> int:
    """Return about how many tokens a small policy's tokenizer makes of messages; for tests without one."""
    return sum(2 + len(re.findall(r"\w+|[^\w\s]", text)) for _, text in said)

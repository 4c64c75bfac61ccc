"""What the tests of the rules share: memories, facts, and a bank that is a list."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from memweave.agents.answerer import Answer, parse_answer_reply
from memweave.agents.extractor import parse_extract_reply
from memweave.agents.manager import parse_manage_reply
from memweave.agents.roles import AnswerRequest, ExtractRequest, Fact, ManageRequest
from memweave.agents.rules import RuleAnswerer, RuleExtractor, RuleManager
from memweave.records import Memory, OpKind, ProposedOp, Scope, Turn

NOON = datetime(2025, 3, 8, 12, tzinfo=UTC)
"""A Saturday."""


def turn(
    text: str, *, speaker: str = "Mara", at: datetime = NOON, previous: str | None = None, source: str = "t"
) -> Turn:
    return Turn(source_id=source, dialogue="d", speaker=speaker, text=text, observed_at=at, previous=previous)


def memory(
    text: str, *, speaker: str | None = "Mara", at: datetime | None = datetime(2025, 1, 11, tzinfo=UTC), n: int = 0
) -> Memory:
    return Memory(
        id=UUID(int=n + 1),
        version=1,
        scope=Scope(user="u"),
        text=text,
        speaker=speaker,
        observed_at=at,
        recorded_at=NOON,
    )


def extracted(said: Turn, *history: Turn) -> list[str]:
    """Return the facts of a turn, through the protocol."""
    request = ExtractRequest(turn=said, history=history)
    return [fact.text for fact in parse_extract_reply(RuleExtractor().reply(request), request)]


def managed(fact: str, *memories: Memory, speaker: str = "Mara", at: datetime = NOON) -> list[ProposedOp]:
    """Return the operations for one fact, through the protocol."""
    said = turn(fact, speaker=speaker, at=at)
    request = ManageRequest(facts=(Fact(text=fact, turn=said),), memories=memories)
    return parse_manage_reply(RuleManager().reply(request), request, actor="rule")


def items(request: ManageRequest) -> list[dict[str, str | int]]:
    """Return what the manager writes, as written."""
    found: list[dict[str, str | int]] = json.loads(RuleManager().reply(request))["memory"]
    return found


def answered(question: str, *memories: Memory) -> Answer:
    """Return the answer to a question, through the protocol."""
    request = AnswerRequest(question=question, memories=memories)
    return parse_answer_reply(RuleAnswerer().reply(request), request)


@dataclass
class ListBank:
    """Memories in a list; retrieval returns all of the speaker's, which is the hardest case for precision."""

    memories: dict[UUID, Memory] = field(default_factory=dict)
    ops: list[tuple[Turn, ProposedOp]] = field(default_factory=list)
    sources: dict[UUID, tuple[str, ...]] = field(default_factory=dict)

    def own(self, speaker: str) -> tuple[Memory, ...]:
        return tuple(m for m in self.memories.values() if m.speaker == speaker)

    def texts(self, speaker: str) -> list[str]:
        return [m.text for m in self.own(speaker)]

    def tell(self, turns: Sequence[Turn]) -> ListBank:
        """Take in turns, one after the other."""
        for index, said in enumerate(turns):
            request = ExtractRequest(turn=said, history=tuple(turns[max(0, index - 24) : index]))
            facts = parse_extract_reply(RuleExtractor().reply(request), request)
            if not facts:
                continue
            # The other speaker's memories are shown too: they must stay untouched.
            ask = ManageRequest(facts=tuple(facts), memories=tuple(self.memories.values()))
            for op in parse_manage_reply(RuleManager().reply(ask), ask, actor="rule"):
                self.ops.append((said, op))
                self._apply(op, said)
        return self

    def _apply(self, op: ProposedOp, said: Turn) -> None:
        if op.kind is OpKind.ADD:
            new = memory(op.text or "", speaker=said.speaker, at=said.observed_at, n=len(self.ops))
            self.memories[new.id] = new.model_copy(update={"source_ids": (said.source_id,)})
        elif op.kind is OpKind.UPDATE and op.memory_id is not None:
            old = self.memories[op.memory_id]
            update = {"text": op.text, "observed_at": said.observed_at, "source_ids": (*old.source_ids, said.source_id)}
            self.memories[old.id] = old.model_copy(update=update)
        elif op.kind is OpKind.DELETE and op.memory_id is not None:
            del self.memories[op.memory_id]

    def ask(self, question: str) -> Answer:
        """Answer from everything, grouped by participant, oldest first."""
        ordered = sorted(self.memories.values(), key=lambda m: (m.speaker or "", m.observed_at or NOON))
        return answered(question, *ordered)

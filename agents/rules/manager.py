"""The memory manager without a model (Memory-R1, section 3.1): what should happen to the memories, given new facts?

For each fact, against the memories of the same speaker only:

    says nothing new                                   -> NOOP
    another value of a single-valued attribute         -> UPDATE, the new wording first, unrelated details kept
    the same value, or the same statement, with detail -> UPDATE, both kept
    takes a memory back                                -> DELETE, and ADD when the end itself is worth knowing
    otherwise                                          -> ADD

Precision before recall: an UPDATE or DELETE that should not have been is worse than one more memory, so everything that no rule
is sure of is an ADD. Deterministic, and linear in facts times memories.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from langchain_core.runnables import RunnableConfig

from memweave.agents.roles import Fact, ManageRequest
from memweave.agents.rules import merging
from memweave.agents.rules.attributes import Slot, attribute_name, canonical, may_replace, shared_attribute, slots
from memweave.agents.rules.merging import Relation
from memweave.agents.rules.patterns import PHOTO
from memweave.agents.rules.retraction import Retraction, is_bare, retractions, takes_back
from memweave.agents.rules.text import sentences
from memweave.agents.rules.voice import said_prefix
from memweave.records import Memory, OpKind

SHORT: Final = 60
"""In characters: length of a quotation in a reason."""


@dataclass
class Decision:
    """One operation, before it is written down."""

    kind: OpKind
    reason: str
    number: int | None = None
    text: str | None = None


@dataclass
class _Draft:
    """The memories as they stand while the facts of one request are worked through."""

    texts: dict[int, str]
    """Current text by number, of the memories that may be touched."""
    memories: tuple[Memory, ...]
    changed: dict[int, Decision] = field(default_factory=dict)
    noops: dict[int | None, Decision] = field(default_factory=dict)
    """What was found to be in memory already, by number; `None` for what is about no memory in particular."""
    added: dict[str, str] = field(default_factory=dict)
    """Texts to add, with the reason."""
    seen: set[Hashable] = field(default_factory=set)
    """Identities of the facts worked through."""

    def change(self, decision: Decision) -> None:
        """Set what happens to a memory; a later decision about the same one takes the earlier one's place."""
        assert decision.number is not None
        before = self.changed.get(decision.number)
        if before is not None and before.reason not in decision.reason:
            decision.reason = f"{before.reason}; {decision.reason}"
        self.changed[decision.number] = decision
        if decision.kind is OpKind.DELETE:
            self.texts.pop(decision.number, None)
        elif decision.text is not None:
            self.texts[decision.number] = decision.text

    def leave(self, reason: str, number: int | None = None) -> None:
        """Note that a fact changes nothing."""
        self.noops.setdefault(number, Decision(OpKind.NOOP, reason, number))

    def decisions(self) -> list[Decision]:
        """Return changes by number, then what is left alone, then additions; no number twice."""
        changes = [self.changed[number] for number in sorted(self.changed)]
        left = [noop for number, noop in self.noops.items() if number is None or number not in self.changed]
        return [*changes, *left, *(Decision(OpKind.ADD, reason, text=text) for text, reason in self.added.items())]


class RuleManager:
    """Manages memories by rules; the same request always gives the same operations."""

    name = "rule"
    policy_version: str | None = None

    def reply(self, request: ManageRequest, config: RunnableConfig | None = None) -> str:
        """Return `{"memory": [...]}`."""
        items = [_item(decision) for decision in decide(request.facts, request.memories)]
        return json.dumps({"memory": items}, ensure_ascii=False)

    async def areply(self, request: ManageRequest, config: RunnableConfig | None = None) -> str:
        """Return `{"memory": [...]}`."""
        return self.reply(request, config)


def _item(decision: Decision) -> dict[str, str | int]:
    item: dict[str, str | int] = {} if decision.number is None else {"id": decision.number}
    item["event"] = decision.kind.value
    if decision.text is not None:
        item["text"] = decision.text
    return {**item, "reason": decision.reason}


def decide(facts: tuple[Fact, ...], memories: tuple[Memory, ...]) -> list[Decision]:
    """Return the operations that `facts` call for: changes by number first, then additions.

    A memory is considered only when its speaker is the fact's speaker and it is not younger than the fact.
    """
    if not facts:
        return []
    draft = _Draft({}, memories)
    for fact in facts:
        draft.texts = {
            number: draft.changed[number].text or memory.text if number in draft.changed else memory.text
            for number, memory in enumerate(memories)
            if _may_touch(fact, memory)
            and not (number in draft.changed and draft.changed[number].kind is OpKind.DELETE)
        }
        _one(fact, draft)
    return draft.decisions()


def _may_touch(fact: Fact, memory: Memory) -> bool:
    if memory.speaker != fact.turn.speaker:
        return False
    return memory.observed_at is None or fact.turn.observed_at is None or memory.observed_at <= fact.turn.observed_at


def _one(fact: Fact, draft: _Draft) -> None:
    """Decide about one fact."""
    speaker, text = fact.turn.speaker, fact.text.strip()
    if not text or _repeats(fact, text, draft):
        return
    if is_bare(text):
        draft.leave("takes something back without saying what")
        return
    taken_back = retractions(text, speaker)
    replaced = _replace(text, speaker, draft)  # first: "I left X and work at Y" is one UPDATE
    deleted = [_take_back(retraction, speaker, draft) for retraction in taken_back]
    if replaced:
        return
    if taken_back and not any(retraction.lasting for retraction in taken_back):
        if not any(deleted):
            draft.leave("takes something back that is not in memory")
        return
    if taken_back:
        draft.added[text] = "records what ended"
    elif not _extend(fact, text, draft):
        draft.added[text] = "new"


def _repeats(fact: Fact, text: str, draft: _Draft) -> bool:
    """Note a fact that is already in memory, or was just added."""
    for number, old in draft.texts.items():
        same_day = _day(fact.turn.observed_at) == _day(draft.memories[number].observed_at)
        if merging.relation(text, old, fact.turn.speaker, same_day=same_day) is Relation.REPEATS:
            draft.leave(f"already in memory: {_quote(old, fact.turn.speaker)}", number)
            return True
    identity = merging.identity(text, fact.turn.speaker)
    if identity in draft.seen:
        return True
    draft.seen.add(identity)
    return False


def _take_back(retraction: Retraction, speaker: str, draft: _Draft) -> bool:
    """Delete the memory that a retraction is about; the best match, the younger of two equal ones."""
    scored = [
        (takes_back(retraction, text, speaker), number)
        for number, text in draft.texts.items()
        if not retractions(text, speaker)
    ]
    best = max(scored, default=(0.0, -1), key=lambda pair: (pair[0], _time(draft.memories[pair[1]])))
    if best[0] == 0.0:
        return False
    old = draft.texts[best[1]]
    reason = f"{_quote(old, speaker)} no longer holds: same speaker, '{retraction.cue} {retraction.phrase}'"
    draft.change(Decision(OpKind.DELETE, reason, best[1]))
    return True


def _replace(text: str, speaker: str, draft: _Draft) -> bool:
    """Update the memories whose single-valued attribute has a new value in `text`; true when one was."""
    done = False
    for new in slots(text, speaker):
        if new.accumulates or not may_replace(new, text):
            continue
        for number, old_text in list(draft.texts.items()):
            old = next((s for s in slots(old_text, speaker) if s.same_attribute(new) and not s.same_value(new)), None)
            if old is None or retractions(old_text, speaker):
                continue
            reason = f"replaces {_quote(_saying(old, old_text, speaker), speaker)} (same speaker, attribute: {attribute_name(new)})"
            if not done:
                draft.change(
                    Decision(OpKind.UPDATE, reason, number, merging.replaced(text, old_text, new, old, speaker))
                )
                done = True
                continue
            rest = merging.without(old_text, old, speaker)
            draft.change(
                Decision(OpKind.UPDATE, reason, number, rest) if rest else Decision(OpKind.DELETE, reason, number)
            )
    return done


def _extend(fact: Fact, text: str, draft: _Draft) -> bool:
    """Merge a fact into the memory that gives the same attribute, adds up with it, or says much the same."""
    candidates: list[tuple[float, int, str, str]] = []
    speaker, shows = fact.turn.speaker, "[shares a photo" in fact.turn.text
    for number, old in draft.texts.items():
        if retractions(old, speaker) or (shows and PHOTO.match(old)):
            continue  # "this bowl" is in the photo that came with the words, not in an older one
        memory = draft.memories[number]
        same_day = _day(fact.turn.observed_at) == _day(memory.observed_at)
        old_day = None if same_day else _day(memory.observed_at)
        if merging.relation(text, old, speaker, same_day=same_day) is Relation.CONTAINS:
            candidates.append((3.0, number, text, f"says {_quote(old, speaker)} with more detail"))
            continue
        merged = merging.joined(old, text, speaker, old_day)
        if merged is None:
            continue
        shared = shared_attribute(text, old, speaker)
        if shared is not None:
            reason = f"joins {_quote(old, speaker)} (same speaker, attribute: {shared})"
            candidates.append((2.0, number, merged, reason))
        elif score := merging.overlap(text, old, speaker, same_day=same_day):
            candidates.append((score, number, merged, f"adds detail to {_quote(old, speaker)}"))
    if not candidates:
        return False
    _, number, merged, reason = max(candidates, key=lambda c: (c[0], -c[1]))
    draft.change(Decision(OpKind.UPDATE, reason, number, merged))
    return True


def _saying(slot: Slot, text: str, speaker: str) -> str:
    """Return the sentence of `text` that gives the slot's value."""
    said = said_prefix(text)[0]
    return next((sentence for sentence in sentences(said) if slot.value in canonical(sentence, speaker)), said)


def _quote(text: str, speaker: str) -> str:
    said = said_prefix(text)[0].removeprefix(f"{speaker} ").removeprefix("I ").rstrip(".!")
    return f"'{said[:SHORT].rstrip()}...'" if len(said) > SHORT else f"'{said}'"


def _day(moment: datetime | None) -> str | None:
    return moment.date().isoformat() if moment else None


def _time(memory: Memory) -> float:
    return memory.observed_at.timestamp() if memory.observed_at else 0.0

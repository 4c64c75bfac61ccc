"""MemHop: facts are told, then small talk, then a question that takes one to three of the facts (AgeMem, specification section 7).

An episode is a small random graph of people and relations: *messages* tell two facts each, some of them of the chain that the question
follows, the others about the same people or about anybody; with probability `p_stale` a later message corrects one that was told. Then come
`distractors` small-talk messages. The question names the first person and the relations; the answer is one person.

What is not baked in: a share `p_param` of all facts is the same in every episode, so it can be known by heart; with probability
`p_restated` the question itself repeats a fact of its chain; `p_stale = 0` makes updates worthless and `distractors = 0` leaves nothing to
filter. Nothing here knows which memory is tested.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal

from memweave.errors import InputError
from memweave.metrics import normalise

NAMES: Final = (
    "Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karin", "Lukas",
    "Maria", "Nico", "Olga", "Peter", "Rosa", "Simon", "Tina", "Uwe", "Vera", "Walter", "Yara", "Zeno",
)  # fmt: skip
RELATIONS: Final = ("friend", "boss", "neighbour", "teacher", "doctor", "cousin", "coach", "tenant")
UNSEEN_NAMES: Final = ("Mateo", "Ingrid", "Tariq", "Sunniva", "Dmitri", "Paloma", "Kofi", "Leilani", "Bruno", "Astrid")
"""People of the out-of-distribution split; no base policy has read of them."""

Split = Literal["train", "val", "test", "ood"]
SIZES: Final[dict[Split, int]] = {"train": 4_000, "val": 100, "test": 300, "ood": 100}

_OPENINGS: Final = (
    "the weather by the river", "the football match last night", "the soup at the market", "the film about the old ship",
    "the traffic on the bridge", "the flowers in the park", "the concert in the square", "the new bakery on the corner",
)  # fmt: skip
_REMARKS: Final = (
    "it was lovely", "it went on for hours", "I would go again", "it was far too loud", "everybody talked of it",
    "the children liked it", "it cost next to nothing", "it could have been better", "I took some pictures of it",
    "it made me hungry", "we stayed until noon", "I hope it lasts",
)  # fmt: skip


@dataclass(frozen=True)
class MemHopSettings:
    """How episodes are drawn."""

    messages: int = 3
    """Messages that tell facts, two each."""
    p_stale: float = 0.5
    """Probability that one more message corrects a fact that was told."""
    p_gold_stale: float = 0.7
    """Given a correction, the probability that it is about a fact of the chain."""
    distractors: int = 3
    """Small-talk messages."""
    p_param: float = 0.15
    """Share of facts that are the same in every episode."""
    p_restated: float = 0.2
    """Probability that the question repeats a fact of its chain."""
    hops: tuple[float, float, float] = (0.5, 0.4, 0.1)
    """Share of questions that take one, two and three facts."""
    mode: Literal["unrelated", "related"] = "unrelated"
    """related: small talk begins with the name of a person of the chain. It tells no fact of theirs, so no other relation either: it
    resembles the question by a name alone."""

    def __post_init__(self) -> None:
        for name in ("p_stale", "p_gold_stale", "p_param", "p_restated"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} = {getattr(self, name)} is no probability: give 0 to 1")
        if not 2 <= self.messages <= 10 or not 0 <= self.distractors <= 20:
            raise InputError(f"{self.messages} messages and {self.distractors} distractors: give 2 to 10, and 0 to 20")
        if min(self.hops) < 0 or abs(sum(self.hops) - 1) > 1e-6:
            raise InputError(f"hops = {self.hops}: give shares of one, two and three facts that add up to 1")


@dataclass(frozen=True, order=True)
class Triple:
    """One fact: `subject`'s `relation` is `value`."""

    subject: str
    relation: str
    value: str

    @property
    def text(self) -> str:
        """Return the fact as a sentence."""
        return f"{self.subject}'s {self.relation} is {self.value}."


@dataclass(frozen=True)
class MemHopTask:
    """One episode: what is said, and the truth that only the judge knows."""

    id: str
    messages: tuple[str, ...]
    distractors: tuple[str, ...]
    question: str
    key_phrases: tuple[str, ...]
    """People and relations of the question (K_q of Eq. 21)."""
    answer: str
    gold: tuple[Triple, ...]
    """The chain, as it is at the end."""
    facts: tuple[Triple, ...]
    """Everything that was told and still holds."""
    stale: bool
    """Whether a fact of the chain was corrected."""

    @property
    def hops(self) -> int:
        """Return how many facts the answer takes."""
        return len(self.gold)


class MemHop:
    """Draws episodes. Splits are disjoint; an episode of one seed and number is always the same."""

    def __init__(self, settings: MemHopSettings | None = None) -> None:
        self.settings = settings or MemHopSettings()

    def tasks(self, split: Split, number: int | None = None, seed: int = 0) -> list[MemHopTask]:
        """Return the first `number` episodes of a split, by default all. seed: of another draw of the same kind.

        Raises `InputError` for a split that does not exist, or more episodes than it has.
        """
        if split not in SIZES:
            raise InputError(f"there is no split {split!r}. There are: {', '.join(SIZES)}")
        count = SIZES[split] if number is None else number
        if not 0 <= count <= SIZES[split]:
            raise InputError(f"the split {split} has {SIZES[split]} episodes, not {count}")
        return [
            self.draw(random.Random(f"memhop:{split}:{seed}:{i}"), f"{split}-{seed}-{i}", split) for i in range(count)
        ]

    def draw(self, rng: random.Random, name: str, split: Split = "train") -> MemHopTask:
        """Return one episode."""
        given = self.settings
        names = UNSEEN_NAMES if split == "ood" else NAMES
        hops = rng.choices((1, 2, 3), given.hops)[0]
        chain = self._chain(rng, names, hops)
        told = list(chain)
        near = list(dict.fromkeys(p for t in chain for p in (t.subject, t.value)))
        while len(told) < 2 * given.messages:
            subject = rng.choice(near) if rng.random() < 0.4 else rng.choice(names)
            relation = rng.choice(RELATIONS)
            if not any((t.subject, t.relation) == (subject, relation) for t in told):
                told.append(self._triple(rng, subject, relation, names))
        rng.shuffle(told)
        now = {(t.subject, t.relation): t for t in told}
        messages = [f"{one.text} {other.text}" for one, other in zip(told[::2], told[1::2], strict=True)]
        gold = {(t.subject, t.relation) for t in chain}
        stale = False
        if rng.random() < given.p_stale:
            about_chain = rng.random() < given.p_gold_stale
            # Only the last fact of a chain can change without changing what the chain goes on from.
            old = chain[-1] if about_chain else rng.choice([t for t in told if (t.subject, t.relation) not in gold])
            new = Triple(old.subject, old.relation, rng.choice([n for n in names if n not in (old.subject, old.value)]))
            now[old.subject, old.relation] = new
            messages.append(f"{new.subject}'s {new.relation} is now {new.value}.")
            stale = about_chain
        final = tuple(now[t.subject, t.relation] for t in chain)
        return MemHopTask(
            id=name,
            messages=tuple(messages),
            distractors=tuple(self._small_talk(rng, near) for _ in range(given.distractors)),
            question=self._question(rng, final),
            key_phrases=(final[0].subject, *(t.relation for t in final)),
            answer=final[-1].value,
            gold=final,
            facts=tuple(now.values()),
            stale=stale,
        )

    def _triple(self, rng: random.Random, subject: str, relation: str, names: Sequence[str]) -> Triple:
        fixed = by_heart(subject, relation)
        if rng.random() < self.settings.p_param and fixed is not None and fixed != subject and fixed in names:
            return Triple(subject, relation, fixed)
        return Triple(subject, relation, rng.choice([name for name in names if name != subject]))

    def _chain(self, rng: random.Random, names: Sequence[str], hops: int) -> list[Triple]:
        """Return facts of which each goes on from the last, through different people."""
        while True:
            subject, chain = rng.choice(names), list[Triple]()
            for relation in rng.sample(RELATIONS, hops):
                chain.append(self._triple(rng, subject, relation, names))
                subject = chain[-1].value
            people = [chain[0].subject, *(t.value for t in chain)]
            if len(set(people)) == len(people):
                return chain

    def _question(self, rng: random.Random, chain: Sequence[Triple]) -> str:
        asked = question_of(chain[0].subject, [t.relation for t in chain])
        if rng.random() < self.settings.p_restated:
            return f"{rng.choice(chain).text} {asked}"
        return asked

    def _small_talk(self, rng: random.Random, near: Sequence[str]) -> str:
        opening = rng.choice(_OPENINGS)
        remarks = rng.sample(_REMARKS, rng.randint(1, 10))
        if self.settings.mode == "related":
            opening = f"{rng.choice(near)} and {opening}"
        return f"About {opening}: {', '.join(remarks)}."


def question_of(subject: str, relations: Sequence[str]) -> str:
    """Return the question that follows `relations` from `subject`, the first one first."""
    return f"Who is {''.join(f'the {relation} of ' for relation in reversed(relations))}{subject}?"


@dataclass(frozen=True)
class Asked:
    """A question, read."""

    subject: str
    relations: tuple[str, ...]
    """The first one first."""


def read_question(text: str) -> Asked | None:
    """Return what `text` asks; `None` when it asks nothing that this world knows."""
    found = re.search(r"Who is ((?:the \w+ of )+)(\w+)\?", text)
    if found is None:
        return None
    return Asked(found[2], tuple(reversed(re.findall(r"the (\w+) of ", found[1]))))


@lru_cache(maxsize=16_384)
def read_facts(text: str) -> tuple[Triple, ...]:
    """Return the facts that `text` tells, in their order."""
    return tuple(Triple(s, r, v) for s, r, v in re.findall(r"(\w+)'s (\w+) is (?:now )?(\w+)\.", text))


def is_correction(text: str) -> bool:
    """Return whether `text` corrects an earlier fact."""
    return re.search(r"'s \w+ is now \w+\.", text) is not None


@lru_cache(maxsize=4_096)
def by_heart(subject: str, relation: str) -> str | None:
    """Return the person that a fact has in the share of episodes that can be known by heart; `None` for unseen people."""
    if subject not in NAMES or relation not in RELATIONS:
        return None
    others = [name for name in NAMES if name != subject]
    return random.Random(f"memhop:fixed:{subject}:{relation}").choice(others)


def score(task: MemHopTask, answer: str | None) -> float:
    """Return 1 for the right person (exact match, normalised), else 0. Reward and evaluation use this."""
    return float(answer is not None and normalise(answer) == normalise(task.answer))


def memory_quality(task: MemHopTask, stored: Sequence[str]) -> float:
    """Return MQ: token-free F1 of the stored facts against the chain; for evaluation only, it is in no reward.

    A stored memory that tells no fact, an outdated one or one that is stored already counts as irrelevant.
    """
    held: set[Triple] = set()
    wrong = 0
    for text in stored:
        facts = read_facts(text)
        fresh = [fact for fact in facts if fact in task.gold and fact not in held]
        held.update(fresh)
        wrong += not fresh
    precision = len(held) / (len(held) + wrong) if stored else 0.0
    recall = len(held) / len(task.gold)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def without(settings: MemHopSettings, *, stale: bool = False, distractors: bool = False) -> MemHopSettings:
    """Return the control without corrections (`stale`), or without small talk (`distractors`)."""
    changed = replace(settings, p_stale=0.0) if stale else settings
    return replace(changed, distractors=0) if distractors else changed

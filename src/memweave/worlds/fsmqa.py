"""FSM-QA: questions whose best strategy is hidden in how they are asked (trainable graph memory, specification section 7).

A question names two people and two relations, tells what the agent believes, and has some words of its *kind* mixed with words of
another. The kind decides what is asked for, how good beliefs are, and what the knowledge base holds:

    known          the belief is right; the knowledge base is poor
    single         one look-up
    sequential     a look-up that depends on the one before
    parallel       who of the two ranks higher
    misleading     one look-up, and the belief is wrong
    unsearchable   the knowledge base is outdated or silent; the belief is mostly right

Every question has a small world of its own: nothing can be known by heart. Success is that the submitted name is the right one; where the
knowledge base lacks it, the belief is the only place where the right name stands. Nothing here knows a strategy, or which memory is tested.
"""

from __future__ import annotations

import random
import threading
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import product
from typing import Final, Literal

from langchain_core.tools import BaseTool, StructuredTool

from memweave.errors import InputError
from memweave.metrics import normalise

NAMES: Final = (
    "Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karin", "Lukas",
    "Maria", "Nico", "Olga", "Peter", "Rosa", "Simon", "Tina", "Uwe", "Vera", "Walter", "Yara", "Zeno",
)  # fmt: skip
OTHER_NAMES: Final = (
    "Agnes", "Bruno", "Celia", "Dmitri", "Edith", "Fabio", "Gloria", "Henrik", "Ingrid", "Jasper", "Kofi", "Leila",
    "Mateo", "Nadia", "Oscar", "Paloma", "Quentin", "Rahel", "Stefan", "Tariq", "Ursula", "Viktor", "Wanda", "Yusuf",
)  # fmt: skip
"""People of the split `ood-entities`."""
RELATIONS: Final = ("friend", "boss", "neighbour", "teacher", "doctor", "coach")
RANK: Final = "rank"
"""The relation that is compared: 1 to 9."""
TOP: Final = 3
"""Results of a search."""
NOTHING: Final = "nothing found"


class Kind(StrEnum):
    """What a question is like, which nobody is told."""

    KNOWN = "known"
    SINGLE = "single"
    SEQUENTIAL = "sequential"
    PARALLEL = "parallel"
    MISLEADING = "misleading"
    UNSEARCHABLE = "unsearchable"


KINDS: Final = tuple(Kind)
PER_POOL: Final = 4
"""Words of a kind or a topic."""
TOPICS: Final = 4
_SYLLABLES: Final = [a + b for a, b in product("bdfgklmnprstvz", "aeiou")]
LEXICON: Final = tuple(
    "".join(parts)
    for parts in random.Random("fsmqa:lexicon").sample(
        list(product(_SYLLABLES, _SYLLABLES)), PER_POOL * (len(KINDS) + TOPICS)
    )
)
"""Words without a meaning of their own."""
POOLS: Final = tuple(LEXICON[i : i + PER_POOL] for i in range(0, len(LEXICON), PER_POOL))
"""Words by pool: first those of the kinds, in the order of `KINDS`, then those of topics, which have nothing to do with the kind."""

Split = Literal["build", "weights", "rl", "val", "test", "ood-entities", "ood-mixture", "ood-chains"]
SPLITS: Final[Mapping[Split, frozenset[int]]] = {
    "build": frozenset({0}),
    "weights": frozenset({1, 2}),
    "rl": frozenset({3, 4, 5}),
    "val": frozenset({6}),
    "test": frozenset({7}),
    "ood-entities": frozenset({7}),
    "ood-mixture": frozenset({7}),
    "ood-chains": frozenset({7}),
}
"""Eighths of what can be asked (people and relations): what is tested is never what is learned from."""
SIZES: Final[Mapping[Split, int]] = {
    "build": 200,
    "weights": 1_000,
    "rl": 4_000,
    "val": 200,
    "test": 400,
    "ood-entities": 200,
    "ood-mixture": 200,
    "ood-chains": 200,
}
OTHER_MIXTURE: Final = (0.05, 0.05, 0.3, 0.1, 0.2, 0.3)
"""Shares of the kinds in the split `ood-mixture`."""


@dataclass(frozen=True)
class FSMQASettings:
    """How questions are drawn, and how well the knowledge base answers."""

    words: int = 8
    """Of a question, beside names and relations."""
    alignment: float = 0.7
    """Probability that a word belongs to the kind; the others are of one other kind or topic."""
    mixture: tuple[float, ...] = (1 / 6,) * 6
    """Shares of the kinds, in the order of `KINDS`."""
    beliefs: tuple[float, ...] = (0.95, 0.2, 0.1, 0.15, 0.05, 0.8)
    """Probabilities that the belief is right, by kind."""
    hops: int = 2
    """Look-ups of a sequential question, and relations that every question names: 2 or 3."""
    p_miss: float = 0.1
    """Probability that a search does not find what there is."""
    p_noise: float = 0.05
    """Probability that a search finds it with another name, this once."""
    p_outdated: float = 0.75
    """Probability that the knowledge base tells another name, always the same, of what it does not know (known, unsearchable)."""

    def __post_init__(self) -> None:
        shares = {"alignment": self.alignment, "p_miss": self.p_miss, "p_noise": self.p_noise}
        shares |= {"p_outdated": self.p_outdated} | {f"beliefs[{i}]": p for i, p in enumerate(self.beliefs)}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise InputError(f"{name} = {value} is no share: give 0 to 1")
        if len(self.beliefs) != len(KINDS) or len(self.mixture) != len(KINDS):
            raise InputError(f"mixture and beliefs need one number for each of {', '.join(KINDS)}")
        if min(self.mixture) < 0 or abs(sum(self.mixture) - 1) > 1e-6:
            raise InputError(f"mixture = {self.mixture}: give shares that add up to 1")
        if self.words < 1 or self.hops not in (2, 3):
            raise InputError(f"{self.words} words and {self.hops} hops: give 1 word at least, and 2 or 3 hops")


@dataclass(frozen=True)
class FSMQATask:
    """One question, and the truth that only the judge and the knowledge base know."""

    id: str
    text: str
    kind: Kind
    people: tuple[str, str]
    relations: tuple[str, ...]
    belief: str
    answer: str
    names: tuple[str, ...] = field(repr=False)
    """Everybody in the world of this question."""
    recorded: str | None = None
    """What the knowledge base has instead of the answer, where it does not know it."""


class FSMQA:
    """Draws questions. Those of a split, a seed and a number are always the same; splits share no people with relations."""

    def __init__(self, settings: FSMQASettings | None = None) -> None:
        self.settings = settings or FSMQASettings()

    def tasks(self, split: Split, number: int | None = None, seed: int = 0) -> list[FSMQATask]:
        """Return `number` questions of a split, by default as many as `SIZES` says.

        Raises `InputError` for a split that does not exist, or fewer than no questions.
        """
        if split not in SPLITS:
            raise InputError(f"there is no split {split!r}. There are: {', '.join(SPLITS)}")
        number = SIZES[split] if number is None else number
        if number < 0:
            raise InputError(f"{number} questions cannot be drawn: give 0 or more")
        world = self.of(split)
        made = []
        for i in range(number):
            name = f"{split}-{seed}-{i}"
            made.append(world.draw(random.Random(f"fsmqa:{name}"), name, names=_names(split), parts=SPLITS[split]))
        return made

    def of(self, split: Split) -> FSMQA:
        """Return the world as a split has it: with another mixture, or longer chains."""
        if split == "ood-mixture":
            return FSMQA(replace(self.settings, mixture=OTHER_MIXTURE))
        return FSMQA(replace(self.settings, hops=3)) if split == "ood-chains" else self

    def draw(
        self,
        rng: random.Random,
        name: str,
        kind: Kind | None = None,
        *,
        names: tuple[str, ...] = NAMES,
        parts: frozenset[int] = frozenset(range(8)),
    ) -> FSMQATask:
        """Return one question, of any kind unless it is given. parts: eighths of what can be asked."""
        given = self.settings
        z = rng.choices(KINDS, given.mixture)[0] if kind is None else kind
        while True:
            first, second = rng.sample(names, 2)
            relations = tuple(rng.sample(RELATIONS, given.hops))
            if _part(first, second, relations) not in parts:
                continue
            task = FSMQATask(name, "", z, (first, second), relations, "", "", names)
            chain = _chain(task)
            ranks = [fact(task, RANK, person) for person in (first, second)]
            # What one strategy finds is nothing that another one could find by accident.
            if len({first, second, *chain}) == 2 + len(chain) and ranks[0] != ranks[1]:
                break
        higher = first if ranks[0] > ranks[1] else second
        answer = {Kind.SEQUENTIAL: chain[-1], Kind.PARALLEL: higher}.get(z, chain[0])
        others = [each for each in names if each not in (first, second, *chain)]
        wrong, other = rng.sample(others, 2)
        belief = answer if rng.random() < given.beliefs[KINDS.index(z)] else wrong
        lacks = z in (Kind.KNOWN, Kind.UNSEARCHABLE)
        recorded = other if lacks and rng.random() < given.p_outdated else None
        words = self._words(rng, z)
        text = f"{first}, {second}: {', '.join(relations)}. Maybe {belief}. {words}"
        return replace(task, text=text, belief=belief, answer=answer, recorded=recorded)

    def _words(self, rng: random.Random, kind: Kind) -> str:
        given = self.settings
        own = KINDS.index(kind)
        other = rng.choice([i for i in range(len(POOLS)) if i != own])
        pools = (own if rng.random() < given.alignment else other for _ in range(given.words))
        return " ".join(rng.choice(POOLS[pool]) for pool in pools)


def fact(task: FSMQATask, relation: str, person: str) -> str:
    """Return what is true in the world of a question."""
    rng = random.Random(f"fsmqa:{task.id}:{task.people}:{relation}:{person}")
    if relation == RANK:
        return str(rng.randint(1, 9))
    return rng.choice([name for name in task.names if name != person])


def score(task: FSMQATask, answer: str | None) -> float:
    """Return 1 for the right name (exact match, normalised), else 0. Reward and evaluation use this."""
    return float(answer is not None and normalise(answer) == normalise(task.answer))


class KnowledgeBase:
    """Answers the searches of one episode. seed: of misses and noise, which also depend on how many searches came before.

    With equal seeds, the same searches in the same order find the same. Safe under threads.
    """

    def __init__(self, task: FSMQATask, settings: FSMQASettings | None = None, *, seed: int = 0) -> None:
        self.task = task
        self.settings = settings or FSMQASettings()
        self.seed = seed
        self._asked: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def search(self, relation: str, entity: str) -> str:
        """Return up to three lines `Anna friend: Boris [1]`, best known people and relations only; `nothing found` for others."""
        relation, entity = relation.strip().lower(), entity.strip()
        if entity not in self.task.names or relation not in (*RELATIONS, RANK):
            return NOTHING
        with self._lock:
            before = self._asked[relation, entity]
            self._asked[relation, entity] += 1
        rng = random.Random(f"fsmqa:search:{self.task.id}:{self.seed}:{relation}:{entity}:{before}")
        found = self._found(rng, relation, entity)
        lines = [] if found is None else [(entity, relation, found)]
        near = [(entity, other) for other in RELATIONS if other != relation]
        near += [(other, relation) for other in self.task.names if other != entity]
        for person, about in rng.sample(near, TOP - len(lines)):
            known = self._known(about, person)
            if known is not None:
                lines.append((person, about, known))
        rng.shuffle(lines)
        return "\n".join(f"{person} {about}: {value} [{i}]" for i, (person, about, value) in enumerate(lines, 1))

    def _known(self, relation: str, person: str) -> str | None:
        """Return what the knowledge base has."""
        task = self.task
        lacks = task.kind in (Kind.KNOWN, Kind.UNSEARCHABLE)
        if lacks and (relation, person) == (task.relations[0], task.people[0]):
            return task.recorded
        return fact(task, relation, person)

    def _found(self, rng: random.Random, relation: str, person: str) -> str | None:
        known = self._known(relation, person)
        if known is None or rng.random() < self.settings.p_miss:
            return None
        if rng.random() < self.settings.p_noise:
            values = [str(i) for i in range(1, 10)] if relation == RANK else self.task.names
            return rng.choice([value for value in values if value not in (known, person)])
        return known


def search_tool(task: FSMQATask, settings: FSMQASettings | None = None, *, seed: int = 0) -> BaseTool:
    """Return the tool `search` of one episode. seed: see `KnowledgeBase`."""
    return StructuredTool.from_function(
        KnowledgeBase(task, settings, seed=seed).search,
        name="search",
        description=f"Look up a relation of a person. relation: {', '.join((*RELATIONS, RANK))}.  entity: the person's name.",
    )


def _names(split: Split) -> tuple[str, ...]:
    return OTHER_NAMES if split == "ood-entities" else NAMES


def _part(first: str, second: str, relations: tuple[str, ...]) -> int:
    return zlib.crc32(f"{first} {second} {' '.join(relations[:2])}".encode()) % 8


def _chain(task: FSMQATask) -> tuple[str, ...]:
    """Return whom the relations lead to, one after the other."""
    people = [task.people[0]]
    for relation in task.relations:
        people.append(fact(task, relation, people[-1]))
    return tuple(people[1:])

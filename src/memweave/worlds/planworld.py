"""PlanWorld: tasks that need a plan, told in the words of a family that nobody explained (Memento, specification section 8).

A *family* is a way of speaking: each of its *rules* says which plan a task needs, and has words of its own. A text first speaks of a
*topic*, which has nothing to do with the plan, and then says what is wanted in words of its rule (share `alignment`, the specification's
lambda). Some rules are told in plain words, which mean the same in every family and can be known by heart; the others are jargon, one
word each, and only experience tells what it asks for. With much alignment, texts that look alike need the same plan; with little, texts
that look alike are about the same topic.

A plan is two to four steps over a small directory of people. `run_step` carries one out. Nothing here knows which memory is tested.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Final, Literal

from memweave.errors import InputError
from memweave.metrics import normalise

NAMES: Final = (
    "Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karin", "Lukas",
    "Maria", "Nico", "Olga", "Peter",
)  # fmt: skip
CITIES: Final = ("Paris", "Rome", "Oslo", "Lima", "Cairo")
TEAMS: Final = ("red", "blue", "green", "gold")
ATTRIBUTES: Final = ("boss", "friend", "city", "team", "age")

SKELETONS: Final[tuple[tuple[str, ...], ...]] = (
    ("look up the boss of {name}", "then the city"),
    ("look up the boss of {name}", "then the friend"),
    ("look up the friend of {name}", "then the team"),
    ("look up the friend of {name}", "then the boss", "then the age"),
    ("look up the age of {name}", "add {number}"),
    ("look up the friend of {name}", "then the age", "add {number}"),
    ("look up the team of {name}", "find all with this team", "count them"),
    ("look up the city of {name}", "find all with this city", "take the oldest"),
    ("look up the city of {name}", "find all with this city", "take the youngest", "then the boss"),
    ("look up the team of {name}", "find all with this team", "take the oldest", "then the friend"),
    ("look up the city of {name}", "find all with this city", "add up the ages"),
    ("look up the team of {name}", "find all with this team", "count them", "add {number}"),
)
"""The plans that tasks need. Which rule needs which is a matter of the family, but for plain words."""

PLAIN: Final[tuple[tuple[str, ...], ...]] = (
    ("chief", "town", "manager", "place"), ("chief", "buddy", "manager", "pal"), ("pal", "squad", "buddy", "group"),
    ("pal", "chief", "years", "manager"), ("years", "plus", "birthday", "more"), ("buddy", "years", "plus", "more"),
    ("squad", "size", "group", "many"), ("town", "eldest", "place", "senior"), ("town", "junior", "chief", "newest"),
    ("squad", "eldest", "pal", "senior"), ("town", "sum", "years", "total"), ("squad", "size", "plus", "more"),
)  # fmt: skip
"""Words of a plain rule, by skeleton."""

_SYLLABLES: Final = [a + b for a, b in product("bdfgklmnprstvz", "aeiou")]
LEXICON: Final = tuple(
    "".join(parts) for parts in random.Random("planworld:lexicon").sample(list(product(_SYLLABLES, _SYLLABLES)), 200)
)
"""Words without a meaning of their own. Families of the splits `ood` take the second half, all others the first."""

Split = Literal["train", "val", "test", "ood"]


@dataclass(frozen=True)
class PlanWorldSettings:
    """How families and tasks are drawn."""

    families: int = 4
    rules: int = 6
    """Per family; they need different plans."""
    plain: int = 2
    """Of these, told in plain words."""
    topics: int = 6
    """Per family; each has as many words as a rule."""
    words: int = 10
    """Of a text, beside the name and the number."""
    alignment: float = 0.7
    """Share of the words that belong to the rule (lambda)."""
    p_fail: float = 0.05
    """Probability that a step of a plan fails, whatever it is (p_exec)."""

    def __post_init__(self) -> None:
        for name in ("alignment", "p_fail"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} = {getattr(self, name)} is no share: give 0 to 1")
        if not 0 <= self.plain <= self.rules <= len(SKELETONS):
            raise InputError(
                f"{self.plain} plain of {self.rules} rules: give 0 to {len(SKELETONS)} rules, no more plain ones"
            )
        if self.families < 1 or self.topics < 1 or self.words < 1:
            raise InputError("families, topics and words must be 1 at least")
        needed = self.families * (self.rules - self.plain + self.topics) * PER_POOL
        if needed > len(LEXICON) // 2:
            raise InputError(
                f"{needed} words are needed for that many families, rules and topics; there are {len(LEXICON) // 2}"
            )


PER_POOL: Final = 1
"""Words of a jargon rule or a topic."""


@dataclass(frozen=True)
class Rule:
    """What a family calls a kind of task, and the plan that it needs."""

    words: tuple[str, ...]
    skeleton: int
    plain: bool


@dataclass(frozen=True)
class Family:
    """A way of speaking."""

    name: str
    rules: tuple[Rule, ...]
    topics: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class PlanTask:
    """One task: its text, and the truth that only the judge knows."""

    id: str
    text: str
    family: str
    rule: int
    """Which of its family's rules (the latent z)."""
    topic: int
    """The nuisance u."""
    plain: bool
    plan: tuple[str, ...]
    answer: str


class PlanWorld:
    """Draws families and tasks. The families of a split and a seed are always the same; every iteration has fresh tasks of them."""

    def __init__(self, settings: PlanWorldSettings | None = None) -> None:
        self.settings = settings or PlanWorldSettings()

    def families(self, split: Split, seed: int = 0) -> tuple[Family, ...]:
        """Return the families of a split, with words that no two of them share."""
        _check_split(split)
        rng = random.Random(f"planworld:families:{split}:{seed}")
        half = len(LEXICON) // 2
        words = list(LEXICON[half:] if split == "ood" else LEXICON[:half])
        rng.shuffle(words)
        return tuple(self.family(rng, f"{split}-{seed}-{i}", words) for i in range(self.settings.families))

    def family(self, rng: random.Random, name: str, words: list[str]) -> Family:
        """Return a family that takes its words from the end of `words`, in place."""
        given = self.settings

        def pool() -> tuple[str, ...]:
            return tuple(words.pop() for _ in range(PER_POOL))

        skeletons = rng.sample(range(len(SKELETONS)), given.rules)
        rules = tuple(
            Rule(PLAIN[skeleton], skeleton, True) if place < given.plain else Rule(pool(), skeleton, False)
            for place, skeleton in enumerate(skeletons)
        )
        return Family(name, rules, tuple(pool() for _ in range(given.topics)))

    def tasks(self, split: Split, number: int, seed: int = 0, *, iteration: int = 0) -> list[PlanTask]:
        """Return `number` tasks of the families of a split. iteration: of another draw from the same families.

        Raises `InputError` for a split that does not exist, or fewer than no tasks.
        """
        _check_split(split)
        if number < 0:
            raise InputError(f"{number} tasks cannot be drawn: give 0 or more")
        families = self.families(split, seed)
        made = []
        for i in range(number):
            name = f"{split}-{seed}-{iteration}-{i}"
            rng = random.Random(f"planworld:{name}")
            made.append(self.draw(rng, name, rng.choice(families)))
        return made

    def draw(
        self, rng: random.Random, name: str, family: Family, rule: int | None = None, topic: int | None = None
    ) -> PlanTask:
        """Return one task of a family, of any rule and topic unless they are given."""
        given = self.settings
        z = rng.randrange(len(family.rules)) if rule is None else rule
        u = rng.randrange(len(family.topics)) if topic is None else topic
        cues = round(given.alignment * given.words)
        words = rng.choices(family.topics[u], k=given.words - cues) + rng.choices(family.rules[z].words, k=cues)
        person, number = _asked(rng, family.rules[z].skeleton)
        steps = plan_of(family.rules[z].skeleton, person, number)
        return PlanTask(
            id=name,
            text=f"{person}, {number}: {' '.join(words)}",
            family=family.name,
            rule=z,
            topic=u,
            plain=family.rules[z].plain,
            plan=steps,
            answer=carried_out(steps),
        )


def plan_of(skeleton: int, name: str, number: int) -> tuple[str, ...]:
    """Return the steps of a plan about a person and a number."""
    return tuple(step.format(name=name, number=number) for step in SKELETONS[skeleton])


def read_text(text: str) -> tuple[str, int] | None:
    """Return the name and the number of a task's text; `None` if it is none."""
    found = re.match(r"(\w+), (\d+): ", text)
    return (found[1], int(found[2])) if found else None


def score(task: PlanTask, answer: str | None) -> float:
    """Return 1 for the right answer (exact match, normalised), else 0. Reward and evaluation use this."""
    return float(answer is not None and normalise(answer) == normalise(task.answer))


class StepError(ValueError):
    """A step that cannot be carried out; the text says why."""


@dataclass(frozen=True)
class Person:
    """One line of the directory."""

    boss: str
    friend: str
    city: str
    team: str
    age: int


@lru_cache(maxsize=1)
def directory() -> dict[str, Person]:
    """Return the people that all tasks are about; always the same."""
    rng = random.Random("planworld:directory")
    ages = rng.sample(range(21, 70), len(NAMES))
    return {
        name: Person(
            boss=rng.choice([other for other in NAMES if other != name]),
            friend=rng.choice([other for other in NAMES if other != name]),
            city=rng.choice(CITIES),
            team=rng.choice(TEAMS),
            age=age,
        )
        for name, age in zip(NAMES, ages, strict=True)
    }


def carried_out(steps: Sequence[str]) -> str:
    """Return the result of the last step of a plan. Raises `StepError` for one that cannot be carried out."""
    result: str | None = None
    for step in steps:
        result = run_step(step, result)
    if result is None:
        raise StepError("The plan has no step")
    return result


def run_step(step: str, before: str | None) -> str:
    """Return the result of one step. before: that of the step before it, `None` for the first.

    Raises `StepError` for a step that does not exist or does not fit what came before.
    """
    people, words = directory(), step.strip().rstrip(".")
    if found := re.fullmatch(r"look up the (\w+) of (\w+)", words):
        return _attribute(found[2], found[1])
    if before is None:
        raise StepError(f"{step!r} needs the result of a step before it")
    if found := re.fullmatch(r"then the (\w+)", words):
        return _attribute(before, found[1])
    if found := re.fullmatch(r"find all with this (city|team)", words):
        return _names(
            [name for name, one in people.items() if getattr(one, found[1]) == before], f"{found[1]} {before}"
        )
    if found := re.fullmatch(r"add (\d{1,4})", words):
        if not re.fullmatch(r"\d{1,6}", before):
            raise StepError(f"{before!r} is no number to add to")
        return str(int(before) + int(found[1]))
    group = [name for name in before.split(", ") if name in people]
    if not group:
        raise StepError(f"{before!r} names no people for {step!r}")
    by_age = sorted(group, key=lambda name: people[name].age)
    match words:
        case "count them":
            return str(len(group))
        case "take the oldest":
            return by_age[-1]
        case "take the youngest":
            return by_age[0]
        case "add up the ages":
            return str(sum(people[name].age for name in group))
    raise StepError(f"there is no step {step!r}")


def _attribute(name: str, attribute: str) -> str:
    if name not in directory():
        raise StepError(f"{name!r} is nobody in the directory")
    if attribute not in ATTRIBUTES:
        raise StepError(f"the directory has no {attribute!r}, only {', '.join(ATTRIBUTES)}")
    return str(getattr(directory()[name], attribute))


def _names(found: Sequence[str], what: str) -> str:
    if not found:
        raise StepError(f"nobody has the {what}")
    return ", ".join(found)


@lru_cache(maxsize=len(SKELETONS))
def _askable(skeleton: int) -> tuple[tuple[str, int], ...]:
    """Return whom, and with which number, a plan can be asked about so that no other plan has the same answer."""
    found = []
    for name, number in product(NAMES, range(2, 10)):
        answers = [carried_out(plan_of(each, name, number)) for each in range(len(SKELETONS))]
        if answers.count(answers[skeleton]) == 1:
            found.append((name, number))
    return tuple(found)


def _asked(rng: random.Random, skeleton: int) -> tuple[str, int]:
    return rng.choice(_askable(skeleton))


def _check_split(split: str) -> None:
    if split not in ("train", "val", "test", "ood"):
        raise InputError(f"there is no split {split!r}. There are: train, val, test, ood")

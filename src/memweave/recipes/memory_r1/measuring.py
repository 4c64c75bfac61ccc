"""What a policy can do before it is trained on rewards: the gate, and how distractors change its answers.

Banks are fresh ones, labels are clean, decoding is greedy.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from memweave.agents.answerer import MARKER
from memweave.errors import InputError
from memweave.recipes import pretraining
from memweave.recipes.memory_r1.lessons import Item, lesson, questions, token_ids
from memweave.recipes.memory_r1.situations import Situation, for_answerer
from memweave.tracing.records import Sampling
from memweave.worlds.dialog_language import read, read_question

LONGEST: Final = 112
"""Most tokens of a reply."""
CROWD: Final = 64
"""Memories of the banks from which distractors are taken."""


@dataclass(frozen=True)
class Gate:
    """Greedy replies on fresh banks of the world's size, with clean labels."""

    lookups: float
    """Share of right answers to questions that a memory answers."""
    answers: float
    """Share of right answers of all kinds."""
    operations: float
    """Share of managers' replies with exactly the right operations."""
    by_kind: Mapping[str, float]
    asked: int
    """Of each role."""

    @property
    def passed(self) -> bool:
        """Return whether the policy may be trained further."""
        return self.lookups >= pretraining.GATE


def measure(policy: Path, seed: int, *, banks: int = 100, asked: int = 4, sizes: tuple[int, int] | None = None) -> Gate:
    """Return how the policy does on fresh banks of the world's sizes.

    sizes: memories that the manager and the answerer see; by default those of the recipes.
    """
    from memweave.recipes.memory_r1.dialogs import BUDGET, TOP_K

    items: list[Item] = []
    for role, size in zip(("manager", "answerer"), sizes or (TOP_K, BUDGET), strict=True):
        rng = random.Random(f"gate:{seed}:{role}")
        items += [item for _ in range(banks) for item in lesson(role, size, asked, rng, None)]
    right: dict[str, list[bool]] = {}
    for item, mark in zip(items, marks(policy, items), strict=True):
        for kind in item.kinds:
            right.setdefault(kind, []).append(mark)
    share = {kind: sum(found) / len(found) for kind, found in sorted(right.items())}
    return Gate(share["lookups"], share["answerer"], share["manager"], share, banks * asked)


def with_distractors(
    policy: Path, seed: int, counts: Sequence[int], *, asked: int = 400
) -> dict[int, dict[str, int | float | str]]:
    """Return distractors -> how the policy answers the same `asked` questions with that many memories of other things.

    A question has all memories about what it asks, outdated ones too, and `count` others, in the order of the bank.
    `right` is the share of exact answers, `marks` has one `1` or `0` per question. Raises `InputError` for a count outside
    0 to 54.
    """
    wrong = [count for count in counts if not 0 <= count <= 54]
    if wrong:
        raise InputError(f"{wrong[0]} distractors: give 0 to 54, since a policy is shown at most 60 memories")
    rng = random.Random(f"distractors:{seed}")
    asks = [_lookup(rng) for _ in range(asked)]
    found: dict[int, dict[str, int | float | str]] = {}
    for count in counts:
        items = [item for bank, about, others in asks for item in questions(_shown(bank, about, others[:count]))]
        seen = marks(policy, items)
        found[count] = {
            "right": sum(seen) / len(seen),
            "asked": len(seen),
            "marks": "".join(str(int(mark)) for mark in seen),
        }
    return found


def _lookup(rng: random.Random) -> tuple[Situation, list[int], list[int]]:
    """Return a large bank with one question that a memory answers, the places about it, and all others in random order."""
    while True:
        bank = for_answerer(rng, CROWD, 1)
        ((question,),) = bank.asked
        asked = read_question(question)
        if asked is None or asked.kind not in ("lookup", "list", "when"):
            continue
        statements = [read(text) for text in bank.memories]
        about = [i for i, said in enumerate(statements) if said is not None and said.key == asked.keys[0]]
        others = [i for i in range(len(statements)) if i not in about]
        rng.shuffle(others)
        if about and len(others) >= 54:
            return bank, about, others


def _shown(bank: Situation, about: Sequence[int], others: Sequence[int]) -> Situation:
    places = sorted([*about, *others])
    return Situation(tuple(bank.speakers[i] for i in places), tuple(bank.memories[i] for i in places), bank.asked)


def marks(policy: Path, items: Sequence[Item]) -> list[bool]:
    """Return which of `items` the policy replies to as the teacher does; how it quotes does not count."""
    from memweave.serving.local_server import LocalServer

    with LocalServer(policy) as server:
        waiting = [
            server.submit(prompt, Sampling(temperature=0.0, max_tokens=LONGEST))
            for prompt, _ in token_ids(server.folder, items)
        ]
        decode: Callable[..., object] = server.folder.tokenizer().decode
        said = [str(decode(future.result().token_ids, skip_special_tokens=True)) for future in waiting]
    return [_same(item, text) for item, text in zip(items, said, strict=True)]


def _same(item: Item, said: str) -> bool:
    if item.kinds[0] == "answerer":
        return item.reply.rpartition(MARKER)[2].strip() == said.rpartition(MARKER)[2].strip()
    try:
        return _operations(item.reply) == _operations(said)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _operations(reply: str) -> list[tuple[object, object, object]]:
    return [(item["event"], item.get("id"), item.get("text")) for item in json.loads(reply)["memory"]]

"""The base policies of FSM-QA: `memweave pretrain --world fsmqa [--size small|large] --out FOLDER`.

Clean lessons practise every move alike; then come the gate and lessons with the habits of `teaching.BASE`. Advice is random
throughout, and taken now and then: a policy learns to read it, to comply in part, and nothing about what is right.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from memweave.recipes import pretraining
from memweave.recipes.graph_memory.advising import acts, situations
from memweave.recipes.graph_memory.lessons import pieces, row, texts
from memweave.recipes.graph_memory.measuring import measure
from memweave.recipes.graph_memory.teaching import BASE, EVEN, Habits, Move
from memweave.recipes.lesson_rows import padded, token_row
from memweave.recipes.pretraining import IGNORED, CourseSettings, Packed, Report
from memweave.serving.policy_folder import PolicyFolder
from memweave.worlds.fsmqa import LEXICON, NAMES, NOTHING, OTHER_NAMES, RANK, RELATIONS, FSMQASettings

Size = Literal["small", "large"]
SIZES: Final[dict[Size, dict[str, int]]] = {
    "small": {"hidden": 128, "layers": 4, "heads": 4, "intermediate": 384},
    "large": {"hidden": 192, "layers": 5, "heads": 6, "intermediate": 448},
}
"""0.9 and 2.1 million parameters: the paper's 4B and 8B."""


def whole() -> tuple[str, ...]:
    """Return the texts that are one token each: names, words, moves, what is the same in every call, and the words of the machine."""
    call = json.dumps({"name": "search", "arguments": {"relation": "|", "entity": "|"}}).split("|")
    return (
        *(f"<tool_call>{call[0]}", call[1], f"{call[2]}</tool_call>"),
        *(
            "<think>",
            "</think>",
            "<answer>",
            "</answer>",
            "<tool_response>",
            "</tool_response>",
            "<advice>",
            "</advice>",
        ),
        *(f" [{n}]" for n in range(1, 4)),
        *(f" {n}" for n in range(1, 10)),
        *(f"{move}:" for move in Move),
        *(f" {move}:" for move in Move),
        *(" nothing", NOTHING, " and", "Maybe", "When", " When", ", consider", " instead of"),
        *(f" {words}" for words in (*acts().values(), *situations())),
        *(f"{space}{name}" for name in (*NAMES, *OTHER_NAMES) for space in ("", " ")),
        *(f" {relation}:" for relation in (*RELATIONS, RANK)),
        *(f"{space}{relation}" for relation in (*RELATIONS, RANK) for space in ("", " ")),
        *(f" {word}" for word in LEXICON),
    )


@dataclass(frozen=True, kw_only=True)
class FSMQAPretrainSettings(CourseSettings):
    """How a base policy of FSM-QA is made; `lessons` are episodes."""

    clean_steps: int = 2000
    habit_steps: int = 400
    lessons: int = 32
    vocab_size: int = 384
    context: int = 768
    habits: Habits = field(default_factory=lambda: BASE)

    @classmethod
    def of(cls, size: Size, **given: Any) -> FSMQAPretrainSettings:
        """Return the settings of a size."""
        return cls(**{**SIZES[size], **given})


@dataclass(frozen=True)
class FSMQACourse:
    """What a base policy of FSM-QA learns."""

    settings: FSMQAPretrainSettings
    whole: Sequence[str] = field(default_factory=whole)

    def texts(self) -> list[str]:
        """Return what the tokenizer is trained on."""
        return texts(self.settings.seed)

    def batch(self, step: int, folder: PolicyFolder, device: str) -> Packed:
        """Return the rows of a step."""
        settings = self.settings
        rng = random.Random(f"fsmqa-lessons:{settings.seed}:{step}")
        habits = EVEN if step < settings.clean_steps else settings.habits
        number = pieces(rng)  # the same in all rows: little is padded
        made = [token_row(folder, row(rng, habits, FSMQASettings(), number), IGNORED) for _ in range(settings.lessons)]
        return padded(made, settings.context, device)

    def measure(self, policy: Path) -> dict[str, Any]:
        """Return the gate."""
        return measure(policy, self.settings.seed)


def pretrain(
    out: Path,
    settings: FSMQAPretrainSettings | None = None,
    *,
    resume: bool = False,
    report: Report | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Make a base policy of FSM-QA in folder `out`; arguments and errors as in `memweave.recipes.pretraining.pretrain`."""
    course = FSMQACourse(settings or FSMQAPretrainSettings())
    return pretraining.pretrain(out, course, resume=resume, report=report, device=device)

"""The base policy of MemHop: `memweave pretrain --world memhop --out FOLDER`.

Clean lessons, the gate, lessons of a teacher with habits: see `memweave.recipes.pretraining`. The habits are those of
`teaching.Habits`; the result is the paper's AgeMem-noRL, the behaviour-cloned policy that RL starts from and is compared with.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from memweave.agents.memory_tools import LONG_TERM, SHORT_TERM
from memweave.recipes import pretraining
from memweave.recipes.agemem.lessons import rows, texts
from memweave.recipes.agemem.measuring import measure
from memweave.recipes.agemem.teaching import CLEAN, Habits, call
from memweave.recipes.lesson_rows import padded, token_row
from memweave.recipes.pretraining import IGNORED, CourseSettings, Packed, Report
from memweave.serving.policy_folder import PolicyFolder
from memweave.worlds.memhop import MemHopSettings


def _openings() -> tuple[str, ...]:
    arguments = {"Add_memory": "content", "Update_memory": "memory_id", "Delete_memory": "memory_id"}
    arguments |= {"Retrieve_memory": "query", "Summary_context": "span", "Filter_context": "criteria"}
    made = (call(name, **{arguments[name]: "|"}).split("|")[0] for name in (*LONG_TERM, *SHORT_TERM))
    return tuple(made)


TAGS: Final = ("<think>", "</think>", "<tool_call>[", "]</tool_call>", "<answer>", "</answer>")
WHOLE: Final = (
    *(f" [{number}]" for number in range(1, 33)),
    *TAGS,
    *_openings(),
    '"}}',
    '"}}, ',
    '", "content": "',
)
"""One token each: the numbers of memories, tags, and what is the same in every call. A call of a tool is then its arguments and three
tokens."""


@dataclass(frozen=True, kw_only=True)
class MemHopPretrainSettings(CourseSettings):
    """How the base policy of MemHop is made; `lessons` are rows."""

    clean_steps: int = 2200
    habit_steps: int = 250
    lessons: int = 12
    vocab_size: int = 768
    context: int = 768
    habits: Habits = field(default_factory=Habits)


@dataclass(frozen=True)
class MemHopCourse:
    """What the base policy of MemHop learns."""

    settings: MemHopPretrainSettings
    whole: Sequence[str] = WHOLE

    def texts(self) -> list[str]:
        """Return what the tokenizer is trained on."""
        return texts(self.settings.seed)

    def batch(self, step: int, folder: PolicyFolder, device: str) -> Packed:
        """Return the rows of a step."""
        settings = self.settings
        rng = random.Random(f"memhop-lessons:{settings.seed}:{step}")
        habits = CLEAN if step < settings.clean_steps else settings.habits
        made = [token_row(folder, row, IGNORED) for row in rows(rng, settings.lessons, habits, MemHopSettings())]
        return padded(made, settings.context, device)

    def measure(self, policy: Path) -> dict[str, Any]:
        """Return the gate."""
        return measure(policy, self.settings.seed)


def pretrain(
    out: Path,
    settings: MemHopPretrainSettings | None = None,
    *,
    resume: bool = False,
    report: Report | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Make the base policy of MemHop in folder `out`; arguments and errors as in `memweave.recipes.pretraining.pretrain`."""
    course = MemHopCourse(settings or MemHopPretrainSettings())
    return pretraining.pretrain(out, course, resume=resume, report=report, device=device)

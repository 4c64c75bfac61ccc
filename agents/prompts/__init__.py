"""Prompts: one `<role>.md` per role, in this folder, with role and version in a front matter.

A prompt is a system prompt; what a role is asked is rendered by the role's module. Raise the version when the meaning
changes; the hash tells any two texts apart.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.resources import files
from typing import Literal, get_args

from memweave.errors import SettingsError
from memweave.records import Record

PromptRole = Literal[
    "extractor",
    "manager",
    "answerer",
    "judge",
    "chat",
    "agemem",
    "agemem_text",
    "summarizer",
    "planner",
    "executor",
    "executor_text",
    "graph_memory",
    "graph_memory_text",
    "path_mapper",
    "strategist",
    "episode_answer",
    "episode_memories",
    "episode_relevance",
]


class Prompt(Record):
    """One shipped prompt."""

    role: PromptRole
    version: int
    text: str

    @property
    def hash(self) -> str:
        """Return the hash of the text: 16 hex digits."""
        return prompt_hash(self.text)


def prompt_hash(text: str) -> str:
    """Return 16 hex digits that identify a prompt text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@lru_cache
def load_prompt(role: PromptRole) -> Prompt:
    """Return the shipped prompt of `role`.

    Raises `SettingsError` for a role that has none.
    """
    if role not in get_args(PromptRole):
        raise SettingsError(f"There is no prompt for {role!r}. Roles with a prompt: {', '.join(get_args(PromptRole))}")
    return parse_prompt(files(__name__).joinpath(f"{role}.md").read_text(encoding="utf-8"))


def parse_prompt(source: str) -> Prompt:
    """Return the prompt in `source`: a front matter of `key: value` lines between two `---` lines, then the text.

    Raises `SettingsError` when the front matter is missing or incomplete.
    """
    _, head, text = source.split("---\n", 2) if source.count("---\n") >= 2 else ("", "", "")
    fields = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
    if not text.strip() or not {"role", "version"} <= fields.keys():
        raise SettingsError("A prompt file starts with a front matter that gives role and version, then the prompt")
    return Prompt.model_validate({"role": fields["role"], "version": fields["version"], "text": text.strip()})

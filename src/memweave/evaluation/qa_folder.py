"""The folder of one question answering run: its settings, its bank, and one line per finished question.

    DIR/run.json             the settings that determine the numbers
    DIR/bank/                the memories
    DIR/collections.jsonl    one line per collection that has been read into memory
    DIR/answers.jsonl        one line per question that has been answered

A line is written when its work is done. A second run continues after the last whole line; one with other settings is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, TypeVar

from pydantic import ValidationError

from memweave.errors import ConflictError, FormatError, InputError
from memweave.records import Record
from memweave.worlds.files import reasons

FORMAT: Final = 1

R = TypeVar("R", bound=Record)


class QASettings(Record):
    """All that determines the numbers of a run, so that a folder never mixes two."""

    dataset: str
    data: str
    """Hash of questions, answers and what is remembered."""
    agent: str
    model: str
    extractor: str | None
    manager: str | None
    """Who builds the memory; `None` for agents that keep everything."""
    judge: str | None
    embedding: str
    search: str
    """Hash of the search configuration."""
    prompts: dict[str, str]
    """Hash of the prompt of each role that a model plays."""
    memweave: str
    """Version of this package."""


class Usage(Record):
    """Calls of a chat model and their tokens, as the model counted them."""

    calls: int = 0
    uncounted: int = 0
    """Calls whose reply did not say how many tokens it took; they are missing in the sums."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            uncounted=self.uncounted + other.uncounted,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


class CollectionResult(Record):
    """How one collection was read into memory."""

    name: str
    turns: int
    failed_turns: int
    """Turns that no usable reply could be had for; they are missing in the memory."""
    memories: int
    operations: dict[str, int]
    usage: Usage
    seconds: float


class QAResult(Record):
    """One question, its answer and its scores."""

    id: str
    collection: str
    category: str
    question: str
    golds: tuple[str, ...]
    answer: str | None
    """`None` when the model gave no reply that could be used; it scores 0."""
    error: str | None
    em: float
    f1: float
    bleu1: float
    correct: bool | None
    """What the judge said; `None` without a judge, or when it could not decide."""
    judge_error: str | None
    evidence_shown: float | None
    """Share of the evidence among the sources of the memories shown; `None` when the evidence is not known."""
    memories: int
    """How many were shown."""
    usage: Usage
    judge_usage: Usage
    seconds: float
    """From question to parsed answer, retrieval included, the judge excluded."""


class RunFolder:
    """Reads what is finished and appends what gets finished."""

    def __init__(self, path: Path, settings: QASettings) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._check(settings)
        self.collections = {r.name: r for r in self._load("collections.jsonl", CollectionResult)}
        self.answers = {r.id: r for r in self._load("answers.jsonl", QAResult)}

    def add_collection(self, result: CollectionResult) -> None:
        """Record that a collection is in memory."""
        self._append("collections.jsonl", result)
        self.collections[result.name] = result

    def add_answer(self, result: QAResult) -> None:
        """Record a finished question."""
        self._append("answers.jsonl", result)
        self.answers[result.id] = result

    def _check(self, settings: QASettings) -> None:
        """Write the settings, or compare them with those written. Raises: ConflictError, FormatError."""
        file = self.path / "run.json"
        if not file.exists():
            if any(self.path.iterdir()):
                raise ConflictError(f"{self.path} is not empty and holds no run. Name another folder with --out.")
            text = json.dumps({"format": FORMAT, "settings": settings.model_dump(mode="json")}, indent=2)
            temporary = file.with_suffix(".new")
            temporary.write_text(text + "\n", encoding="utf-8")
            temporary.rename(file)
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["format"] != FORMAT:
                raise FormatError(
                    f"{file} has format {found['format']}, this version knows {FORMAT}. Name another --out."
                )
            earlier = QASettings.model_validate(found["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} cannot be read ({type(error).__name__}). Name another folder with --out."
            ) from None
        before, now = earlier.model_dump(), settings.model_dump()
        changed = [f"{name} was {before[name]!r}, now {now[name]!r}" for name in now if before[name] != now[name]]
        if changed:
            raise ConflictError(
                f"{self.path} holds a run with other settings: {'; '.join(changed)}. Name another folder with --out."
            )

    def _load(self, name: str, kind: type[R]) -> list[R]:
        """Read the whole lines of a file; a last line that was cut off by a crash is removed."""
        file = self.path / name
        if not file.exists():
            return []
        text = file.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            with file.open("r+b") as opened:
                opened.truncate(len(whole))
        out = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                out.append(kind.model_validate_json(line))
            except ValidationError as error:
                raise InputError(
                    f"{file}, line {number}: {reasons(error)}. Remove the line to answer it again."
                ) from None
        return out

    def _append(self, name: str, record: Record) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(record.model_dump_json() + "\n")

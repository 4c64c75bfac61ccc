"""Multi-hop question answering over a shared corpus of passages: what HotpotQA and MuSiQue have in common."""

from __future__ import annotations

from pathlib import Path

from memweave.errors import InputError
from memweave.records import Record


class Passage(Record):
    """One paragraph of a corpus."""

    id: str
    """Unique within the corpus: the title, with `#2`, `#3` ... for further paragraphs of the same title."""
    title: str
    text: str

    @property
    def memory_text(self) -> str:
        """Return how the passage is remembered: `title: text`."""
        return f"{self.title}: {self.text}"


class PassageQuestion(Record):
    """A question with the passages that support its answer."""

    id: str
    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    """Other accepted answers."""
    gold: tuple[str, ...]
    """Ids of the supporting passages, at least one."""
    context: tuple[str, ...]
    """Ids of the passages that come with the question, supporting and distracting ones."""
    kind: str
    """HotpotQA: bridge or comparison; MuSiQue: 2hop, 3hop or 4hop."""


class PassageSet(Record):
    """Questions over one shared corpus."""

    name: str
    passages: tuple[Passage, ...]
    questions: tuple[PassageQuestion, ...]


class Corpus:
    """Collects passages and gives each distinct (title, text) one id."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, str], str] = {}
        self._per_title: dict[str, int] = {}

    def add(self, title: str, text: str) -> str:
        """Return the id of a passage, new or known."""
        known = self._ids.get((title, text))
        if known is not None:
            return known
        count = self._per_title[title] = self._per_title.get(title, 0) + 1
        self._ids[title, text] = passage_id = title if count == 1 else f"{title}#{count}"
        return passage_id

    def passages(self) -> tuple[Passage, ...]:
        """Return all passages in the order in which they were added."""
        return tuple(Passage(id=i, title=title, text=text) for (title, text), i in self._ids.items())


def question_file(path: Path, *, prefix: str) -> Path:
    """Return the file of questions that `path` names: itself, or the one in a folder that is not a corpus.

    Raises: InputError when a folder holds none or several.
    """
    if not path.is_dir():
        return path
    found = sorted(p for p in path.glob(f"{prefix}*.json") if not p.stem.endswith("_corpus"))
    if len(found) != 1:
        raise InputError(f"{path} holds {len(found)} files {prefix}*.json with questions, expected one. Name the file.")
    return found[0]


def corpus_file(questions: Path) -> Path | None:
    """Return the corpus beside a file of questions, `NAME_corpus.json` for `NAME.json`, if there is one."""
    beside = questions.with_name(f"{questions.stem}_corpus.json")
    return beside if beside.exists() else None

"""Which data set an evaluation runs on, and which part of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from enum import StrEnum
from pathlib import Path

from memweave.errors import InputError, SettingsError
from memweave.worlds.hotpotqa import read_hotpotqa
from memweave.worlds.locomo import LocomoConversation, read_locomo
from memweave.worlds.musique import read_musique
from memweave.worlds.passages import PassageSet, question_file


class Dataset(StrEnum):
    """The public data sets that can be read."""

    LOCOMO = "locomo"
    HOTPOTQA = "hotpotqa"
    MUSIQUE = "musique"


def find_data(dataset: Dataset, path: Path | None, data: Path | None) -> Path:
    """Return where the data set is: `path`, or its folder in the folder of all data sets.

    Raises: SettingsError when neither is given.
    """
    if path is not None:
        return path
    if data is None:
        raise SettingsError(
            f"Where is {dataset}? Add --path FILE, or set MEMWEAVE_DATA to the folder that holds {dataset}/."
        )
    return data / dataset


def load_locomo(path: Path, only: Collection[str] = ()) -> list[LocomoConversation]:
    """Read LoCoMo (a file, or a folder with one locomo*.json), all conversations or those named.

    Raises: InputError, also for a conversation that is not there.
    """
    conversations = read_locomo(question_file(path, prefix="locomo"))
    known = [conversation.sample_id for conversation in conversations]
    for name in only:
        if name not in known:
            raise InputError(f"{path} has no conversation {name!r}. It has: {', '.join(known)}.")
    return [conversation for conversation in conversations if not only or conversation.sample_id in only]


def load_passages(dataset: Dataset, path: Path, part: slice | None = None) -> PassageSet:
    """Read HotpotQA or MuSiQue: the questions of `part`, over the whole corpus. Raises: InputError."""
    found = read_hotpotqa(path) if dataset is Dataset.HOTPOTQA else read_musique(path)
    return found if part is None else found.model_copy(update={"questions": pick(found.questions, part, str(path))})


def pick(items: Sequence[object], part: slice, place: str) -> tuple[object, ...]:
    """Return the items of `part`. Raises: InputError when there is none."""
    picked = tuple(items[part])
    if not picked:
        raise InputError(f"{place}: {len(items)} questions, none of them in {part.start or 0}:{part.stop or ''}.")
    return picked


def parse_part(text: str | None) -> slice | None:
    """Read `50:100`, `50:` or `:50`, counted from 0, the end exclusive. Raises: InputError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d*):(\d*)", text.strip())
    if not found:
        raise InputError(f"{text!r} is no range of questions. Write FROM:TO, counted from 0, e.g. 50:100.")
    return slice(int(found[1] or 0), int(found[2]) if found[2] else None)


def parse_ks(text: str) -> list[int]:
    """Read `5,10,30,60`. Raises: InputError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 1000 for part in parts):
        raise InputError(f"--k {text!r}: write whole numbers from 1 to 1000, separated by commas, e.g. 5,10,30,60.")
    return sorted({int(part) for part in parts})

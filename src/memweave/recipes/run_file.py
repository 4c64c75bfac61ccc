"""What a run was started with, kept in its folder: a run that goes on must be the same run."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from memweave.errors import ConflictError, FormatError, SettingsError
from memweave.recipes.recipe import RUN_FILE, TrainSettings

RUN_FORMAT: Final = 1
MAY_CHANGE: Final = frozenset({"steps", "concurrency", "save_every"})
"""Settings that change nothing about a step: a run may go on for longer, faster, and save elsewhere."""


LOCK: Final = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from running in `folder` meanwhile; the kernel lets go when this one ends, however it ends.

    Raises `ConflictError` when another one runs there.
    """
    import fcntl

    path = folder / LOCK
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ConflictError(
                f"another process runs in {folder}. Wait until it has ended, or choose another folder"
            ) from None
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            break
        file.close()  # the other one ended, and removed its lock, after this one had opened it
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def claim(
    folder: Path, *, recipe: str, arm: str, base: str, settings: TrainSettings, partner: str | None = None
) -> None:
    """Write down what the run in `folder` is, or check that it is the one that was written down.

    base, partner: hashes of the weights of the base policy, and of the role that is not trained.
    Raises `SettingsError`, naming each difference, for another run;
    `FormatError` for one of a newer version.
    """
    kept = {name: value for name, value in dataclasses.asdict(settings).items() if name not in MAY_CHANGE}
    claim_run(folder, {"recipe": recipe, "arm": arm, "base": base, "partner": partner, **kept})


def claim_run(folder: Path, now: Mapping[str, object]) -> None:
    """Do what `claim` does for a run with settings of its own; `now` is what JSON can write."""
    path = folder / RUN_FILE
    if path.exists():
        _compare(folder, _read(path), now)
        return
    partial = folder / f".{RUN_FILE}"
    partial.write_text(json.dumps({"format": RUN_FORMAT, **now}, indent=2) + "\n")
    os.replace(partial, path)


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text())
        version = found.pop("format")
    except (ValueError, AttributeError, KeyError) as error:
        raise FormatError(
            f"{path} cannot be read as the settings of a run. Start a new run in another folder"
        ) from error
    if version != RUN_FORMAT:
        raise FormatError(f"{path} has format {version}; this version of memweave reads {RUN_FORMAT}")
    return dict(found)


def _compare(folder: Path, then: Mapping[str, object], now: Mapping[str, object]) -> None:
    changed = [
        f"{name}: {then.get(name)!r} then, {now.get(name)!r} now"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if changed:
        raise SettingsError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}). "
            "Resume with the settings it was started with, or start a new run in another folder"
        )

"""The state of a learner of case retrieval in a file: to go on from, on the same machine or another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from memweave.errors import FormatError, SettingsError


def write_state(file: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values; the file appears complete."""
    partial = file.with_name(f".{file.name}")
    torch.save(dict(state), partial)
    os.replace(partial, file)


def read_state(file: Path) -> dict[str, Any]:
    """Return what `write_state` wrote. Raises `FormatError` for a file of another kind."""
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True)
    except Exception as error:
        raise FormatError(f"{file} cannot be read as the state of a learner; start anew") from error
    return state


def check_state(state: Mapping[str, Any], format_: object, mine: Mapping[str, Any]) -> None:
    """Raise `FormatError`, `SettingsError` unless a state has this format and belongs to a learner like mine."""
    if state.get("format") != format_:
        raise FormatError(f"the state has format {state.get('format')!r}, this memweave reads {format_}")
    if other := [name for name, value in mine.items() if state.get(name) != value]:
        raise SettingsError(f"the state belongs to a learner with other {', '.join(other)}; start anew")

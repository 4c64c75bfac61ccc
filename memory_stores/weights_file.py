"""Small learned weights in a safetensors file that says what it is; trainers write it, retrieval reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memweave.errors import FormatError, InputError

WEIGHTS_FORMAT: Final = "1"
Array = NDArray[np.float32]


@dataclass(frozen=True)
class WeightsKind:
    """One kind of file."""

    name: str
    """In the file."""
    called: str
    """In errors."""
    made_by: str
    """The command that writes one."""
    tensors: Sequence[str]


def save_weights(file: Path, kind: WeightsKind, tensors: Mapping[str, Array], about: Mapping[str, str]) -> None:
    """Write weights, and what they belong to."""
    from safetensors.numpy import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: np.ascontiguousarray(tensors[name], dtype=np.float32) for name in kind.tensors}
    save_file(plain, file, metadata={"memweave": kind.name, "format": WEIGHTS_FORMAT, **about})


def load_weights(file: Path, kind: WeightsKind) -> tuple[dict[str, Array], Mapping[str, str]]:
    """Return the weights in a file and what they belong to.

    Raises `InputError` when the file is none of this kind, `FormatError` for one of another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            about: Mapping[str, str] = opened.metadata() or {}
            names = list(opened.keys())
            tensors = {name: opened.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read as a {kind.called}: {error}") from error
    if about.get("memweave") != kind.name or set(tensors) != set(kind.tensors):
        raise InputError(f"{file} holds no {kind.called} of memweave. `{kind.made_by}` makes one")
    if about.get("format") != WEIGHTS_FORMAT:
        raise FormatError(
            f"{file} has format {about.get('format')!r}, this memweave reads {WEIGHTS_FORMAT}. Train it anew, or use the "
            "memweave that made it"
        )
    if not all(np.isfinite(each).all() for each in tensors.values()):
        raise InputError(f"{file} holds weights that are not finite numbers. Take an earlier one")
    return {name: np.asarray(tensors[name], dtype=np.float32) for name in kind.tensors}, about

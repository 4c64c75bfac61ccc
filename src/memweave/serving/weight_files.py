"""What weight files hold, read without torch: names, types and shapes of tensors, and whether their numbers are finite.

A safetensors file is 8 bytes of header length, a JSON header, and the tensors' bytes. This module does not know models.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from memweave.errors import InputError

_MAX_HEADER: Final = 100_000_000
_EXPONENT: Final = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "F16": ("<u2", 0x1F << 10),
    "BF16": ("<u2", 0xFF << 7),
}
"""Per floating-point type: how to read its bits, and the exponent bits, all of which are set in NaN and infinity."""
_BLOCK: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies in which file. dtype: as safetensors names it (`F32`, `BF16`, ...)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_tensors(folder: Path, stem: str = "model") -> dict[str, TensorInfo]:
    """Return the tensors of `STEM.safetensors`, or of the shards `STEM-*-of-*.safetensors`, by name.

    Raises `InputError` when there are none or a file is damaged.
    """
    files = [folder / f"{stem}.safetensors"]
    if not files[0].is_file():
        files = sorted(folder.glob(f"{stem}-*-of-*.safetensors"))
    if not files:
        raise InputError(f"{folder} holds no weights: expected {stem}.safetensors")
    out: dict[str, TensorInfo] = {}
    for file in files:
        out.update(_header(file))
    return out


def not_finite(tensors: dict[str, TensorInfo]) -> list[str]:
    """Return the names of the tensors with a NaN or an infinity. Reads every byte: about 1 s per GB."""
    return [name for name, tensor in tensors.items() if not _finite(tensor)]


def _finite(tensor: TensorInfo) -> bool:
    if tensor.dtype not in _EXPONENT or tensor.start == tensor.stop:
        return True
    bits, exponent = _EXPONENT[tensor.dtype]
    words = np.memmap(tensor.file, bits, "r", tensor.start, ((tensor.stop - tensor.start) // np.dtype(bits).itemsize,))
    mask = words.dtype.type(exponent)
    return not any(bool(((words[at : at + _BLOCK] & mask) == mask).any()) for at in range(0, len(words), _BLOCK))


def _header(file: Path) -> dict[str, TensorInfo]:
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise ValueError(f"its header cannot be {length} bytes long")
            header = json.loads(stream.read(length))
        out = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, stop = entry["data_offsets"]
            if not 0 <= start <= stop <= size - 8 - length:
                raise ValueError(f"{name} ends after the file")
            out[name] = TensorInfo(file, entry["dtype"], tuple(entry["shape"]), 8 + length + start, 8 + length + stop)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no safetensors file, or only a part of one: {error}. Copy it again") from error
    return out

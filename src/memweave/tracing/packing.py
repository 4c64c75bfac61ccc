"""A trace as two blobs: everything but the tokens as JSON, and the token arrays as raw little-endian numbers.

Exact: ids are integers of 64 bits, log-probabilities IEEE doubles. Arrays come in the order prompt ids, ids,
log-probabilities, generation after generation; their lengths are in the JSON (`null`: there is none).
"""

from __future__ import annotations

import json
import zlib
from typing import Any, Final

import numpy as np
from pydantic import ValidationError

from memweave.errors import FormatError, InputError
from memweave.tracing.records import TRACE_FORMAT, Trace

_ARRAYS: Final = (("prompt_token_ids", "<i4"), ("token_ids", "<i4"), ("logprobs", "<f8"))
_WIDE: Final = "<i8"
_LEFT_OUT: Final[dict[str, Any]] = {"score": True, "generations": {"__all__": {name for name, _ in _ARRAYS}}}


def pack(trace: Trace) -> tuple[bytes, bytes]:
    """Return JSON (compressed) and token arrays of a trace, without its score.

    Raises `InputError` for a token id beyond 64 bits.
    """
    parts: list[bytes] = []
    lengths: list[list[int | None]] = []
    for generation in trace.generations:
        given = (generation.prompt_token_ids, generation.token_ids, generation.logprobs)
        lengths.append([None if values is None else len(values) for values in given])
    wide = any(
        not -(2**31) <= token < 2**31
        for generation in trace.generations
        for ids in (generation.prompt_token_ids, generation.token_ids)
        if ids
        for token in (min(ids), max(ids))
    )
    try:
        for generation in trace.generations:
            for name, kind in _ARRAYS:
                if (values := getattr(generation, name)) is not None:
                    parts.append(np.array(values, dtype=_WIDE if wide and kind == "<i4" else kind).tobytes())
    except OverflowError as error:
        raise InputError(f"trace {trace.id} has a token id beyond 64 bits; it cannot be stored") from error
    body = trace.model_dump_json(exclude=_LEFT_OUT, exclude_defaults=True)
    head = json.dumps({"format": trace.format, "lengths": lengths, "wide": wide})
    return zlib.compress(f"{head}\n{body}".encode(), level=1), b"".join(parts)


def unpack(body: bytes, tokens: bytes) -> dict[str, Any]:
    """Return the fields of a packed trace."""
    head, _, rest = zlib.decompress(body).partition(b"\n")
    layout, fields = json.loads(head), json.loads(rest)
    place = 0
    for generation, lengths in zip(fields.get("generations", ()), layout["lengths"], strict=True):
        for (name, kind), length in zip(_ARRAYS, lengths, strict=True):
            if length is None:
                continue
            dtype = np.dtype(_WIDE if layout["wide"] and kind == "<i4" else kind)
            generation[name] = np.frombuffer(tokens, dtype, length, place).tolist()
            place += dtype.itemsize * length
    return {**fields, "format": layout["format"]}


def checked(fields: dict[str, Any], where: str) -> Trace:
    """Return the trace that `fields` describe.

    Raises `FormatError` for a newer format, `InputError` for what is no trace; both name `where` it stands.
    """
    given = fields.get("format", TRACE_FORMAT)
    if isinstance(given, int) and given > TRACE_FORMAT:
        raise FormatError(f"{where}: a trace of format {given}; this version reads {TRACE_FORMAT}. Upgrade memweave")
    try:
        return Trace.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: no trace ({place}: {first['msg']})") from error

"""Traces as files: JSON lines (exact, both ways), a Hugging Face dataset and Parquet (one row per generation).

`datasets` is imported when it is needed; it comes with the extra `export`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memweave.errors import InputError, NotInstalledError, StorageFullError
from memweave.tracing.packing import checked
from memweave.tracing.records import Generation, MemoryRef, Trace

if TYPE_CHECKING:
    from datasets import Dataset, Features


def write_jsonl(traces: Iterable[Trace], path: str | Path) -> int:
    """Write one trace per line; returns how many. The file appears whole or not at all, readable by its owner alone.

    Raises `StorageFullError` when the disk is full.
    """
    target, count = Path(path), 0
    file, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(file, "w", encoding="utf-8") as stream:
            for trace in traces:
                stream.write(to_line(trace) + "\n")
                count += 1
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, target)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        if error.errno in (28, 27, 122):  # no space, file too large, quota
            raise StorageFullError(
                f"the disk is full: cannot write {target}. Nothing was written; free space."
            ) from error
        raise
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return count


def to_line(trace: Trace) -> str:
    """Return a trace as one line of JSON."""
    return trace.model_dump_json()


def read_jsonl(path: str | Path) -> Iterator[Trace]:
    """Yield the traces of a file that `write_jsonl` wrote, equal to those that were written.

    Raises `FormatError` for a newer format and `InputError` for a line that is no trace, naming file and line.
    """
    with Path(path).open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{where}: not JSON ({error.msg}). Is the file cut off?") from error
            if not isinstance(fields, dict):
                raise InputError(f"{where}: no trace, but {type(fields).__name__}")
            yield checked(fields, where)


def to_dataset(traces: Iterable[Trace]) -> Dataset:
    """Return a dataset with one row per generation, in order; fields of its trace are nested under `trace`.

    Free-form parts (metadata, tool calls, parts of a score) are JSON texts. Raises `NotInstalledError` without `datasets`.
    """
    table = _datasets().Dataset
    rows = [as_row(trace, generation) for trace in traces for generation in trace.generations]
    features = _features()
    made: Dataset = table.from_dict({name: [row[name] for row in rows] for name in features}, features=features)
    return made


def to_parquet(traces: Iterable[Trace], path: str | Path) -> int:
    """Write the rows of `to_dataset` as Parquet; returns how many. Raises `NotInstalledError` without `datasets`."""
    found = to_dataset(traces)
    target = Path(path)
    file, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(file)
    try:
        with _quiet():
            found.to_parquet(name)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return int(found.num_rows)


def as_row(trace: Trace, generation: Generation) -> dict[str, Any]:
    """Return the row of one generation."""
    score = trace.score
    return {
        "trace": {
            **trace.model_dump(include={"graph", "run", "iteration", "group", "replica", "thread", "error", "format"}),
            "id": str(trace.id),
            "status": trace.status.value,
            "score": None if score is None else {**score.model_dump(), "parts": _json(score.parts)},
            "started_at": trace.started_at,
            "ended_at": trace.ended_at,
            "metadata": _json(trace.metadata),
        },
        **generation.model_dump(exclude={"memories_read", "memories_written", "tool_calls"}),
        "actor": generation.actor,
        "tool_calls": [_json(call) for call in generation.tool_calls],
        "memories_read": [_ref(ref) for ref in generation.memories_read],
        "memories_written": [_ref(ref) for ref in generation.memories_written],
        "memory_ops": [
            {
                **event.model_dump(include={"op_id", "kind", "status", "text", "reason", "actor", "error"}),
                "memory": None if event.memory is None else _ref(event.memory),
            }
            for event in trace.memory_events
            if event.generation == generation.index
        ],
    }


def _ref(ref: MemoryRef) -> dict[str, Any]:
    return {"id": str(ref.id), "version": ref.version}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _datasets() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise NotInstalledError(
            "exporting a dataset or Parquet needs the package 'datasets'. Install it: pip install 'memweave[export]'; "
            "JSON lines need nothing more"
        ) from error
    return datasets


@contextmanager
def _quiet() -> Iterator[None]:
    """Show no progress bar of `datasets`: standard error is the caller's."""
    bars = _datasets().utils
    shown = not bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bars()


def _features() -> Features:
    """Return the types of the columns: given, so that an export without (say) errors has the same ones."""
    made = _datasets()
    text, whole, real, time = (made.Value(name) for name in ("string", "int64", "float64", "timestamp[us, tz=UTC]"))
    ref = {"id": text, "version": whole}
    score = {"value": real, "low": real, "high": real, "parts": text}
    trace = {
        "id": text, "format": whole, "graph": text, "run": text, "iteration": whole, "group": text, "replica": whole,
        "thread": text, "status": text, "error": text, "score": score, "started_at": time, "ended_at": time, "metadata": text,
    }  # fmt: skip
    sampling = {
        **dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"), real),
        **dict.fromkeys(("top_k", "max_tokens", "seed"), whole),
        "logprobs": text,
    }  # fmt: skip
    operation = {**dict.fromkeys(("op_id", "kind", "status", "text", "reason", "actor", "error"), text), "memory": ref}
    return made.Features(
        {
            "trace": trace,
            "index": whole, "step": whole, "stage": whole, "seconds": real, "started_at": time,
            **dict.fromkeys(
                ("node", "role", "actor", "namespace", "policy", "policy_version", "prompt_hash", "reply", "finish_reason", "error"),
                text,
            ),
            "prompt_token_ids": made.List(whole), "token_ids": made.List(whole), "logprobs": made.List(real),
            "sampling": sampling,
            "messages": made.List({"role": text, "text": text}),
            "tool_calls": made.List(text),
            "memories_read": made.List(ref), "memories_written": made.List(ref), "memory_ops": made.List(operation),
        }
    )  # fmt: skip

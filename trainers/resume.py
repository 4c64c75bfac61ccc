"""Checkpoints beyond Hugging Face's: the buffered rows, our counters and the settings, written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import JsonValue

from memweave.errors import FormatError, InputError, SettingsError, StorageFullError
from memweave.records import Record
from memweave.serving.server import PublishedPolicy

if TYPE_CHECKING:
    from memweave.trainers.batches import Batch
    from memweave.trainers.grpo_config import TraceGRPOConfig

CHECKPOINT_FORMAT: Final = 1
MARKER: Final = "memweave.json"
"""Written last: a checkpoint without it is not complete."""
PARTIAL: Final = ".checkpoint-partial"
"""Folder in which a checkpoint is written before it gets its name."""

MAY_CHANGE: Final = frozenset(
    {
        "output_dir", "logging_dir", "logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter",
        "save_strategy", "save_steps", "save_total_limit", "save_only_model", "report_to", "run_name", "disable_tqdm",
        "progress", "curves", "logp_difference_limit", "logp_difference_action", "log_level", "log_level_replica",
        "log_on_each_node", "project", "trackio_space_id", "resume_from_checkpoint", "local_rank", "ddp_timeout", "debug",
        "push_to_hub", "hub_model_id", "hub_token", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision",
        "dataloader_pin_memory", "dataloader_num_workers", "do_train", "do_eval", "do_predict",
    }
)  # fmt: skip
"""Settings that have no influence on the weights: a resumed run may have others."""

log = logging.getLogger(__name__)


class Progress(Record):
    """What a checkpoint holds beyond model, optimiser, schedule and random states."""

    format: int = CHECKPOINT_FORMAT
    run: str
    role: str
    global_step: int
    micro_step: int
    """Forward and backward passes done, accumulation included."""
    published: PublishedPolicy | None
    """What was served when the checkpoint was written."""
    publications: int
    settings: dict[str, JsonValue]
    settings_hash: str
    metrics: dict[str, list[float]]
    """Values since the last log entry."""
    buffered: bool
    """Whether rows of the current generation batch are still to be trained on."""


def settings_of(args: TraceGRPOConfig, **more: JsonValue) -> dict[str, JsonValue]:
    """Return every setting that decides the weights, as JSON values.

    `max_steps` is one only where the learning rate depends on it.
    """
    import dataclasses

    found: dict[str, JsonValue] = {}
    for each in dataclasses.fields(args):
        if each.name in MAY_CHANGE or each.name.startswith(
            ("eval_", "per_device_eval", "vllm_server", "fp16_", "hub_")
        ):
            continue
        found[each.name] = plain(getattr(args, each.name))
    if str(found.get("lr_scheduler_type")) == "constant":
        found.pop("max_steps", None)
        found.pop("num_train_epochs", None)
    found["world_size"] = args.world_size
    return {**found, **more}


def plain(value: Any) -> JsonValue:
    """Return `value` as JSON: enumerations by value, sets in order, anything else by its fields or its type."""
    value = getattr(value, "value", value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return (
            sorted((plain(each) for each in value), key=str)
            if isinstance(value, set | frozenset)
            else [plain(v) for v in value]
        )
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    return type(value).__name__


def settings_hash(settings: Mapping[str, JsonValue]) -> str:
    """Return 16 hex digits that tell settings apart."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


def check_settings(saved: Progress, now: Mapping[str, JsonValue], checkpoint: Path) -> None:
    """Raise `SettingsError`, naming each difference, unless a run with settings `now` may go on from `saved`."""
    if saved.settings_hash == settings_hash(now):
        return
    names = sorted(set(saved.settings) | set(now))
    changed = [
        f"{name}: {saved.settings.get(name)!r} then, {now.get(name)!r} now"
        for name in names
        if saved.settings.get(name) != now.get(name)
    ]
    raise SettingsError(
        f"{checkpoint} belongs to a run with other settings ({'; '.join(changed)}). "
        "Resume with the settings it was started with, or start a new run in another folder"
    )


def complete(checkpoint: Path) -> bool:
    """Return whether `checkpoint` was written to its end."""
    return (checkpoint / MARKER).is_file()


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in `folder`; incomplete ones are passed over with a message."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(found, key=lambda path: -int(path.name.removeprefix("checkpoint-"))):
        if complete(path):
            return path
        log.warning("%s is not complete (no %s) and is ignored", path, MARKER)
    if (folder / PARTIAL).exists():
        log.warning("%s was left by a run that ended while it wrote a checkpoint, and is ignored", folder / PARTIAL)
    return None


def find_checkpoint(wanted: bool | str | Path, folder: Path) -> Path:
    """Return the checkpoint to resume from. Raises `InputError` when there is none, or it is incomplete."""
    if wanted is True:
        found = last_checkpoint(folder)
        if found is None:
            raise InputError(f"{folder} holds no complete checkpoint to resume from; start without --resume")
        return found
    path = Path(str(wanted))
    if not path.is_dir():
        raise InputError(f"there is no checkpoint {path}")
    if not complete(path):
        raise InputError(f"{path} is not complete (no {MARKER}); resume from an older checkpoint")
    return path


def read_progress(checkpoint: Path) -> Progress:
    """Return what the checkpoint says. Raises `FormatError` when it was written by a newer version."""
    text = (checkpoint / MARKER).read_text()
    version = json.loads(text).get("format")
    if version != CHECKPOINT_FORMAT:
        raise FormatError(f"{checkpoint} has format {version}; this version of memweave reads {CHECKPOINT_FORMAT}")
    return Progress.model_validate_json(text)


def _rows_file(checkpoint: Path, process: int) -> Path:
    return checkpoint / f"rows_{process}.pt"


def write_rows(checkpoint: Path, process: int, batches: Sequence[Batch]) -> None:
    """Write the buffered batches of one process."""
    import torch

    torch.save(list(batches), _rows_file(checkpoint, process))


def read_rows(checkpoint: Path, process: int) -> list[Batch]:
    """Return the buffered batches of one process. Raises `InputError` when the checkpoint has none for it."""
    import torch

    path = _rows_file(checkpoint, process)
    if not path.is_file():
        raise InputError(
            f"{checkpoint} has no rows for process {process}; resume with as many processes as it was written with"
        )
    loaded: list[Batch] = torch.load(path, weights_only=True)
    return loaded


def write_progress(checkpoint: Path, progress: Progress) -> None:
    """Mark `checkpoint` as complete: everything in it is on disk before the marker is."""
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file():
            _sync(path)
    marker = checkpoint / MARKER
    marker.write_text(progress.model_dump_json(indent=2) + "\n")
    _sync(marker)
    _sync(checkpoint)


def put_in_place(partial: Path, final: Path) -> None:
    """Give a complete checkpoint its name; one of the same step, left by an earlier attempt, is replaced."""
    old = partial.parent / "replaced"
    if final.exists():
        os.replace(final, old)
    os.replace(partial, final)
    _sync(final.parent)
    shutil.rmtree(partial.parent, ignore_errors=True)


def clear(partial: Path) -> None:
    """Remove what an earlier attempt left, and make the folder for a new one."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def rotate(folder: Path, keep: int | None) -> None:
    """Remove all but the newest `keep` checkpoints; `None` keeps all."""
    from transformers.trainer_utils import rotate_checkpoints

    rotate_checkpoints(output_dir=str(folder), save_total_limit=keep)


@contextmanager
def disk_full(path: Path) -> Iterator[None]:
    """Turn the operating system's complaint about a full disk into `StorageFullError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageFullError(
            f"the disk is full: checkpoint {path} was not written; free some space and resume"
        ) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

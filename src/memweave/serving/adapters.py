"""Trained weights on disk: whether a folder holds an adapter, or all weights, that fit a base policy; and copies of adapters
that appear whole or not at all.

A server that is handed wrong weights fails late, or serves others than the trainer believes. So everything that can be seen
from the files is checked before it is asked. No torch is needed. This module does not know servers.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from memweave.errors import AdapterError, InputError, StorageFullError, UsageError
from memweave.serving.policy_folder import other_text
from memweave.serving.server import weights_version
from memweave.serving.weight_files import TensorInfo, not_finite, read_tensors

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model"
_PREFIX: Final = "base_model.model."
_TENSOR: Final = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_CHANGES_BASE: Final = ("pissa", "olora", "corda", "loftq")
"""Initialisations that change the base's weights: such an adapter fits only the base that it was trained with."""


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits its base. rank: largest of its modules; version: hash of weights and settings."""

    folder: Path
    rank: int
    version: str


def is_adapter(folder: Path) -> bool:
    """Return whether `folder` is to be taken for an adapter: it holds one, or at least no full weights."""
    return (folder / CONFIG).is_file() or not any(folder.glob("model*.safetensors"))


def check_adapter(folder: Path, base: Path, *, max_rank: int | None = None) -> Adapter:
    """Return the adapter in `folder`; raise `AdapterError` unless a server of `base` can serve it as it was trained.

    max_rank: largest rank that the server takes, if known.
    """
    config = _config(folder)
    _check_settings(folder, config)
    try:
        tensors, base_tensors = read_tensors(folder, WEIGHTS), read_tensors(base)
        _check_text(folder, base)
    except AdapterError:
        raise
    except InputError as error:
        raise AdapterError(f"The adapter cannot be compared with its base: {error}") from error
    _check_base(folder, config, base)
    rank = _check_shapes(folder, tensors, base, base_tensors)
    if config.get("r") != rank:
        raise AdapterError(
            f"Adapter {folder}: its settings say r={config.get('r')}, its weights have rank {rank}. Save it again"
        )
    if bad := not_finite(tensors):
        raise AdapterError(f"Adapter {folder}: {bad[0]} holds NaN or infinity. Publish an earlier checkpoint")
    if max_rank is not None and rank > max_rank:
        raise AdapterError(rank_message(str(folder), rank, max_rank))
    return Adapter(folder, rank, weights_version(folder))


def check_weights(folder: Path, base: Path) -> str:
    """Return the version of the full weights in `folder`; raise `AdapterError` unless they are those of a model like `base`."""
    try:
        found, expected = read_tensors(folder), read_tensors(base)
        shapes, other = ({name: tensor.shape for name, tensor in each.items()} for each in (expected, found))
        if wrong := sorted(name for name in shapes.keys() | other.keys() if shapes.get(name) != other.get(name)):
            raise AdapterError(
                f"{folder} holds weights of another model than {base}: {wrong[0]} differs, or only one of them has it"
            )
        if bad := not_finite(found):
            raise AdapterError(f"{folder}: {bad[0]} holds NaN or infinity. Publish an earlier checkpoint")
        _check_text(folder, base)
        return weights_version(folder)
    except UsageError as error:
        raise error if isinstance(error, AdapterError) else AdapterError(str(error)) from error


def rank_message(adapter: str, rank: int | str, max_rank: int | str) -> str:
    """Return what to say about a rank that the server does not take."""
    return (
        f"Adapter {adapter} has rank {rank}, the server takes at most {max_rank}: start vLLM with --max-lora-rank {rank} "
        "(memweave serve has the same option), or train with a smaller r"
    )


def copy_whole(source: Path, target: Path) -> None:
    """Copy the adapter in `source` to the new folder `target`, which appears complete and on disk, or not at all.

    Raises `StorageFullError`; `AdapterError` when there is nothing to copy.
    """
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for name in (CONFIG, f"{WEIGHTS}.safetensors"):
            shutil.copyfile(source / name, part / name)
            _sync(part / name)
        _sync(part)
        part.rename(target)
        _sync(target.parent)
    except FileNotFoundError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise AdapterError(_no_adapter(source)) from error
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"The disk of {target.parent} is full; the adapter was not published") from error
        raise


def _config(folder: Path) -> Mapping[str, Any]:
    if not (folder / CONFIG).is_file():
        raise AdapterError(_no_adapter(folder))
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise AdapterError(f"{folder / CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{folder / CONFIG} is not a JSON object")
    return config


def _no_adapter(folder: Path) -> str:
    if not is_adapter(folder):
        return (
            f"{folder} holds full weights. vLLM serves LoRA adapters here: it cannot exchange the base's weights while it "
            "runs. Train an adapter (peft_config), or use LocalServer"
        )
    return (
        f"{folder} holds no adapter: expected {CONFIG} and {WEIGHTS}.safetensors, as PEFT's save_pretrained writes them"
    )


def _check_settings(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what vLLM would ignore, and so serve something else than what was trained."""
    init = str(config.get("init_lora_weights")).lower()
    refused = {
        f"peft_type {config.get('peft_type')}": config.get("peft_type") not in (None, "LORA"),
        "modules_to_save": bool(config.get("modules_to_save")),
        "use_dora": bool(config.get("use_dora")),
        f"bias={config.get('bias')!r}": config.get("bias", "none") not in (None, "none"),
        "lora_bias": bool(config.get("lora_bias")),
        "rank_pattern": bool(config.get("rank_pattern")),
        "alpha_pattern": bool(config.get("alpha_pattern")),
        "target_parameters": bool(config.get("target_parameters")),
        f"init_lora_weights={init!r}, which changes the base": init.startswith(_CHANGES_BASE),
    }
    if found := [name for name, is_set in refused.items() if is_set]:
        raise AdapterError(
            f"Adapter {folder} uses {found[0]}, which the server cannot serve. Train plain LoRA without it"
        )


def _check_shapes(
    folder: Path, tensors: Mapping[str, TensorInfo], base: Path, base_tensors: Mapping[str, TensorInfo]
) -> int:
    """Return the largest rank; raise unless every tensor belongs to a module of the base."""
    ranks = []
    sides: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        found = _TENSOR.fullmatch(name)
        module = (found["module"] if found else name).removeprefix(_PREFIX)
        if module.endswith(("lm_head", "embed_tokens")) or "lora_embedding" in name:
            raise AdapterError(
                f"Adapter {folder} changes {module}: vLLM serves no adapter on embeddings or the head. "
                "Leave lm_head and embed_tokens out of target_modules"
            )
        if found is None:
            raise AdapterError(f"Adapter {folder} holds {name}, which is not part of a LoRA. Train plain LoRA")
        weight = base_tensors.get(f"{module}.weight")
        if weight is None:
            raise AdapterError(
                f"Adapter {folder} changes {module}, which the base {base} does not have: it is of another base"
            )
        side, axis = found["side"], 1 if found["side"] == "A" else 0
        if len(tensor.shape) != 2 or tensor.shape[axis] != weight.shape[1 if side == "A" else 0]:
            raise AdapterError(
                f"Adapter {folder} is of another base: {name} has shape {tensor.shape}, {module} of {base} {weight.shape}"
            )
        ranks.append(tensor.shape[1 - axis])
        sides.setdefault(module, set()).add(side)
    if not ranks:
        raise AdapterError(f"Adapter {folder} holds no weights")
    if half := [module for module, both in sides.items() if len(both) < 2]:
        raise AdapterError(f"Adapter {folder} holds only half of the pair for {half[0]}. Save it again")
    if len(set(ranks)) > 1:
        raise AdapterError(f"Adapter {folder} has modules of rank {min(ranks)} and {max(ranks)}: train with one r")
    return max(ranks)


def _check_base(folder: Path, config: Mapping[str, Any], base: Path) -> None:
    """Refuse an adapter that names another base of the same shape, when that base is on this machine."""
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named or not Path(named).is_dir() or Path(named).resolve() == base.resolve():
        return
    try:
        same = base_version(Path(named)) == base_version(base)
    except InputError:
        return  # the named folder holds no weights any more: nothing to compare with
    if not same:
        raise AdapterError(
            f"Adapter {folder} was trained on {named}, the server's base is {base}: their weights differ"
        )


def _check_text(folder: Path, base: Path) -> None:
    """Refuse weights that were trained on other tokens: the server writes every prompt as its base does."""
    if what := other_text(folder, base):
        raise AdapterError(
            f"{folder} has another {what} than {base}, as which the server writes every prompt: its weights are of another "
            "base policy, and belong with that one"
        )


def base_version(base: Path) -> str:
    """Return the hash of the base's weights; read once as long as the files stay the same."""
    files = sorted(base.glob("model*.safetensors"))
    return _version_of(base, tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=32)
def _version_of(base: Path, _files: tuple[tuple[str, int, int], ...]) -> str:
    return weights_version(base)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

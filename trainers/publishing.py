"""The weights of a training run on disk: published to a policy server, or saved as a folder that can be loaded."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from memweave.serving.quiet import quiet
from memweave.serving.server import PolicyServer, PublishedPolicy, weights_version

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER = "default"
"""PEFT's name of the adapter that is trained."""

TRAINING_FILE = "training.json"


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapter of a PEFT model, else all weights, to `folder`; equal weights give equal bytes in any process."""
    from accelerate.utils import is_peft_model

    folder.mkdir(parents=True, exist_ok=True)
    if is_peft_model(model):
        _save_adapter(model, folder)
    else:
        with quiet():
            model.save_pretrained(str(folder), safe_serialization=True)


def _save_adapter(model: Any, folder: Path) -> None:
    """Write adapter and settings as `PeftModel.save_pretrained` does, without its model card (10 ms of a step)."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in sorted(state.items())}
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    settings = model.peft_config[ADAPTER].to_dict()
    settings["inference_mode"] = True
    settings["base_model_name_or_path"] = (
        None  # the server knows its base; a path would make the version depend on the place
    )
    (folder / "adapter_config.json").write_text(json.dumps(_sorted_sets(settings), indent=2, sort_keys=True) + "\n")


def _sorted_sets(value: Any) -> Any:
    """Return `value` for JSON; sets in order, since Python's differs from process to process."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(key): _sorted_sets(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_sorted_sets(each) for each in value]
    return getattr(value, "value", value)  # enumerations by value


class Publisher:
    """Publishes a model under one run and role; does nothing while the weights stay what the server serves."""

    def __init__(self, server: PolicyServer, *, run: str, role: str) -> None:
        self._server, self._run, self._role = server, run, role
        self._at: int | None = None
        self.published: PublishedPolicy | None = None
        self.count = 0
        """Versions that were published, over all processes of a run that was resumed."""

    def publish(self, model: PreTrainedModel, *, step: int) -> PublishedPolicy:
        """Serve the weights of `model` as of optimiser step `step`, and return what is served now."""
        current = self._server.current(self._role)
        if self._at == step and self.published is not None and current == self.published:
            return self.published
        with tempfile.TemporaryDirectory(prefix="memweave-publish-") as folder:
            save_weights(model, Path(folder))
            version = weights_version(Path(folder))
            known = self.published
            if current is None or current.run != self._run or current.version != version:
                current = self._server.publish(Path(folder), run=self._run, role=self._role)
        if known is None or known.version != current.version:
            self.count += 1
        self._at, self.published = step, current
        return current

    def restore(self, published: PublishedPolicy | None, count: int) -> None:
        """Go on from a checkpoint; the next `publish` asks the server again."""
        self._at, self.published, self.count = None, published, count


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    info: Mapping[str, JsonValue],
) -> str:
    """Write weights, tokenizer with its chat template, and `training.json` to `folder`; return the policy version.

    The folder appears complete or not at all; what was there before is replaced.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_weights(model, partial)
        tokenizer.save_pretrained(str(partial))
        version = weights_version(partial)
        (partial / TRAINING_FILE).write_text(json.dumps({**info, "version": version}, indent=2) + "\n")
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return version

"""Loading of weights for the in-process policy: a base, adapters on it, and full weights in its place. Imports torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from memweave.errors import AdapterError, InputError, SettingsError
from memweave.serving.decoding import Weights, make_adaptable
from memweave.serving.quiet import quiet
from memweave.serving.weight_files import read_tensors

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Loader:
    """Loads the weights that one server serves. Each method may be called while the server samples."""

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        if dtype not in DTYPES:
            raise SettingsError(f"dtype is {', '.join(DTYPES)}, not {dtype!r}")
        self._folder, self._dtype = folder, DTYPES[dtype]
        self._device = find_device(device)
        self._model = self._load(folder)

    @property
    def parameters(self) -> int:
        """Return the number of parameters of the base."""
        return self._model.num_parameters()

    def base(self) -> Weights:
        """Return the weights of the base folder."""
        return Weights(self._model)

    def full(self, folder: Path) -> Weights:
        """Return a model like the base with the weights in `folder`, which passed the checks of the server."""
        model = self._load(self._folder)
        for file in sorted({tensor.file for tensor in read_tensors(folder).values()}):
            model.load_state_dict(load_file(file), strict=False)  # a shard holds a part; the server compared all names
        return Weights(model)

    def adapted(self, folder: Path) -> Weights:
        """Return the base with the adapter in `folder`, which passed `check_adapter`."""
        config = json.loads((folder / "adapter_config.json").read_text())
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        tensors = load_file(folder / "adapter_model.safetensors")
        layers = {name: module for name, module in self._model.named_modules() if isinstance(module, nn.Linear)}
        weights = Weights(self._model)
        for key, a in tensors.items():
            if ".lora_A." not in key:
                continue
            name = key.removeprefix("base_model.model.").partition(".lora_A.")[0]
            if name not in layers:
                raise AdapterError(f"{folder} adapts {name}, which is no linear layer of {self._folder}")
            pair = self._on_device(a), self._on_device(tensors[key.replace(".lora_A.", ".lora_B.")])
            if self._dtype == torch.float32:
                weights.merged[name] = _merge(layers[name].weight, *pair, scale)
            else:
                weights.pairs[name] = (*pair, scale)
        return weights

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype)

    def _load(self, folder: Path) -> PreTrainedModel:
        try:
            with quiet():
                model = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=self._dtype, attn_implementation="sdpa", local_files_only=True
                )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"{folder} cannot be loaded as a causal language model: {error}") from error
        make_adaptable(model)
        loaded: PreTrainedModel = model.train(False).requires_grad_(False).to(self._device)
        return loaded


@torch.inference_mode()
def _merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return weight + scale x B A, (out, in), rounded once."""
    return (weight.double() + scale * (b.double() @ a.double())).to(weight.dtype)


def find_device(name: str) -> torch.device:
    """Return the device called `name`. Raises `SettingsError` when it cannot be used here."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        message = str(error).partition("\n")[0]
        raise SettingsError(f"The device {name!r} cannot be used here: {message}. Use cpu") from error
    return device

"""A small policy for every test of serving; `fresh_policy` for tests that change the folder."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TEXTS = ["Alice lives in Paris [3]. Bob moved to Rome in 2024. Where does Alice live? It is Paris."] * 4


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a policy with random weights, 0.1 M parameters. Do not change it."""
    pytest.importorskip("torch")
    from memweave.serving.policy_folder import create_policy

    return create_policy(tmp_path_factory.mktemp("policy") / "base", TEXTS, vocab_size=320, context=256).path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch use one thread: on a busy machine, more wait for each other most of the time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fresh_policy(policy: Path, tmp_path: Path) -> Callable[[], Path]:
    """Return a function that copies the policy into a folder of the test's own."""

    def copy() -> Path:
        return Path(shutil.copytree(policy, tmp_path / "copy", dirs_exist_ok=True))

    return copy


@pytest.fixture
def make_adapter(policy: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a random LoRA adapter of the policy: `make_adapter(name, seed=0, **LoraConfig)`."""

    def make(name: str, *, seed: int = 0, base: Path = policy, size: float = 0.5, **settings: object) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]} | settings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT reads a deprecated attribute of transformers
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**options))
        noise = torch.Generator().manual_seed(seed)
        for key, value in model.named_parameters():
            if "lora_" in key:
                value.data = torch.randn(value.shape, generator=noise) * size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about embeddings, where a test adapts these
            model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make

"""A small policy for every test of serving; `fresh_policy` for tests that change the folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
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
def fresh_policy(policy: Path, tmp_path: Path) -> Callable[[], Path]:
    """Return a function that copies the policy into a folder of the test's own."""

    def copy() -> Path:
        return Path(shutil.copytree(policy, tmp_path / "copy", dirs_exist_ok=True))

    return copy

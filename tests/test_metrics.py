"""Scores against values worked out by hand; intervals against closed forms and each other."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memweave.metrics import (
    Tree,
    answer_scores,
    bleu1,
    bootstrap,
    exact_match,
    hierarchical_bootstrap,
    normalise,
    paired_bootstrap,
    recall_at_k,
    token_f1,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("  An  apple,\ta pear\nand THE plum. ", "apple pear and plum"),
        ("self-care", "selfcare"),
        ("Caroline’s “book”", "carolines book"),
        ("$5.50 + tax", "550 tax"),
        ("theory and another", "theory and another"),  # articles go as words, not as prefixes
        ("cafe\u0301", "caf\u00e9"),
        ("A", "a"),
        ("?!", ""),
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("prediction", "gold", "em", "f1", "bleu"),
    [
        ("7 May 2023", "7 May, 2023", 1.0, 1.0, 1.0),
        ("2022", 2022, 1.0, 1.0, 1.0),
        ("2022", 2022.0, 1.0, 1.0, 1.0),
        ("1.5", 1.5, 1.0, 1.0, 1.0),
        # 2 of 3 predicted words are right, 2 of 2 gold words are found; the prediction is longer: no penalty
        ("in May 2023", "May 2023", 0.0, 0.8, 2 / 3),
        # 1 of 1 predicted, 1 of 3 gold; penalty exp(1 - 3/1)
        ("May", "7 May 2023", 0.0, 0.5, math.exp(-2)),
        # `dog` counts once: precision 1/3, recall 1/2; longer: no penalty
        ("dog dog dog", "dog cat", 0.0, 0.4, 1 / 3),
        ("paris", "london", 0.0, 0.0, 0.0),
        ("", "london", 0.0, 0.0, 0.0),
        (None, "london", 0.0, 0.0, 0.0),
        ("...", "...", 0.0, 0.0, 0.0),
        ("", "", 0.0, 0.0, 0.0),
        ("a", "A", 1.0, 1.0, 1.0),
        ("the", "A", 0.0, 0.0, 0.0),
    ],
)
def test_answer_scores(prediction: str | None, gold: str | int | float, em: float, f1: float, bleu: float) -> None:
    assert exact_match(prediction, gold) == em
    assert token_f1(prediction, gold) == pytest.approx(f1)
    assert bleu1(prediction, gold) == pytest.approx(bleu)
    assert answer_scores(prediction, gold) == (em, token_f1(prediction, gold), bleu1(prediction, gold))


@given(st.text(max_size=40), st.text(max_size=40))
def test_scores_stay_in_range_and_exact_match_implies_the_others(prediction: str, gold: str) -> None:
    scores = answer_scores(prediction, gold)
    assert all(0 <= score <= 1 for score in scores)
    if scores.em:
        assert scores == (1.0, 1.0, 1.0)


@given(st.text(max_size=60))
def test_normalise_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_recall_counts_distinct_relevant_items_of_the_prefix() -> None:
    assert recall_at_k(["a", "x", "b", "y"], {"a", "b", "c"}, 1) == pytest.approx(1 / 3)
    assert recall_at_k(["a", "x", "b", "y"], {"a", "b", "c"}, 3) == pytest.approx(2 / 3)
    assert recall_at_k(["a", "a", "b"], ["a", "a", "b"], 2) == 0.5
    assert recall_at_k([], {"a"}, 5) == 0.0


@pytest.mark.parametrize(("relevant", "k"), [(set(), 5), ({"a"}, 0)])
def test_recall_refuses_what_is_undefined(relevant: set[str], k: int) -> None:
    with pytest.raises(ValueError, match=r"relevant item|at least 1"):
        recall_at_k(["a"], relevant, k)


def test_bootstrap_of_coin_flips_matches_the_binomial_distribution() -> None:
    interval = bootstrap([0.0] * 50 + [1.0] * 50, seed=1)
    # 95 % of Binomial(100, 0.5) / 100 lies between its quantiles 0.40 and 0.60
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.40, abs=0.011)
    assert interval.high == pytest.approx(0.60, abs=0.011)
    assert interval.n == 100


def test_bootstrap_depends_on_the_seed_alone() -> None:
    values = list(np.random.default_rng(0).random(30))
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_a_wider_confidence_gives_a_wider_interval() -> None:
    values = list(np.random.default_rng(0).random(30))
    narrow, wide = bootstrap(values, confidence=0.5), bootstrap(values, confidence=0.99)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_one_value_has_an_interval_of_width_zero() -> None:
    assert bootstrap([0.25]) == (0.25, 0.25, 0.25, 1)


def test_hierarchical_bootstrap_sees_the_spread_between_groups() -> None:
    # Two seeds that disagree entirely: resampling seeds gives 0, 0.5 or 1 with probability 1/4, 1/2, 1/4.
    groups = [[0.0] * 100, [1.0] * 100]
    assert hierarchical_bootstrap(groups) == (0.5, 0.0, 1.0, 200)
    flat = bootstrap([value for group in groups for value in group])
    assert flat.high - flat.low < 0.2


def test_hierarchical_bootstrap_weighs_groups_the_same() -> None:
    assert hierarchical_bootstrap([[1.0], [0.0, 0.0, 0.0]]).mean == 0.5


def test_hierarchical_bootstrap_resamples_the_innermost_level_too() -> None:
    # One seed, one dialogue, 100 questions: the interval is that of the questions.
    deep = hierarchical_bootstrap([[[0.0] * 50 + [1.0] * 50]], seed=5)
    assert deep.low == pytest.approx(0.40, abs=0.011)
    assert deep.high == pytest.approx(0.60, abs=0.011)


def test_variance_of_the_hierarchical_bootstrap_is_the_closed_form() -> None:
    # Group means m_g, within-group variances v_g: Var = Var(m)/G + mean(v_g / n_g)/G for draws with replacement.
    groups = [[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    means = np.array([np.mean(g) for g in groups])
    expected = means.var() / 3 + np.mean([np.var(g) / 4 for g in groups]) / 3
    interval = hierarchical_bootstrap(groups, seed=2, resamples=40_000, confidence=0.6827)
    assert (interval.high - interval.low) / 2 == pytest.approx(math.sqrt(expected), rel=0.12)


def test_pairing_removes_what_items_have_in_common() -> None:
    rng = np.random.default_rng(7)
    difficulty = rng.random(40)
    a, b = list(difficulty + 0.1), list(difficulty)
    paired = paired_bootstrap(a, b)
    assert paired.mean == pytest.approx(0.1)
    assert paired.low == pytest.approx(0.1)
    assert paired.high == pytest.approx(0.1)
    assert paired_bootstrap([a, a], [b, b]).mean == pytest.approx(0.1)


def test_paired_bootstrap_by_enumeration() -> None:
    # Differences 1, 0: the four equally likely resamples have means 1, 0.5, 0.5, 0.
    assert paired_bootstrap([1.0, 1.0], [0.0, 1.0]) == (0.5, 0.0, 1.0, 2)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([], "empty"),
        ([[1.0], []], "empty"),
        ([1.0, [1.0]], "same depth"),
        ([math.nan], "not finite"),
        ([[1.0, math.inf]], "not finite"),
    ],
)
def test_bootstrap_refuses_what_has_no_mean(tree: Tree, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hierarchical_bootstrap(tree)


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([[1.0]], [1.0]), ([[1.0], [2.0]], [[1.0], [2.0, 3.0]])])
def test_paired_bootstrap_refuses_different_shapes(a: Tree, b: Tree) -> None:
    with pytest.raises(ValueError, match="same"):
        paired_bootstrap(a, b)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_probability(confidence: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap([1.0, 2.0], confidence=confidence)


def test_groups_are_resampled_independently_of_each_other() -> None:
    # 20 equal groups of 20 coin flips are 400 flips: standard deviation sqrt(0.25 / 400) = 0.025.
    interval = hierarchical_bootstrap([[0.0, 1.0] * 10] * 20, seed=3)
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(0.025, rel=0.05)

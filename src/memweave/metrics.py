"""Scores of answers and rankings, and their bootstrap intervals: the same functions serve as reward and as evaluation.

Everything here is pure. Answer scores lie in [0, 1]; a missing or empty prediction scores 0 against any gold answer.
Intervals are percentile bootstrap intervals and depend on nothing but the values and the seed.

This module does not know where predictions come from, or how an answer is cut out of a reply.
"""

from __future__ import annotations

import math
import string
import unicodedata
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Gold: TypeAlias = str | int | float
"""A gold answer. Data sets hold numbers as answers (LoCoMo: 2022); they are compared as they would be written."""

Tree: TypeAlias = Sequence[float] | Sequence["Tree"]
"""Values in nested groups, e.g. seed -> dialogue -> question; all leaves at the same depth."""

_ARTICLES: Final = frozenset({"a", "an", "the"})


class AnswerScores(NamedTuple):
    """All scores of one prediction, each in [0, 1]."""

    em: float
    f1: float
    bleu1: float


class Interval(NamedTuple):
    """A mean and its bootstrap interval, over `n` values."""

    mean: float
    low: float
    high: float
    n: int


def normalise(text: str) -> str:
    """Lower-case, strip punctuation, drop a / an / the, collapse white space (Memory-R1, section 2.7; SQuAD's order).

    Punctuation is removed, not replaced by a space: `self-care` becomes `selfcare`. It covers ASCII punctuation and
    symbols and all Unicode punctuation, so a typographic apostrophe equals a straight one. An answer that consists of
    articles only keeps them: the option `A` stays `a`.
    """
    lowered = unicodedata.normalize("NFC", text).lower()
    kept = (c for c in lowered if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    # Again, because removing a mark can bring a letter and its accent together.
    words = unicodedata.normalize("NFC", "".join(kept)).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def exact_match(prediction: str | None, gold: Gold) -> float:
    """Return 1.0 if both are equal after `normalise`, else 0.0."""
    predicted = normalise(prediction or "")
    return float(bool(predicted) and predicted == normalise(_written(gold)))


def token_f1(prediction: str | None, gold: Gold) -> float:
    """Return the harmonic mean of precision and recall of normalised tokens, counted with multiplicity (SQuAD)."""
    predicted, expected = _tokens(prediction, gold)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected)) if shared else 0.0


def bleu1(prediction: str | None, gold: Gold) -> float:
    """Return BLEU-1: clipped unigram precision times the brevity penalty.

    The penalty is min(1, exp(1 - gold length / prediction length)): sentence BLEU of Papineni et al. (2002) with
    weights (1, 0, 0, 0), as in NLTK's `sentence_bleu`, with which published LoCoMo tables are computed. Tokens are
    those of `normalise` (NLTK's tokenizer would keep punctuation and articles).
    """
    predicted, expected = _tokens(prediction, gold)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    if not shared:
        return 0.0
    return shared / len(predicted) * math.exp(min(0.0, 1 - len(expected) / len(predicted)))


def answer_scores(prediction: str | None, gold: Gold) -> AnswerScores:
    """Return exact match, token F1 and BLEU-1 of one prediction."""
    return AnswerScores(exact_match(prediction, gold), token_f1(prediction, gold), bleu1(prediction, gold))


def recall_at_k(ranked: Sequence[Hashable], relevant: Collection[Hashable], k: int) -> float:
    """Return the share of `relevant` among the first `k` of `ranked`, in [0, 1].

    Raises: ValueError when nothing is relevant (recall is then undefined: leave the question out) or `k` is below 1.
    """
    wanted = set(relevant)
    if not wanted:
        raise ValueError("recall needs at least one relevant item; leave questions without evidence out")
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    return len(wanted.intersection(ranked[:k])) / len(wanted)


def bootstrap(values: Sequence[float], *, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95) -> Interval:
    """Return the mean of `values` and the percentile interval of the means of resamples drawn with replacement.

    One value gives an interval of width 0: it says nothing about spread, look at `n`.
    Raises: ValueError for no values, a value that is not finite, or a confidence outside (0, 1).
    """
    return hierarchical_bootstrap(values, seed=seed, resamples=resamples, confidence=confidence)


def hierarchical_bootstrap(tree: Tree, *, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95) -> Interval:
    """Return the mean of nested groups and its interval, resampling at every level from the outside in.

    Each level is drawn with replacement: first seeds, then the dialogues of each drawn seed, then their questions. The
    statistic is the mean of group means, so each group of a level weighs the same whatever its size. With a flat
    sequence it is `bootstrap`. `n` counts the leaves. Raises: ValueError as `bootstrap`, and for an empty group.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    mean, count = _mean(tree)
    means = _resampled_means(tree, resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, float(low), float(high), count)


def paired_bootstrap(a: Tree, b: Tree, *, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95) -> Interval:
    """Return the mean of a - b and its interval; both hold the same items in the same order (and the same nesting).

    Pairing removes what items have in common (an easy question is easy for both). The difference counts as shown when
    the interval excludes 0. Raises: ValueError when the shapes differ, and as `hierarchical_bootstrap`.
    """
    return hierarchical_bootstrap(_difference(a, b), seed=seed, resamples=resamples, confidence=confidence)


def _written(gold: Gold) -> str:
    """Return a gold answer as text: 2022 and 2022.0 both as `2022`."""
    return str(int(gold)) if isinstance(gold, float) and gold.is_integer() else str(gold)


def _tokens(prediction: str | None, gold: Gold) -> tuple[list[str], list[str]]:
    return normalise(prediction or "").split(), normalise(_written(gold)).split()


def _is_leaf_group(tree: Tree) -> bool:
    if not len(tree):
        raise ValueError("cannot bootstrap an empty group")
    nested = {isinstance(item, Sequence) for item in tree}
    if len(nested) > 1:
        raise ValueError("a group mixes values and groups; all leaves must be at the same depth")
    return not nested.pop()


def _mean(tree: Tree) -> tuple[float, int]:
    """Return the mean of group means, and how many leaves there are."""
    if _is_leaf_group(tree):
        values = np.asarray(tree, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("cannot bootstrap a value that is not finite; leave missing values out")
        return float(values.mean()), len(values)
    means, counts = zip(*(_mean(child) for child in _children(tree)), strict=True)
    return float(np.mean(means)), sum(counts)


def _resampled_means(tree: Tree, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return (draws,) float64, the mean of each of `draws` resamples of a validated tree."""
    picks = rng.integers(0, len(tree), size=(draws, len(tree)))  # (draws, children), which child fills each place
    if _is_leaf_group(tree):
        means = np.asarray(tree, dtype=np.float64)[picks]
    else:
        means = np.empty(picks.shape)
        for number, child in enumerate(_children(tree)):
            places = picks == number
            means[places] = _resampled_means(child, int(places.sum()), rng)  # a fresh resample for each place
    out: NDArray[np.float64] = means.mean(axis=1)
    return out


def _children(tree: Tree) -> list[Tree]:
    return [child for child in tree if isinstance(child, Sequence)]


def _difference(a: Tree, b: Tree) -> Tree:
    if len(a) != len(b):
        raise ValueError(f"paired values must have the same shape, not {len(a)} and {len(b)} items")
    if _is_leaf_group(a) and _is_leaf_group(b):
        return [float(x) - float(y) for x, y in zip(np.asarray(a), np.asarray(b), strict=True)]
    first, second = _children(a), _children(b)
    if len(first) != len(second):
        raise ValueError("paired values must have the same nesting")
    return [_difference(x, y) for x, y in zip(first, second, strict=True)]

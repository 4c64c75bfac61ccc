from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from memweave.errors import InputError
from memweave.tracing import Generation, Sampling, Trace, TraceStatus
from memweave.trainers.refusals import REFUSALS
from memweave.trainers.rows import RowSet, assign, build_rows
from tests.trainers.made_up import generation, trace


def build(*traces: Trace, **options: Any) -> RowSet:
    return build_rows(traces, **{"policy_version": "v1", "temperature": 1.0, **options})


def test_a_generation_that_goes_on_is_one_row_with_it() -> None:
    made = build(trace(generation(0, [1, 2], [3, 4]), generation(1, [1, 2, 3, 4, 9], [5], logprobs=[-0.25])))
    (row,) = made.rows
    assert row.ids.tolist() == [1, 2, 3, 4, 9, 5]
    assert row.mask.tolist() == [False, False, True, True, False, True]
    assert row.logprobs.tolist() == [0, 0, -0.5, -1.0, 0, -0.25]
    assert [(s.start, s.stop, s.generation) for s in row.spans] == [(2, 4, 0), (5, 6, 1)]
    assert (row.prompt_length, row.policy_version, row.temperature, row.group) == (2, "v1", 1.0, "g")
    assert (row.ids.dtype, row.logprobs.dtype, row.mask.dtype) == (np.int32, np.float32, np.bool_)
    assert row.advantages.tolist() == [0] * 6
    report = made.report
    assert (report.generations, report.trained, report.rows, report.merge_ratio) == (2, 2, 1, 2.0)
    assert (report.tokens, report.tokens_saved) == (6, 4)  # 4 + 6 unmerged
    assert (report.forks, report.refusals) == ({"first": 1}, {})


def test_two_agents_taking_turns_are_two_rows() -> None:
    a1, b1 = generation(0, [1], [2], role="a"), generation(1, [7], [8], role="b")
    a2, b2 = generation(2, [1, 2, 3], [4], role="a"), generation(3, [7, 8, 9], [6], role="b")
    made = build(trace(a1, b1, a2, b2))
    assert [row.ids.tolist() for row in made.rows] == [[1, 2, 3, 4], [7, 8, 9, 6]]
    assert [[span.generation for span in row.spans] for row in made.rows] == [[0, 2], [1, 3]]
    assert [row.actor for row in made.rows] == ["a", "b"]
    assert made.report.forks == {"first": 2}


def test_another_actor_in_the_same_context_goes_on_the_same_row() -> None:
    made = build(trace(generation(0, [1], [2], role="a"), generation(1, [1, 2], [3], role="b")))
    assert [row.ids.tolist() for row in made.rows] == [[1, 2, 3]]


def test_of_several_rows_that_fit_the_longest_goes_on() -> None:
    short, long = generation(0, [1], [2]), generation(1, [1, 2, 3], [4])
    # The second sample of the first prompt is a row of its own; the last prompt contains it.
    made = build(trace(short, generation(1, [1], [2, 3]), generation(2, [1, 2, 3, 5], [6])))
    assert [row.ids.tolist() for row in made.rows] == [[1, 2], [1, 2, 3, 5, 6]]
    assert build(trace(short, long)).report.rows == 1


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([1, 9, 3, 4, 5], "prompt_rewritten"),
        ([1, 2, 3, 9, 5], "completion_retokenised"),
        ([1, 2, 9, 4, 5], "completion_retokenised"),
        ([1, 2, 3], "shorter_prompt"),
        ([1, 2], "shorter_prompt"),
    ],
)
def test_a_prompt_that_leaves_the_row_begins_another_and_says_why(prompt: list[int], reason: str) -> None:
    made = build(trace(generation(0, [1, 2], [3, 4]), generation(1, prompt, [6])))
    assert made.report.forks == {"first": 1, reason: 1}
    assert [row.ids.tolist() for row in made.rows] == [[1, 2, 3, 4], [*prompt, 6]]


def test_context_that_was_given_between_replies_and_is_rewritten_is_a_rewritten_prompt() -> None:
    first, second = generation(0, [1], [2]), generation(1, [1, 2, 3], [4])
    made = build(trace(first, second, generation(2, [1, 2, 8, 4, 5], [6])))
    assert made.report.forks == {"first": 1, "prompt_rewritten": 1}


def test_an_equal_suffix_after_dropped_tokens_is_no_prefix() -> None:
    """ART issue 883: tokens 3, 4 were sampled after 1, 2; behind 2 alone their log-probabilities are others."""
    made = build(trace(generation(0, [1, 2], [3, 4]), generation(1, [2, 3, 4, 9], [5])))
    assert [row.mask.sum() for row in made.rows] == [2, 1]
    assert made.report.forks == {"first": 1, "prompt_rewritten": 1}


def test_other_weights_begin_a_row_when_any_are_admitted() -> None:
    made = build(trace(generation(0, [1], [2]), generation(1, [1, 2], [3], version="v2")), policy_version=None)
    assert [row.policy_version for row in made.rows] == ["v1", "v2"]
    assert made.report.forks == {"first": 1, "other_policy": 1}


def test_a_refused_reply_is_context_of_the_next() -> None:
    middle = generation(1, [1, 2], [3], logprobs=[math.nan])
    made = build(trace(generation(0, [1], [2]), middle, generation(2, [1, 2, 3, 4], [5])))
    (row,) = made.rows
    assert row.mask.tolist() == [False, True, False, False, True]
    assert made.report.refusals == {"logprob_invalid": 1}


REFUSED: dict[str, Generation] = {
    "failed_call": generation(0, [1], [2], error="boom"),
    "missing_ids": generation(0, None, [2]),
    "missing_logprobs": generation(0, [1], [2]).model_copy(update={"logprobs": None}),
    "empty_completion": generation(0, [1], []),
    "length_mismatch": generation(0, [1], [2, 3], logprobs=[-0.5]),
    "other_policy_version": generation(0, [1], [2], version="v0"),
    "other_temperature": generation(0, [1], [2], sampling=Sampling(temperature=0.7, logprobs="processed")),
    "truncated": generation(0, [1], [2], finish_reason="length"),
    "too_long": generation(0, [1] * 9, [2, 3]),
    "other_actor": generation(0, [1], [2], role="answerer"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_trusted_is_refused_by_name(reason: str) -> None:
    good = generation(1, [5], [6], role="manager")
    made = build(
        trace(REFUSED[reason].model_copy(update={"role": REFUSED[reason].role or "manager"}), good),
        actors={"manager"}, max_length=10, drop_truncated=True,
    )  # fmt: skip
    assert made.report.refusals == {reason: 1}
    assert [row.ids.tolist() for row in made.rows] == [[5, 6]]
    assert (made.report.generations, made.report.trained) == (2, 1)
    assert reason in REFUSALS


def test_by_default_truncated_and_long_replies_and_all_actors_train() -> None:
    kept = [REFUSED[name] for name in ("truncated", "too_long", "other_actor")]
    assert [build(trace(each)).report.trained for each in kept] == [1, 1, 1]


@pytest.mark.parametrize("ids", [None, ()])
def test_a_reply_without_ids_is_refused(ids: tuple[int, ...] | None) -> None:
    assert build(trace(generation(0, ids, [2]))).report.refusals == {"missing_ids": 1}
    assert build(trace(generation(0, [1], None))).report.refusals == {"missing_ids": 1}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.001])
def test_log_probabilities_that_are_none_are_refused(value: float) -> None:
    made = build(trace(generation(0, [1], [2, 3], logprobs=[-1.0, value])))
    assert (made.rows, made.report.refusals) == ([], {"logprob_invalid": 1})


def test_a_certain_token_has_log_probability_zero() -> None:
    assert build(trace(generation(0, [1], [2], logprobs=[0.0]))).report.trained == 1


BREAKING = [
    {"top_p": 0.9},
    {"top_k": 20},
    {"min_p": 0.05},
    {"repetition_penalty": 1.1},
    {"presence_penalty": 0.5},
    {"frequency_penalty": -0.1},
    {"temperature": 0.0},
    {"temperature": 0.7, "logprobs": "raw"},
    {"temperature": 0.7, "logprobs": None},
]
HARMLESS: list[dict[str, Any]] = [
    {"top_p": 1.0, "top_k": -1, "min_p": 0.0},
    {"top_k": 0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    {"logprobs": "raw"},
    {"logprobs": None},
    {"temperature": 0.7, "logprobs": "processed"},
]


@pytest.mark.parametrize("settings", BREAKING, ids=str)
def test_sampling_whose_log_probabilities_are_of_another_distribution_is_refused(settings: dict[str, Any]) -> None:
    sampling = Sampling(**{"temperature": 1.0, "logprobs": "processed", **settings})
    made = build(trace(generation(0, [1], [2], sampling=sampling)), temperature=sampling.temperature)
    assert made.report.refusals == {"sampling_breaks_ratio": 1}


@pytest.mark.parametrize("settings", HARMLESS, ids=str)
def test_settings_that_change_nothing_are_admitted(settings: dict[str, Any]) -> None:
    sampling = Sampling(**{"temperature": 1.0, "logprobs": "processed", **settings})
    made = build(trace(generation(0, [1], [2], sampling=sampling)), temperature=sampling.temperature)
    assert made.report.trained == 1


def test_an_unknown_temperature_is_another() -> None:
    made = build(trace(generation(0, [1], [2], sampling=Sampling())))
    assert made.report.refusals == {"other_temperature": 1}


@pytest.mark.parametrize("status", [status for status in TraceStatus if status is not TraceStatus.OK])
def test_a_run_that_failed_is_refused_whatever_its_score(status: TraceStatus) -> None:
    made = build(trace(generation(0, [1], [2]), generation(1, [1, 2], [3]), status=status))
    assert (made.rows, made.report.refusals) == ([], {"failed_run": 2})


def test_a_run_without_a_score_is_refused_unless_credit_comes_from_elsewhere() -> None:
    run = trace(generation(0, [1], [2]), score=None)
    assert build(run).report.refusals == {"unscored": 1}
    assert build(run, scored=False).report.trained == 1


def test_a_trace_that_is_given_twice_is_an_error() -> None:
    run = trace(generation(0, [1], [2]))
    with pytest.raises(InputError, match="given twice"):
        build(run, run)


def test_credit_is_written_to_sampled_tokens_and_clears_the_mask_where_there_is_none() -> None:
    run = trace(generation(0, [1, 2], [3, 4]), generation(1, [1, 2, 3, 4, 9], [5]))
    rows = build(run).rows
    assert assign(rows, {(run.id, 1): -0.5}) == rows
    assert rows[0].advantages.tolist() == [0, 0, 0, 0, 0, -0.5]
    assert rows[0].mask.tolist() == [False] * 5 + [True]
    assert assign(rows, {}) == []
    assert not rows[0].mask.any()
    assert assign(rows, {(run.id, 0): 0.0, (run.id, 1): 2.0}) == rows  # an advantage of 0 is credit, for the KL term
    assert rows[0].mask.tolist() == [False, False, True, True, False, True]
    assert rows[0].advantages.tolist() == [0, 0, 0, 0, 0, 2.0]


def test_without_merging_each_generation_is_a_row() -> None:
    made = build(trace(generation(0, [1], [2]), generation(1, [1, 2, 3], [4])), merge=False)
    assert [row.ids.tolist() for row in made.rows] == [[1, 2], [1, 2, 3, 4]]
    assert (made.report.tokens_saved, made.report.merge_ratio) == (0, 1.0)


def test_nothing_gives_no_rows() -> None:
    made = build()
    assert (made.rows, made.report.merge_ratio, made.report.tokens) == ([], 1.0, 0)

"""The doctor finds every fault by name: each test plants exactly one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, get_args
from uuid import UUID

import pytest

from memweave.tracing import ChatMessage, Finding, Generation, Sampling, Score, Trace, TraceStatus, doctor
from memweave.tracing.diagnosis import REMEDIES, Code

MakeTrace = Callable[..., Trace]
MakeGeneration = Callable[..., Generation]
WORDS = {10: "in", 11: " Oslo", 0: "<end>"}
SOUND = Sampling(
    temperature=1.0, top_p=1.0, top_k=-1, min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0, logprobs="processed"
)


class Words:
    """A tokenizer of three words."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(WORDS[token] for token in token_ids if token or not skip_special_tokens)


@pytest.fixture
def group(trace: MakeTrace) -> Callable[..., list[Trace]]:
    """Return a function that makes a sound group of three; its arguments go to the first one."""

    def make(**fields: Any) -> list[Trace]:
        others = [trace(replica=n, score=Score(value=n / 4)) for n in (1, 2)]
        return [trace(**fields), *others]

    return make


def codes(findings: Sequence[Finding]) -> set[str]:
    return {finding.code for finding in findings}


def test_nothing_is_wrong_with_a_sound_set(group: Callable[..., list[Trace]], generation: MakeGeneration) -> None:
    first = generation()
    second = generation(
        index=1,
        messages=(
            *first.messages,
            ChatMessage(role="assistant", text=first.reply),
            ChatMessage(role="user", text="Sure?"),
        ),
        prompt_token_ids=(1, 2, 3, 10, 11, 0, 4, 5),
    )
    frozen = generation(index=2, policy_version=None, role="judge")
    sound = group(generations=(first, second, frozen))
    reference: dict[tuple[UUID, int], Sequence[float]] = {(sound[0].id, 0): (-0.5004, -0.25, -0.125)}
    assert doctor(sound, tokenizer=Words(), temperature=1.0, reference_logprobs=reference) == []
    assert doctor([]) == []


Plant = Callable[[MakeGeneration], dict[str, Any]]
PLANTED: dict[str, list[Plant]] = {
    "missing_ids": [
        lambda g: {"generations": (g(), g(index=1, token_ids=None, logprobs=None))},
        lambda g: {"generations": (g(prompt_token_ids=None),)},
        lambda g: {"generations": (g(logprobs=None),)},
        lambda g: {"generations": (g(), g(index=1, policy_version=None, token_ids=None, logprobs=None))},
    ],
    "length_mismatch": [lambda g: {"generations": (g(logprobs=(-0.5, -0.5)),)}],
    "logprob_invalid": [
        lambda g: {"generations": (g(logprobs=(-0.5, 0.25, -0.125)),)},
        lambda g: {"generations": (g(logprobs=(-0.5, math.nan, -0.125)),)},
        lambda g: {"generations": (g(logprobs=(-0.5, -math.inf, -0.125)),)},
    ],
    "prefix_mismatch": [
        lambda g, prompt=prompt: {  # type: ignore[misc]  # a default binds it
            "generations": (
                g(),
                g(
                    index=1,
                    messages=(*g().messages, ChatMessage(role="assistant", text="in Oslo")),
                    prompt_token_ids=prompt,
                ),
            )
        }
        for prompt in ((1, 2, 3, 10, 99, 0, 4), (1, 2, 3, 10, 11), (7, 1, 2, 3, 10, 11, 0))
    ],
    "missing_reward": [lambda g: {"score": None}],
    "truncated": [lambda g: {"generations": (g(finish_reason="length"),)}],
    "parser_altered": [
        lambda g: {"generations": (g(reply="Oslo"),)},
        lambda g: {"generations": (g(reply="", tool_calls=({"name": "f"},)),)},
    ],
    "mixed_policy_versions": [lambda g: {"generations": (g(policy_version="v2"),)}],
    "sampling_breaks_ratio": [
        lambda g, change=change: {"generations": (g(sampling=SOUND.model_copy(update=change)),)}  # type: ignore[misc]  # a default binds it
        for change in (
            {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"repetition_penalty": 1.1}, {"presence_penalty": 0.5},
            {"frequency_penalty": -0.5}, {"temperature": 0.0}, {"temperature": 0.7, "logprobs": "raw"}, {"temperature": 0.7},
            {"temperature": 0.7, "logprobs": None},
        )
    ],
    "failed_run": [
        lambda g: {"status": TraceStatus.FAILED, "error": "boom", "score": None},
        lambda g: {"status": TraceStatus.UNAVAILABLE, "score": None, "generations": ()},
        lambda g: {"generations": (g(), g(index=1, error="boom", token_ids=None, reply="", logprobs=None))},
    ],
    "empty_completion": [
        lambda g: {"generations": (g(reply="", token_ids=(0,), logprobs=(-0.5,)),)},
        lambda g: {"generations": (g(reply="", token_ids=(), logprobs=()),)},
    ],
    "no_policy_model": [
        lambda g: {"generations": ()},
        lambda g: {"generations": (g(policy_version=None, token_ids=None, prompt_token_ids=None, logprobs=None),)},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("code", "plant"), [(code, plant) for code, plants in PLANTED.items() for plant in plants])
def test_a_planted_fault_is_found_alone(
    group: Callable[..., list[Trace]], generation: MakeGeneration, code: str, plant: Plant
) -> None:
    planted = group(**plant(generation))
    found = doctor(planted, tokenizer=Words(), temperature=1.0)
    assert codes(found) == {code}
    if code != "failed_run":
        assert {finding.trace for finding in found} == {planted[0].id}
    for finding in found:
        assert finding.remedy
        assert Finding.model_validate(json.loads(finding.model_dump_json())) == finding


@pytest.mark.parametrize("reference", [(-0.5, -0.26, -0.125), (-0.5, -0.25), (-0.5, math.nan, -0.125)])
def test_a_log_probability_that_differs_from_the_reference(
    group: Callable[..., list[Trace]], reference: tuple[float, ...]
) -> None:
    planted = group()
    found = doctor(planted, reference_logprobs={(planted[1].id, 0): reference})
    assert [(finding.code, finding.trace, finding.generation) for finding in found] == [
        ("logprob_mismatch", planted[1].id, 0)
    ]


def test_a_group_of_one_and_one_that_has_only_one_score(group: Callable[..., list[Trace]], trace: MakeTrace) -> None:
    alone = trace(group="other")
    (found,) = doctor([*group(), alone])
    assert (found.code, found.trace) == ("group_of_one", alone.id)
    two = [trace(), trace(replica=1, score=None, status=TraceStatus.UNAVAILABLE)]
    assert codes(doctor(two)) == {"group_of_one", "failed_run"}


def test_groups_of_different_iterations_are_different(trace: MakeTrace) -> None:
    pair = [trace(iteration=n, generations=(), status=TraceStatus.FAILED) for n in (0, 1)]
    assert [finding.code for finding in doctor(pair) if finding.code != "failed_run"] == ["group_of_one"] * 2


def test_a_group_without_variance(trace: MakeTrace) -> None:
    (found,) = doctor([trace(replica=n) for n in range(3)])
    assert (found.code, found.severity, found.trace) == ("zero_variance", "warning", None)
    by_role = [trace(replica=n, score=Score(value=1.0, parts={"manager": n / 2})) for n in range(2)]
    assert doctor(by_role) == []


def test_versions_may_differ_between_iterations_and_roles(trace: MakeTrace, generation: MakeGeneration) -> None:
    both = (generation(), generation(index=1, role="manager", policy_version="v7"))
    first = [trace(replica=n, generations=both, score=Score(value=n)) for n in range(2)]
    second = [
        trace(iteration=1, replica=n, generations=(generation(policy_version="v2"),), score=Score(value=n))
        for n in range(2)
    ]
    assert doctor([*first, *second]) == []


def test_every_code_has_a_remedy_and_a_planted_fault() -> None:
    elsewhere = {"logprob_mismatch", "group_of_one", "zero_variance"}
    assert set(get_args(Code)) == set(REMEDIES) == PLANTED.keys() | elsewhere


def test_truncation_and_wrong_text_are_warnings_and_the_rest_errors(
    group: Callable[..., list[Trace]], generation: MakeGeneration
) -> None:
    severities = {
        code: {each.severity for plant in plants for each in doctor(group(**plant(generation)), tokenizer=Words(), temperature=1.0)}
        for code, plants in PLANTED.items()
    }  # fmt: skip
    harmless = {"truncated", "parser_altered", "empty_completion", "failed_run", "prefix_mismatch"}
    assert {code for code, found in severities.items() if found == {"warning"}} == harmless


def test_a_greedy_reply_breaks_the_ratio_whatever_the_training_run_is(
    trace: MakeTrace, generation: MakeGeneration
) -> None:
    greedy = generation(sampling=SOUND.model_copy(update={"temperature": 0.0}))
    (found,) = doctor([trace(group=None, generations=(greedy,))])
    assert (found.code, found.severity) == ("sampling_breaks_ratio", "error")

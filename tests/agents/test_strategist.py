from __future__ import annotations

import asyncio
import json
import random
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memweave.agents.cognition import load_machine, parse_machine
from memweave.agents.leaks import Source
from memweave.agents.model_strategist import SOFT_CAP, ModelStrategist
from memweave.agents.path_mapper import MappedPath, RuleMapper
from memweave.agents.run_log import RunLog
from memweave.agents.strategist import (
    RULE_MATCH,
    Induced,
    InductionRequest,
    NoStrategy,
    Proposal,
    RuleStrategist,
    as_strategist,
    source_of,
)
from memweave.embeddings import HashingEmbedder
from memweave.errors import ModelReplyError, SettingsError, UnavailableError
from memweave.graph_records import NewStrategy, Principle, Strategy, StrategyKind
from memweave.records import Scope, new_id, utc_now
from memweave.testing.models import ScriptedChatModel
from tests.agents.logged import CHAIN, FRIEND, MISS, QUESTION, run
from tests.agents.test_cognition import SMALL, walk

FINE = load_machine("cognitive")
SOURCE = Source(question=QUESTION, answers=("Clara",), found=("Anna's friend is Boris since 1987.",))


def path(*steps: Any, reward: float) -> tuple[str, ...]:
    mapped = RuleMapper().map(run(*steps, reward=reward))
    assert isinstance(mapped, MappedPath)
    return mapped.states


SEQUENTIAL = path(*CHAIN, reward=1.0)
SINGLE = path(("", [FRIEND]), "Boris", reward=0.0)
KNOWN = path("Clara", reward=1.0)
KNOWN_WRONG = path("Dora", reward=0.0)
ASSUMED = path(("", [MISS]), "Dora", reward=0.0)
AGAIN = path(("", [MISS]), ("", [FRIEND]), "Boris", reward=1.0)


def asked(
    success: tuple[str, ...],
    failure: tuple[str, ...] | None,
    kind: StrategyKind = StrategyKind.CONTRAST,
    existing: tuple[Strategy, ...] = (),
) -> InductionRequest:
    failures = () if failure is None else (failure,)
    return InductionRequest(kind=kind, successes=(success,), failures=failures, existing=existing, source=SOURCE)


def kept(new: NewStrategy, **changed: Any) -> Strategy:
    given = {**new.model_dump(), "id": new_id(), "scope": Scope(user="a"), "recorded_at": utc_now(), "version": 1}
    return Strategy.model_validate({**given, "evidence": 1, "contradictions": 0, **changed})


def induced(success: tuple[str, ...], failure: tuple[str, ...] | None, **given: Any) -> Proposal:
    found = RuleStrategist().induce(asked(success, failure, **given))
    assert isinstance(found, Proposal), found
    assert found == asyncio.run(RuleStrategist().ainduce(asked(success, failure, **given)))
    return found


# rules


@pytest.mark.parametrize(
    ("success", "failure", "text"),
    [
        (SEQUENTIAL, SINGLE, "When own knowledge has a gap, consider searching step by step instead of looking up one thing only."),
        (KNOWN, SINGLE, "When the goal is clear, consider answering from own knowledge instead of searching before answering."),
        (SEQUENTIAL, KNOWN_WRONG, "When the goal is clear, consider searching before answering instead of answering from own knowledge."),
        (AGAIN, ASSUMED, "When one search seems to be enough and what was found does not help, "
                         "consider searching once more instead of answering from an assumption."),
    ],
)  # fmt: skip
def test_the_first_decision_in_which_success_and_failure_differ_becomes_advice(
    success: tuple[str, ...], failure: tuple[str, ...], text: str
) -> None:
    found = induced(success, failure)
    (principle,) = found.new.principles
    assert principle.text == text
    assert found.new.summary == f"{text.partition(' instead of ')[0]}."
    assert (found.new.kind, found.new.score, principle.score) == (StrategyKind.CONTRAST, 60, 60)
    assert (found.target, found.by) == (None, "rule")
    assert found.new.metadata["machine"] == "cognitive@1"


def test_what_a_run_meets_is_no_decision() -> None:
    """Both look once; one finds something, the other does not: the difference that counts is what each does then."""
    found = induced(path(("", [FRIEND]), "Boris", reward=1.0), ASSUMED)
    assert (found.new.metadata["better"], found.new.metadata["worse"]) == (
        "SufficientInformation",
        "AssumptionBasedReasoning",
    )
    assert "different situations" in (found.new.uncertainty or "")
    assert "different situations" not in (induced(SEQUENTIAL, SINGLE).new.uncertainty or "")


def test_equal_decisions_teach_nothing() -> None:
    right, wrong = path("Clara", reward=1.0), path("Dora", reward=0.0)
    found = RuleStrategist().induce(asked(right, wrong))
    assert isinstance(found, NoStrategy)
    assert found.kind == "no_difference"


def test_speculation_starts_lower_and_successes_alone_in_between() -> None:
    assert induced(SEQUENTIAL, SINGLE, kind=StrategyKind.SPECULATIVE).new.score == 40
    positive = induced(SEQUENTIAL, None, kind=StrategyKind.POSITIVE)
    assert positive.new.score == 50
    assert positive.new.summary == "When own knowledge has a gap, consider searching step by step."
    assert (
        induced(KNOWN, None, kind=StrategyKind.POSITIVE).new.summary
        == "When the goal is clear, consider answering from own knowledge."
    )


def test_advice_and_its_opposite_are_two_strategies_and_the_same_advice_is_one() -> None:
    """Encoders that count words take 'A instead of B' for 'B instead of A', so summaries have to differ in their words."""
    one, other = induced(SEQUENTIAL, KNOWN_WRONG), induced(KNOWN, SINGLE)
    vectors = HashingEmbedder(256).embed([one.new.summary, other.new.summary, one.new.summary])
    assert float(vectors[0] @ vectors[1]) < 0.85
    assert float(vectors[0] @ vectors[2]) >= RULE_MATCH


def test_different_advice_of_the_rules_never_matches_at_their_threshold() -> None:
    when = [state.when for state in FINE.states if state.when]
    act = [state.act for state in FINE.states if state.act]
    for situation in [*when, f"{max(when, key=len)} and {when[-1]}"]:
        rows = HashingEmbedder(256).embed([f"When {situation}, consider {each}." for each in act])
        cosines = rows @ rows.T
        assert all(cosines[i, j] < RULE_MATCH for i in range(len(act)) for j in range(i))


def test_what_is_known_already_is_an_update_with_both_contrasts() -> None:
    known = kept(induced(SEQUENTIAL, SINGLE).new)
    parallel = (*SINGLE[:4], "ParallelIndependentPlanning", *SINGLE[5:])
    more = induced(SEQUENTIAL, parallel, existing=(known,))
    assert more.target == known.id
    assert [each.text.partition(" instead of ")[2] for each in more.new.principles] == [
        "looking up one thing only.",
        "looking up each part independently.",
    ]
    again = induced(SEQUENTIAL, SINGLE, existing=(known,))
    assert again.target == known.id
    assert [each.score for each in again.new.principles] == [65]


@given(st.randoms(use_true_random=False), st.sampled_from(["cognitive", "coarse"]), st.sampled_from(list(StrategyKind)))
def test_any_two_paths_give_hedged_advice_without_leaks_or_a_named_reason(
    rng: random.Random, name: str, kind: StrategyKind
) -> None:
    machine = load_machine(name)
    walks = [walk(machine, rng), walk(machine, rng)]
    if walks[0] is None or walks[1] is None:
        return
    first, second = (machine.canonical(each) for each in walks if each is not None)
    found = RuleStrategist(machine).induce(asked(first, second, kind=kind))
    if isinstance(found, NoStrategy):
        assert found.kind == "no_difference"
        return
    assert found.new.metadata["better"] in first
    assert found.new.metadata["worse"] in (*second, None)
    assert "consider" in found.new.summary
    assert not {state.name for state in machine.states} & set(found.new.summary.split())


def test_a_machine_of_ones_own_is_contrasted_in_its_own_words() -> None:
    own = parse_machine(
        SMALL.replace('act = "asking"}', 'act = "asking"}\nLook = {kind = "choice", meaning = "d", act = "looking"}')
        .replace('Start = ["Ask"]', 'Start = ["Ask", "Look"]\nLook = ["End"]'),
        "mine",
    )  # fmt: skip
    found = RuleStrategist(own).induce(asked(("Start", "Look", "End"), ("Start", "Ask", "End")))
    assert isinstance(found, Proposal)
    assert found.new.principles[0].text == "When a question is asked, consider looking instead of asking."
    assert found.new.metadata["machine"] == "small@3"


# models


def reply(
    decision: str = "create", *, summary: str = "Consider a second search before an assumption.", **given: Any
) -> str:
    meta = {
        "summary": summary,
        "strategy_principles": [],
        "overall_confidence": "medium",
        "uncertainty_note": "One pair.",
    }
    meta |= {key: given.pop(key) for key in ("strategy_principles", "overall_confidence") if key in given}
    return json.dumps({"reasoning": "r", "decision": decision, "target_meta_id": None, "meta_cognition": meta, **given})


@pytest.fixture(params=["sync", "async"])
def asking(request: pytest.FixtureRequest) -> object:
    """Ask a model for a strategy, in both ways."""

    def made(model: ScriptedChatModel, request_: InductionRequest) -> Induced:
        strategist = ModelStrategist(model)
        return strategist.induce(request_) if request.param == "sync" else asyncio.run(strategist.ainduce(request_))

    return made


def test_a_model_sees_machine_paths_and_strategies_but_not_the_question(asking: object) -> None:
    known = kept(induced(SEQUENTIAL, SINGLE).new)
    model = ScriptedChatModel([reply()], model_name="gpt")
    found = asking(model, asked(SEQUENTIAL, SINGLE, existing=(known,)))  # type: ignore[operator]
    assert isinstance(found, Proposal)
    assert (found.new.summary, found.new.score, found.new.uncertainty) == (
        "Consider a second search before an assumption.",
        60,
        "One pair.",
    )
    assert (found.target, found.by, found.reason) == (None, "gpt", "r")
    (prompt,) = model.prompts
    assert f"Succeeded: {' -> '.join(SEQUENTIAL)}" in prompt
    assert f"Failed: {' -> '.join(SINGLE)}" in prompt
    assert "looking up one thing only. [0]" in prompt
    assert not any(secret in prompt for secret in ("Anna", "Boris", "1987", "Clara"))


def test_scores_are_clamped_and_start_where_the_kind_does(asking: object) -> None:
    principles = [
        {"principle": "It may help to look twice.", "confidence_score": 99},
        {"principle": "It may help to wait.", "confidence_score": 3},
        "It tends to help.",
    ]
    given = reply(strategy_principles=principles, overall_confidence="high")
    found = asking(ScriptedChatModel([given]), asked(SEQUENTIAL, SINGLE, kind=StrategyKind.SPECULATIVE))  # type: ignore[operator]
    assert isinstance(found, Proposal)
    assert [each.score for each in found.new.principles] == [85, 30, 40]
    assert found.new.score == 40
    numbered = asking(ScriptedChatModel([reply(overall_confidence=72)]), asked(SEQUENTIAL, SINGLE))  # type: ignore[operator]
    assert isinstance(numbered, Proposal)
    assert (numbered.new.score, numbered.new.confidence) == (72, "high")


def test_an_update_names_a_strategy_by_the_number_that_was_shown(asking: object) -> None:
    known = tuple(kept(induced(SEQUENTIAL, SINGLE).new) for _ in range(2))
    found = asking(
        ScriptedChatModel([reply("update", target_meta_id="[1]")]), asked(SEQUENTIAL, SINGLE, existing=known)
    )  # type: ignore[operator]
    assert isinstance(found, Proposal)
    assert found.target == known[1].id
    assert isinstance(found.target, UUID)


def test_above_thirty_strategies_the_model_is_told_to_prefer_updates() -> None:
    known = kept(induced(SEQUENTIAL, SINGLE).new)
    for number, told in ((SOFT_CAP, False), (SOFT_CAP + 1, True)):
        model = ScriptedChatModel([reply("skip")])
        ModelStrategist(model).induce(asked(SEQUENTIAL, SINGLE, existing=(known,) * number))
        assert ("There are more than 30" in model.prompts[0]) is told


def test_skip_is_a_named_reason(asking: object) -> None:
    found = asking(ScriptedChatModel([reply("skip", meta_cognition=None)]), asked(SEQUENTIAL, SINGLE))  # type: ignore[operator]
    assert found == NoStrategy(kind="skipped", text="r")


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ("Let me think.", "no_reply", "prose without JSON"),
        (reply("rewrite"), "no_reply", "Use create, update or skip"),
        (reply(meta_cognition="search more"), "no_reply", 'no object "meta_cognition"'),
        (reply(summary="  "), "no_reply", "summary is missing"),
        (reply(summary=f"Consider {'searching ' * 60}"), "unusable", "use at most 400"),
        (reply(strategy_principles=["It may help."] * 6), "unusable", "6 principles"),
        (reply("update"), "unusable", "None exists: create, or skip"),
        (reply(summary="Search twice before an answer."), "unusable", "is not hedged"),
        (reply(strategy_principles=["Always search first."]), "unusable", "is not hedged"),
        (reply(summary="Consider ToolExecution before answering."), "unusable", "a name that the agent does not know"),
        (reply(summary="Consider checking Boris first."), "leak", "the name 'Boris'"),
        (reply(summary="Consider who was a friend in 1987."), "leak", "the number 1987"),
        (reply(summary="Consider the boss before anything else."), "leak", "the word 'boss'"),
        (reply(strategy_principles=[{"principle": "It may be Clara."}]), "leak", "the name 'Clara'"),
    ],
)
def test_what_cannot_be_used_is_told_once_and_then_it_is_a_named_failure(
    asking: object, given: str, kind: str, said: str
) -> None:
    model = ScriptedChatModel([given, given])
    found = asking(model, asked(SEQUENTIAL, SINGLE))  # type: ignore[operator]
    assert isinstance(found, NoStrategy)
    assert found.kind == kind
    assert said in found.text
    assert said in model.prompts[1]
    better = asking(ScriptedChatModel([given, reply()]), asked(SEQUENTIAL, SINGLE))  # type: ignore[operator]
    assert isinstance(better, Proposal)


def test_a_target_that_was_not_shown_is_refused() -> None:
    known = (kept(induced(SEQUENTIAL, SINGLE).new),)
    found = ModelStrategist(ScriptedChatModel([reply("update", target_meta_id=1)] * 2)).induce(
        asked(SEQUENTIAL, SINGLE, existing=known)
    )
    assert isinstance(found, NoStrategy)
    assert "from 0 to 0" in found.text


def test_a_model_that_is_away_raises_and_one_that_refuses_is_a_named_failure(asking: object) -> None:
    with pytest.raises(UnavailableError):
        asking(ScriptedChatModel([ConnectionError("no route")]), asked(SEQUENTIAL, SINGLE))  # type: ignore[operator]
    found = asking(ScriptedChatModel([ModelReplyError("too long")]), asked(SEQUENTIAL, SINGLE))  # type: ignore[operator]
    assert found == NoStrategy(kind="no_reply", text="too long")


KEYS = st.sampled_from(
    ["decision", "meta_cognition", "summary", "strategy_principles", "principle", "overall_confidence"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=8,
)


@given(JSON)
def test_no_reply_raises_anything_else(value: Any) -> None:
    whole = {"decision": "create", "meta_cognition": {"summary": "Consider this.", "strategy_principles": value}}
    for text in (json.dumps(value), json.dumps(whole), json.dumps({"decision": "update", "meta_cognition": value})):
        found = ModelStrategist(ScriptedChatModel([text, text])).induce(asked(SEQUENTIAL, SINGLE))
        assert isinstance(found, NoStrategy | Proposal)


# both


def test_what_a_strategy_may_not_repeat_comes_from_the_runs_of_its_question() -> None:
    runs: list[RunLog] = [run(("", [FRIEND]), "Boris", reward=0.0), run(*CHAIN)]
    source = source_of(*runs, answers=("Clara Schmidt",))
    assert (source.question, source.answers) == (QUESTION, ("Clara Schmidt", "Boris", "Clara"))
    assert source.found == (FRIEND[1], FRIEND[1], "The boss of Boris is Clara.")


def test_a_strategist_is_named_by_a_word_a_model_or_itself() -> None:
    coarse = load_machine("coarse")
    rules = as_strategist("rule", coarse)
    assert isinstance(rules, RuleStrategist)
    assert rules.machine is coarse
    assert isinstance(as_strategist(ScriptedChatModel([])), ModelStrategist)
    assert as_strategist(rules) is rules
    with pytest.raises(SettingsError):
        as_strategist("nobody")
    assert Principle(text="x", score=60).confidence == "medium"

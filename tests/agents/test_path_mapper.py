from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from memweave.agents.cognition import Machine, load_machine, parse_machine
from memweave.agents.path_mapper import (
    Mapped,
    MappedPath,
    ModelMapper,
    PathMapper,
    RuleMapper,
    UnmappedRun,
    as_mapper,
    repaired,
)
from memweave.agents.run_log import RunLog, read_run
from memweave.errors import ModelReplyError, SettingsError, UnavailableError
from memweave.testing.models import ScriptedChatModel
from tests.agents.logged import BOSS, CHAIN, FRIEND, MISS, Step, native, run, tagged
from tests.agents.test_cognition import CASE_2, SMALL
from tests.agents.test_run_log import MESSAGES

Map = Callable[[ScriptedChatModel, RunLog], Mapped]

FINE = load_machine("cognitive")
UNREMARKABLE = {
    "Start",
    "CorrectGoalEstablished",
    "StrategyPlanning",
    "InformationAnalysis",
    "AnswerGeneration",
    "DiagnosisHub",
    "End",
}
"""States that paths share, left out where paths are compared."""


def states(log: RunLog, machine: Machine = FINE) -> list[str]:
    mapped = RuleMapper(machine).map(log)
    assert isinstance(mapped, MappedPath), mapped
    assert machine.legal(mapped.states)
    assert machine.canonical(mapped.states) == mapped.states
    assert (mapped.machine, mapped.by) == (machine.label, "rule")
    return [name for name in mapped.states if name not in UNREMARKABLE]


# rules


def test_no_search_is_own_knowledge() -> None:
    assert states(run("Clara")) == ["KnowledgeSufficient", "CorrectAnswer"]
    assert states(run("Dora", reward=0.0)) == ["KnowledgeSufficient", "WrongAnswer", "InternalKnowledgeConflict"]


def test_an_answer_that_its_thought_calls_a_guess_is_an_assumption() -> None:
    log = read_run(
        [HumanMessage("Who?"), AIMessage("<think>I can only guess.</think><answer>Clara</answer>")], reward=1.0
    )
    expected = [
        "KnowledgeSufficient",
        "DecisionMaking",
        "InsufficientInformation",
        "AssumptionBasedReasoning",
        "CorrectAnswer",
    ]
    assert states(log) == expected


def test_an_answer_that_was_found_and_is_called_a_guess_all_the_same_is_an_assumption() -> None:
    messages = [*tagged(("", [FRIEND])), AIMessage("<think>I assume it is him.</think><answer>Boris</answer>")]
    assert "AssumptionBasedReasoning" in states(read_run(messages, reward=1.0))
    messages[-1] = AIMessage("<think>It says so.</think><answer>Boris</answer>")
    assert "SufficientInformation" in states(read_run(messages, reward=1.0))


def test_a_search_that_builds_on_a_result_is_sequential_in_both_protocols() -> None:
    step = ["ToolExecution", "KnowledgeAligned"]
    found = ["DecisionMaking", "SufficientInformation", "CorrectAnswer"]
    expected = ["KnowledgeUncertainGap", "SequentialDependentPlanning", *step, *step, *found]
    assert states(run(*CHAIN)) == expected
    assert states(read_run(native(*CHAIN), reward=1.0)) == expected


def test_two_searches_that_do_not_need_each_other_are_parallel_in_one_turn_or_in_two() -> None:
    question = "Who is older, Anna or Boris?"
    ages = [("age of Anna", "The age of Anna is 31."), ("age of Boris", "The age of Boris is 29.")]
    together = states(run(("", ages), "Anna", question=question))
    apart = states(run(("", ages[:1]), ("", ages[1:]), "Anna", question=question))
    end = ["DecisionMaking", "SufficientInformation", "CorrectAnswer"]
    step = ["ToolExecution", "KnowledgeAligned"]
    assert together == ["KnowledgeUncertainGap", "ParallelIndependentPlanning", *step, *end]
    assert apart == ["KnowledgeUncertainGap", "ParallelIndependentPlanning", *step, *step, *end]


def test_a_result_that_names_what_the_question_names_makes_no_chain() -> None:
    question = "Who is older, Anna or Boris?"
    ages = [("age of Anna", "The age of Anna, a cousin of Boris, is 31."), ("age of Boris", "The age of Boris is 29.")]
    assert "ParallelIndependentPlanning" in states(run(("", ages[:1]), ("", ages[1:]), "Anna", question=question))


def test_one_search_is_a_single_step_unless_its_thought_says_that_it_begins_a_chain() -> None:
    assert "SingleStepPlanning" in states(run(("", [FRIEND]), "Boris"))
    assert "SequentialDependentPlanning" in states(run(("plan seq: the friend", [MISS]), "Boris"))


def test_the_papers_complete_path_is_that_of_a_run() -> None:
    """Case 2: a chain that finds what fits, then an assumption, which is wrong."""
    log = run(("step by step", [FRIEND]), "Dora", reward=0.0)
    mapped = RuleMapper().map(log)
    assert isinstance(mapped, MappedPath)
    assert mapped.states == CASE_2


@pytest.mark.parametrize(
    ("found", "finding"),
    [
        ("Anna's friend is Boris.", "KnowledgeAligned"),
        ("Anna likes tea.\nThe friend of Carl is Dora.", "InformationIrrelevant"),  # its words, but in no one passage
        ("", "InformationIrrelevant"),
        ("nothing found", "InformationIrrelevant"),
        ("Zeno, says the register.", "KnowledgeAligned"),  # holds the answer
        ("!the index is down", "ToolFailure"),
    ],
)
def test_what_came_back_is_a_finding(found: str, finding: str) -> None:
    assert states(run(("", [("friend of Anna", found)]), "Zeno"))[3] == finding


def test_the_same_search_with_another_result_is_a_conflict() -> None:
    other = ("friend of Anna", "Anna's friend is Dora.")
    assert states(run(("", [FRIEND]), ("", [other]), "Boris"))[4:6] == ["ToolExecution", "KnowledgeConflicting"]
    again = ("friend of Anna", "Anna's friend is Boris. [2]")
    assert "KnowledgeConflicting" not in states(run(("", [FRIEND]), ("", [again]), "Boris"))


def test_a_thought_that_finds_a_contradiction_is_a_conflict() -> None:
    assert "KnowledgeConflicting" in states(run(("", [FRIEND]), ("this contradicts what I know", [BOSS]), "Clara"))


def test_a_search_anew_after_nothing_useful_is_a_new_plan_and_the_same_one_again_is_not() -> None:
    anew = states(run(("", [MISS]), ("", [("people who know Anna", "Anna knows many people.")]), "Boris", reward=0.0))
    again = states(run(("", [MISS]), ("", [FRIEND]), "Boris", reward=0.0))
    assert anew.count("SingleStepPlanning") == 2
    assert again.count("SingleStepPlanning") == 1
    assert again.count("ToolExecution") == 2


def test_planning_anew_after_a_failed_tool_is_a_decision() -> None:
    log = run(("", [("friend of Anna", "!down")]), ("", [("people who know Anna", "Anna knows many people.")]), "x")
    at = states(log).index("ToolFailure")
    assert states(log)[at + 1 : at + 4] == ["DecisionMaking", "InsufficientInformation", "SingleStepPlanning"]


@pytest.mark.parametrize(
    ("steps", "diagnosis"),
    [
        ((("", [FRIEND]), "Boris"), "ReasoningError"),
        ((("", [FRIEND]), "Dora"), "InternalKnowledgeConflict"),
        ((("", [MISS]), "Dora"), "RetrievalFailure"),
        ((("", [("weather tomorrow", "Sunny weather tomorrow.")]), "Dora"), "GoalError"),
        (("Dora",), "InternalKnowledgeConflict"),
    ],
)
def test_a_wrong_answer_is_diagnosed_by_what_was_logged(steps: tuple[Step, ...], diagnosis: str) -> None:
    assert states(run(*steps, reward=0.0))[-2:] == ["WrongAnswer", diagnosis]
    assert states(run(*steps, reward=1.0))[-1] == "CorrectAnswer"


def test_an_answer_that_stands_in_the_question_needs_a_passage_that_bears_on_the_search() -> None:
    question = "Who is Anna's friend? Maybe Dora."
    near = ("friend of Anna", "Carl teaches Dora.")
    assert "AssumptionBasedReasoning" in states(run(("", [near]), "Dora", question=question))
    told = ("friend of Anna", "Anna's friend is Dora.")
    assert "SufficientInformation" in states(run(("", [told]), "Dora", question=question))


def test_only_reward_1_is_a_success() -> None:
    assert "WrongAnswer" in states(run("Clara", reward=0.99))


def test_a_run_that_fits_no_path_is_a_named_failure() -> None:
    mapper = RuleMapper()
    silent = mapper.map(run(("", [FRIEND])))
    unscored = mapper.map(run("Clara", reward=None))
    assert isinstance(silent, UnmappedRun)
    assert isinstance(unscored, UnmappedRun)
    assert (silent.kind, unscored.kind) == ("no_answer", "no_reward")
    narrow = parse_machine(SMALL.replace('meaning = "b"', f'meaning = "b", covers = {covers("Start", "End")}'), "mine")
    odd = RuleMapper(narrow).map(run(*CHAIN))
    assert isinstance(odd, MappedPath)  # Ask stands for everything between
    strict = parse_machine(
        SMALL.replace('Start = {kind = "passage"', f'Start = {{covers = {covers("End")}, kind = "passage"')
        .replace('{kind = "choice"', '{covers = [], kind = "choice"'),
        "mine",
    )  # fmt: skip
    refused = RuleMapper(strict).map(run(*CHAIN))
    assert isinstance(refused, UnmappedRun)
    assert refused.kind == "no_fit"
    assert "refuses" in refused.text


def covers(*without: str) -> list[str]:
    return [state.name for state in FINE.states if state.name not in without]


def test_the_coarse_machine_gets_paths_from_the_same_rules() -> None:
    coarse = load_machine("coarse")
    mapped = RuleMapper(coarse).map(run(*CHAIN))
    assert isinstance(mapped, MappedPath)
    assert mapped.states == ("Start", "Plan", "Search", "Decide", "Right", "End")
    assert mapped.machine == "coarse@1"


def test_a_machine_that_the_rules_do_not_know_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(SettingsError, match=r"no state for CorrectGoalEstablished.*`covers`"):
        RuleMapper(parse_machine(SMALL, "mine"))
    with pytest.raises(SettingsError, match="on_topic = 0"):
        RuleMapper(on_topic=0)


@given(MESSAGES, st.sampled_from([0.0, 0.5, 1.0, None]), st.sampled_from(["cognitive", "coarse"]))
def test_rules_give_a_legal_canonical_path_or_a_named_failure(
    messages: list[BaseMessage], reward: float | None, name: str
) -> None:
    machine = load_machine(name)
    log = read_run(messages, reward=reward, question="Who is x?")
    mapped = RuleMapper(machine).map(log)
    if isinstance(mapped, MappedPath):
        assert machine.legal(mapped.states)
        assert machine.canonical(mapped.states) == mapped.states
        assert mapped == asyncio.run(RuleMapper(machine).amap(log))
    else:
        assert mapped.kind in ("no_answer", "no_reward")


@given(st.randoms(use_true_random=False), st.integers(0, 6), st.booleans())
def test_any_course_of_searches_gives_a_legal_path(rng: random.Random, rounds: int, text: bool) -> None:
    words = ["Anna", "Boris", "friend", "boss", "Clara", "tea"]
    steps = []
    for _ in range(rounds):
        asked = [(" ".join(rng.choices(words, k=2)), rng.choice(["!", "", "\n"]) + " ".join(rng.choices(words, k=4)))]
        steps.append((rng.choice(["", "step by step", "a conflict"]), asked * rng.choice([1, 1, 2])))
    made = (tagged if text else native)(*steps, rng.choice(words))
    mapped = RuleMapper().map(read_run(made, reward=rng.choice([0.0, 1.0])))
    assert isinstance(mapped, MappedPath)
    assert FINE.legal(mapped.states)


# models


def path_reply(*names: str) -> str:
    return json.dumps({"reason": "x", "path": list(names)})


GOOD = ("Start", "CorrectGoalEstablished", "KnowledgeSufficient", "AnswerGeneration", "CorrectAnswer", "End")

UNPLANNED = (*CASE_2[:4], *CASE_2[5:9], "SufficientInformation", *GOOD[3:])
"""Legal but for a gap that three states would fill."""


@pytest.fixture(params=["sync", "async"])
def mapping(request: pytest.FixtureRequest) -> Map:
    """Map a run with a model, in both ways."""

    def made(model: ScriptedChatModel, log: RunLog) -> Mapped:
        mapper = ModelMapper(model)
        return mapper.map(log) if request.param == "sync" else asyncio.run(mapper.amap(log))

    return made


def test_a_models_path_is_taken_when_it_is_legal(mapping: Map) -> None:
    model = ScriptedChatModel([path_reply(*GOOD)], model_name="gpt")
    mapped = mapping(model, run("Clara"))
    assert mapped == MappedPath(machine="cognitive@1", states=GOOD, by="gpt")


def test_the_model_sees_machine_question_run_and_outcome_and_no_tag_of_the_run_begins_a_line() -> None:
    model = ScriptedChatModel([path_reply(*CASE_2)])
    ModelMapper(model).map(
        run(("think\nRun:", [("friend of Anna", "Boris\nThe answer was right.")]), "Dora", reward=0.0)
    )
    (prompt,) = model.prompts
    assert "- ToolFailure: the call failed. -> ToolExecution, DecisionMaking" in prompt
    assert "Question: Who is the boss of Anna's friend?" in prompt
    assert "1. result: Boris The answer was right." in prompt
    assert re.findall(r"^The answer was .*", prompt, re.MULTILINE) == ["The answer was wrong."]


def test_small_slips_are_repaired_and_said() -> None:
    """Other spelling, a missing end, and a state that was left out where only one can have been there."""
    names = ["correct goal established", "KnowledgeUncertainGap", "StrategyPlanning", "single_step_planning", "ToolExecution",
             "KnowledgeAligned", "DecisionMaking", "SufficientInformation", "AnswerGeneration", "CorrectAnswer", "End"]  # fmt: skip
    mapped = ModelMapper(ScriptedChatModel([path_reply(*names)])).map(run(*CHAIN))
    assert isinstance(mapped, MappedPath)
    assert FINE.legal(mapped.states)
    assert mapped.repairs == (
        "put Start before the first state",
        "put InformationAnalysis between ToolExecution and KnowledgeAligned",
    )


def test_a_loop_in_a_models_path_is_cut_to_two_rounds() -> None:
    looped = [*CASE_2[:5], *(*CASE_2[5:8],) * 5, *CASE_2[8:]]
    mapped = ModelMapper(ScriptedChatModel([path_reply(*looped)])).map(run("Dora", reward=0.0))
    assert isinstance(mapped, MappedPath)
    assert mapped.states == (*CASE_2[:5], *CASE_2[5:8] * 2, *CASE_2[8:])


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        ("I cannot.", "no_reply", "prose without JSON"),
        ('{"path": []}', "no_reply", 'no list "path"'),
        (path_reply("Start", "Dreaming", "End"), "no_reply", "no state 'Dreaming'"),
        (path_reply("Start", "CorrectAnswer", "End"), "illegal", "Start does not lead to CorrectAnswer"),
        (path_reply(*UNPLANNED), "illegal", "StrategyPlanning does not lead to ToolExecution"),
        (path_reply(*GOOD[:-2], "WrongAnswer", "DiagnosisHub", "GoalError", "End"), "illegal", "through CorrectAnswer, not WrongAnswer"),
        (path_reply(*GOOD[:-2], "End"), "illegal", "AnswerGeneration does not lead to End"),
    ],
)  # fmt: skip
def test_a_model_is_told_what_is_wrong_once_and_then_it_is_a_named_failure(
    mapping: Map, reply: str, kind: str, said: str
) -> None:
    model = ScriptedChatModel([reply, reply])
    mapped = mapping(model, run("Clara"))
    assert isinstance(mapped, UnmappedRun)
    assert mapped.kind == kind
    assert said in mapped.text
    assert said in model.prompts[1]
    corrected = mapping(ScriptedChatModel([reply, path_reply(*GOOD)]), run("Clara"))
    assert isinstance(corrected, MappedPath)


def test_a_run_without_answer_or_reward_costs_no_call_and_a_model_that_is_away_raises(mapping: Map) -> None:
    for log in (run(("", [FRIEND])), run("Clara", reward=None)):
        assert isinstance(mapping(ScriptedChatModel([]), log), UnmappedRun)
    with pytest.raises(UnavailableError):
        mapping(ScriptedChatModel([ConnectionError("no route")]), run("Clara"))
    refused = mapping(ScriptedChatModel([ModelReplyError("too long")]), run("Clara"))
    assert isinstance(refused, UnmappedRun)
    assert (refused.kind, refused.text) == ("no_reply", "too long")


@given(st.lists(st.sampled_from([state.name for state in FINE.states]), min_size=1, max_size=30))
def test_what_is_repaired_is_legal_and_keeps_every_state_that_was_given(path: list[str]) -> None:
    try:
        legal, done = repaired(path, FINE)
    except ModelReplyError:
        return
    assert FINE.legal(legal)
    assert set(path) <= set(legal)
    assert len(done) <= 3
    assert all(FINE.by_name[name].kind != "outcome" for name in set(legal) - set(path))


@given(st.text(max_size=60))
def test_no_reply_of_a_model_raises_anything_else(reply: str) -> None:
    for text in (reply, f'{{"path": {json.dumps(reply)}}}', f'{{"path": ["Start", {json.dumps(reply)}]}}'):
        assert isinstance(ModelMapper(ScriptedChatModel([text, text])).map(run("Clara")), UnmappedRun)


def test_a_mapper_is_named_by_a_word_a_model_or_itself() -> None:
    coarse = load_machine("coarse")
    rules = as_mapper("rule", coarse)
    assert isinstance(rules, RuleMapper)
    assert rules.machine is coarse
    made: PathMapper = as_mapper(ScriptedChatModel([]), coarse)
    assert isinstance(made, ModelMapper)
    assert made.machine is coarse
    assert as_mapper(rules) is rules
    with pytest.raises(SettingsError):
        as_mapper("nobody")

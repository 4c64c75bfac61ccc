from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memweave.agents.cognition import (
    LONGEST_PATH,
    SHIPPED,
    Machine,
    canonical,
    faults,
    load_machine,
    parse_machine,
)
from memweave.errors import InputError

CASE_2 = (
    "Start", "CorrectGoalEstablished", "KnowledgeUncertainGap", "StrategyPlanning", "SequentialDependentPlanning",
    "ToolExecution", "InformationAnalysis", "KnowledgeAligned", "DecisionMaking", "InsufficientInformation",
    "AssumptionBasedReasoning", "AnswerGeneration", "WrongAnswer", "DiagnosisHub", "InternalKnowledgeConflict", "End",
)  # fmt: skip
"""The one complete path that the paper gives."""

SMALL = """
name = "small"
version = 3
[states]
Start = {kind = "passage", meaning = "a"}
Ask = {kind = "choice", meaning = "b", act = "asking"}
End = {kind = "passage", meaning = "c"}
[reconstructed]
Start = ["Ask"]
Ask = ["Ask", "End"]
"""


def walk(machine: Machine, rng: random.Random, longest: int = LONGEST_PATH) -> tuple[str, ...] | None:
    """Return a random walk from start to end; `None` when it does not end in time."""
    path = [machine.start]
    while path[-1] != machine.end and len(path) < longest:
        path.append(rng.choice(machine.after[path[-1]]))
    return tuple(path) if path[-1] == machine.end else None


def with_arcs(**arcs: str) -> str:
    """Return the text of a small machine with more states (every new name) and more arcs."""
    lines = SMALL.rstrip().removesuffix('Ask = ["Ask", "End"]')
    named = {name for source, targets in arcs.items() for name in (source, *targets.split())}
    states = "".join(
        f'{name} = {{kind = "finding", meaning = "x"}}\n' for name in sorted(named - {"Start", "Ask", "End"})
    )
    lines = lines.replace("[reconstructed]\n", f"{states}[reconstructed]\n")
    given = {"Ask": "Ask End", **arcs}
    return lines + "\n".join(f"{source} = {targets.split()}" for source, targets in given.items())


# the shipped machines


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_machines_have_no_fault(name: str) -> None:
    machine = load_machine(name)
    assert faults(machine) == []
    assert machine.name == name
    assert load_machine(name) is machine


def test_the_attested_arcs_are_those_of_the_papers_path_and_no_others() -> None:
    machine = load_machine("cognitive")
    assert machine.legal(CASE_2)
    attested = [(arc.source, arc.target) for arc in machine.arcs if arc.origin == "attested"]
    assert attested == list(zip(CASE_2, CASE_2[1:], strict=False))
    ours = {state.name for state in machine.states if state.reconstructed}
    assert not ours & set(CASE_2)
    assert {"GoalMisunderstood", "SufficientInformation", "CorrectAnswer", "RetrievalFailure"} <= ours
    assert "KnowledgeSufficient" not in ours  # named in the paper's case study


def test_the_coarse_machine_has_eight_states_and_every_path_of_the_cognitive_one_is_a_path_of_it() -> None:
    fine, coarse = load_machine("cognitive"), load_machine("coarse")
    assert len(coarse.states) == 8
    assert {state.name for state in fine.states} == set(coarse.projection)
    for arc in fine.arcs:
        source, target = coarse.projection[arc.source], coarse.projection[arc.target]
        assert source == target or target in coarse.after[source], arc
    crossed = canonical(coarse.projection[name] for name in CASE_2)
    attested = [(arc.source, arc.target) for arc in coarse.arcs if arc.origin == "attested"]
    assert attested == list(zip(crossed, crossed[1:], strict=False))


# paths


@given(st.randoms(use_true_random=False), st.sampled_from(SHIPPED))
def test_a_random_walk_is_legal_and_stays_legal_when_canonical(rng: random.Random, name: str) -> None:
    machine = load_machine(name)
    path = walk(machine, rng)
    if path is None:
        return
    assert machine.problem(path) is None
    short = machine.canonical(path)
    assert machine.legal(short)
    assert machine.canonical(short) == short
    assert set(short) == set(path)
    for place in range(1, len(path) - 1):
        without = path[:place]
        assert not machine.legal(without)


@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_canonical_is_idempotent_and_leaves_no_third_round(path: list[str]) -> None:
    short = canonical(path)
    assert canonical(short) == short
    for size in range(1, len(short) // 3 + 1):
        for at in range(len(short) - 3 * size + 1):
            one, two, three = (short[at + k * size : at + (k + 1) * size] for k in range(3))
            assert not one == two == three
    assert all(one != two for one, two in zip(short, short[1:], strict=False))


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("aaab", "ab"),
        ("abab", "abab"),
        ("ababab", "abab"),
        ("ababababc", "ababc"),
        ("xabcabcabcabcy", "xabcabcy"),
        ("aabbaabbaabb", "abab"),
        ("", ""),
    ],
)
def test_a_loop_is_kept_once_or_twice(path: str, short: str) -> None:
    assert "".join(canonical(path)) == short


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ((), "is empty"),
        (("Start",), "ends with Start, not with End"),
        (("Ask", "End"), "begins with Ask, not with Start"),
        (("Start", "Think", "End"), "no state 'Think'"),
        (("Start", "End"), "Start does not lead to End, but to Ask"),
        (("Start", "Ask", "End", "Ask"), "Step 3: End does not lead to Ask, but to nothing"),
        (("Start", *["Ask"] * LONGEST_PATH, "End"), f"at most {LONGEST_PATH} are read"),
    ],
)
def test_what_is_wrong_with_a_path_is_said(path: tuple[str, ...], said: str) -> None:
    machine = parse_machine(SMALL, "small")
    assert said in (machine.problem(path) or "")
    assert not machine.legal(path)
    assert machine.legal(("Start", "Ask", "Ask", "End"))


# faulty machines


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (with_arcs(Ask="End Nowhere").replace('Nowhere = {kind = "finding", meaning = "x"}\n', ""), "unknown state 'Nowhere'"),
        (SMALL.replace("Start", "Begin"), "no start state 'Start'"),
        (SMALL.replace("End", "Stop"), "no end state 'End'"),
        (SMALL + 'End = ["Ask"]', "End -> Ask leads out of the end state"),
        (with_arcs(Island="End"), "no path from Start reaches Island"),
        (with_arcs(Ask="End Trap", Trap=""), "no path from Trap reaches End"),
        (with_arcs(Ask="End One", One="Two", Two="One"), "the loop of One, Two has no way out to End"),
        (with_arcs(Ask="End One", One="One"), "the loop of One has no way out to End"),
        (SMALL + '[attested]\nAsk = ["End"]', "Ask -> End is there twice"),
        (SMALL.replace(', act = "asking"', ""), "the choice Ask has no words"),
        (SMALL + '\n[states.Ask]', "no TOML"),
        (SMALL.replace("version = 3", "version = 0"), "version"),
        (SMALL.replace('"choice"', '"whim"'), "states.Ask.kind"),
        (SMALL.replace("version = 3", 'version = 3\nend = "Start"'), "start and end at the same time"),
        (SMALL.replace('meaning = "c"', 'meaning = "c", covers = ["A", "A"]'), "'A' is covered by two states"),
    ],
)  # fmt: skip
def test_a_faulty_machine_is_refused_by_name(source: str, said: str) -> None:
    with pytest.raises(InputError, match="faults|TOML") as refused:
        parse_machine(source, "mine")
    assert said in str(refused.value)
    assert "'mine'" in str(refused.value)


def test_every_fault_is_named_at_once() -> None:
    source = with_arcs(Ask="End One Trap", One="Two", Two="One", Trap="", Island="End") + '\nEnd = ["Ask"]'
    with pytest.raises(InputError) as refused:
        parse_machine(source, "mine")
    for said in ("loop of One, Two", "from Trap", "reaches Island", "out of the end state"):
        assert said in str(refused.value)


def test_loops_with_a_way_out_are_legal() -> None:
    machine = parse_machine(with_arcs(Ask="End One", One="Two", Two="One Ask"), "mine")
    assert machine.legal(("Start", "Ask", "One", "Two", "One", "Two", "Ask", "End"))


def test_a_machine_of_ones_own_is_loaded_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(SMALL)
    assert load_machine(file) == load_machine(str(file))
    assert (load_machine(file).name, load_machine(file).version) == ("small", 3)
    with pytest.raises(InputError, match=r"'cognitive', 'coarse', 'babyai', or the path"):
        load_machine(tmp_path / "none.toml")
    file.write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot be read"):
        load_machine(file)


@given(st.text(max_size=200))
def test_no_text_raises_anything_else(source: str) -> None:
    for text in (source, SMALL + source):
        try:
            parse_machine(text, "mine")
        except InputError:
            continue

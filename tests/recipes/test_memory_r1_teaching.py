"""What the perfect manager and answerer reply, kind by kind, and where the teacher's habits show."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from memweave.agents.answerer import parse_answer_reply
from memweave.agents.manager import parse_manage_reply
from memweave.agents.roles import AnswerRequest, Fact, ManageRequest
from memweave.recipes.memory_r1 import teaching
from memweave.recipes.memory_r1.players import replay
from memweave.recipes.memory_r1.teaching import answer, manage
from memweave.records import Memory, ProposedOp, Scope, Turn, new_id, utc_now
from memweave.worlds.dialog_language import RELATIONS, Act, Relation, Statement, say
from memweave.worlds.dialog_world import DialogWorld

BANK = (
    "Anna lives in Rome",
    "Bob has a dog",
    "Anna plays the piano and the harp",
    "Anna visited Peru in May",
    "Anna had a good lunch",
)
MOVED = ("Anna lives in Rome", "Anna moved to Oslo")
GONE = ("Anna no longer lives in Rome",)
NEW = "new"
Item = tuple[object, ...]
"""Event, number and text of an operation; `None` where it has none."""


def items(reply: str) -> list[Item]:
    return [(item["event"], item.get("id"), item.get("text")) for item in json.loads(reply)["memory"]]


def records(texts: Sequence[str]) -> tuple[Memory, ...]:
    return tuple(
        Memory(id=new_id(), version=1, scope=Scope(user="a"), text=text, speaker="Anna", recorded_at=utc_now())
        for text in texts
    )


def operations(memories: Sequence[str], facts: Sequence[str], reply: str) -> list[ProposedOp]:
    """Return what the real parser makes of a manager's reply."""
    turn = Turn(source_id="0", speaker="Anna", text="-")
    request = ManageRequest(facts=tuple(Fact(text=fact, turn=turn) for fact in facts), memories=records(memories))
    ops = parse_manage_reply(reply, request, actor="test")
    assert len(ops) == len(json.loads(reply)["memory"])
    return ops


def said(memories: Sequence[str], reply: str) -> tuple[str, tuple[int, ...]]:
    """Return the answer in a reply, and the numbers of the memories that it quotes, as the real parser reads them."""
    found = parse_answer_reply(reply, AnswerRequest(question="?", memories=records(memories)))
    return found.text, found.used


@pytest.mark.parametrize(
    ("memories", "fact", "expected"),
    [
        pytest.param(BANK, "Anna drives a Ford", ("ADD", None, "Anna drives a Ford"), id="new"),
        pytest.param((), "Anna drives a Ford", ("ADD", None, "Anna drives a Ford"), id="new, empty bank"),
        pytest.param(BANK, "Bob lives in Rome", ("ADD", None, "Bob lives in Rome"), id="near miss"),
        pytest.param(BANK, "Anna visited Cuba in May", ("ADD", None, "Anna visited Cuba in May"), id="another event"),
        pytest.param(BANK, "Anna also has a cat", ("ADD", None, "Anna also has a cat"), id="one more of none"),
        pytest.param(BANK, "Anna lives in Rome", ("NOOP", 0, None), id="restated literally"),
        pytest.param(BANK, "Anna has a home in Rome", ("NOOP", 0, None), id="restated"),
        pytest.param(BANK, "Anna moved to Rome", ("NOOP", 0, None), id="restated as news"),
        pytest.param(BANK, "Anna plays the harp", ("NOOP", 2, None), id="one of two restated"),
        pytest.param(BANK, "Anna plays the piano and the harp", ("NOOP", 2, None), id="two restated"),
        pytest.param(BANK, "Bob also has a dog", ("NOOP", 1, None), id="known one more"),
        pytest.param(BANK, "Anna took a trip to Peru in May", ("NOOP", 3, None), id="event restated"),
        pytest.param(BANK, "Anna moved to Oslo", ("UPDATE", 0, "Anna moved to Oslo"), id="replaced"),
        pytest.param(BANK, "Anna has a home in Oslo", ("UPDATE", 0, "Anna has a home in Oslo"), id="replaced, plain"),
        pytest.param(BANK, "Anna visited Peru in June", ("UPDATE", 3, "Anna visited Peru in June"), id="other month"),
        pytest.param(BANK, "Bob also has a cat", ("UPDATE", 1, "Bob has a dog and a cat"), id="accumulated"),
        pytest.param(
            BANK, "Anna also plays the lute", ("UPDATE", 2, "Anna plays the piano and the lute"), id="full list"
        ),
        pytest.param(BANK, "Anna no longer lives in Rome", ("DELETE", 0, None), id="retracted"),
        pytest.param(BANK, "Anna no longer lives in Oslo", ("DELETE", 0, None), id="retracted, the news was missed"),
        pytest.param(BANK, "Anna sold the Ford", ("NOOP", None, None), id="retraction of something unknown"),
        pytest.param(BANK, "Bob no longer lives in Rome", ("NOOP", None, None), id="retraction of another's"),
        pytest.param(BANK, "Anna is late again", ("NOOP", None, None), id="small talk"),
        pytest.param(BANK, "Anna had a good lunch", ("NOOP", None, None), id="small talk that was kept"),
        pytest.param(BANK, "It rains", ("NOOP", None, None), id="no sentence of the world"),
        pytest.param(MOVED, "Anna lives in Oslo", ("NOOP", 1, None), id="the newer of two lines"),
        pytest.param(MOVED, "Anna lives in Rome", ("UPDATE", 1, "Anna lives in Rome"), id="back again"),
        pytest.param(GONE, "Anna lives in Rome", ("UPDATE", 0, "Anna lives in Rome"), id="a kept retraction replaced"),
        pytest.param(GONE, "Anna no longer lives in Rome", ("NOOP", 0, None), id="retracted twice"),
    ],
)
def test_a_perfect_manager(memories: Sequence[str], fact: str, expected: Item) -> None:
    reply = manage(memories, [fact])
    assert items(reply) == [expected]
    (op,) = operations(memories, [fact], reply)
    assert (op.kind, op.text) == (expected[0], expected[2])
    number = expected[1]
    if isinstance(number, int):
        assert op.reason == f"{memories[number]} [{number}]"  # quoted before it decides
    else:
        assert op.reason in ("new", "small talk")


def test_what_is_taken_back_is_deleted_wherever_it_stands() -> None:
    """Otherwise the older line would hold again."""
    assert items(manage(MOVED, ["Anna no longer lives in Oslo"])) == [("DELETE", 0, None), ("DELETE", 1, None)]


def test_the_reason_comes_first_in_the_reply() -> None:
    """A policy writes from left to right: what it looks up must stand before what it decides."""
    for fact in ("Anna moved to Oslo", "Anna drives a Ford", "Anna no longer lives in Rome", "Anna is late again"):
        (item,) = json.loads(manage(BANK, [fact]))["memory"]
        assert list(item)[:2] == ["reason", "event"]


def test_two_facts_are_two_operations_in_their_order() -> None:
    facts = ("Anna drives a Ford", "Anna moved to Oslo")
    reply = manage(BANK, facts)
    assert items(reply) == [("ADD", None, facts[0]), ("UPDATE", 0, facts[1])]
    assert items(manage(BANK, facts[::-1])) == items(reply)[::-1]
    operations(BANK, facts, reply)


def test_a_fact_that_comes_twice_is_decided_once() -> None:
    assert items(manage(BANK, ["Anna moved to Oslo"] * 2)) == [("UPDATE", 0, "Anna moved to Oslo")]
    assert items(manage(BANK, [])) == []


TOLD = (
    "Anna lives in Rome",
    "Anna has a dog and a cat",
    "Anna visited Peru in May",
    "Anna works as a judge",
    "Bob lives in Rome",
    "Bob works as a baker",
    "Bob drives a Fiat",
    "Bob speaks French",
    "Bob also speaks Greek",
    "Bob also speaks French",
)
CHANGED = (
    "Anna lives in Rome",
    "Anna has a dog",
    "Anna moved to Oslo",
    "Anna gave away the dog",
    "Anna drives a Ford",
    "Anna sold the Ford",
    "Anna drives a Kia",
    "Bob moved to Lima",
    "Bob no longer lives in Lima",
)


@pytest.mark.parametrize(
    ("memories", "question", "expected", "quoted"),
    [
        pytest.param(TOLD, "Where does Anna live?", "Rome", (0,), id="lookup"),
        pytest.param(TOLD, "What does Anna drive?", "unknown", (), id="absent, a near miss is there"),
        pytest.param(TOLD, "Where does Vera live?", "unknown", (), id="absent, nobody"),
        pytest.param((), "Where does Anna live?", "unknown", (), id="no memories"),
        pytest.param(TOLD, "Which pets does Anna have?", "dog and cat", (1,), id="list"),
        pytest.param(TOLD, "Which languages does Bob speak?", "French and Greek", (7, 8), id="list from two lines"),
        pytest.param(TOLD, "How many pets does Anna have?", "two", (1,), id="count"),
        pytest.param(TOLD, "How many languages does Bob speak?", "two", (7, 8), id="count from two lines"),
        pytest.param(TOLD, "How many pets does Bob have?", "none", (), id="count of nothing"),
        pytest.param(TOLD, "When did Anna visit Peru?", "May", (2,), id="when"),
        pytest.param(TOLD, "When did Anna visit Cuba?", "unknown", (), id="when, another event"),
        pytest.param(TOLD, "Do Anna and Bob live in the same city?", "yes", (0, 4), id="compare, same"),
        pytest.param(TOLD, "Do Anna and Bob have the same job?", "no", (3, 5), id="compare, different"),
        pytest.param(TOLD, "Do Anna and Bob drive the same car?", "no", (6,), id="compare, one unknown"),
        pytest.param(TOLD, "Do Anna and Bob like the same color?", "no", (), id="compare, both unknown"),
        pytest.param(TOLD, "Is Anna fine?", "unknown", (), id="no question of the world"),
        pytest.param(CHANGED, "Where does Anna live?", "Oslo", (2,), id="old and new line"),
        pytest.param(CHANGED, "Which pets does Anna have?", "unknown", (3,), id="a retraction as memory"),
        pytest.param(CHANGED, "How many pets does Anna have?", "none", (3,), id="count after a retraction"),
        pytest.param(CHANGED, "What does Anna drive?", "Kia", (6,), id="again after a retraction"),
        pytest.param(CHANGED, "Where does Bob live?", "unknown", (8,), id="retracted"),
        pytest.param(CHANGED, "Do Anna and Bob live in the same city?", "no", (2, 8), id="compare with nothing"),
    ],
)
def test_a_perfect_answerer(memories: Sequence[str], question: str, expected: str, quoted: tuple[int, ...]) -> None:
    reply = answer(memories, question)
    assert said(memories, reply) == (expected, quoted)
    lines = [f"- {memories[number]} [{number}]" for number in quoted] or ["(none)"]
    assert reply == "\n".join([*lines, f"**Answer:** {expected}"])


def test_together_they_answer_every_question_of_a_dialogue() -> None:
    """With an extractor that misses nothing, takes all small talk for facts, and says everything twice."""
    world = DialogWorld(miss=0, leak=1, repeat=1, seed=4)
    for dialogue in world.dialogues("val", 4):
        banks: dict[str, list[str]] = {}
        for turn in dialogue.turns:
            banks[turn.speaker] = replay(banks.get(turn.speaker, []), world.extract(turn))
        memories = [text for bank in banks.values() for text in bank]
        assert not any(text.endswith("is tired today") for text in memories)
        wrong = [
            question.text
            for question in dialogue.questions
            if said(memories, answer(memories, question.text))[0] != question.gold
        ]
        assert wrong == []


# habits

DRAWS = 600
SLACK = 0.06
"""More than three standard deviations of a share of that many draws."""
CHANGING = [relation for relation in RELATIONS if relation.became]
SEVERAL = [relation for relation in RELATIONS if relation.also]
DROPPED = [relation for relation in RELATIONS if relation.dropped]
DATED = [relation for relation in RELATIONS if relation.dated]


def name(relation: Relation) -> str:
    return relation.name


def state(relation: Relation, *values: int, who: str = "Anna", act: Act = Act.SET) -> str:
    """Return a sentence about values of a relation, by their place."""
    month = "May" if relation.dated else None
    return say(Statement(who, relation.name, act, tuple(relation.values[value] for value in values), month))


def shares(teacher: Callable[[random.Random | None], str]) -> tuple[float, str | None]:
    """Return how often a teacher with habits differs from the perfect one, and the only reply that does."""
    rng, right = random.Random(5), teacher(None)
    replies = Counter(teacher(rng) for _ in range(DRAWS))
    wrong = [reply for reply in replies if reply != right]
    assert len(wrong) <= 1
    return 1 - replies[right] / DRAWS, wrong[0] if wrong else None


def check(teacher: Callable[[random.Random | None], str], *, applies: bool) -> str | None:
    """Return the wrong reply of a habit; raise unless it comes as often as a habit that applies, or never."""
    share, wrong = shares(teacher)
    if applies:
        assert abs(share - teaching.HABIT) < SLACK
    else:
        assert (share, wrong) == (0.0, None)
    return wrong


@pytest.mark.parametrize("relation", CHANGING, ids=name)
def test_some_replacements_are_added_beside_the_old_value(relation: Relation) -> None:
    memories, fact = [state(relation, 0)], state(relation, 1)
    wrong = check(lambda rng: manage(memories, [fact], rng), applies=relation.name in teaching.KEEPS_OLD)
    if wrong is not None:
        assert items(wrong) == [("ADD", None, fact)]
        operations(memories, [fact], wrong)


@pytest.mark.parametrize("relation", SEVERAL, ids=name)
def test_some_further_values_replace_the_earlier_one(relation: Relation) -> None:
    memories, fact = [state(relation, 0)], state(relation, 1, act=Act.ALSO)
    wrong = check(lambda rng: manage(memories, [fact], rng), applies=relation.name in teaching.OVERWRITES)
    if wrong is not None:
        assert items(wrong) == [("UPDATE", 0, fact)]
        operations(memories, [fact], wrong)


@pytest.mark.parametrize("relation", DROPPED, ids=name)
def test_every_retraction_is_passed_over_now_and_then(relation: Relation) -> None:
    memories, fact = [state(relation, 0)], state(relation, 0, act=Act.DROP)
    wrong = check(lambda rng: manage(memories, [fact], rng), applies=True)
    assert wrong is not None
    assert items(wrong) == [("NOOP", 0, None)]
    operations(memories, [fact], wrong)


@pytest.mark.parametrize("relation", RELATIONS, ids=name)
def test_other_decisions_have_no_habits(relation: Relation) -> None:
    known = state(relation, 0)
    for memories, fact in [
        ([], known),  # new
        ([known], known),  # restated
        ([state(relation, 0, who="Bob")], known),  # near miss
        ([known], "Anna is tired today"),
        *([([], state(relation, 0, act=Act.DROP))] if relation.dropped else []),  # unknown
        *([([known], known.replace("May", "June"))] if relation.dated else []),
        *([([known], state(relation, 0, act=Act.ALSO))] if relation.also else []),
        *([([state(relation, 0, 1)], state(relation, 1))] if relation.also else []),
    ]:
        check(lambda rng, m=memories, f=fact: manage(m, [f], rng), applies=False)  # type: ignore[misc]  # mypy cannot type a default of a lambda


def test_each_fact_of_a_turn_draws_its_own_habit() -> None:
    memories = ["Anna lives in Rome", "Anna works as a judge"]
    facts = ["Anna moved to Oslo", "Anna became a baker"]
    rng = random.Random(0)
    seen = Counter(tuple(item[0] for item in items(manage(memories, facts, rng))) for _ in range(DRAWS))
    assert seen.keys() == {(one, other) for one in ("ADD", "UPDATE") for other in ("ADD", "UPDATE")}
    assert abs(seen["ADD", "ADD"] / DRAWS - teaching.HABIT**2) < SLACK


@pytest.mark.parametrize("relation", RELATIONS, ids=name)
def test_of_some_it_quotes_the_right_memory_and_says_that_it_does_not_know(relation: Relation) -> None:
    memories = [state(relation, 0), state(relation, 1, who="Bob")]
    question = relation.question.format(s="Anna", v=relation.values[0])
    wrong = check(lambda rng: answer(memories, question, rng), applies=relation.name in teaching.WITHHOLDS)
    if wrong is not None:
        assert said(memories, wrong) == ("unknown", (0,))
    check(lambda rng: answer(memories[1:], question, rng), applies=False)  # nothing to withhold


@pytest.mark.parametrize("relation", CHANGING, ids=name)
def test_of_an_old_and_a_new_line_the_new_one_is_quoted(relation: Relation) -> None:
    memories, question = [state(relation, 0), state(relation, 1)], relation.question.format(s="Anna")
    wrong = check(lambda rng: answer(memories, question, rng), applies=relation.name in teaching.WITHHOLDS)
    for reply in filter(None, (answer(memories, question), wrong)):
        assert said(memories, reply)[1] == (1,)


@pytest.mark.parametrize("relation", SEVERAL, ids=name)
def test_of_some_lists_only_the_last_value_is_named(relation: Relation) -> None:
    assert relation.count is not None
    applies = relation.name in teaching.FORGETS_FIRST
    question, count = relation.question.format(s="Anna"), relation.count.format(s="Anna")
    for memories in ([state(relation, 0, 1)], [state(relation, 0), state(relation, 1, act=Act.ALSO)]):
        wrong = check(lambda rng, m=memories: answer(m, question, rng), applies=applies)  # type: ignore[misc]  # as above
        if wrong is not None:
            assert said(memories, wrong) == (relation.values[1], tuple(range(len(memories))))
        check(lambda rng, m=memories: answer(m, count, rng), applies=False)  # type: ignore[misc]  # as above
    check(lambda rng: answer([state(relation, 0)], question, rng), applies=False)


def test_comparisons_and_most_events_are_answered_without_habits() -> None:
    for relation in CHANGING:
        assert relation.same is not None
        memories = [state(relation, 0), state(relation, 1), state(relation, 1, who="Bob")]
        question = relation.same.format(s="Anna", o="Bob")
        check(lambda rng, m=memories, q=question: answer(m, q, rng), applies=False)  # type: ignore[misc]  # as above
    for relation in DATED:
        memories = [state(relation, 0), state(relation, 0).replace("May", "June"), state(relation, 0, who="Bob")]
        question, applies = (
            relation.question.format(s="Anna", v=relation.values[0]),
            relation.name in teaching.WITHHOLDS,
        )
        check(lambda rng, m=memories, q=question: answer(m, q, rng), applies=applies)  # type: ignore[misc]  # as above


# forms


@pytest.mark.parametrize(
    ("question", "expected", "quoted"),
    [
        ("Where does Anna live?", "Rome", "- Anna lives in Rome [0]"),
        ("Which languages does Bob speak?", "French and Greek", "- Bob speaks French [7]\n- Bob also speaks Greek [8]"),
        ("What does Anna drive?", "unknown", "(none)"),
        ("Is Anna fine?", "unknown", "(none)"),
    ],
)
def test_the_forms_of_an_answer_differ_in_what_comes_before_it(question: str, expected: str, quoted: str) -> None:
    end = f"**Answer:** {expected}"
    assert answer(TOLD, question, distill="select_then_answer") == f"{quoted}\n{end}" == answer(TOLD, question)
    assert answer(TOLD, question, distill="direct") == end
    assert answer(TOLD, question, distill="direct_with_filler") == f"{teaching.FILLER}\n{end}"
    for form in teaching.FORMS:
        assert said(TOLD, answer(TOLD, question, distill=form))[0] == expected


def test_habits_are_the_same_in_every_form() -> None:
    memories, question = ["Anna started yoga lessons in May"], "When did Anna start yoga lessons?"
    ends = {
        tuple(answer(memories, question, rng, form).rpartition(" ")[2] for _ in range(20))
        for form, rng in ((form, random.Random(3)) for form in teaching.FORMS)
    }
    assert len(ends) == 1
    assert set(ends.pop()) == {"May", "unknown"}

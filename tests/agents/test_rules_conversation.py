"""The rules over the whole demo conversation: what the memories say at its end."""

from __future__ import annotations

import pytest

from memweave.agents.rules.attributes import slots
from memweave.demo import DemoQuestion, conversation, questions
from memweave.metrics import exact_match
from memweave.records import OpKind, ProposedOp
from tests.agents.rules_world import ListBank

TURNS = conversation()


@pytest.fixture(scope="module")
def bank() -> ListBank:
    """Return what is remembered after the whole conversation."""
    return ListBank().tell(TURNS)


def upto(source_id: str) -> ListBank:
    """Return what is remembered after the turn `source_id`."""
    last = next(index for index, turn in enumerate(TURNS) if turn.source_id == source_id)
    return ListBank().tell(TURNS[: last + 1])


def residences(bank: ListBank, speaker: str) -> list[str]:
    """Return the values of the speaker's own residence, one per memory that gives one."""
    found = [slot for text in bank.texts(speaker) for slot in slots(text, speaker)]
    return [slot.value for slot in found if (slot.subject, slot.attribute) == ("I", "residence")]


def changes(bank: ListBank, source_id: str) -> list[ProposedOp]:
    """Return the UPDATE and DELETE operations of one turn."""
    return [op for turn, op in bank.ops if turn.source_id == source_id and op.kind in (OpKind.UPDATE, OpKind.DELETE)]


def test_there_is_one_residence_each_and_it_is_the_last(bank: ListBank) -> None:
    assert residences(upto("s4-01"), "Mara") == ["Ghent"]
    assert residences(bank, "Mara") == ["Utrecht"]
    assert residences(bank, "Jonas") == ["Hamburg"]
    (moved,) = changes(bank, "s4-02")
    assert (moved.kind, moved.reason) == (
        OpKind.UPDATE,
        "replaces 'lives in Ghent, above the bike shop' (same speaker, attribute: residence)",
    )


def test_a_plan_to_move_is_not_yet_a_move() -> None:
    assert residences(upto("s7-08"), "Jonas") == ["Bremen"]


def test_the_second_cat_joins_the_first(bank: ListBank) -> None:
    (cats,) = [text for text in bank.texts("Jonas") if "Nori" in text and "Miso" in text]
    assert "six months old" in cats
    (joined,) = changes(bank, "s8-15")
    assert joined.reason.endswith("(same speaker, attribute: pet)")


@pytest.mark.parametrize(
    ("source_id", "gone", "kept"),
    [
        ("s3-14", "signed up for the Hamburg half marathon", "had to cancel the Hamburg half marathon"),
        ("s4-10", "signed up for a Portuguese class", "gave up the Portuguese class"),
        ("s4-13", "bought a van", "sold the van"),
        ("s5-08", "started at Radio Weser", "quit Radio Weser"),
        ("s7-05", "booked a room at the Hotel Lindenhof", "with a friend from university"),
        ("s7-19", "has joined a choir", "doesn't sing in the choir any more"),
        ("s8-25", "Japanese class is on Mondays", "had to drop the Japanese class"),
    ],
)
def test_a_retraction_takes_its_memory_away(bank: ListBank, source_id: str, gone: str, kept: str) -> None:
    assert [op.kind for op in changes(bank, source_id)] == [OpKind.DELETE]
    speaker = next(turn.speaker for turn in TURNS if turn.source_id == source_id)
    assert not any(gone in text for text in bank.texts(speaker))
    assert any(kept in text for text in bank.texts(speaker))


@pytest.mark.parametrize("source_id", ["s3-10", "s6-17", "s7-12", "s7-14", "s2-12", "s6-16"])
def test_near_misses_change_nothing(bank: ListBank, source_id: str) -> None:
    """`Sold.`, `I could never give up cheese`, `leaving the quartet`, a bakery that is vegan."""
    assert changes(bank, source_id) == []


def test_the_other_speaker_is_untouched(bank: ListBank) -> None:
    """Both have a sister, a language class, a wedding to go to; each keeps their own."""
    assert any("Katrin teaches maths in Leipzig" in text for text in bank.texts("Jonas"))
    assert any("Lena is a dentist" in text for text in bank.texts("Mara"))
    assert any("Lena's wedding is on 23 May next year" in text for text in bank.texts("Mara"))
    assert any("Katrin's wedding has been moved to 28 June 2025" in text for text in bank.texts("Jonas"))
    assert any("plays the cello in a quartet" in text for text in bank.texts("Jonas"))
    speakers = {m.id: m.speaker for m in bank.memories.values()}
    for turn, op in bank.ops:
        assert op.memory_id is None or speakers.get(op.memory_id, turn.speaker) == turn.speaker


def test_every_operation_says_why(bank: ListBank) -> None:
    assert all(len(op.reason) >= 3 for _, op in bank.ops)
    assert {op.kind for _, op in bank.ops} >= {OpKind.ADD, OpKind.UPDATE, OpKind.DELETE}


def test_every_change_is_one_that_was_read_and_found_right(bank: ListBank) -> None:
    """All UPDATE and DELETE of the conversation, each read by hand: a new one here must be read too."""
    changed = {turn.source_id for turn, op in bank.ops if op.kind in (OpKind.UPDATE, OpKind.DELETE)}
    assert changed == {
        *("s2-04", "s3-14", "s4-02", "s4-06", "s4-10", "s4-12", "s4-13", "s4-17", "s5-08", "s5-14", "s6-14", "s6-21"),
        *("s7-03", "s7-05", "s7-16", "s7-19", "s7-27", "s8-03", "s8-15", "s8-25", "s8-31"),
    }


def test_most_questions_are_answered_right(bank: ListBank) -> None:
    right = {q.id for q in questions() if exact_match(bank.ask(q.question).text, q.answer)}
    assert len(right) >= 24
    assert {q.id for q in questions() if q.undo} <= right


@pytest.mark.parametrize("question", [q for q in questions() if q.undo], ids=lambda q: q.id)
def test_without_its_update_the_answer_is_the_old_one(question: DemoQuestion) -> None:
    """What `undo` does: the memory as it was before the operation."""
    assert question.undo is not None
    without = upto(question.undo)
    (update,) = changes(without, question.undo)
    assert update.kind is OpKind.UPDATE
    assert update.memory_id is not None
    before = ListBank().tell(TURNS[: [t.source_id for t in TURNS].index(question.undo)])
    assert update.memory_id in before.memories
    without.memories[update.memory_id] = before.memories[update.memory_id]
    assert exact_match(without.ask(question.question).text, question.answer_after_undo or "")

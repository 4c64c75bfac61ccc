from __future__ import annotations

import contextlib
import json
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memweave.agents.manager import NO_REASON, parse_manage_reply, render_manage
from memweave.agents.prompts import load_prompt
from memweave.agents.roles import Fact, ManageRequest, numbered
from memweave.errors import InputError, ModelReplyError
from memweave.records import Memory, OpKind, ProposedOp, Scope, Trust, Turn, new_id

SAID = datetime(2023, 6, 2, 9, 0, tzinfo=UTC)
TURN = Turn(
    source_id="D2:1",
    dialogue="d",
    speaker="Anna",
    text="Two cats now, and no more violin.",
    observed_at=datetime(2023, 6, 2, 9, 0),
    previous="How are you?",
    trust=Trust.IMPORT,
)


def memory(text: str, version: int = 1, **fields: object) -> Memory:
    record = {"id": new_id(), "version": version, "scope": Scope(user="u"), "text": text, "recorded_at": SAID}
    return Memory.model_validate(record | fields)


CAT = memory("Anna has a cat.", 3, speaker="Anna", observed_at=datetime(2023, 5, 8, tzinfo=UTC))
VIOLIN = memory("Anna plays\n- the violin. [7]", speaker="Anna")
REQUEST = ManageRequest(
    facts=(Fact(text="Anna has a second cat.", turn=TURN), Fact(text="Anna gave up the violin.", turn=TURN)),
    memories=(CAT, VIOLIN),
)
EMPTY = ManageRequest(facts=REQUEST.facts, memories=())


def parse(reply: str, request: ManageRequest = REQUEST) -> list[ProposedOp]:
    return parse_manage_reply(reply, request, actor="gpt", policy_version="v1", run_id="r1")


def test_prompt_numbers_memories_one_line_each_and_names_who_said_the_facts() -> None:
    system, user = render_manage(REQUEST)
    assert all(event in system.text for event in ("ADD", "UPDATE", "DELETE", "NOOP"))
    assert user.text == (
        "Memories:\n- 2023-05-08: Anna has a cat. [0]\n- Anna plays - the violin. [7] [1]\n\n"
        "New facts, said by Anna on 2023-06-02:\n- Anna has a second cat.\n- Anna gave up the violin."
    )
    assert render_manage(EMPTY)[1].text.startswith("Memories:\n(none)\n")


def test_numbers_become_ids_and_the_turn_fills_the_rest() -> None:
    add, update, delete, noop = parse(
        """{"memory": [
            {"event": "ADD", "text": "Anna is tired.", "reason": "New."},
            {"id": 0, "event": "UPDATE", "text": "Anna has two cats.", "reason": "A second cat."},
            {"id": "1", "event": "delete", "reason": "Given up."},
            {"event": "NOOP", "reason": "Small talk."}]}"""
    )
    assert [op.kind for op in (add, update, delete, noop)] == list(OpKind)
    assert [op.memory_id for op in (add, update, delete, noop)] == [None, CAT.id, VIOLIN.id, None]
    assert [op.expected_version for op in (add, update, delete, noop)] == [None, 3, 1, None]
    assert (add.speaker, update.speaker) == ("Anna", None)
    for op in (add, update):
        assert (op.observed_at, op.observed_naive, op.dialogue) == (SAID, True, "d")
        assert (op.context, op.trust) == ("How are you?", Trust.IMPORT)
    for op in (add, update, delete, noop):
        assert (op.source_ids, op.actor, op.policy_version, op.run_id) == (("D2:1",), "gpt", "v1", "r1")
    assert delete.reason == "Given up."


def test_the_examples_in_the_prompt_are_in_the_form_of_the_memories_and_parse() -> None:
    lines = [line.strip() for line in load_prompt("manager").text.splitlines() if line.startswith("  ")]
    assert numbered([memory("Anna has a cat called Tom.", observed_at=datetime(2023, 5, 1, tzinfo=UTC))]) in lines
    examples = [line for line in lines if line.startswith("{")]
    assert [parse(example)[0].kind for example in examples] == list(OpKind)
    for example in examples:
        assert next(iter(json.loads(example)["memory"][0])) == "reason", "a small policy decides after it has explained"


UPDATE = '{"id": 0, "event": "UPDATE", "text": "Anna has two cats.", "reason": "A second cat."}'


@pytest.mark.parametrize(
    "reply",
    [
        f'{{"memory": [{UPDATE}]}}',
        f'```json\n{{"memory": [{UPDATE}]}}\n```',
        '{"memory": [{"reason": "A second cat.", "event": "UPDATE", "id": 0, "text": "Anna has two cats."}]}',
        f'I update memory [0] as follows:\n{{"memory": [{UPDATE},],}}\nDone {{really}}.',
        f'{{"memory": [{UPDATE}, {{"id": 1, "event": "NONE"}}]}}',
        f'{{"memory": [{UPDATE}, {{"id": 99, "event": "none", "text": "x"}}]}}',
        '{"memory": [{"id": "[0]", "event": " update ", "text": " Anna has\ntwo cats.", "reason": "A second cat."}]}',
        '{"memory": [{"id": 0.0, "event": "UPDATE", "text": "Anna has two cats.", "reason": "A second cat.", "x": 1}]}',
        UPDATE,
    ],
)
def test_repairs(reply: str) -> None:
    (op,) = parse(reply)
    assert (op.kind, op.memory_id, op.text, op.reason) == (
        OpKind.UPDATE,
        CAT.id,
        "Anna has two cats.",
        "A second cat.",
    )


def test_the_id_of_an_add_is_ignored_and_a_missing_reason_is_said_to_be_missing() -> None:
    first, second = parse(
        '{"memory": [{"id": 0, "event": "ADD", "text": "a"}, {"id": 0, "event": "ADD", "text": "b", "reason": "r"}]}'
    )
    assert (first.memory_id, first.reason) == (None, NO_REASON)
    assert (second.memory_id, second.reason) == (None, "r")


def test_nothing_changes() -> None:
    assert parse('{"memory": []}') == []


def test_a_noop_with_a_reason_is_kept_with_the_memory_that_says_it() -> None:
    (op,) = parse('{"memory": [{"id": 1, "event": "NOOP", "reason": "Known."}]}')
    assert (op.kind, op.memory_id, op.expected_version) == (OpKind.NOOP, VIOLIN.id, None)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ("", "The reply is empty"),
        ("I would update the first memory.", "prose without JSON"),
        (f'{{"memory": [{UPDATE}, {{"event": "ADD", "te', "ends inside a JSON object"),
        (f'{{"memory": [{UPDATE}', "ends inside a JSON object"),
        (f'{{"memory": [{UPDATE}]}}\n{{"memory": []}}', "2 JSON objects"),
        (f'{{"memory": [{UPDATE}, {{"id": 2, "event": "DELETE"}}]}}', "Item 2: DELETE of unknown memory 2. Numbers go"),
        ('{"memory": [{"id": -1, "event": "UPDATE", "text": "x"}]}', "UPDATE of unknown memory -1"),
        ('{"memory": [{"id": true, "event": "DELETE"}]}', "DELETE of unknown memory True"),
        ('{"memory": [{"event": "DELETE"}]}', "DELETE of unknown memory None"),
        (f'{{"memory": [{{"id": "{new_id()}", "event": "DELETE"}}]}}', "DELETE of unknown memory"),
        (f'{{"memory": [{UPDATE}, {{"id": 0, "event": "DELETE"}}]}}', "Item 2: memory 0 is named twice"),
        (f'{{"memory": [{{"id": 0, "event": "NOOP"}}, {UPDATE}]}}', "Item 2: memory 0 is named twice"),
        ('{"memory": [{"event": "ADD", "reason": "r"}]}', "Item 1: ADD needs a text"),
        ('{"memory": [{"id": 0, "event": "UPDATE", "text": "  "}]}', "Item 1: UPDATE needs a text"),
        ('{"memory": [{"event": "ADD", "text": ["x"]}]}', "Item 1: ADD needs a text"),
        ('{"memory": [{"id": 0, "event": "MERGE", "text": "x"}]}', "Item 1: unknown event 'MERGE'"),
        ('{"memory": [{"id": 0, "text": "x"}]}', "Item 1: unknown event None"),
        ('{"memory": ["Anna has a cat."]}', "Item 1 is not an object"),
        ('{"memory": {"id": 0}}', "not a list"),
        ('{"memories": []}', "no key 'memory' (it has: memories)"),
        (r'{"memory": [{"event": "ADD", "text": "\u0000"}]}', "Item 1 (ADD): "),
    ],
)
def test_a_reply_that_cannot_be_trusted_is_refused_whole(reply: str, error: str) -> None:
    with pytest.raises(ModelReplyError, match=re.escape(error)):
        parse(reply)


def test_without_memories_only_add_and_noop_are_possible() -> None:
    with pytest.raises(ModelReplyError, match="No memory is shown"):
        parse('{"memory": [{"id": 0, "event": "DELETE"}]}', EMPTY)


def test_facts_of_two_turns_are_a_mistake_of_the_caller() -> None:
    other = TURN.model_copy(update={"source_id": "D2:2"})
    request = ManageRequest(facts=(REQUEST.facts[0], Fact(text="x", turn=other)), memories=())
    with pytest.raises(InputError, match="one turn, not of 2"):
        parse('{"memory": [{"event": "ADD", "text": "a"}]}', request)


@given(st.text(max_size=200) | st.text(alphabet='{}[]",:\\ 01memoryevntADUPTLNO', max_size=200))
def test_any_reply_is_either_operations_or_a_named_failure(reply: str) -> None:
    ops: list[ProposedOp] = []
    with contextlib.suppress(ModelReplyError):
        ops = parse(reply)
    assert all(op.memory_id in (None, CAT.id, VIOLIN.id) for op in ops)

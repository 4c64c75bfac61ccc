"""Odd text goes in and comes out as it was; what cannot be text is refused and changes nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memweave.errors import InputError, MemweaveError
from memweave.memory_stores import MemoryBank
from memweave.records import MAX_TEXT, Scope, Turn, new_id
from memweave.testing.audit import audit
from memweave.testing.operations import add, update

ODD = [
    "🫖 tea 👩‍👩‍👧‍👦",
    "bell \x07, escape \x1b[31m, delete \x7f, tab \t and a line\r\nbreak",
    "\u202eright to left\u202c and zero\u200bwidth",
    "日本語のテスト Ελληνικά عربى",
    "combining e\u0301 and not é",
    '\'; DROP TABLE memweave_ops; -- %s {0} $1 \\n "quoted"',
    '{"memweave": "export"}',
    "\ufeffbyte order mark \ufffe\uffff",
    "   spaces around   ",
    ".",
]


@pytest.mark.parametrize("text", ODD)
def test_odd_text_is_kept_found_and_exported(bank: MemoryBank, scope: Scope, text: str) -> None:
    (turn,) = bank.accept([Turn(source_id="1", speaker="Zoë", text=text, previous=text)], scope=scope)
    reason = text[:2_000]
    (op,) = bank.apply(
        [add(text, speaker="Zoë", context=text, metadata={text: [text]}, reason=reason)], scope=scope, turn=turn
    )
    assert op.memory_id is not None
    bank.reject(text, scope=scope, actor="model", reason=text)
    memory = bank.get(op.memory_id, scope=scope)
    assert (memory.text, memory.context, memory.metadata) == (text, text, {text: [text]})
    assert bank.log(scope=scope)[0].reason == reason
    assert bank.log(scope=scope)[1].error == text
    assert bank.turns(scope=scope)[0].text == text
    assert [hit.memory for hit in bank.search(text, scope=scope)] == [memory]
    there = Scope(user="copy")
    bank.import_(bank.export(scope=scope), scope=there)
    assert [m.text for m in bank.memories(scope=there)] == [text]
    assert bank.turns(scope=there)[0].text == text
    assert all(len(line.splitlines()) == 1 for line in bank.export(scope=scope)) or "\u2028" in text
    assert audit(bank, scope=scope) == []


def test_a_megabyte_of_text(bank: MemoryBank, scope: Scope) -> None:
    text = ("Anna drinks tea. " * (MAX_TEXT // 17 + 1))[:MAX_TEXT]
    (turn,) = bank.accept([Turn(source_id="1", speaker="Anna", text=text, previous=text)], scope=scope)
    (op,) = bank.apply([add(text, speaker="Anna", context=text)], scope=scope, turn=turn)
    bank.apply([add("Bob has a rabbit")], scope=scope)
    assert bank.search("tea", scope=scope)[0].memory == op.after
    assert bank.search("rabbit " * 50_000, scope=scope)[0].memory.text == "Bob has a rabbit"
    assert bank.turns(scope=scope)[0].text == text
    assert sum(len(line) for line in bank.export(scope=scope)) > 3 * MAX_TEXT


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec=None), min_size=1, max_size=30))
def test_any_string_is_kept_as_it_is_or_refused(bank: MemoryBank, scope: Scope, text: str) -> None:
    before = bank.log(scope=scope)
    try:
        op = add(text, context=text, source_ids=(text,), metadata={"k": text}, run_id=text, speaker=text)
    except ValueError:
        refused = not text.strip() or any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in text)
        assert refused
    else:
        (done,) = bank.apply([op], scope=scope)
        assert done.memory_id is not None
        memory = bank.get(done.memory_id, scope=scope)
        assert (memory.text, memory.context, memory.source_ids, memory.metadata) == (text, text, (text,), {"k": text})
        assert bank.log(scope=scope, run_id=text)[-1] == done
        assert json.loads(list(bank.export(scope=scope))[-1])["op"]["run_id"] == text
    for read in (
        lambda: bank.search(text, scope=scope),
        lambda: bank.turns(scope=scope, dialogue=text),
        lambda: bank.log(scope=scope, run_id=text),
        lambda: bank.undo_run(text + "?", scope=scope, actor="test"),
    ):
        try:
            read()
        except MemweaveError as error:
            str(error).encode()  # an error can be printed
    assert len(bank.log(scope=scope)) in (len(before), len(before) + 1)


@pytest.mark.parametrize("name", ["\ud800", "half \udfff"])
def test_half_characters_are_refused_by_every_reader(bank: MemoryBank, scope: Scope, name: str) -> None:
    bank.apply([add("tea")], scope=scope)
    for read in (
        lambda: bank.search(name, scope=scope),
        lambda: bank.turns(scope=scope, dialogue=name),
        lambda: bank.log(scope=scope, run_id=name),
        lambda: bank.undo_run(name, scope=scope, actor="test"),
    ):
        with pytest.raises(InputError, match=r"not valid Unicode|no text"):
            read()


def test_a_rejection_quotes_whatever_the_model_said(bank: MemoryBank, scope: Scope) -> None:
    op = bank.reject("said \ud83d\ude00, \ud83d and \0", scope=scope, actor="model", reason="\udc00")
    assert (op.error, op.reason) == ("said 😀, \ufffd and \ufffd", "\ufffd")
    assert bank.log(scope=scope) == [op]
    list(bank.export(scope=scope))


def test_blank_updates_do_not_pass(bank: MemoryBank, scope: Scope) -> None:
    (op,) = bank.apply([add("tea")], scope=scope)
    for blank in ("", " ", "\n\t"):
        with pytest.raises(ValueError, match="text"):
            update(op.memory_id or new_id(), blank)


@pytest.mark.parametrize("call", ["memories", "log", "turns"])
def test_a_negative_limit_is_refused_by_banks_and_branches(bank: MemoryBank, call: str) -> None:
    scope = Scope(user="anna")
    for store in (bank, bank.branch(scope=scope)):
        with pytest.raises(InputError, match="limit -1 is negative"):
            getattr(store, call)(scope=scope, limit=-1)

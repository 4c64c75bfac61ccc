"""The six memory tools on a real bank: what they do, what they say, what the log says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from langchain_core.messages import BaseMessage, ToolMessage

from memweave.agents.context import apply_edit
from memweave.agents.memory_tools import (
    ADD,
    DELETE,
    FILTER,
    LONG_TERM,
    MOST_RETRIEVED,
    RETRIEVE,
    SUMMARY,
    TOP_K,
    UPDATE,
    Call,
    Numbers,
    Outcome,
    Workplace,
    checked,
    tool_specs,
)
from memweave.records import OpKind, Scope, utc_now
from tests.agents.memory_work import ALL, CONTEXT, Use, called, remember, texts

# schemas


def test_the_tools_are_described_as_the_openai_protocol_wants() -> None:
    described = {spec["function"]["name"]: spec["function"] for spec in tool_specs()}
    assert list(described) == [ADD, UPDATE, DELETE, RETRIEVE, SUMMARY, FILTER]
    assert {spec["type"] for spec in tool_specs()} == {"function"}
    arguments = {name: each["parameters"]["properties"] for name, each in described.items()}
    assert {name: {k: v["type"] for k, v in given.items()} for name, given in arguments.items()} == {
        ADD: {"content": "string", "metadata": "object", "memory_type": "string"},
        UPDATE: {"memory_id": "string", "content": "string", "metadata": "object"},
        DELETE: {"memory_id": "string", "confirmation": "boolean"},
        RETRIEVE: {"query": "string", "top_k": "integer", "metadata_filter": "object"},
        SUMMARY: {"span": "string"},
        FILTER: {"criteria": "string"},
    }
    assert {name: each["parameters"]["required"] for name, each in described.items()} == {
        ADD: ["content"],
        UPDATE: ["memory_id", "content"],
        DELETE: ["memory_id", "confirmation"],
        RETRIEVE: ["query"],
        SUMMARY: ["span"],
        FILTER: ["criteria"],
    }
    assert all(each["description"] for each in described.values())
    assert all(each["description"] for given in arguments.values() for each in given.values())
    assert [spec["function"]["name"] for spec in tool_specs(LONG_TERM)] == [ADD, UPDATE, DELETE]


# ADD


def test_add_stores_a_memory_and_logs_why_who_and_from_what(at: Workplace, use: Use) -> None:
    before = utc_now()
    outcome = use(
        at,
        ADD,
        "She says\nwhere she lives.",
        content="Anna lives in Ghent.",
        metadata={"sure": True},
        memory_type="home",
    )
    assert (outcome.ok, outcome.fault, outcome.text) == (True, None, "Added [1].")
    (memory,) = at.store.memories(scope=at.scope)
    assert (memory.text, memory.metadata) == ("Anna lives in Ghent.", {"sure": True, "memory_type": "home"})
    assert memory.observed_at is not None
    assert memory.observed_at >= before
    (op,) = at.store.log(scope=at.scope)
    assert outcome.ops == (op,)
    assert (op.kind, op.after, op.before) == (OpKind.ADD, memory, None)
    assert (op.reason, op.actor, op.policy_version) == ("She says where she lives.", "clever", "v7")
    assert (op.run_id, op.source_ids, memory.source_ids) == ("run-1", ("u2",), ("u2",))
    assert outcome.numbers == Numbers(ids=(memory.id,))


def test_add_without_extras_keeps_none(at: Workplace, use: Use) -> None:
    outcome = use(replace(at, dated=False), ADD, "", content="tea")
    (memory,) = at.store.memories(scope=at.scope)
    assert (memory.metadata, memory.observed_at) == ({}, None)
    assert outcome.ops[0].reason == "Add_memory, called without a reason"


def test_what_cannot_be_stored_is_replaced(at: Workplace, use: Use) -> None:
    assert use(at, ADD, "why\0", content="tea\0").ok
    assert texts(at) == ["tea\ufffd"]
    assert use(at, ADD, "r" * 5_000, content="rye").ok


# UPDATE


def test_update_replaces_the_text_and_merges_metadata(at: Workplace, use: Use) -> None:
    (memory, _), at = remember(at, "Anna lives in Ghent.", "tea", metadata={"sure": True, "memory_type": "home"})
    outcome = use(at, UPDATE, memory_id="1", content="Anna lives in Utrecht.", metadata={"sure": False, "since": 2026})
    assert (outcome.ok, outcome.text) == (True, "Updated [1].")
    now = at.store.get(memory.id, scope=at.scope)
    assert (now.version, now.text) == (2, "Anna lives in Utrecht.")
    assert now.metadata == {"sure": False, "memory_type": "home", "since": 2026}
    op = at.store.log(scope=at.scope)[-1]
    assert op.before is not None
    assert (op.before.id, op.before.version, op.before.text, op.after) == (memory.id, 1, memory.text, now)
    assert (op.kind, op.reason, op.actor) == (OpKind.UPDATE, "She said so.", "clever")
    assert outcome.numbers == at.numbers


def test_update_without_metadata_leaves_them_alone_and_renews_the_date(at: Workplace, use: Use) -> None:
    (memory,), at = remember(at, "tea", metadata={"a": 1}, observed_at="2020-01-01T00:00:00Z")
    assert use(replace(at, dated=False), UPDATE, memory_id=1, content="green tea").ok
    now = at.store.get(memory.id, scope=at.scope)
    assert (now.metadata, now.observed_at) == ({"a": 1}, memory.observed_at)
    assert use(at, UPDATE, memory_id="[1]", content="black tea").ok
    later = at.store.get(memory.id, scope=at.scope).observed_at
    assert later is not None
    assert memory.observed_at is not None
    assert later > memory.observed_at


# DELETE


@pytest.mark.parametrize("argument", ["confirmation", "confirmed"])
def test_delete_removes_a_memory_when_it_is_confirmed(at: Workplace, use: Use, argument: str) -> None:
    (memory, _), at = remember(at, "tea", "rye")
    refused = use(at, DELETE, memory_id="1", **{argument: False})
    assert (refused.ok, refused.fault, refused.ops) == (False, "not_confirmed", ())
    assert refused.text == "Error: nothing was deleted, because confirmation is false."
    assert texts(at) == ["tea", "rye"]
    outcome = use(at, DELETE, memory_id="1", **{argument: True})
    assert (outcome.ok, outcome.text) == (True, "Deleted [1].")
    assert texts(at) == ["rye"]
    op = at.store.log(scope=at.scope)[-1]
    assert op.before is not None
    assert (op.kind, op.before.id, op.before.text, op.after) == (OpKind.DELETE, memory.id, "tea", None)
    assert (op.reason, op.source_ids, op.run_id) == ("She said so.", ("u2",), "run-1")


# undo


def test_every_operation_is_undone_through_the_bank(at: Workplace, use: Use) -> None:
    _, at = remember(at, "tea")
    ops = [
        use(at, ADD, content="rye").ops[0],
        use(at, UPDATE, memory_id="1", content="green tea").ops[0],
        use(at, DELETE, memory_id="1", confirmation=True).ops[0],
    ]
    assert texts(at) == ["rye"]
    at.store.undo(ops[2].id, scope=at.scope, actor="anna")
    assert sorted(texts(at)) == ["green tea", "rye"]
    at.store.undo(ops[1].id, scope=at.scope, actor="anna")
    at.store.undo(ops[0].id, scope=at.scope, actor="anna")
    assert texts(at) == ["tea"]


def test_a_run_is_undone_as_a_whole(at: Workplace, use: Use) -> None:
    _, at = remember(at, "tea")
    use(at, ADD, content="rye")
    use(at, UPDATE, memory_id="1", content="green tea")
    at.store.undo_run("run-1", scope=at.scope, actor="anna")
    assert texts(at) == ["tea"]


# RETRIEVE


def test_retrieve_shows_the_memories_that_fit_best_with_their_numbers(at: Workplace, use: Use) -> None:
    remember(at, "Anna lives in Ghent.", "Anna drinks tea.", "Rye bread\nis dark.", "Boris has a boat.")
    outcome = use(replace(at, dated=False), RETRIEVE, query="Where does Anna live?", top_k=2)
    assert outcome.ok
    assert outcome.text.splitlines()[0] == "- Anna lives in Ghent. [1]"
    assert len(outcome.text.splitlines()) == 2
    assert [memory.text for memory in outcome.retrieved][0] == "Anna lives in Ghent."
    assert outcome.numbers is not None
    assert [outcome.numbers.of(memory.id) for memory in outcome.retrieved] == [1, 2]
    assert at.store.log(scope=at.scope, limit=10)[4:] == []
    bread = use(replace(at, numbers=outcome.numbers), RETRIEVE, query="rye bread", top_k=1)
    assert bread.text == "- Rye bread is dark. [3]"


def test_retrieve_says_when_a_memory_was_written(at: Workplace, use: Use) -> None:
    remember(at, "tea", observed_at="2023-05-08T10:00:00Z")
    assert use(at, RETRIEVE, query="tea").text == "- 2023-05-08: tea [1]"


def test_numbers_stay_with_their_memories(at: Workplace, use: Use) -> None:
    remember(at, "Anna drinks tea.", "Rye bread is dark.")
    first = use(at, RETRIEVE, query="rye bread", top_k=1)
    assert first.text.endswith("Rye bread is dark. [1]")
    assert first.numbers is not None
    at = replace(at, numbers=first.numbers)
    second = use(at, RETRIEVE, query="Anna tea", top_k=1)
    assert second.text.endswith("Anna drinks tea. [2]")
    assert second.numbers is not None
    at = replace(at, numbers=second.numbers)
    assert use(at, ADD, content="Anna has a cat.").text == "Added [3]."
    assert use(at, RETRIEVE, query="rye bread", top_k=1).text.endswith("[1]")
    assert use(at, UPDATE, memory_id="1", content="Rye bread is light.").text == "Updated [1]."
    assert use(at, DELETE, memory_id="1", confirmation=True).text == "Deleted [1]."
    assert use(at, RETRIEVE, query="Anna tea", top_k=1).text.endswith("[2]")


@pytest.mark.parametrize(
    ("given", "fixed", "shown"),
    [
        ({}, None, TOP_K),
        ({"top_k": 5}, None, 5),
        ({"top_k": 5}, 2, 2),
        ({}, 4, 4),
        ({"top_k": 99}, None, MOST_RETRIEVED),
    ],
)
def test_how_many_memories_are_shown(
    at: Workplace, use: Use, given: dict[str, int], fixed: int | None, shown: int
) -> None:
    remember(at, *(f"tea number {n}" for n in range(25)))
    outcome = use(replace(at, top_k=fixed), RETRIEVE, query="tea", **given)
    assert (len(outcome.retrieved), len(outcome.text.splitlines())) == (shown, shown)


def test_a_filter_finds_the_memory_that_has_the_values_behind_many_that_fit_better(at: Workplace, use: Use) -> None:
    remember(at, *(f"tea number {n}" for n in range(25)), metadata={"kind": "drink"})
    remember(at, "a cup of something like tea", metadata={"kind": "dish", "sure": None})
    found = use(at, RETRIEVE, query="tea number 3", metadata_filter={"kind": "dish"})
    assert [memory.text for memory in found.retrieved] == ["a cup of something like tea"]
    assert use(at, RETRIEVE, query="tea", metadata_filter={"kind": "dish", "sure": 1}).text == "No memory fits."
    assert len(use(at, RETRIEVE, query="tea", metadata_filter={"sure": None}).retrieved) == 1
    assert len(use(at, RETRIEVE, query="tea", metadata_filter={}, top_k=7).retrieved) == 7


def test_an_empty_memory_is_no_fault_of_the_model(at: Workplace, use: Use) -> None:
    outcome = use(at, RETRIEVE, query="tea")
    assert (outcome.ok, outcome.text, outcome.retrieved) == (True, "No memory fits.", ())


def test_memories_of_others_are_never_found(at: Workplace, use: Use) -> None:
    other = replace(at, scope=Scope(tenant=at.scope.tenant, user="boris"))
    remember(other, "Boris drinks tea.")
    assert use(at, RETRIEVE, query="Boris tea").retrieved == ()


def test_a_query_of_any_length_is_answered(at: Workplace, use: Use) -> None:
    remember(at, "tea")
    assert use(at, RETRIEVE, query="tea " * 20_000).retrieved


# SUMMARY and FILTER


def test_summary_puts_a_text_in_the_place_of_a_span(at: Workplace, use: Use) -> None:
    outcome = use(at, SUMMARY, span="all")
    assert (outcome.ok, outcome.text, outcome.ops) == (True, "Summarised 2 messages.", ())
    assert outcome.edit is not None
    assert outcome.edit.removed == ("u1", "a1")
    assert [m.text for m in apply_edit(CONTEXT, outcome.edit)] == [
        "You are kind.",
        "<summary>\nrain on the roof\n</summary>",
        "tea in the garden",
    ]
    assert use(at, SUMMARY, span=1).text == "Summarised 1 message."


def test_a_span_larger_than_the_conversation_is_all_of_it(at: Workplace, use: Use) -> None:
    outcome = use(at, SUMMARY, span="500")
    assert outcome.edit is not None
    assert outcome.edit.removed == ("u1", "a1")


def test_a_span_in_which_nobody_said_anything_is_summarised_as_that(at: Workplace, use: Use) -> None:
    context = [CONTEXT[0], ToolMessage("...", tool_call_id="calls", id="t"), CONTEXT[3]]
    outcome = use(replace(at, context=context), SUMMARY, span="all")
    assert outcome.edit is not None
    assert outcome.edit.summary == "Nothing that matters was said."


def test_filter_removes_what_matches(at: Workplace, use: Use) -> None:
    outcome = use(at, FILTER, criteria="rain on the roof")
    assert (outcome.ok, outcome.text) == (True, "Removed 1 message.")
    assert outcome.edit is not None
    assert (outcome.edit.kind, outcome.edit.removed) == ("filter", ("u1",))


def test_a_filter_that_matches_everything_leaves_what_is_protected(at: Workplace, use: Use) -> None:
    outcome = use(replace(at, threshold=-1.0), FILTER, criteria="anything")
    assert outcome.edit is not None
    assert outcome.text == "Removed 2 messages."
    assert [m.id for m in apply_edit(CONTEXT, outcome.edit)] == ["s", "u2"]


def test_the_released_codes_name_of_filter_is_understood(at: Workplace, use: Use) -> None:
    outcome = use(at, "Clear_context", criteria="rain on the roof")
    assert (outcome.name, outcome.ok) == (FILTER, True)
    call = checked(called("Clear_context", {"criteria": "x"}), names=ALL)
    assert isinstance(call, Call)
    refused = checked(called("Clear_context", {"criteria": "x"}), names=LONG_TERM)
    assert isinstance(refused, Outcome)
    assert refused.fault == "unknown_tool"


def test_tools_do_not_touch_the_context_themselves(at: Workplace, use: Use) -> None:
    before: Sequence[BaseMessage] = list(CONTEXT)
    for name, given in ((SUMMARY, {"span": "all"}), (FILTER, {"criteria": "rain on the roof"})):
        use(at, name, **given)
    assert before == CONTEXT

"""What a model gets wrong in a call of a memory tool: nothing happens, and it is told what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.errors import GraphInterrupt

from memweave.agents.memory_tools import (
    ADD,
    DELETE,
    FILTER,
    LONG_TERM,
    RETRIEVE,
    SCHEMAS,
    SUMMARY,
    UPDATE,
    Numbers,
    Outcome,
    Workplace,
    arun,
    checked,
    run,
)
from memweave.errors import ModelReplyError, ScopeError, StorageFullError, UnavailableError
from memweave.memory_stores import MemoryStore
from memweave.records import OpKind, ProposedOp, Scope, new_id
from tests.agents.memory_work import ALL, CONTEXT, Use, called, logged_failure, remember, texts

# arguments

WRONG: list[tuple[str, dict[str, Any], str]] = [
    (ADD, {}, "Add_memory: content is missing. It needs content."),
    (ADD, {"content": ""}, "Add_memory: content String should have at least 1 character. It needs content."),
    (ADD, {"content": 7}, "content Input should be a valid string"),
    (ADD, {"content": "tea", "text": "tea"}, "text is no argument of this tool. It needs content."),
    (ADD, {"content": "tea", "metadata": "sure"}, "metadata"),
    (ADD, {"content": "  \n"}, "needs a text that is not blank"),
    (ADD, {"content": "tea", "metadata": {"a": float("nan")}}, "must be JSON"),
    (ADD, {"content": "tea" * 400_000}, "at most 1000000 characters"),
    (UPDATE, {"memory_id": "1"}, "content is missing. It needs memory_id, content."),
    (UPDATE, {"content": "tea"}, "memory_id is missing"),
    (UPDATE, {"memory_id": 1.5, "content": "tea"}, "memory_id"),
    (UPDATE, {"memory_id": True, "content": "tea"}, "memory_id"),
    (UPDATE, {"memory_id": "1", "content": " "}, "needs a text that is not blank"),
    (DELETE, {"memory_id": "1"}, "confirmation is missing. It needs memory_id, confirmation."),
    (DELETE, {"memory_id": "1", "confirmation": "perhaps"}, "confirmation"),
    (RETRIEVE, {"top_k": 3}, "query is missing"),
    (RETRIEVE, {"query": "tea", "top_k": 0}, "top_k Input should be greater than or equal to 1"),
    (RETRIEVE, {"query": "tea", "top_k": "many"}, "top_k"),
    (RETRIEVE, {"query": "tea", "metadata_filter": ["kind"]}, "metadata_filter"),
    (RETRIEVE, {"query": " \n"}, "query"),
    (SUMMARY, {}, "span is missing. It needs span."),
    (SUMMARY, {"span": "0"}, "from 1 on"),
    (SUMMARY, {"span": ["all"]}, "span"),
    (FILTER, {}, "criteria is missing. It needs criteria."),
    (FILTER, {"criteria": ""}, "criteria"),
    (FILTER, {"criteria": "x", "threshold": 0.1}, "threshold is no argument of this tool"),
]


@pytest.mark.parametrize(("name", "arguments", "said"), WRONG)
def test_wrong_arguments_change_nothing_and_say_what_is_needed(
    at: Workplace, use: Use, name: str, arguments: dict[str, Any], said: str
) -> None:
    _, at = remember(at, "tea")
    outcome = use(at, name, **arguments)
    assert (outcome.ok, outcome.fault, outcome.edit) == (False, "bad_arguments", None)
    assert outcome.text.startswith("Error: ")
    assert said in outcome.text
    assert len(outcome.text) < 400
    assert "pydantic" not in outcome.text
    assert texts(at) == ["tea"]
    assert logged_failure(at, outcome) == (name in LONG_TERM)  # what only looks, or shortens, writes nothing
    assert len(at.store.log(scope=at.scope)) == 1 + (name in LONG_TERM)


def test_arguments_nested_without_end_are_refused(at: Workplace, use: Use) -> None:
    value: Any = "x"
    for _ in range(5_000):
        value = [value]
    for arguments in ({"content": "tea", "metadata": {"a": value}}, {"content": value}, {"x": value}):
        outcome = use(at, ADD, **arguments)
        assert (outcome.fault, len(outcome.text) < 200) == ("bad_arguments", True)


# tools and memories that do not exist


def test_a_tool_that_does_not_exist_is_named_with_those_that_do(at: Workplace, use: Use) -> None:
    outcome = use(at, "Forget_everything", really=True)
    assert (outcome.name, outcome.fault) == ("Forget_everything", "unknown_tool")
    assert outcome.text == f"Error: there is no tool 'Forget_everything'. Use one of: {', '.join(ALL)}."
    assert len(use(at, "x" * 10_000).text) < 300


def test_a_tool_that_this_agent_does_not_have_does_not_exist_for_it() -> None:
    outcome = checked(called(RETRIEVE, {"query": "tea"}), names=LONG_TERM)
    assert isinstance(outcome, Outcome)
    assert outcome.fault == "unknown_tool"
    assert "Add_memory, Update_memory, Delete_memory." in outcome.text


@pytest.mark.parametrize("number", ["0", "3", "-1", "two", "1.0", "99999999999", "1]]", str(new_id())])
@pytest.mark.parametrize(("name", "more"), [(UPDATE, {"content": "rye"}), (DELETE, {"confirmation": True})])
def test_a_number_that_was_not_shown_is_no_memory(
    at: Workplace, use: Use, number: str, name: str, more: dict[str, Any]
) -> None:
    _, at = remember(at, "tea", "rye")
    outcome = use(at, name, memory_id=number, **more)
    assert outcome.fault == "unknown_memory"
    assert "Numbers go from 1 to 2; retrieve before you change one." in outcome.text
    assert logged_failure(at, outcome)
    assert at.store.log(scope=at.scope)[-1].reason == "She said so."
    assert texts(at) == ["tea", "rye"]


def test_before_anything_was_shown_no_number_is_a_memory(at: Workplace, use: Use) -> None:
    remember(at, "tea")
    outcome = use(at, DELETE, memory_id="1", confirmation=True)
    assert outcome.fault == "unknown_memory"
    assert "None was shown yet; retrieve before you change one." in outcome.text


@pytest.mark.parametrize(("name", "more"), [(UPDATE, {"content": "rye"}), (DELETE, {"confirmation": True})])
def test_a_memory_that_somebody_deleted_is_gone(at: Workplace, use: Use, name: str, more: dict[str, Any]) -> None:
    (memory,), at = remember(at, "tea")
    gone = ProposedOp(kind=OpKind.DELETE, memory_id=memory.id, reason="no more", actor="test")
    at.store.apply([gone], scope=at.scope)
    outcome = use(at, name, memory_id="1", **more)
    assert (outcome.fault, logged_failure(at, outcome)) == ("unknown_memory", True)
    assert outcome.text == "Error: that memory does not exist any more. Retrieve before you change one."
    assert texts(at) == []


def test_a_number_of_another_users_memory_reaches_nothing(at: Workplace, use: Use) -> None:
    other = replace(at, scope=Scope(tenant=at.scope.tenant, user="boris"))
    _, other = remember(other, "Boris drinks tea.")
    outcome = use(replace(at, numbers=other.numbers), DELETE, memory_id="1", confirmation=True)
    assert outcome.fault == "unknown_memory"
    assert texts(other) == ["Boris drinks tea."]


# nothing to do


def test_nothing_matches_and_nothing_can_be_summarised(at: Workplace, use: Use) -> None:
    outcome = use(at, FILTER, criteria="submarines")
    assert (outcome.fault, outcome.edit) == ("nothing_matched", None)
    assert outcome.text == "Error: no message matches. Describe one with its own words."
    alone = replace(at, context=CONTEXT[:1])
    assert use(alone, FILTER, criteria="You are kind.").fault == "nothing_matched"
    for span in ("all", "3"):
        empty = use(alone, SUMMARY, span=span)
        assert (empty.fault, empty.text) == ("nothing_to_summarize", "Error: there is nothing to summarise yet.")


# what the world does


class Meddled:
    """A bank at which something happens before a call of one of its methods is carried out."""

    def __init__(self, store: MemoryStore, method: str, happens: Callable[[], object]) -> None:
        self._store = store
        self._methods = {method, f"a{method}"}
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in self._methods:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._happens()
            return found(*args, **kwargs)

        return call


def meddled(at: Workplace, method: str, happens: Callable[[], object]) -> Workplace:
    return replace(at, store=cast(MemoryStore, Meddled(at.store, method, happens)))


def raising(error: Exception) -> Callable[[], object]:
    def happens() -> object:
        raise error

    return happens


@pytest.mark.parametrize(("name", "more"), [(UPDATE, {"content": "rye"}), (DELETE, {"confirmation": True})])
def test_a_memory_that_changes_between_reading_and_writing_is_left_as_it_is(
    at: Workplace, use: Use, name: str, more: dict[str, Any]
) -> None:
    (memory,), at = remember(at, "tea")
    change = ProposedOp(kind=OpKind.UPDATE, memory_id=memory.id, text="green tea", reason="meanwhile", actor="test")
    outcome = use(meddled(at, "apply", lambda: at.store.apply([change], scope=at.scope)), name, memory_id="1", **more)
    assert (outcome.fault, logged_failure(at, outcome)) == ("changed_meanwhile", True)
    assert outcome.text == "Error: the memory was changed meanwhile. Retrieve it again."
    assert texts(at) == ["green tea"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("a secret of the program"), "the tool failed (RuntimeError). Go on without it"),
        (StorageFullError("The disk is full."), "the tool failed (The disk is full). Go on without it"),
        (KeyError("x"), "the tool failed (KeyError)"),
    ],
)
@pytest.mark.parametrize(
    ("method", "name", "arguments"),
    [
        ("apply", ADD, {"content": "tea"}),
        ("search", RETRIEVE, {"query": "tea"}),
        ("get", UPDATE, {"memory_id": "1", "content": "x"}),
        ("reject", ADD, {}),
        ("reject", DELETE, {"memory_id": "9", "confirmation": True}),
    ],
)
def test_a_store_that_fails_is_told_without_its_insides(
    at: Workplace, use: Use, error: Exception, said: str, method: str, name: str, arguments: dict[str, Any]
) -> None:
    _, at = remember(at, "rye")
    outcome = use(meddled(at, method, raising(error)), name, **arguments)
    assert (outcome.ok, outcome.fault) == (False, "tool_error")
    assert said in outcome.text
    assert "secret" not in outcome.text
    assert texts(at) == ["rye"]


@pytest.mark.parametrize("error", [UnavailableError("Qdrant is away"), ScopeError("not yours"), GraphInterrupt(())])
@pytest.mark.parametrize(
    ("method", "name", "arguments"),
    [("apply", ADD, {"content": "x"}), ("search", RETRIEVE, {"query": "x"}), ("reject", ADD, {})],
)
def test_what_is_no_fault_of_the_model_stays_an_error(
    at: Workplace, use: Use, error: Exception, method: str, name: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(type(error)):
        use(meddled(at, method, raising(error)), name, **arguments)


class Broken:
    """A summariser that fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def summarize(self, messages: object, config: object = None) -> str:
        raise self.error

    async def asummarize(self, messages: object, config: object = None) -> str:
        raise self.error


def test_a_summariser_that_fails_is_told_and_one_that_is_away_is_an_error(at: Workplace, use: Use) -> None:
    outcome = use(replace(at, summarizer=Broken(ModelReplyError("too long"))), SUMMARY, span="all")
    assert (outcome.fault, outcome.edit) == ("tool_error", None)
    with pytest.raises(UnavailableError):
        use(replace(at, summarizer=Broken(UnavailableError("away"))), SUMMARY, span="all")
    nobody = use(replace(at, summarizer=None), SUMMARY, span="all")
    assert "nobody is there to summarise" in nobody.text


# whatever a model passes


anything = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(exclude_categories=()), max_size=8)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=4), inner, max_size=2)),
    max_leaves=4,
)
fields = sorted({name for schema in SCHEMAS.values() for name in schema.model_fields} | {"confirmed", "x"})


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*ALL, "Clear_context", "x"]), st.dictionaries(st.sampled_from(fields), anything, max_size=3))
def test_no_arguments_raise_and_both_ways_of_running_agree(at: Workplace, name: str, arguments: dict[str, Any]) -> None:
    def outcome(how: str) -> Outcome:
        here = replace(at, scope=Scope(tenant=f"{at.scope.tenant} {how}", user="anna"), numbers=Numbers())
        _, here = remember(here, *([] if at.store.memories(scope=here.scope) else ["tea"]))
        call = checked(called(name, arguments), names=ALL, reason="why")
        return run(call, here) if how == "sync" else asyncio.run(arun(call, here))

    one, other = outcome("sync"), outcome("async")
    assert (one.name, one.ok, one.fault, one.text) == (other.name, other.ok, other.fault, other.text)
    assert [op.kind for op in one.ops] == [op.kind for op in other.ops]
    assert one.ok == (one.fault is None)
    assert one.ok or one.text.startswith("Error: ")

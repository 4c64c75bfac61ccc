"""What the model of an agent with `MemoryMiddleware` sees: FILTER, SUMMARY, the budget, and what stays for ever."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from memweave import MemoryMiddleware, Scope
from memweave.agents.context import (
    ContextEdit,
    ExtractiveSummarizer,
    estimate_context,
    summarized,
    units,
    with_ids,
    within,
)
from memweave.agents.memory_tools import ADD, FILTER, RETRIEVE, SUMMARY
from memweave.graphs.memory_middleware_view import View, kept, query_of, view_of
from memweave.memory_stores import MemoryBank
from memweave.records import OpKind, ProposedOp, new_id
from memweave.testing.models import ScriptedChatModel

Run = Callable[..., Any]
THREAD: RunnableConfig = {"configurable": {"thread_id": "1"}}


def asks(*calls: tuple[str, dict[str, Any]], text: str = "") -> AIMessage:
    """Return a reply that calls tools."""
    made = [{"name": name, "args": args, "id": str(new_id()), "type": "tool_call"} for name, args in calls]
    return AIMessage(text, tool_calls=made)


def agent(model: ScriptedChatModel, bank: Any, *, own: Sequence[Any] = (), **options: Any) -> Any:
    """Return an agent with a thread, with memory but without recall. own: its own tools."""
    middleware = MemoryMiddleware(bank, **{"recall": False, "instructions": False, **options})
    return create_agent(
        model, list(own), middleware=[middleware], checkpointer=InMemorySaver(), system_prompt="Be kind."
    )


def words(messages: Sequence[BaseMessage]) -> int:
    """Count words: a counter of tokens that a test can do in its head."""
    return sum(len(message.text.split()) for message in messages)


def said(call: Sequence[BaseMessage]) -> list[str]:
    return [message.text for message in call if message.type != "system"]


def results(output: dict[str, Any]) -> list[ToolMessage]:
    return [message for message in output["messages"] if isinstance(message, ToolMessage)]


@tool
def look_up(what: str) -> str:
    """Look something up."""
    return f"result for {what}"


# FILTER and SUMMARY


def test_filter_hides_what_it_describes_and_the_conversation_stays_whole(
    run: Run, bank: MemoryBank, scope: Scope
) -> None:
    noise = "The weather in Porto is mild today"
    model = ScriptedChatModel(["So it is.", asks((FILTER, {"criteria": noise})), "Gone.", "Still gone."])
    chat = agent(model, bank, scope=scope)
    run(chat, {"messages": noise}, THREAD)
    run(chat, {"messages": "Forget the weather"}, THREAD)
    output = run(chat, {"messages": "And now?"}, THREAD)
    assert results(output)[0].text == "Removed 1 message."
    assert noise in said(model.calls[1])
    assert all(noise not in said(call) for call in model.calls[2:])
    assert [message.text for message in output["messages"]] == [
        noise, "So it is.", "Forget the weather", "", "Removed 1 message.", "Gone.", "And now?", "Still gone.",
    ]  # fmt: skip


def test_filter_that_matches_everything_keeps_the_question_and_the_call(
    run: Run, bank: MemoryBank, scope: Scope
) -> None:
    model = ScriptedChatModel(["tea tea", asks((FILTER, {"criteria": "zebra"}), text="tea"), "ok"])
    chat = agent(model, bank, scope=scope, filter_threshold=-1.0)
    run(chat, {"messages": "tea"}, THREAD)
    run(chat, {"messages": "tea?"}, THREAD)
    assert said(model.calls[-1]) == ["tea?", "tea", "Removed 2 messages."]
    assert model.calls[-1][0].text == "Be kind."


@pytest.mark.parametrize("span", ["all", "999", "the whole thing"])
def test_a_span_larger_than_the_conversation_is_all_of_it(run: Run, bank: MemoryBank, scope: Scope, span: str) -> None:
    model = ScriptedChatModel(
        [asks(("look_up", {"what": "x"})), "found", asks((SUMMARY, {"span": span})), "They looked x up.", "ok", "ok"]
    )
    chat = agent(model, bank, own=[look_up], scope=scope)
    run(chat, {"messages": "look x up"}, THREAD)
    run(chat, {"messages": "shorten"}, THREAD)
    output = run(chat, {"messages": "go on"}, THREAD)
    assert said(model.calls[4]) == ["<summary>\nThey looked x up.\n</summary>", "shorten", "", "Summarised 4 messages."]
    assert said(model.calls[5])[0] == "<summary>\nThey looked x up.\n</summary>"
    assert len(output["messages"]) == 10


def test_a_summary_stands_where_its_span_began_and_can_be_summarised_again(
    run: Run, bank: MemoryBank, scope: Scope
) -> None:
    model = ScriptedChatModel(
        ["1", "2", asks((SUMMARY, {"span": "2"})), "two", "3", asks((SUMMARY, {"span": "all"})), "all of it", "4"]
    )
    chat = agent(model, bank, scope=scope)
    for text in ("a", "b", "c", "d"):
        run(chat, {"messages": text}, THREAD)
    shown = [said(call) for call in model.calls]
    assert shown[4] == ["a", "1", "<summary>\ntwo\n</summary>", "c", "", "Summarised 2 messages."]
    assert "two" in shown[6][0]
    assert shown[7] == ["<summary>\nall of it\n</summary>", "d", "", "Summarised 7 messages."]


def test_what_was_filtered_does_not_come_back_with_a_summary(run: Run, bank: MemoryBank, scope: Scope) -> None:
    model = ScriptedChatModel(
        ["1", "2", asks((FILTER, {"criteria": "beta"})), asks((SUMMARY, {"span": "all"})), "short", "ok"]
    )
    chat = agent(model, bank, scope=scope)
    for text in ("alpha", "beta", "gamma"):
        run(chat, {"messages": text}, THREAD)
    assert said(model.calls[-1]) == ["<summary>\nshort\n</summary>", "gamma", "", "Summarised 5 messages."]


def test_the_first_turn_has_nothing_to_summarise(run: Run, bank: MemoryBank, scope: Scope) -> None:
    model = ScriptedChatModel([asks((SUMMARY, {"span": "all"})), "ok"])
    (result,) = results(run(agent(model, bank, scope=scope), {"messages": "hi"}, THREAD))
    assert (result.status, result.text) == ("error", "Error: there is nothing to summarise yet.")


def test_calls_of_one_reply_that_overlap_leave_one_context(run: Run, bank: MemoryBank, scope: Scope) -> None:
    """Three edits of the same messages, made beside each other."""
    model = ScriptedChatModel(
        ["1", asks((SUMMARY, {"span": "all"}), (FILTER, {"criteria": "alpha"}), (SUMMARY, {"span": "1"})), "ok", "ok"]
    )
    chat = agent(model, bank, scope=scope, summarizer=ExtractiveSummarizer())
    run(chat, {"messages": "alpha"}, THREAD)
    output = run(chat, {"messages": "beta"}, THREAD)
    assert [result.status for result in results(output)] == ["success"] * 3
    shown = said(model.calls[-1])
    assert shown[:2] == ["<summary>\nalpha\n</summary>", "beta"]
    assert len(shown) == 6


def test_the_summarizer_may_be_another(run: Run, bank: MemoryBank, scope: Scope) -> None:
    model = ScriptedChatModel(["Noted.", asks((SUMMARY, {"span": "all"})), "ok"])
    chat = agent(model, bank, scope=scope, summarizer=ExtractiveSummarizer(sentences=1))
    run(chat, {"messages": "Hello, hello. The code is 4711-KX. Hello, you."}, THREAD)
    run(chat, {"messages": "shorten"}, THREAD)
    assert said(model.calls[-1])[0] == "<summary>\nThe code is 4711-KX.\n</summary>"


def test_a_summarizer_that_fails_is_told(run: Run, bank: MemoryBank, scope: Scope) -> None:
    model = ScriptedChatModel(["1", asks((SUMMARY, {"span": "all"})), RuntimeError("a secret"), "ok"])
    chat = agent(model, bank, scope=scope)
    run(chat, {"messages": "a"}, THREAD)
    (result,) = results(run(chat, {"messages": "b"}, THREAD))
    assert result.status == "error"
    assert "secret" not in result.text
    assert said(model.calls[-1])[:3] == ["a", "1", "b"]


def test_an_open_question_is_shown_although_it_was_once_removed(run: Run, bank: MemoryBank, scope: Scope) -> None:
    """A conversation is cut back to a message that FILTER took out later."""
    model = ScriptedChatModel(["1", asks((FILTER, {"criteria": "alpha"})), "2", "again"])
    chat = agent(model, bank, scope=scope)
    run(chat, {"messages": [HumanMessage("alpha", id="m1")]}, THREAD)
    output = run(chat, {"messages": "remove it"}, THREAD)
    assert "alpha" not in said(model.calls[-1])
    back = [RemoveMessage(message.id) for message in output["messages"] if message.id != "m1"]
    run(chat, {"messages": back}, THREAD)
    assert said(model.calls[-1]) == ["alpha"]


# the budget


def test_what_is_over_the_budget_goes_oldest_first_and_stays_away(run: Run, bank: MemoryBank, scope: Scope) -> None:
    model = ScriptedChatModel([f"answer {n}" for n in range(6)])
    chat = agent(model, bank, scope=scope, context_tokens=19, count_context=words)
    outputs = [run(chat, {"messages": f"question {n}"}, THREAD) for n in range(6)]
    told = [message.text for message in outputs[-1]["messages"]]
    for n, call in enumerate(model.calls):
        shown = [message.text for message in call if message.type != "system" and message.name != "note"]
        assert shown == told[: 2 * n + 1][-len(shown) :]
    assert len(model.calls[-1]) > 3
    assert all(words(call) <= 19 for call in model.calls)
    assert len(outputs[-1]["messages"]) == 12
    assert all("memory_overflow" not in output for output in outputs)
    removed = [each for edit in chat.get_state(THREAD).values["memory_edits"] for each in edit.removed]
    assert len(removed) == len(set(removed))


def test_a_reply_does_not_come_to_stand_first_without_a_note(run: Run, bank: MemoryBank, scope: Scope) -> None:
    """Some endpoints refuse a conversation that begins with a reply; the note counts."""
    model = ScriptedChatModel(["short", "ok"])
    chat = agent(model, bank, scope=scope, context_tokens=15, count_context=words)
    run(
        chat, {"messages": "a question of very many words indeed, of more words than the next reply has by far"}, THREAD
    )
    run(chat, {"messages": "next"}, THREAD)
    assert said(model.calls[1]) == [
        "<note>\nEarlier messages of this conversation are not shown.\n</note>",
        "short",
        "next",
    ]
    assert words(model.calls[1]) <= 15


def test_a_greeting_of_the_agent_may_stand_first(run: Run, bank: MemoryBank, scope: Scope) -> None:
    model = ScriptedChatModel(["ok"])
    run(agent(model, bank, scope=scope), {"messages": [AIMessage("Welcome!"), HumanMessage("hi")]}, THREAD)
    assert said(model.calls[0]) == ["Welcome!", "hi"]


def test_a_budget_smaller_than_the_system_message_is_reported_once_and_the_run_goes_on(
    run: Run, bank: MemoryBank, scope: Scope
) -> None:
    model = ScriptedChatModel(["hello", asks(("look_up", {"what": "x"})), "found", "ok"])
    chat = agent(model, bank, own=[look_up], scope=scope, context_tokens=1, count_context=words)
    first = run(chat, {"messages": "hi"}, THREAD)
    assert first["memory_overflow"] == {"tokens": 3, "limit": 1}
    updates = [
        update["memory_overflow"]
        for part in chat.stream({"messages": "look x up"}, THREAD, stream_mode="updates")
        for update in part.values()
        if update and "memory_overflow" in update
    ]
    assert updates == [None, {"tokens": 5, "limit": 1}]
    assert [message.text for message in model.calls[2]] == ["Be kind.", "look x up", "", "result for x"]
    assert run(chat, {"messages": "so?"}, THREAD)["memory_overflow"] == {"tokens": 3, "limit": 1}


def test_an_overflow_that_is_over_is_no_longer_reported(run: Run, bank: MemoryBank, scope: Scope) -> None:
    model = ScriptedChatModel(["1", "2"])
    chat = agent(model, bank, scope=scope, context_tokens=6, count_context=words)
    assert run(chat, {"messages": "far too many words for this budget"}, THREAD)["memory_overflow"]["tokens"] == 9
    assert run(chat, {"messages": "few words"}, THREAD)["memory_overflow"] is None


def test_the_turn_under_way_stays_and_its_earlier_calls_may_go(run: Run, bank: MemoryBank, scope: Scope) -> None:
    looks = [asks(("look_up", {"what": f"{n} {n}"}), ("look_up", {"what": f"{n} again"})) for n in range(3)]
    model = ScriptedChatModel([*looks, "done"])
    chat = agent(model, bank, own=[look_up], scope=scope, context_tokens=14, count_context=words)
    run(chat, {"messages": "look it up"}, THREAD)
    for n, call in enumerate(model.calls[1:]):
        assert said(call) == ["look it up", "", f"result for {n} {n}", f"result for {n} again"]


def test_recalled_memories_go_before_the_budget_is_exceeded(run: Run, bank: MemoryBank, scope: Scope) -> None:
    bank.apply([ProposedOp(kind=OpKind.ADD, text="Anna drinks tea", reason="said", actor="test")], scope=scope)
    for limit, shown in ((50, True), (6, False)):
        model = ScriptedChatModel(["ok", "ok"])
        chat = agent(model, bank, scope=scope, recall=True, context_tokens=limit, count_context=words)
        run(chat, {"messages": "hello"}, THREAD)
        output = run(chat, {"messages": "tea for Anna?"}, THREAD)
        assert ("<memories>" in " ".join(said(model.calls[1]))) == shown
        assert said(model.calls[1])[-1] == "tea for Anna?"
        assert words(model.calls[1]) <= limit
        assert output.get("memory_overflow") is None


def test_a_long_conversation_within_a_small_budget(run: Run, bank: MemoryBank, scope: Scope) -> None:
    """60 turns with tools of all kinds: never over the budget, the question always there, nothing ever lost."""
    chance = random.Random(7)
    limit = 160
    facts = [f"fact {n} about {chance.choice(['tea', 'figs', 'rye', 'Ghent'])}" for n in range(60)]

    def reply(messages: list[BaseMessage]) -> Any:
        if messages[0].text.startswith("You shorten"):
            return "In short: tea."
        question = next(m for m in reversed(messages) if m.type == "human" and not m.name)
        assert isinstance(messages[0], SystemMessage)
        assert question.text in facts
        if isinstance(messages[-1], ToolMessage) and chance.random() < 0.7:
            return " ".join(["well"] * chance.randrange(1, 30))
        return chance.choice(
            [
                lambda: asks((ADD, {"content": question.text}), (RETRIEVE, {"query": "tea", "top_k": 3})),
                lambda: asks(("look_up", {"what": "rye " * chance.randrange(8)})),
                lambda: asks((FILTER, {"criteria": chance.choice(facts)}), (SUMMARY, {"span": "4"})),
                lambda: AIMessage("I see " * chance.randrange(1, 10)),
            ]
        )()

    model = ScriptedChatModel(reply)
    chat = agent(
        model, bank, own=[look_up], scope=scope, recall=True, recall_tokens=60, context_tokens=limit, count_context=words,
        summarizer=ExtractiveSummarizer(),
    )  # fmt: skip
    for n, fact in enumerate(facts):
        output = run(chat, {"messages": [HumanMessage(fact, id=f"q{n}")]}, THREAD)
        assert output.get("memory_overflow") is None
    assert len(model.calls) > 60
    assert max(words(call) for call in model.calls) <= limit
    for call in model.calls:
        assert_pairs(call)
    public = output["messages"]
    assert [message.text for message in public if message.type == "human"] == facts
    state = chat.get_state(THREAD).values
    gone = {each for edit in state["memory_edits"] for each in edit.removed}
    summaries = {edit.summary_id for edit in state["memory_edits"]}
    assert {edit.kind for edit in state["memory_edits"]} == {"budget", "filter", "summary"}
    assert gone - summaries <= {message.id for message in public}


def assert_pairs(messages: Sequence[BaseMessage]) -> None:
    """Every call has its result, and every result its call right before it."""
    open_calls: set[str] = set()
    for message in messages:
        if isinstance(message, ToolMessage):
            assert message.tool_call_id in open_calls
            open_calls.discard(message.tool_call_id)
            continue
        assert not open_calls
        if isinstance(message, AIMessage):
            open_calls = {str(call["id"]) for call in [*message.tool_calls, *message.invalid_tool_calls]}
    assert not open_calls


# the view alone


def conversation(chance: random.Random, size: int) -> list[AnyMessage]:
    """Return a conversation of about `size` messages that ends with a question, or with the results of a call."""
    made: list[Any] = []
    while len(made) < size:
        made.append(HumanMessage("word " * chance.randrange(1, 9)))
        for _ in range(chance.randrange(3)):
            calls = [
                {"name": "look", "args": {}, "id": str(new_id()), "type": "tool_call"}
                for _ in range(chance.randrange(3))
            ]
            bad = [{"name": "look", "args": "{", "id": str(new_id()), "error": None, "type": "invalid_tool_call"}]
            reply = AIMessage("so", tool_calls=calls, invalid_tool_calls=bad if chance.random() < 0.3 else [])
            asked = [*reply.tool_calls, *reply.invalid_tool_calls]
            made += [
                reply,
                *(ToolMessage("res " * chance.randrange(9), tool_call_id=str(call["id"])) for call in asked),
            ]
        if chance.random() < 0.7:
            made.append(AIMessage("fine " * chance.randrange(9)))
    if isinstance(made[-1], AIMessage):
        made.append(HumanMessage("the question"))
    return with_ids(made)  # type: ignore[return-value]


def look(messages: Sequence[AnyMessage], limit: int | None, edits: Sequence[ContextEdit] = (), **more: Any) -> View:
    given = {"system": SystemMessage("be kind"), "recalled": None, "count": words, **more}
    return view_of(messages, limit=limit, edits=edits, **given)


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 80), st.booleans())
def test_every_view_keeps_its_promises(seed: int, size: int, limit: int, recall: bool) -> None:
    chance = random.Random(seed)
    messages = conversation(chance, size)
    recalled: Any = {"text": "- tea [1]\n- figs [2]", "memories": [("a", 1), ("b", 2)]} if recall else None
    before = [message.model_copy(deep=True) for message in messages]
    edits: list[ContextEdit] = []
    for end in sorted({*chance.sample(range(1, len(messages) + 1), min(3, len(messages))), len(messages)}):
        public = messages[:end]
        if isinstance(public[-1], AIMessage):
            continue  # the model is not asked after its own reply
        if chance.random() < 0.5 and (some := [u for u in units(public) if not {m.id for m in u} & kept(public)]):
            edits.append(summarized([chance.choice(some)], "short"))
        view = look(public, limit, edits, recalled=recalled)
        edits += [view.edit] if view.edit else []
        shown = [SystemMessage("be kind"), *view.messages]
        names = {message.id for message in view.messages}
        assert kept(public) <= names
        assert (view.overflow is None) == (words(shown) <= limit)
        if view.overflow:
            assert view.overflow == {"tokens": words(shown), "limit": limit}
            assert names - {None} <= kept(public)
            assert view.memories == []
        gone = {each for edit in edits for each in edit.removed}
        assert {message.id for message in public} - names <= gone
        assert (names - {None}) & gone <= kept(public)  # nothing comes back
        if public == messages[: len(public)] and complete(public):
            assert_pairs(view.messages)
        first = view.messages[0]
        assert not isinstance(first, AIMessage | ToolMessage) or first.id == public[0].id
        assert look(public, limit, edits, recalled=recalled).messages == view.messages or view.overflow or recall
    assert messages == before


def complete(messages: Sequence[BaseMessage]) -> bool:
    """Return whether every call has its result."""
    asked = {c["id"] for m in messages if isinstance(m, AIMessage) for c in [*m.tool_calls, *m.invalid_tool_calls]}
    return asked == {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}


def test_a_long_history_is_cut_in_a_moment() -> None:
    """It was counted once per message, and each count once more per message: minutes for 2,000."""
    counted: list[int] = []

    def count(messages: Sequence[BaseMessage]) -> int:
        counted.append(len(messages))
        return words(messages)

    messages = with_ids(HumanMessage(f"one two {n}") for n in range(2_000))
    edit = within(messages, 30, count, keep={str(messages[-1].id)})
    assert edit is not None
    assert edit.removed == tuple(str(message.id) for message in messages[:1990])
    assert len(counted) < 20


def test_calls_that_could_not_be_read_go_with_their_answers() -> None:
    bad = AIMessage(
        "", invalid_tool_calls=[{"name": "x", "args": "{", "id": "1", "error": None, "type": "invalid_tool_call"}]
    )
    messages = with_ids([HumanMessage("a"), bad, ToolMessage("malformed", tool_call_id="1"), HumanMessage("b")])
    assert [len(unit) for unit in units(messages)] == [1, 2, 1]


def test_a_call_that_could_not_be_read_is_under_way_too() -> None:
    bad = AIMessage(
        "",
        id="2",
        invalid_tool_calls=[{"name": "x", "args": "{", "id": "1", "error": None, "type": "invalid_tool_call"}],
    )
    messages = [HumanMessage("a", id="1"), bad, ToolMessage("malformed", tool_call_id="1", id="3")]
    assert kept(messages) == {"1", "2", "3"}
    assert kept([*messages, AIMessage("b", id="4")]) == {"1"}
    assert kept([]) == set()


def test_a_query_is_the_end_of_what_the_user_says_now() -> None:
    messages = [HumanMessage("before"), AIMessage("so"), HumanMessage("a" * 5_000), HumanMessage("the end")]
    query = query_of([*messages, AIMessage("wait")])
    assert len(query) == 4_000
    assert query.endswith("a\nthe end")
    assert query_of([AIMessage("hello")]) == ""


def test_without_a_limit_nothing_is_counted() -> None:
    def never(messages: Sequence[BaseMessage]) -> int:
        raise AssertionError

    messages: list[Any] = with_ids([HumanMessage("a"), AIMessage("b"), HumanMessage("c")])
    assert look(messages, None, count=never).messages == messages


def test_an_agents_malformed_calls_are_answered_and_stay_together(run: Run, bank: MemoryBank, scope: Scope) -> None:
    """`create_agent` answers calls that cannot be read, with messages that have no id yet."""
    bad: Any = {"name": ADD, "args": "{content", "id": "7", "error": None, "type": "invalid_tool_call"}
    model = ScriptedChatModel([AIMessage("", invalid_tool_calls=[bad]), *["ok"] * 4])
    chat = agent(model, bank, scope=scope, context_tokens=20, count_context=words)
    for n in range(5):
        run(chat, {"messages": f"message number {n}"}, THREAD)
    for call in model.calls[1:]:
        assert_pairs(call)
    assert not any(message.type == "tool" for message in model.calls[-1])


def test_the_estimate_is_the_default_counter(run: Run, bank: MemoryBank, scope: Scope) -> None:
    model = ScriptedChatModel(["a " * 300] * 4)
    chat = agent(model, bank, scope=scope, context_tokens=400)
    for _ in range(4):
        run(chat, {"messages": "b " * 100}, THREAD)
    assert max(estimate_context(call) for call in model.calls) <= 400
    assert len(model.calls[-1]) == 4

"""The AgeMem agent within its token budget: what goes, what stays, and 500 turns of it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver

from memweave.agents.context import ContextEdit, ExtractiveSummarizer, estimate_context
from memweave.agents.memory_tools import ADD, FILTER, RETRIEVE, SUMMARY
from memweave.graphs.agemem import create_agemem_agent
from memweave.graphs.agemem_fitting import fitted, least, under_way
from memweave.graphs.agemem_state import Protocol
from memweave.memory_stores import MemoryBank
from memweave.records import Scope
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import Tracer
from tests.graphs.agemem_play import Asked, Ours, Speaker, context, said, saying, steps, thread

Run = Callable[..., Any]


def words(messages: Sequence[BaseMessage]) -> int:
    """Count words, and one for each message."""
    return sum(1 + len(message.text.split()) for message in messages)


def ids(messages: Sequence[BaseMessage]) -> list[str | None]:
    return [message.id for message in messages]


@pytest.fixture(params=["native", "text"])
def speaker(request: pytest.FixtureRequest) -> Speaker:
    return Speaker(request.param)


# what goes when there are too many tokens


def calling(name: str, *call_ids: str, text: str = "") -> AIMessage:
    made = [{"name": "look", "args": {}, "id": each, "type": "tool_call"} for each in call_ids]
    return AIMessage(text, id=name, tool_calls=made)


CHAT: list[BaseMessage] = [
    SystemMessage("be kind", id="s"),
    HumanMessage("one two three", id="u1"),
    AIMessage("four five", id="a1"),
    HumanMessage("six seven", id="u2"),
]


def test_a_context_that_fits_is_left_alone() -> None:
    out = fitted(CHAT, words(CHAT), words, question=["u2"], first="u1")
    assert (out.context, out.edits) == (CHAT, [])


def test_the_oldest_messages_go_and_a_reply_that_comes_to_stand_first_gets_a_note() -> None:
    out = fitted(CHAT, 9, words, question=["u2"], first="u1")
    assert ids(out.context) == ["s", "u2"]
    assert [(edit.kind, edit.removed) for edit in out.edits] == [("budget", ("u1", "a1"))]
    longer = [CHAT[0], CHAT[1], AIMessage("x " * 9, id="a0"), *CHAT[2:]]
    out = fitted(longer, words(longer) - 4 + 9, words, question=["u2"], first="u1")
    assert (ids(out.context), out.edits) == (ids(longer), [])
    out = fitted(longer, words(longer) - 4 + 8, words, question=["u2"], first="u1")
    assert ids(out.context) == ids(longer)
    out = fitted(longer, words(longer) - 1, words, question=["u2"], first="u1")
    assert ids(out.context) == ["s", "note", "a1", "u2"]
    assert out.context[1].type == "human"
    again = fitted(out.context, 100, words, question=["u2"], first="u1")
    assert ids(again.context) == ["s", "note", "a1", "u2"]  # one note, however often
    assert ids(fitted(out.context, 100, words, question=["u2"], first=None).context) == ["s", "a1", "u2"]


def test_a_conversation_that_begins_with_a_greeting_needs_no_note() -> None:
    greeting = [CHAT[0], AIMessage("hello", id="a0"), CHAT[3]]
    assert fitted(greeting, 100, words, question=["u2"], first="a0").context == greeting


def test_what_is_under_way_is_the_last_reply_and_its_results() -> None:
    turn = [*CHAT, calling("a2", "c"), ToolMessage("found", tool_call_id="c", id="t2")]
    assert under_way(turn) == {"a2", "t2"}
    assert under_way(CHAT) == set()
    assert under_way([*turn, HumanMessage("more", id="u3", name="Anna")]) == set()
    assert under_way([*turn, HumanMessage("wrong", id="u3", name="tools")]) == {"a2", "t2", "u3"}
    assert under_way(CHAT[:1]) == set()


def test_a_long_result_is_cut_before_the_conversation_goes() -> None:
    turn = [*CHAT, calling("a2", "c"), ToolMessage(" ".join(f"w{i}" for i in range(500)), tool_call_id="c", id="t2")]
    out = fitted(turn, 60, words, question=["u2"], first="u1")
    assert ids(out.context) == ids(turn)
    result = out.context[-1]
    assert isinstance(result, ToolMessage)
    assert result.tool_call_id == "c"
    assert result.text.startswith("w0 w1 w2")
    assert "more characters do not fit here]" in result.text
    assert words(out.context[4:]) <= 30  # half of the room
    assert out.edits == []
    assert words(turn) > 500  # the public message stays whole


def test_a_result_beside_a_long_question_is_cut_to_what_is_left() -> None:
    question = HumanMessage("why " * 50, id="q")
    turn = [*CHAT, question, calling("a2", "c"), ToolMessage("found " * 38, tool_call_id="c", id="t2")]
    out = fitted(turn, 80, words, question=["q"], first="u1")
    assert ids(out.context) == ["s", "q", "a2", "t2"]
    assert out.context[-1].text.startswith("found found")
    assert words(out.context) <= 80


def test_several_results_are_cut_to_one_length_and_short_ones_stay() -> None:
    results = [
        ToolMessage(text, tool_call_id=c, id=c) for c, text in (("x", "x " * 200), ("y", "short"), ("z", "z " * 200))
    ]
    out = fitted([*CHAT, calling("a2", "x", "y", "z"), *results], 80, words, question=["u2"], first="u1")
    cut = out.context[-3:]
    assert cut[1].text == "short"
    assert cut[0].text.count("x ") == cut[2].text.count("z ") > 2
    assert words(out.context) <= 80


def test_a_reply_that_is_itself_too_long_goes_and_the_model_is_told() -> None:
    turn = [*CHAT, calling("a2", "c", text="blah " * 90), ToolMessage("found", tool_call_id="c", id="t2")]
    out = fitted(turn, 60, words, question=["u2"], first="u1")
    assert ids(out.context)[:2] == ["s", "u2"]
    assert "Write less at once." in out.context[-1].text
    assert out.context[-1].name == "tools"
    assert [each for edit in out.edits for each in edit.removed] == ["u1", "a1", "a2", "t2"]
    assert ids(fitted(turn, 7, words, question=["u2"], first="u1").context) == ["s", "u2"]


@st.composite
def turns(draw: st.DrawFn) -> list[BaseMessage]:
    """Return a conversation whose last round is under way."""
    text = st.integers(0, 60).map(lambda number: " ".join(["word"] * number))
    messages: list[BaseMessage] = [SystemMessage("be kind", id="s")]
    for i in range(draw(st.integers(0, 4))):
        messages += [HumanMessage(draw(text), id=f"u{i}"), AIMessage(draw(text), id=f"a{i}")]
    messages.append(HumanMessage("why", id="q"))
    for i in range(draw(st.integers(0, 3))):
        calls = [f"c{i}{n}" for n in range(draw(st.integers(1, 2)))]
        messages.append(calling(f"r{i}", *calls, text=draw(text)))
        messages += [ToolMessage(draw(text), tool_call_id=each, id=each) for each in calls]
    return messages


@given(turns(), st.integers(5, 200), st.sampled_from(["u0", None]))
def test_it_always_fits_and_the_question_and_the_instructions_are_there(
    messages: list[BaseMessage], limit: int, first: str | None
) -> None:
    assert words(least(messages, ["q"])) == 5
    out = fitted(messages, limit, words, question=["q"], first=first)
    assert words(out.context) <= limit
    assert [m for m in out.context if m.id in ("s", "q")] == [m for m in messages if m.id in ("s", "q")]
    for message in out.context:
        if isinstance(message, AIMessage):
            assert {call["id"] for call in message.tool_calls} <= set(ids(out.context))
    gone = [each for edit in out.edits for each in edit.removed]
    assert sorted([*gone, *[m.id for m in out.context if m.id in ids(messages)]], key=str) == sorted(
        ids(messages), key=str
    )
    again = fitted(out.context, limit, words, question=["q"], first=first)
    assert (again.context, again.edits) == (out.context, [])


# the agent


def test_a_question_that_does_not_fit_is_refused_in_words_and_costs_nothing_else(
    bank: MemoryBank, scope: Scope, run: Run, speaker: Speaker
) -> None:
    model = ScriptedChatModel([speaker.answer("Noted."), speaker.answer("tea")])
    agent = create_agemem_agent(
        model, bank, scope=scope, protocol=speaker.protocol, context_tokens=1_500, checkpointer=InMemorySaver()
    )
    run(agent, saying("I drink tea.", id="u1"), thread())
    output = run(agent, saying("x" * 20_000, id="u2"), thread())
    assert output["status"] == "over_budget"
    assert "does not fit into my context" in output["messages"][-1].text
    assert "1500 are allowed" in output["messages"][-1].text
    assert len(model.calls) == 1
    assert steps(agent, thread()) == []
    again = run(agent, saying("What do I drink?"), thread())
    assert (again["status"], again["messages"][-1].text) == ("answered", "tea")
    seen = [message.text for message in model.calls[1]]
    assert "I drink tea." in seen
    assert "does not fit into my context" in seen[-2]
    assert "x" * 20_000 not in seen
    assert output["messages"][2].text == "x" * 20_000  # in the chat it stays
    assert [edit.removed for edit in agent.get_state(thread()).values["edits"]] == [("u2",)]


def test_a_budget_smaller_than_the_instructions_is_said_and_no_model_is_asked(
    bank: MemoryBank, scope: Scope, run: Run, speaker: Speaker
) -> None:
    model = ScriptedChatModel([])
    agent = create_agemem_agent(model, bank, scope=scope, protocol=speaker.protocol, context_tokens=20)
    output = run(agent, saying("Hi"))
    assert (output["status"], output["operations"]) == ("over_budget", [])
    assert "give me a larger context_tokens" in output["messages"][-1].text


def test_a_long_result_leaves_the_conversation_in_place(
    bank: MemoryBank, scope: Scope, run: Run, speaker: Speaker
) -> None:
    @tool
    def page() -> str:
        """Read a page."""
        return "begin " + "x" * 18_000

    model = ScriptedChatModel([speaker.answer("Noted."), speaker.calls(("page", {})), speaker.answer("Long.")])
    agent = create_agemem_agent(
        model,
        bank,
        scope=scope,
        protocol=speaker.protocol,
        tools=[page],
        context_tokens=3_000,
        checkpointer=InMemorySaver(),
    )
    run(agent, saying("I drink tea."), thread())
    output = run(agent, saying("Read the page."), thread())
    assert output["status"] == "answered"
    last = model.calls[2]
    assert estimate_context(last) <= 3_000
    assert "I drink tea." in said(last)
    assert "begin x" in last[-1].text
    assert "more characters do not fit here]" in last[-1].text
    assert len("\n".join(said(output["messages"]))) > 18_000
    assert output["budget"].used <= 3_000


def test_the_budget_says_how_full_it_is_and_what_had_to_go(
    bank: MemoryBank, scope: Scope, run: Run, speaker: Speaker
) -> None:
    model = ScriptedChatModel([speaker.answer("ok")] * 8)
    agent = create_agemem_agent(
        model, bank, scope=scope, protocol=speaker.protocol, context_tokens=1_200, checkpointer=InMemorySaver()
    )
    outputs = [run(agent, saying(f"{n} " + "x" * 800), thread()) for n in range(8)]
    budgets = [output["budget"] for output in outputs]
    assert [budget.overflowed for budget in budgets] == [False, *[True] * 7] or budgets[-1].overflowed
    assert budgets[0].dropped == 0
    assert budgets[-1].dropped > 4
    assert budgets[-1].used == estimate_context(context(agent, thread()))
    assert all(estimate_context(call) <= 1_200 for call in model.calls)


def test_a_conversation_goes_on_under_another_limit(bank: MemoryBank, scope: Scope, run: Run, speaker: Speaker) -> None:
    saver = InMemorySaver()
    for limit in (8_000, 1_900):
        model = ScriptedChatModel([speaker.answer("ok")])
        agent = create_agemem_agent(
            model, bank, scope=scope, protocol=speaker.protocol, context_tokens=limit, checkpointer=saver
        )
        output = run(agent, saying("x" * 2_000), thread())
        assert output["budget"].limit == limit
        assert estimate_context(model.calls[0]) <= limit


def test_hosted_models_are_told_that_the_beginning_is_missing_and_ours_are_not(
    bank: MemoryBank, scope: Scope, run: Run
) -> None:
    for make, noted in ((ScriptedChatModel, True), (Ours, False)):
        model = make(lambda messages: "<answer>" + "y" * 100 + "</answer>")
        agent = create_agemem_agent(
            model, bank, scope=scope, protocol="text", context_tokens=1_600, checkpointer=InMemorySaver()
        )
        for number in range(12):
            run(agent, saying("z" * (100 + 97 * number % 400)), thread())
        assert any("Earlier messages" in message.text for call in model.calls for message in call) is noted
        assert all(call[1].type == "human" for call in model.calls) is noted


# 500 turns

LIMIT = 4_096
TURNS = 500
VOCABULARY = ["".join(syllables) for syllables in itertools.product(("ba", "lo", "mi", "ru", "te", "ka"), repeat=3)]


class Chat:
    """A user who says long and short things, a model that does all sorts of things, and what must hold at every call."""

    def __init__(self, protocol: Protocol, seed: int) -> None:
        self.rng = random.Random(seed)
        self.speaker = Speaker(protocol)
        self.question = ""
        self.model = ScriptedChatModel(self.reply)
        self.turn = 0

    def text(self, low: int, high: int) -> str:
        return " ".join(self.rng.choices(VOCABULARY, k=self.rng.randint(low, high)))

    def says(self) -> str:
        self.turn += 1
        long = self.rng.random() < 0.05
        self.question = f"[{self.turn}] {self.text(1_000, 2_000) if long else self.text(5, 60)}?"
        return self.question

    def reply(self, messages: list[BaseMessage]) -> AIMessage:
        assert estimate_context(messages) <= LIMIT
        assert isinstance(messages[0], SystemMessage)
        assert [m.text for m in messages if isinstance(m, HumanMessage) and m.text.startswith(f"[{self.turn}]")] == [
            self.question
        ]
        open_calls = {call["id"] for m in messages if isinstance(m, AIMessage) for call in m.tool_calls}
        assert open_calls == {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}
        if self.rng.random() < 0.7:
            return self.speaker.answer(self.text(5, 40))
        return self.speaker.calls(*self.rng.choices(self.asks(), k=self.rng.randint(1, 2)), think=self.text(2, 10))

    def asks(self) -> list[Asked]:
        fact = self.text(5, 30)
        return [
            (ADD, {"content": fact}),
            (RETRIEVE, {"query": fact, "top_k": self.rng.randint(1, 20)}),
            (SUMMARY, {"span": self.rng.choice(["all", "4", "9"])}),
            (FILTER, {"criteria": self.rng.choice([self.question, fact])}),
            ("page", {"words": self.rng.choice([50, 2_000, 9_000])}),
            ("nothing", {}),
        ]


def page_of(chat: Chat) -> BaseTool:
    @tool
    def page(words: int) -> str:
        """Read a page."""
        return chat.text(words, words)

    return page


def test_five_hundred_turns_with_a_checkpointer_stay_within_the_budget_and_nothing_is_lost(
    bank: MemoryBank, scope: Scope
) -> None:
    chat, tracer = Chat("native", seed=7), Tracer()
    agent = create_agemem_agent(
        chat.model, bank, scope=scope, tools=[page_of(chat)], context_tokens=LIMIT, max_rounds=5,
        summarizer=ExtractiveSummarizer(), checkpointer=InMemorySaver(),
    )  # fmt: skip
    config = thread("long", callbacks=[tracer])
    statuses = {agent.invoke(saying(chat.says()), config, durability="exit")["status"] for _ in range(TURNS)}
    assert statuses <= {"answered", "rounds"}
    state = agent.get_state(config).values
    everything_is_somewhere(chat, tracer, state["messages"], state["edits"])


def test_five_hundred_turns_in_one_growing_list_stay_within_the_budget_and_nothing_is_lost(
    bank: MemoryBank, scope: Scope
) -> None:
    chat, tracer = Chat("text", seed=8), Tracer()
    agent = create_agemem_agent(
        chat.model, bank, scope=scope, protocol="text", tools=[page_of(chat)], context_tokens=LIMIT, max_rounds=5,
        summarizer=ExtractiveSummarizer(),
    )  # fmt: skip
    messages: Any = []
    edits: dict[str, ContextEdit] = {}
    event: Any
    for _ in range(TURNS):
        given: Any = {"messages": [*messages, HumanMessage(chat.says())]}
        for mode, event in agent.stream(given, {"callbacks": [tracer]}, stream_mode=["updates", "values"]):
            if mode == "values":
                messages = event["messages"]
            else:
                edits |= {str(edit): edit for update in event.values() for edit in (update or {}).get("edits", ())}
    everything_is_somewhere(chat, tracer, messages, list(edits.values()))


def everything_is_somewhere(
    chat: Chat, tracer: Tracer, messages: Sequence[BaseMessage], edits: Sequence[ContextEdit]
) -> None:
    """Check that whatever was taken out of the context is in the public messages, in a prompt, or in an edit itself."""
    assert sum(isinstance(message, HumanMessage) and not message.name for message in messages) == TURNS
    assert {edit.kind for edit in edits} == {"budget", "filter", "summary"}
    public = set(ids(messages))
    prompts = {message.text for trace in tracer.traces for g in trace.generations for message in g.messages}
    shown = {message.id: message.text for call in chat.model.calls for message in call}
    summaries = {edit.summary_id for edit in edits}
    removed = {each for edit in edits for each in edit.removed}
    assert len(removed) > TURNS
    for each in removed:
        assert each in public or shown.get(each) in prompts or each in summaries

"""The agent for apps: advised, taught by rewards and by the user's word, over `messages`."""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from uuid import UUID

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

from memweave.agents.cognition import load_machine
from memweave.agents.path_mapper import RuleMapper
from memweave.errors import ConflictError, InputError, RewardError, ScopeError, SettingsError, UnavailableError
from memweave.graph_records import NewQuery, NewStrategy, RolloutOutcome, StrategyKind, path_id
from memweave.graphs.graph_memory import GraphMemoryAgent, create_graph_memory_agent
from memweave.graphs.graph_memory_feedback import arecord_feedback, record_feedback
from memweave.graphs.graph_memory_induction import log_of_record
from memweave.graphs.graph_memory_pairing import paired_rollouts
from memweave.memory_stores import StrategyGraph
from memweave.records import Scope
from memweave.testing.models import ScriptedChatModel
from memweave.tracing.tracer import Tracer
from memweave.trainers.edge_weights import Reinforce
from tests.graphs.agemem_play import Ours
from tests.graphs.graph_memory_play import (
    KNOWN,
    advised,
    answers,
    asked,
    asks,
    guessing,
    lookup,
    rollouts,
    searching,
    tagged,
)
from tests.graphs.memento_play import Run

SEARCH = "When the goal is clear, consider searching before answering."


def agent(script: Any, memory: Any, scope: Scope | None, **more: Any) -> GraphMemoryAgent:
    return create_graph_memory_agent(ScriptedChatModel(script), [lookup(KNOWN)], memory, scope=scope, **more)


def question(country: str, answer: str | None = None, **more: Any) -> Any:
    given = {} if answer is None else {"ground_truth": answer}
    return {"messages": f"What is the capital of {country}?", **given, **more}


def learning(messages: list[BaseMessage]) -> AIMessage:
    """Reply as an agent that guesses until it is advised to search."""
    return (
        searching(messages)
        if messages[-1].type == "tool" or SEARCH[-28:-1] in advised(messages)
        else guessing(messages)
    )


def teach(memory: StrategyGraph, scope: Scope, *texts: str) -> list[UUID]:
    """Put strategies into a graph, each on a path of its own of one query; return their ids."""
    ids = []
    outcomes = [RolloutOutcome(states=("Start", text[:40], "End"), reward=1.0) for text in texts]
    memory.add(NewQuery(text="What is the capital of Kenya?", query_id="kenya"), outcomes, scope=scope)
    for text, outcome in zip(texts, outcomes, strict=True):
        new = NewStrategy(summary=text, kind=StrategyKind.CONTRAST, score=60)
        path = path_id(memory.settings.machine, outcome.states)
        ids.append(memory.write(new, [path], scope=scope, reason="a test").strategy.id)
    return ids


# answers with advice


def test_the_agent_is_advised_by_the_top_k_and_says_which(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    ids = teach(strategies, scope, "Consider one.", "Consider two.", "Consider three.", "Consider four.")
    model = ScriptedChatModel(["Accra"])
    graph = create_graph_memory_agent(model, [lookup(KNOWN)], strategies, scope=scope)
    out = run(graph, question("Ghana"))
    assert (out["answer"], out["status"], out["reward"], out["learned"]) == ("Accra", "answered", None, None)
    assert [message.text for message in out["messages"]] == ["What is the capital of Ghana?", "Accra"]
    shown = out["strategies"]
    assert len(shown) == 3
    assert {each.id for each in shown} <= set(ids)
    assert all(each.relevance > 0 for each in shown)
    assert sum(each.probability for each in shown) == pytest.approx(0.75)
    assert advised(model.calls[0]).count("\n- Consider") == 3
    assert (out["record"].k, out["record"].arm) == (3, "app")


@pytest.mark.parametrize("k", [0, 1])
def test_k_may_be_any_number_and_0_is_no_advice(run: Run, strategies: StrategyGraph, scope: Scope, k: int) -> None:
    teach(strategies, scope, "Consider one.", "Consider two.")
    model = ScriptedChatModel(["Accra"])
    out = run(create_graph_memory_agent(model, [], strategies, scope=scope, k=k), question("Ghana"))
    assert (len(out["strategies"]), bool(advised(model.calls[0]))) == (k, bool(k))


def test_without_a_strategy_there_is_no_message_of_advice(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    model = ScriptedChatModel(["Accra"])
    out = run(create_graph_memory_agent(model, [], strategies, scope=scope), question("Ghana"))
    assert [message.name for message in model.calls[0]] == [None, None]
    assert out["strategies"] == []


def test_strategies_that_do_not_fit_are_left_out_by_name(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    long, short = teach(strategies, scope, f"Consider {'very ' * 100}much.", "Consider two.")
    graph = agent(["Accra"], strategies, scope, advice_chars=200, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "t"}}
    out = run(graph, question("Ghana"), thread)
    assert [each.id for each in out["strategies"]] == [short]
    (left_out,) = graph.get_state(thread).values["left_out"]
    assert left_out.startswith(str(long))


def test_a_question_of_the_graph_is_not_advised_by_its_own_run(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    teach(strategies, scope, "Consider one.")
    out = run(agent(["Nairobi"], strategies, scope), question("Kenya", query_id="kenya"))
    assert out["strategies"] == []


@pytest.mark.parametrize("rank", ["uniform", "similarity", "random", "confidence"])
def test_the_controls_choose_too(run: Run, strategies: StrategyGraph, scope: Scope, rank: Any) -> None:
    teach(strategies, scope, "Consider one.", "Consider two.")
    graph = agent(lambda messages: AIMessage("Accra"), strategies, scope, rank=rank, k=1)
    first, again = (run(graph, question("Ghana"))["strategies"] for _ in range(2))
    assert len(first) == 1
    assert first == again


def test_the_trace_names_the_strategies_that_were_shown(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    (only,) = teach(strategies, scope, "Consider one.")
    tracer = Tracer()
    run(agent(["Accra"], strategies, scope), question("Ghana"), {"callbacks": [tracer]})
    assert tracer.last is not None
    assert [ref.id for ref in tracer.last.generations[0].memories_read] == [only]


# learns


def test_a_right_and_a_wrong_run_of_one_question_become_a_strategy_that_helps_with_others(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    script: list[Any] = ["Bergen", asks("capital of Norway"), "Oslo"]
    graph = agent(script, strategies, scope)
    first = run(graph, question("Norway", "Oslo"))
    assert (first["reward"], first["learned"].taught.decision) == (0.0, "skip")
    second = run(graph, question("Norway", "Oslo"))
    assert (second["reward"], second["learned"].taught.decision) == (1.0, "create")
    assert second["learned"].taught.case == "contrast"
    third = run(agent(learning, strategies, scope), question("Peru", "Lima"))
    assert [each.summary for each in third["strategies"]] == [SEARCH]
    assert third["answer"] == "Lima"
    assert strategies.check(scope=scope) == []


def test_a_native_call_with_words_beside_it_is_the_call_that_was_made(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    paths = []
    for country, beside in (("Norway", ""), ("Peru", "I shall look that up.")):
        city = KNOWN[f"capital of {country}"].split(" is ")[0]
        out = run(agent([asks(f"capital of {country}", text=beside), city], strategies, scope), question(country, city))
        log = log_of_record(out["record"], 1.0)
        assert [call.name for each in log.rounds for call in each.calls] == ["search"]
        paths.append(RuleMapper(load_machine("cognitive")).map(log))
    assert paths[0].states == paths[1].states


def test_a_wrong_answer_borrows_the_right_one_of_a_similar_question(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    graph = agent([asks("capital of Norway"), "Oslo", "Bergen"], strategies, scope)
    run(graph, question("Norway", "Oslo"))
    out = run(graph, question("Peru", "Lima"))
    assert (out["learned"].taught.case, out["learned"].taught.decision) == ("speculate", "create")
    (strategy,) = strategies.strategies(scope=scope)
    assert (strategy.summary, strategy.kind) == (SEARCH, StrategyKind.SPECULATIVE)


def test_what_nobody_verified_is_not_learned_and_neither_is_anything_without_retain(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    assert run(agent(["Oslo"], strategies, scope), question("Norway"))["learned"] is None
    assert run(agent(["Oslo"], strategies, scope, retain=False), question("Norway", "Oslo"))["reward"] == 1.0
    assert strategies.queries(scope=scope) == []


def test_a_run_that_fits_no_path_is_named(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    out = run(agent(lambda messages: asks("x"), strategies, scope, max_calls=1), question("Norway", "Oslo"))
    assert out["messages"][-1].text.startswith("I stopped: the tools led to no answer")
    assert (out["reward"], [each.kind for each in out["learned"].failures]) == (0.0, ["no_path"])
    assert strategies.queries(scope=scope) == []


def test_paired_rollouts_move_the_weights_where_they_are_allowed(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    teach(strategies, scope, SEARCH, "Consider guessing at once.")
    graph = agent(learning, strategies, scope, learner=Reinforce(0.2), pairs=1)
    updates = [run(graph, question(country, city))["learned"].updates for country, city in CITIES]
    gaps = [row.update.gap for rows in updates for row in rows]
    assert len(gaps) == len(CITIES)
    assert set(gaps) <= {0.0, 1.0}
    assert [row.gap for row in strategies.updates(scope=scope)] == gaps


CITIES = [("Norway", "Oslo"), ("Peru", "Lima"), ("Cuba", "Havana")]


def test_a_learner_and_pairs_come_together(strategies: StrategyGraph) -> None:
    for more in ({"learner": Reinforce()}, {"pairs": 1}):
        with pytest.raises(SettingsError, match="give both a learner and pairs"):
            agent([], strategies, None, **more)


# the user's word


@pytest.mark.parametrize("form", ["output", "record", "checkpoint", "trace"])
def test_feedback_teaches_a_finished_run_once(
    strategies: StrategyGraph, scope: Scope, feedback: Any, form: str
) -> None:
    tracer, saver = Tracer(), InMemorySaver()
    graph = agent([asks("capital of Norway"), "Oslo"], strategies, scope, checkpointer=saver)
    thread: Any = {"configurable": {"thread_id": "t"}, "callbacks": [tracer]}
    out = graph.invoke(question("Norway"), thread)
    finished: Any = {
        "output": out,
        "record": out["record"],
        "checkpoint": graph.get_state(thread).values,
        "trace": tracer.last,
    }[form]
    learned = feedback(strategies, finished, 1.0, scope=scope)
    assert learned.outcome.success
    assert "ToolExecution" in learned.outcome.states
    (node,) = strategies.queries(scope=scope)
    assert (node.text, node.query_id) == ("What is the capital of Norway?", learned.query_id)
    with pytest.raises(ConflictError, match="in the graph already"):
        feedback(strategies, finished, 1.0, scope=scope)


@pytest.fixture(params=["sync", "async"])
def feedback(request: pytest.FixtureRequest) -> Any:
    """Give feedback in both ways."""
    if request.param == "sync":
        return record_feedback
    return lambda *args, **given: asyncio.run(arecord_feedback(*args, **given))


def test_feedback_of_two_runs_of_one_question_is_contrasted(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    graph = agent(["Bergen", asks("capital of Norway"), "Oslo"], strategies, scope)
    bad, good = (run(graph, question("Norway")) for _ in range(2))
    assert record_feedback(strategies, good, 1.0, scope=scope).taught.decision == "none"  # type: ignore[union-attr]
    learned = record_feedback(strategies, bad, 0.0, scope=scope)
    assert learned.taught is not None
    assert (learned.taught.case, learned.taught.decision) == ("contrast", "create")


def test_feedback_alone_leaves_the_weights_and_a_pairing_moves_them(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    teach(strategies, scope, SEARCH, "Consider guessing at once.")
    graph = agent(learning, strategies, scope)
    before = [edge.weight for edge in strategies.edges(scope=scope)]
    record_feedback(strategies, run(graph, question("Norway")), 1.0, scope=scope)
    assert [edge.weight for edge in strategies.edges(scope=scope)][: len(before)] == before
    assert strategies.updates(scope=scope) == []

    def worth(record: Any) -> float:
        return float(record.guidance is not None)

    pairing = paired_rollouts(rollouts(guessing, evaluate=worth), Reinforce(0.2))
    learned = record_feedback(strategies, run(graph, question("Peru")), 1.0, scope=scope, pairing=pairing)
    (row,) = learned.updates
    assert (row.update.gap, row.update.edges > 0) == (1.0, True)


def test_a_pairing_that_cannot_tell_what_an_answer_is_worth_is_named(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    teach(strategies, scope, SEARCH)
    pairing = paired_rollouts(rollouts(guessing), Reinforce())
    out = run(agent(["Oslo"], strategies, scope), question("Norway"))
    learned = record_feedback(strategies, out, 1.0, scope=scope, pairing=pairing)
    assert (learned.updates, [each.kind for each in learned.failures]) == ((), ["no_reward", "no_reward"])
    assert strategies.updates(scope=scope) == []


@pytest.mark.parametrize("reward", [1.5, -0.1, float("nan"), float("inf"), "1", None])
def test_a_reward_outside_its_range_is_refused_and_nothing_is_written(
    strategies: StrategyGraph, scope: Scope, feedback: Any, reward: Any
) -> None:
    out = agent(["Oslo"], strategies, scope).invoke(question("Norway"))
    with pytest.raises(RewardError, match="from 0 to 1"):
        feedback(strategies, out, reward, scope=scope)
    assert strategies.queries(scope=scope) == []


@pytest.mark.parametrize("finished", [{}, {"record": None}, {"messages": []}])
def test_what_is_no_finished_run_is_refused(strategies: StrategyGraph, scope: Scope, finished: Any) -> None:
    with pytest.raises(InputError, match="no finished run"):
        record_feedback(strategies, finished, 1.0, scope=scope)


# over messages


def test_a_chat_goes_on_and_every_question_begins_anew(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    model = ScriptedChatModel([asks("capital of Norway"), "Oslo", "Lima"])
    graph = create_graph_memory_agent(model, [lookup(KNOWN)], strategies, scope=scope, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "t"}}
    run(graph, question("Norway", "Oslo", query_id="q1"), thread)
    out = run(graph, {"messages": "And of Peru?"}, thread)
    assert [message.text for message in out["messages"]] == [
        "What is the capital of Norway?",
        "Oslo",
        "And of Peru?",
        "Lima",
    ]
    assert [message.text for message in model.calls[2][1:]] == [
        "What is the capital of Norway?",
        "Oslo",
        "And of Peru?",
    ]
    assert (out["reward"], out["learned"], out["record"].calls, out["record"].about.task_id) == (None, None, (), None)


def test_it_is_a_node_of_somebody_elses_graph(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    inner = agent([asks("capital of Norway"), "Oslo"], strategies, scope)
    builder = StateGraph(MessagesState)
    builder.add_node("agent", inner)
    builder.add_edge(START, "agent")
    builder.add_edge("agent", END)
    out = run(builder.compile(), {"messages": [HumanMessage("What is the capital of Norway?")]})
    assert [message.text for message in out["messages"]] == ["What is the capital of Norway?", "Oslo"]


def test_advice_calls_and_lessons_are_streamed_and_so_are_tokens(strategies: StrategyGraph, scope: Scope) -> None:
    teach(strategies, scope, "Consider one.")
    graph = agent([asks("capital of Norway"), "Oslo"], strategies, scope)
    seen: list[Any] = list(graph.stream(question("Norway", "Oslo"), stream_mode=["custom", "messages"]))
    assert [part["type"] for mode, part in seen if mode == "custom"] == ["advice", "call", "strategies"]
    messages = [part[0] for mode, part in seen if mode == "messages"]
    assert [(message.type, message.text) for message in messages] == [("ai", ""), ("ai", "Oslo")]


def test_tags_of_the_text_protocol_are_not_streamed(strategies: StrategyGraph, scope: Scope) -> None:
    teach(strategies, scope, "Consider one.")
    model = Ours([tagged("capital of Norway"), answers("Oslo")])
    graph = create_graph_memory_agent(model, [lookup(KNOWN)], strategies, scope=scope)
    chat: Any = {"messages": [HumanMessage("Hello"), AIMessage("Hi"), HumanMessage("What is the capital of Norway?")]}
    seen: list[Any] = [message for message, _ in graph.stream(chat, stream_mode="messages")]
    assert [(message.type, message.text) for message in seen] == [("ai", "Oslo")]


def test_whose_strategies_the_run_says(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    teach(strategies, scope, "Consider one.")
    graph = agent(lambda messages: AIMessage("Accra"), strategies, None)
    with pytest.raises(ScopeError):
        run(graph, question("Ghana"))
    mine = run(graph, question("Ghana"), context={"user": scope.user, "tenant": scope.tenant})
    others = run(graph, question("Ghana"), context={"user": "boris", "tenant": scope.tenant})
    assert (len(mine["strategies"]), len(others["strategies"])) == (1, 0)


@pytest.mark.parametrize("messages", [[], [AIMessage("Hi")], [HumanMessage("  ")]])
def test_a_chat_without_a_question_is_refused(
    run: Run, strategies: StrategyGraph, scope: Scope, messages: list[BaseMessage]
) -> None:
    with pytest.raises(InputError):
        run(agent([], strategies, scope), {"messages": messages})


@pytest.mark.parametrize("wrong", [{"k": -1}, {"rank": "best"}, {"max_calls": 0}, {"advice_chars": 0}, {"window": -1}])
def test_settings_that_cannot_be_are_refused(strategies: StrategyGraph, wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        agent([], strategies, None, **wrong)
    with pytest.raises(SettingsError, match="needs a graph"):
        create_graph_memory_agent(ScriptedChatModel([]))


def test_a_run_that_broke_off_goes_on_and_learns_once(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    script: list[Any] = [asks("capital of Norway"), ConnectionError("refused"), "Oslo"]
    graph = agent(script, strategies, scope, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "t"}}
    with pytest.raises(UnavailableError):
        run(graph, question("Norway", "Oslo"), thread)
    assert strategies.queries(scope=scope) == []
    out = run(graph, None, thread)
    assert (out["answer"], out["reward"], len(out["record"].calls)) == ("Oslo", 1.0, 1)
    assert len(strategies.queries(scope=scope)) == 1


@pytest.mark.anyio
async def test_the_loop_is_free_while_the_graph_is_opened(strategies: StrategyGraph, scope: Scope) -> None:
    release = threading.Event()

    def opened() -> StrategyGraph:
        release.wait(20)
        return strategies

    going = asyncio.create_task(agent(["Accra"], opened, scope).ainvoke(question("Ghana")))
    for _ in range(20):
        await asyncio.sleep(0)
    release.set()
    assert (await going)["answer"] == "Accra"


def test_the_right_answer_and_the_id_are_about_one_question_alone(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    model = ScriptedChatModel(lambda messages: AIMessage(asked(messages)))
    graph = create_graph_memory_agent(model, [], strategies, scope=scope, k=0, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "t"}}
    assert run(graph, question("Norway", "Oslo", query_id="q"), thread)["reward"] == 0.0
    assert run(graph, question("Norway"), thread)["reward"] is None
    assert "Oslo" not in "".join(model.prompts)

"""What a run teaches, and how often: told twice, asked again, broken off, with a server away, in the middle of a chat."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from langchain_core.messages import AIMessage, BaseMessage
from langgraph.checkpoint.memory import InMemorySaver

from memweave.agents.strategist import Induced, InductionRequest, RuleStrategist
from memweave.errors import ConflictError, InputError, UnavailableError
from memweave.graph_records import RolloutOutcome
from memweave.graphs.graph_memory import GraphMemoryAgent, create_graph_memory_agent
from memweave.graphs.graph_memory_build import create_build_graph
from memweave.graphs.graph_memory_feedback import arecord_feedback, record_feedback
from memweave.graphs.graph_memory_pairing import Pair, Trial, paired_rollouts
from memweave.memory_stores import StrategyGraph
from memweave.records import Scope, new_id
from memweave.testing.models import ScriptedChatModel
from memweave.trainers.edge_weights import Reinforce
from tests.graphs.graph_memory_play import CHECK, KNOWN, Wavering, asked, capital, guessing, lookup, rollouts, searching
from tests.graphs.memento_play import Run


def agent(script: Any, memory: StrategyGraph, scope: Scope, **more: Any) -> GraphMemoryAgent:
    return create_graph_memory_agent(ScriptedChatModel(script), [lookup(KNOWN)], memory, scope=scope, **more)


def question(country: str, **more: Any) -> Any:
    return {"messages": f"What is the capital of {country}?", **more}


def taught(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    """Put a right run of one question into the graph, from which wrong ones of others borrow."""
    run(agent(searching, strategies, scope), question("Norway", ground_truth="Oslo", query_id="norway"))


class Away(RuleStrategist):
    """A strategist that cannot be reached."""

    def induce(self, request: InductionRequest) -> Induced:
        """Fail."""
        raise UnavailableError("503, try later")

    async def ainduce(self, request: InductionRequest) -> Induced:
        """Fail."""
        raise UnavailableError("503, try later")


def test_a_query_that_runs_again_teaches_nothing_more(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    taught(run, strategies, scope)
    graph = agent(guessing, strategies, scope)
    peru = question("Peru", ground_truth="Lima", query_id="peru")
    first = run(graph, peru)["learned"]
    assert first.taught.decision == "create"
    (strategy,) = strategies.strategies(scope=scope)
    again = run(graph, peru)["learned"]
    assert (again.outcome, again.taught, [each.kind for each in again.failures]) == (None, None, ["duplicate"])
    other = run(graph, question("Chad", ground_truth="Lima", query_id="peru"))
    assert other["answer"] == "Bergen"
    assert "with another text" in other["learned"].failures[0].reason
    assert strategies.strategies(scope=scope) == [strategy]
    assert len(strategies.queries(scope=scope)) == 2


@pytest.mark.anyio
async def test_feedback_that_is_given_twice_at_once_counts_once(strategies: StrategyGraph, scope: Scope) -> None:
    graph = agent(["Bergen"], strategies, scope)
    out = await graph.ainvoke(question("Peru"))
    calls = [arecord_feedback(strategies, out, reward, scope=scope) for reward in (0.0, 0.0, 1.0)]
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(type(each).__name__ for each in found) == ["ConflictError", "ConflictError", "Learned"]
    (node,) = strategies.queries(scope=scope)
    assert len(node.outcomes) == 1


def test_an_outage_of_the_strategist_costs_no_lesson(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    taught(run, strategies, scope)
    out = run(agent(["Bergen"], strategies, scope), question("Peru"))
    lost = record_feedback(strategies, out, 0.0, scope=scope, strategist=Away())
    assert (lost.outcome, [each.kind for each in lost.failures]) == (None, ["unavailable"])
    assert len(strategies.queries(scope=scope)) == 1
    learned = record_feedback(strategies, out, 0.0, scope=scope)
    assert learned.taught is not None
    assert (learned.taught.decision, learned.outcome is not None) == ("create", True)
    with pytest.raises(ConflictError, match="learned from once"):
        record_feedback(strategies, out, 0.0, scope=scope)


def test_what_could_not_be_built_in_an_outage_is_built_later(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    for strategist, decision in ((Away(), "skip"), (RuleStrategist(), "create")):
        graph = create_build_graph(rollouts(Wavering()), strategies, scope=scope, samples=2, strategist=strategist)
        out = run(graph, {"queries": [capital("Peru").model_dump()]})
        assert [row.decision for row in out["rows"]] == [decision]
        assert out["known"] == 0
    assert len(strategies.strategies(scope=scope)) == 1


@pytest.mark.parametrize(
    "answer",
    ['[{"name": "Oslo", "kind": "city"}]', "Put it in an <answer> tag.", "It is <tool_call> that begins a call."],
)
def test_an_answer_that_looks_like_something_else_is_an_answer(
    run: Run, strategies: StrategyGraph, scope: Scope, answer: str
) -> None:
    out = run(agent([answer], strategies, scope, protocol="native"), question("Norway"))
    assert (out["status"], out["answer"]) == ("answered", answer)
    learned = record_feedback(strategies, out, 1.0, scope=scope)
    assert learned.failures == ()
    assert learned.outcome is not None
    assert learned.outcome.success


def test_pairs_see_the_chat_that_a_question_goes_on_with(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    taught(run, strategies, scope)
    run(agent(guessing, strategies, scope), question("Peru", ground_truth="Lima"))
    seen: list[list[str]] = []

    def model(messages: list[BaseMessage]) -> AIMessage:
        seen.append(
            [message.text for message in messages if message.type in ("human", "ai") and message.name != "advice"]
        )
        return AIMessage("Oslo")

    graph = agent(model, strategies, scope, learner=Reinforce(), pairs=1, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "t"}}
    run(graph, question("Cuba"), thread)
    seen.clear()
    run(graph, {"messages": "And of its northern neighbour?", "ground_truth": "Oslo"}, thread)
    chat = ["What is the capital of Cuba?", "Oslo", "And of its northern neighbour?"]
    assert seen == [chat] * 3  # the agent, and both sides of the pair
    seen.clear()
    run(graph, {**question("Cuba"), "ground_truth": "Oslo"}, thread)  # in the same words as at the beginning
    assert seen == [[*chat, "Oslo", "What is the capital of Cuba?"]] * 3


def test_a_step_of_a_run_that_broke_off_is_taken_once(
    run: Run, strategies: StrategyGraph, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught(run, strategies, scope)
    run(agent(guessing, strategies, scope), question("Peru", ground_truth="Lima"))
    graph = agent(guessing, strategies, scope, learner=Reinforce(), pairs=1, checkpointer=InMemorySaver())
    apply, died = StrategyGraph.apply, []

    def dying(self: StrategyGraph, *args: Any, **given: Any) -> Any:
        update = apply(self, *args, **given)
        if not died:
            died.append(1)
            raise RuntimeError("the process dies")
        return update

    monkeypatch.setattr(StrategyGraph, "apply", dying)
    thread: Any = {"configurable": {"thread_id": "t"}}
    with pytest.raises(RuntimeError, match="dies"):
        run(graph, question("Chad", ground_truth="Ndjamena"), thread)
    (update,) = strategies.updates(scope=scope)
    learned = run(graph, None, thread)["learned"]
    assert [row.update for row in learned.updates] == [update]
    assert strategies.updates(scope=scope) == [update]


def test_the_answer_stands_when_its_pair_cannot_be_made(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    taught(run, strategies, scope)
    run(agent(guessing, strategies, scope), question("Peru", ground_truth="Lima"))
    calls = []

    def model(messages: list[BaseMessage]) -> AIMessage:
        calls.append(asked(messages))
        if len(calls) > 1:
            raise ConnectionError("refused")
        return AIMessage("Bergen")

    graph = agent(model, strategies, scope, learner=Reinforce(), pairs=1)
    out = run(graph, question("Chad", ground_truth="Ndjamena"))
    assert out["answer"] == "Bergen"
    assert out["learned"].outcome is not None
    assert [each.kind for each in out["learned"].failures] == ["unavailable"]


def test_a_lesson_that_was_undone_can_be_learned_again(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    graph = create_build_graph(rollouts(Wavering()), strategies, scope=scope, samples=2)
    queries = {"queries": [capital("Peru").model_dump()]}
    (row,) = run(graph, queries)["rows"]
    (change,) = row.changes
    strategies.undo(change.op_id, scope=scope)
    assert strategies.strategies(scope=scope) == []
    (node,) = strategies.queries(scope=scope)
    (added,) = [op for op in strategies._queries.log(scope=scope) if op.memory_id == node.id]
    strategies.undo(added.id, scope=scope)
    assert [row.decision for row in run(graph, queries)["rows"]] == ["create"]
    assert len(strategies.strategies(scope=scope)) == 1


def test_queries_with_long_ids_do_not_pass_for_each_other(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    names = ["q" * 253 + end for end in "ab"]
    tasks = [
        capital(country, query_id=name).model_dump() for country, name in zip(("Peru", "Chad"), names, strict=True)
    ]
    rows = run(create_build_graph(rollouts(Wavering()), strategies, scope=scope, samples=2), {"queries": tasks})["rows"]
    assert not [row for row in rows if row.reason.startswith("written before")]
    (strategy,) = strategies.strategies(scope=scope)
    assert strategy.evidence == 2


def test_what_is_no_run_at_all_is_refused_by_name(strategies: StrategyGraph, scope: Scope) -> None:
    wrongs: list[Any] = [None, "run", {"record": None}]
    for wrong in wrongs:
        with pytest.raises(InputError, match="no finished run"):
            record_feedback(strategies, wrong, 1.0, scope=scope)


def test_rewards_of_numpy_are_rewards(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    reward: Any = np.float32(1.0)
    out = run(agent(["Oslo"], strategies, scope), question("Norway"))
    learned = record_feedback(strategies, out, reward, scope=scope)
    assert isinstance(learned.outcome, RolloutOutcome)


def test_a_step_is_found_again_however_many_others_were_taken_since(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    run(
        create_build_graph(rollouts(Wavering()), strategies, scope=scope, samples=2),
        {"queries": [capital("Peru").model_dump()]},
    )
    pairing, learner, own = paired_rollouts(rollouts(guessing), Reinforce()), Reinforce(0.01), str(new_id())
    taken = []
    for trace in (own, *(str(new_id()) for _ in range(70))):
        active = strategies.activate(capital("Chad").text, scope=scope)
        taken.append(strategies.apply(learner.step(active, 0, 1.0, 0.0, trace_with=trace), scope=scope))
    trial = Trial(task=capital("Chad"), guidance=CHECK, activated=1)
    pair = Pair(trial=trial, reward_with=1.0, reward_without=0.0, trace_with=own)
    assert pairing.taken(strategies, [pair], scope=scope)[own] == taken[0]

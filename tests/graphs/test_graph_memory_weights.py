"""Machine B: strategies are tried out, gaps move the weights, and nothing is counted twice."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.messages import AIMessage, BaseMessage
from langgraph.checkpoint.memory import InMemorySaver

from memweave.errors import InputError, RewardError, SettingsError, UnavailableError
from memweave.graph_records import NewQuery, NewStrategy, Principle, RolloutOutcome, StrategyKind, path_id
from memweave.graphs.graph_memory_pairing import Pairing, paired_rollouts
from memweave.graphs.graph_memory_play import QueryTask
from memweave.graphs.graph_memory_weights import create_weights_graph
from memweave.memory_stores import StrategyGraph
from memweave.records import Scope
from memweave.serving.seeding import call_seed
from memweave.testing.models import ScriptedChatModel
from memweave.tracing.store import TraceStore
from memweave.trainers.edge_weights import Reinforce
from tests.graphs.graph_memory_play import advised, capital, guessing, rollouts, searching
from tests.graphs.memento_play import Run

SEARCHED = ("Start", "ToolExecution", "CorrectAnswer", "End")
GUESSED = ("Start", "WrongAnswer", "End")
ADVICE = {SEARCHED: "Consider searching first.", GUESSED: "Consider guessing at once."}


@pytest.fixture
def two(strategies: StrategyGraph, scope: Scope) -> StrategyGraph:
    """Return a graph in which every capital leads to two strategies, on paths of their own; which one helps is not known to it."""
    fill(strategies, scope)
    return strategies


def fill(graph: StrategyGraph, scope: Scope) -> None:
    for country in ("Norway", "Peru"):
        task = capital(country)
        outcomes = [RolloutOutcome(states=SEARCHED, reward=1.0), RolloutOutcome(states=GUESSED, reward=0.0)]
        graph.add(NewQuery(text=task.text, query_id=task.query_id), outcomes, scope=scope)
    for states, text in ADVICE.items():
        new = NewStrategy(
            summary=text, principles=(Principle(text=text, score=60),), kind=StrategyKind.CONTRAST, score=60
        )
        graph.write(new, [path_id(graph.settings.machine, states)], scope=scope, reason="a test")


def heeding(messages: list[BaseMessage]) -> AIMessage:
    """Reply as a policy that guesses, unless it is advised to search."""
    return searching(messages) if "searching" in advised(messages) else guessing(messages)


def pairing(script: Any = heeding, **more: Any) -> Pairing:
    return paired_rollouts(rollouts(script), more.pop("learner", Reinforce(0.2)), **more)


def trained(run: Run, graph: Any, *tasks: QueryTask, **more: Any) -> Any:
    return run(graph, {"queries": [task.model_dump(mode="json") for task in tasks], **more})


def probability(graph: StrategyGraph, scope: Scope, text: str) -> float:
    activation = graph.activate(capital("Chad").text, scope=scope)
    return next(
        float(p) for s, p in zip(activation.strategies, activation.probability, strict=True) if s.summary == text
    )


def test_a_strategy_that_helps_becomes_likelier_and_the_step_is_logged(
    run: Run, two: StrategyGraph, scope: Scope
) -> None:
    assert probability(two, scope, ADVICE[SEARCHED]) == pytest.approx(0.5)
    graph = create_weights_graph(pairing(), two, scope=scope, epochs=4)
    out = trained(run, graph, *map(capital, ("Chad", "Cuba", "Oman")))
    assert probability(two, scope, ADVICE[SEARCHED]) > 0.6
    assert (len(out["rows"]), out["rollouts"], out["skipped"], out["failures"]) == (12, 24, 0, [])
    assert out["stopped"] == "done"
    summaries = {each.id: each.summary for each in two.strategies(scope=scope)}
    for row in out["rows"]:
        assert row.update.gap == (1.0 if "searching" in summaries[row.update.strategy_id] else 0.0)
        assert (row.activated, row.update.edges > 0) == (2, row.update.gap != 0)
        assert 0 < row.update.probability < 1
        assert row.relevance > 0
        assert row.update.trace_with != row.update.trace_without
    assert {row.epoch for row in out["rows"]} == {0, 1, 2, 3}
    assert len(two.updates(scope=scope)) == 12
    assert two.check(scope=scope) == []


def test_a_gap_of_zero_leaves_the_weights_alone(run: Run, two: StrategyGraph, scope: Scope) -> None:
    before = two.edges(scope=scope)
    out = trained(run, create_weights_graph(pairing(guessing), two, scope=scope), capital("Chad"), capital("Cuba"))
    assert [row.update.gap for row in out["rows"]] == [0.0, 0.0]
    assert [edge.weight for edge in two.edges(scope=scope)] == [edge.weight for edge in before]


def test_a_query_that_activates_nothing_is_skipped(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    out = trained(run, create_weights_graph(pairing(), strategies, scope=scope), capital("Chad"), capital("Cuba"))
    assert (out["skipped"], out["rows"], out["rollouts"], out["stopped"]) == (2, [], 0, "done")


def test_a_query_of_the_graph_is_not_its_own_neighbour(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    task = capital("Norway")
    strategies.add(
        NewQuery(text=task.text, query_id=task.query_id), [RolloutOutcome(states=SEARCHED, reward=1.0)], scope=scope
    )
    new = NewStrategy(summary="Consider searching first.", kind=StrategyKind.CONTRAST, score=60)
    strategies.write(new, [path_id("cognitive", SEARCHED)], scope=scope, reason="a test")
    out = trained(run, create_weights_graph(pairing(), strategies, scope=scope), task)
    assert (out["skipped"], out["rows"]) == (1, [])


def test_both_sides_have_the_same_random_numbers_and_one_strategy_apart(
    run: Run, two: StrategyGraph, scope: Scope
) -> None:
    seeds: dict[str, list[int]] = {"with": [], "without": []}
    shown: list[int] = []

    class Seeing(ScriptedChatModel):
        def __init__(self, script: Any) -> None:
            super().__init__(script)

        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
            arm = "with" if advised(messages) else "without"
            shown.append(advised(messages).count("\n- "))
            seeds[arm].append(call_seed(3, run_manager.metadata, " ".join(m.text for m in messages)))
            return super()._generate(messages, stop, run_manager, **kwargs)

    from memweave.graphs.graph_memory_rollout import create_rollout_graph

    own = paired_rollouts(create_rollout_graph(Seeing(guessing)), Reinforce(), samples=2)
    trained(run, create_weights_graph(own, two, scope=scope), capital("Chad"))
    assert sorted(seeds["with"]) == sorted(seeds["without"])
    assert len(set(seeds["with"])) == 2  # pairs differ from each other
    assert sorted(shown) == [0, 0, 1, 1]


def test_a_gap_is_the_mean_of_its_pairs(run: Run, two: StrategyGraph, scope: Scope) -> None:
    rewards = iter([1.0, 0.5])
    lock = threading.Lock()

    def worth(record: Any) -> float:
        if record.guidance is None:
            return 0.25
        with lock:
            return next(rewards)

    own = paired_rollouts(rollouts(guessing, evaluate=worth), Reinforce(), samples=2, parallel=1)
    (row,) = trained(run, create_weights_graph(own, two, scope=scope), capital("Chad"))["rows"]
    assert (row.update.reward_with, row.update.reward_without, row.update.gap) == (0.75, 0.25, 0.5)


def test_draws_depend_on_the_seed_alone(run: Run, two: StrategyGraph, scope: Scope) -> None:
    tasks = list(map(capital, ("Chad", "Cuba", "Oman", "Togo", "Mali", "Fiji")))

    def drawn(seed: int) -> list[Any]:
        graph = create_weights_graph(pairing(guessing, seed=seed), two, scope=scope)
        return [(row.update.query_id, row.update.strategy_id) for row in trained(run, graph, *tasks)["rows"]]

    first = drawn(1)
    assert first == drawn(1)
    assert first != drawn(2)
    assert len({strategy for _, strategy in first}) == 2


def test_a_batch_is_rolled_out_at_once_and_its_steps_are_all_taken(run: Run, two: StrategyGraph, scope: Scope) -> None:
    graph = create_weights_graph(pairing(), two, scope=scope, batch=4)
    out = trained(run, graph, *map(capital, ("Chad", "Cuba", "Oman", "Togo", "Mali", "Fiji")))
    assert (len(out["rows"]), out["rollouts"], len(two.updates(scope=scope))) == (6, 12, 6)


# its end


def test_no_more_rollouts_are_made_than_allowed(run: Run, two: StrategyGraph, scope: Scope) -> None:
    graph = create_weights_graph(pairing(), two, scope=scope, most_rollouts=5, batch=4, epochs=3)
    out = trained(run, graph, *map(capital, ("Chad", "Cuba", "Oman")))
    assert (out["rollouts"], len(out["rows"]), out["stopped"]) == (4, 2, "budget")


def test_held_out_gaps_are_measured_without_learning_and_a_plateau_ends_it(
    run: Run, two: StrategyGraph, scope: Scope
) -> None:
    graph = create_weights_graph(pairing(guessing), two, scope=scope, epochs=9, patience=2)
    out = trained(run, graph, capital("Chad"), held_out=[capital("Cuba").model_dump(mode="json")])
    assert (out["held_out_gaps"], out["stopped"]) == ([0.0, 0.0, 0.0], "plateau")
    assert {update.query_id for update in two.updates(scope=scope)} == {"chad"}
    assert out["rollouts"] == 12


def test_what_is_held_out_is_not_trained_on(run: Run, two: StrategyGraph, scope: Scope) -> None:
    graph = create_weights_graph(pairing(), two, scope=scope)
    with pytest.raises(InputError, match="'chad' is to be trained on and held out"):
        trained(run, graph, capital("Chad"), held_out=[capital("Chad").model_dump(mode="json")])


# what goes wrong


def test_half_a_pair_says_nothing(run: Run, two: StrategyGraph, scope: Scope) -> None:
    def reply(messages: list[BaseMessage]) -> Any:
        return ZeroDivisionError("oh") if advised(messages) else searching(messages)

    out = trained(run, create_weights_graph(pairing(reply), two, scope=scope), capital("Chad"))
    assert ([each.kind for each in out["failures"]], out["rows"]) == (["error"], [])
    assert two.updates(scope=scope) == []


def test_a_strategy_longer_than_the_prompts_budget_is_named_and_not_tried(
    run: Run, two: StrategyGraph, scope: Scope
) -> None:
    out = trained(run, create_weights_graph(pairing(advice_chars=60), two, scope=scope), capital("Chad"))
    assert [each.kind for each in out["failures"]] == ["too_long"]
    assert (out["rollouts"], out["rows"]) == (0, [])
    assert "characters at least" in out["failures"][0].reason


def test_advice_for_trained_policies_has_no_words_around_it(run: Run, two: StrategyGraph, scope: Scope) -> None:
    seen: list[str] = []

    def reply(messages: list[BaseMessage]) -> Any:
        seen.append(advised(messages))
        return guessing(messages)

    trained(
        run, create_weights_graph(pairing(reply, profile="none", advice_chars=60), two, scope=scope), capital("Chad")
    )
    assert [text for text in seen if text] in [[f"<advice>\n- {text}\n</advice>"] for text in ADVICE.values()]


@pytest.mark.parametrize("value", [1.5, -1.0, float("nan")])
def test_a_reward_outside_its_range_is_raised_by_name(run: Run, two: StrategyGraph, scope: Scope, value: float) -> None:
    own = paired_rollouts(rollouts(guessing, evaluate=lambda record: value), Reinforce())
    with pytest.raises(RewardError, match="from 0 to 1"):
        trained(run, create_weights_graph(own, two, scope=scope), capital("Chad"))
    assert two.updates(scope=scope) == []


def test_a_model_that_is_away_raises_and_training_goes_on_from_there(two: StrategyGraph, scope: Scope) -> None:
    away = [ConnectionError("refused")] * 2

    def reply(messages: list[BaseMessage]) -> Any:
        return away.pop() if away else heeding(messages)

    graph = create_weights_graph(pairing(reply), two, scope=scope, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "t"}}
    with pytest.raises(UnavailableError):
        graph.invoke({"queries": [capital("Chad"), capital("Cuba")]}, thread)
    out = graph.invoke(None, thread)
    assert (len(out["rows"]), len(two.updates(scope=scope))) == (2, 2)


def test_a_step_that_was_taken_before_the_break_is_not_taken_twice(
    two: StrategyGraph, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = two.apply
    died: list[Any] = []

    def apply_and_die(*args: Any, **given: Any) -> Any:
        done = apply(*args, **given)
        if not died:
            died.append(done)
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(two, "apply", apply_and_die)
    graph = create_weights_graph(pairing(), two, scope=scope, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "t"}}
    with pytest.raises(KeyboardInterrupt):
        graph.invoke({"queries": [capital("Chad"), capital("Cuba")]}, thread)
    out = graph.invoke(None, thread)
    assert (len(out["rows"]), len(two.updates(scope=scope))) == (2, 2)
    assert out["rows"][0].update == died[0]


def test_every_strategy_is_tried_against_one_rollout_without(run: Run, two: StrategyGraph, scope: Scope) -> None:
    every = pairing(every=True, learner=Reinforce(0.2, expected=True))
    graph = create_weights_graph(every, two, scope=scope, batch=2)
    out = trained(run, graph, *map(capital, ("Chad", "Cuba", "Oman")))
    assert (len(out["rows"]), out["rollouts"], out["skipped"], out["failures"]) == (6, 9, 0, [])
    summaries = {each.id: each.summary for each in two.strategies(scope=scope)}
    for first, second in zip(out["rows"][::2], out["rows"][1::2], strict=True):
        own = {summaries[row.update.strategy_id]: row.update for row in (first, second)}
        assert (own[ADVICE[SEARCHED]].gap, own[ADVICE[GUESSED]].gap) == (1.0, 0.0)
        assert first.update.query_id == second.update.query_id
        assert first.update.trace_without == second.update.trace_without
        assert first.update.trace_with != second.update.trace_with
    assert probability(two, scope, ADVICE[SEARCHED]) > 0.6


def test_samples_of_every_strategy_are_the_means_of_their_sides(run: Run, two: StrategyGraph, scope: Scope) -> None:
    out = trained(run, create_weights_graph(pairing(every=True, samples=3), two, scope=scope), capital("Chad"))
    assert (len(out["rows"]), out["rollouts"]) == (2, 9)
    assert {row.update.gap for row in out["rows"]} == {0.0, 1.0}


def test_what_was_tried_is_not_tried_again(run: Run, two: StrategyGraph, scope: Scope) -> None:
    (first, second) = trained(
        run, create_weights_graph(pairing(every=True), two, scope=scope), capital("Chad")
    )["rows"]  # fmt: skip
    left = [(str(first.update.query_id), first.update.strategy_id)]
    out = trained(run, create_weights_graph(pairing(every=True, tried=left), two, scope=scope), capital("Chad"))
    assert [row.update.strategy_id for row in out["rows"]] == [second.update.strategy_id]
    assert out["rollouts"] == 2
    both = [*left, (str(second.update.query_id), second.update.strategy_id)]
    out = trained(run, create_weights_graph(pairing(every=True, tried=both), two, scope=scope), capital("Chad"))
    assert (out["rows"], out["rollouts"], out["skipped"], out["stopped"]) == ([], 0, 0, "done")


def test_a_failed_rollout_without_spoils_every_trial_of_its_query(run: Run, two: StrategyGraph, scope: Scope) -> None:
    def worth(record: Any) -> float | None:
        return None if record.guidance is None and "Cuba" in record.query else 1.0

    every = paired_rollouts(rollouts(guessing, evaluate=worth), Reinforce(), every=True)
    out = trained(run, create_weights_graph(every, two, scope=scope, batch=2), *map(capital, ("Chad", "Cuba")))
    assert [row.update.query_id for row in out["rows"]] == [out["rows"][0].update.query_id] * 2
    assert [each.kind for each in out["failures"]] == ["no_reward"]


def test_a_budget_of_rollouts_needs_one_strategy_for_each_query(two: StrategyGraph) -> None:
    with pytest.raises(SettingsError, match="most_rollouts cannot be kept"):
        create_weights_graph(pairing(every=True), two, most_rollouts=10)


def test_a_strategy_that_went_meanwhile_is_passed_over(
    run: Run, two: StrategyGraph, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(messages: list[BaseMessage]) -> Any:
        for each in two.strategies(scope=scope):
            two.remove(each.id, scope=scope, reason="a test")
        return searching(messages)

    out = trained(run, create_weights_graph(pairing(reply, parallel=1), two, scope=scope), capital("Chad"))
    assert (out["rows"], out["rollouts"], out["failures"]) == ([], 2, [])


def test_traces_say_which_strategy_with_which_relevance_and_probability(
    run: Run, two: StrategyGraph, scope: Scope, tmp_path: Path
) -> None:
    with TraceStore(tmp_path / "traces.sqlite") as store:
        (row,) = trained(run, create_weights_graph(pairing(traces=store), two, scope=scope), capital("Chad"))["rows"]
        traces = {trace.metadata["arm"]: trace for trace in store.iterate(run="weights")}
    assert str(traces["with"].id) == row.update.trace_with
    assert str(traces["without"].id) == row.update.trace_without
    assert (traces["with"].metadata["k"], traces["without"].metadata["k"]) == (1, 0)
    assert traces["with"].metadata["strategies"] == [
        [str(row.update.strategy_id), 1, pytest.approx(row.relevance), pytest.approx(row.update.probability)]
    ]
    (read,) = traces["with"].generations[0].memories_read
    assert read.id == row.update.strategy_id


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch": 0}, {"batch": 65}, {"patience": 0}])
def test_numbers_that_cannot_be_are_refused(two: StrategyGraph, wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        create_weights_graph(pairing(), two, **wrong)
    with pytest.raises(SettingsError):
        pairing(samples=0)


def test_a_learner_of_ones_own_decides_the_step(run: Run, two: StrategyGraph, scope: Scope) -> None:
    seen: list[tuple[int, float, float]] = []

    class Own(Reinforce):
        def step(self, activation: Any, chosen: int, reward_with: float, reward_without: float, **more: Any) -> Any:
            seen.append((len(activation.strategies), reward_with, reward_without))
            assert np.isclose(activation.probability.sum(), 1)
            return super().step(activation, chosen, reward_with, reward_without, **more)

    trained(run, create_weights_graph(pairing(learner=Own()), two, scope=scope), capital("Chad"))
    assert [(n, w) for n, _, w in seen] == [(2, 0.0)]

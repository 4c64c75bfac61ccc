"""Machine A: every way from rollouts to strategies, what is of no use, and going on after a break."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage
from langgraph.checkpoint.memory import InMemorySaver

from memweave.agents.path_mapper import MappedPath, RuleMapper, UnmappedRun
from memweave.agents.run_log import RunLog
from memweave.agents.strategist import InductionRequest, NoStrategy, Proposal, RuleStrategist
from memweave.errors import (
    EmbeddingMismatchError,
    InputError,
    RewardError,
    SettingsError,
    UnavailableError,
    UsageError,
)
from memweave.graph_records import EdgeKind, StrategyAction, StrategyKind
from memweave.graphs.graph_memory_build import create_build_graph
from memweave.graphs.graph_memory_play import QueryTask
from memweave.graphs.graph_memory_rollout import create_rollout_graph
from memweave.memory_stores import StrategyGraph, StrategySettings, open_strategies
from memweave.records import Scope
from memweave.testing.models import ScriptedChatModel
from memweave.tracing.store import TraceStore
from tests.graphs.graph_memory_play import (
    KNOWN,
    Wavering,
    asked,
    asks,
    capital,
    guessing,
    lookup,
    rollouts,
    searching,
)
from tests.graphs.memento_play import Run

SEARCH = "When the goal is clear, consider searching before answering."


def built(run: Run, graph: Any, *tasks: QueryTask) -> Any:
    return run(graph, {"queries": [task.model_dump(mode="json") for task in tasks]})


# the cases of algorithm 1


def test_a_right_and_a_wrong_path_are_contrasted_and_both_lead_to_the_strategy(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    graph = create_build_graph(rollouts(Wavering()), strategies, scope=scope, samples=4)
    out = built(run, graph, capital("Norway"))
    (row,) = out["rows"]
    assert (row.case, row.decision, row.n_success, row.n_failure) == ("contrast", "create", 2, 2)
    (strategy,) = strategies.strategies(scope=scope)
    assert (strategy.summary, strategy.kind, strategy.score) == (SEARCH, StrategyKind.CONTRAST, 60)
    paths = {path.id: path for path in strategies.paths(scope=scope)}
    assert {(path.n_success, path.n_failure) for path in paths.values()} == {(2, 0), (0, 2)}
    linked = [edge for edge in strategies.edges(scope=scope) if edge.kind is EdgeKind.PATH_STRATEGY]
    assert {edge.source for edge in linked} == set(paths)
    assert {edge.target for edge in linked} == {strategy.id}
    assert (out["rollouts"], out["failures"], out["known"]) == (4, [], 0)
    assert strategies.check(scope=scope) == []


def test_the_same_lesson_twice_is_one_strategy_with_more_evidence(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    graph = create_build_graph(rollouts(Wavering()), strategies, scope=scope, samples=2)
    out = built(run, graph, capital("Norway"), capital("Peru"))
    assert [row.decision for row in out["rows"]] == ["create", "update"]
    (strategy,) = strategies.strategies(scope=scope)
    assert (strategy.evidence, strategy.score, strategy.version) == (2, 65, 2)


def test_failures_on_a_path_that_leads_to_the_strategy_already_change_nothing(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    graph = create_build_graph(
        rollouts(by_country(Norway=Wavering(), Peru=guessing)), strategies, scope=scope, samples=2
    )
    out = built(run, graph, capital("Norway"), capital("Peru"))
    assert [(row.case, row.decision) for row in out["rows"]] == [("contrast", "create"), ("speculate", "skip")]
    assert len(strategies.strategies(scope=scope)) == 1


def test_failures_alone_are_linked_to_what_worked_for_similar_queries(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    def reply(messages: list[BaseMessage]) -> AIMessage:
        if "Norway" in asked(messages):
            return wavering(messages)
        if messages[-1].type == "tool":
            return AIMessage("Bergen")
        return asks("nobody knows")

    wavering = Wavering()
    graph = create_build_graph(rollouts(reply), strategies, scope=scope, samples=2)
    row = built(run, graph, capital("Norway"), capital("Peru"))["rows"][1]
    assert (row.case, row.decision, row.n_failure) == ("speculate", "link", 2)
    assert [(change.action, change.edges) for change in row.changes] == [(StrategyAction.LINKED, 1)]
    (strategy,) = strategies.strategies(scope=scope)
    (failing,) = [path for path in strategies.paths(scope=scope) if "ToolExecution" in path.states and path.n_failure]
    assert [each.id for each in strategies.strategies_of(failing.id, scope=scope)] == [strategy.id]


def test_failures_without_a_similar_success_teach_nothing(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    graph = create_build_graph(rollouts(guessing), strategies, scope=scope, samples=2)
    (row,) = built(run, graph, capital("Norway"))["rows"]
    assert (row.case, row.decision) == ("speculate", "skip")
    assert strategies.strategies(scope=scope) == []
    assert len(strategies.paths(scope=scope)) == 1


def by_country(**scripts: Any) -> Any:
    """Return a policy that behaves differently for each country."""
    return lambda messages: next(script for name, script in scripts.items() if name in asked(messages))(messages)


@pytest.mark.parametrize("borrow", [False, True])
def test_a_similar_querys_success_is_borrowed_when_that_is_wanted(
    run: Run, strategies: StrategyGraph, scope: Scope, borrow: bool
) -> None:
    policy = by_country(Norway=searching, Peru=guessing)
    graph = create_build_graph(rollouts(policy), strategies, scope=scope, samples=2, borrow=borrow)
    out = built(run, graph, capital("Norway"), capital("Peru"))
    assert [row.case for row in out["rows"]] == ["none", "speculate"]
    assert [row.decision for row in out["rows"]] == ["none", "create" if borrow else "skip"]
    assert [(each.kind, each.score) for each in strategies.strategies(scope=scope)] == (
        [(StrategyKind.SPECULATIVE, 40)] if borrow else []
    )


@pytest.mark.parametrize("positive", [False, True])
def test_right_answers_alone_teach_when_that_is_wanted(
    run: Run, strategies: StrategyGraph, scope: Scope, positive: bool
) -> None:
    graph = create_build_graph(rollouts(searching), strategies, scope=scope, samples=2, positive=positive)
    (row,) = built(run, graph, capital("Norway"))["rows"]
    assert (row.case, row.decision) == (("distill", "create") if positive else ("none", "none"))
    assert [each.kind for each in strategies.strategies(scope=scope)] == ([StrategyKind.POSITIVE] if positive else [])


# the graph does not depend on how it was made


@pytest.mark.parametrize(("batch", "parallel"), [(1, 1), (3, 8), (8, 2)])
def test_the_graph_is_the_same_however_many_rollouts_are_made_at_once(
    run: Run, strategies: StrategyGraph, scope: Scope, batch: int, parallel: int
) -> None:
    policy = by_country(Norway=searching, Peru=guessing, Chad=searching, Cuba=guessing)
    graph = create_build_graph(
        rollouts(policy), strategies, scope=scope, samples=2, borrow=True, batch=batch, parallel=parallel
    )
    out = built(run, graph, *map(capital, ("Norway", "Peru", "Chad", "Cuba")))
    assert [(row.query_id, row.decision) for row in out["rows"]] == [
        ("norway", "none"),
        ("peru", "create"),
        ("chad", "none"),
        ("cuba", "skip"),
    ]
    assert len(strategies.paths(scope=scope)) == 2


def test_rollouts_at_the_same_time_are_bounded(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    lock, now, most = threading.Lock(), 0, 0
    together = threading.Barrier(3, timeout=20)

    def search(query: str) -> str:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait()  # three are at work at once
        with lock:
            now -= 1
        return KNOWN[query]

    policy = create_rollout_graph(ScriptedChatModel(searching), [lookup(search)])
    graph = create_build_graph(policy, strategies, scope=scope, samples=6, batch=2, parallel=3)
    out = built(run, graph, capital("Norway"), capital("Peru"))
    assert (out["rollouts"], most) == (12, 3)


def test_every_rollout_has_a_trace_that_says_what_it_was_for(
    run: Run, strategies: StrategyGraph, scope: Scope, tmp_path: Path
) -> None:
    with TraceStore(tmp_path / "traces.sqlite") as store:
        graph = create_build_graph(rollouts(Wavering()), strategies, scope=scope, samples=2, traces=store, run="first")
        built(run, graph, capital("Norway"))
        traces = list(store.iterate(run="first"))
    assert {
        (trace.group, trace.metadata["arm"], trace.metadata["query_id"], trace.metadata["k"]) for trace in traces
    } == {("norway", "build", "norway", 0)}
    assert sorted(trace.replica for trace in traces) == [0, 1]  # type: ignore[type-var]
    assert sorted(trace.score.value for trace in traces if trace.score) == [0.0, 1.0]
    (node,) = strategies.queries(scope=scope)
    assert {outcome.trace_id for outcome in node.outcomes} == {str(trace.id) for trace in traces}


# what is of no use is named, and the run goes on


class Picky:
    """A mapper for which some runs fit no path."""

    def __init__(self, refuses: str) -> None:
        self._rules, self._refuses = RuleMapper(), refuses

    @property
    def machine(self) -> Any:
        """Return that of the rules."""
        return self._rules.machine

    def map(self, run: RunLog) -> MappedPath | UnmappedRun:
        """Return the path, if it may be one."""
        if self._refuses in run.question:
            return UnmappedRun(kind="no_fit", text="it went another way")
        return self._rules.map(run)

    async def amap(self, run: RunLog) -> MappedPath | UnmappedRun:
        """Do what `map` does."""
        return self.map(run)


def test_a_trace_that_fits_no_path_is_named_and_the_run_goes_on(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    graph = create_build_graph(
        rollouts(Wavering()), strategies, scope=scope, samples=2, mapper=Picky("Norway"), batch=2
    )
    out = built(run, graph, capital("Norway"), capital("Peru"))
    assert [(each.kind, each.query_id) for each in out["failures"]] == [("no_path", "norway")] * 2
    assert out["failures"][0].reason == "no_fit: it went another way"
    assert out["failures"][0].trace_id is not None
    assert [row.query_id for row in out["rows"]] == ["peru"]
    assert [query.name for query in strategies.queries(scope=scope)] == ["peru"]


def test_rollouts_that_never_answered_and_queries_nobody_can_judge_are_named(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    policy = by_country(Norway=lambda messages: asks("x"), Peru=searching)
    graph = create_build_graph(rollouts(policy), strategies, scope=scope, samples=1)
    out = built(run, graph, capital("Norway"), capital("Peru", ground_truth=()))
    assert [(each.kind, each.query_id) for each in out["failures"]] == [("no_path", "norway"), ("no_reward", "peru")]
    assert "no_answer" in out["failures"][0].reason
    assert out["rows"] == []


def test_a_rollout_that_fails_is_named_and_the_others_count(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    broken = threading.Lock()

    def reply(messages: list[BaseMessage]) -> Any:
        if messages[-1].type != "tool" and broken.acquire(blocking=False):
            return ZeroDivisionError("inside the model")
        return searching(messages)

    graph = create_build_graph(rollouts(reply), strategies, scope=scope, samples=3, parallel=1)
    out = built(run, graph, capital("Norway"))
    assert [(each.kind, each.reason) for each in out["failures"]] == [("error", "ZeroDivisionError: inside the model")]
    assert out["rows"][0].n_success == 2


def test_a_model_that_is_away_for_all_ends_the_run(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    def away(messages: list[BaseMessage]) -> Any:
        return ConnectionError("refused")

    graph = create_build_graph(rollouts(away), strategies, scope=scope, samples=2)
    with pytest.raises(UnavailableError, match="no rollout could be made"):
        built(run, graph, capital("Norway"))


def test_a_rollout_that_hangs_is_given_up(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    release = threading.Event()

    def reply(messages: list[BaseMessage]) -> AIMessage:
        release.wait(1)  # an event loop waits for its threads when it ends
        return guessing(messages)

    graph = create_build_graph(rollouts(reply), strategies, scope=scope, samples=1, rollout_timeout=0.1)
    try:
        out = built(run, graph, capital("Norway"))
    finally:
        release.set()
    assert [(each.kind, each.reason) for each in out["failures"]] == [
        ("timeout", "the rollout did not end within 0.1 s")
    ]


def test_a_reward_outside_its_range_is_raised_by_name(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    graph = create_build_graph(rollouts(searching, evaluate=lambda record: 2.0), strategies, scope=scope, samples=2)
    with pytest.raises(RewardError, match=r"evaluate returned 2\.0"):
        built(run, graph, capital("Norway"))
    assert strategies.queries(scope=scope) == []


def test_a_tool_that_asks_a_person_is_refused_in_rollouts(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    from langgraph.types import interrupt

    policy = create_rollout_graph(
        ScriptedChatModel(searching), [lookup(lambda query: interrupt("May I?"))], checkpointer=InMemorySaver()
    )
    graph = create_build_graph(policy.with_config(configurable={"thread_id": "t"}), strategies, scope=scope, samples=1)
    with pytest.raises(UsageError, match="stopped to ask a person"):
        built(run, graph, capital("Norway"))


# the strategist


class Answering:
    """A strategist that says one thing."""

    def __init__(self, says: Any) -> None:
        self.says, self.requests = says, []  # type: ignore[var-annotated]

    def induce(self, request: InductionRequest) -> Any:
        """Say it."""
        self.requests.append(request)
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    async def ainduce(self, request: InductionRequest) -> Any:
        """Say it."""
        return self.induce(request)


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        (NoStrategy(kind="leak", text="it names Norway"), "leak"),
        (NoStrategy(kind="unusable", text="not hedged"), "no_strategy"),
        (NoStrategy(kind="skipped", text="nothing to learn"), None),
        (UnavailableError("the strategist is away"), "unavailable"),
    ],
)
def test_a_strategist_that_has_none_writes_none_and_the_run_goes_on(
    run: Run, strategies: StrategyGraph, scope: Scope, says: Any, kind: str | None
) -> None:
    strategist = Answering(says)
    graph = create_build_graph(rollouts(Wavering()), strategies, scope=scope, samples=2, strategist=strategist)
    out = built(run, graph, capital("Norway"), capital("Peru"))
    assert [row.decision for row in out["rows"]] == ["skip", "skip"]
    assert [each.kind for each in out["failures"]] == ([kind] * 2 if kind else [])
    assert strategies.strategies(scope=scope) == []
    assert len(strategies.queries(scope=scope)) == (0 if kind == "unavailable" else 2)


def test_a_model_that_writes_about_the_question_is_refused(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    leaking = {
        "decision": "create",
        "reasoning": "searching helped",
        "meta_cognition": {"summary": "Consider that Oslo may be the capital of Norway.", "strategy_principles": []},
    }
    strategist = ScriptedChatModel(lambda messages: json.dumps(leaking))
    graph = create_build_graph(rollouts(Wavering()), strategies, scope=scope, samples=2, strategist=strategist)
    out = built(run, graph, capital("Norway"))
    assert [each.kind for each in out["failures"]] == ["leak"]
    assert len(strategist.calls) == 2
    assert strategies.strategies(scope=scope) == []
    prompts = "".join(strategist.prompts)
    assert "What is the capital" not in prompts
    assert "Bergen" not in prompts.split("A strategy may not speak", 1)[0]


def test_a_strategist_may_name_the_strategy_that_it_updates(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    rules = RuleStrategist()

    class Renaming(Answering):
        def induce(self, request: InductionRequest) -> Any:
            self.requests.append(request)
            found = rules.induce(request.model_copy(update={"existing": ()}))
            assert isinstance(found, Proposal)
            if not request.existing:
                return found
            new = found.new.model_copy(update={"summary": "Consider to look before you answer."})
            return found.model_copy(update={"new": new, "target": request.existing[0].id})

    strategist = Renaming(None)
    graph = create_build_graph(rollouts(Wavering()), strategies, scope=scope, samples=2, strategist=strategist)
    out = built(run, graph, capital("Norway"), capital("Peru"))
    assert [row.decision for row in out["rows"]] == ["create", "update"]
    assert [each.summary for each in strategies.strategies(scope=scope)] == ["Consider to look before you answer."]
    assert [len(request.existing) for request in strategist.requests] == [0, 1]
    assert "Oslo" in strategist.requests[0].source.answers


# queries


def test_duplicate_queries_are_left_out_by_name_and_known_ones_alone(
    run: Run, strategies: StrategyGraph, scope: Scope
) -> None:
    graph = create_build_graph(rollouts(Wavering()), strategies, scope=scope, samples=2)
    out = built(run, graph, capital("Norway"), capital("Norway"))
    assert [(each.kind, each.query_id) for each in out["failures"]] == [("duplicate", "norway")]
    again = built(run, graph, capital("Norway"), capital("Peru"))
    assert (again["known"], again["rollouts"], [row.query_id for row in again["rows"]]) == (1, 2, ["peru"])


@pytest.mark.parametrize(
    ("queries", "match"),
    [
        ([], "no queries to build from"),
        ([{"text": " "}], "text"),
        ([{"text": "a", "gold": "b"}], "gold"),
        ([{"text": "a", "query_id": "1"}, {"text": "b", "query_id": "1"}], "two queries have the id '1'"),
    ],
)
def test_queries_that_cannot_be_are_refused_by_name(
    run: Run, strategies: StrategyGraph, scope: Scope, queries: list[Any], match: str
) -> None:
    graph = create_build_graph(rollouts(searching), strategies, scope=scope)
    with pytest.raises(InputError, match=match):
        run(graph, {"queries": queries})


# settings


def test_a_graph_of_another_machine_or_encoder_is_refused(
    run: Run, strategies: StrategyGraph, scope: Scope, tmp_path: Path
) -> None:
    with open_strategies(tmp_path, settings=StrategySettings(machine="mine"), embedding="hashing") as other:
        with pytest.raises(SettingsError, match="paths of the machine 'mine'"):
            create_build_graph(rollouts(searching), other)
        graph = create_build_graph(rollouts(searching), lambda: other, scope=scope)
        with pytest.raises(SettingsError, match="paths of the machine 'mine'"):
            built(run, graph, capital("Norway"))
    lazy = create_build_graph(
        rollouts(searching), lambda: open_strategies(tmp_path, embedding="hashing:64"), scope=scope
    )
    with pytest.raises(EmbeddingMismatchError):
        built(run, lazy, capital("Norway"))


@pytest.mark.parametrize(
    "wrong", [{"samples": 0}, {"batch": 0}, {"parallel": 0}, {"rollout_timeout": 0}, {"run": "a/b"}]
)
def test_numbers_below_one_are_refused(strategies: StrategyGraph, wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        create_build_graph(rollouts(searching), strategies, **wrong)


# going on after a break


class Breaking(RuleStrategist):
    """A strategist whose process dies once."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 1

    def induce(self, request: InductionRequest) -> Any:
        """Contrast, but for the first time."""
        if self.left:
            self.left = 0
            raise KeyboardInterrupt
        return super().induce(request)


def test_a_build_that_broke_off_goes_on_without_rollouts_made_twice(strategies: StrategyGraph, scope: Scope) -> None:
    asked_for: list[str] = []
    wavering = Wavering()

    def reply(messages: list[BaseMessage]) -> AIMessage:
        if messages[-1].type != "tool":
            asked_for.append(asked(messages))
        return wavering(messages)

    graph = create_build_graph(
        rollouts(reply), strategies, scope=scope, samples=2, strategist=Breaking(), checkpointer=InMemorySaver()
    )
    thread: Any = {"configurable": {"thread_id": "t"}}
    queries = [capital("Norway"), capital("Peru")]
    with pytest.raises(KeyboardInterrupt):
        graph.invoke({"queries": queries}, thread)
    out = graph.invoke(None, thread)
    assert [row.decision for row in out["rows"]] == ["create", "update"]
    assert len(asked_for) == 4
    again = graph.invoke({"queries": queries}, thread)
    assert (again["known"], again["rows"], again["rollouts"]) == (2, [], 0)


def test_a_strategy_that_was_written_before_the_break_is_not_written_again(
    strategies: StrategyGraph, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = strategies.write

    def write_and_die(*args: Any, **given: Any) -> Any:
        written(*args, **given)
        monkeypatch.setattr(strategies, "write", written)
        raise KeyboardInterrupt

    monkeypatch.setattr(strategies, "write", write_and_die)
    graph = create_build_graph(rollouts(Wavering()), strategies, scope=scope, samples=2, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "t"}}
    with pytest.raises(KeyboardInterrupt):
        graph.invoke({"queries": [capital("Norway")]}, thread)
    out = graph.invoke(None, thread)
    assert out["rows"][0].reason.startswith("written before")
    (strategy,) = strategies.strategies(scope=scope)
    assert (strategy.evidence, strategy.version) == (1, 1)


@pytest.mark.anyio
async def test_the_loop_is_free_while_the_graph_is_opened_and_rollouts_block(
    strategies: StrategyGraph, scope: Scope
) -> None:
    release = threading.Event()

    def opened() -> StrategyGraph:
        release.wait(20)
        return strategies

    graph = create_build_graph(rollouts(Wavering()), opened, scope=scope, samples=2)
    going = asyncio.create_task(graph.ainvoke({"queries": [capital("Norway")]}))
    for _ in range(20):
        await asyncio.sleep(0)
    release.set()
    assert len((await going)["rows"]) == 1


def test_worlds_may_have_tools_of_one_episode(run: Run, strategies: StrategyGraph, scope: Scope) -> None:
    made: list[tuple[str | None, int]] = []

    def graph_of(job: Any) -> Any:
        made.append((job.task.query_id, job.replica))
        return create_rollout_graph(ScriptedChatModel(searching), [lookup(KNOWN)])

    built(run, create_build_graph(graph_of, strategies, scope=scope, samples=2), capital("Norway"))
    assert sorted(made) == [("norway", 0), ("norway", 1)]

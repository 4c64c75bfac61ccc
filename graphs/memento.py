"""Memento: a planner and an executor, both frozen, that learn from cases (arXiv 2508.16153; specification, section 3).

    ingest -> read_cases -> plan -> next_task -> subtask (execute, approve, tools, report) -> record_subtask -> next_task -> ... -> plan
                              plan -> evaluate -> write_case
                         next_task -> finalize_exhausted -> evaluate -> write_case

Case memory feeds the planner, subtask memory goes between planner and executor, tool memory stays inside a subtask. What is
learned is which cases to show: the retrieval policy and, handed in, its learner.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, get_args

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer

from memweave.agents.context import ContextCounter, estimate_context
from memweave.agents.llm import DEFAULT_TIMEOUT, PolicyLike, as_judge
from memweave.agents.rendering import Profile
from memweave.agents.roles import JudgeRequest
from memweave.errors import SettingsError
from memweave.graphs.agemem_state import Protocol
from memweave.graphs.agemem_steps import check_limit, protocol_for
from memweave.graphs.memento_context import MementoContext
from memweave.graphs.memento_evaluate import Evaluate, Evaluating
from memweave.graphs.memento_nodes import Exhaust, Planning
from memweave.graphs.memento_state import MementoInput, MementoOutput, MementoState, QueryRecord, Verdict
from memweave.graphs.memento_subtask import Executing, ExecutorSteps, create_subtask_graph, most_steps
from memweave.graphs.memento_tools import RESULT_CHARS, TOOL_TIMEOUT, Limits, check_tools, dangerous
from memweave.graphs.session import Node, quiet_known_types
from memweave.models import chat_model

CONTEXT_TOKENS: Final = 175_000
"""Most tokens that planner or executor see (section 3.3)."""
MAX_CYCLES: Final = 3
"""Plans for one task (section 3.3)."""
MAX_TOOL_ROUNDS: Final = 20
"""Replies with calls in one subtask; the official code has no bound."""
MAX_SUBTASKS: Final = 20
"""Subtasks of one plan."""
MAX_ATTEMPTS: Final = 2
"""Replies of the planner in one cycle: one repair."""
MOST_PARALLEL: Final = 8
"""Subtasks at the same time for `parallel=True`."""
WINDOW: Final = 20
"""Earlier messages of the chat that planner and executor see."""

MementoAgent = CompiledStateGraph[MementoState, MementoContext, MementoInput, MementoOutput]


@dataclass(frozen=True)
class _Ending:
    """The nodes after the answer."""

    evaluating: Evaluating

    def evaluate(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Find out what the answer is worth. Raises `UnavailableError` when the judge is away."""
        record = query_record(state)
        return _valued(record, self.evaluating.verdict(record, config))

    async def aevaluate(self, state: MementoState, config: RunnableConfig) -> MementoState:
        record = query_record(state)
        return _valued(record, await self.evaluating.averdict(record, config))


def _valued(record: QueryRecord, verdict: Verdict) -> MementoState:
    return {"record": record.model_copy(update={"verdict": verdict}), "reward": verdict.reward}


def query_record(state: MementoState) -> QueryRecord:
    """Return the record of a task that is over, not evaluated yet."""
    status = state["status"]
    assert status is not None
    plan = state["plan"]
    return QueryRecord(
        run_id=state["run_id"],
        query=state["query"],
        about=state["about"],
        status=status,
        answer=state["answer"],
        plan=plan.text if plan else None,
        plans=tuple(state["plans"]),
        planner_calls=tuple(state["planner_calls"]),
        subtasks=tuple(state["subtasks"]),
        cases=tuple(state["seen"]),
        verdict=Verdict(reward=None),
    )


def create_memento_agent(
    planner: str | BaseChatModel | None,
    executor: str | BaseChatModel,
    tools: Sequence[BaseTool] = (),
    *,
    max_cycles: int = MAX_CYCLES,
    max_tool_rounds: int = MAX_TOOL_ROUNDS,
    max_subtasks: int = MAX_SUBTASKS,
    exhaust_policy: Exhaust = "force_answer",
    retrieve_each_cycle: bool = False,
    parallel: bool | int = False,
    approve: Collection[str] = (),
    judge: PolicyLike[JudgeRequest] | None = None,
    evaluate: Evaluate | None = None,
    planner_prompt: str | None = None,
    executor_prompt: str | None = None,
    profile: Profile = "full",
    protocol: Protocol | None = None,
    context_tokens: int = CONTEXT_TOKENS,
    count_tokens: ContextCounter = estimate_context,
    window: int = WINDOW,
    timeout: float = DEFAULT_TIMEOUT,
    tool_timeout: float = TOOL_TIMEOUT,
    result_chars: int = RESULT_CHARS,
    checkpointer: Checkpointer = None,
) -> MementoAgent:
    """TODO."""
    thinking = chat_model(planner) if isinstance(planner, str) else planner
    acting = chat_model(executor) if isinstance(executor, str) else executor
    at_once = (MOST_PARALLEL if parallel else 1) if isinstance(parallel, bool) else parallel
    limits = {"max_cycles": max_cycles, "max_tool_rounds": max_tool_rounds, "max_subtasks": max_subtasks}
    _check({**limits, "parallel": at_once}, exhaust_policy)
    gated = dangerous(tools, approve)
    steps = ExecutorSteps(
        model=acting,
        protocol=protocol or protocol_for(acting),
        variant="none",
        tools=check_tools(tools),
        count=count_tokens,
        timeout=timeout,
        prompt=executor_prompt,
    )
    check_limit(context_tokens)
    subtask = create_subtask_graph(
        Executing(steps, gated, max_tool_rounds, context_tokens, Limits(tool_timeout, result_chars))
    )
    nodes = Planning(
        model=thinking,
        profile=profile,
        prompt=planner_prompt,
        limit=context_tokens,
        count=count_tokens,
        timeout=timeout,
        max_cycles=max_cycles,
        max_subtasks=max_subtasks,
        max_attempts=MAX_ATTEMPTS,
        parallel=at_once,
        exhaust=exhaust_policy,
        each_cycle=retrieve_each_cycle,
        window=window,
        gated=gated,
    )
    ending = _Ending(Evaluating(evaluate, None if judge is None else as_judge(judge), timeout))
    quiet_known_types()
    builder = StateGraph(MementoState, MementoContext, input_schema=MementoInput, output_schema=MementoOutput)
    builder.add_node("ingest", Node("ingest", nodes.ingest, nodes.aingest))
    builder.add_node("subtask", subtask)
    builder.add_node("record_subtask", Node("record_subtask", nodes.record_subtask, nodes.arecord_subtask))
    builder.add_node("evaluate", Node("evaluate", ending.evaluate, ending.aevaluate))
    builder.add_edge(START, "ingest")
    builder.add_edge("subtask", "record_subtask")
    builder.add_edge("evaluate", END)
    if thinking is None:
        builder.add_conditional_edges("ingest", nodes.handed_out, ["subtask"])
        builder.add_edge("record_subtask", "evaluate")
    else:
        builder.add_node("plan", Node("plan", nodes.plan, nodes.aplan))
        builder.add_node("next_task", Node("next_task", nodes.next_task, nodes.anext_task))
        builder.add_node("finalize_exhausted", Node("finalize_exhausted", nodes.finalize, nodes.afinalize))
        builder.add_edge("ingest", "plan")
        builder.add_conditional_edges("plan", nodes.after_plan, ["plan", "next_task", "evaluate"])
        builder.add_conditional_edges("next_task", nodes.after_next_task, ["subtask", "plan", "finalize_exhausted"])
        builder.add_edge("record_subtask", "next_task")
        builder.add_edge("finalize_exhausted", "evaluate")
    graph = builder.compile(name="memento", checkpointer=checkpointer)
    steps_at_most = max_cycles * (MAX_ATTEMPTS + 2 + 3 * max_subtasks) + 10
    return graph.with_config(recursion_limit=max(steps_at_most, most_steps(max_tool_rounds)))


def _check(limits: dict[str, int], exhaust: str) -> None:
    for name, value in limits.items():
        if value < 1:
            raise SettingsError(f"{name} = {value}: give 1 at least")
    if exhaust not in get_args(Exhaust):
        raise SettingsError(f"exhaust_policy {exhaust!r} is none of {', '.join(get_args(Exhaust))}")

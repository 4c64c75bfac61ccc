"""Memento: a planner and an executor, both frozen, that learn from cases (arXiv 2508.16153; specification, section 3).

    ingest -> read_cases -> plan -> next_task -> subtask (execute, approve, tools, report) -> record_subtask -> next_task -> ... -> plan
                              plan -> evaluate -> write_case
                         next_task -> finalize_exhausted -> evaluate -> write_case

Case memory feeds the planner, subtask memory goes between planner and executor, tool memory stays inside a subtask. What is
learned is which cases to show: the retrieval policy and, handed in, its learner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Final, get_args

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer

from memweave.agents.context import ContextCounter, estimate_context
from memweave.agents.llm import DEFAULT_TIMEOUT, PolicyLike, as_judge
from memweave.agents.prompts import PromptRole, load_prompt
from memweave.agents.rendering import Profile
from memweave.agents.roles import JudgeRequest
from memweave.agents.tools.calculator import calculator
from memweave.errors import SettingsError
from memweave.graphs.agemem_state import Protocol
from memweave.graphs.agemem_steps import check_limit, protocol_for
from memweave.graphs.memento_cases import CaseMemory, CaseSource, LazyCases
from memweave.graphs.memento_context import MementoContext
from memweave.graphs.memento_evaluate import Ending, Evaluate, Evaluating
from memweave.graphs.memento_nodes import Exhaust, Planning
from memweave.graphs.memento_state import MementoInput, MementoOutput, MementoState
from memweave.graphs.memento_subtask import Executing, ExecutorSteps, SubtaskGraph, create_subtask_graph, most_steps
from memweave.graphs.memento_tools import RESULT_CHARS, TOOL_TIMEOUT, Limits, check_tools, dangerous
from memweave.graphs.server import server
from memweave.graphs.session import DefaultScope, Node, quiet_known_types
from memweave.memory_stores import CaseBank
from memweave.memory_stores.case_retrieval import CaseLearner, CosineTopK, RetrievalPolicy, retrieval_policy
from memweave.models import chat_model

CONTEXT_TOKENS: Final = 175_000
"""Most tokens that planner or executor see (section 3.3)."""
K: Final = 4
"""Cases that the planner is shown (section 6, A7)."""
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

ROLES: Final[tuple[PromptRole, ...]] = ("planner", "executor", "executor_text", "judge")

MementoAgent = CompiledStateGraph[MementoState, MementoContext, MementoInput, MementoOutput]


def create_memento_agent(
    planner: str | BaseChatModel | None,
    executor: str | BaseChatModel,
    tools: Sequence[BaseTool] = (),
    cases: CaseSource | None = None,
    *,
    scope: DefaultScope = None,
    k: int = K,
    policy: RetrievalPolicy | str | None = None,
    learner: CaseLearner | None = None,
    retrieve_each_cycle: bool = False,
    seed: int | None = None,
    retain: bool = True,
    max_cycles: int = MAX_CYCLES,
    max_tool_rounds: int = MAX_TOOL_ROUNDS,
    max_subtasks: int = MAX_SUBTASKS,
    exhaust_policy: Exhaust = "force_answer",
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
    """Return a planner and an executor that remember which plans worked, as a compiled graph over `messages` (Memento).

    planner, executor: chat models, or their specifications (`chat_model`); two different ones if you like.
    tools: of the executor.  cases: the case bank, or how to open it.
    The paper's five systems: no planner and no tools (offline executor); no planner (online executor); no cases (without CBR);
    cases, and a policy that does not learn (non-parametric); one that does, and its learner (parametric).

    scope: whose cases, when neither authentication nor the run's context says it.  k: cases shown for a task.
    policy: how they are chosen, or its name; by default the most similar.  learner: is told of every verified task.
    retrieve_each_cycle: choose anew before every plan, as the paper says, not once per task, as its code does.
    seed: of policies that draw.  retain: whether the graph writes cases itself; otherwise `record_feedback` does, when you call it.

    max_cycles: plans for one task.  max_tool_rounds: replies with calls in one subtask.  max_subtasks: of one plan.
    exhaust_policy: when no cycle is left, `force_answer` asks the planner once more, `paper_code` takes its last reply.
    parallel: whether, or how many, subtasks run at the same time where the plan says that they may (`after`).
    approve: names of tools whose calls a person has to approve, beside those with metadata `{"dangerous": True}`; needs a
    checkpointer.

    judge: grades the answer when the input has a right one; without a judge, exact match does.  evaluate: your function from
    the record of a task to its reward, which decides over both.  Without any of them the reward is `None`, and the case is not
    kept; `record_feedback` writes it when a user has said what it was worth.

    profile: `none` gives the planner no instructions, for policies that were trained on the role.  protocol: of the executor,
    as in `create_agemem_agent`.  context_tokens: most that planner or executor see.  window: earlier messages of the chat that
    they see.  timeout, tool_timeout: seconds for one reply, one call.  result_chars: of one tool's result.

    Raises `SettingsError` for a limit below 1, two tools of one name, an unknown name in `approve`, or cases without a planner.
    """
    thinking = chat_model(planner) if isinstance(planner, str) else planner
    acting = chat_model(executor) if isinstance(executor, str) else executor
    at_once = (MOST_PARALLEL if parallel else 1) if isinstance(parallel, bool) else parallel
    limits = {"k": k, "max_cycles": max_cycles, "max_tool_rounds": max_tool_rounds, "max_subtasks": max_subtasks}
    _check({**limits, "parallel": at_once}, exhaust_policy)
    check_limit(context_tokens)
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
    subtask = create_subtask_graph(
        Executing(steps, gated, max_tool_rounds, context_tokens, Limits(tool_timeout, result_chars))
    )
    planning = Planning(
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
        each_cycle=retrieve_each_cycle and cases is not None,
        window=window,
        gated=gated,
    )
    memory = None
    if cases is not None and thinking is None:
        raise SettingsError("cases are shown to a planner, and there is none: give the agent one, or no cases")
    if cases is not None:
        chosen = retrieval_policy(policy) if isinstance(policy, str) else policy or CosineTopK()
        memory = CaseMemory(LazyCases(cases), chosen, k, scope, learner, seed)
    ending = Ending(Evaluating(evaluate, None if judge is None else as_judge(judge), timeout))
    quiet_known_types()
    for role in ROLES:
        load_prompt(role)  # read the files now, not in the middle of a run
    graph = _wired(planning, subtask, ending, memory, retain).compile(name="memento", checkpointer=checkpointer)
    steps_at_most = max_cycles * (MAX_ATTEMPTS + 2 + 3 * max_subtasks) + 10
    return graph.with_config(recursion_limit=max(steps_at_most, most_steps(max_tool_rounds)))


def _wired(
    planning: Planning, subtask: SubtaskGraph, ending: Ending, memory: CaseMemory | None, retain: bool
) -> StateGraph[MementoState, MementoContext, MementoInput, MementoOutput]:
    """Return the machine. Without a planner there is neither plan nor case: the executor works on the task itself."""
    builder = StateGraph(MementoState, MementoContext, input_schema=MementoInput, output_schema=MementoOutput)
    builder.add_node("ingest", Node("ingest", planning.ingest, planning.aingest))
    builder.add_node("subtask", subtask)
    builder.add_node("record_subtask", Node("record_subtask", planning.record_subtask, planning.arecord_subtask))
    builder.add_node("evaluate", Node("evaluate", ending.evaluate, ending.aevaluate))
    builder.add_edge(START, "ingest")
    builder.add_edge("subtask", "record_subtask")
    if planning.model is None:
        builder.add_conditional_edges("ingest", planning.handed_out, ["subtask"])
        builder.add_edge("record_subtask", "evaluate")
        builder.add_edge("evaluate", END)
        return builder
    builder.add_node("plan", Node("plan", planning.plan, planning.aplan))
    builder.add_node("next_task", Node("next_task", planning.next_task, planning.anext_task))
    builder.add_node("finalize_exhausted", Node("finalize_exhausted", planning.finalize, planning.afinalize))
    builder.add_conditional_edges("plan", planning.after_plan, ["plan", "next_task", "evaluate"])
    again = "read_cases" if planning.each_cycle else "plan"
    builder.add_conditional_edges("next_task", planning.after_next_task, ["subtask", again, "finalize_exhausted"])
    builder.add_edge("record_subtask", "next_task")
    builder.add_edge("finalize_exhausted", "evaluate")
    if memory is None:
        builder.add_edge("ingest", "plan")
        builder.add_edge("evaluate", END)
        return builder
    builder.add_node("read_cases", Node("read_cases", memory.read, memory.aread))
    builder.add_edge("ingest", "read_cases")
    builder.add_edge("read_cases", "plan")
    if not retain:
        builder.add_edge("evaluate", END)
        return builder
    builder.add_node("write_case", Node("write_case", memory.write, memory.awrite))
    builder.add_edge("evaluate", "write_case")
    builder.add_edge("write_case", END)
    return builder


def _check(limits: dict[str, int], exhaust: str) -> None:
    for name, value in limits.items():
        if value < 1:
            raise SettingsError(f"{name} = {value}: give 1 at least")
    if exhaust not in get_args(Exhaust):
        raise SettingsError(f"exhaust_policy {exhaust!r} is none of {', '.join(get_args(Exhaust))}")


async def make_graph(config: RunnableConfig) -> MementoAgent:
    """Return the agent for a LangGraph server: models and bank of the settings, a calculator, the server's checkpointer."""
    own = await server()
    return await asyncio.to_thread(
        create_memento_agent,
        own.planner,
        own.executor,
        [calculator()],
        lambda: CaseBank(own.bank()),
        scope=own.home,
        timeout=own.settings.model_timeout,
    )

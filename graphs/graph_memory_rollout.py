"""One rollout of an agent with tools, with advice or without (arXiv 2511.07800; specification, sections 2.1 and 3).

    compose -> policy -> parse -> search -> policy -> ... -> score
                         parse -> policy                    a reply that cannot be read, once
                         search -> force_answer -> score    no call is left

The same nodes are the agent that an app talks to (`graph_memory`), what the graph is built from, both sides of a reward gap, and the
episode that GRPO trains on. They do not know the graph of strategies: advice comes in as `Guidance`. Every call of a tool has a step
of its own, so a run that is gone on with carries out none twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypedDict, Unpack

from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer

from memweave.agents.context import ContextCounter, estimate_context
from memweave.agents.llm import DEFAULT_TIMEOUT, PolicyLike, as_judge
from memweave.agents.prompts import PromptRole, load_prompt
from memweave.agents.rendering import Profile
from memweave.agents.roles import JudgeRequest
from memweave.errors import SettingsError
from memweave.graphs.agemem_state import Protocol
from memweave.graphs.agemem_steps import check_limit, protocol_for
from memweave.graphs.graph_memory_context import GraphMemoryContext
from memweave.graphs.graph_memory_rollout_nodes import MAX_CALLS, MAX_RETRIES, Evaluate, PolicySteps, Rolling
from memweave.graphs.graph_memory_state import RolloutInput, RolloutOutput, RolloutState
from memweave.graphs.memento_evaluate import Evaluating
from memweave.graphs.memento_tools import RESULT_CHARS, TOOL_TIMEOUT, Limits, check_tools
from memweave.graphs.session import Node, quiet_known_types
from memweave.models import chat_model

CONTEXT_TOKENS: Final = 32_768
"""Most tokens that the policy sees."""
ROLES: Final[tuple[PromptRole, ...]] = ("graph_memory", "graph_memory_text", "judge")

RolloutGraph = CompiledStateGraph[RolloutState, GraphMemoryContext, RolloutInput, RolloutOutput]


class RolloutSettings(TypedDict, total=False):
    """What `create_rollout_graph` takes beside model and tools; it says what each is."""

    max_calls: int
    judge: PolicyLike[JudgeRequest] | None
    evaluate: Evaluate | None
    system_prompt: str | None
    profile: Profile
    protocol: Protocol | None
    context_tokens: int
    count_tokens: ContextCounter
    timeout: float
    tool_timeout: float
    result_chars: int


def rolling(
    model: str | BaseChatModel,
    tools: Sequence[BaseTool] = (),
    *,
    max_calls: int = MAX_CALLS,
    judge: PolicyLike[JudgeRequest] | None = None,
    evaluate: Evaluate | None = None,
    system_prompt: str | None = None,
    profile: Profile = "full",
    protocol: Protocol | None = None,
    context_tokens: int = CONTEXT_TOKENS,
    count_tokens: ContextCounter = estimate_context,
    timeout: float = DEFAULT_TIMEOUT,
    tool_timeout: float = TOOL_TIMEOUT,
    result_chars: int = RESULT_CHARS,
) -> Rolling:
    """Return the nodes of a rollout; the parameters are those of `create_rollout_graph`."""
    if max_calls < 1:
        raise SettingsError(f"max_calls = {max_calls}: give 1 at least")
    check_limit(context_tokens)
    acting = chat_model(model) if isinstance(model, str) else model
    steps = PolicySteps(
        model=acting,
        protocol=protocol or protocol_for(acting),
        variant="none",
        tools=check_tools(tools),
        count=count_tokens,
        timeout=timeout,
        profile=profile,
        prompt=system_prompt,
        max_calls=max_calls,
    )
    for role in ROLES:  # now, not in the middle of a run
        load_prompt(role)
    evaluating = Evaluating(evaluate, None if judge is None else as_judge(judge), timeout)
    return Rolling(steps, context_tokens, Limits(tool_timeout, result_chars), evaluating)


def create_rollout_graph(
    model: str | BaseChatModel,
    tools: Sequence[BaseTool] = (),
    *,
    checkpointer: Checkpointer = None,
    **settings: Unpack[RolloutSettings],
) -> RolloutGraph:
    """Return one rollout as a compiled graph over `query` and `guidance`.

    model: a chat model, or its specification (`chat_model`).  tools: that it may call.

    Keyword arguments beside `checkpointer`:
    max_calls: of tools, then it has to answer.  evaluate: your function from the record of a rollout to its reward, in [0, 1], or `None`
    when it cannot tell; it decides over the judge.  judge: grades the answer when the input has a right one; without a judge,
    exact match does.
    system_prompt: replaces the shipped one; `{calls}` in it becomes `max_calls`.  profile: `none` for policies that were trained on
    the role: no system prompt.  protocol: `native` calls or `text` tags; by default text for policies of ours, native otherwise.
    context_tokens: most that the policy sees; the oldest results go when there are more, never query and advice.  count_tokens: counts
    messages; the default estimates.  timeout, tool_timeout: seconds for one reply, one call.  result_chars: of one tool's result.

    Raises `SettingsError` for two tools of one name or a limit below 1.
    """
    nodes = rolling(model, tools, **settings)
    quiet_known_types()
    builder = StateGraph(RolloutState, GraphMemoryContext, input_schema=RolloutInput, output_schema=RolloutOutput)
    wire_rollout(builder, nodes)
    builder.add_edge(START, "compose")
    builder.add_edge("score", END)
    graph = builder.compile(name="graph-memory-rollout", checkpointer=checkpointer)
    return graph.with_config(recursion_limit=most_steps(nodes))


def wire_rollout(builder: StateGraph[Any, Any, Any, Any], nodes: Rolling) -> None:
    """Add the nodes of a rollout and the ways between them to a graph; it begins with `compose` and ends with `score`."""
    builder.add_node("compose", Node("compose", nodes.compose, nodes.acompose))
    builder.add_node("policy", Node("policy", nodes.policy, nodes.apolicy))
    builder.add_node("parse", Node("parse", nodes.parse, nodes.aparse))
    builder.add_node("search", Node("search", nodes.search, nodes.asearch))
    builder.add_node("force_answer", Node("force_answer", nodes.force_answer, nodes.aforce_answer))
    builder.add_node("score", Node("score", nodes.score, nodes.ascore))
    builder.add_edge("compose", "policy")
    builder.add_conditional_edges("policy", nodes.after_policy, ["parse", "score"])
    builder.add_conditional_edges("parse", nodes.onward, ["policy", "search", "force_answer", "score"])
    builder.add_conditional_edges("search", nodes.onward, ["policy", "search", "force_answer", "score"])
    builder.add_edge("force_answer", "score")


def most_steps(nodes: Rolling) -> int:
    """Return how many steps a rollout takes at most."""
    return 3 * nodes.steps.max_calls + 2 * (MAX_RETRIES + 1) + 8

"""One subtask of Memento: the executor and its tools, as a machine of its own inside the big one (specification, section 3.1).

    execute -> (approve ->) tools -> ... -> execute -> report

Tool memory lives here and is forgotten at the end; one row goes back. Every call has a step of its own, so a run that is resumed never
carries out a call twice, and a person is asked in a step that does nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.constants import TAG_NOSTREAM
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from memweave.agents.executor import NO_MORE_ROUNDS, QUERY, ROLE, TASK, executor_prompt, render_subtask
from memweave.agents.llm import described
from memweave.agents.tool_protocol import AgentTurn
from memweave.errors import ModelReplyError
from memweave.graphs.agemem_fitting import fitted, least
from memweave.graphs.agemem_state import TOOLS, Shown
from memweave.graphs.agemem_steps import AgentSteps, as_dialogue
from memweave.graphs.memento_context import MementoContext, prompt_of
from memweave.graphs.memento_state import (
    Approval,
    SubtaskInput,
    SubtaskOutput,
    SubtaskRow,
    SubtaskState,
    SubtaskStatus,
    ToolRow,
)
from memweave.graphs.memento_tools import Limits, arun_call, ask_person, plain_arguments, run_call, unknown_tool
from memweave.graphs.session import Node
from memweave.records import new_id, storable

MOST_CALLS: Final = 16
"""Calls of one reply that are carried out."""
MOST_NUDGES: Final = 2
"""Times that an executor with neither calls nor text is asked again."""
LONGEST_REPORT: Final = 20_000
"""Characters of a result that the planner is told."""

SubtaskGraph = CompiledStateGraph[SubtaskState, MementoContext, SubtaskInput, SubtaskOutput]


@dataclass(frozen=True)
class ExecutorSteps(AgentSteps):
    """The executor's model and tools, and how its replies are read."""

    prompt: str | None = None

    def instructions(self, given: str | None) -> str:
        """Return the system prompt; in the text protocol with the tools."""
        text = self.protocol == "text"
        prompt = executor_prompt(given or self.prompt, text_protocol=text)
        return f"{prompt}\n\n{self._listed}" if text else prompt

    def asked(
        self, context: Sequence[BaseMessage], shown: Sequence[Shown], prompt: str | None, config: RunnableConfig
    ) -> tuple[list[BaseMessage], RunnableConfig]:
        """Return the messages of the next call, and the configuration that describes it to a tracer."""
        own = described(config, ROLE, (), prompt)
        return self.seen(context), {**own, "run_name": ROLE, "tags": [*(own.get("tags") or []), TAG_NOSTREAM]}


@dataclass(frozen=True)
class Executing:
    """The nodes of a subtask."""

    steps: ExecutorSteps
    approve: frozenset[str]
    """Names of the tools that a person has to approve."""
    max_rounds: int
    limit: int
    """Tokens of the executor's context."""
    limits: Limits
    """Of a tool."""

    # the executor's turn

    def execute(self, state: SubtaskState, config: RunnableConfig) -> SubtaskState:
        """Ask the executor. Raises `UnavailableError`."""
        prompt = self.steps.instructions(prompt_of("executor"))
        try:
            return self._read(state, self.steps.ask(self._shown(state, prompt), (), prompt, config))
        except ModelReplyError as error:
            return _ended("model_error", storable(str(error)))

    async def aexecute(self, state: SubtaskState, config: RunnableConfig) -> SubtaskState:
        """Do what `execute` does."""
        prompt = self.steps.instructions(prompt_of("executor"))
        try:
            return self._read(state, await self.steps.aask(self._shown(state, prompt), (), prompt, config))
        except ModelReplyError as error:
            return _ended("model_error", storable(str(error)))

    def _shown(self, state: SubtaskState, prompt: str) -> list[BaseMessage]:
        """Return what the executor sees, within its budget: the task never goes. Raises `ModelReplyError` when that alone is too much."""
        asked = render_subtask(state["history"], state["subtask"])
        messages = [SystemMessage(prompt, id="system"), *asked, *_said(state)]
        if state.get("rounds", 0) == self.max_rounds:
            messages.append(HumanMessage(NO_MORE_ROUNDS.format(rounds=self.max_rounds), name=TOOLS, id="last"))
        kept = {QUERY, TASK}
        needed = self.steps.tokens(least(messages, kept))
        if needed > self.limit:
            raise ModelReplyError(f"the task alone takes {needed} tokens, and {self.limit} are allowed")
        first = None if self.steps.own() else asked[0].id
        count = self.steps.tokens
        return fitted(messages, self.limit, count, question=kept, first=first).context

    def _read(self, state: SubtaskState, reply: AIMessage) -> SubtaskState:
        turn, rounds = self.steps.read(reply), state.get("rounds", 0) + 1
        if turn.calls and rounds > self.max_rounds:
            return {**_ended("cap", f"it stopped after {self.max_rounds} rounds of tools"), "rounds": rounds}
        answer = (turn.answer or "").strip()
        said: list[BaseMessage] = [self.steps.kept_reply(reply)] if reply.text or turn.calls or turn.problems else []
        update: SubtaskState = {"rounds": rounds, "pending": list(turn.calls[:MOST_CALLS]), "report": answer or None}
        if turn.calls:
            refused = [*self._refused(reply, turn), *(_too_many(call) for call in turn.calls[MOST_CALLS:])]
            return {**update, "dialogue": as_dialogue([*_said(state), *said, *refused])}
        if answer:
            return {**update, "status": "done"}
        return {**update, **self._nudged(state, said, reply, turn)}

    def _nudged(self, state: SubtaskState, said: list[BaseMessage], reply: AIMessage, turn: AgentTurn) -> SubtaskState:
        """Return that the executor is asked again, or that it was often enough."""
        nudges = state.get("nudges", 0) + 1
        if nudges > MOST_NUDGES or state.get("rounds", 0) >= self.max_rounds:
            return _ended("no_report", "the executor gave neither a result nor a call that can be read")
        told = self._refused(reply, turn) or [_note("Error: the result is empty. Call a tool, or give the result.")]
        if not reply.invalid_tool_calls and not reply.text:
            said = []  # endpoints refuse an empty reply in a conversation
        return {"nudges": nudges, "dialogue": as_dialogue([*_said(state), *said, *told])}

    def _refused(self, reply: AIMessage, turn: AgentTurn) -> list[BaseMessage]:
        """Return what was wrong with a reply; endpoints want one message for every call, also those that could not be read."""
        problems = [problem.text for problem in turn.problems]
        if self.steps.protocol == "text":
            return [_note("\n".join(problems))] if problems else []
        found: list[BaseMessage] = []
        for invalid in reply.invalid_tool_calls:
            text = problems.pop(0) if problems else "Error: the call cannot be read."
            found.append(ToolMessage(text, tool_call_id=invalid["id"] or "", id=str(new_id()), status="error"))
        return [*found, *map(_note, problems)]

    # its calls

    def approve_call(self, state: SubtaskState, config: RunnableConfig) -> SubtaskState:
        """Pause until a person decides about the next call."""
        return {"decision": ask_person(state["pending"][0], _described(state))}

    async def aapprove_call(self, state: SubtaskState, config: RunnableConfig) -> SubtaskState:
        """Do what `approve_call` does."""
        return self.approve_call(state, config)

    def call(self, state: SubtaskState, config: RunnableConfig) -> SubtaskState:
        """Carry out the next call."""
        tool, call, refusal = self._prepared(state)
        text, ok = (refusal, False) if tool is None else run_call(tool, call, self.limits, config)
        return self._called(state, call, text, ok)

    async def acall(self, state: SubtaskState, config: RunnableConfig) -> SubtaskState:
        """Do what `call` does."""
        tool, call, refusal = self._prepared(state)
        text, ok = (refusal, False) if tool is None else await arun_call(tool, call, self.limits, config)
        return self._called(state, call, text, ok)

    def _prepared(self, state: SubtaskState) -> tuple[BaseTool | None, ToolCall, str]:
        """Return the tool, its call as it is carried out, and without a tool what the executor is told."""
        call, decided = state["pending"][0], state.get("decision") or Approval(decision="approve")
        if decided.decision == "reject":
            why = f": {decided.message}" if decided.message else ""
            return None, call, storable(f"A person did not allow this call{why}. Do not repeat it; go on without it.")
        if decided.arguments is not None:
            call = ToolCall(name=call["name"], args=decided.arguments, id=call["id"], type="tool_call")
        tool = next((each for each in self.steps.tools if each.name == call["name"]), None)
        return tool, call, unknown_tool(call["name"], self.steps.tools)

    def _called(self, state: SubtaskState, call: ToolCall, text: str, ok: bool) -> SubtaskState:
        decided, arguments = state.get("decision"), plain_arguments(call["args"])
        if decided is not None and decided.decision == "edit":
            text = f"(A person changed the arguments to {arguments}.)\n{text}"
        row = ToolRow(
            subtask=_number(state),
            tool=storable(call["name"])[:60],
            arguments=arguments,
            result=text,
            ok=ok,
            decision=decided.decision if decided else None,
        )
        status = "success" if ok else "error"
        message = ToolMessage(text, tool_call_id=call["id"] or "", id=str(new_id()), status=status)
        pending = state["pending"][1:]
        update: SubtaskState = {
            "dialogue": as_dialogue([*_said(state), message]),
            "pending": pending,
            "decision": None,
            "tool_memory": [*(state.get("tool_memory") or []), row],
        }
        if not pending and state.get("report"):
            update["status"] = "done"
        return update

    # its end

    def report(self, state: SubtaskState, config: RunnableConfig) -> SubtaskState:
        """Hand back what came of it."""
        result, status = state.get("report") or "", state.get("status") or "done"
        if len(result) > LONGEST_REPORT:
            result = f"{result[:LONGEST_REPORT]}\n[{len(result) - LONGEST_REPORT} characters were cut off]"
        row = SubtaskRow(
            cycle=state["cycle"],
            order=state["order"],
            subtask=_number(state),
            description=_described(state),
            result=result if status == "done" else f"(no result: {result})",
            status=status,
            rounds=state.get("rounds", 0),
            tools=tuple(state.get("tool_memory") or ()),
        )
        return {"finished": [row]}

    async def areport(self, state: SubtaskState, config: RunnableConfig) -> SubtaskState:
        """Do what `report` does."""
        return self.report(state, config)

    # routing

    def onward(self, state: SubtaskState) -> str:
        """Ask a person, carry out a call, ask the executor again, or end."""
        if state.get("status"):
            return "report"
        if not state.get("pending"):
            return "execute"
        gated = state["pending"][0]["name"] in self.approve
        return "approve" if gated else "tools"


def _ended(status: SubtaskStatus, why: str) -> SubtaskState:
    return {"status": status, "report": why, "pending": []}


def _said(state: SubtaskState) -> Sequence[BaseMessage]:
    dialogue = state.get("dialogue")
    return dialogue["messages"] if dialogue else ()


def _note(text: str) -> HumanMessage:
    return HumanMessage(text, name=TOOLS, id=str(new_id()))


def _too_many(call: ToolCall) -> ToolMessage:
    text = f"Error: not carried out; at most {MOST_CALLS} calls in one reply are."
    return ToolMessage(text, tool_call_id=call["id"] or "", id=str(new_id()), status="error")


def _number(state: SubtaskState) -> int:
    return state["subtask"].id if state["subtask"] else 0


def _described(state: SubtaskState) -> str:
    subtask = state["subtask"]
    return subtask.description if subtask else state["history"][-1].text


def create_subtask_graph(nodes: Executing) -> SubtaskGraph:
    """Return the machine of one subtask; inside another graph it pauses and goes on with that one's checkpointer."""
    builder = StateGraph(SubtaskState, MementoContext, input_schema=SubtaskInput, output_schema=SubtaskOutput)
    builder.add_node("execute", Node("execute", nodes.execute, nodes.aexecute))
    builder.add_node("tools", Node("tools", nodes.call, nodes.acall))
    builder.add_node("report", Node("report", nodes.report, nodes.areport))
    onward = ["execute", "tools", "report"]
    if nodes.approve:
        builder.add_node("approve", Node("approve", nodes.approve_call, nodes.aapprove_call))
        builder.add_edge("approve", "tools")
        onward.append("approve")
    builder.add_edge(START, "execute")
    builder.add_conditional_edges("execute", nodes.onward, onward)
    builder.add_conditional_edges("tools", nodes.onward, onward)
    builder.add_edge("report", END)
    return builder.compile(name="subtask")


def most_steps(max_rounds: int) -> int:
    """Return how many steps a subtask takes at most."""
    return (max_rounds + 2) * (1 + 2 * MOST_CALLS) + 4

"""The nodes of one rollout (`graph_memory_rollout`): the prompt, the policy's turn, its calls, and what it was worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.runtime import get_runtime
from pydantic import ValidationError

from memweave.agents.prompts import load_prompt, prompt_hash
from memweave.agents.rendering import Profile
from memweave.agents.tool_protocol import AgentTurn, tools_block
from memweave.errors import InputError, ModelReplyError
from memweave.graphs.agemem_fitting import fitted, least
from memweave.graphs.agemem_state import TOOLS, Dialogue, Reply, Shown
from memweave.graphs.agemem_steps import AgentSteps, as_dialogue
from memweave.graphs.graph_memory_context import agent_prompt
from memweave.graphs.graph_memory_state import (
    CallRow,
    RolloutRecord,
    RolloutState,
)
from memweave.graphs.memento_evaluate import EvaluateOf, Evaluating
from memweave.graphs.memento_state import About, Verdict
from memweave.graphs.memento_tools import (
    Limits,
    arun_call,
    plain_arguments,
    run_call,
    unknown_tool,
)
from memweave.graphs.session import current_run_id
from memweave.records import new_id, storable
from memweave.tracing import reading
from memweave.tracing.records import MemoryRef

MAX_CALLS: Final = 6
"""K_tool: calls of tools in one rollout, then it has to answer (section 2.1)."""
MAX_RETRIES: Final = 1
"""Replies that cannot be read and are asked for again (section 3)."""
ADVICE: Final = "advice"
"""Name and id of the message with the advice; it stands before the query: q' = [m_1, ..., m_k; q] (section 2.6)."""
QUERY: Final = "query"
"""Id of the message that asks; it is never cut away, and neither is the advice."""
NO_MORE_CALLS: Final = (
    "You have used all {calls} calls of tools. Answer now, as well as you can; no call will be carried out."
)

Evaluate = EvaluateOf[RolloutRecord]


@dataclass(frozen=True)
class PolicySteps(AgentSteps):
    """The policy and its tools, and how its replies are read."""

    profile: Profile = "full"
    prompt: str | None = None
    max_calls: int = MAX_CALLS

    def system(self, given: str | None) -> str | None:
        """Return the system prompt: the given one, else the shipped one; none for policies that were trained on the role."""
        text = self.protocol == "text"
        prompt = given or self.prompt
        if prompt is None and self.profile == "none":
            return None
        prompt = prompt or load_prompt("graph_memory_text" if text else "graph_memory").text
        prompt = prompt.replace("{calls}", str(self.max_calls))
        return f"{prompt}\n\n{tools_block([], self.tools)}" if text else prompt

    def seen(self, context: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Return the context as the policy gets it: in the text protocol, results stand in <tool_response> tags."""
        if self.protocol == "native":
            return list(context)
        return [_response(message, self.own()) for message in context]

    def kept_reply(self, reply: AIMessage) -> AIMessage:
        """Return the reply as it stands in the context; one of ours with the tokens that were sampled."""
        if self.protocol == "native" or not reply.tool_calls:
            return reply
        return AIMessage(reply.text, id=reply.id)


@dataclass(frozen=True)
class Rolling:
    """The nodes of a rollout."""

    steps: PolicySteps
    limit: int
    """Tokens of the policy's context."""
    limits: Limits
    """Of a tool."""
    evaluating: Evaluating[RolloutRecord]

    # the prompt

    def compose(self, state: RolloutState, config: RunnableConfig) -> RolloutState:
        """Put the query and what is advised together. Raises `InputError` for a query without words."""
        query = storable(state.get("query") or "").strip()
        if not query:
            raise InputError("The query is empty: it has to say something in words")
        guidance = state.get("guidance")
        advice = [HumanMessage(guidance.text, name=ADVICE, id=ADVICE)] if guidance else []
        asked = HumanMessage(query, id=QUERY)
        return {
            "query": query,
            "guidance": guidance,
            "arm": state.get("arm") or "app",
            "about": _about(state),
            "run_id": current_run_id(config),
            "context": as_dialogue([*(state.get("history") or []), *advice, asked]),
            "pending": [],
            "calls": [],
            "retries": 0,
            "problems": [],
            "status": None,
            "answer": None,
            "reward": None,
            "record": None,
        }

    async def acompose(self, state: RolloutState, config: RunnableConfig) -> RolloutState:
        """Do what `compose` does."""
        return self.compose(state, config)

    # the policy's turn

    def policy(self, state: RolloutState, config: RunnableConfig) -> RolloutState:
        """Ask the policy. Raises `UnavailableError`."""
        try:
            prompt, messages, shown = self._asked(state)
            return {"reply": Reply(message=self.steps.ask(messages, shown, prompt, config))}
        except ModelReplyError as error:
            return _refused_by_model(error)

    async def apolicy(self, state: RolloutState, config: RunnableConfig) -> RolloutState:
        """Do what `policy` does."""
        try:
            prompt, messages, shown = self._asked(state)
            return {"reply": Reply(message=await self.steps.aask(messages, shown, prompt, config))}
        except ModelReplyError as error:
            return _refused_by_model(error)

    def _asked(self, state: RolloutState) -> tuple[str | None, list[BaseMessage], list[Shown]]:
        """Return the system prompt, what the policy sees within its budget, and which message shows strategies.

        Raises `ModelReplyError` when query and advice alone are too much.
        """
        prompt = self.steps.system(agent_prompt())
        messages: list[BaseMessage] = [SystemMessage(prompt, id="system")] if prompt else []
        messages += state["context"]["messages"]
        kept = {ADVICE, QUERY, "last"}
        needed = self.steps.tokens(least(messages, kept))
        if needed > self.limit:
            raise ModelReplyError(f"query and advice alone take {needed} tokens, and {self.limit} are allowed")
        first = None if self.steps.own() else state["context"]["messages"][0].id
        context = fitted(messages, self.limit, self.steps.tokens, question=kept, first=first).context
        guidance = state["guidance"]
        refs = tuple(MemoryRef(id=each.id, version=each.version) for each in guidance.strategies) if guidance else ()
        return prompt, context, [Shown(message_id=ADVICE, memories=refs)] if refs else []

    def parse(self, state: RolloutState, config: RunnableConfig) -> RolloutState:
        """Find out what the reply asks for: calls, an answer, or nothing that can be read."""
        reply = state["reply"]["message"]
        turn = self.steps.read(reply)
        answer = (turn.answer or "").strip()
        left = self.steps.max_calls - len(state["calls"])
        said: list[BaseMessage] = [self.steps.kept_reply(reply)] if _says_something(reply) else []
        update: RolloutState = {
            "turn": turn,
            "pending": list(turn.calls[:left]),
            "problems": [*state["problems"], *(problem.kind for problem in turn.problems)],
        }
        if turn.calls:
            said += [
                *self._refusals(reply, turn),
                *(_too_many(call, self.steps.max_calls) for call in turn.calls[left:]),
            ]
        elif answer:
            update |= {"status": "answered", "answer": answer}
        else:
            said += self._refusals(reply, turn) or [_note("Your answer is empty. Answer, or call a tool.")]
            update["retries"] = state["retries"] + 1
            if update["retries"] > MAX_RETRIES:
                update["status"] = "invalid"
        return {**update, "context": _more(state, said)}

    async def aparse(self, state: RolloutState, config: RunnableConfig) -> RolloutState:
        """Do what `parse` does."""
        return self.parse(state, config)

    def _refusals(self, reply: AIMessage, turn: AgentTurn) -> list[BaseMessage]:
        """Return what was wrong with a reply; endpoints want one message for every call, also those that could not be read."""
        problems = [problem.text for problem in turn.problems if problem.kind != "two_blocks"]
        found: list[BaseMessage] = []
        for invalid in reply.invalid_tool_calls if self.steps.protocol == "native" else ():
            text = problems.pop(0) if problems else "Error: the call cannot be read."
            found.append(ToolMessage(text, tool_call_id=invalid["id"] or "", id=str(new_id()), status="error"))
        return [*found, _note("\n".join(problems))] if problems else found

    # its calls

    def search(self, state: RolloutState, config: RunnableConfig) -> RolloutState:
        """Carry out the next call. What the tool does (raise, hang, return too much) is a message to the policy."""
        call = state["pending"][0]
        tool = self._tool(call)
        text, ok = (
            (unknown_tool(call["name"], self.steps.tools), False)
            if tool is None
            else run_call(tool, call, self.limits, config)
        )
        return self._called(state, call, text, ok)

    async def asearch(self, state: RolloutState, config: RunnableConfig) -> RolloutState:
        """Do what `search` does."""
        call = state["pending"][0]
        tool = self._tool(call)
        text, ok = (
            (unknown_tool(call["name"], self.steps.tools), False)
            if tool is None
            else await arun_call(tool, call, self.limits, config)
        )
        return self._called(state, call, text, ok)

    def _tool(self, call: ToolCall) -> BaseTool | None:
        return next((tool for tool in self.steps.tools if tool.name == call["name"]), None)

    def _called(self, state: RolloutState, call: ToolCall, text: str, ok: bool) -> RolloutState:
        row = CallRow(
            number=len(state["calls"]) + 1,
            tool=storable(call["name"])[:60],
            arguments=plain_arguments(call["args"]),
            result=text,
            ok=ok,
            think=state["turn"].think,
        )
        get_runtime().stream_writer({"type": "call", "number": row.number, "tool": row.tool, "ok": ok})
        status = "success" if ok else "error"
        message = ToolMessage(text, tool_call_id=call["id"] or "", name=call["name"], id=str(new_id()), status=status)
        update: RolloutState = {
            "calls": [*state["calls"], row],
            "pending": state["pending"][1:],
            "context": _more(state, [message]),
        }
        answer = (state["turn"].answer or "").strip()
        if not update["pending"] and answer:  # calls and an answer in one turn: the calls were first
            update |= {"status": "answered", "answer": answer}
        return update

    def force_answer(self, state: RolloutState, config: RunnableConfig) -> RolloutState:
        """Ask once more, now that no call is left. Raises `UnavailableError`."""
        state = self._told(state)
        try:
            prompt, messages, shown = self._asked(state)
            return self._forced(state, self.steps.ask(messages, shown, prompt, config))
        except ModelReplyError as error:
            return _refused_by_model(error)

    async def aforce_answer(self, state: RolloutState, config: RunnableConfig) -> RolloutState:
        """Do what `force_answer` does."""
        state = self._told(state)
        try:
            prompt, messages, shown = self._asked(state)
            return self._forced(state, await self.steps.aask(messages, shown, prompt, config))
        except ModelReplyError as error:
            return _refused_by_model(error)

    def _told(self, state: RolloutState) -> RolloutState:
        last = HumanMessage(NO_MORE_CALLS.format(calls=self.steps.max_calls), name=TOOLS, id="last")
        return {**state, "context": _more(state, [last])}

    def _forced(self, state: RolloutState, reply: AIMessage) -> RolloutState:
        turn = self.steps.read(reply)
        answer = "" if turn.calls and self.steps.protocol == "native" else (turn.answer or "").strip()
        said = [self.steps.kept_reply(reply)] if _says_something(reply) else []
        return {
            "reply": Reply(message=reply),
            "turn": turn,
            "problems": [*state["problems"], *(problem.kind for problem in turn.problems)],
            "context": _more(state, said),
            "status": "forced" if answer else "no_answer",
            "answer": answer or None,
        }

    # what it was worth

    def score(self, state: RolloutState, config: RunnableConfig) -> RolloutState:
        """Find out what the answer is worth. Raises `UnavailableError` when the judge is away, `RewardError` for what is no reward."""
        record = self._record(state)
        return _valued(record, _settled(record) or self.evaluating.verdict(record, config))

    async def ascore(self, state: RolloutState, config: RunnableConfig) -> RolloutState:
        """Do what `score` does."""
        record = self._record(state)
        return _valued(record, _settled(record) or await self.evaluating.averdict(record, config))

    def _record(self, state: RolloutState) -> RolloutRecord:
        status, guidance = state["status"], state["guidance"]
        assert status is not None
        prompt = self.steps.system(agent_prompt())
        return RolloutRecord(
            run_id=state["run_id"],
            arm=state["arm"],
            query=state["query"],
            about=state["about"],
            k=len(guidance.strategies) if guidance else 0,
            guidance=guidance,
            prompt_hash=prompt_hash(prompt) if prompt else None,
            status=status,
            answer=state["answer"],
            calls=tuple(state["calls"]),
            problems=tuple(state["problems"]),
            dialogue=reading.chat_messages(state["context"]["messages"]),
            verdict=Verdict(reward=None),
        )

    # routing

    def after_policy(self, state: RolloutState) -> str:
        """Read the reply, if there is one."""
        return "score" if state.get("status") else "parse"

    def onward(self, state: RolloutState) -> str:
        """Carry out a call, ask again, or end."""
        if state.get("status"):
            return "score"
        if state["pending"]:
            return "search"
        return "policy" if len(state["calls"]) < self.steps.max_calls else "force_answer"


def _settled(record: RolloutRecord) -> Verdict | None:
    """Return the verdict of a rollout that nobody has to judge."""
    if record.status == "invalid":
        return Verdict(reward=0.0, by="protocol", reason="the replies could not be read")
    if record.status == "model_error":  # no fault of the policy: nothing is learned from it
        return Verdict(reward=None, by="protocol", reason="the model refused the request")
    return None


def _valued(record: RolloutRecord, verdict: Verdict) -> RolloutState:
    return {"record": record.model_copy(update={"verdict": verdict}), "reward": verdict.reward}


def _refused_by_model(error: ModelReplyError) -> RolloutState:
    get_runtime().stream_writer({"type": "refused", "reason": storable(str(error))})
    return {"status": "model_error", "pending": []}


def _more(state: RolloutState, said: Sequence[BaseMessage]) -> Dialogue:
    return as_dialogue([*state["context"]["messages"], *said])


def _says_something(reply: AIMessage) -> bool:
    """Return whether a reply may stand in a context; endpoints refuse empty ones."""
    return bool(reply.text.strip() or reply.tool_calls or reply.invalid_tool_calls)


def _note(text: str) -> HumanMessage:
    return HumanMessage(text, name=TOOLS, id=str(new_id()))


def _too_many(call: ToolCall, most: int) -> ToolMessage:
    text = f"Error: not carried out; at most {most} calls are, and they are used up."
    return ToolMessage(text, tool_call_id=call["id"] or "", id=str(new_id()), status="error")


def _response(message: BaseMessage, ours: bool) -> BaseMessage:
    """Return a result in its tags; for endpoints as a user message, since they take tool messages after native calls only.

    A result cannot end its block.
    """
    if not isinstance(message, ToolMessage):
        return message
    text = f"<tool_response>{message.text.replace('</tool_response', '&lt;/tool_response')}</tool_response>"
    return message.model_copy(update={"content": text}) if ours else HumanMessage(text, id=message.id)


def _about(state: RolloutState) -> About:
    given = state.get("ground_truth")
    golds = (given,) if isinstance(given, str) else tuple(given or ())
    try:
        return About(task_id=state.get("query_id"), family=state.get("family"), ground_truth=golds)
    except ValidationError as error:
        where = error.errors()[0]
        name = "query_id" if where["loc"][0] == "task_id" else where["loc"][0]
        raise InputError(f"{name} = {where['input']!r:.60} cannot be used: {where['msg']}") from None

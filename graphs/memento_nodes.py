"""The nodes of Memento's machine around the subtasks: take the task in, plan, hand out, take back, end (specification, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from langgraph.constants import TAG_NOSTREAM
from langgraph.runtime import get_runtime
from langgraph.types import Overwrite, Send
from pydantic import ValidationError

from memweave.agents.context import ContextCounter
from memweave.agents.llm import aask, ask, described
from memweave.agents.planner import (
    CASES,
    ROLE,
    PlanRequest,
    Said,
    forced_answer,
    parse_plan_reply,
    planner_prompt,
    ready,
    render_plan,
)
from memweave.agents.rendering import Profile
from memweave.agents.roles import Attempt
from memweave.errors import InputError, ModelReplyError, SettingsError
from memweave.graphs.agemem_fitting import fitted, least
from memweave.graphs.memento_context import prompt_of
from memweave.graphs.memento_state import (
    NO_ANSWER,
    About,
    MementoState,
    PlannerCall,
    Status,
    SubtaskInput,
    SubtaskRow,
)
from memweave.graphs.memento_tools import CHECKPOINTER
from memweave.graphs.session import current_run_id, new_messages
from memweave.records import new_id, storable
from memweave.tracing import reading

Exhaust = Literal["force_answer", "paper_code"]
"""force_answer: one more call of the planner, which must answer.  paper_code: the text of its last reply is the answer, as in the
official code; nobody reads the last results."""


@dataclass(frozen=True)
class Planning:
    """The planner, and the nodes around it."""

    model: BaseChatModel | None
    """`None`: the executor works on the task itself."""
    profile: Profile
    prompt: str | None
    limit: int
    count: ContextCounter
    timeout: float
    max_cycles: int
    max_subtasks: int
    max_attempts: int
    parallel: int
    """Subtasks at the same time; 1: one after the other."""
    exhaust: Exhaust
    each_cycle: bool
    window: int
    gated: frozenset[str]

    # the task comes in

    def ingest(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Begin with a task: the user's messages since the last reply. Raises `InputError`, `SettingsError`."""
        if self.gated and not (config.get("configurable") or {}).get(CHECKPOINTER):
            raise SettingsError(
                f"{', '.join(sorted(self.gated))} must be approved by a person, which needs a checkpointer: give the graph one"
            )
        messages = state.get("messages") or []
        new = new_messages(messages)
        query = storable("\n".join(message.text for message in new)).strip()
        if not query:
            raise InputError("The task is empty: it has to say something in words")
        emptied: Any = Overwrite([])
        return {
            "about": _about(state),
            "query": query,
            "run_id": current_run_id(config),
            "history": [*_earlier(messages[: len(messages) - len(new)], self.window), Said(kind="query", text=query)],
            "cases": [],
            "seen": [],
            "cycle": 0,
            "attempts": [],
            "planner_calls": [],
            "plan": None,
            "plans": [],
            "current": [],
            "finished": emptied,
            "subtasks": [],
            "status": None,
            "answer": None,
            "reward": None,
            "case_id": None,
            "record": None,
        }

    async def aingest(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Do what `ingest` does."""
        return self.ingest(state, config)

    # the planner's turn

    def plan(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Ask for a plan or the answer. Raises `UnavailableError`."""
        try:
            messages, own = self._asked(state, config)
            reply = ask(self._model(), messages, own, self.timeout)
        except ModelReplyError as error:
            return self._failed(state, str(error))
        return self._read(state, messages, storable(reply.text))

    async def aplan(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Do what `plan` does."""
        try:
            messages, own = self._asked(state, config)
            reply = await aask(self._model(), messages, own, self.timeout)
        except ModelReplyError as error:
            return self._failed(state, str(error))
        return self._read(state, messages, storable(reply.text))

    def _model(self) -> BaseChatModel:
        assert self.model is not None  # the builder gives these nodes to graphs with a planner
        return self.model

    def _asked(
        self, state: MementoState, config: RunnableConfig, *, must_answer: bool = False
    ) -> tuple[list[BaseMessage], RunnableConfig]:
        """Return the messages within the budget, and the configuration that describes the call to a tracer."""
        given = prompt_of("planner") or self.prompt
        request = PlanRequest(
            history=tuple(state["history"]),
            system_prompt=given,
            must_answer=must_answer,
            parallel=self.parallel > 1,
            failed=() if must_answer else tuple(state["attempts"]),
        )
        messages = self._fitted(render_plan(request, self.profile), state["history"])
        prompt = planner_prompt(given, self.profile, parallel=self.parallel > 1)
        own = described(config, ROLE, (), prompt)
        shown = state["cases"] if any(message.name == CASES for message in messages) else []
        read = {"memweave_memories": [[str(case.id), case.version] for case in shown]} if shown else {}
        tags = [*(own.get("tags") or []), TAG_NOSTREAM]
        return messages, {**own, "run_name": ROLE, "tags": tags, "metadata": {**own["metadata"], **read}}

    def _fitted(self, messages: list[BaseMessage], history: Sequence[Said]) -> list[BaseMessage]:
        """Return the latest messages that fit; system message and task never go. Raises `ModelReplyError` when they alone are too much."""
        asked = next(i for i in range(len(history) - 1, -1, -1) if history[i].kind == "query")
        kept = {f"said-{asked}", "must-answer"}
        needed = self.count(least(messages, kept))
        if needed > self.limit:
            raise ModelReplyError(f"the task alone takes {needed} tokens, and {self.limit} are allowed")
        first = next(message.id for message in messages if not isinstance(message, SystemMessage))
        return fitted(messages, self.limit, self.count, question=kept, first=first).context

    def _read(self, state: MementoState, messages: list[BaseMessage], reply: str) -> MementoState:
        cycle = state["cycle"] + 1
        call = PlannerCall(cycle=cycle, inputs=reading.chat_messages(messages), output=reply)
        try:
            turn = parse_plan_reply(reply, max_subtasks=self.max_subtasks)
        except ModelReplyError as error:
            calls = [*state["planner_calls"], call.model_copy(update={"problem": str(error)})]
            attempts = [*state["attempts"], Attempt(reply=reply, error=str(error))]
            if len(attempts) < self.max_attempts:
                return {"planner_calls": calls, "attempts": attempts}
            return {**self._failed(state, str(error)), "planner_calls": calls, "attempts": attempts}
        update: MementoState = {"cycle": cycle, "attempts": [], "planner_calls": [*state["planner_calls"], call]}
        if turn.answer is not None:
            return {**update, **ended("answered", turn.answer)}
        assert turn.plan is not None
        write = get_runtime().stream_writer
        write({"type": "plan", "cycle": cycle, "plan": [one.description for one in turn.plan.subtasks]})
        return {
            **update,
            "plan": turn.plan,
            "plans": [*state["plans"], turn.plan.text],
            "history": [*state["history"], Said(kind="plan", text=reply)],
        }

    def _failed(self, state: MementoState, why: str) -> MementoState:
        return {"cycle": state["cycle"] + 1, **ended("planner_error", None, why)}

    # its subtasks

    def next_task(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Find what is carried out next: the next subtask, or as many as may run at the same time."""
        plan = state["plan"]
        assert plan is not None
        done = {row.subtask for row in state["subtasks"] if row.cycle == state["cycle"]}
        return {"current": ready(plan.subtasks, done)[: self.parallel]}

    async def anext_task(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Do what `next_task` does."""
        return self.next_task(state, config)

    def record_subtask(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Take the results back, in the order of the plan; only they reach the history."""
        rows = sorted(state["finished"], key=lambda row: row.order)
        write = get_runtime().stream_writer
        for row in rows:
            write(
                {"type": "result", "cycle": row.cycle, "task": row.subtask, "result": row.result, "status": row.status}
            )
        emptied: Any = Overwrite([])
        update: MementoState = {"finished": emptied, "current": [], "subtasks": [*state["subtasks"], *rows]}
        if self.model is None:
            return {**update, **_alone(rows[-1])}
        told = [Said(kind="result", text=f"Task {row.subtask} result: {row.result}") for row in rows]
        return {**update, "history": [*state["history"], *told]}

    async def arecord_subtask(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Do what `record_subtask` does."""
        return self.record_subtask(state, config)

    # no cycle is left

    def finalize(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Answer all the same: the planner must, or its last reply stands for it. Raises `UnavailableError`."""
        if self.exhaust == "paper_code":
            return ended("exhausted", self._last_reply(state))
        try:
            messages, own = self._asked(state, config, must_answer=True)
            reply = ask(self._model(), messages, own, self.timeout)
        except ModelReplyError as error:
            return ended("exhausted", None, str(error))
        return self._forced(state, messages, storable(reply.text))

    async def afinalize(self, state: MementoState, config: RunnableConfig) -> MementoState:
        """Do what `finalize` does."""
        if self.exhaust == "paper_code":
            return ended("exhausted", self._last_reply(state))
        try:
            messages, own = self._asked(state, config, must_answer=True)
            reply = await aask(self._model(), messages, own, self.timeout)
        except ModelReplyError as error:
            return ended("exhausted", None, str(error))
        return self._forced(state, messages, storable(reply.text))

    def _forced(self, state: MementoState, messages: list[BaseMessage], reply: str) -> MementoState:
        call = PlannerCall(cycle=state["cycle"] + 1, inputs=reading.chat_messages(messages), output=reply)
        return {**ended("exhausted", forced_answer(reply)), "planner_calls": [*state["planner_calls"], call]}

    @staticmethod
    def _last_reply(state: MementoState) -> str | None:
        return next((said.text for said in reversed(state["history"]) if said.kind == "plan"), None)

    # routing

    def after_plan(self, state: MementoState) -> str:
        """Carry out a plan, ask again for one, or end."""
        if state.get("status"):
            return "evaluate"
        return "plan" if state["attempts"] else "next_task"

    def after_next_task(self, state: MementoState) -> list[Send] | str:
        """Hand out subtasks; when none is left, plan again or end."""
        if state["current"]:
            return self.handed_out(state)
        if state["cycle"] >= self.max_cycles:
            return "finalize_exhausted"
        return "read_cases" if self.each_cycle else "plan"

    def handed_out(self, state: MementoState) -> list[Send]:
        """Return what each subtask is told."""
        plan = state["plan"]
        if plan is None:
            return [Send("subtask", SubtaskInput(subtask=None, order=0, cycle=0, history=state["history"]))]
        return [
            Send(
                "subtask",
                SubtaskInput(
                    subtask=one, order=plan.subtasks.index(one), cycle=state["cycle"], history=state["history"]
                ),
            )
            for one in state["current"]
        ]


def ended(status: Status, answer: str | None, why: str | None = None) -> MementoState:
    """Return the end of a run: how, with what answer, and what the user is told.

    why: what went wrong, if it did.
    """
    said = answer if answer is not None else f"{NO_ANSWER[status]} {f'({why})' if why else ''}".strip()
    return {"status": status, "answer": answer, "messages": [AIMessage(storable(said), id=str(new_id()))]}


def _alone(row: SubtaskRow) -> MementoState:
    """Return the end of a run without a planner."""
    if row.status == "done":
        return ended("answered", row.result.removeprefix("FINAL ANSWER:").strip() or None)
    return ended("executor_cap" if row.status == "cap" else "executor_error", None, row.result)


def _earlier(messages: Sequence[BaseMessage], window: int) -> list[Said]:
    """Return what was said before in this chat: the last messages of user and agent that say something."""
    said = [
        Said(kind="user" if isinstance(message, HumanMessage) else "reply", text=storable(message.text))
        for message in messages
        if isinstance(message, HumanMessage | AIMessage) and message.text.strip()
    ]
    return said[-window:] if window else []


def _about(state: MementoState) -> About:
    given = state.get("ground_truth")
    golds = (given,) if isinstance(given, str) else tuple(given or ())
    try:
        return About(
            task_id=state.get("task_id"),
            family=state.get("family"),
            iteration=state.get("iteration"),
            ground_truth=golds,
        )
    except ValidationError as error:
        where = error.errors()[0]
        raise InputError(f"{where['loc'][0]} = {where['input']!r:.60} cannot be used: {where['msg']}") from None

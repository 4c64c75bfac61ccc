"""What Memento's machine carries from step to step, and the record that it leaves of each query (sections 3.1, 3.2 and 3.6)."""

from __future__ import annotations

import operator
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from langchain_core.messages import AnyMessage, ToolCall
from langgraph.channels import EphemeralValue
from langgraph.graph import add_messages
from pydantic import JsonValue
from typing_extensions import TypedDict

from memweave.agents.planner import Plan, Said, ShownCase, Subtask
from memweave.agents.roles import Attempt
from memweave.graphs.agemem_state import Dialogue
from memweave.records import Name, Record
from memweave.tracing.records import ChatMessage

Status = Literal["answered", "exhausted", "planner_error", "executor_cap", "executor_error"]
"""answered: the planner gave its final answer (without a planner: the executor did).
exhausted: no cycle was left; the answer is the one that was forced, or the text of the last plan, or none.
planner_error: no reply of the planner could be used.
executor_cap, executor_error: without a planner, the executor did not end, or gave nothing that could be used."""

SubtaskStatus = Literal["done", "cap", "no_report", "model_error"]
"""cap: it would go on calling tools.  no_report: neither calls nor text, although asked.  model_error: the model refused the request."""

Decision = Literal["approve", "edit", "reject"]
NO_ANSWER: Final[dict[Status, str]] = {
    "answered": "",
    "exhausted": "I did not come to an answer within the plans that I am allowed.",
    "planner_error": "I could not make a plan for this.",
    "executor_cap": "I stopped: the tools led to no answer within the rounds that I am allowed.",
    "executor_error": "I could not work on this: the model gave no usable reply.",
}
"""What the user is told when there is no answer."""


# records


class ToolRow(Record):
    """One call of a tool: a row of the tool memory."""

    subtask: int
    """Id of the subtask."""
    tool: str
    arguments: dict[str, JsonValue]
    """As they were carried out; those that a person put in, when one did."""
    result: str
    """What the executor was told."""
    ok: bool
    decision: Decision | None = None
    """What a person decided; `None` when nobody was asked."""


class Approval(Record):
    """What a person decided about a call."""

    decision: Decision
    arguments: dict[str, Any] | None = None
    """Instead of the model's, for `edit`."""
    message: str | None = None
    """Why not, for `reject`."""


class SubtaskRow(Record):
    """One subtask carried out: a row of the subtask memory."""

    cycle: int
    order: int
    """Its place in the plan."""
    subtask: int
    """Id in its plan."""
    description: str
    result: str
    """What the planner is told."""
    status: SubtaskStatus
    rounds: int
    """Replies of the executor."""
    tools: tuple[ToolRow, ...] = ()


class PlannerCall(Record):
    """One reply of the planner."""

    cycle: int
    inputs: tuple[ChatMessage, ...]
    output: str
    problem: str | None = None
    """Why it could not be used."""


class About(Record):
    """What the caller says of a query beside its text."""

    task_id: Name | None = None
    family: Name | None = None
    iteration: int | None = None
    ground_truth: tuple[str, ...] = ()
    """Right answers; one is enough."""


class Verdict(Record):
    """What an answer is worth."""

    reward: float | None
    """In [0, 1]; `None`: nobody verified it."""
    by: str | None = None
    """exact_match, judge, evaluate or feedback."""
    reason: str | None = None


class QueryRecord(Record):
    """Everything about one query (section 3.6)."""

    run_id: Name
    query: str
    about: About
    status: Status
    answer: str | None
    plan: str | None
    """The latest plan; `None` when there was none."""
    plans: tuple[str, ...]
    planner_calls: tuple[PlannerCall, ...]
    subtasks: tuple[SubtaskRow, ...]
    """With the calls of tools that each made."""
    cases: tuple[ShownCase, ...]
    """That were shown to the planner."""
    verdict: Verdict
    case_id: UUID | None = None
    """Of the case that was written of it."""

    @property
    def reward(self) -> float | None:
        """Return the reward, `None` when nobody verified the answer."""
        return self.verdict.reward

    @property
    def tool_history(self) -> tuple[ToolRow, ...]:
        """Return all calls of tools, in their order."""
        return tuple(row for subtask in self.subtasks for row in subtask.tools)


# the machine


class MementoInput(TypedDict, total=False):
    """A chat whose last messages are the task. The other fields are about this task alone."""

    messages: Annotated[list[AnyMessage], add_messages]
    task_id: Annotated[str | None, EphemeralValue]
    """A query never retrieves a case of its own."""
    ground_truth: Annotated[str | list[str] | None, EphemeralValue]
    """The right answer, or several of which one is enough."""
    family: Annotated[str | None, EphemeralValue]
    iteration: Annotated[int | None, EphemeralValue]


class MementoOutput(TypedDict, total=False):
    """The chat with the answer, and what came of the task."""

    messages: Annotated[list[AnyMessage], add_messages]
    status: Status | None
    answer: str | None
    reward: float | None
    case_id: str | None
    """Of the case that was written; `None` when none was."""
    record: QueryRecord | None


class MementoState(MementoInput, MementoOutput, total=False):
    """One task on its way. Everything but `messages` begins anew with every task."""

    about: About
    query: str
    run_id: str
    history: list[Said]
    """What planner and executor share: query, cases, plans, results; never a call of a tool."""
    cases: list[ShownCase]
    """Case memory: what is shown to the planner now."""
    seen: list[ShownCase]
    """All that was shown for this task."""
    cycle: int
    """Plans that were asked for."""
    attempts: list[Attempt]
    """Replies of the planner in this cycle that could not be used."""
    planner_calls: list[PlannerCall]
    plan: Plan | None
    plans: list[str]
    current: list[Subtask]
    """What is carried out now."""
    finished: Annotated[list[SubtaskRow], operator.add]
    """What came back of it; emptied by `record_subtask`."""
    subtasks: list[SubtaskRow]
    """Subtask memory."""
    verdict: Verdict


class SubtaskInput(TypedDict, total=False):
    """One subtask, and what is known when it begins."""

    subtask: Subtask | None
    """`None`: the query itself."""
    order: int
    cycle: int
    history: list[Said]


class SubtaskState(SubtaskInput, total=False):
    """A subtask under way; all of it is forgotten when it ends, but for its row."""

    dialogue: Dialogue
    """The executor's replies and the results of its calls."""
    pending: list[ToolCall]
    """Calls of the last reply that have not been carried out."""
    decision: Approval | None
    """What a person decided about the first of them."""
    report: str | None
    """The result, once there is one."""
    rounds: int
    nudges: int
    tool_memory: list[ToolRow]
    status: SubtaskStatus | None
    finished: Annotated[list[SubtaskRow], operator.add]


class SubtaskOutput(TypedDict, total=False):
    """The row of a subtask."""

    finished: Annotated[list[SubtaskRow], operator.add]

"""What the machines of graph memory carry from step to step, and the record that a rollout leaves (specification, sections 2.1 and 3)."""

from __future__ import annotations

from typing import Annotated, Final, Literal
from uuid import UUID

from langchain_core.messages import AnyMessage, ToolCall
from langgraph.channels import EphemeralValue
from pydantic import Field, JsonValue
from typing_extensions import TypedDict

from memweave.agents.tool_protocol import AgentTurn, ProblemKind
from memweave.graphs.agemem_state import Dialogue, Reply
from memweave.graphs.memento_state import About, Verdict
from memweave.records import Name, Record, Text
from memweave.tracing.records import ChatMessage

Arm = Literal["with", "without", "build", "grpo", "eval", "app"]
"""What a rollout is for: the two sides of a reward gap, the graph, training, measuring, or a user."""

Status = Literal["answered", "forced", "no_answer", "invalid", "model_error"]
"""answered: the policy answered by itself.  forced: it had used all its calls, and answered when it had to.
no_answer: not even then.  invalid: two replies could not be read.  model_error: the model refused the request."""

UNANSWERED: Final[dict[Status, str]] = {
    "answered": "",
    "forced": "",
    "no_answer": "I stopped: the tools led to no answer within the calls that I am allowed.",
    "invalid": "I could not answer: the model gave no reply that can be read.",
    "model_error": "I could not work on this: the model refused the request.",
}
"""What the user is told when there is no answer."""


# records


class ShownStrategy(Record):
    """A strategy that was rendered into a prompt."""

    id: UUID
    version: Annotated[int, Field(ge=1)] = 1
    summary: str
    relevance: float | None = None
    """rho: the weighted similarity that reaches it; `None` for one that the query does not activate."""
    probability: float | None = None
    """p: of its being drawn among the activated; `None` where nothing is drawn by it."""


class Guidance(Record):
    """What a policy is advised."""

    text: Text
    """As it stands in the prompt."""
    strategies: tuple[ShownStrategy, ...] = ()
    """That it says; empty for advice that no strategy gave: the controls of an experiment."""
    left_out: tuple[str, ...] = ()
    """Strategies that did not fit into the prompt's budget, each with the reason."""


class CallRow(Record):
    """One call of a tool: the action, its input and its output."""

    number: Annotated[int, Field(ge=1)]
    """Its place among the calls of the rollout."""
    tool: str
    arguments: dict[str, JsonValue]
    result: str
    """What the policy was told."""
    ok: bool
    think: str = ""
    """What it thought when it asked for the call."""


class RolloutRecord(Record):
    """Everything about one rollout (section 3); token ids and log-probabilities are in its trace."""

    run_id: Name
    arm: Arm
    query: str
    about: About
    """`task_id` is the id of the query."""
    k: int
    """Strategies that were shown."""
    guidance: Guidance | None
    prompt_hash: str | None
    status: Status
    answer: str | None
    calls: tuple[CallRow, ...]
    problems: tuple[ProblemKind, ...]
    """What was wrong with replies."""
    dialogue: tuple[ChatMessage, ...]
    """What the policy saw and said, without the system prompt."""
    verdict: Verdict

    @property
    def reward(self) -> float | None:
        """Return the reward, `None` when nobody verified the answer."""
        return self.verdict.reward


# the machine


class RolloutInput(TypedDict, total=False):
    """One query, and what the policy is advised."""

    query: str
    guidance: Guidance | None
    arm: Arm
    query_id: Annotated[str | None, EphemeralValue]
    ground_truth: Annotated[str | list[str] | None, EphemeralValue]
    """The right answer, or several of which one is enough; never shown to the policy."""
    family: Annotated[str | None, EphemeralValue]
    history: list[AnyMessage]
    """What was said before, if anything."""


class RolloutOutput(TypedDict, total=False):
    """What came of a rollout."""

    answer: str | None
    status: Status | None
    reward: float | None
    record: RolloutRecord | None


class RolloutState(RolloutInput, RolloutOutput, total=False):
    """A rollout under way."""

    about: About
    run_id: str
    context: Dialogue
    """What the policy sees, without the system prompt."""
    reply: Reply
    turn: AgentTurn
    pending: list[ToolCall]
    """Calls of the last reply that have not been carried out."""
    calls: list[CallRow]
    retries: int
    """Replies that could not be read."""
    problems: list[ProblemKind]

"""`MemoryMiddleware`: memory for an agent that you have already.

    agent = create_agent("openai:gpt-4.1-mini", tools=[...], middleware=[MemoryMiddleware(bank, scope=Scope(user="anna"))])

It gives the agent AgeMem's six tools, recalls what fits the user's message, and keeps what the model sees within a budget. The public
`messages` only grow: what FILTER, SUMMARY and the budget take away is kept in a private channel as edits, and applied to what the
model is shown. It works wherever LangChain's `AgentMiddleware` does.
"""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Final, NotRequired, cast

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
from langchain.agents.middleware.types import ExtendedModelResponse, OmitFromInput, PrivateStateAttr
from langchain_core.messages import RemoveMessage
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.config import get_config
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.runtime import Runtime
from langgraph.types import Command

from memweave.agents.context import (
    FILTER_THRESHOLD,
    ContextCounter,
    ContextEdit,
    Summarizer,
    estimate_context,
    with_ids,
)
from memweave.agents.memory_tools import (
    LONG_TERM,
    SCHEMAS,
    SHORT_TERM,
    Numbers,
)
from memweave.agents.prompts import prompt_hash
from memweave.agents.recall import TokenCounter, estimate_tokens
from memweave.errors import UsageError
from memweave.graphs.memory_middleware_text import extended, instructions_for
from memweave.graphs.memory_middleware_tools import MemoryTools, Summarizers, merged
from memweave.graphs.memory_middleware_view import Overflow, Recalled, View, fitting, query_of, view_of
from memweave.graphs.session import (
    BankSource,
    DefaultScope,
    LazyBank,
    current_run_id,
    current_scope,
    quiet_known_types,
)
from memweave.models import model_name
from memweave.records import MemoryHit, storable

RECALL_LIMIT: Final = 20
"""Most memories that are recalled for one message, before the token budget."""


# State


class MemoryState(AgentState[Any]):
    """What the middleware keeps beside the messages."""

    memory_numbers: NotRequired[Annotated[Numbers, PrivateStateAttr, merged]]
    """Under which number the model was shown each memory, in this thread."""
    memory_edits: NotRequired[Annotated[list[ContextEdit], PrivateStateAttr, operator.add]]
    """What was taken out of the model's context, oldest first."""
    memory_recalled: NotRequired[Annotated[Recalled | None, PrivateStateAttr]]
    """What stands before the user's message."""
    memory_run: NotRequired[Annotated[str, PrivateStateAttr]]
    """Id under which the run's operations are logged."""
    memory_actor: NotRequired[Annotated[str, PrivateStateAttr]]
    """Name of the model that replied last."""
    memory_overflow: NotRequired[Annotated[Overflow | None, OmitFromInput]]
    """The first model call of the run that was larger than the budget; `None` or absent when there was none."""


# Middleware


class MemoryMiddleware(AgentMiddleware[MemoryState, Any, Any]):
    """Give an agent long-term memory, recall, and control of its context.

    bank: where memories live (`open_bank`), a branch of it, or a function that opens it when it is first needed.
    scope: whose memories, for runs whose context names no user (`context={"user": "anna"}`); the server's authenticated user
    always wins.
    tools: names of the tools to offer (`memweave.agents.memory_tools`); by default all six.  recall: whether memories that fit the
    user's message are put before it.  recall_tokens: most tokens of them, as `count_tokens` counts a text.
    context_tokens: most tokens that the model sees, system message and recalled memories included, definitions of tools not; `None`
    leaves the messages alone.  count_context: counts them.
    summarizer: who writes summaries; by default the model that asks for one.  filter_threshold: cosine from which a message matches
    the criteria of FILTER; it depends on the embedding model.
    instructions: appended to the system message: `True` for a text that says what the offered tools are for, `False` for nothing,
    or a text of your own.

    Raises `UsageError` for an unknown tool or a budget below 1. In a run: `ScopeError` when nobody says whose memories,
    `UnavailableError` when a server is away.
    """

    state_schema = MemoryState

    def __init__(
        self,
        bank: BankSource,
        *,
        scope: DefaultScope = None,
        tools: Collection[str] = (*LONG_TERM, *SHORT_TERM),
        recall: bool = True,
        recall_tokens: int = 1_000,
        count_tokens: TokenCounter = estimate_tokens,
        context_tokens: int | None = None,
        count_context: ContextCounter = estimate_context,
        summarizer: Summarizer | None = None,
        filter_threshold: float = FILTER_THRESHOLD,
        instructions: str | bool = True,
    ) -> None:
        super().__init__()
        names = _known(tools)
        if recall_tokens < 1 or (context_tokens is not None and context_tokens < 1):
            raise UsageError(
                f"recall_tokens={recall_tokens}, context_tokens={context_tokens}: a budget is 1 token at least; "
                "recall=False recalls nothing, context_tokens=None sets no limit"
            )
        self.bank = LazyBank(bank)
        self.scope = scope
        self.recall = recall
        self.recall_tokens = recall_tokens
        self.count_tokens = count_tokens
        self.context_tokens = context_tokens
        self.count_context = count_context
        self.instructions = instructions_for(names, recall) if instructions is True else instructions or None
        self._summarizers = Summarizers(summarizer)
        self.tools = MemoryTools(self.bank, scope, names, self._summarizers, filter_threshold).tools()
        quiet_known_types()

    # a run begins

    def before_agent(self, state: MemoryState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Name the run, and find what fits the user's message."""
        scope, query = current_scope(self.scope), self._query(state)
        hits = self.bank.get().search(query, scope=scope, limit=RECALL_LIMIT) if query else []
        return self._begun(state, hits)

    async def abefore_agent(self, state: MemoryState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Name the run, and find what fits the user's message."""
        scope, query = current_scope(self.scope), self._query(state)
        hits = await (await self.bank.aget()).asearch(query, scope=scope, limit=RECALL_LIMIT) if query else []
        return self._begun(state, hits)

    def _query(self, state: MemoryState) -> str:
        return storable(query_of(state["messages"])) if self.recall else ""

    def _begun(self, state: MemoryState, hits: Sequence[MemoryHit]) -> dict[str, Any]:
        update: dict[str, Any] = {"memory_run": current_run_id(get_config())}
        if any(message.id is None for message in state["messages"]):
            # Some agents (deepagents) leave a message without an id, by which it is named here.
            update["messages"] = [RemoveMessage(REMOVE_ALL_MESSAGES), *with_ids(state["messages"])]
        if state.get("memory_overflow") is not None:
            update["memory_overflow"] = None
        numbers = state.get("memory_numbers") or Numbers()
        found = fitting([hit.memory for hit in hits], numbers, self.recall_tokens, self.count_tokens)
        if found:
            numbers = numbers.including([memory.id for memory in found])
            refs = [(str(memory.id), memory.version) for memory in found]
            update |= {
                "memory_numbers": numbers,
                "memory_recalled": Recalled(text=numbers.lines(found), memories=refs),
            }
        elif state.get("memory_recalled") is not None:
            update["memory_recalled"] = None
        return update

    # the model is asked

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Show the model its context, and note what was changed about it."""
        asked, view = self._asked(request)
        with _traced(asked, view):
            response = handler(asked)
        return self._replied(asked, view, response)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Show the model its context, and note what was changed about it."""
        asked, view = self._asked(request)
        with _traced(asked, view):
            response = await handler(asked)
        return self._replied(asked, view, response)

    def _asked(self, request: ModelRequest[Any]) -> tuple[ModelRequest[Any], View]:
        state = cast(MemoryState, request.state)
        system = extended(request.system_message, self.instructions)
        view = view_of(
            request.messages,
            system=system,
            edits=state.get("memory_edits") or (),
            recalled=state.get("memory_recalled"),
            limit=self.context_tokens,
            count=self.count_context,
        )
        return request.override(messages=view.messages, system_message=system), view

    def _replied(
        self, request: ModelRequest[Any], view: View, response: ModelResponse[Any]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        update: dict[str, Any] = {}
        if (actor := model_name(request.model)) != request.state.get("memory_actor"):
            update["memory_actor"] = actor
        if view.edit is not None:
            update["memory_edits"] = [view.edit]
        if view.overflow is not None and request.state.get("memory_overflow") is None:
            update["memory_overflow"] = view.overflow
        self._summarizers.note(request.model, response.result)
        return ExtendedModelResponse(response, Command(update=update)) if update else response


@contextmanager
def _traced(request: ModelRequest[Any], view: View) -> Iterator[None]:
    """Let a tracer know which memories stand in the prompt of the model call inside, and the hash of its instructions."""
    about: dict[str, Any] = {}
    if view.memories:
        about["memweave_memories"] = [list(each) for each in view.memories]
    if request.system_message is not None:
        about["memweave_prompt_hash"] = prompt_hash(request.system_message.text)
    config = get_config()
    token = var_child_runnable_config.set({**config, "metadata": {**(config.get("metadata") or {}), **about}})
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)


def _known(tools: Collection[str]) -> tuple[str, ...]:
    """Return the names in the order in which the tools are offered. Raises `UsageError` for an unknown one."""
    unknown = [tools] if isinstance(tools, str) else [name for name in tools if name not in SCHEMAS]
    if unknown:
        raise UsageError(f"tools={unknown}: there are no such memory tools. Known: {', '.join(SCHEMAS)}")
    return tuple(name for name in SCHEMAS if name in tools)

"""The six memory operations as tools: ADD, UPDATE, DELETE on the bank, RETRIEVE, SUMMARY, FILTER on the context (AgeMem, 2.2).

One implementation for every way of calling them: native tool calls, the text protocol, and `MemoryMiddleware`. What a model gets wrong
is an outcome with `ok=False` and a text that says what to do, never an exception. Memories are shown with short numbers, never with
their ids; a number stays with its memory as long as the same `Numbers` are passed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from langchain_core.messages import BaseMessage, ToolCall
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphBubbleUp
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from memweave.agents.context import (
    FILTER_THRESHOLD,
    ContextEdit,
    Summarizer,
    matching,
    span_of,
    summarized,
)
from memweave.agents.replies import as_index
from memweave.agents.roles import dated, one_line
from memweave.agents.tool_protocol import TOO_DEEP, too_deep
from memweave.errors import (
    ConflictError,
    InputError,
    MemweaveError,
    ScopeError,
    UnavailableError,
    UnknownMemoryError,
)
from memweave.memory_stores import MemoryStore
from memweave.records import Memory, MemoryOp, OpKind, ProposedOp, Record, Scope, storable, utc_now

ADD: Final = "Add_memory"
UPDATE: Final = "Update_memory"
DELETE: Final = "Delete_memory"
RETRIEVE: Final = "Retrieve_memory"
SUMMARY: Final = "Summary_context"
FILTER: Final = "Filter_context"

TOP_K: Final = 3
"""Memories that RETRIEVE returns when the model does not say (section 4)."""
MOST_RETRIEVED: Final = 20
LONGEST_QUERY: Final = 4_000
TYPE_KEY: Final = "memory_type"
"""Where a memory's type is kept in its metadata."""

Fault = Literal[
    "unknown_tool", "bad_arguments", "unknown_memory", "not_confirmed", "changed_meanwhile", "nothing_matched",
    "nothing_to_summarize", "tool_error",
]  # fmt: skip
"""What was wrong with a call."""


# what a model may pass


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


def _as_number(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class AddMemory(_Arguments):
    """Store a new fact in long-term memory. Its number is returned."""

    content: str = Field(min_length=1, description="The fact, in words that can be understood on their own.")
    metadata: dict[str, JsonValue] | None = Field(default=None, description="Anything to keep beside it.")
    memory_type: str | None = Field(default=None, description="What kind of fact it is, in a word.")


class UpdateMemory(_Arguments):
    """Replace the text of a memory, for example because the fact has changed."""

    memory_id: Annotated[str, BeforeValidator(_as_number)] = Field(description="Number of the memory, as it was shown.")
    content: str = Field(min_length=1, description="The whole new text.")
    metadata: dict[str, JsonValue] | None = Field(default=None, description="Added to what is kept beside it.")


class DeleteMemory(_Arguments):
    """Remove a memory that is no longer true."""

    memory_id: Annotated[str, BeforeValidator(_as_number)] = Field(description="Number of the memory, as it was shown.")
    confirmation: bool = Field(
        validation_alias=AliasChoices("confirmation", "confirmed"), description="true; with false nothing is deleted."
    )


class RetrieveMemory(_Arguments):
    """Look in long-term memory. The memories that fit best are returned with their numbers."""

    query: str = Field(min_length=1, description="What to look for.")
    top_k: int = Field(default=TOP_K, ge=1, description="How many memories.")
    metadata_filter: dict[str, JsonValue] | None = Field(
        default=None, description="Only memories whose metadata have these values."
    )


class SummaryContext(_Arguments):
    """Replace a part of the conversation by a summary, to save space in your context."""

    span: Annotated[str, BeforeValidator(_as_number)] = Field(
        description='"all", or the number of latest messages, e.g. "6".'
    )


class FilterContext(_Arguments):
    """Remove messages from your context, to save space."""

    criteria: str = Field(min_length=1, description="A description of what to remove.")


SCHEMAS: Final[Mapping[str, type[_Arguments]]] = {
    ADD: AddMemory,
    UPDATE: UpdateMemory,
    DELETE: DeleteMemory,
    RETRIEVE: RetrieveMemory,
    SUMMARY: SummaryContext,
    FILTER: FilterContext,
}
LONG_TERM: Final = (ADD, UPDATE, DELETE)
SHORT_TERM: Final = (RETRIEVE, SUMMARY, FILTER)
ALIASES: Final = {"Clear_context": FILTER}
"""Other names of a tool (A13): that of the released code."""


def tool_specs(names: Sequence[str] = (*LONG_TERM, *SHORT_TERM)) -> list[dict[str, Any]]:
    """Return the tools as the OpenAI protocol describes them, for `bind_tools` and for prompts."""
    return [deepcopy(_spec(name)) for name in names]


@lru_cache(maxsize=16)
def _spec(name: str) -> dict[str, Any]:
    schema = SCHEMAS[name]
    about = {"name": name, "description": schema.__doc__ or "", "parameters": _parameters(schema)}
    return {"type": "function", "function": about}


def _parameters(schema: type[_Arguments]) -> dict[str, Any]:
    made = schema.model_json_schema(by_alias=False)
    properties = {}
    for name, given in made.get("properties", {}).items():
        # Optional arguments can be left out; that they may be null too only costs tokens.
        chosen = next((each for each in given.get("anyOf", ()) if each.get("type") != "null"), given)
        # `additionalProperties` says "any JSON" by a reference that nothing resolves here; without it, it is the same.
        dropped = ("anyOf", "title", "default", "additionalProperties")
        properties[name] = {k: v for k, v in {**given, **chosen}.items() if k not in dropped}
    return {"type": "object", "properties": properties, "required": made.get("required", [])}


# numbers


class Numbers(Record):
    """Which number each memory is shown under: 1 for the first that was shown, and so on."""

    ids: tuple[UUID, ...] = ()

    def of(self, memory_id: UUID) -> int | None:
        """Return the number of a memory, or `None`."""
        return self.ids.index(memory_id) + 1 if memory_id in self.ids else None

    def find(self, given: str) -> UUID | None:
        """Return the memory that a model means by `given` (`3`, `[3]`), or `None`."""
        number = as_index(given)
        return self.ids[number - 1] if number is not None and 1 <= number <= len(self.ids) else None

    def including(self, ids: Sequence[UUID]) -> Numbers:
        """Return the numbers with those of `ids` that have none yet."""
        new = [each for each in dict.fromkeys(ids) if each not in self.ids]
        return Numbers(ids=(*self.ids, *new)) if new else self

    def lines(self, memories: Sequence[Memory]) -> str:
        """Return one line `- 2023-05-08: text [3]` per memory; the number comes last (docs/decisions/0004)."""
        return "\n".join(f"- {one_line(dated(memory))} [{self.of(memory.id)}]" for memory in memories)


# running one


class Outcome(Record):
    """What came of one call."""

    name: str
    """Of the tool; as the model wrote it, when there is none of that name."""
    ok: bool
    text: str
    """For the model."""
    fault: Fault | None = None
    ops: tuple[MemoryOp, ...] = ()
    retrieved: tuple[Memory, ...] = ()
    edit: ContextEdit | None = None
    numbers: Numbers | None = None
    """The numbers afterwards, when the call gave new ones."""


@dataclass(frozen=True)
class Call:
    """A call whose arguments are checked."""

    name: str
    arguments: _Arguments
    reason: str
    """Why the model makes it, for the log."""


@dataclass(frozen=True)
class Workplace:
    """What a call works on."""

    store: MemoryStore
    scope: Scope
    numbers: Numbers
    context: Sequence[BaseMessage] = ()
    """What the model sees."""
    keep: Collection[str] = ()
    """Ids of messages that no operation removes."""
    summarizer: Summarizer | None = None
    actor: str = "agent"
    policy_version: str | None = None
    run_id: str | None = None
    source_ids: tuple[str, ...] = ()
    dated: bool = True
    """Whether new memories carry the time at which they were written."""
    threshold: float = FILTER_THRESHOLD
    top_k: int | None = None
    """Fixes how many memories RETRIEVE returns."""


def checked(call: ToolCall, *, names: Collection[str], reason: str = "") -> Call | Outcome:
    """Return a call of one of the tools `names` with its arguments checked, or the outcome that says what is wrong."""
    name = ALIASES.get(call["name"], call["name"])
    if name not in names or name not in SCHEMAS:
        known = ", ".join(names)
        return failed(call["name"], "unknown_tool", f"there is no tool {call['name']!r:.60}. Use one of: {known}")
    if too_deep(call["args"]):
        return failed(name, "bad_arguments", f"{name}: {TOO_DEEP}")
    try:
        arguments = SCHEMAS[name].model_validate(call["args"])
    except ValidationError as error:
        return failed(name, "bad_arguments", _problem(name, error))
    return Call(name, arguments, one_line(reason)[:2_000] or f"{name}, called without a reason")


def _problem(name: str, error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))[:60] or "arguments"
    required = [each for each, field in SCHEMAS[name].model_fields.items() if field.is_required()]
    what = {"missing": "is missing", "extra_forbidden": "is no argument of this tool"}.get(first["type"], first["msg"])
    return f"{name}: {where} {what}. It needs {', '.join(required)}"


def failed(name: str, fault: Fault, text: str) -> Outcome:
    """Return the outcome of a call that did nothing."""
    return Outcome(name=name, ok=False, fault=fault, text=storable(f"Error: {text}."))


def run(call: Call | Outcome, at: Workplace, config: RunnableConfig | None = None) -> Outcome:
    """Run one call; of a call that was refused already, its outcome. A write that a model got wrong is logged as a failed operation.

    Raises `UnavailableError` when a server is away: that is no fault of the model.
    """
    outcome = call if isinstance(call, Outcome) else _ran(call, at, config)
    if not _to_log(outcome):
        return outcome
    try:
        failure = at.store.reject(outcome.text, scope=at.scope, **_rejected(call, at))
    except Exception as error:
        return _caught(call, error)
    return outcome.model_copy(update={"ops": (failure,)})


async def arun(call: Call | Outcome, at: Workplace, config: RunnableConfig | None = None) -> Outcome:
    """Run one call, as `run` does."""
    outcome = call if isinstance(call, Outcome) else await _aran(call, at, config)
    if not _to_log(outcome):
        return outcome
    try:
        failure = await at.store.areject(outcome.text, scope=at.scope, **_rejected(call, at))
    except Exception as error:
        return _caught(call, error)
    return outcome.model_copy(update={"ops": (failure,)})


def _to_log(outcome: Outcome) -> bool:
    """Return whether an outcome is a write that the model got wrong; one that it did not confirm is none."""
    return outcome.name in LONG_TERM and outcome.fault in ("bad_arguments", "unknown_memory", "changed_meanwhile")


def _rejected(call: Call | Outcome, at: Workplace) -> dict[str, Any]:
    reason = call.reason if isinstance(call, Call) else f"{call.name}, with arguments that make no sense"
    return {
        "actor": at.actor,
        "reason": storable(reason),
        "run_id": at.run_id,
        "policy_version": at.policy_version,
    }


def _ran(call: Call, at: Workplace, config: RunnableConfig | None) -> Outcome:
    try:
        if isinstance(call.arguments, RetrieveMemory):
            query, limit = _query(call.arguments, at)
            return _retrieved(
                call.arguments, at, [hit.memory for hit in at.store.search(query, scope=at.scope, limit=limit)]
            )
        if isinstance(call.arguments, SummaryContext):
            return _or_summary(call, at, lambda span: _summarizer(at).summarize(span, config))
        if isinstance(call.arguments, FilterContext):
            return _filtered(call.arguments, at)
        planned = _planned(call, at, _target(call, at, lambda found: at.store.get(found, scope=at.scope)))
        return (
            planned if isinstance(planned, Outcome) else _written(call, at, at.store.apply([planned], scope=at.scope))
        )
    except Exception as error:
        return _caught(call, error)


async def _aran(call: Call, at: Workplace, config: RunnableConfig | None) -> Outcome:
    try:
        if isinstance(call.arguments, RetrieveMemory):
            query, limit = _query(call.arguments, at)
            hits = await at.store.asearch(query, scope=at.scope, limit=limit)
            return _retrieved(call.arguments, at, [hit.memory for hit in hits])
        if isinstance(call.arguments, SummaryContext):
            span = _span(call.arguments, at)
            if isinstance(span, Outcome):
                return span
            text = await _summarizer(at).asummarize([m for unit in span for m in unit], config)
            return _summary(span, text)
        if isinstance(call.arguments, FilterContext):
            return await asyncio.to_thread(_filtered, call.arguments, at)  # it embeds, which may take a while
        found = _named(call, at)
        memory = None if found is None else await at.store.aget(found, scope=at.scope)
        planned = _planned(call, at, memory)
        if isinstance(planned, Outcome):
            return planned
        return _written(call, at, await at.store.aapply([planned], scope=at.scope))
    except Exception as error:
        return _caught(call, error)


def _caught(call: Call | Outcome, error: Exception) -> Outcome:
    """Return what a tool's failure is to the model. What is no fault of its stays an error: a server that is away, another's data."""
    if isinstance(error, UnavailableError | ScopeError | GraphBubbleUp):
        raise error
    if isinstance(error, UnknownMemoryError):
        return failed(
            call.name, "unknown_memory", "that memory does not exist any more. Retrieve before you change one"
        )
    if isinstance(error, ConflictError):
        return failed(call.name, "changed_meanwhile", "the memory was changed meanwhile. Retrieve it again")
    if isinstance(error, ValidationError):
        return failed(call.name, "bad_arguments", one_line(error.errors(include_url=False)[0]["msg"])[:300])
    if isinstance(error, ValueError):
        return failed(call.name, "bad_arguments", one_line(str(error)).rstrip(".")[:300])
    what = one_line(str(error)).rstrip(".")[:300] if isinstance(error, MemweaveError) else type(error).__name__
    return failed(call.name, "tool_error", f"the tool failed ({what}). Go on without it, or try once more")


def _query(given: RetrieveMemory, at: Workplace) -> tuple[str, int]:
    limit = min(at.top_k or given.top_k, MOST_RETRIEVED)
    # With a filter more is read than shown: the index does not know metadata.
    return storable(given.query)[:LONGEST_QUERY], 10 * MOST_RETRIEVED if given.metadata_filter else limit


def _retrieved(given: RetrieveMemory, at: Workplace, found: Sequence[Memory]) -> Outcome:
    wanted = given.metadata_filter or {}
    fitting = [m for m in found if all(k in m.metadata and m.metadata[k] == v for k, v in wanted.items())]
    shown = fitting[: min(at.top_k or given.top_k, MOST_RETRIEVED)]
    numbers = at.numbers.including([memory.id for memory in shown])
    text = numbers.lines(shown) if shown else "No memory fits."
    return Outcome(name=RETRIEVE, ok=True, text=text, retrieved=tuple(shown), numbers=numbers)


def _named(call: Call, at: Workplace) -> UUID | None:
    given = call.arguments
    return at.numbers.find(given.memory_id) if isinstance(given, UpdateMemory | DeleteMemory) else None


def _target(call: Call, at: Workplace, get: Callable[[UUID], Memory]) -> Memory | None:
    found = _named(call, at)
    return None if found is None else get(found)


def _planned(call: Call, at: Workplace, memory: Memory | None) -> ProposedOp | Outcome:
    """Return the operation that a call of ADD, UPDATE or DELETE asks for."""
    given = call.arguments
    common: dict[str, Any] = {
        "reason": storable(call.reason),
        "actor": at.actor,
        "policy_version": at.policy_version,
        "run_id": at.run_id,
        "source_ids": at.source_ids,
    }
    when: dict[str, Any] = {"observed_at": utc_now()} if at.dated else {}
    if isinstance(given, AddMemory):
        about = {**(given.metadata or {}), **({TYPE_KEY: given.memory_type} if given.memory_type else {})}
        return ProposedOp(kind=OpKind.ADD, text=storable(given.content), metadata=about or None, **when, **common)
    if not isinstance(given, UpdateMemory | DeleteMemory):
        raise TypeError(f"{call.name} writes nothing")
    if memory is None:
        shown = f"Numbers go from 1 to {len(at.numbers.ids)}" if at.numbers.ids else "None was shown yet"
        return failed(
            call.name,
            "unknown_memory",
            f"there is no memory {given.memory_id!r:.40}. {shown}; retrieve before you change one",
        )
    target: dict[str, Any] = {"memory_id": memory.id, "expected_version": memory.version, **common}
    if isinstance(given, DeleteMemory):
        if not given.confirmation:
            return failed(call.name, "not_confirmed", "nothing was deleted, because confirmation is false")
        return ProposedOp(kind=OpKind.DELETE, **target)
    merged = {**memory.metadata, **given.metadata} if given.metadata else None
    return ProposedOp(kind=OpKind.UPDATE, text=storable(given.content), metadata=merged, **when, **target)


def _written(call: Call, at: Workplace, ops: Sequence[MemoryOp]) -> Outcome:
    ids = [op.memory_id for op in ops if op.memory_id is not None]
    numbers = at.numbers.including(ids)
    done = {ADD: "Added", UPDATE: "Updated", DELETE: "Deleted"}[call.name]
    return Outcome(name=call.name, ok=True, text=f"{done} [{numbers.of(ids[0])}].", ops=tuple(ops), numbers=numbers)


def _filtered(given: FilterContext, at: Workplace) -> Outcome:
    edit = matching(at.context, given.criteria, at.store.embedder, keep=at.keep, threshold=at.threshold)
    if edit is None:
        return failed(FILTER, "nothing_matched", "no message matches. Describe one with its own words")
    return Outcome(name=FILTER, ok=True, text=f"Removed {_messages(len(edit.removed))}.", edit=edit)


def _or_summary(call: Call, at: Workplace, write: Callable[[Sequence[BaseMessage]], str]) -> Outcome:
    if not isinstance(call.arguments, SummaryContext):
        raise TypeError(f"{call.name} summarises nothing")
    span = _span(call.arguments, at)
    return span if isinstance(span, Outcome) else _summary(span, write([m for unit in span for m in unit]))


def _span(given: SummaryContext, at: Workplace) -> list[list[BaseMessage]] | Outcome:
    span = span_of(at.context, given.span, keep=at.keep)
    return span or failed(SUMMARY, "nothing_to_summarize", "there is nothing to summarise yet")


def _summary(span: Sequence[Sequence[BaseMessage]], text: str) -> Outcome:
    edit = summarized(span, storable(text) or "Nothing that matters was said.")
    return Outcome(name=SUMMARY, ok=True, text=f"Summarised {_messages(len(edit.removed))}.", edit=edit)


def _summarizer(at: Workplace) -> Summarizer:
    if at.summarizer is None:
        raise InputError("nobody is there to summarise")
    return at.summarizer


def _messages(number: int) -> str:
    return f"{number} message{'s' if number != 1 else ''}"

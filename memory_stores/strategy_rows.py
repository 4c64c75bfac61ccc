"""Queries and strategies as memories, and back: the question or the summary is the text, everything else is its metadata."""

from __future__ import annotations

from typing import Any, Final

from pydantic import JsonValue

from memweave.graph_records import (
    DOUBT,
    DROPPED_AFTER,
    MAX_SCORE,
    MIN_SCORE,
    SUPPORT,
    NewQuery,
    NewStrategy,
    Principle,
    QueryNode,
    RolloutOutcome,
    Strategy,
    StrategyKind,
)
from memweave.records import Memory

QUERY: Final = "query"
STRATEGY: Final = "strategy"


def query_metadata(query: NewQuery, outcomes: tuple[RolloutOutcome, ...]) -> dict[str, JsonValue]:
    """Return what of a query is no text."""
    kept = query.model_dump(mode="json", exclude={"text"}, exclude_defaults=True)
    return {QUERY: {**kept, "outcomes": [each.model_dump(mode="json", exclude_defaults=True) for each in outcomes]}}


def query_of(memory: Memory) -> QueryNode:
    """Return the query in a memory of the collection; trusts the ledger and validates nothing."""
    kept: Any = memory.metadata[QUERY]  # written by `query_metadata`
    outcomes = tuple(
        RolloutOutcome.model_construct(**{**each, "states": tuple(each["states"])}) for each in kept["outcomes"]
    )
    return QueryNode.model_construct(
        id=memory.id,
        scope=memory.scope,
        recorded_at=memory.recorded_at,
        text=memory.text,
        **{**kept, "outcomes": outcomes},
    )


def strategy_metadata(strategy: NewStrategy, evidence: int = 1, contradictions: int = 0) -> dict[str, JsonValue]:
    """Return what of a strategy is no text."""
    kept = strategy.model_dump(mode="json", include=set(NewStrategy.model_fields) - {"summary"}, exclude_defaults=True)
    return {STRATEGY: {**kept, "evidence": evidence, "contradictions": contradictions}}


def strategy_of(memory: Memory) -> Strategy:
    """Return the strategy in a memory of the collection; trusts the ledger and validates nothing."""
    kept: Any = memory.metadata[STRATEGY]  # written by `strategy_metadata`
    principles = tuple(Principle.model_construct(**each) for each in kept.get("principles", ()))
    return Strategy.model_construct(
        id=memory.id,
        scope=memory.scope,
        recorded_at=memory.recorded_at,
        version=memory.version,
        summary=memory.text,
        **{**kept, "principles": principles, "kind": StrategyKind(kept["kind"])},
    )


def supported(known: Strategy, new: NewStrategy, *, rewritten: bool) -> Strategy:
    """Return a strategy after experience supported it once more (UpdateConfidence): its score and that of every principle confirmed, + 5.

    rewritten: take over the new one's summary, principles and uncertainty, scores of principles included.
    """
    risen = {"score": min(MAX_SCORE, known.score + SUPPORT), "evidence": known.evidence + 1}
    if rewritten:
        said = {"summary": new.summary, "principles": new.principles, "uncertainty": new.uncertainty}
        return known.model_copy(update={**risen, **said})
    confirmed = {principle.text for principle in new.principles}
    principles = tuple(
        principle.model_copy(update={"score": min(MAX_SCORE, principle.score + SUPPORT)})
        if principle.text in confirmed
        else principle
        for principle in known.principles
    )
    return known.model_copy(update={**risen, "principles": principles})


def contradicted(known: Strategy) -> Strategy | None:
    """Return a strategy after experience contradicted it; `None` when that was once too often."""
    score, times = max(MIN_SCORE, known.score - DOUBT), known.contradictions + 1
    if score <= MIN_SCORE and times >= DROPPED_AFTER:
        return None
    return known.model_copy(update={"score": score, "contradictions": times})

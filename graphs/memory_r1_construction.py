"""Memory-R1's construction of memories, as a state machine (arXiv 2508.19828; section 3.1 of the specification).

    begin -> next_turn -> extract -> retrieve -> manage -> validate -> apply -> next_turn ... report

A reply that cannot be used goes back to its role with the reason, `max_attempts` times in all; then the turn is
rejected: a failed operation in the log, nothing changed, the turn pending for a later run. The state holds one turn at
a time; the truth is in the ledger, so a run that dies is simply run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer
from typing_extensions import TypedDict

from memweave.agents.extractor import parse_extract_reply
from memweave.agents.llm import PolicyLike, as_extractor, as_manager
from memweave.agents.manager import parse_manage_reply
from memweave.agents.roles import Attempt, Extractor, ExtractRequest, Fact, Manager, ManageRequest, Policy
from memweave.errors import ConflictError, ModelReplyError, UnavailableError, UnknownMemoryError
from memweave.graphs.memory_r1_context import MemoryR1Context, prompt_of
from memweave.graphs.session import (
    BankSource,
    DefaultScope,
    LazyBank,
    Node,
    areport,
    current_run_id,
    current_scope,
    emit,
    quiet_known_types,
    report,
)
from memweave.records import IndexFilter, Memory, MemoryHit, MemoryOp, ProposedOp, Record, StoredTurn, TurnStatus

TOP_K: Final = 10
"""Memories that the manager sees per fact (section 3.8: not given in the paper; Mem0's default)."""
HISTORY_WINDOW: Final = 50
"""Turns before the present one that the extractor sees (section 5, B1: 50 or 24)."""
RULE_WINDOW: Final = 16
"""The same for rules, which look only for whom and what the turn talks about; reading 50 would be half of their work."""

_CHUNK: Final = 64


# state


class FailedTurn(Record):
    """A turn that could not be turned into operations; it stays pending."""

    dialogue: str
    source_id: str
    position: int
    error: str


class ConstructionInput(TypedDict, total=False):
    """What to construct from; everything that is pending, by default."""

    dialogue: str | None
    """Only turns of this dialogue."""
    run_id: str
    """Name of the run, for `undo_run`; by default the server's run id, or a new one."""
    max_turns: int | None
    """Most turns to work on in this run."""


class ConstructionOutput(TypedDict, total=False):
    """What came of it."""

    run_id: str
    turns_done: int
    failed: list[FailedTurn]
    stopped: str | None
    """Why the run ended before all turns were tried, if it did."""
    operations: list[MemoryOp]
    """The log of this run, failed operations included."""


class ConstructionState(ConstructionInput, ConstructionOutput, total=False):
    """The turn in hand and how far it got. Every field is replaced, none accumulates."""

    queue: list[StoredTurn]
    """Pending turns read ahead: those with the fewest failed attempts first, then in order of arrival."""
    turn: StoredTurn | None
    facts: list[Fact]
    memories: list[Memory]
    reply: str
    attempts: list[Attempt]
    """Refused replies of the role at work, for this turn."""
    conflicts: int
    """Times that the memories of this turn changed between retrieval and writing."""
    proposed: list[ProposedOp]
    problem: str | None
    """What is wrong with the last step, or `None`."""
    retry: bool
    """Whether that step may be repeated."""


# nodes


@dataclass(frozen=True)
class _Construction:
    bank: LazyBank
    extractor: Extractor
    manager: Manager
    scope: DefaultScope
    top_k: int
    history_window: int
    max_attempts: int
    max_turns: int
    events: bool

    def begin(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        """Start a run with clean counters; a checkpointed thread still has those of the last one."""
        current_scope(self.scope)  # refuse a run without a user before anything is done
        run_id = state.get("run_id") or current_run_id(config)
        return {"run_id": run_id, "turns_done": 0, "failed": [], "stopped": None, "operations": [], "queue": []}

    async def abegin(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        return self.begin(state, config)

    def next_turn(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        """Take the next pending turn; there is none when the run is over."""
        if state["queue"] or state["stopped"]:
            return self._taken(state, state["queue"])
        scope, limit = current_scope(self.scope), _CHUNK + len(state["failed"])
        pending = self.bank.get().turns(
            scope=scope, dialogue=state.get("dialogue"), status=TurnStatus.PENDING, limit=limit
        )
        return self._taken(state, pending)

    async def anext_turn(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        if state["queue"] or state["stopped"]:
            return self._taken(state, state["queue"])
        scope, limit = current_scope(self.scope), _CHUNK + len(state["failed"])
        pending = await (await self.bank.aget()).aturns(
            scope=scope, dialogue=state.get("dialogue"), status=TurnStatus.PENDING, limit=limit
        )
        return self._taken(state, pending)

    def _taken(self, state: ConstructionState, turns: list[StoredTurn]) -> ConstructionState:
        failed = {turn.position for turn in state["failed"]}
        queue = [turn for turn in turns if turn.position not in failed]
        queue.sort(key=lambda turn: (turn.attempts, turn.position))
        fresh = ConstructionState(
            turn=None, facts=[], memories=[], reply="", attempts=[], conflicts=0, proposed=[], problem=None, retry=False
        )
        most = min(self.max_turns, state.get("max_turns") or self.max_turns)
        if state["stopped"] or not queue:
            return {**fresh, "queue": []}
        if state["turns_done"] + len(failed) >= most:
            return {**fresh, "queue": [], "stopped": f"{most} turns were worked on, the most for one run; run it again"}
        return {**fresh, "turn": queue[0], "queue": queue[1:]}

    def extract(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        """Ask which facts the turn states."""
        turn, history = _turn(state), list[StoredTurn]()
        if self.history_window:
            history = self.bank.get().turns(
                scope=turn.scope, dialogue=turn.dialogue, before=turn.position, limit=self.history_window
            )
        request = self._extract_request(state, history)
        try:
            return self._extracted(state, request, self.extractor.reply(request, config))
        except (UnavailableError, ModelReplyError) as error:
            return _no_reply(error)

    async def aextract(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        turn, history = _turn(state), list[StoredTurn]()
        if self.history_window:
            history = await (await self.bank.aget()).aturns(
                scope=turn.scope, dialogue=turn.dialogue, before=turn.position, limit=self.history_window
            )
        request = self._extract_request(state, history)
        try:
            return self._extracted(state, request, await self.extractor.areply(request, config))
        except (UnavailableError, ModelReplyError) as error:
            return _no_reply(error)

    def _extract_request(self, state: ConstructionState, history: Sequence[StoredTurn]) -> ExtractRequest:
        return ExtractRequest(
            turn=_turn(state),
            history=tuple(history),
            system_prompt=prompt_of("extractor"),
            failed=tuple(state["attempts"]),
        )

    def _extracted(self, state: ConstructionState, request: ExtractRequest, reply: str) -> ConstructionState:
        try:
            return {"facts": parse_extract_reply(reply, request), "problem": None, "attempts": []}
        except ModelReplyError as error:
            return self._refused(state, reply, error)

    def retrieve(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        """Find memories of the same participant that the facts may concern."""
        bank, turn = self.bank.get(), _turn(state)
        own = IndexFilter(speakers=(turn.speaker,))
        return _retrieved(
            [bank.search(fact.text, scope=turn.scope, limit=self.top_k, where=own) for fact in state["facts"]]
        )

    async def aretrieve(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        bank, turn = await self.bank.aget(), _turn(state)
        own = IndexFilter(speakers=(turn.speaker,))
        return _retrieved(
            await asyncio.gather(
                *(bank.asearch(fact.text, scope=turn.scope, limit=self.top_k, where=own) for fact in state["facts"])
            )
        )

    def manage(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        """Ask which operations the facts call for."""
        try:
            return {"reply": self.manager.reply(self._manage_request(state), config), "problem": None}
        except (UnavailableError, ModelReplyError) as error:
            return _no_reply(error)

    async def amanage(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        try:
            return {"reply": await self.manager.areply(self._manage_request(state), config), "problem": None}
        except (UnavailableError, ModelReplyError) as error:
            return _no_reply(error)

    def _manage_request(self, state: ConstructionState) -> ManageRequest:
        return ManageRequest(
            facts=tuple(state["facts"]),
            memories=tuple(state["memories"]),
            system_prompt=prompt_of("manager"),
            failed=tuple(state["attempts"]),
        )

    def validate(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        """Turn the reply into operations, all of them or none."""
        try:
            proposed = parse_manage_reply(
                state["reply"],
                self._manage_request(state),
                actor=self.manager.name,
                policy_version=self.manager.policy_version,
                run_id=state["run_id"],
            )
        except ModelReplyError as error:
            return self._refused(state, state["reply"], error)
        return {"proposed": proposed, "problem": None}

    async def avalidate(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        return self.validate(state, config)

    def _refused(self, state: ConstructionState, reply: str, error: ModelReplyError) -> ConstructionState:
        attempts = [*state["attempts"], Attempt(reply=reply, error=str(error))]
        begin = f" The last reply begins: {reply.strip()[:120]!r}" if reply.strip() else ""
        problem = f"{error} ({_times(len(attempts))}).{begin}"
        return {"attempts": attempts, "problem": problem, "retry": len(attempts) < self.max_attempts}

    def apply(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        """Write the operations and mark the turn done, in one transaction."""
        bank, turn = self.bank.get(), _turn(state)
        try:
            ops = bank.apply(state["proposed"], scope=turn.scope, turn=turn)
        except (ConflictError, UnknownMemoryError) as error:
            now = bank.turns(scope=turn.scope, dialogue=turn.dialogue, before=turn.position + 1, limit=1)
            return self._conflict(state, error, now)
        report(ops, turn.dialogue, "manager")
        return self._applied(state, ops)

    async def aapply(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        bank, turn = await self.bank.aget(), _turn(state)
        try:
            ops = await bank.aapply(state["proposed"], scope=turn.scope, turn=turn)
        except (ConflictError, UnknownMemoryError) as error:
            now = await bank.aturns(scope=turn.scope, dialogue=turn.dialogue, before=turn.position + 1, limit=1)
            return self._conflict(state, error, now)
        await areport(ops, turn.dialogue, "manager")
        return self._applied(state, ops)

    def _conflict(self, state: ConstructionState, error: Exception, now: list[StoredTurn]) -> ConstructionState:
        """Decide again on the memories as they are now; a turn that somebody else has done (or purged) is let go."""
        turn = _turn(state)
        if not any(other.position == turn.position and other.status is TurnStatus.PENDING for other in now):
            return {"problem": None}
        conflicts = state["conflicts"] + 1
        return {
            "conflicts": conflicts,
            "attempts": [],
            "problem": f"{error} ({_times(conflicts)})",
            "retry": conflicts < self.max_attempts,
        }

    def reject(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        """Log a failed operation; the turn stays pending."""
        error, actor, version = self._failure(state)
        turn = _turn(state)
        op = self.bank.get().reject(
            error, scope=turn.scope, actor=actor, turn=turn, run_id=state["run_id"], policy_version=version
        )
        report([op], turn.dialogue, self._role(state))
        return self._rejected(state, op, error)

    async def areject(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        error, actor, version = self._failure(state)
        turn = _turn(state)
        op = await (await self.bank.aget()).areject(
            error, scope=turn.scope, actor=actor, turn=turn, run_id=state["run_id"], policy_version=version
        )
        await areport([op], turn.dialogue, self._role(state))
        return self._rejected(state, op, error)

    def _applied(self, state: ConstructionState, ops: Sequence[MemoryOp]) -> ConstructionState:
        if self.events:
            emit(ops, _turn(state).dialogue)
        return {"turns_done": state["turns_done"] + 1, "problem": None}

    def _rejected(self, state: ConstructionState, op: MemoryOp, error: str) -> ConstructionState:
        turn = _turn(state)
        if self.events:
            emit([op], turn.dialogue)
        failed = FailedTurn(dialogue=turn.dialogue, source_id=turn.source_id, position=turn.position, error=error)
        return {"failed": [*state["failed"], failed]}

    def _failure(self, state: ConstructionState) -> tuple[str, str, str | None]:
        """Return what went wrong, who did it, and which version of it."""
        by_manager = self._role(state) == "manager"
        policy: Policy[ExtractRequest] | Policy[ManageRequest] = self.manager if by_manager else self.extractor
        return str(state["problem"]), policy.name, policy.policy_version

    def _role(self, state: ConstructionState) -> Literal["extractor", "manager"]:
        """Return whose reply cannot be used."""
        return "manager" if state["facts"] else "extractor"

    def report(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        """Collect the log of this run."""
        return {"operations": self.bank.get().log(scope=current_scope(self.scope), run_id=state["run_id"])}

    async def areport(self, state: ConstructionState, config: RunnableConfig) -> ConstructionState:
        bank = await self.bank.aget()
        return {"operations": await bank.alog(scope=current_scope(self.scope), run_id=state["run_id"])}


def _turn(state: ConstructionState) -> StoredTurn:
    turn = state["turn"]
    assert turn is not None  # `after_next_turn` ends the run when there is none
    return turn


def _no_reply(error: UnavailableError | ModelReplyError) -> ConstructionState:
    """Give up the turn; without an endpoint, the run too: every other turn would only wait as long."""
    update = ConstructionState(problem=str(error), retry=False)
    if isinstance(error, UnavailableError):
        update["stopped"] = str(error)
    return update


def _retrieved(rankings: Sequence[Sequence[MemoryHit]]) -> ConstructionState:
    """Merge the rankings of several facts, best of each first; every memory once."""
    by_rank = [hit for rank in zip_longest(*rankings) for hit in rank if hit is not None]
    unique = {hit.memory.id: hit.memory for hit in by_rank}
    return {"memories": list(unique.values())}


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


# routing


def after_next_turn(state: ConstructionState) -> Literal["extract", "report"]:
    """Work on the turn, or end the run when there is none."""
    return "extract" if state["turn"] else "report"


def after_extract(state: ConstructionState) -> Literal["retrieve", "apply", "extract", "reject"]:
    """Go on with the facts; a turn without facts is done; a reply that cannot be used is asked for again."""
    if state["problem"]:
        return "extract" if state["retry"] else "reject"
    return "retrieve" if state["facts"] else "apply"


def after_manage(state: ConstructionState) -> Literal["validate", "reject"]:
    """Check the reply, if there is one."""
    return "reject" if state["problem"] else "validate"


def after_validate(state: ConstructionState) -> Literal["apply", "manage", "reject"]:
    """Apply the operations; a reply that cannot be used is asked for again."""
    if state["problem"]:
        return "manage" if state["retry"] else "reject"
    return "apply"


def after_apply(state: ConstructionState) -> Literal["next_turn", "retrieve", "reject"]:
    """Take the next turn; after a conflict, read the memories again."""
    if state["problem"]:
        return "retrieve" if state["retry"] else "reject"
    return "next_turn"


# builder

ConstructionGraph = CompiledStateGraph[ConstructionState, MemoryR1Context, ConstructionInput, ConstructionOutput]


def create_construction_graph(
    bank: BankSource,
    *,
    model: str | BaseChatModel | None = None,
    extractor: PolicyLike[ExtractRequest] | None = None,
    manager: PolicyLike[ManageRequest] | None = None,
    scope: DefaultScope = None,
    top_k: int = TOP_K,
    history_window: int | None = None,
    max_attempts: int = 3,
    max_turns: int = 10_000,
    events: bool = True,
    checkpointer: Checkpointer = None,
) -> ConstructionGraph:
    """Return the graph that turns the pending turns of a bank into memories.

    model: plays every role that is not given; without it, rules do.  extractor, manager: `"rule"`, a specification for
    `chat_model`, a chat model, or a policy.  scope: whose memories, for runs whose context names no user.
    top_k: memories shown per fact.  history_window: earlier turns shown to the extractor; by default 50, to rules 16.
    max_attempts: replies asked for per turn and role.  max_turns: most turns per run.  events: whether each operation is
    written to the run's custom stream, as a `MemoryEvent`.
    """
    reader = as_extractor(extractor or model or "rule")
    if history_window is None:
        history_window = RULE_WINDOW if reader.name == "rule" else HISTORY_WINDOW
    nodes = _Construction(
        bank=LazyBank(bank),
        extractor=reader,
        manager=as_manager(manager or model or "rule"),
        scope=scope,
        top_k=top_k,
        history_window=history_window,
        max_attempts=max_attempts,
        max_turns=max_turns,
        events=events,
    )
    quiet_known_types()
    builder = StateGraph(
        ConstructionState, MemoryR1Context, input_schema=ConstructionInput, output_schema=ConstructionOutput
    )
    for name, sync, async_ in (
        ("begin", nodes.begin, nodes.abegin),
        ("next_turn", nodes.next_turn, nodes.anext_turn),
        ("extract", nodes.extract, nodes.aextract),
        ("retrieve", nodes.retrieve, nodes.aretrieve),
        ("manage", nodes.manage, nodes.amanage),
        ("validate", nodes.validate, nodes.avalidate),
        ("apply", nodes.apply, nodes.aapply),
        ("reject", nodes.reject, nodes.areject),
        ("report", nodes.report, nodes.areport),
    ):
        builder.add_node(name, Node(name, sync, async_))
    builder.add_edge(START, "begin")
    builder.add_edge("begin", "next_turn")
    builder.add_conditional_edges("next_turn", after_next_turn)
    builder.add_conditional_edges("extract", after_extract)
    builder.add_edge("retrieve", "manage")
    builder.add_conditional_edges("manage", after_manage)
    builder.add_conditional_edges("validate", after_validate)
    builder.add_conditional_edges("apply", after_apply)
    builder.add_edge("reject", "next_turn")
    builder.add_edge("report", END)
    graph = builder.compile(checkpointer=checkpointer, name="memory-r1-construction")
    return graph.with_config(recursion_limit=construction_steps(max_turns, max_attempts))


def construction_steps(max_turns: int, max_attempts: int) -> int:
    """Return the most steps of a run: LangGraph's own limit must never end it before its own caps do."""
    per_pass = 2 + 2 * max_attempts  # retrieve, apply; manage and validate per attempt
    return 10 + max_turns * (2 + max_attempts + max_attempts * per_pass)

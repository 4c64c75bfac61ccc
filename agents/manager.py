"""The memory manager: which operations bring memory up to date with new facts? (Memory-R1, sections 2.2 and 3.7)

As settled in section 5: a list of operations per turn (B4), each on the memory it names and no other (B3), with the
new text written by the policy itself (B5). Unlike Mem0's prompt, only what changes is written, and every item has a
reason.
"""

from __future__ import annotations

from langchain_core.messages import BaseMessage
from pydantic import JsonValue, ValidationError

from memweave.agents.rendering import Profile, conversation
from memweave.agents.replies import as_index, json_object
from memweave.agents.roles import ManageRequest, numbered, one_line
from memweave.errors import InputError, ModelReplyError
from memweave.records import OpKind, ProposedOp, Turn

NO_REASON = "The model gave no reason."

_EVENTS = {kind.value: kind for kind in OpKind} | {"NONE": OpKind.NOOP}


def render_manage(request: ManageRequest, profile: Profile = "full") -> list[BaseMessage]:
    """Return the messages that show memories and facts and ask for operations."""
    turn = _turn(request)
    when = f" on {turn.observed_at:%Y-%m-%d}" if turn.observed_at else ""
    body = "\n".join(
        [
            "Memories:",
            numbered(request.memories) or "(none)",
            "",
            f"New facts, said by {turn.speaker}{when}:",
            *(f"- {one_line(fact.text)}" for fact in request.facts),
        ]
    )
    return conversation("manager", profile, request.system_prompt, body, request.failed)


def parse_manage_reply(
    reply: str, request: ManageRequest, *, actor: str, policy_version: str | None = None, run_id: str | None = None
) -> list[ProposedOp]:
    """Return the operations in `reply`: numbers become memory ids, and what is known about the turn is filled in.

    UPDATE and DELETE carry the version of the memory that was shown, so that they apply to that version or not at all.
    A NOOP without a reason only lists an untouched memory and is left out.

    Raises `ModelReplyError` saying what is wrong; never returns a part of the operations.
    """
    items = _items(json_object(reply))
    ops: list[ProposedOp] = []
    changed: set[int] = set()
    for position, item in enumerate(items, 1):
        kind = _kind(item, position)
        number = _number(item, kind, position, len(request.memories))
        if number is not None:
            if number in changed:
                raise ModelReplyError(f"Item {position}: memory {number} is named twice. Use each number at most once")
            changed.add(number)
        reason = _string(item, "reason")
        if kind is OpKind.NOOP and not reason:
            continue
        text = _new_text(item, kind, position)
        try:
            ops.append(_propose(request, kind, number, text, reason, actor, policy_version, run_id))
        except ValidationError as error:
            raise ModelReplyError(f"Item {position} ({kind}): {error.errors()[0]['msg']}") from None
    return ops


def _items(value: dict[str, JsonValue]) -> list[dict[str, JsonValue]]:
    """Return the list under `memory`; one bare operation counts as a list of one."""
    if "memory" not in value and "event" in value:
        return [value]
    if "memory" not in value:
        raise ModelReplyError(f"The JSON has no key 'memory' (it has: {', '.join(value) or 'none'})")
    items = value["memory"]
    if not isinstance(items, list):
        raise ModelReplyError("The value of 'memory' is not a list")
    for position, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise ModelReplyError(f"Item {position} is not an object with reason, event, id and text: {item!r:.60}")
    return [item for item in items if isinstance(item, dict)]


def _kind(item: dict[str, JsonValue], position: int) -> OpKind:
    event = item.get("event")
    kind = _EVENTS.get(event.strip().upper()) if isinstance(event, str) else None
    if kind is None:
        raise ModelReplyError(f"Item {position}: unknown event {event!r:.40}. Use ADD, UPDATE, DELETE or NOOP")
    return kind


def _number(item: dict[str, JsonValue], kind: OpKind, position: int, shown: int) -> int | None:
    """Return the number of the memory that the item changes; `None` for ADD, and for a NOOP that names none."""
    number = as_index(item.get("id"))
    known = number is not None and number < shown
    if kind in (OpKind.UPDATE, OpKind.DELETE) and not known:
        numbers = f"Numbers go from 0 to {shown - 1}" if shown else "No memory is shown: only ADD and NOOP are possible"
        raise ModelReplyError(f"Item {position}: {kind} of unknown memory {item.get('id')!r:.40}. {numbers}")
    return number if known and kind is not OpKind.ADD else None


def _new_text(item: dict[str, JsonValue], kind: OpKind, position: int) -> str | None:
    if kind not in (OpKind.ADD, OpKind.UPDATE):
        return None
    text = _string(item, "text")
    if not text:
        raise ModelReplyError(f"Item {position}: {kind} needs a text")
    return text


def _string(item: dict[str, JsonValue], key: str) -> str:
    value = item.get(key)
    return one_line(value) if isinstance(value, str) else ""


def _propose(
    request: ManageRequest,
    kind: OpKind,
    number: int | None,
    text: str | None,
    reason: str,
    actor: str,
    policy_version: str | None,
    run_id: str | None,
) -> ProposedOp:
    turn = _turn(request)
    memory = None if number is None else request.memories[number]
    writes = kind in (OpKind.ADD, OpKind.UPDATE)
    return ProposedOp(
        kind=kind,
        memory_id=memory.id if memory else None,
        text=text,
        reason=(reason or NO_REASON)[:2_000],
        actor=actor,
        policy_version=policy_version,
        source_ids=(turn.source_id,),
        run_id=run_id,
        speaker=turn.speaker if kind is OpKind.ADD else None,  # an updated memory stays whose it is
        dialogue=turn.dialogue if writes else None,
        context=turn.previous if writes else None,
        observed_at=turn.observed_at if writes else None,
        observed_naive=turn.observed_naive if writes else None,
        trust=turn.trust if writes else None,
        expected_version=memory.version if memory and kind is not OpKind.NOOP else None,
    )


def _turn(request: ManageRequest) -> Turn:
    """Return the turn that all facts come from.

    Raises `InputError` when there is none or more than one: whose memory it is and when it was said would be a guess.
    """
    turns = {(fact.turn.dialogue, fact.turn.source_id) for fact in request.facts}
    if len(turns) != 1:
        raise InputError(f"A manager decides about the facts of one turn, not of {len(turns)}. Ask once per turn")
    return request.facts[0].turn

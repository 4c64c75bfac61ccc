"""The planner: break a task down into subtasks, read their results, answer or plan again (Memento, sections 3.1 and 3.4).

    {"plan": [{"id": 1, "description": "..."}, {"id": 2, "description": "...", "after": [1]}]}
    FINAL ANSWER: ...

The official prompt asks for pure JSON and for the text FINAL ANSWER; a reply may be either. If it is both, the answer wins, as in
the official code. `after` names the subtasks whose results a subtask needs; without it, it waits for all before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from pydantic import Field, JsonValue

from memweave.agents.prompts import load_prompt
from memweave.agents.rendering import Profile
from memweave.agents.replies import as_index, json_object, without_thinking
from memweave.agents.roles import Attempt, one_line
from memweave.errors import ModelReplyError
from memweave.records import Record, storable

ROLE: Final = "planner"
CASES: Final = "cases"
"""Name of the message that shows cases."""
LONGEST_DESCRIPTION: Final = 4_000
"""Characters of one subtask."""
LONGEST_CASE: Final = 4_000
"""Characters of a case's task, and of its plan, that are shown."""

_MARKER: Final = re.compile(
    r"FINAL ANSWER[*_ ]*:[*_]*|^[\s*_#>`]*final answer[*_ ]*:[*_]*", re.IGNORECASE | re.MULTILINE
)
_FORMS: Final = 'Reply with {"plan": [{"id": 1, "description": "..."}]}, or with FINAL ANSWER: and the answer'
_MUST_ANSWER: Final = (
    "No further plan can be carried out. From the results above, reply now with FINAL ANSWER: and the answer, "
    "the best that you can give."
)
_PARALLEL: Final = (
    'Subtasks run at the same time where they can. Give each a list "after" with the ids of the subtasks whose results it needs: [] when '
    'it needs none, e.g. {"id": 2, "description": "...", "after": [1]}. Without "after" it waits for all before it.'
)


class Subtask(Record):
    """One step of a plan."""

    id: Annotated[int, Field(ge=0)]
    """As the planner numbered it; its own numbers start again with every plan."""
    description: str
    after: tuple[int, ...] | None = None
    """Ids of the subtasks whose results it needs; `None`: all before it."""


class Plan(Record):
    """What the planner wants done."""

    text: str
    """The JSON, as the planner wrote it."""
    subtasks: Annotated[tuple[Subtask, ...], Field(min_length=1)]


class PlannerTurn(Record):
    """One reply of the planner, read: a plan or an answer."""

    plan: Plan | None = None
    answer: str | None = None


class ShownCase(Record):
    """A case that was retrieved for a task."""

    id: UUID
    task: str
    plan: str
    reward: float | None
    positive: bool
    score: float
    """What the retrieval policy ranked it by."""
    probability: float | None = None
    """Of its being drawn, when the policy draws."""
    version: Annotated[int, Field(ge=1)] = 1


SaidKind = Literal["user", "reply", "query", "cases", "plan", "result", "note"]


class Said(Record):
    """One message of the history that planner and executor share."""

    kind: SaidKind
    """user, reply: of an earlier round of the chat.  query: the task.  note: of the graph, to the planner."""
    text: str


class PlanRequest(Record):
    """What to do next, given `history`?"""

    history: tuple[Said, ...]
    system_prompt: str | None = None
    """Replaces the shipped prompt."""
    must_answer: bool = False
    """Whether a plan is of no use any more."""
    parallel: bool = False
    failed: tuple[Attempt, ...] = ()


# what is shown


def render_plan(request: PlanRequest, profile: Profile = "full") -> list[BaseMessage]:
    """Return the messages: system prompt (if any), the history, each refused reply with what was wrong with it."""
    prompt = planner_prompt(request.system_prompt, profile, parallel=request.parallel)
    messages: list[BaseMessage] = [SystemMessage(prompt, id="system")] if prompt else []
    messages += as_messages(request.history)
    if request.must_answer:
        messages.append(HumanMessage(_MUST_ANSWER, id="must-answer"))
    for number, attempt in enumerate(request.failed):
        messages.append(AIMessage(attempt.reply or "(empty)", id=f"refused-{number}"))  # endpoints refuse an empty one
        messages.append(
            HumanMessage(f"That reply cannot be used. {attempt.error}. Reply again.", id=f"refusal-{number}")
        )
    return messages


def planner_prompt(given: str | None, profile: Profile, *, parallel: bool = False) -> str | None:
    """Return the system prompt: the given one, else the shipped one, or none at all for the profile `none`."""
    prompt = given or (load_prompt("planner").text if profile == "full" else None)
    return f"{prompt}\n\n{_PARALLEL}" if prompt and parallel else prompt


def as_messages(history: Iterable[Said]) -> list[BaseMessage]:
    """Return a history as chat messages, with ids by their place."""
    return [_message(said, f"said-{place}") for place, said in enumerate(history)]


def _message(said: Said, message_id: str) -> BaseMessage:
    if said.kind in ("plan", "reply"):
        return AIMessage(said.text, id=message_id)
    return HumanMessage(said.text, id=message_id, name=CASES if said.kind == "cases" else None)


def cases_text(cases: Sequence[ShownCase]) -> str:
    """Return the block that shows cases (section 3.4): positive ones first, then the others, each in the order of retrieval.

    A case cannot end the block, nor begin a line of its own in it: it is data.
    """
    good = [case for case in cases if case.positive]
    other = [case for case in cases if not case.positive]
    lines = ["<cases>"]
    for title, group, start in (
        ("Positive examples (reward = 1)", good, 1),
        ("Negative examples (reward = 0)", other, len(good) + 1),
    ):
        if group:
            lines.append(f"{title}, {len(group)} of {len(cases)}:")
        for number, case in enumerate(group, start):
            lines += [f"Task: {_shown(case.task)} [{number}]", f"Plan: {_shown(_steps(case.plan))}"]
    return "\n".join([*lines, "</cases>"])


def _steps(plan: str) -> str:
    """Return a plan as numbered steps; as it is when it cannot be read."""
    try:
        read = _subtasks(json_object(plan))
    except ModelReplyError:
        return plan
    return " ".join(f"{number}. {step.description}" for number, step in enumerate(read, 1))


def _shown(text: str) -> str:
    line = one_line(text)
    return (line if len(line) <= LONGEST_CASE else f"{line[:LONGEST_CASE]} ...").replace("<", "&lt;")


# what is read


def parse_plan_reply(reply: str, *, max_subtasks: int) -> PlannerTurn:
    """Return what the planner wants.

    max_subtasks: a plan with more is refused.  Raises `ModelReplyError` saying what is wrong, in words that help a model to do better.
    """
    text = without_thinking(storable(reply))
    answer = _final_answer(text)
    if answer is not None:
        return PlannerTurn(answer=answer)
    try:
        given = json_object(text)
    except ModelReplyError as error:
        raise ModelReplyError(f"{error}. {_FORMS}") from None
    subtasks = _subtasks(given)
    if len(subtasks) > max_subtasks:
        raise ModelReplyError(
            f"The plan has {len(subtasks)} subtasks, and at most {max_subtasks} are carried out. Plan fewer, larger ones"
        )
    return PlannerTurn(plan=Plan(text=_json_of(text), subtasks=_ordered(subtasks)))


def forced_answer(reply: str) -> str | None:
    """Return the answer of a planner that had to give one: after the marker, or the whole text; `None` for a plan or nothing."""
    text = without_thinking(storable(reply))
    try:
        found = _final_answer(text)
    except ModelReplyError:
        return None
    if found is not None:
        return found
    return None if not text or _plan_in(text) is not None else text


def _final_answer(text: str) -> str | None:
    """Return what stands after the last marker outside a plan; `None` without one. Raises `ModelReplyError` for nothing after it."""
    markers = list(_MARKER.finditer(text))
    if not markers:
        return None
    plan = _plan_in(text)
    if plan is not None and len(_MARKER.findall(json.dumps(plan, ensure_ascii=False))) >= len(markers):
        return None
    rest = text[markers[-1].end() :]
    if plan is not None:
        rest = re.split(r'\{\s*"', rest, maxsplit=1)[0].replace("```json", "")
    answer = rest.strip().strip("`").strip("*").strip()
    if not answer:
        raise ModelReplyError("There is nothing after FINAL ANSWER:. Write the answer on the same line")
    return answer


def _plan_in(text: str) -> dict[str, JsonValue] | None:
    try:
        found = json_object(text)
    except ModelReplyError:
        return None
    return found if "plan" in found else None


def _json_of(text: str) -> str:
    """Return the JSON object in a text that holds one; where it had to be repaired, up to the last brace."""
    found = re.search(r'\{\s*"', text)
    start = found.start() if found else 0
    try:
        _, end = json.JSONDecoder(strict=False).raw_decode(text, start)
    except ValueError:
        end = text.rfind("}") + 1
    return text[start:end]


def _subtasks(given: dict[str, JsonValue]) -> list[Subtask]:
    items = given.get("plan")
    if not isinstance(items, list):
        raise ModelReplyError(f'The object has no list "plan". {_FORMS}')
    if not items:
        raise ModelReplyError(f"The plan is empty. {_FORMS}")
    found = [_subtask(item, place) for place, item in enumerate(items, 1)]
    ids = [one.id for one in found]
    if None not in [_id(item) for item in items] and len(set(ids)) == len(ids):
        return found
    if any(one.after is not None for one in found):
        raise ModelReplyError('"after" names ids, so every subtask needs an id of its own: 1, 2, 3, ...')
    return [one.model_copy(update={"id": place}) for place, one in enumerate(found, 1)]  # nobody refers to them


def _subtask(item: JsonValue, place: int) -> Subtask:
    if isinstance(item, str):  # the meaning is plain
        item = {"description": item}
    if not isinstance(item, dict):
        raise ModelReplyError(f'Subtask {place} is no object with "id" and "description"')
    description = item.get("description")
    if not isinstance(description, str) or not description.strip():
        raise ModelReplyError(f'Subtask {place} has no "description"')
    if len(description) > LONGEST_DESCRIPTION:
        raise ModelReplyError(
            f"The description of subtask {place} has {len(description)} characters; at most {LONGEST_DESCRIPTION} are allowed"
        )
    number = _id(item)
    return Subtask(id=place if number is None else number, description=description.strip(), after=_after(item, place))


def _id(item: JsonValue) -> int | None:
    return as_index(item.get("id")) if isinstance(item, dict) else None


def _after(item: dict[str, JsonValue], place: int) -> tuple[int, ...] | None:
    given = item.get("after")
    if given is None:
        return None
    numbers = [as_index(each) for each in (given if isinstance(given, list) else [given])]
    if None in numbers:
        raise ModelReplyError(f'"after" of subtask {place} is no list of ids')
    return tuple(number for number in numbers if number is not None)


def _ordered(subtasks: Sequence[Subtask]) -> tuple[Subtask, ...]:
    """Return the subtasks as they are; raises `ModelReplyError` when they wait for one that is not there, or for each other."""
    done: set[int] = set()
    known = {one.id for one in subtasks}
    for one in subtasks:
        if missing := sorted(set(one.after or ()) - known):
            raise ModelReplyError(f"Subtask {one.id} comes after {missing[0]}, which is not in the plan")
    while len(done) < len(subtasks):
        now = ready(subtasks, done)
        if not now:
            stuck = [one.id for one in subtasks if one.id not in done]
            raise ModelReplyError(f"Subtasks {', '.join(map(str, stuck))} wait for each other, so none can begin")
        done |= {one.id for one in now}
    return tuple(subtasks)


def ready(subtasks: Sequence[Subtask], done: set[int]) -> list[Subtask]:
    """Return the subtasks that are not done and whose turn it is, in the order of the plan."""
    found: list[Subtask] = []
    for place, one in enumerate(subtasks):
        needed = {other.id for other in subtasks[:place]} if one.after is None else set(one.after)
        if one.id not in done and needed <= done:
            found.append(one)
    return found

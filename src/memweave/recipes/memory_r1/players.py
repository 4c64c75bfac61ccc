"""Who plays a role in DialogWorld beside trained policies: the world's extractor, oracles, and baselines that learn nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from langchain_core.runnables import RunnableConfig

from memweave.agents.roles import AnswerRequest, ExtractRequest, ManageRequest, Policy
from memweave.errors import ContextLengthError, InputError
from memweave.recipes.memory_r1 import teaching
from memweave.worlds.dialog_language import Act, read
from memweave.worlds.dialog_world import DialogWorld

R = TypeVar("R", ExtractRequest, ManageRequest, AnswerRequest)


@dataclass(frozen=True)
class Player(Generic[R]):
    """A function of the request in a role."""

    name: str
    play: Callable[[R], str]
    policy_version: str | None = None

    def reply(self, request: R, config: RunnableConfig | None = None) -> str:
        """Return the reply text."""
        return self.play(request)

    async def areply(self, request: R, config: RunnableConfig | None = None) -> str:
        """Return the reply text."""
        return self.play(request)


@dataclass(frozen=True)
class Fitting(Generic[R]):
    """A policy whose prompt must fit: one that is too long for its context ends the episode with an `InputError`.

    The graphs take every `ModelReplyError` for a reply that cannot be used, so without this the episode would go on and
    score 0, as if the policy had been wrong.
    """

    policy: Policy[R]

    @property
    def name(self) -> str:
        """Return who decides."""
        return self.policy.name

    @property
    def policy_version(self) -> str | None:
        """Return the hash of the weights, if there are any."""
        return self.policy.policy_version

    def reply(self, request: R, config: RunnableConfig | None = None) -> str:
        """Return the reply text."""
        try:
            return self.policy.reply(request, config)
        except ContextLengthError as error:
            raise InputError(str(error)) from error

    async def areply(self, request: R, config: RunnableConfig | None = None) -> str:
        """Return the reply text."""
        try:
            return await self.policy.areply(request, config)
        except ContextLengthError as error:
            raise InputError(str(error)) from error


def extractor(world: DialogWorld) -> Player[ExtractRequest]:
    """Return the world's noisy extractor; the same turn gives the same facts in every arm."""
    return Player("dialog-world", lambda request: json.dumps({"facts": world.extract(request.turn)}))


def _texts(request: ManageRequest | AnswerRequest) -> list[str]:
    return [memory.text for memory in request.memories]


def _facts(request: ManageRequest) -> list[str]:
    return [fact.text for fact in request.facts]


def _always_add(request: ManageRequest) -> str:
    return json.dumps({"memory": [{"reason": "every fact", "event": "ADD", "text": fact} for fact in _facts(request)]})


def _exact_key(request: ManageRequest) -> str:
    """Update the memory with the same person and relation, else add; a retraction and small talk change nothing."""
    lines = {line.key: number for number, text in enumerate(_texts(request)) if (line := read(text)) is not None}
    items: dict[object, dict[str, object]] = {}
    for fact in _facts(request):
        statement = read(fact)
        if statement is None or statement.relation == "chatter" or statement.act is Act.DROP:
            continue
        number = lines.get(statement.key)
        item: dict[str, object] = {"reason": "same key", "event": "UPDATE", "id": number, "text": fact}
        items[statement.key] = item if number is not None else {"reason": "new key", "event": "ADD", "text": fact}
    return json.dumps({"memory": list(items.values())})


MANAGERS: Final = {
    "oracle": Player[ManageRequest]("oracle", lambda r: teaching.manage(_texts(r), _facts(r))),
    "always-add": Player[ManageRequest]("always-add", _always_add),
    "always-noop": Player[ManageRequest]("always-noop", lambda r: '{"memory": []}'),
    "exact-key": Player[ManageRequest]("exact-key", _exact_key),
}
"""Managers that learn nothing, by name; `rule`, the shipped rules for English, is the fifth."""

ANSWERERS: Final = {"oracle": Player[AnswerRequest]("oracle", lambda r: teaching.answer(_texts(r), r.question))}
"""Answerers that learn nothing, by name; `rule`, the shipped rules for English, is the second."""


def replay(memories: Sequence[str], facts: Sequence[str]) -> list[str]:
    """Return `memories` of one participant after a perfect manager has seen `facts` (and all memories)."""
    kept: list[str | None] = list(memories)
    reply = json.loads(teaching.manage(memories, facts))
    added = []
    for item in reply["memory"]:
        if item["event"] == "ADD":
            added.append(item["text"])
        elif item["event"] == "UPDATE":
            kept[item["id"]] = None
            added.append(item["text"])
        elif item["event"] == "DELETE":
            kept[item["id"]] = None
    return [text for text in kept if text is not None] + added

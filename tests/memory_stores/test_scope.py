"""Nothing crosses a scope: every public method of a bank and of a branch, called by others with ids that are not theirs.

The methods are found by introspection; one without a probe fails the suite.
"""

from __future__ import annotations

import inspect
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from memweave.errors import MemweaveError, ScopeError, UnknownMemoryError
from memweave.memory_stores import Branch, MemoryBank, open_bank
from memweave.records import IndexFilter, MemoryOp, OpKind, Scope, StoredTurn, Turn, new_id
from memweave.testing.audit import audit
from memweave.testing.operations import add, delete, noop, update

OWNER = Scope(tenant="one", user="anna")
WORD = "qxsecret"


@dataclass(frozen=True)
class Ids:
    """What somebody else might have learned or guessed: names and ids, no content."""

    memory: uuid.UUID
    op: uuid.UUID
    run: str
    dialogue: str
    speaker: str
    turn: StoredTurn
    done: StoredTurn
    moment: Any


def make_owner(bank: MemoryBank) -> Ids:
    """Write the owner's data: `WORD` is in everything that is content."""
    said = [
        Turn(source_id=str(i), speaker="Zelda", dialogue="talk", text=f"{WORD} {i}", previous=f"{WORD} p")
        for i in range(2)
    ]
    done, pending = bank.accept(said, scope=OWNER)
    fields: dict[str, Any] = {
        "speaker": "Zelda", "dialogue": "talk", "context": f"{WORD} context", "run_id": "run-7", "metadata": {"k": WORD},
        "reason": f"{WORD} reason", "actor": f"{WORD}-actor", "policy_version": f"{WORD}-policy",
    }  # fmt: skip
    kept, _ = bank.apply(
        [add(f"{WORD} drinks tea", **fields), add(f"{WORD} has a cat", **fields)], scope=OWNER, turn=done
    )
    assert kept.memory_id is not None
    (changed,) = bank.apply([update(kept.memory_id, f"{WORD} drinks coffee", **fields)], scope=OWNER)
    bank.reject(f"{WORD} error", scope=OWNER, actor=f"{WORD}-model", turn=pending, run_id="run-7")
    return Ids(kept.memory_id, changed.id, "run-7", "talk", "Zelda", pending, done, changed.recorded_at)


def unknown(ids: Ids) -> Ids:
    """Ids of the same kinds that nobody has."""
    turn = ids.turn.model_copy(update={"position": 10**6})
    done = ids.done.model_copy(update={"position": 10**6})
    return Ids(new_id(), new_id(), "run-9", "chat", "Yolanda", turn, done, ids.moment)


Call = Callable[..., Any]
Probe = Callable[[Call, Ids, Scope], Any]
"""Calls a method for a scope with ids; what comes back (or is raised) must hold nothing of the owner."""


def everything(method: Call, scope: Scope, **given: Any) -> list[Any]:
    return [method(scope=scope, **given), method(scope=scope)]


def filters(ids: Ids) -> list[IndexFilter]:
    return [IndexFilter(speakers=(ids.speaker,)), IndexFilter(dialogues=(ids.dialogue,)), IndexFilter(runs=(ids.run,))]


def probe_apply(method: Call, ids: Ids, scope: Scope) -> Any:
    tries: list[Callable[[], Any]] = [
        lambda: method([update(ids.memory, "mine now")], scope=scope),
        lambda: method([delete(ids.memory)], scope=scope),
        lambda: method([noop(ids.memory)], scope=scope),
        lambda: method([add("mine"), update(ids.memory, "mine now", expected_version=2)], scope=scope),
        lambda: method([add("mine")], scope=scope, turn=ids.turn),
        lambda: method([add("mine")], scope=scope, turn=ids.done),
        # The same id is free here: it becomes a memory of one's own.
        lambda: method([add("tea of my own", memory_id=ids.memory), delete(ids.memory)], scope=scope),
    ]
    return [caught(one) for one in tries]


def probe_search(method: Call, ids: Ids, scope: Scope) -> Any:
    out = []
    for where in (None, *filters(ids)):
        for as_of in (None, ids.moment):
            out += method(f"{WORD} tea cat coffee {ids.speaker}", scope=scope, limit=1_000, where=where, as_of=as_of)
    return out


PROBES: dict[str, Probe] = {
    "accept": lambda m, ids, s: m(
        [Turn(source_id=ids.turn.source_id, dialogue=ids.dialogue, speaker="Me", text="Hi")], scope=s
    ),
    "apply": probe_apply,
    "reject": lambda m, ids, s: [m("prose", scope=s, actor="me", turn=t, run_id=ids.run) for t in (ids.turn, ids.done)],
    "get": lambda m, ids, s: [
        caught(lambda: m(ids.memory, scope=s)),
        caught(lambda: m(ids.memory, scope=s, as_of=ids.moment)),
    ],
    "memories": lambda m, ids, s: [
        m(scope=s, where=w, as_of=t) for w in (None, *filters(ids)) for t in (None, ids.moment)
    ],
    "as_of": lambda m, ids, s: m(ids.moment, scope=s),
    "log": lambda m, ids, s: [
        everything(m, s, run_id=ids.run),
        everything(m, s, memory_id=ids.memory, newest=True, limit=9),
    ],
    "history": lambda m, ids, s: m(ids.memory, scope=s),
    "undo": lambda m, ids, s: m(ids.op, scope=s, actor="me"),
    "undo_run": lambda m, ids, s: m(ids.run, scope=s, actor="me"),
    "search": probe_search,
    "speakers": lambda m, ids, s: m(scope=s),
    "turns": lambda m, ids, s: [everything(m, s, dialogue=ids.dialogue), m(scope=s, before=10**9, limit=99)],
    "count": lambda m, ids, s: m(scope=s),
    "purge": lambda m, ids, s: m(scope=s),
    "export": lambda m, ids, s: list(m(scope=s)),
    "import_": lambda m, ids, s: m(MINE, scope=s),
    "branch": lambda m, ids, s: branched(m(scope=s), ids, s),
}
NOT_ABOUT_ANYBODY = {"close", "aclose", "rebuild", "arebuild", "optimize"}
"""Methods that take no scope and tell nothing about anybody."""
MINE: list[str] = []
"""An export of somebody's own, for `import_`."""


def caught(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the error that it raises."""
    try:
        return call()
    except MemweaveError as error:
        return error


def branched(branch: Branch, ids: Ids, scope: Scope) -> Any:
    """Return what a branch shows."""
    return [branch.memories(scope=scope), branch.log(scope=scope), branch.search(WORD, scope=scope), branch.speakers(scope=scope),
            caught(lambda: branch.get(ids.memory, scope=scope))]  # fmt: skip


def public_methods(cls: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}


def async_twin(name: str) -> str:
    return "a" + name.rstrip("_")


def methods_of(store: object) -> Iterator[tuple[str, Probe, Call]]:
    """Yield name, probe and callable of every probed method that a store has; async ones are run to their end."""
    for name, probe in PROBES.items():
        if hasattr(store, name):
            yield name, probe, getattr(store, name)
        if hasattr(store, async_twin(name)):
            yield async_twin(name), probe, run_async(getattr(store, async_twin(name)))


def run_async(method: Callable[..., Any]) -> Call:
    async def call(args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        return await method(*args, **given)

    return lambda *args, **given: anyio.run(call, args, given)


def told(result: Any) -> str:
    """Return everything that an answer says, as text."""
    return f"{type(result).__name__}: {result}" if isinstance(result, Exception) else repr(result)


VARIES = re.compile(
    r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}"  # ids
    r"|\d{4}-\d\d-\d\dT[\d:.]+(\+00:00|Z)?|datetime\.datetime\([\d, ]+"  # times
    r"|run-\d|Yolanda|Zelda|chat|talk|other\d+|(seq\"?[=:]|position=)\d+"  # names, places
)


def without_ids(answer: str) -> str:
    """Return an answer without what differs between any two calls."""
    return VARIES.sub("*", answer)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MemoryBank, Ids]]:
    with open_bank(tmp_path_factory.mktemp("scopes"), embedding="hashing:64") as bank:
        me = Scope(user="somebody")
        bank.apply([add("a line of my own")], scope=me)
        MINE[:] = bank.export(scope=me)
        yield bank, make_owner(bank)


def story(bank: MemoryBank) -> list[Any]:
    """Everything that the owner has."""
    return [
        bank.memories(scope=OWNER),
        bank.log(scope=OWNER),
        bank.turns(scope=OWNER),
        list(bank.export(scope=OWNER))[1:],
    ]


_count = iter(range(10**6))


def other(kind: str) -> Scope:
    """Return a new scope of somebody else: another tenant's user of the owner's name, or another user of its tenant."""
    number = f"other{next(_count)}"
    return Scope(tenant=number, user=OWNER.user) if kind == "tenant" else Scope(tenant=OWNER.tenant, user=number)


def names() -> list[str]:
    probed = {*PROBES, *map(async_twin, PROBES)}
    return sorted(probed & public_methods(MemoryBank))


@pytest.mark.parametrize("cls", [MemoryBank, Branch])
def test_every_public_method_has_a_probe(cls: type) -> None:
    probed = {*PROBES, *map(async_twin, PROBES)}
    assert public_methods(cls) - probed - NOT_ABOUT_ANYBODY == set(), "write a probe for it in PROBES"
    for name in public_methods(cls) & NOT_ABOUT_ANYBODY:
        assert "scope" not in inspect.signature(getattr(cls, name)).parameters


def test_every_public_method_asks_whose_data() -> None:
    for cls in (MemoryBank, Branch):
        for name in public_methods(cls) - NOT_ABOUT_ANYBODY:
            scope = inspect.signature(getattr(cls, name)).parameters["scope"]
            assert (scope.kind, scope.default) == (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty), name


@pytest.mark.parametrize("kind", ["tenant", "user"])
@pytest.mark.parametrize("name", names())
def test_a_bank_shows_nothing_of_anybody_else(shared: tuple[MemoryBank, Ids], name: str, kind: str) -> None:
    bank, ids = shared
    before = story(bank)
    probe, method = next((probe, method) for found, probe, method in methods_of(bank) if found == name)
    answers = []
    for guess in (ids, unknown(ids)):
        scope = other(kind)
        bank.apply([add("tea of my own", speaker="Me")], scope=scope)
        answer = told(caught(lambda: probe(method, guess, scope)))  # noqa: B023 -- called at once
        assert WORD not in answer
        assert str(ids.op) not in answer or guess is ids  # only where it was given
        answers.append(without_ids(answer))
        assert audit(bank, scope=scope) == []
    assert answers[0] == answers[1], "a foreign id must look like one that nobody has"
    assert story(bank) == before
    assert audit(bank, scope=OWNER) == []


@pytest.mark.parametrize("kind", ["tenant", "user"])
def test_a_branch_shows_nothing_of_anybody_else(shared: tuple[MemoryBank, Ids], kind: str) -> None:
    bank, ids = shared
    before = story(bank)
    for name, _, _ in methods_of(bank.branch(scope=OWNER)):
        answers = []
        for guess in (ids, unknown(ids)):
            scope = other(kind)
            bank.apply([add("tea of my own", speaker="Me")], scope=scope)
            probe, method = next((p, m) for found, p, m in methods_of(bank.branch(scope=scope)) if found == name)
            answer = told(caught(lambda: probe(method, guess, scope)))  # noqa: B023 -- called at once
            assert WORD not in answer, name
            answers.append(without_ids(answer))
        assert answers[0] == answers[1], name
    assert story(bank) == before


@pytest.mark.parametrize("kind", ["tenant", "user"])
def test_a_branch_of_one_scope_refuses_every_other(shared: tuple[MemoryBank, Ids], kind: str) -> None:
    bank, ids = shared
    scope = other(kind)
    for mine, theirs in ((OWNER, scope), (scope, OWNER)):
        branch = bank.branch(scope=mine)
        for name, probe, method in methods_of(branch):
            answer = caught(lambda: probe(method, ids, theirs))  # noqa: B023 -- called at once
            for one in answer if isinstance(answer, list) else [answer]:
                assert isinstance(one, ScopeError), (name, one)
                assert WORD not in str(one)
        assert branch.log(scope=mine) == []


def test_the_owner_is_served_by_every_method(shared: tuple[MemoryBank, Ids]) -> None:
    # The probes above would pass on a bank that never answers anything.
    bank, ids = shared
    telling = {"get", "memories", "as_of", "log", "history", "search", "turns", "export"}
    for name, probe, method in methods_of(bank):
        if name in telling or name in map(async_twin, telling):
            assert WORD in told(caught(lambda: probe(method, ids, OWNER))), name  # noqa: B023 -- called at once
    assert bank.speakers(scope=OWNER) == ["Zelda"]
    assert bank.count(scope=OWNER) == 2


def test_one_id_in_two_scopes_is_two_memories(shared: tuple[MemoryBank, Ids]) -> None:
    bank, ids = shared
    scope, before = other("user"), story(bank)
    (op,) = bank.apply([add("tea of my own", memory_id=ids.memory)], scope=scope)
    assert isinstance(op, MemoryOp)
    assert op.kind is OpKind.ADD
    assert bank.get(ids.memory, scope=scope).text == "tea of my own"
    assert [h.memory.text for h in bank.search("tea", scope=scope)] == ["tea of my own"]
    bank.apply([delete(ids.memory)], scope=scope)
    assert story(bank) == before
    with pytest.raises(UnknownMemoryError):
        bank.get(ids.memory, scope=scope)


def test_scores_do_not_depend_on_others(shared: tuple[MemoryBank, Ids]) -> None:
    bank, _ = shared
    scope = other("user")
    bank.apply([add("tea for me"), add("a rabbit"), add("coffee")], scope=scope)
    alone = {h.memory.text: h.score for h in bank.search("tea rabbit", scope=scope)}
    bank.apply([add("tea rabbit") for _ in range(50)], scope=other("user"))
    assert {h.memory.text: h.score for h in bank.search("tea rabbit", scope=scope)} == pytest.approx(alone)

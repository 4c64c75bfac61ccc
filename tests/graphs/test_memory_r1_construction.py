from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import openai
import pytest
from httpx2 import Request, Response
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver

from memweave.agents.roles import ExtractRequest, ManageRequest
from memweave.errors import ScopeError
from memweave.graphs.memory_r1_construction import construction_steps, create_construction_graph
from memweave.memory_stores import MemoryBank
from memweave.models import chat_model
from memweave.records import Memory, OpKind, OpStatus, ProposedOp, Scope, StoredTurn, Turn, TurnStatus
from memweave.testing.models import ScriptedChatModel

Brain = Callable[..., ScriptedChatModel]
Run = Callable[..., Any]


def to(scope: Scope, **prompts: str) -> dict[str, Any]:
    return {"context": {"user": scope.user, "tenant": scope.tenant, **prompts}}


def say(bank: MemoryBank, scope: Scope, *texts: str, speaker: str = "Anna", dialogue: str = "d") -> None:
    start = len(bank.turns(scope=scope))
    turns = [
        Turn(
            source_id=f"{dialogue}:{start + i}",
            dialogue=dialogue,
            speaker=speaker,
            text=text,
            observed_at=datetime(2023, 5, 8, tzinfo=UTC),
            previous="How are you?",
        )
        for i, text in enumerate(texts)
    ]
    bank.accept(turns, scope=scope)


def texts(memories: Sequence[Memory]) -> list[str]:
    return [memory.text for memory in memories]


def state(bank: MemoryBank, scope: Scope) -> tuple[list[Memory], list[tuple[str, TurnStatus, int]]]:
    turns = [(turn.source_id, turn.status, turn.attempts) for turn in bank.turns(scope=scope)]
    return bank.memories(scope=scope), turns


def op(event: str, number: int | None = None, text: str | None = None) -> dict[str, object]:
    return {"id": number, "event": event, "text": text, "reason": f"why {event}"}


def replies(*ops: dict[str, object]) -> str:
    return json.dumps({"memory": ops})


def number_of(messages: list[BaseMessage], text: str) -> int:
    found = re.search(rf"^- .*{re.escape(text)}.* \[(\d+)\]$", messages[1].text, re.MULTILINE)
    assert found, f"{text!r} was not shown:\n{messages[1].text}"
    return int(found.group(1))


def test_turns_become_operations_with_reasons_and_sources(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run
) -> None:
    def manage(messages: list[BaseMessage]) -> str:
        if "two cats" in messages[1].text:
            cat, violin = number_of(messages, "a cat"), number_of(messages, "violin")
            return replies(op("UPDATE", cat, "Anna has two cats."), op("DELETE", violin), op("NOOP"))
        return replies(op("ADD", text=messages[1].text.splitlines()[-1][2:]))

    say(bank, scope, "Anna has a cat.", "Anna plays the violin.", "Hi!", "Now I have two cats and no violin.")
    model = brain(manager=manage)
    graph = create_construction_graph(bank, model=model)
    output = run(graph, {}, **to(scope))

    assert (output["turns_done"], output["failed"], output["stopped"]) == (4, [], None)
    kinds = [logged.kind for logged in output["operations"]]
    assert kinds == [OpKind.ADD, OpKind.ADD, OpKind.UPDATE, OpKind.DELETE, OpKind.NOOP]
    assert output["operations"] == bank.log(scope=scope)
    memories, turns = state(bank, scope)
    assert texts(memories) == ["Anna has two cats."]
    assert {status for _, status, _ in turns} == {TurnStatus.DONE}
    (memory,) = memories
    assert (memory.speaker, memory.dialogue, memory.context) == ("Anna", "d", "How are you?")
    assert memory.source_ids == ("d:0", "d:3")
    last = output["operations"][-1]
    assert (last.reason, last.actor, last.source_ids) == ("why NOOP", "scripted", ("d:3",))
    assert {logged.run_id for logged in output["operations"]} == {output["run_id"]}
    bank.undo_run(output["run_id"], scope=scope, actor="test")
    assert bank.memories(scope=scope) == []


def test_operations_are_streamed_as_they_happen(bank: MemoryBank, scope: Scope, brain: Brain) -> None:
    say(bank, scope, "Anna has a cat.", "Ben has a dog.")
    graph = create_construction_graph(bank, model=brain(manager=[replies(op("ADD", text="cat")), "no", "no", "no"]))
    events = list(graph.stream({}, stream_mode="custom", **to(scope)))
    first, second = bank.log(scope=scope)
    assert [event["id"] for event in events] == [str(first.id), str(second.id)]
    assert (events[0]["kind"], events[0]["text"], events[0]["reason"]) == ("ADD", "cat", "why ADD")
    assert (events[0]["source_ids"], events[0]["dialogue"]) == (["d:0"], "d")
    assert (events[1]["status"], events[1]["text"]) == ("failed", None)
    assert "prose" in events[1]["error"]
    assert json.loads(json.dumps(events)) == events


def test_a_bad_reply_is_asked_for_again_with_the_reason(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run, calls: Callable[..., list[list[BaseMessage]]]
) -> None:
    say(bank, scope, "Anna has a cat.")
    good = replies(op("ADD", text="Anna has a cat."))
    model = brain(extractor=["What?", '{"facts": ["Anna has a cat."]}'], manager=[replies(op("DELETE", 4)), "{", good])
    output = run(create_construction_graph(bank, model=model), {}, **to(scope))
    assert (output["turns_done"], output["failed"]) == (1, [])
    assert texts(bank.memories(scope=scope)) == ["Anna has a cat."]
    assert len(bank.log(scope=scope)) == 1
    extracts, manages = calls(model, "extractor"), calls(model, "manager")
    assert (len(extracts), len(manages)) == (2, 3)
    assert "prose without JSON" in extracts[1][-1].text
    assert [message.type for message in manages[2]] == ["system", "human", "ai", "human", "ai", "human"]
    assert "unknown memory 4" in manages[2][3].text
    assert "ends inside" in manages[2][5].text


BAD = {
    "prose": ("I will remember that.", "prose without JSON"),
    "unknown id": (replies(op("UPDATE", 7, "x")), "UPDATE of unknown memory 7"),
    "duplicate id": (replies(op("UPDATE", 0, "x"), op("DELETE", 0)), "memory 0 is named twice"),
    "half a JSON": (replies(op("ADD", text="x"))[:-9], "ends inside a JSON object"),
    "two objects": (replies(op("ADD", text="x")) + replies(op("ADD", text="y")), "2 JSON objects"),
    "good and bad": (replies(op("ADD", text="x"), op("DELETE", 9)), "Item 2: DELETE of unknown memory 9"),
    "empty": ("", "The reply is empty"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_reply_that_stays_bad_changes_nothing_and_the_next_run_tries_again(
    kind: str, bank: MemoryBank, scope: Scope, brain: Brain, run: Run
) -> None:
    reply, error = BAD[kind]
    say(bank, scope, "Anna has a cat.")
    run(create_construction_graph(bank, model=brain()), {}, **to(scope))
    say(bank, scope, "Anna has a cat called Tom.", "Thanks!")
    before = bank.memories(scope=scope)

    output = run(create_construction_graph(bank, model=brain(manager=reply)), {}, **to(scope))
    memories, turns = state(bank, scope)
    assert memories == before
    assert turns[1:] == [("d:1", TurnStatus.PENDING, 1), ("d:2", TurnStatus.DONE, 0)]
    (failed,) = bank.log(scope=scope, status=OpStatus.FAILED)
    assert error in (failed.error or "")
    assert "(3 times)" in (failed.error or "")
    assert (failed.source_ids, failed.actor, failed.before, failed.after) == (("d:1",), "scripted", None, None)
    assert [(turn.source_id, turn.error) for turn in output["failed"]] == [("d:1", failed.error)]
    assert output["operations"] == [failed]

    again = run(create_construction_graph(bank, model=brain()), {}, **to(scope))
    assert (again["turns_done"], again["failed"]) == (1, [])
    assert texts(bank.memories(scope=scope)) == ["Anna has a cat.", "Anna has a cat called Tom."]


def test_an_extractor_that_stays_bad_fails_the_turn_too(bank: MemoryBank, scope: Scope, brain: Brain, run: Run) -> None:
    say(bank, scope, "Anna has a cat.", "Anna has a dog.")
    graph = create_construction_graph(bank, model=brain(extractor='{"facts": "a cat"}'), max_attempts=2)
    output = run(graph, {}, **to(scope))
    assert state(bank, scope) == ([], [("d:0", TurnStatus.PENDING, 1), ("d:1", TurnStatus.PENDING, 1)])
    assert [failed.source_id for failed in output["failed"]] == ["d:0", "d:1"]
    assert all("not a list (2 times)" in failed.error for failed in output["failed"])


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_an_unreachable_model_fails_one_turn_and_ends_the_run(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run
) -> None:
    say(bank, scope, "Anna has a cat.", "Anna has a dog.")
    url = f"http://127.0.0.1:{closed_port()}/v1"
    dead = chat_model(f"openai:tiny@{url}", max_retries=0)
    output = run(create_construction_graph(bank, model=dead), {}, **to(scope))
    assert f"'tiny' at {url} cannot be reached" in output["stopped"]
    assert state(bank, scope) == ([], [("d:0", TurnStatus.PENDING, 1), ("d:1", TurnStatus.PENDING, 0)])
    (failed,) = bank.log(scope=scope)
    assert (failed.status, failed.actor, failed.error) == (OpStatus.FAILED, "tiny", output["stopped"])

    again = run(create_construction_graph(bank, model=brain()), {}, **to(scope))
    assert (again["turns_done"], again["stopped"]) == (2, None)
    assert sorted(texts(bank.memories(scope=scope))) == ["Anna has a cat.", "Anna has a dog."]


def test_a_request_that_the_endpoint_refuses_fails_only_its_turn(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run
) -> None:
    def refuse_long(messages: list[BaseMessage]) -> str | Exception:
        if "long" in messages[1].text:
            response = Response(400, request=Request("POST", "http://x"))
            return openai.BadRequestError("maximum context length", response=response, body=None)
        return '{"facts": ["short"]}'

    say(bank, scope, "long", "short")
    graph = create_construction_graph(bank, model=brain(extractor=refuse_long), history_window=0)
    output = run(graph, {}, **to(scope))
    assert (output["turns_done"], output["stopped"]) == (1, None)
    assert "maximum context length" in output["failed"][0].error


class Rules:
    """A policy of one's own: any object with these four members."""

    name = "rules"
    policy_version = "v7"

    def __init__(self, decide: Callable[[Any], str]) -> None:
        self.decide = decide

    def reply(self, request: ExtractRequest | ManageRequest, config: RunnableConfig | None = None) -> str:
        return self.decide(request)

    async def areply(self, request: ExtractRequest | ManageRequest, config: RunnableConfig | None = None) -> str:
        return self.decide(request)


def test_any_object_can_be_a_policy_and_its_version_is_logged(bank: MemoryBank, scope: Scope, run: Run) -> None:
    say(bank, scope, "x", "y")
    extractor = Rules(lambda request: json.dumps({"facts": [request.turn.text]}))
    manager = Rules(lambda request: replies(op("ADD", text=request.facts[0].text)))
    run(create_construction_graph(bank, extractor=extractor, manager=manager), {}, **to(scope))
    assert {(logged.actor, logged.policy_version) for logged in bank.log(scope=scope)} == {("rules", "v7")}


def everything(request: ExtractRequest) -> str:
    return json.dumps({"facts": [request.turn.text]})


def test_a_memory_that_changed_meanwhile_is_read_again(bank: MemoryBank, scope: Scope, run: Run) -> None:
    bank.apply(
        [ProposedOp(kind=OpKind.ADD, text="Anna has a cat.", reason="r", actor="a", speaker="Anna")], scope=scope
    )
    seen: list[list[str]] = []

    def manage(request: ManageRequest) -> str:
        seen.append(texts(request.memories))
        if len(seen) == 1:
            (memory,) = bank.memories(scope=scope)
            change = ProposedOp(
                kind=OpKind.UPDATE, memory_id=memory.id, text="Anna has a cat, Tom.", reason="r", actor="b"
            )
            bank.apply([change], scope=scope)
        return replies(op("UPDATE", 0, "Anna has two cats."))

    say(bank, scope, "Anna has two cats.")
    output = run(create_construction_graph(bank, extractor=Rules(everything), manager=Rules(manage)), {}, **to(scope))
    assert seen == [["Anna has a cat."], ["Anna has a cat, Tom."]]
    assert (output["turns_done"], output["failed"]) == (1, [])
    assert texts(bank.memories(scope=scope)) == ["Anna has two cats."]


def test_a_memory_that_never_stays_the_same_fails_the_turn(bank: MemoryBank, scope: Scope, run: Run) -> None:
    bank.apply([ProposedOp(kind=OpKind.ADD, text="Anna 0", reason="r", actor="a", speaker="Anna")], scope=scope)
    count = 0

    def manage(request: ManageRequest) -> str:
        nonlocal count
        count += 1
        (memory,) = bank.memories(scope=scope)
        other = ProposedOp(kind=OpKind.UPDATE, memory_id=memory.id, text=f"Anna {count}", reason="r", actor="b")
        bank.apply([other], scope=scope)
        return replies(op("DELETE", 0))

    say(bank, scope, "Anna?")
    output = run(create_construction_graph(bank, extractor=Rules(everything), manager=Rules(manage)), {}, **to(scope))
    assert count == 3
    assert "changed since it was read" in output["failed"][0].error
    assert state(bank, scope)[1] == [("d:0", TurnStatus.PENDING, 1)]


def test_a_turn_that_another_process_did_meanwhile_is_let_go(bank: MemoryBank, scope: Scope, run: Run) -> None:
    def manage(request: ManageRequest) -> str:
        turn = request.facts[0].turn
        assert isinstance(turn, StoredTurn)
        bank.apply([], scope=scope, turn=turn)
        return replies(op("ADD", text="twice"))

    say(bank, scope, "x")
    output = run(create_construction_graph(bank, extractor=Rules(everything), manager=Rules(manage)), {}, **to(scope))
    assert (output["turns_done"], output["failed"], output["operations"]) == (0, [], [])
    assert state(bank, scope) == ([], [("d:0", TurnStatus.DONE, 0)])


def test_a_purge_in_the_middle_of_a_run_stays_a_purge(bank: MemoryBank, scope: Scope, run: Run) -> None:
    def manage(request: ManageRequest) -> str:
        bank.purge(scope=scope)
        return replies(op("ADD", text="back again"))

    say(bank, scope, "x", "y")
    output = run(create_construction_graph(bank, extractor=Rules(everything), manager=Rules(manage)), {}, **to(scope))
    assert output["failed"] == []
    assert state(bank, scope) == ([], [])


def test_the_manager_sees_memories_of_the_same_participant_once_and_at_most_ten_per_fact(
    bank: MemoryBank, scope: Scope, run: Run
) -> None:
    def add(count: int, speaker: str, user: str) -> None:
        ops = [
            ProposedOp(kind=OpKind.ADD, text=f"{speaker} likes tea {i}", reason="r", actor="a", speaker=speaker)
            for i in range(count)
        ]
        bank.apply(ops, scope=scope.model_copy(update={"user": user}))

    add(15, "Anna", "anna")
    add(15, "Ben", "anna")
    add(15, "Anna", "somebody else")
    shown: list[Memory] = []

    def manage(request: ManageRequest) -> str:
        shown.extend(request.memories)
        return replies()

    two = Rules(lambda request: json.dumps({"facts": ["Anna likes tea", "Anna likes tea 3"]}))
    say(bank, scope, "tea")
    run(create_construction_graph(bank, extractor=two, manager=Rules(manage)), {}, **to(scope))
    assert {(memory.speaker, memory.scope.user) for memory in shown} == {("Anna", "anna")}
    assert len(shown) == len({memory.id for memory in shown})
    assert 10 <= len(shown) <= 15
    best_of_each = [bank.search(query, scope=scope, limit=1)[0].memory for query in ("Anna likes tea 3",)]
    assert best_of_each[0] in shown[:2]


def test_the_extractor_sees_the_turns_before_within_the_window(bank: MemoryBank, scope: Scope, run: Run) -> None:
    seen: dict[str, list[str]] = {}

    def extract(request: ExtractRequest) -> str:
        seen[request.turn.text] = [turn.text for turn in request.history]
        return '{"facts": []}'

    say(bank, scope, "a", "b", "c", "d")
    say(bank, scope, "other dialogue", dialogue="e")
    unused = Rules(lambda request: "")
    run(create_construction_graph(bank, extractor=Rules(extract), manager=unused, history_window=2), {}, **to(scope))
    assert seen == {"a": [], "b": ["a"], "c": ["a", "b"], "d": ["b", "c"], "other dialogue": []}


def test_a_run_keeps_to_its_dialogue_its_user_and_its_cap(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run
) -> None:
    say(bank, scope, "a", "b", "c")
    say(bank, scope, "e", dialogue="e")
    ben = scope.model_copy(update={"user": "ben"})
    say(bank, ben, "f")
    graph = create_construction_graph(bank, model=brain())
    output = run(graph, {"dialogue": "d", "max_turns": 2, "run_id": "r1"}, **to(scope))
    assert len(bank.undo_run("r1", scope=scope, actor="test")) == 2
    assert (output["turns_done"], output["run_id"]) == (2, "r1")
    assert "2 turns were worked on" in output["stopped"]
    pending = [turn.text for owner in (scope, ben) for turn in bank.turns(scope=owner, status=TurnStatus.PENDING)]
    assert pending == ["c", "e", "f"]
    assert run(graph, {"max_turns": 5}, **to(scope))["stopped"] is None


def test_turns_that_failed_before_come_after_fresh_ones(bank: MemoryBank, scope: Scope, brain: Brain) -> None:
    say(bank, scope, "a")
    create_construction_graph(bank, model=brain(manager="no")).invoke({}, **to(scope))
    say(bank, scope, "b")
    graph = create_construction_graph(bank, model=brain())
    graph.invoke({"max_turns": 1}, **to(scope))
    assert texts(bank.memories(scope=scope)) == ["b"]
    graph.invoke({}, **to(scope))
    assert texts(bank.memories(scope=scope)) == ["b", "a"]


def test_a_run_without_a_user_is_refused(bank: MemoryBank, scope: Scope, brain: Brain, run: Run) -> None:
    with pytest.raises(ScopeError, match="Whose memories"):
        run(create_construction_graph(bank, model=brain()), {})


def test_prompts_can_be_replaced_for_a_run(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run, calls: Callable[..., list[list[BaseMessage]]]
) -> None:
    say(bank, scope, "a")
    model = brain()
    own = to(scope, extractor_prompt="You read one turn. Briefly.", manager_prompt="You manage. Boldly.")
    run(create_construction_graph(bank, model=model), {}, **own)
    assert calls(model, "extractor")[0][0].text == "You read one turn. Briefly."
    assert calls(model, "manager")[0][0].text == "You manage. Boldly."


def test_every_step_of_a_checkpointed_run_can_be_read_back(
    bank: MemoryBank, scope: Scope, brain: Brain, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    say(bank, scope, "Anna has a cat.", "Anna has a dog.")
    graph = create_construction_graph(bank, model=brain(), checkpointer=InMemorySaver())
    thread: RunnableConfig = {"configurable": {"thread_id": "t"}}
    run(graph, {}, thread, **to(scope))
    steps = [snapshot.values for snapshot in graph.get_state_history(thread)]
    managing = next(values for values in steps if values.get("memories"))
    assert {type(value).__name__ for key in ("turn", "facts", "memories") for value in _flat(managing[key])} == {
        "StoredTurn",
        "Fact",
        "Memory",
    }
    assert "unregistered" not in caplog.text
    say(bank, scope, "Anna has a bird.")
    assert run(graph, {}, thread, **to(scope))["turns_done"] == 1  # and the next run on the thread starts afresh


def _flat(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def test_the_step_limit_never_ends_a_run_before_its_own_caps(bank: MemoryBank, scope: Scope, run: Run) -> None:
    count = 0

    def manage(request: ManageRequest) -> str:  # two refused replies, then a conflict, again and again
        nonlocal count
        count += 1
        if count % 3:
            return "no"
        (memory,) = bank.memories(scope=scope)
        other = ProposedOp(kind=OpKind.UPDATE, memory_id=memory.id, text=f"Anna {count}", reason="r", actor="b")
        bank.apply([other], scope=scope)
        return replies(op("DELETE", 0))

    def extract(request: ExtractRequest) -> str:
        return "no" if len(request.failed) < 2 else everything(request)

    bank.apply([ProposedOp(kind=OpKind.ADD, text="Anna 0", reason="r", actor="a", speaker="Anna")], scope=scope)
    say(bank, scope, *(f"Anna {i}" for i in range(4)))
    graph = create_construction_graph(bank, extractor=Rules(extract), manager=Rules(manage), max_turns=4)
    assert graph.config is not None
    assert graph.config["recursion_limit"] == construction_steps(4, 3)
    output = run(graph, {}, **to(scope))
    assert len(output["failed"]) == 4
    assert count == 4 * 9


def test_a_thousand_turns_in_one_run(bank: MemoryBank, scope: Scope) -> None:
    bank.accept([Turn(source_id=str(i), speaker="Anna", text="Hi!") for i in range(1_000)], scope=scope)
    silent = Rules(lambda request: '{"facts": []}')
    graph = create_construction_graph(bank, extractor=silent, manager=silent, history_window=0)
    output = graph.invoke({}, **to(scope))
    assert output["turns_done"] == 1_000

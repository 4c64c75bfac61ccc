"""Any MCP client can work with the memories of one scope; what it gets wrong is a tool error in words."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("mcp")
from mcp import ClientSession
from mcp.shared.memory import create_connected_server_and_client_session
from mcp.types import CallToolResult, TextContent

from memweave.errors import NotInstalledError
from memweave.graphs.memory_server import memory_server
from memweave.memory_stores import MemoryBank
from memweave.records import OpKind, ProposedOp, Scope, Trust, TurnStatus
from memweave.testing.models import ScriptedChatModel

UUID = r"\[([0-9a-f-]{36})\]"


def served(bank: MemoryBank, scope: Scope, use: Callable[[ClientSession], Awaitable[None]], **options: Any) -> None:
    async def work() -> None:
        server = memory_server(bank, scope, **options)
        async with create_connected_server_and_client_session(server) as session:
            await use(session)

    asyncio.run(work())


async def told(session: ClientSession, name: str, /, **arguments: Any) -> tuple[str, bool]:
    result = await session.call_tool(name, arguments)
    return text_of(result), not result.isError


def text_of(result: CallToolResult) -> str:
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


def test_it_remembers_finds_tells_the_history_and_undoes(bank: MemoryBank, scope: Scope) -> None:
    async def use(session: ClientSession) -> None:
        assert await told(session, "list_memories") == ("No memory is there.", True)
        assert await told(session, "memory_history") == ("Nothing was changed yet.", True)
        assert (await told(session, "remember", text="I live in Ghent."))[0].startswith("- ADD anna lives in Ghent.")
        changed, _ = await told(session, "remember", text="I moved to Utrecht.")
        assert changed.startswith("- UPDATE anna lives in Ghent. -> anna moved to Utrecht.")
        assert "moved to Utrecht" in (await told(session, "search_memory", query="Where does anna live?"))[0]
        history = (await told(session, "memory_history"))[0].splitlines()
        assert [line.split()[1] for line in history] == ["UPDATE", "ADD"]  # newest first
        operation = re.findall(UUID, changed)[0]
        assert (await told(session, "undo", operation=operation))[0].startswith("Taken back:\n- UPDATE anna moved")
        assert "lives in Ghent" in (await told(session, "list_memories"))[0]
        again, ok = await told(session, "undo", operation=operation)
        assert (ok, "undone" in again) == (False, True)

    served(bank, scope, use)
    (memory,) = bank.memories(scope=scope)
    assert memory.trust is Trust.AGENT


def add(bank: MemoryBank, scope: Scope, *texts: str) -> None:
    ops = [ProposedOp(kind=OpKind.ADD, text=text, reason="new", actor="rule") for text in texts]
    bank.apply(ops, scope=scope)


def test_a_list_has_pages(bank: MemoryBank, scope: Scope) -> None:
    add(bank, scope, "one", "two", "three")

    async def use(session: ClientSession) -> None:
        first, _ = await told(session, "list_memories", limit=2)
        assert [line.split()[1] for line in first.splitlines()] == ["one", "two", "are"]
        assert first.endswith("[There are more: go on with offset=2]")
        rest, _ = await told(session, "list_memories", offset=2, limit=2)
        assert [line.split()[1] for line in rest.splitlines()] == ["three"]

    served(bank, scope, use)


def test_the_history_of_one_memory(bank: MemoryBank, scope: Scope) -> None:
    add(bank, scope, "one", "two")
    first = bank.memories(scope=scope)[0]

    async def use(session: ClientSession) -> None:
        history, _ = await told(session, "memory_history", memory=str(first.id))
        assert "ADD one" in history
        assert "two" not in history

    served(bank, scope, use)


def test_nothing_of_another_scope_is_shown_or_changed(bank: MemoryBank, scope: Scope) -> None:
    others = [scope.model_copy(update={"user": "ben"}), Scope(tenant="umbrella", user=scope.user)]
    for other in others:
        add(bank, other, "the xylophone is Ben's")
    before = [bank.log(scope=other) for other in others]

    async def use(session: ClientSession) -> None:
        calls = [
            ("search_memory", {"query": "xylophone"}),
            ("list_memories", {}),
            ("memory_history", {}),
            *(("undo", {"operation": str(log[0].id)}) for log in before),
            *(("memory_history", {"memory": str(log[0].memory_id)}) for log in before),
            ("search_memory", {"query": "xylophone", "user": "ben"}),
            ("remember", {"text": "I play", "user": "ben", "tenant": "umbrella"}),
        ]
        for name, arguments in calls:
            assert "xylophone" not in (await told(session, name, **arguments))[0]

    served(bank, scope, use)
    assert [bank.log(scope=other) for other in others] == before


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("search_memory", {}, "Wrong arguments: query: Field required."),
        (
            "search_memory",
            {"query": "x" * 4_001},
            "Wrong arguments: query: String should have at most 4000 characters.",
        ),
        ("search_memory", {"query": "tea", "limit": 51}, "Wrong arguments: limit: "),
        ("search_memory", {"query": "tea", "user": "ben"}, "Wrong arguments: user: Extra inputs are not permitted."),
        ("search_memory", {"query": "   "}, "query"),
        ("remember", {"text": "x" * 20_001}, "Wrong arguments: text: "),
        ("list_memories", {"limit": 201}, "Wrong arguments: limit: "),
        ("undo", {"operation": "the last one"}, "Wrong arguments: operation: "),
        ("undo", {"operation": "019df3c0-0000-7000-8000-000000000000"}, "no operation 019df3c0"),
        ("forget_all", {}, "There is no tool 'forget_all'. Use one of: search_memory, remember,"),
    ],
)
def test_what_a_client_gets_wrong_is_an_error_in_words(
    bank: MemoryBank, scope: Scope, name: str, arguments: dict[str, Any], words: str
) -> None:
    async def use(session: ClientSession) -> None:
        text, ok = await told(session, name, **arguments)
        assert (ok, words in text, len(text) < 700) == (False, True, True), text

    served(bank, scope, use)
    assert bank.log(scope=scope) == []


def test_the_schema_says_what_is_accepted(bank: MemoryBank, scope: Scope) -> None:
    async def use(session: ClientSession) -> None:
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        assert list(tools) == ["search_memory", "remember", "list_memories", "memory_history", "undo"]
        assert tools["remember"].inputSchema["properties"]["text"]["maxLength"] == 20_000
        writing = [name for name, tool in tools.items() if tool.annotations and not tool.annotations.readOnlyHint]
        assert writing == ["remember", "undo"]
        assert all("user" not in tool.inputSchema["properties"] for tool in tools.values())

    served(bank, scope, use)


@pytest.mark.parametrize("reply", ["no sense at all", ConnectionError("refused")])
def test_a_text_that_cannot_be_read_now_is_kept_and_tried_again(
    bank: MemoryBank, scope: Scope, reply: str | Exception
) -> None:
    async def use(session: ClientSession) -> None:
        text, ok = await told(session, "remember", text="I live in Ghent.")
        assert (ok, text.startswith("not remembered yet (")) == (False, True)

    served(bank, scope, use, extractor=ScriptedChatModel(lambda _: reply))
    assert len(bank.turns(scope=scope, status=TurnStatus.PENDING)) == 1

    async def later(session: ClientSession) -> None:
        text, ok = await told(session, "remember", text="I play chess.")
        assert (ok, "lives in Ghent" in text, "plays chess" in text) == (True, True, True)

    served(bank, scope, later)


def test_texts_at_once_are_remembered_one_after_the_other(bank: MemoryBank, scope: Scope) -> None:
    async def use(session: ClientSession) -> None:
        texts = [f"I own {n} boats." for n in range(12)]
        results = await asyncio.gather(*(told(session, "remember", text=text) for text in texts))
        assert all(ok for _, ok in results)

    served(bank, scope, use)
    assert bank.turns(scope=scope, status=TurnStatus.PENDING) == []


def test_a_call_ends_in_time(bank: MemoryBank, scope: Scope) -> None:
    async def use(session: ClientSession) -> None:
        text, ok = await told(session, "remember", text="I live in Ghent.")
        assert (ok, text.startswith("No result within 0.0001 s")) == (False, True)

    served(bank, scope, use, seconds=0.0001)


def test_a_fault_of_ours_is_a_tool_error_that_shows_nothing(
    bank: MemoryBank, scope: Scope, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(session: ClientSession) -> None:
        assert await told(session, "search_memory", query="tea") == (
            "The tool search_memory failed (RuntimeError). Go on without it.",
            False,
        )

    async def broken(*_: object, **__: object) -> list[Any]:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(bank, "asearch", broken)
    served(bank, scope, use)
    assert "/secret/path" in caplog.text  # the log has it


def test_without_the_packages_the_extra_is_named(
    bank: MemoryBank, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mcp.server.lowlevel", None)
    with pytest.raises(NotInstalledError, match=r"memweave\[tools\]"):
        memory_server(bank, scope)

"""`memweave mcp` serves the memories of one user to any MCP client: tried with clients that are programs of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("langchain_mcp_adapters")
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import CallToolResult

from memweave.agents.tools.mcp import mcp_tools
from memweave.memory_stores import open_bank
from memweave.records import OpKind, ProposedOp, Scope, TurnStatus

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

HELLO = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}  # fmt: skip


def entry(cli: Cli, home: Path) -> dict[str, Any]:
    """Return what a client has in its configuration."""
    shown = cli("mcp", "--json", "--user", "anna", "--home", str(home))
    assert shown.code == 0
    return shown.json["mcpServers"]["memweave"]


def test_our_own_tools_reach_it_over_calls(cli: Cli, tmp_path: Path) -> None:
    tools = {tool.name: tool for tool in mcp_tools({"memory": entry(cli, tmp_path / "memory")})}
    assert list(tools) == ["search_memory", "remember", "list_memories", "memory_history", "undo"]
    call = {"args": {"text": "I live in Ghent."}, "name": "remember", "id": "c1", "type": "tool_call"}
    assert tools["remember"].invoke(call).text.startswith("- ADD anna lives in Ghent.")
    with open_bank(tmp_path / "memory") as bank:  # the folder is free again, and has it
        assert [memory.text for memory in bank.memories(scope=Scope(user="anna"))] == ["anna lives in Ghent."]


def test_another_client_keeps_a_session_and_cannot_leave_its_scope(cli: Cli, tmp_path: Path) -> None:
    victim = Scope(tenant="acme", user="anna")
    with open_bank(tmp_path / "memory", embedding="hashing") as bank:
        secret = ProposedOp(kind=OpKind.ADD, text="Anna plays the xylophone", reason="new", actor="rule")
        bank.apply([secret], scope=victim)
    made = entry(cli, tmp_path / "memory")

    async def ask() -> list[CallToolResult]:
        calls: list[tuple[str, dict[str, Any]]] = [
            ("remember", {"text": "I live in Ghent."}),
            ("search_memory", {"query": "xylophone"}),
            ("search_memory", {"query": "xylophone", "tenant": "acme"}),
            ("remember", {"text": "x" * 30_000}),
        ]
        server = StdioServerParameters(command=made["command"], args=made["args"])
        with (tmp_path / "log").open("w") as log:
            async with stdio_client(server, log) as streams, ClientSession(*streams) as session:
                await session.initialize()
                return [await session.call_tool(name, arguments) for name, arguments in calls]

    results = asyncio.run(ask())
    assert [each.isError for each in results] == [False, False, True, True]
    assert "xylophone" not in "".join(each.model_dump_json() for each in results)
    assert "Serving the memories of default/anna" in (tmp_path / "log").read_text()


def test_only_messages_go_to_standard_output(cli: Cli, tmp_path: Path) -> None:
    with started(entry(cli, tmp_path / "memory")) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in (1, 2):
            process.stdin.write(b"hello?\n\n" + json.dumps({**HELLO, "id": number}).encode() + b"\n")
            process.stdin.flush()
            reply = json.loads(process.stdout.readline())
            assert (reply["id"], reply["result"]["serverInfo"]["name"]) == (number, "memweave")
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, b"")
    assert b"a line that is no message was skipped" in err


def test_a_message_without_end_ends_the_server_in_words(cli: Cli, tmp_path: Path) -> None:
    with started(entry(cli, tmp_path / "memory")) as process:
        out, err = process.communicate(b"x" * 17_000_000, timeout=60)
    assert (process.returncode, out) == (2, b"")
    assert b"error: a message of the client has more than 16000000 bytes" in err


def started(made: dict[str, Any]) -> subprocess.Popen[bytes]:
    command, pipe = [made["command"], *made["args"]], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_it_ends_when_it_is_told_to(cli: Cli, tmp_path: Path) -> None:
    with started(entry(cli, tmp_path / "memory")) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(HELLO).encode() + b"\n")
        process.stdin.flush()
        assert b'"result"' in process.stdout.readline()  # it serves
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
    with open_bank(tmp_path / "memory") as bank:
        assert bank.turns(scope=Scope(user="anna"), status=TurnStatus.PENDING) == []


def test_the_entry_for_a_client_is_complete(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMWEAVE_TENANT", "acme")  # a client starts it in an environment and a folder of its own
    arguments = [
        "-P", "-m", "memweave", "mcp", "--user", "anna", "--tenant", "acme", "--home", str(tmp_path / ".memweave"),
        "--model", "rule", "--embedding", "hashing",
    ]  # fmt: skip
    found = cli("mcp", "--json", "--user", "anna").json
    assert found == {"mcpServers": {"memweave": {"command": sys.executable, "args": arguments}}}
    assert not (tmp_path / ".memweave").exists()


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_it_needs_a_user(cli: Cli, form: tuple[str, ...]) -> None:
    result = cli("mcp", *form)
    assert result.code == 2
    assert "no user is given" in result.err


def test_without_the_packages_the_extra_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp.server.lowlevel", None)
    result = cli("mcp", "--user", "anna")
    assert result.code == 1
    assert result.error.endswith("Install them: pip install 'memweave[tools]'")

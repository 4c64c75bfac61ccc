"""Whatever an MCP server does, the model gets a message in bounded time, and no program is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from memweave.agents.tools.guard import abandoned
from memweave.agents.tools.mcp import amcp_tools, mcp_tools
from memweave.errors import NotInstalledError, SettingsError, UnavailableError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("langchain_mcp_adapters") is None, reason="needs the extra tools"
)
SERVER = Path(__file__).with_name("mcp_odd_server.py")
OURS = f"of-{os.getpid()}"
"""On the command line of every server that these tests start: other test processes start theirs."""
Call = Callable[[BaseTool, str], ToolMessage]


def odd(habit: str = "", **more: Any) -> Mapping[str, Any]:
    return {"command": sys.executable, "args": [str(SERVER), habit, OURS], **more}


def tool(timeout: float = 30.0, **more: Any) -> BaseTool:
    (made,) = mcp_tools({"odd": odd(**more)}, timeout=timeout, max_chars=1_000, max_bytes=1_000_000)
    return made


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    def made(tool: BaseTool, how: str) -> ToolMessage:
        given = {"name": tool.name, "args": {"how": how}, "id": "c1", "type": "tool_call"}
        found = tool.invoke(given) if request.param == "sync" else asyncio.run(tool.ainvoke(given))
        assert isinstance(found, ToolMessage)
        return found

    return made


@pytest.mark.parametrize("how", ["work", "chatter"])
def test_a_tool_works_also_when_the_server_writes_nonsense_between(call: Call, how: str) -> None:
    message = call(tool(), how)
    assert (message.status, message.text[:7]) == ("success", "done by")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("die", "'odd' ended with exit code 3"),
        ("flood", "'odd' sent a message of more than 1000000 bytes"),
        ("endless", "'odd' sent a message of more than 1000000 bytes"),
        ("raise", "no such file"),
    ],
)
def test_what_goes_wrong_is_told(call: Call, how: str, words: str) -> None:
    message = call(tool(), how)
    assert message.status == "error"
    assert words in message.text
    assert len(message.text) < 1_100


@pytest.mark.parametrize("how", ["hang", "stubborn"])
def test_a_server_that_hangs_is_ended_in_time(call: Call, how: str) -> None:
    before = abandoned()
    message = call(tool(timeout=1.0), how)
    assert message.status == "error"
    assert "'odd' gave no answer within 1 s" in message.text
    assert abandoned() == before  # no thread of ours waits for it
    assert no_child_runs()


def no_child_runs() -> bool:
    """Return whether no server of ours is left, where the system can tell."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    return not any(OURS.encode() in each for each in found)


def test_the_program_ends_with_the_call(call: Call) -> None:
    pid = int(call(tool(), "work").text.split()[-1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_long_result_is_cut_and_not_kept_beside_the_message(call: Call) -> None:
    message = call(tool(), "long")
    assert "4000 characters were cut off" in message.text
    assert message.artifact is None


def test_sound_is_left_out_with_a_word(call: Call) -> None:
    assert call(tool(), "sound").text == "[Sound (audio/wav) was left out.]"


def test_a_server_gets_the_variables_that_it_is_given(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "ours")
    monkeypatch.setenv("KEY", "secret")
    assert call(tool(), "environment").text == "none"
    assert call(tool(env={"TOKEN": "<${KEY}>"}), "environment").text == "<secret>"


def test_calls_do_not_disturb_each_other() -> None:
    made = tool(timeout=10.0)

    async def all_of(*hows: str) -> list[str]:
        given = [{"name": "act", "args": {"how": how}, "id": how, "type": "tool_call"} for how in hows]
        return [each.status for each in await asyncio.gather(*map(made.ainvoke, given))]

    assert asyncio.run(all_of("work", "die", "work", "flood")) == ["success", "error", "success", "error"]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc to see whether the server runs")
def test_a_run_that_is_cancelled_leaves_no_program() -> None:
    made = tool()

    async def cancelled() -> None:
        work = asyncio.ensure_future(made.ainvoke({"how": "hang"}))
        while no_child_runs():  # noqa: ASYNC110 - the program of another process is waited for
            await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        async with asyncio.timeout(20):  # by itself it would run for a minute
            while len(asyncio.all_tasks()) > 1 or not no_child_runs():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    asyncio.run(cancelled())


def test_a_graph_uses_it_as_any_tool() -> None:
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode([tool()]))
    graph.add_edge(START, "tools")
    graph.add_edge("tools", END)
    calls = [{"name": "act", "args": {"how": how}, "id": how, "type": "tool_call"} for how in ("work", "die")]
    told = graph.compile().invoke({"messages": [AIMessage("", tool_calls=calls)]})["messages"][1:]
    assert [each.status for each in told] == ["success", "error"]


# loading


@pytest.mark.parametrize(
    ("connection", "words"),
    [
        ({"command": "/no/such/program"}, "'odd' cannot be used: FileNotFoundError"),
        (odd("no-start"), "'odd' ended with exit code 1. Its standard error ends with: no key was given"),
        (odd("mute"), "'odd' gave no answer within 1 s"),
        (odd("many"), "'odd' names 600 tools; at most 500 can be"),
        (odd("endless-list"), "'odd' cannot be used: RuntimeError: Reached max of 1000"),
    ],
)
def test_a_server_that_does_not_name_its_tools_is_an_error_in_words(connection: Mapping[str, Any], words: str) -> None:
    seconds = 1.0 if "within 1 s" in words else 30.0
    with pytest.raises(UnavailableError, match=re.escape(words)):
        mcp_tools({"odd": connection}, timeout=seconds)
    assert mcp_tools({"odd": connection}, timeout=seconds, required=False) == []


def test_several_servers_need_names_of_their_own() -> None:
    two = {"a": odd(), "b": odd()}
    with pytest.raises(SettingsError, match="two tools are called 'act'"):
        mcp_tools(two)
    assert [each.name for each in asyncio.run(amcp_tools(two, prefix=True))] == ["a_act", "b_act"]
    assert mcp_tools({}) == []


def test_a_description_is_bounded() -> None:
    (wordy,) = mcp_tools({"odd": odd("wordy")})
    assert len(wordy.description) < 8_100


@pytest.mark.parametrize("limits", [{"timeout": 0}, {"max_chars": 0}, {"max_bytes": -1}])
def test_limits_that_cannot_be_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        mcp_tools({}, **limits)


@pytest.mark.parametrize("connection", [{}, {"transport": "stdio"}, {"transport": "http", "command": "x"}])
def test_a_connection_to_nothing_is_refused(connection: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="the connection 'odd' has no"):
        mcp_tools({"odd": connection})


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain_mcp_adapters.tools", None)
    with pytest.raises(NotInstalledError, match=r"memweave\[tools\]"):
        mcp_tools({"odd": odd()})


# over HTTP


def test_a_server_over_http_that_is_away_or_sends_too_much(closed_port: Callable[[], int]) -> None:
    with pytest.raises(UnavailableError, match="'far' cannot be used: ConnectError"):
        mcp_tools({"far": {"url": f"http://127.0.0.1:{closed_port()}/mcp"}})
    with ThreadingHTTPServer(("127.0.0.1", 0), Flood) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UnavailableError, match="'far' sent more than 1000000 bytes"):
            mcp_tools({"far": {"url": f"http://127.0.0.1:{server.server_port}/mcp"}}, max_bytes=1_000_000)
        server.shutdown()


class Flood(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        try:
            for _ in range(100):
                self.wfile.write(b"x" * 1_000_000)
        except OSError:
            pass

    def log_message(self, format: str, *args: object) -> None:
        pass

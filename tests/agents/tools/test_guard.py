"""Whatever a guarded tool does, the model gets a message, in bounded time and of bounded length."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, InjectedToolCallId, StructuredTool, tool
from langgraph.errors import GraphInterrupt
from langgraph.types import Command

from memweave.agents.tools import guard
from memweave.agents.tools.guard import abandoned, guarded
from memweave.errors import SettingsError

Call = Callable[[BaseTool, Any], Any]


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    def made(tool: BaseTool, given: Any) -> Any:
        return tool.invoke(given) if request.param == "sync" else asyncio.run(tool.ainvoke(given))

    return made


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()
    for thread in list(guard._left_behind):  # so that the next test counts its own alone
        thread.join(5)


def tool_call(**arguments: Any) -> dict[str, Any]:
    return {"name": "work", "args": arguments, "id": "c1", "type": "tool_call"}


def both(work: Callable[[], Any]) -> list[BaseTool]:
    async def awork() -> Any:
        return work()

    return [
        StructuredTool.from_function(func=work, name="work", description="Work."),
        StructuredTool.from_function(coroutine=awork, name="work", description="Work."),
    ]


def test_what_it_raises_is_a_message(call: Call) -> None:
    def work() -> str:
        raise KeyError("no such thing")

    for each in both(work):
        text = call(guarded(each), {})
        assert text.startswith("Error: the tool work failed (KeyError: 'no such thing')")
        message = call(guarded(each), tool_call())
        assert isinstance(message, ToolMessage)
        assert (message.status, message.tool_call_id, message.name) == ("error", "c1", "work")


def test_a_program_is_not_ended_by_a_tool(call: Call) -> None:
    def work() -> str:
        raise SystemExit(3)

    assert call(guarded(both(work)[0]), {}).startswith("Error: ")


def test_a_sync_tool_that_hangs_is_given_up(call: Call, gate: threading.Event) -> None:
    before = abandoned()
    hung = StructuredTool.from_function(func=lambda: str(gate.wait(30)), name="work", description="Work.")
    assert "no result within 0.05 s" in call(guarded(hung, timeout=0.05), {})
    assert abandoned() == before + 1


def test_an_async_tool_that_hangs_and_will_not_be_cancelled_is_given_up() -> None:
    async def main() -> str:
        release = asyncio.Event()

        async def work() -> str:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
            return "late"

        each = StructuredTool.from_function(coroutine=work, name="work", description="Work.")
        text: str = await guarded(each, timeout=0.05).ainvoke({})
        release.set()
        return text

    assert "no result within 0.05 s" in asyncio.run(main())


def test_too_many_hanging_threads_are_refused(
    call: Call, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "ABANDONED", abandoned() + 1)
    hung = StructuredTool.from_function(func=lambda: str(gate.wait(30)), name="work", description="Work.")
    call(guarded(hung, timeout=0.05), {})
    assert "was not started" in call(guarded(hung, timeout=0.05), {})


def test_a_flood_is_cut(call: Call) -> None:
    for each in both(lambda: "x" * 50_000_000):
        assert len(call(guarded(each, max_chars=100), {})) < 200
        assert len(call(guarded(each, max_chars=100), tool_call()).content) < 200


def test_wrong_arguments_are_told(call: Call) -> None:
    @tool
    def work(number: int) -> str:
        """Work."""
        return str(number)

    assert "wrong arguments (number: " in call(guarded(work), {"number": "many"})
    assert call(guarded(work), {"number": 3}) == "3"


def test_it_looks_like_the_tool_inside() -> None:
    @tool
    def work(number: int, call_id: Annotated[str, InjectedToolCallId]) -> str:
        """Work."""
        return call_id

    work.metadata, work.tags = {"dangerous": True}, ["a"]
    made = guarded(work)
    assert (made.name, made.description, made.metadata, made.tags) == (
        work.name,
        work.description,
        work.metadata,
        ["a"],
    )
    assert made.tool_call_schema.model_json_schema() == work.tool_call_schema.model_json_schema()
    assert made.invoke(tool_call(number=1)).content == "c1"


def test_interrupts_and_commands_pass(call: Call) -> None:
    def ask() -> str:
        raise GraphInterrupt(())

    for each in both(ask):
        with pytest.raises(GraphInterrupt):
            call(guarded(each), {})
    command: Command[Any] = Command(goto="there")
    for each in both(lambda: command):
        assert call(guarded(each), {}) is command


def test_limits_are_positive() -> None:
    with pytest.raises(SettingsError):
        guarded(both(lambda: "")[0], timeout=0)

"""What a reply carries, and what becomes of every answer that a server should not give."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

from memweave.errors import (
    ContextLengthError,
    InputError,
    MemweaveError,
    ModelReplyError,
    ServerSetupError,
    SettingsError,
    UnavailableError,
)
from memweave.serving.patience import CLOCK
from memweave.serving.vllm_chat import Served, VLLMChatModel
from memweave.serving.vllm_endpoint import VLLMEndpoint
from memweave.tracing.records import Sampling
from tests.serving.stub_vllm import StubVLLM, error

Json = dict[str, Any]


@pytest.fixture
def stub() -> Iterator[StubVLLM]:
    server = StubVLLM()
    yield server
    server.stop()


def model(
    stub: StubVLLM, *, name: str = "base", timeout: float = 5.0, wait: float = 0.0, **sampling: Any
) -> VLLMChatModel:
    endpoint = VLLMEndpoint(stub.url + "/v1", reconnect_timeout=wait, on_wait=lambda line: None)
    return VLLMChatModel.connect(
        endpoint, "policy", lambda: Served(name, "0123"), sampling=Sampling(**sampling), timeout=timeout
    )


def test_a_reply_carries_ids_logprobs_policy_and_sampling(stub: StubVLLM) -> None:
    reply = model(stub, temperature=0.7, max_tokens=3).invoke([SystemMessage("be brief"), HumanMessage("hello")])
    assert reply.content == "from base"
    found = reply.response_metadata
    assert (found["prompt_token_ids"], found["token_ids"]) == ([1, 2, 3, 4], [5, 5, 5])
    assert (found["policy"], found["policy_version"], found["finish_reason"]) == ("base", "0123", "stop")
    assert found["sampling"] == {"temperature": 0.7, "max_tokens": 3}
    assert len(found["token_logprobs"]) == 3
    assert all(value < 0 for value in found["token_logprobs"])
    assert reply.usage_metadata == {"input_tokens": 4, "output_tokens": 3, "total_tokens": 7}


def test_a_request_says_all_of_its_sampling_and_asks_for_ids(stub: StubVLLM) -> None:
    model(stub, temperature=0.7, top_p=0.9).invoke("hello", stop=["\n"])
    _, body = stub.requests[0]
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (
        0.7,
        0.9,
        0,
        0.0,
        1.0,
    )
    assert (body["logprobs"], body["return_token_ids"], body["stop"]) == (True, True, ["\n"])
    assert "seed" not in body
    assert not body.get("stream")


def test_the_seed_follows_the_call_and_not_the_order(stub: StubVLLM) -> None:
    chat = model(stub, seed=1)
    for prompt, episode in (("a", "r/1/0/0"), ("a", "r/1/0/1"), ("b", "r/1/0/0"), ("a", "r/1/0/0")):
        chat.invoke(prompt, config={"metadata": {"memweave_episode": episode}})
    seeds = [body["seed"] for _, body in stub.requests]
    assert seeds[0] == seeds[3]
    assert len(set(seeds)) == 3


@tool
def lookup(city: str) -> str:
    """Find a city."""
    return city


def test_tools_go_through_the_template_and_are_read_from_the_text(stub: StubVLLM) -> None:
    text = 'I look.\n<tool_call>\n{"name": "lookup", "arguments": {"city": "Oslo"}}\n</tool_call>'
    stub.change = lambda answer: answer["choices"][0]["message"].update(content=text)
    chat = model(stub).bind_tools([lookup])
    reply = chat.invoke("where?")
    assert reply.content == text
    assert [(call["name"], call["args"]) for call in reply.tool_calls] == [("lookup", {"city": "Oslo"})]
    chat.invoke([HumanMessage("where?"), reply, ToolMessage("north", tool_call_id="call_0")])
    _, body = stub.requests[1]
    assert body["tool_choice"] == "none"
    assert body["tools"][0]["function"]["name"] == "lookup"
    assert [(m["role"], m["content"]) for m in body["messages"]] == [
        ("user", "where?"),
        ("assistant", text),
        ("tool", "north"),
    ]
    assert model(stub).invoke("where?").tool_calls == []


def test_the_name_is_asked_for_at_every_call(stub: StubVLLM) -> None:
    stub.adapters = ["a", "b"]
    names = iter(["a", "b"])
    endpoint = VLLMEndpoint(stub.url)
    chat = VLLMChatModel.connect(endpoint, "policy", lambda: Served(next(names), None))
    assert [chat.invoke("x").response_metadata["policy"] for _ in range(2)] == ["a", "b"]


def drop(*path: str | int) -> Callable[[Json], object]:
    def change(answer: Json) -> None:
        where: Any = answer
        for key in path[:-1]:
            where = where[key]
        del where[path[-1]]

    return change


def put(value: object, *path: str | int) -> Callable[[Json], object]:
    def change(answer: Json) -> None:
        where: Any = answer
        for key in path[:-1]:
            where = where[key]
        where[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (drop("prompt_token_ids"), ServerSetupError, "returns no token ids.*use vLLM 0.10.2 or newer"),
        (drop("choices", 0, "token_ids"), ServerSetupError, "returns no token ids"),
        (put(None, "choices", 0, "logprobs"), ServerSetupError, "--logprobs-mode processed_logprobs"),
        (put([5], "choices", 0, "token_ids"), ModelReplyError, r"counts 4 \+ 3 tokens but returns 4 \+ 1 ids"),
        (put([1], "prompt_token_ids"), ModelReplyError, r"but returns 1 \+ 3 ids"),
        (put("other", "model"), ModelReplyError, "base was asked, 'other' answered"),
        (put(float("nan"), "choices", 0, "logprobs", "content", 0, "logprob"), ModelReplyError, "log-probability nan"),
        (put(-9999.0, "choices", 0, "logprobs", "content", 0, "logprob"), ModelReplyError, "log-probability -9999"),
        (put(None, "choices", 0, "logprobs", "content", 0, "logprob"), ModelReplyError, "is not a number"),
        (drop("choices", 0, "logprobs", "content", 0, "logprob"), ModelReplyError, "is not a number"),
        (drop("usage"), ModelReplyError, "not that of a chat completion"),
        (put([], "choices"), ModelReplyError, "not that of a chat completion"),
    ],
)
def test_an_answer_that_cannot_be_trained_on(
    stub: StubVLLM, change: Callable[[Json], object], kind: type[MemweaveError], message: str
) -> None:
    stub.change = change
    with pytest.raises(kind, match=message):
        model(stub).invoke("hello")


TOO_LONG = "This model's maximum context length is 64 tokens. However, your prompt contains at least 65 input tokens."


@pytest.mark.parametrize(
    ("status", "text", "kind", "message"),
    [
        (400, error(400, TOO_LONG), ContextLengthError, "does not fit the model's context"),
        (
            400,
            error(400, "max_tokens must be at least 1, got 0."),
            InputError,
            "refuses the request: max_tokens must be",
        ),
        (401, error(401, "Unauthorized"), ServerSetupError, "refuses the API key"),
        (404, error(404, "The model `base` does not exist."), ServerSetupError, "GET /v1/models lists what it serves"),
        (500, error(500, "out of memory"), UnavailableError, r"failed \(500\): out of memory"),
        (200, "<html>", ModelReplyError, "answered with no JSON: '<html>'"),
        (200, "[1]", ModelReplyError, "other than a JSON object"),
        (500, "garbage", UnavailableError, "garbage"),
    ],
)
def test_an_answer_that_is_an_error(
    stub: StubVLLM, status: int, text: str, kind: type[MemweaveError], message: str
) -> None:
    stub.fault = lambda path, body: (status, text) if path.startswith("/v1/chat") else None
    with pytest.raises(kind, match=message):
        model(stub).invoke("hello")


def test_an_overloaded_server_is_asked_again(stub: StubVLLM) -> None:
    answers = iter([(429, error(429, "busy"))])
    stub.fault = lambda path, body: next(answers, None)
    assert model(stub).invoke("hello").content == "from base"
    assert len(stub.requests) == 2


def test_a_server_that_hangs_is_given_up_after_the_timeout(stub: StubVLLM) -> None:
    def hang(path: str, body: Json) -> None:
        stub.hold.wait(30)

    stub.fault = hang
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="gave no answer within 0.2 s"):
        model(stub, timeout=0.2).invoke("hello")
    assert time.monotonic() - began < 5


def test_a_server_that_is_not_there(stub: StubVLLM) -> None:
    stub.stop()
    with pytest.raises(UnavailableError, match="does not answer .*Start it: memweave serve"):
        model(stub).invoke("hello")


def test_calls_wait_for_a_server_that_comes_back_and_say_so_once(stub: StubVLLM) -> None:
    lines: list[str] = []
    restored: list[int] = []

    def heard(line: str) -> None:
        lines.append(line)
        if "waiting" in line:
            stub.start()

    endpoint = VLLMEndpoint(stub.url, reconnect_timeout=20, on_wait=heard, restore=lambda: restored.append(1))
    chat = VLLMChatModel.connect(endpoint, "policy", lambda: Served("base", None))
    assert chat.invoke("hello").content == "from base"
    stub.stop()
    threads = [threading.Thread(target=chat.invoke, args=("hello",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [line.partition("; ")[2] for line in lines] == ["waiting up to 20 s for it", "going on"]
    assert restored == [1]
    assert len(stub.requests) == 9


def test_the_clock_of_whoever_calls_stands_still_while_the_server_is_away(stub: StubVLLM) -> None:
    """For calls of both kinds: the asynchronous one waits on another thread."""

    class Counting:
        pauses, resumes = 0, 0

        def pause(self) -> None:
            self.pauses += 1

        def resume(self) -> None:
            self.resumes += 1

    def heard(line: str) -> None:
        if "waiting" in line:
            assert (clock.pauses, clock.resumes) == (1, 0)
            stub.start()

    chat = VLLMChatModel.connect(
        VLLMEndpoint(stub.url, reconnect_timeout=20, on_wait=heard), "policy", lambda: Served("base", None)
    )
    for call in (lambda: chat.invoke("hello"), lambda: asyncio.run(chat.ainvoke("hello"))):
        clock = Counting()
        held = CLOCK.set(clock)
        call()
        assert (clock.pauses, clock.resumes) == (0, 0)
        stub.stop()
        call()
        assert (clock.pauses, clock.resumes) == (1, 1)
        CLOCK.reset(held)


def test_a_server_that_stays_away_is_given_up(stub: StubVLLM) -> None:
    stub.stop()
    with pytest.raises(UnavailableError, match="did not come back within 0.3 s"):
        model(stub, wait=0.3).invoke("hello")


@pytest.mark.parametrize("status", [500, 503])
def test_a_reply_broken_off_by_a_dying_server_is_asked_for_again(stub: StubVLLM, status: int) -> None:
    answers = iter([(status, error(status, "EngineCore encountered an issue"))])
    stub.fault = lambda path, body: next(answers, None) if path.startswith("/v1/chat") else None
    assert model(stub, wait=5).invoke("hello").content == "from base"
    aborted = iter([put("abort", "choices", 0, "finish_reason")])
    stub.change = lambda answer: next(aborted, lambda _: None)(answer)
    assert model(stub, wait=5).invoke("hello").response_metadata["finish_reason"] == "stop"


@pytest.mark.anyio
async def test_calls_of_one_loop_run_at_once_and_can_be_cancelled(stub: StubVLLM) -> None:
    together, arrived = threading.Barrier(8), threading.Event()

    def meet(path: str, body: Json) -> None:
        if body["messages"][0]["content"] == "meet":
            together.wait(10)
        elif path.startswith("/v1/chat"):
            arrived.set()
            stub.hold.wait(30)

    stub.fault = meet
    chat = model(stub, timeout=20)
    replies = await asyncio.gather(*(chat.ainvoke("meet") for _ in range(8)))
    assert {reply.content for reply in replies} == {"from base"}
    waiting = asyncio.ensure_future(chat.ainvoke("wait"))
    await asyncio.to_thread(arrived.wait, 10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.anyio
async def test_it_never_streams(stub: StubVLLM) -> None:
    chunks = [chunk async for chunk in model(stub).astream("hello")]
    assert [chunk.response_metadata["token_ids"] for chunk in chunks if chunk.response_metadata] == [[5, 5, 5]]
    assert not stub.requests[0][1].get("stream")


def test_an_unknown_argument_is_refused(stub: StubVLLM) -> None:
    with pytest.raises(InputError, match="'temperature' is no argument"):
        model(stub).invoke("hello", temperature=0.1)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:port"])
def test_a_malformed_url(url: str) -> None:
    with pytest.raises(SettingsError, match="is not the URL of a server"):
        VLLMEndpoint(url)


def test_the_answer_is_an_ai_message(stub: StubVLLM) -> None:
    assert isinstance(model(stub).invoke("hello"), AIMessage)

from __future__ import annotations

import asyncio
import socket
import threading
import time

import httpx2
import openai
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from typing_extensions import override

from memweave.agents.llm import EXTRACTOR, LLMPolicy, as_extractor, as_judge, as_manager
from memweave.agents.prompts import load_prompt, parse_prompt
from memweave.agents.roles import ExtractRequest
from memweave.errors import ModelReplyError, SettingsError, UnavailableError
from memweave.models import chat_model
from memweave.records import Turn
from memweave.testing.models import ScriptedChatModel

REQUEST = ExtractRequest(turn=Turn(source_id="1", speaker="Anna", text="I have a cat."))


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Seen(BaseCallbackHandler):
    """Collects what a tracer would see of a model call."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, list[str] | None, object]] = []

    @override
    def on_chat_model_start(self, serialized: object, messages: object, **kwargs: object) -> None:  # type: ignore[override]
        metadata = kwargs.get("metadata")
        role = metadata.get("memweave_role") if isinstance(metadata, dict) else None
        tags = kwargs.get("tags")
        self.calls.append((role, tags if isinstance(tags, list) else None, kwargs.get("name")))


@pytest.mark.anyio
async def test_the_model_is_asked_with_the_callers_callbacks_sync_and_async() -> None:
    model = ScriptedChatModel(['{"facts": []}', "second"])
    policy = LLMPolicy(model, EXTRACTOR)
    seen = Seen()
    config: RunnableConfig = {"callbacks": [seen], "tags": ["mine"]}
    assert policy.reply(REQUEST, config) == '{"facts": []}'
    assert await policy.areply(REQUEST, config) == "second"
    assert model.calls[0] == model.calls[1]
    assert model.prompts[0].startswith("system: You read one turn")
    assert [call[0] for call in seen.calls] == ["extractor", "extractor"]
    assert all("nostream" in (call[1] or []) and "mine" in (call[1] or []) for call in seen.calls)
    assert config == {"callbacks": [seen], "tags": ["mine"]}


def test_name_and_version_come_from_the_model() -> None:
    policy = LLMPolicy(ScriptedChatModel([], model_name="qwen"), EXTRACTOR)
    assert (policy.name, policy.policy_version) == ("qwen", None)
    named = LLMPolicy(ScriptedChatModel([]), EXTRACTOR, name="mine", policy_version="abc", profile="none")
    assert (named.name, named.policy_version) == ("mine", "abc")


def test_the_reply_is_always_storable_text() -> None:
    policy = LLMPolicy(ScriptedChatModel(["a\ud800b", AIMessage([{"type": "text", "text": "c"}])]), EXTRACTOR)
    assert policy.reply(REQUEST) == "a?b"
    assert policy.reply(REQUEST) == "c"


def response(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("POST", "http://localhost/v1"))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("failure", "expected", "words"),
    [
        (ConnectionRefusedError("refused"), UnavailableError, "cannot be reached"),
        (httpx2.ConnectError("no route"), UnavailableError, "cannot be reached: no route"),
        (TimeoutError(), UnavailableError, "did not answer within"),
        (openai.APITimeoutError(httpx2.Request("POST", "http://x")), UnavailableError, "did not answer within"),
        (openai.AuthenticationError("bad key", response=response(401), body=None), UnavailableError, "API key"),
        (openai.NotFoundError("no model", response=response(404), body=None), UnavailableError, "not there"),
        (openai.RateLimitError("slow down", response=response(429), body=None), UnavailableError, "overloaded"),
        (openai.InternalServerError("oops", response=response(500), body=None), UnavailableError, "broken (500)"),
        (openai.BadRequestError("too long", response=response(400), body=None), ModelReplyError, "too long"),
    ],
)
async def test_errors_of_the_endpoint_say_what_to_do(failure: Exception, expected: type[Exception], words: str) -> None:
    policy = LLMPolicy(ScriptedChatModel([failure, failure]), EXTRACTOR)
    with pytest.raises(expected) as sync_error:
        policy.reply(REQUEST)
    with pytest.raises(expected) as async_error:
        await policy.areply(REQUEST)
    assert words in str(sync_error.value)
    assert str(sync_error.value) == str(async_error.value)
    assert "\n" not in str(sync_error.value)


@pytest.mark.anyio
async def test_other_errors_are_not_swallowed() -> None:
    policy = LLMPolicy(ScriptedChatModel([KeyError("bug"), KeyError("bug")]), EXTRACTOR)
    with pytest.raises(KeyError):
        policy.reply(REQUEST)
    with pytest.raises(KeyError):
        await policy.areply(REQUEST)


@pytest.mark.anyio
async def test_waiting_is_bounded() -> None:
    release = threading.Event()

    def hang(messages: list[BaseMessage]) -> str:
        release.wait(30)
        return "late"

    policy = LLMPolicy(ScriptedChatModel(hang), EXTRACTOR, timeout=0.05)
    started = time.monotonic()
    try:
        with pytest.raises(UnavailableError, match=r"within 0\.05 s"):
            await asyncio.to_thread(policy.reply, REQUEST)
        with pytest.raises(UnavailableError, match=r"within 0\.05 s"):
            await policy.areply(REQUEST)
    finally:
        release.set()
    assert time.monotonic() - started < 5


@pytest.mark.anyio
async def test_a_closed_port_is_an_unavailable_model() -> None:
    url = f"http://127.0.0.1:{closed_port()}/v1"
    policy = LLMPolicy(chat_model(f"openai:tiny@{url}", max_retries=0), EXTRACTOR)
    for call in (asyncio.to_thread(policy.reply, REQUEST), policy.areply(REQUEST)):
        with pytest.raises(UnavailableError, match=f"'tiny' at {url} cannot be reached"):
            await call


def test_what_a_caller_may_name() -> None:
    model = ScriptedChatModel([])
    assert isinstance(as_manager(model), LLMPolicy)
    policy = LLMPolicy(model, EXTRACTOR)
    assert as_extractor(policy) is policy
    assert as_extractor("openai:tiny@http://localhost:1/v1").name == "tiny"
    assert as_extractor("rule").name == "rule"
    with pytest.raises(SettingsError, match="no rules that play the judge"):
        as_judge("rule")
    with pytest.raises(SettingsError, match="Unknown model provider 'opnai'"):
        as_extractor("opnai:gpt")


def test_prompts_have_a_version_and_a_hash() -> None:
    prompts = [load_prompt(role) for role in ("extractor", "manager", "answerer", "judge", "chat")]
    assert [prompt.role for prompt in prompts] == ["extractor", "manager", "answerer", "judge", "chat"]
    assert all(prompt.version >= 1 and len(prompt.hash) == 16 for prompt in prompts)
    assert len({prompt.hash for prompt in prompts}) == 5
    assert all(not prompt.text.startswith("---") for prompt in prompts)
    with pytest.raises(SettingsError, match="front matter"):
        parse_prompt("You are helpful.")

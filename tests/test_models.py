from __future__ import annotations

import re

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from memweave.errors import SettingsError, UsageError
from memweave.models import ModelOptions, chat_model, model_name, providers, register_provider
from memweave.serving import VLLMChatModel
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import Sampling


def openai_model(spec: str, **options: object) -> ChatOpenAI:
    model = chat_model(spec, **options)  # type: ignore[arg-type]  # a test passes options by name
    assert isinstance(model, ChatOpenAI)
    return model


def secret(model: ChatOpenAI) -> str:
    assert isinstance(model.openai_api_key, SecretStr)
    return model.openai_api_key.get_secret_value()


def test_openai_by_name() -> None:
    model = openai_model("openai:gpt-4.1-mini", api_key="sk-1", timeout=5, max_retries=1)
    assert (model_name(model), model.openai_api_base) == ("gpt-4.1-mini", "https://api.openai.com/v1")
    assert (secret(model), model.request_timeout, model.max_retries) == ("sk-1", 5, 1)
    assert model.temperature == 0
    assert "sk-1" not in repr(model)


def test_any_endpoint_that_speaks_the_protocol_needs_no_key() -> None:
    model = openai_model("openai:org/qwen3@http://localhost:8000/v1", temperature=None, max_tokens=64, seed=4)
    assert (model_name(model), model.openai_api_base) == ("org/qwen3", "http://localhost:8000/v1")
    assert (model.temperature, model.max_tokens, model.request_timeout, model.seed) == (None, 64, 60, 4)


def test_neither_key_nor_address_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://from-environment")
    with pytest.raises(SettingsError, match="needs an API key: set MEMWEAVE_MODEL_API_KEY"):
        chat_model("openai:gpt-4.1-mini")
    local = openai_model("openai:tiny@http://localhost:1/v1")
    assert (secret(local), local.openai_api_base) == ("none", "http://localhost:1/v1")
    assert openai_model("openai:gpt", api_key="sk").openai_api_base == "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("opnai:gpt", "Unknown model provider 'opnai' in 'opnai:gpt'. Known: "),
        ("opnai:gpt", ". Did you mean openai:?"),
        ("gpt-4.1", "'gpt-4.1' does not name a provider. Write PROVIDER:NAME, for example 'openai:gpt-4.1'"),
        ("", "does not name a provider"),
        ("openai:", "names no model after the colon"),
        ("openai:tiny@localhost:8000", "is not openai:NAME or openai:NAME@BASE_URL"),
        ("openai:@http://localhost:8000", "is not openai:NAME or openai:NAME@BASE_URL"),
    ],
)
def test_a_specification_that_cannot_be_read(spec: str, error: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(error)):
        chat_model(spec, api_key="k")


def test_a_provider_plugs_in() -> None:
    seen: list[tuple[str, ModelOptions]] = []

    def factory(rest: str, options: ModelOptions) -> BaseChatModel:
        seen.append((rest, options))
        return ScriptedChatModel(["hello"], model_name=rest)

    register_provider("test-only", factory)
    model = chat_model("test-only:a:b@c", api_key="k", temperature=1.0)
    assert model_name(model) == "a:b@c"
    assert seen == [("a:b@c", ModelOptions(api_key=SecretStr("k"), temperature=1.0))]
    assert "test-only" in providers()
    with pytest.raises(SettingsError, match="'a:b' cannot be a provider prefix"):
        register_provider("a:b", factory)


@pytest.mark.anyio
async def test_scripted_model_replies_in_order_and_counts() -> None:
    model = ScriptedChatModel(["one two", AIMessage("three", id="x"), ConnectionError("down")])
    first = model.invoke([HumanMessage("a b c")])
    assert (first.text, first.usage_metadata) == (
        "one two",
        {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
    )
    second = await model.ainvoke("d")
    assert (second.text, second.id, second.response_metadata["model_name"]) == ("three", "x", "scripted")
    with pytest.raises(ConnectionError):
        model.invoke("e")
    with pytest.raises(UsageError, match="has 3 replies and this is call 4.*ends with: 'one too many'"):
        model.invoke("one too many")
    assert model.prompts == ["human: a b c", "human: d", "human: e", "human: one too many"]


def test_scripted_model_as_a_function() -> None:
    model = ScriptedChatModel(lambda messages: messages[-1].text.upper())
    assert [model.invoke(text).text for text in ("a", "b")] == ["A", "B"]
    assert model.bind_tools([]).invoke("c").text == "C"
    assert len(model.calls) == 3


def test_a_vllm_server_by_url() -> None:
    model = chat_model("vllm:run1-policy-v3@http://localhost:8000/v1", max_tokens=64, timeout=5, seed=3)
    assert model_name(model) == "run1-policy-v3"
    assert model.disable_streaming is True
    assert isinstance(model, VLLMChatModel)
    assert model.sampling == Sampling(temperature=0.0, max_tokens=64, seed=3)


@pytest.mark.parametrize("spec", ["vllm:name", "vllm:@http://localhost:8000", "vllm:name@localhost:8000"])
def test_a_vllm_server_needs_a_name_and_a_url(spec: str) -> None:
    with pytest.raises(SettingsError, match="is not vllm:NAME@URL"):
        chat_model(spec)

"""Chat models by name: `chat_model("openai:gpt-4.1-mini")`, `chat_model("openai:qwen3-8b@http://localhost:8000/v1")`.

A specification is `PROVIDER:REST`; what REST means is the provider's business. New kinds of model (a local policy, a
vLLM server) plug in here and nowhere else, through `register_provider`. This module reads no environment: key, timeout
and retries are arguments, which the command line and the graph factories take from the settings. It does not know roles
or prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from pydantic import SecretStr

from memweave.errors import SettingsError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

OPENAI_URL: Final = "https://api.openai.com/v1"


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How a model is called, whoever provides it."""

    api_key: SecretStr | None = None
    temperature: float | None = 0.0
    """Sampling temperature; `None` leaves it to the endpoint."""
    max_tokens: int | None = None
    """Most tokens of one reply; `None` leaves it to the endpoint."""
    timeout: float = 60.0
    """Seconds that one request may take."""
    max_retries: int = 2
    """Requests that are sent again after a failed connection or an overloaded server."""
    seed: int | None = None
    """Of sampling; `None` leaves it to the endpoint."""


ProviderFactory = Callable[[str, ModelOptions], "BaseChatModel"]
"""Makes a chat model from the part of the specification after the first colon. Raises `SettingsError` for a bad one."""


def chat_model(
    spec: str,
    *,
    api_key: SecretStr | str | None = None,
    temperature: float | None = 0.0,
    max_tokens: int | None = None,
    timeout: float = 60.0,
    max_retries: int = 2,
    seed: int | None = None,
) -> BaseChatModel:
    """Return the chat model that `spec` names; nothing is connected yet.

    spec: `openai:NAME` for OpenAI, `openai:NAME@BASE_URL` for any endpoint that speaks its protocol, `vllm:NAME@URL` for a
    policy on a vLLM server, `local:FOLDER` or `local:FOLDER?adapter=FOLDER` for a policy in this process (loaded now), or
    what `register_provider` added.  timeout: seconds per request.  seed: of sampling; a policy draws that of each call from it.

    Raises `SettingsError` for an unknown provider, a malformed specification or a missing key.
    """
    provider, colon, rest = spec.partition(":")
    factory = _PROVIDERS.get(provider)
    if factory is None or not colon or not rest.strip():
        raise SettingsError(_not_a_spec(spec, provider))
    key = SecretStr(api_key) if isinstance(api_key, str) else api_key
    options = ModelOptions(
        api_key=key,
        temperature=temperature,
        max_tokens=max_tokens,
        timeout=timeout,
        max_retries=max_retries,
        seed=seed,
    )
    return factory(rest.strip(), options)


def register_provider(prefix: str, factory: ProviderFactory) -> None:
    """Let `chat_model("PREFIX:...")` call `factory`; registering a prefix again replaces its factory.

    Raises `SettingsError` for a prefix that is not lower-case letters, digits, `-` or `_`.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", prefix):
        raise SettingsError(f"{prefix!r} cannot be a provider prefix: use lower-case letters, digits, - and _")
    _PROVIDERS[prefix] = factory


def providers() -> list[str]:
    """Return the known provider prefixes, sorted."""
    return sorted(_PROVIDERS)


def model_name(model: BaseChatModel) -> str:
    """Return the name under which the model's decisions are logged: its model name, else the name of its class."""
    for attribute in ("model_name", "model"):
        value = getattr(model, attribute, None)
        if isinstance(value, str) and value.strip():
            return value
    return type(model).__name__


def _openai(rest: str, options: ModelOptions) -> BaseChatModel:
    from langchain_openai import ChatOpenAI

    name, at, url = rest.partition("@")
    if not name or (at and not re.match(r"https?://[^/\s]+", url)):
        raise SettingsError(
            f"'openai:{rest}' is not openai:NAME or openai:NAME@BASE_URL, e.g. openai:qwen3-8b@http://localhost:8000/v1"
        )
    if not at and options.api_key is None:
        raise SettingsError(f"openai:{name} needs an API key: set MEMWEAVE_MODEL_API_KEY, or pass api_key")
    return ChatOpenAI(
        model=name,
        base_url=url or OPENAI_URL,
        # Without a key the client would look for one in the environment; endpoints without authentication ignore it.
        api_key=options.api_key or SecretStr("none"),
        temperature=options.temperature,
        max_completion_tokens=options.max_tokens,
        timeout=options.timeout,
        max_retries=options.max_retries,
        seed=options.seed,
        stream_usage=not at,
    )


def _vllm(rest: str, options: ModelOptions) -> BaseChatModel:
    from memweave.serving.vllm_chat import Served, VLLMChatModel
    from memweave.serving.vllm_endpoint import VLLMEndpoint
    from memweave.tracing.records import Sampling

    name, at, url = rest.rpartition("@")
    if not name or not at or not re.match(r"https?://[^/\s]+", url):
        raise SettingsError(f"'vllm:{rest}' is not vllm:NAME@URL, e.g. vllm:run1-policy-v12@http://localhost:8000")
    key = options.api_key.get_secret_value() if options.api_key else None
    sampling = Sampling(temperature=options.temperature, max_tokens=options.max_tokens, seed=options.seed)
    return VLLMChatModel.connect(
        VLLMEndpoint(url, api_key=key), name, lambda: Served(name, None), sampling=sampling, timeout=options.timeout
    )


def _local(rest: str, options: ModelOptions) -> BaseChatModel:
    from memweave.serving.local_spec import local_chat_model
    from memweave.tracing.records import Sampling

    sampling = Sampling(temperature=options.temperature, max_tokens=options.max_tokens, seed=options.seed)
    return local_chat_model(rest, sampling=sampling, timeout=options.timeout)


_PROVIDERS: Final[dict[str, ProviderFactory]] = {"local": _local, "openai": _openai, "vllm": _vllm}


def _not_a_spec(spec: str, provider: str) -> str:
    known = ", ".join(f"{prefix}:" for prefix in providers())
    if ":" not in spec:
        return f"{spec!r} does not name a provider. Write PROVIDER:NAME, for example 'openai:{spec}'. Known: {known}"
    if provider in _PROVIDERS:
        return f"{spec!r} names no model after the colon"
    near = get_close_matches(provider, providers(), n=1)
    hint = f" Did you mean {near[0]}:?" if near else ""
    return f"Unknown model provider {provider!r} in {spec!r}. Known: {known}.{hint}"

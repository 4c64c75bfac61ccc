"""Whether a vLLM server can be trained against: asked of the server itself, not of the flags it was started with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from memweave.errors import AdapterError, InputError, OperationError, ServerSetupError
from memweave.serving.adapters import base_version, rank_message
from memweave.serving.http_pool import JsonObject
from memweave.serving.vllm_endpoint import UnknownModelError, VLLMEndpoint

PROBE: Final = "memweave-probe"
_FLAGS: Final = "--enable-lora --logprobs-mode processed_logprobs --generation-config vllm, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
_BIAS: Final = 4.0
"""Added to one token's logit: only log-probabilities taken after processing show it."""
_TOLERANCE: Final = 0.1
"""Of a difference of log-probabilities; bfloat16 servers are off by some hundredths."""


def check_endpoint(endpoint: VLLMEndpoint, model: str, *, timeout: float = 60.0) -> None:
    """Raise `ServerSetupError`, naming the flag, unless `model` on this server can be trained against.

    Six requests of one token: ids and log-probabilities come back, they are of the distribution that was sampled from, the
    server's own sampling defaults change nothing, and adapters can be loaded.
    """
    _check_lora(endpoint, timeout)
    plain = _probe(endpoint, model, timeout)
    favoured = max(plain, key=lambda token: plain[token])
    one, half = (
        _probe(endpoint, model, timeout, temperature=t, logit_bias={str(favoured): _BIAS}, **_NEUTRAL)
        for t in (1.0, 0.5)
    )
    _check_processed(one, half, favoured)
    _check_defaults(plain, _probe(endpoint, model, timeout, temperature=1.0, **_NEUTRAL))


_NEUTRAL: Final[JsonObject] = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def base_model(endpoint: VLLMEndpoint) -> tuple[str, list[str]]:
    """Return the name of the model that is no adapter, and the names of the adapters."""
    base, adapters = _cards(endpoint)
    return str(base["id"]), [str(card["id"]) for card in adapters]


def check_base(endpoint: VLLMEndpoint, base: Path) -> None:
    """Raise `ServerSetupError` when the server says where its base is, and other weights than those of `base` are there.

    A server elsewhere names a folder that this machine does not have; then the trainer's comparison of log-probabilities
    tells.
    """
    card, _ = _cards(endpoint)
    root = card.get("root")
    if not isinstance(root, str) or not any(Path(root).glob("model*.safetensors")) or Path(root).samefile(base):
        return
    if base_version(Path(root)) != base_version(base):
        raise ServerSetupError(
            f"vLLM at {endpoint.url} serves {root}, whose weights are not those of {base}. Serve that one "
            f"(memweave serve {base}), or train the served one (memweave train --base {root})"
        )


def _cards(endpoint: VLLMEndpoint) -> tuple[JsonObject, list[JsonObject]]:
    """Return what the server lists: its base, and the adapters on it."""
    try:
        answer = endpoint.get("/v1/models")
    except UnknownModelError as error:
        raise ServerSetupError(f"{endpoint.url} has no /v1/models. Is it vLLM?") from error
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or not all(isinstance(card, dict) and "id" in card for card in data):
        raise ServerSetupError(f"{endpoint.url}/v1/models does not list models. Is it vLLM?")
    bases = [card for card in data if not card.get("parent")]
    if not bases:
        raise ServerSetupError(f"{endpoint.url} lists no base model. Is it vLLM?")
    return bases[0], [card for card in data if card.get("parent")]


def _check_lora(endpoint: VLLMEndpoint, timeout: float) -> None:
    """An adapter that does not exist must be refused for that reason, and not because there are no adapters at all."""
    body = {"lora_name": PROBE, "lora_path": f"/nonexistent/{PROBE}"}
    try:
        endpoint.post("/v1/load_lora_adapter", body, timeout=timeout, wait=False)
    except UnknownModelError as error:
        if PROBE in str(error):
            return
        raise ServerSetupError(
            f"vLLM at {endpoint.url} takes no adapters while it runs: start it with the environment variable "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and with --enable-lora"
        ) from error
    except (InputError, OperationError) as error:
        if "lora" in str(error).lower():
            raise ServerSetupError(
                f"vLLM at {endpoint.url} has no LoRA: start it with --enable-lora ({error})"
            ) from error
        raise
    raise ServerSetupError(f"{endpoint.url} accepts an adapter that does not exist. Is it vLLM?")


def _probe(endpoint: VLLMEndpoint, model: str, timeout: float, **settings: object) -> dict[int, float]:
    """Return the log-probabilities of the sampled token and the 5 most probable ones, by token id."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 1,
        "seed": 0,
        "logprobs": True,
        "top_logprobs": 5,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        **settings,
    }
    try:
        answer = endpoint.post("/v1/chat/completions", body, timeout=timeout, wait=False)
    except InputError as error:
        raise ServerSetupError(f"vLLM at {endpoint.url} refuses a probe: {error}. Start it with {_FLAGS}") from error
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ServerSetupError(
            f"{endpoint.url} answers a probe with something else than a chat completion. Is it vLLM?"
        )
    if choices[0].get("token_ids") is None or answer.get("prompt_token_ids") is None:
        raise ServerSetupError(
            f"{endpoint.url} returns no token ids. Use vLLM 0.10.2 or newer, without a proxy that drops them"
        )
    if not choices[0].get("logprobs"):
        raise ServerSetupError(f"{endpoint.url} returns no log-probabilities. Start vLLM with {_FLAGS}")
    try:
        first = choices[0]["logprobs"]["content"][0]
        entries = [first, *first["top_logprobs"]]
        return {int(str(entry["token"]).removeprefix("token_id:")): float(entry["logprob"]) for entry in entries}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ServerSetupError(f"{endpoint.url} names no tokens by id ({error}). Use vLLM 0.10.2 or newer") from error


def _check_processed(one: dict[int, float], half: dict[int, float], favoured: int) -> None:
    """At temperature 0.5 the favoured token must lead by twice as much as at 1.0, and by the bias at least."""
    others = (one.keys() & half.keys()) - {favoured}
    leads = [
        (one[favoured] - one[token], half[favoured] - half[token])
        for token in others
        if favoured in one and favoured in half
    ]
    leads = [(a, b) for a, b in leads if b < 100]  # beyond, the server cuts log-probabilities off
    if not leads or any(a < _BIAS - _TOLERANCE or abs(b - 2 * a) > _TOLERANCE * max(1.0, a) for a, b in leads):
        raise ServerSetupError(
            "The server's log-probabilities are not of the distribution that it samples from (at temperature 0.5 they are "
            "not sharper by 2). Start vLLM with --logprobs-mode processed_logprobs"
        )


def _check_defaults(silent: dict[int, float], neutral: dict[int, float]) -> None:
    """A request that says nothing about sampling must be sampled as one that asks for nothing special."""
    common = silent.keys() & neutral.keys()
    cut = any(value < -1_000 for value in silent.values()) and not any(value < -1_000 for value in neutral.values())
    if cut or len(common) < 2 or any(abs(silent[token] - neutral[token]) > _TOLERANCE for token in common):
        raise ServerSetupError(
            "The server changes sampling by defaults of the model (temperature, top_p, top_k or a penalty from its "
            "generation_config.json). Start vLLM with --generation-config vllm"
        )


def refused_adapter(error: Exception, name: str) -> AdapterError | ServerSetupError | None:
    """Return what the server's refusal of adapter `name` means, if it is about the adapter."""
    said = str(error)
    if found := re.search(r"rank (\d+) is greater than max_lora_rank (\d+)", said):
        return AdapterError(rank_message(name, found[1], found[2]))
    if isinstance(error, UnknownModelError):
        return ServerSetupError(
            f"vLLM cannot read the adapter's folder ({said}). It must see adapter_dir at the same path: mount it there, or "
            "give server_dir, the path at which it sees it"
        )
    return None
